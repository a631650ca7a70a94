"""Memory measured on networks without weights is what networks with weights take; plans and real steps are printed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmark.pipelines.generation import GenerationSettings
from merger.layers.channels import CHANNEL, widths
from merger.layers.grouping import group
from merger.scoring.gradients.memory import ImageMemory, image_memory
from merger.scoring.gradients.sampling import NETWORKS, DifferentiableGenerator, Differentiation
from scripts.full_size_models import TINY
from scripts.gpu_checks.full_size import Model
from scripts.gpu_checks.models import live_of, prompts_of, random_pipeline, random_tagger, sources_of
from scripts.measure_memory import GB, Case, tell_plans
from scripts.real_memory import step, tell, write
from scripts.weightless import no_values, weightless_model

CPU = torch.device("cpu")
SMALL = replace(  # of two blocks each, as every operation without values takes its time
    TINY["sd1"],
    unet=TINY["sd1"].unet
    | {
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
    },
    vae=TINY["sd1"].vae
    | {
        "block_out_channels": (4, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
    },
)
SETTINGS = GenerationSettings(steps=2, sampler="ddim", width=64, height=64, batch_size=1)


def with_values(folder: Path) -> Model:
    pipeline = random_pipeline(SMALL, folder, CPU, torch.float32)
    sources = sources_of(pipeline.unet, CPU)
    layers = group(list(sources[0].blended), CHANNEL)
    wide = widths(layers, {name: info.shape for name, info in sources[0].blended.items()})
    tagger = random_tagger(folder / "tagger", CPU, tiny=True)
    live = live_of(pipeline.unet, sources, layers, hold="file")
    for source in sources:  # which keep in memory what was read once; of files, the system does that
        for name in source.blended:
            source.read(name)
    return Model(live, DifferentiableGenerator(pipeline, SETTINGS), tagger, wide)


def test_networks_without_weights_take_what_real_ones_take(tmp_path: Path) -> None:
    how = Differentiation(1.0, streamed=True, checkpointed=frozenset(NETWORKS), halves=True)
    real = with_values(tmp_path / "real")
    expected = image_memory(real.gradients(how, 1), prompts_of(real.tagger, 1)[0]).of_step(how, 0, 1)
    with no_values():
        model = weightless_model(SMALL, SETTINGS, tmp_path / "none", torch.float32)
        found = image_memory(model.gradients(how, 1), prompts_of(model.tagger, 1)[0]).of_step(how, 0, 1)
    for part in ("steps", "decoder", "tagger", "gradients"):
        assert getattr(found, part) == pytest.approx(getattr(expected, part), rel=0.02, abs=20_000), part


class Told:
    """An image that takes the same in every way."""

    def of(self, _: Differentiation) -> ImageMemory:
        return ImageMemory(0, 0, GB, GB, 2 * GB, GB, GB, GB, 6, 1)


def test_plans_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with no_values():
        case = Case("sd1", weightless_model(TINY["sd1"], SETTINGS, tmp_path, torch.float16), 64, Differentiation(0.5))
    case.__dict__ |= {"measured": Told(), "drawing": GB, "times": lambda how: 2.0 + how.recompute}
    tell_plans(case, (4 * GB, 2 * GB))
    told = capsys.readouterr().out
    assert "| `memory: 4GB` | 3.5 GB | 2 | 3.00 plain images |" in told
    assert "| `memory: 2GB` | none fits | - | - |" in told
    assert "memory of a step: 2 at once, sampling steps computed again" in told


def test_a_real_step_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("sd1", tmp_path, tiny=True)
    found = step("sd1", "every saving", tmp_path, tiny=True)
    assert found["type"] == "fp32"
    assert found["seconds"] > 0
    known = {"model": "sd1", "way": "every saving", "type": "fp32", "seconds": 5.0}
    assert tell(known | {"planned": 100 * GB, "measured": 114 * GB})
    assert not tell(known | {"planned": 100 * GB, "measured": 84 * GB})
    assert "| 100.0 GB | 84.0 GB | 0.840 |" in capsys.readouterr().out
