"""Gradient of text encoders' weights: against finite differences in float64, through the prompt's encoding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmark.pipelines.generation import GenerationSettings
from benchmark.pipelines.loading import load_pipeline
from benchmark.prompts.prompt_set import Prompt
from benchmark.taggers.registry import open_tagger
from merger.app.runtime import text_encoders_of
from merger.blend.live import LiveDenoiser
from merger.checkpoints.adapter import open_donor
from merger.checkpoints.checkpoint import open_checkpoint
from merger.checkpoints.text_encoders import with_text_encoders
from merger.errors import ConfigError
from merger.layers.grouping import group
from merger.scoring.gradients.gradients import BlendGradients
from merger.scoring.gradients.memory import image_memory
from merger.scoring.gradients.sampling import DifferentiableGenerator, Differentiation
from merger.scoring.objective import Metric
from tests.merger.text_models import make_family

DONORS = ("warm", "cool")
PROMPTS = (
    Prompt(0, "(blue hair:1.3), smile", ("blue_hair", "smile"), 70),
    Prompt(1, "hat", ("hat",), 71),
)
SETTINGS = GenerationSettings(
    steps=2, sampler="ddim", guidance=3.0, width=32, height=32, batch_size=2, negative_prompt="glasses"
)
LOG = Metric("log_probability", 0.5, lambda tag: "general")


Held = list[dict[str, Any]]


@contextmanager
def shown(module: nn.Module, held: Held, *, noted: Held | None = None) -> Iterator[None]:
    """The module's first calls see the text of `held`; what every call saw is noted."""
    forward, calls = module.forward, iter(held)

    def changed(*args: Any, **kwargs: Any) -> Any:
        kwargs |= next(calls, {})
        if noted is not None:
            noted.append({key: kwargs[key] for key in ("encoder_hidden_states", "added_cond_kwargs") if key in kwargs})
        return forward(*args, **kwargs)

    module.forward = changed  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward


class World:
    """A family's pipeline in float64, live, with its text encoders."""

    def __init__(self, name: str, folder: Path, tokenizer: Path, tagger: Any) -> None:
        family = make_family(name, folder, tokenizer)
        self.base = with_text_encoders(open_checkpoint(family.files["base"]))
        self.donors = [open_donor(family.files[donor], self.base) for donor in DONORS]
        pipeline = load_pipeline(family.files["base"], config=family.pipeline, dtype=torch.float64)
        self.layers = group(self.base.blended, "module")
        encoders = text_encoders_of(pipeline, family.components, self.base)
        self.live = LiveDenoiser(pipeline.unet, self.base, self.donors, self.layers, encoders)
        self.generator = DifferentiableGenerator(pipeline, SETTINGS, lambda: self.live.text_checksum)
        self.tagger = tagger
        self.text = [layer for layer in self.layers if layer.startswith("TE")]
        draw = np.random.default_rng(3)
        self.weights = {layer: {donor: float(draw.uniform(-0.3, 0.7)) for donor in DONORS} for layer in self.layers}

    def gradients(self, **options: Any) -> BlendGradients:
        how = options.pop("how", Differentiation(1.0))
        return BlendGradients(self.live, self.generator, self.tagger, LOG, how, **options)

    def difference_quotient(self, layer: str, donor: int, by: float, held: Held | None = None) -> float:
        """Of the score in one weight, around the blend that is live: nothing is cached, nothing differentiated.

        held: what the first step is shown of the text, whatever the weight.
        """
        parameters = {
            f"{component}.{name.removeprefix('text_model.')}": tensor
            for component, encoder in self.live.text_encoders.items()
            for name, tensor in encoder.state_dict(keep_vars=True).items()
        }
        differences = {
            name: self.donors[donor].read(name).double() - self.base.read(name).double() for name in self.layers[layer]
        }
        found = []
        for sign in (1, -1):
            with torch.no_grad():
                for name, difference in differences.items():
                    parameters[name].add_(sign * by * difference)
                fresh = DifferentiableGenerator(self.generator.pipeline, SETTINGS)
                with shown(self.live.module, held or []):
                    images = fresh.draw(PROMPTS, self.live.module, Differentiation(1.0, recompute=False))
                logits = self.tagger.logits(images)
                for name, difference in differences.items():
                    parameters[name].sub_(sign * by * difference)
            heard = torch.nn.functional.logsigmoid(logits)
            parts = [
                torch.stack([row[self.tagger.tags.index(tag)] for tag in prompt.tags]).mean()
                for prompt, row in zip(PROMPTS, heard, strict=True)
            ]
            found.append(float(torch.stack(parts).mean()))
        return (found[0] - found[1]) / (2 * by)


