"""Pipelines, checkpoints and taggers of the true sizes with random weights, in memory alone.

The networks are those of `scripts.full_size_models`. Only configurations, a tokenizer and a tagger are written into a
folder. Values are of sizes that keep activations finite: normal, by the number of inputs.
"""

from __future__ import annotations

import importlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmark.pipelines.loading import Pipeline
from benchmark.pipelines.quiet import quiet_diffusers
from benchmark.prompts.prompt_set import Prompt
from benchmark.taggers.registry import open_tagger
from merger.blend.live import LiveDenoiser
from merger.checkpoints.checkpoint import Checkpoint
from merger.checkpoints.source import Source, TensorInfo
from scripts.full_size_models import Family, write_pipeline

DONORS = ("one", "two")
_CHANGE = 0.1  # of a donor, as a share of the base's own spread
_TAGS = 100


@dataclass
class RandomSource:
    """A base (name "base") or donor whose tensors are drawn when they are read. See `Source`.

    It can stand for a `Checkpoint` in a live denoiser without text encoders. device: where tensors are drawn; another
    kind of device draws other values. keep: hold what was read in ordinary memory, as the system's page cache does.
    """

    name: str
    blended: Mapping[str, TensorInfo]
    device: torch.device
    keep: bool = False
    text: Mapping[str, TensorInfo] = field(default_factory=dict)
    _kept: dict[str, Tensor] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """What messages call it."""
        return Path(self.name)

    def read(self, name: str) -> Tensor:
        """One tensor. The base's values, or those and a tenth of others of the same spread."""
        if name in self._kept:
            return self._kept[name]
        info = self.blended[name]
        values = drawn(name, info.shape, "base", self.device)
        if self.name != "base":
            values += _CHANGE * spread_of(name, info.shape) * _noise(f"{self.name} {name}", info.shape, self.device)
        tensor = values.to(info.dtype)
        if self.keep:
            self._kept[name] = tensor = tensor.cpu()
        return tensor


def sources_of(module: nn.Module, device: torch.device, dtype: torch.dtype = torch.float16) -> list[RandomSource]:
    """A base and two donors with the tensors of a denoiser."""
    state = module.state_dict()
    blended = {name: TensorInfo(name, Path("random"), tuple(tensor.shape), dtype) for name, tensor in state.items()}
    return [RandomSource(name, blended, device) for name in ("base", *DONORS)]


def live_of(
    module: nn.Module, sources: list[RandomSource], layers: Mapping[str, tuple[str, ...]], **options: Any
) -> LiveDenoiser:
    """The live denoiser of these sources, the base first; those that are held in their files are kept in memory."""
    base, *donors = sources
    live = LiveDenoiser(module, cast(Checkpoint, base), cast(list[Source], donors), layers, **options)
    if live.hold == "file":
        for source in sources:
            source.keep = True
    return live


def random_pipeline(family: Family, folder: Path, device: torch.device, dtype: torch.dtype) -> Pipeline:
    """The family's whole pipeline on a device, ready to draw. folder: where its configuration is written."""
    import diffusers

    write_pipeline(family, folder)
    index = json.loads((folder / "model_index.json").read_text())
    parts: dict[str, Any] = {}
    with quiet_diffusers():
        for part, named in index.items():
            if part.startswith("_"):
                continue
            kind = named[0] and getattr(importlib.import_module(named[0]), named[1])
            parts[part] = kind and _part(kind, folder / part, device, dtype)
        pipeline = getattr(diffusers, index["_class_name"])(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _part(kind: Any, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    if not issubclass(kind, nn.Module):
        return kind.from_pretrained(folder)
    with torch.device("meta"):
        made = kind(kind.config_class.from_pretrained(folder)) if getattr(kind, "config_class", None) else None
        made = made or kind.from_config(kind.load_config(folder))
    return filled(made, device, dtype)


def filled(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A module from the `meta` device, on a device and with values: random, or 0, 1, 2, ... where they are whole."""
    nn.Module.to(module, dtype).to_empty(device=device)  # diffusers' own `to` warns of casting
    if device.type == "meta":  # where there are no values
        return module.requires_grad_(False).eval()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        shape = tuple(tensor.shape)
        if tensor.is_floating_point():
            tensor.data.copy_(drawn(name, shape, "base", device))
        else:
            tensor.copy_(torch.arange(tensor.numel(), device=device).reshape(shape))
    return module.requires_grad_(False).eval()


def drawn(name: str, shape: tuple[int, ...], owner: str, device: torch.device) -> Tensor:
    """Values of a tensor of this name, float32."""
    values = spread_of(name, shape) * _noise(f"{owner} {name}", shape, device)
    if len(shape) == 1 and name.endswith("weight"):  # a normalisation's
        values += 1
    return values


def spread_of(name: str, shape: tuple[int, ...]) -> float:
    """The standard deviation of a tensor's values."""
    return 0.02 if len(shape) < 2 or "embedding" in name else math.prod(shape[1:]) ** -0.5


def _noise(seeded_by: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
    draw = torch.Generator(device=device).manual_seed(zlib.crc32(seeded_by.encode()))
    return torch.randn(shape, generator=draw, device=device)


def random_tagger(folder: Path, device: torch.device, *, tiny: bool) -> Any:
    """A tagger with gradients in `folder`: a ViT-B/16 for images of 448 x 448, or one of a layer."""
    from transformers import ViTConfig, ViTForImageClassification

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tags = {number: f"tag {number}" for number in range(_TAGS)}
    side = 16 if tiny else 448
    config = ViTConfig(
        **(small if tiny else {}),
        image_size=side,
        patch_size=8 if tiny else 16,
        id2label=tags,
        label2id={tag: number for number, tag in tags.items()},
        problem_type="multi_label_classification",
    )
    with torch.random.fork_rng(devices=[]), quiet_diffusers():
        torch.manual_seed(0)
        model = ViTForImageClassification(config)
        nn.init.normal_(model.classifier.weight, std=0.1)
        model.save_pretrained(folder)
    shown = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(shown), encoding="utf-8")
    return open_tagger(folder, kind="transformers", device=str(device))


def prompts_of(tagger: Any, count: int) -> tuple[Prompt, ...]:
    """Prompts that ask for three tags each."""
    asked = [
        tuple(tagger.tags[(7 * number + step) % len(tagger.tags)] for step in (0, 3, 5)) for number in range(count)
    ]
    return tuple(Prompt(number, ", ".join(tags), tags, 100 + number) for number, tags in enumerate(asked))
