"""Activation checkpointing: the same gradients with less kept, and networks left as they were."""

from __future__ import annotations

import copy
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmark.pipelines.loading import load_pipeline
from benchmark.taggers.registry import open_tagger
from merger.scoring.gradients.checkpointing import can_checkpoint, checkpointed
from merger.scoring.gradients.sampling import NETWORKS, Differentiation
from tests.merger.scoring.test_gradients import (
    PROMPTS,
    World,
    as_vector,
    dit64,  # noqa: F401
    tagger64,  # noqa: F401
    unet32,  # noqa: F401
    unet64,  # noqa: F401
)

ALL = frozenset(NETWORKS)


def state(module: nn.Module) -> list[dict[str, Any]]:
    """What can be set on a module and on those within it."""
    return [{name: value for name, value in vars(part).items() if name[:2] != "__"} for part in module.modules()]


@pytest.mark.parametrize(
    "checkpointed", [*({name} for name in NETWORKS), ALL], ids=lambda names: "+".join(sorted(names))
)
@pytest.mark.parametrize("world", ["unet32", "unet64", "dit64"])
def test_gradients_stay_the_same(world: str, checkpointed: set[str], request: pytest.FixtureRequest) -> None:
    """Within a step that is computed again, one that is streamed, and one that is kept."""
    tiny: World = request.getfixturevalue(world)
    networks = [tiny.live.module, tiny.generator.pipeline.vae, tiny.tagger.model]
    before = copy.copy([state(network) for network in networks])
    plain = tiny.gradients(Differentiation(0.7)).measure(tiny.weights, PROMPTS[:2])
    expected = as_vector(plain.gradients)
    limit = 1e-5 if world == "unet32" else 1e-9
    for options in ({}, {"streamed": True}, {"recompute": False}, {"chain": 0.5, "streamed": True}):
        how = Differentiation(0.7, **options)  # type: ignore[arg-type]
        if how.chain != 1:
            expected = as_vector(tiny.gradients(how).measure(tiny.weights, PROMPTS[:2]).gradients)
        saving = Differentiation(0.7, checkpointed=frozenset(checkpointed), **options)  # type: ignore[arg-type]
        found = tiny.gradients(saving).measure(tiny.weights, PROMPTS[:2])
        assert found.score.value == plain.score.value
        assert found.score.checksum == plain.score.checksum
        assert np.linalg.norm(as_vector(found.gradients) - expected) <= limit * np.linalg.norm(expected)
    assert [state(network) for network in networks] == before


def test_blocks_are_computed_again(unet32: World) -> None:  # noqa: F811
    """Of each network, some module inside a block is called twice as often."""

    def calls(how: Differentiation) -> dict[str, int]:
        counted = dict.fromkeys(NETWORKS, 0)
        networks = (unet32.live.module, unet32.generator.pipeline.vae.decoder, unet32.tagger.model)
        hooks = []
        for name, network in zip(NETWORKS, networks, strict=True):

            def count(*_: object, name: str = name) -> None:
                counted[name] += 1

            hooks += [part.register_forward_pre_hook(count) for part in network.modules()]
        unet32.gradients(how)(unet32.weights, PROMPTS[:2])
        for hook in hooks:
            hook.remove()
        return counted

    plain = calls(Differentiation(0.3))
    for name in NETWORKS:
        saving = calls(Differentiation(0.3, checkpointed=frozenset({name})))
        assert {other for other in NETWORKS if saving[other] > plain[other]} == {name}


def test_a_low_rank_adapter_on_the_denoiser_changes_nothing(
    tiny_family: dict[str, Path], tiny_pipeline_folder: Path
) -> None:
    """Its layers have parameters that ask for gradients; these arrive as before."""

    class Adapted(nn.Module):
        def __init__(self, inner: nn.Linear) -> None:
            super().__init__()
            self.inner, self.up = inner, nn.Parameter(0.1 * torch.randn(inner.out_features, 2))
            self.down = nn.Parameter(torch.randn(2, inner.in_features))

        def forward(self, values: torch.Tensor, *_: object) -> torch.Tensor:
            return self.inner(values) + values @ self.down.T @ self.up.T

    torch.manual_seed(0)
    unet = load_pipeline(tiny_family["base"], config=tiny_pipeline_folder).unet
    for part in list(unet.modules()):
        if hasattr(part, "to_q"):
            part.to_q = Adapted(part.to_q)
    given = torch.randn(1, unet.config.in_channels, 8, 8), torch.tensor(3)
    text = torch.randn(1, 7, unet.config.cross_attention_dim)

    def gradients() -> list[torch.Tensor]:
        unet(*given, encoder_hidden_states=text).sample.square().sum().backward()
        found = [parameter.grad for parameter in unet.parameters() if parameter.grad is not None]
        unet.zero_grad()
        return found

    plain = gradients()
    with checkpointed([unet]):
        saving = gradients()
    assert len(plain) == len(saving) > 0
    for one, other in zip(plain, saving, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7 * float(one.abs().max()))


def test_dropout_stays_off_in_taggers(tiny_tagger_folder: Path) -> None:
    """transformers' blocks look at their flag in training mode only, in which their dropout would draw."""
    tagger: Any = open_tagger(tiny_tagger_folder)
    for part in tagger.model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.5
    inner = [part for part in tagger.model.modules() if not hasattr(part, "gradient_checkpointing")]
    images = torch.rand(2, 3, 32, 32)
    plain = tagger.logits(images)
    with checkpointed([tagger.model]):
        assert not any(part.training for part in inner)
        assert torch.equal(tagger.logits(images), plain)
    assert not any(part.training for part in tagger.model.modules())


def test_swin_and_convnext_taggers_answer_the_same() -> None:
    """Their blocks drop whole paths in training."""
    from transformers import ConvNextConfig, ConvNextForImageClassification, SwinConfig, SwinForImageClassification

    swin = SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=4)
    swin.drop_path_rate, swin.hidden_dropout_prob, swin.attention_probs_dropout_prob = 0.5, 0.5, 0.5
    convnext = ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], drop_path_rate=0.5)
    for network in (SwinForImageClassification(swin), ConvNextForImageClassification(convnext)):
        network.eval().requires_grad_(False)
        found = []
        for modules in ([], [network]):
            images = torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32).requires_grad_()
            with checkpointed(modules):
                network(images).logits.sum().backward()
            found.append(images.grad)
        assert torch.equal(*found)


def test_a_wd_taggers_network_has_one_switch(tiny_timm_tagger: Path, timm: ModuleType) -> None:
    tagger: Any = open_tagger(tiny_timm_tagger, kind="wd-timm")
    told: list[bool] = []
    tagger.model.set_grad_checkpointing = told.append
    with checkpointed([tagger.model]):
        assert told == [True]
    assert told == [True, False]


def test_what_cannot_compute_again_is_left_alone() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    assert not can_checkpoint(network)
    assert not can_checkpoint(None)
    with checkpointed([network]):
        assert network(torch.ones(2)).requires_grad