@pytest.fixture(scope="module")
def world(
    request: pytest.FixtureRequest,
    tiny_pipeline_folder: Path,
    tiny_tagger_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> World:
    tagger: Any = open_tagger(tiny_tagger_folder)
    tagger.model.double()
    name = getattr(request, "param", "sd1")
    return World(name, tmp_path_factory.mktemp(name), tiny_pipeline_folder / "tokenizer", tagger)


@pytest.mark.parametrize("world", ["sd1", "sdxl"], indirect=True)
def test_gradients_of_text_encoders_are_those_of_finite_differences(world: World) -> None:
    _, gradients = world.gradients()(world.weights, PROMPTS)
    largest = max(abs(gradient) for layer in world.text for gradient in gradients[layer].values())
    assert largest > 1e-4
    for layer in world.text:
        for column, donor in enumerate(DONORS):
            expected = world.difference_quotient(layer, column, 1e-5)
            assert gradients[layer][donor] == pytest.approx(expected, rel=1e-4, abs=1e-6 * largest), (layer, donor)
            assert gradients[layer][donor] != 0, (layer, donor)


def test_the_first_steps_text_is_held_where_only_the_last_are_differentiated(world: World) -> None:
    _, gradients = world.gradients(how=Differentiation(0.5))(world.weights, PROMPTS)
    noted: Held = []
    with torch.no_grad(), shown(world.live.module, [], noted=noted):
        world.generator.draw(PROMPTS, world.live.module, Differentiation(1.0, recompute=False))
    for layer in ("TE.embed", "TE.L01"):
        expected = world.difference_quotient(layer, 0, 1e-5, noted[:1])
        assert gradients[layer]["warm"] == pytest.approx(expected, rel=1e-4), layer
        assert expected != pytest.approx(world.difference_quotient(layer, 0, 1e-5), rel=1e-3)


def test_nothing_but_rounding_depends_on_how_it_is_computed(world: World) -> None:
    plain = world.gradients().measure(world.weights, PROMPTS)
    one = world.gradients(micro_batch=1, how=Differentiation(1.0, recompute=False)).measure(world.weights, PROMPTS)
    again = world.gradients().measure(world.weights, PROMPTS)
    assert again.gradients == plain.gradients
    for layer, row in plain.gradients.items():
        assert one.gradients[layer] == pytest.approx(row, rel=1e-7, abs=1e-12), layer
    only = world.gradients(layers=["M00.resnet"])(world.weights, PROMPTS)[1]
    assert only["M00.resnet"] == pytest.approx(plain.gradients["M00.resnet"], rel=1e-9)
    without = [layer for layer in world.layers if layer not in world.text]
    graph = image_memory(world.gradients(), PROMPTS[0]).text
    assert 0 < image_memory(world.gradients(layers=without), PROMPTS[0]).text < graph, "without a graph of the text"


def test_no_graph_is_left_behind(world: World) -> None:
    world.gradients()(world.weights, PROMPTS)
    list(world.generator.generate(PROMPTS))
    kept = [value for value in world.generator.arguments(PROMPTS).values() if isinstance(value, torch.Tensor)]
    assert kept
    assert not any(value.requires_grad for value in kept)
    encoder = world.live.text_encoders["text_encoder"]
    assert not any(p.requires_grad or p.grad is not None for p in encoder.parameters())
    images = next(iter(world.generator.generate(PROMPTS)))
    world.live.apply({layer: row for layer, row in world.weights.items() if layer not in world.text})
    assert not np.array_equal(images, next(iter(world.generator.generate(PROMPTS))))


def test_gradients_of_the_text_are_not_streamed(world: World) -> None:
    streamed = replace(Differentiation(0.5), streamed=True)
    with pytest.raises(ConfigError, match="streamed: gradients go back through the text in one piece only"):
        world.gradients(how=streamed)(world.weights, PROMPTS)
    world.gradients(how=streamed, layers=["M00.resnet"])(world.weights, PROMPTS)
