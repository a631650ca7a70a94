"""A LoRA added to a loaded pipeline: `weight + scale * alpha / rank * up @ down`, in place.

Keys are kohya's (`lora_unet_down_blocks_0_..._to_q.lora_down.weight`, `lora_te_...`, `.alpha`) or diffusers' and PEFT's
(`unet.down_blocks.0....to_q.lora_A.weight`, `text_encoder. ...`). Only plain LoRAs; no network but the pipeline's own.

r the rank: `down` is [r, in] or [r, in, k, k], `up` [out, r] or [out, r, 1, 1].
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_PARTS = {
    "lora_unet": "unet",
    "lora_transformer": "transformer",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
}
_KOHYA = re.compile(r"(lora_unet|lora_transformer|lora_te[12]?)_(.+?)\.(lora_down\.weight|lora_up\.weight|alpha)")
_DOTTED = re.compile(
    r"(unet|transformer|text_encoder(?:_2)?)\.(.+?)\.(lora_A\.weight|lora_B\.weight|lora\.down\.weight|lora\.up\.weight|alpha)"
)
_ROLES = {"lora_down.weight": "down", "lora_A.weight": "down", "lora.down.weight": "down", "alpha": "alpha"}
_ROLES |= {"lora_up.weight": "up", "lora_B.weight": "up", "lora.up.weight": "up"}


@dataclass(frozen=True)
class Lora:
    """A LoRA file, and how strongly it is added."""

    path: Path
    scale: float = 1.0


def add_lora(pipeline: Any, lora: Lora) -> int:
    """Add a LoRA to the pipeline's weights; returns how many it changed.

    Raises InputError, with nothing changed, for a key that names no layer of this model, or is of another kind.
    """
    import torch

    changes = []
    modules = _modules(pipeline)
    for (part, name), tensors in _read(lora.path).items():
        module = modules.get((part, name))
        if module is None:
            raise InputError(f"{lora.path}: changes '{part} {name}', which this model has not. Is it of this family?")
        if not {"down", "up"} <= tensors.keys():
            raise InputError(f"{lora.path}: '{part} {name}' has only one half of a LoRA (up and down). Is it whole?")
        down, up = tensors["down"].float(), tensors["up"].float()
        strength = lora.scale * float(tensors.get("alpha", torch.tensor(float(len(down))))) / len(down)
        weight = module.weight
        if up.shape[0] != weight.shape[0] or up.shape[1] != len(down) or down[0].numel() != weight[0].numel():
            raise InputError(
                f"{lora.path}: '{part} {name}' is {list(up.shape)} by {list(down.shape)}, "
                f"the model's weight {list(weight.shape)}. Is it of this family?"
            )
        changes.append((weight, strength * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)))
    with torch.no_grad():
        for weight, delta in changes:
            weight.copy_(weight.float() + delta.to(weight.device))
    return len(changes)


def _read(path: Path) -> dict[tuple[str, str], dict[str, Tensor]]:
    """(part, name of the layer with underscores) -> its tensors. Raises InputError for keys of another kind."""
    from safetensors import SafetensorError, safe_open

    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - no iterator
                match = _KOHYA.fullmatch(key) or _DOTTED.fullmatch(key)
                if match is None:
                    raise InputError(f"{path}: '{key}' is no part of a plain LoRA (LoHa, LoKr and DoRA are not read).")
                part, name, role = match.groups()
                place = (_PARTS.get(part, part), _flat(name))
                found.setdefault(place, {})[_ROLES[role]] = file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: is no safetensors file, or was cut short ({error}).") from None
    if not found:
        raise InputError(f"{path}: holds no LoRA.")
    return found


def _modules(pipeline: Any) -> dict[tuple[str, str], Any]:
    """(part, name with underscores) -> module with a weight, of the networks that a LoRA may change."""
    return {
        (part, _flat(name)): module
        for part in dict.fromkeys(_PARTS.values())
        if getattr(pipeline, part, None) is not None
        for name, module in getattr(pipeline, part).named_modules()
        if getattr(module, "weight", None) is not None
    }


def _flat(name: str) -> str:
    """Kohya writes underscores for dots; some versions of the text encoder have `text_model.` in front, some not."""
    return name.replace(".", "_").removeprefix("text_model_")
