"""The models that a command line names, and how they draw: checked, identified by content, opened when needed."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmark.adapters.lora import Lora, add_lora
from benchmark.adapters.peft_config import CONFIG, adapter_file
from benchmark.errors import InputError, did_you_mean
from benchmark.hashing import joint_fingerprint, model_fingerprint
from benchmark.hub_ids import is_hub_id
from benchmark.pipelines.diffusers_generator import DiffusersGenerator
from benchmark.pipelines.generation import GenerationSettings, ImageGenerator
from benchmark.pipelines.loading import (
    OWN_SAMPLER,
    SAMPLERS,
    check_single_file,
    dtypes,
    load_pipeline,
    local_source,
    quicken,
)


@dataclass(frozen=True)
class Studio:
    """`models`: name -> file or folder on this disk; `settings`: how they draw; `pipeline`: of single files.

    `loras`: the LoRA of a model, by the model's name; `pairs`: a model's name -> its name with the LoRA.
    """

    models: Mapping[str, Path]
    settings: GenerationSettings
    pipeline: str | None
    device: str
    dtype: str | None
    loras: Mapping[str, Lora] = field(default_factory=dict)
    pairs: Mapping[str, str] = field(default_factory=dict)
    compiled: bool = False

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Studio:
        """Check the arguments of `cli.add_arguments` that name models and how they draw. Raises InputError."""
        width, height = parse_size(args.size)
        settings = GenerationSettings(
            args.steps, args.sampler, args.guidance, width, height, args.negative, args.batch_size, args.clip_skip - 1
        )
        if settings.sampler not in (OWN_SAMPLER, *SAMPLERS):
            raise InputError(f"Unknown sampler '{args.sampler}'.{did_you_mean(args.sampler, [OWN_SAMPLER, *SAMPLERS])}")
        models = _models(args.models)
        if args.pipeline and not Path(args.pipeline).is_dir() and not is_hub_id(args.pipeline):
            raise InputError(f"{args.pipeline}: there is no such folder (--pipeline).")
        device = args.device or _default_device()
        if args.lora is None:
            return cls(models, settings, args.pipeline, device, args.dtype, compiled=args.compile)
        lora = adapter_file(args.lora)
        check_single_file(lora)
        pairs = {name: f"{name} + {(args.lora if args.lora.is_dir() else lora).stem}" for name in models}
        both = {key: path for name, path in models.items() for key in (name, pairs[name])}
        loras = dict.fromkeys(pairs.values(), Lora(lora, args.lora_scale))
        return cls(both, settings, args.pipeline, device, args.dtype, loras, pairs, args.compile)

    def mark(self, name: str) -> str:
        """A SHA-256 of everything but the settings that decides a model's images."""
        path, config = self.models[name], Path(self.pipeline) if self.pipeline else None
        parts = [model_fingerprint(path), self.dtype or self.device.partition(":")[0]]
        if config is not None and path.is_file():
            parts.append(model_fingerprint(config) if config.is_dir() else str(config))
        if name in self.loras:
            lora = self.loras[name]
            parts += [model_fingerprint(lora.path), repr(lora.scale)]
            if (config := lora.path.parent / CONFIG).is_file():  # which may say how strongly it counts
                parts.append(model_fingerprint(config))
        if self.compiled:
            parts.append("compiled")  # its kernels round otherwise
        return joint_fingerprint(parts)

    def load(self, name: str) -> Any:
        """The model's pipeline, its LoRA added. Raises InputError if either cannot be loaded."""
        dtype = dtypes()[self.dtype] if self.dtype else None
        pipeline = load_pipeline(self.models[name], config=self.pipeline, dtype=dtype, device=self.device)
        if name in self.loras:
            add_lora(pipeline, self.loras[name])
        quicken(pipeline, channels_last=self.device.startswith("cuda"), compiled=self.compiled)
        return pipeline

    def open(self, name: str, batch_size: int | None = None) -> ImageGenerator:
        """The model, ready to draw; `batch_size` is used if the settings have none. Raises InputError."""
        settings = replace(self.settings, batch_size=self.settings.batch_size or batch_size)
        return DiffusersGenerator(self.load(name), settings)


def parse_size(text: str) -> tuple[int, int]:
    """`512x768` -> (512, 768), `64` -> (64, 64). Raises InputError."""
    width, cross, height = text.lower().partition("x")
    if not width.isdecimal() or (cross and not height.isdecimal()):
        raise InputError(f"size '{text}': give WIDTHxHEIGHT, such as 512x768.")
    return int(width), int(height or width)


def _models(arguments: Sequence[str]) -> dict[str, Path]:
    """name -> local source, for `MODEL` and `NAME=MODEL`; names of equal files get their folder's name in front."""
    models: dict[str, Path] = {}
    for argument in arguments:
        named, equals, source = argument.partition("=")
        if not equals or Path(argument).exists():
            named, source = "", argument
        path = local_source(source)
        if path.is_file():
            check_single_file(path)  # all of them now, not after hours of drawing with the first
        name = named or (path.stem if path.is_file() else Path(source).name)
        if name in models and not named:
            name = f"{path.resolve().parent.name}/{name}"
        if name in models:
            raise InputError(f"Two models are called '{name}'. Name them apart with NAME=MODEL.")
        models[name] = path
    return models


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
