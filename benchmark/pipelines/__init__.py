"""Opening diffusers pipelines (files, folders, hub ids) and drawing prompts with them. diffusers loads when used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark.lazy import lazily

if TYPE_CHECKING:
    from benchmark.pipelines.diffusers_generator import DiffusersGenerator as DiffusersGenerator
    from benchmark.pipelines.generation import FakeGenerator as FakeGenerator
    from benchmark.pipelines.generation import GenerationSettings as GenerationSettings
    from benchmark.pipelines.generation import ImageGenerator as ImageGenerator
    from benchmark.pipelines.loading import SAMPLERS as SAMPLERS
    from benchmark.pipelines.loading import denoiser_of as denoiser_of
    from benchmark.pipelines.loading import load_pipeline as load_pipeline
    from benchmark.pipelines.quiet import quiet_diffusers as quiet_diffusers

__getattr__, __dir__ = lazily(
    __name__,
    {
        "denoiser_of": "benchmark.pipelines.loading",
        "DiffusersGenerator": "benchmark.pipelines.diffusers_generator",
        "FakeGenerator": "benchmark.pipelines.generation",
        "GenerationSettings": "benchmark.pipelines.generation",
        "ImageGenerator": "benchmark.pipelines.generation",
        "load_pipeline": "benchmark.pipelines.loading",
        "quiet_diffusers": "benchmark.pipelines.quiet",
        "SAMPLERS": "benchmark.pipelines.loading",
    },
)
