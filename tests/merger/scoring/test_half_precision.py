"""Gradients in half precision where a pipeline decodes in float32: SDXL's does, and casts its VAE back at once."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmark.pipelines.generation import GenerationSettings
from merger.layers.grouping import group
from merger.scoring.gradients import sampling
from merger.scoring.gradients.gradients import BlendGradients
from merger.scoring.gradients.memory import image_memory
from merger.scoring.gradients.sampling import DifferentiableGenerator, Differentiation
from merger.scoring.objective import Metric
from scripts.full_size_models import TINY
from scripts.gpu_checks.models import live_of, prompts_of, random_pipeline, random_tagger, sources_of

CPU = torch.device("cpu")


def gradient(folder: Path, dtype: torch.dtype, *, blocks_again: bool = False) -> np.ndarray:
    """[layer x donor] of two images by a tiny SDXL. blocks_again: the decoder's blocks are computed again."""
    pipeline = random_pipeline(TINY["sdxl"], folder, CPU, dtype)
    if blocks_again:
        pipeline.vae.train().enable_gradient_checkpointing()
    tagger = random_tagger(folder / "tagger", CPU, tiny=True)
    sources = sources_of(pipeline.unet, CPU)
    live = live_of(pipeline.unet, sources, group(list(sources[0].blended), "block"))
    generator = DifferentiableGenerator(pipeline, GenerationSettings(steps=2, width=64, height=64, batch_size=2))
    metric, prompts = Metric("log_probability", 0.5, lambda tag: "general"), prompts_of(tagger, 2)
    gradients = BlendGradients(live, generator, tagger, metric, Differentiation())
    image_memory(gradients, prompts[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, found = gradients({layer: {"one": 0.2, "two": 0.3} for layer in live.layers}, prompts)
    assert pipeline.vae.dtype == dtype, "the pipeline has it back as it was"
    assert len(next(generator.generate(prompts))) == 2
    return np.array([weight for row in found.values() for weight in row.values()])


@pytest.mark.parametrize(("at_once", "blocks_again"), [(2, False), (1, False), (2, True)])
def test_sdxl_in_fp16_has_the_gradient_of_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, blocks_again: bool
) -> None:
    """Also if the decoder is computed slice by slice or block by block, once more in the backward pass."""
    assert TINY["sdxl"].vae.get("force_upcast", True), "as diffusers has it where nothing is said"
    monkeypatch.setattr(sampling, "decoded_at_once", lambda settings: at_once)
    expected = gradient(tmp_path / "fp32", torch.float32)
    found = gradient(tmp_path / "fp16", torch.float16, blocks_again=blocks_again)
    assert np.linalg.norm(found - expected) < 0.15 * np.linalg.norm(expected)
