"""Gradients of weights by channel: against autograd, against the sums at granularity tensor, and finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark.pipelines.generation import GenerationSettings
from benchmark.pipelines.loading import load_pipeline
from benchmark.prompts.prompt_set import Prompt
from benchmark.taggers.registry import open_tagger
from merger.blend.live import LiveDenoiser
from merger.checkpoints.checkpoint import Checkpoint, open_checkpoint, read_unet_config
from merger.checkpoints.source import TensorInfo
from merger.layers.channels import widths
from merger.layers.grouping import group
from merger.scoring.gradients.gradients import BlendGradients
from merger.scoring.gradients.reduction import searched_parameters, weight_gradients
from merger.scoring.gradients.sampling import DifferentiableGenerator, Differentiation
from merger.scoring.objective import Metric
from merger.weights import Channels, Weight

DONORS = ("warm", "cool")
PROMPTS = (Prompt(0, "blue hair, smile", ("blue_hair", "smile"), 70), Prompt(1, "hat", ("hat",), 71))


class Shelf(Checkpoint):
    """A checkpoint of tensors in memory, under the same face."""

    def __init__(self, name: str, tensors: dict[str, Tensor]) -> None:
        infos = {key: TensorInfo(key, Path(), tuple(t.shape), t.dtype) for key, t in tensors.items()}
        super().__init__(name, Path(name), "unet", "original", (), infos, (), {})
        object.__setattr__(self, "tensors", tensors)

    def read(self, name: str) -> Tensor:
        return self.tensors[name]  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_each_channel_has_the_dot_product_of_its_row(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(80, 4)).to(dtype)
    layers = {name: (name,) for name in net.state_dict()}
    shelves = [
        Shelf(name, {key: torch.randn_like(p.detach()) for key, p in net.named_parameters()})
        for name in ("base", *DONORS)
    ]
    shapes = {name: tuple(parameter.shape) for name, parameter in net.named_parameters()}
    live = LiveDenoiser(net, shelves[0], shelves[1:], layers)
    own = widths(layers, shapes)
    assert own == {"0.weight": 5, "2.weight": 4}
    images = torch.randn(2, 3, 6, 6).to(dtype)

    def totals(by_channel: bool) -> Tensor:
        searched = list(searched_parameters(live, live.layers, own if by_channel else {}))
        with weight_gradients(searched, 11 if by_channel else 4, 2) as so_far:
            for part in images.split(1):  # they add up over backward passes
                net(part).square().sum().backward()
        return so_far()

    parameters = [net.get_parameter(name).requires_grad_() for name in layers]
    wanted: dict[str, Tensor] = {name: torch.zeros(shape[0], 2).double() for name, shape in shapes.items()}
    for part in images.split(1):
        for name, gradient in zip(layers, torch.autograd.grad(net(part).square().sum(), parameters), strict=True):
            for column, donor in enumerate(shelves[1:]):
                products = gradient.float() * (donor.read(name).float() - shelves[0].read(name).float())
                wanted[name][:, column] += products.double().reshape(shapes[name][0], -1).sum(dim=1)
    rows = [wanted[name] if name in own else wanted[name].sum(0, keepdim=True) for name in layers]
    torch.testing.assert_close(totals(True), torch.cat(rows), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        totals(False), torch.stack([wanted[name].sum(0) for name in layers]), rtol=1e-6, atol=1e-6
    )


def test_widths_are_the_rows_of_one_tensor() -> None:
    net = nn.Linear(3, 2)
    shelves = [Shelf(name, {key: p.detach() for key, p in net.named_parameters()}) for name in ("base", *DONORS)]
    live = LiveDenoiser(net, shelves[0], shelves[1:], {"all": ("weight", "bias")})
    with pytest.raises(ValueError, match="all: 2 weights are not one for each row of one tensor"):
        list(searched_parameters(live, ["all"], {"all": 2}))


@pytest.fixture(scope="module")
def world(
    tiny_family: dict[str, Path], tiny_pipeline_folder: Path, tiny_tagger_folder: Path
) -> tuple[LiveDenoiser, Any, dict[str, int]]:
    """(a live U-Net in float64, what makes its gradients with given widths, the widths of its tensors)."""
    pipeline = load_pipeline(tiny_family["base"], config=tiny_pipeline_folder, dtype=torch.float64)
    tagger: Any = open_tagger(tiny_tagger_folder)
    tagger.model.double()
    config = read_unet_config(tiny_pipeline_folder)
    base, *donors = [open_checkpoint(tiny_family[name], unet_config=config) for name in ("base", *DONORS)]
    layers = group(base.blended, "channel")
    live = LiveDenoiser(pipeline.unet, base, donors, layers)
    settings = GenerationSettings(steps=2, sampler="ddim", guidance=3.0, width=32, height=32, batch_size=2)
    generator = DifferentiableGenerator(pipeline, settings)
    metric = Metric("log_probability", 0.5, lambda tag: "general")

    def make(own: dict[str, int] | None) -> BlendGradients:
        return BlendGradients(live, generator, tagger, metric, Differentiation(1.0), widths=own)

    return live, make, widths(layers, {name: info.shape for name, info in base.blended.items()})


def test_channels_sum_to_the_gradient_of_their_tensor(world: tuple[LiveDenoiser, Any, dict[str, int]]) -> None:
    live, make, own = world
    weights: dict[str, dict[str, Weight]] = {layer: {"warm": 0.3, "cool": 0.1} for layer in live.layers}
    (score, fine), (alike, coarse) = make(own)(weights, PROMPTS), make(None)(weights, PROMPTS)
    assert score.value == alike.value and score.checksum == alike.checksum
    for layer, row in fine.items():
        for donor, found in row.items():
            assert isinstance(found, np.ndarray if layer in own else float)
            assert np.sum(found) == pytest.approx(coarse[layer][donor], rel=1e-8, abs=1e-12)
            assert np.size(found) == own.get(layer, 1)
    assert make(own)(weights, PROMPTS)[1].keys() == fine.keys()


def test_a_channel_moves_the_score_as_its_gradient_says(world: tuple[LiveDenoiser, Any, dict[str, int]]) -> None:
    _, make, own = world
    layer = max(own, key=lambda name: own[name])
    draw = np.random.default_rng(0)
    at = draw.uniform(-0.3, 0.7, own[layer])
    direction = draw.normal(size=own[layer])

    def score(by: float) -> Any:
        return make(own)({layer: {"warm": Channels(at + by * direction)}}, PROMPTS)

    # the base's file is float16, to which blends are rounded: large steps, and the trend of several of them
    steps = np.array([-0.4, -0.2, 0.2, 0.4])
    slope = np.polyfit(steps, [score(step)[0].value for step in steps], 1)[0]
    assert slope == pytest.approx(float(score(0.0)[1][layer]["warm"] @ direction), rel=0.1)
