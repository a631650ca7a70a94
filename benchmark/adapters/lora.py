"""An adapter (LoRA and its relatives) put on a loaded pipeline: `weight + scale * what it adds`, in place.

For the denoiser and for text encoders, in every kind and spelling that `keys` and `deltas` know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.adapters.deltas import check, delta, rank_of
from benchmark.adapters.fused_names import exchanged, fused_tensors
from benchmark.adapters.keys import (
    both_say,
    encoder_among,
    flat_module,
    is_unused_projection,
    leaves,
    network_path,
    no_factors,
    refusal_of,
    sort_keys,
    sort_text_keys,
    text_module,
)
from benchmark.adapters.original_names import original_keys
from benchmark.adapters.peft_config import adapter_file, config_beside, read_config, settings_in, unsaid
from benchmark.errors import InputError
from benchmark.notices import say
from benchmark.pipelines.loading import denoiser_of

if TYPE_CHECKING:
    from torch import Tensor

_OWN = ("unet.", "transformer.")
_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
Scales = Callable[[str, int | None], float | None]
"""(module, rank) -> the factor that the adapter's settings say; None if they say nothing."""


@dataclass(frozen=True)
class Lora:
    """An adapter's file, or the folder that PEFT or diffusers wrote, and the strength at which it is added."""

    path: Path
    scale: float = 1.0


@dataclass(frozen=True)
class _Place:
    """Where a module's change goes: the pipeline's tensors, one below the other. swapped: as in `Fused`."""

    tensors: tuple[Tensor, ...]
    swapped: bool = False


def add_lora(pipeline: Any, lora: Lora) -> int:
    """Add an adapter to the pipeline's weights; returns how many tensors it changed.

    Prints a line on what is set aside. Raises InputError, with nothing changed, for an unknown key, a module that this
    model does not have, whole differences alone, two modules for one tensor, shapes that do not fit, and values that
    are not finite.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    lora = Lora(adapter_file(lora.path), lora.scale)
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
    keys = list(file.keys())
    config = config_beside(lora.path, keys)
    settings = None if config is None else read_config(config)  # before the keys: it names the kind
    found = sort_keys(keys)
    text = sort_text_keys(found.text)
    if unknown := [*found.unknown, *text.unknown]:
        raise InputError(f"{lora.path}: {refusal_of(unknown)}")
    if doubled := found.doubled or text.doubled:
        raise InputError(f"{lora.path}: {both_say(*doubled)}")
    if not found.modules and not text.modules:
        raise InputError(f"{lora.path}: holds no LoRA.")
    if refusal := no_factors([*found.modules.values(), *text.modules.values()]):
        raise InputError(f"{lora.path}: {refusal}")
    if found.embeddings:
        say(f"{lora.path.name}: its {len(found.embeddings)} tensors of embeddings ('bundle_emb') are set aside")
    metadata = file.metadata() or {}
    if settings is None and (line := unsaid(found.modules, metadata)):
        say(f"{lora.path.name}: {line}")

    def scales(*prefixes: str) -> Scales:
        own = settings or settings_in(metadata, prefixes, str(lora.path))
        return lambda module, rank: None if own is None else own.scale(network_path(module), rank)

    taken: dict[int, str] = {}
    places = _denoiser_places(pipeline) if found.modules else {}
    for module, parts in found.modules.items():
        yield from _of_module(lora, file, module, parts, places, flat_module(module), scales("", *_OWN), taken)
    held = [name for name in _ENCODERS if getattr(pipeline, name, None) is not None]
    for module, parts in text.modules.items():
        encoder, path = text_module(module)
        encoder = encoder_among(encoder, held)
        inside = _text_places(getattr(pipeline, encoder)) if encoder in held else {}
        if is_unused_projection(path) and f"{path}_weight" not in inside:
            say(f"{lora.path.name}: '{module}' is set aside: this model does not use it")
            continue
        yield from _of_module(lora, file, module, parts, inside, path, scales(f"{encoder}."), taken)


def _of_module(
    lora: Lora,
    file: Any,
    module: str,
    parts: Mapping[str, str],
    places: Mapping[str, _Place],
    path: str,
    scales: Scales,
    taken: dict[int, str],
) -> Iterator[tuple[Tensor, Tensor]]:
    """The tensors of one module of the adapter, which is called `path` among `places`.

    taken: {id of a tensor: the module that changes it}, which grows.
    """
    import torch

    for leaf, used in leaves(parts):
        place = places.get(f"{path}_{leaf}")
        if place is None:
            raise InputError(f"{lora.path}: changes '{module}', which this model has not. Is it of this family?")
        for target in place.tensors:
            if id(target) in taken:
                raise InputError(f"{lora.path}: {both_say(taken[id(target)], module)}")
            taken[id(target)] = module
        tensors = {part: _read(lora, file, part, key) for part, key in used.items()}
        alpha = tensors.pop("alpha", None)
        if alpha is not None and alpha.numel() != 1:
            raise InputError(f"{lora.path}: '{used['alpha']}' is {list(alpha.shape)}, and alpha is one number.")
        shapes = {part: tuple(tensor.shape) for part, tensor in tensors.items()}
        rows = [len(target) for target in place.tensors if target.dim()]
        try:
            check(shapes, (sum(rows), *place.tensors[0].shape[1:]))
            weight = torch.cat([target.detach().float().cpu() for target in place.tensors])
            weight = exchanged(weight) if place.swapped else weight
            if alpha is None:
                added = delta(tensors, weight, None, scales(module, rank_of(shapes)))
            else:
                added = delta(tensors, weight, float(alpha))
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{lora.path}: what it has for '{module}' {reason}. Is it of this family?") from None
        whole = weight + lora.scale * _finite(lora, f"the change of {module}", added)
        whole = exchanged(whole) if place.swapped else whole
        for target, rows_of in zip(place.tensors, whole.split(rows), strict=True):
            yield target, rows_of.to(target.dtype)


def _read(lora: Lora, file: Any, part: str, key: str) -> Tensor:
    """One tensor in float32. Raises InputError for one that is quantised or not finite."""
    import torch

    tensor: Tensor = file.get_tensor(key)
    plain = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
    if tensor.is_complex() or (part != "alpha" and tensor.dtype not in plain):
        raise InputError(f"{lora.path}: '{key}' is {tensor.dtype}: quantised adapters cannot be added.")
    return _finite(lora, f"'{key}'", tensor)


def _finite(lora: Lora, name: str, tensor: Tensor) -> Tensor:
    """The tensor in float32. Raises InputError if it holds NaN or infinite values."""
    import torch

    wide = tensor.float()
    if not bool(torch.isfinite(wide).all()):
        raise InputError(f"{lora.path}: {name} holds values that are not finite (NaN or infinite).")
    return wide


def _denoiser_places(pipeline: Any) -> dict[str, _Place]:
    """{path with underscores for dots: where it is}, by diffusers' names and by those of original files."""
    named: dict[str, Tensor] = dict(denoiser_of(pipeline).named_parameters())
    places = {key.replace(".", "_"): _Place((named[name],)) for name, key in original_keys(named).items()}
    for key, fused in fused_tensors(named).items():
        places[key.replace(".", "_")] = _Place(tuple(named[name] for name in fused.names), fused.swapped)
    return places | {name.replace(".", "_"): _Place((value,)) for name, value in named.items()}


def _text_places(network: Any) -> dict[str, _Place]:
    """The same for a text encoder, without the prefix that some versions have."""
    return {
        name.replace(".", "_").removeprefix("text_model_"): _Place((value,))
        for name, value in network.named_parameters()
    }
