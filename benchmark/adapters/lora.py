"""An adapter (LoRA and its relatives) put on a loaded pipeline: `weight + scale * what it adds`, in place.

For the denoiser and for text encoders, in every kind and spelling that `keys` and `deltas` know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.adapters.deltas import delta
from benchmark.adapters.keys import alphas_in, flat_module, leaves, sort_keys, sort_text_keys, text_module
from benchmark.adapters.original_names import original_keys
from benchmark.errors import InputError
from benchmark.pipelines.loading import denoiser_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Lora:
    """An adapter's file, and the strength at which it is added."""

    path: Path
    scale: float = 1.0


def add_lora(pipeline: Any, lora: Lora) -> int:
    """Add an adapter to the pipeline's weights; returns how many tensors it changed.

    Raises InputError, with nothing changed, for an unknown key and for a module that this model does not have.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(lora.path, framework="pt") as file:
            changes = list(_changes(pipeline, lora, file))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{lora.path}: is no safetensors file, or was cut short ({error}).") from None
    with torch.no_grad():
        for tensor, changed in changes:
            tensor.copy_(changed)
    return len(changes)


def _changes(pipeline: Any, lora: Lora, file: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Each tensor of the pipeline that the adapter changes, with what it becomes."""
    found = sort_keys(file.keys())
    text = sort_text_keys(found.text)
    if unknown := [*found.unknown, *text.unknown]:
        raise InputError(f"{lora.path}: '{unknown[0]}' is no key of a LoRA that is known here ({len(unknown)} such).")
    if not found.modules and not text.modules:
        raise InputError(f"{lora.path}: holds no LoRA.")
    metadata = file.metadata() or {}
    denoiser = _denoiser_tensors(pipeline)
    alphas = alphas_in(metadata, ("", "unet.", "transformer."))
    for module, parts in found.modules.items():
        yield from _of_module(lora, file, module, parts, denoiser, flat_module(module), alphas)
    for module, parts in text.modules.items():
        encoder, path = text_module(module)
        network = getattr(pipeline, encoder, None) if encoder else None
        places = {} if network is None else _tensors(network, "text_model_")
        yield from _of_module(lora, file, module, parts, places, path, alphas_in(metadata, (f"{encoder}.",)))


def _of_module(
    lora: Lora,
    file: Any,
    module: str,
    parts: Mapping[str, str],
    places: Mapping[str, Tensor],
    path: str,
    alphas: Callable[[str, int], float | None],
) -> Iterator[tuple[Tensor, Tensor]]:
    """The tensors of one module of the adapter, which is called `path` among `places`."""
    for leaf, used in leaves(parts):
        target = places.get(f"{path}_{leaf}")
        if target is None:
            raise InputError(f"{lora.path}: changes '{module}', which this model has not. Is it of this family?")
        tensors = {part: file.get_tensor(key).float() for part, key in used.items()}
        alpha = tensors.pop("alpha", None)
        rank = len(tensors["down"]) if "down" in tensors else 0
        weight = target.detach().float().cpu()
        try:
            added = delta(tensors, weight, alphas(module, rank) if alpha is None else float(alpha))
        except (ValueError, RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{lora.path}: what it has for '{module}' {reason}. Is it of this family?") from None
        yield target, (weight + lora.scale * added).to(target.dtype)


def _denoiser_tensors(pipeline: Any) -> dict[str, Tensor]:
    """{path with underscores for dots: parameter}; a U-Net's also by original names, which kohya's SDXL files use."""
    named: dict[str, Tensor] = dict(denoiser_of(pipeline).named_parameters())
    originals = {key.replace(".", "_"): named[name] for name, key in original_keys(named).items()}
    return originals | {name.replace(".", "_"): value for name, value in named.items()}


def _tensors(network: Any, without: str = "") -> dict[str, Tensor]:
    """{path with underscores for dots, without a prefix that some versions have: parameter}."""
    return {name.replace(".", "_").removeprefix(without): value for name, value in network.named_parameters()}
