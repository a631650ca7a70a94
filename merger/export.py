"""Recipe -> checkpoint file, and back: streamed tensor by tensor, atomic, and checked against its own recipe.

The file has the base's keys in the base's order; the denoiser is blended, everything else is the base's, byte for byte.
It loads wherever the base loads. No more than one tensor per source is in memory at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from merger.blending import blend
from merger.checkpoints import Checkpoint, open_checkpoint
from merger.errors import CheckpointError, RecipeError, did_you_mean
from merger.fitting import check_fit
from merger.headers import pack_header, read_header
from merger.layers import group
from merger.lora import open_donor
from merger.recipe import Recipe, Source
from merger.weight_files import reader

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Verification:
    """What a rebuild found. differing: keys whose bytes, dtype or shape are not the recipe's, or on one side only."""

    ok: bool
    tensors_compared: int
    differing: tuple[str, ...]
    recipe: Recipe


def export(
    recipe: Recipe,
    output: Path,
    *,
    base: Checkpoint,
    donors: Sequence[Checkpoint],
    dtype: str | None = None,
    extra_metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write the blend that `recipe` describes as one `.safetensors` file.

    base, donors: the recipe's sources, opened, under the recipe's names (donors with no weight may be left out).
    dtype: `fp16`, `bf16`, `fp32` for all floating tensors; None is the recipe's own. The base's metadata is kept, the
    recipe and `extra_metadata` are added. The file appears whole or not at all.
    Raises CheckpointError for a folder as base or an output that is a source, RecipeError for a recipe that does not
    match the checkpoints given.
    """
    recipe = replace(recipe, dtype=dtype) if dtype is not None else recipe
    output = Path(output)
    check_output(output, base, donors)
    plan = _Plan(recipe, base, donors)
    # What an earlier blend said of itself (its recipe, its score) is not true of this one.
    kept = {key: value for key, value in base.metadata.items() if not key.startswith("layermerge.")}
    metadata = {**kept, "format": "pt", **(extra_metadata or {}), **recipe.to_metadata()}
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(pack_header(plan.layout(), metadata))
            for _, tensor in plan.tensors():
                file.write(_bytes(tensor))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(output)
    except OSError as error:
        raise CheckpointError(f"{output}: cannot be written ({error.strerror}).") from error
    finally:
        partial.unlink(missing_ok=True)
    return output


def check_output(output: Path, base: Checkpoint, donors: Sequence[Checkpoint]) -> None:
    """Refuse, with a CheckpointError, what could not be exported: to be asked before a long search, too."""
    if base.layout == "folder":
        raise CheckpointError(f"{base.path}: a diffusers folder cannot be the base of an export: use a single file.")
    if output.suffix != ".safetensors":
        raise CheckpointError(f"{output}: the name must end in .safetensors.")
    if any(output.resolve() == source.path.resolve() for source in (base, *donors)):
        raise CheckpointError(f"{output}: is one of the blend's own sources. Choose another name.")


def verify(file: Path, search: Sequence[Path] = ()) -> Verification:
    """Rebuild the blend from the recipe in the file's metadata and compare every tensor, bit for bit.

    The recipe's sources are looked for where they lay, then under the same file name in `search` (folders or files);
    their SHA-256 must be the recipe's. Raises CheckpointError for a damaged file, RecipeError for a file without a
    recipe and for sources that are missing or have changed.
    """
    header = read_header(Path(file))
    recipe = Recipe.from_metadata(header.metadata)
    base = _find(recipe.base, Path(file), search)
    donors = [_find(donor, Path(file), search, base) for donor in recipe.used]
    plan = _Plan(recipe, base, donors)
    layout = plan.layout()
    differing = [key for key in header.tensors if key not in layout]
    compared = 0
    actual = reader(Path(file))
    for key, tensor in plan.tensors():
        entry = header.tensors.get(key)
        same = entry is not None and (entry.dtype, entry.shape) == layout[key]
        if not (same and torch.equal(_raw(tensor), _raw(actual.get_tensor(key)))):
            differing.append(key)
        compared += 1
    return Verification(not differing, compared, tuple(differing), recipe)


class _Plan:
    """What goes into the file, in its order."""

    def __init__(self, recipe: Recipe, base: Checkpoint, donors: Sequence[Checkpoint]) -> None:
        self.base = base
        named = {donor.name: donor for donor in donors}
        if missing := [donor.name for donor in recipe.used if donor.name not in named]:
            raise RecipeError(
                f"the recipe needs '{missing[0]}', which was not opened.{did_you_mean(missing[0], named)}"
            )
        self.donors = [named[donor.name] for donor in recipe.used]
        for source, opened in zip((recipe.base, *recipe.used), (base, *self.donors), strict=True):
            if opened.sha256 != source.sha256:
                raise RecipeError(_changed(opened, source))
        check_fit(base, self.donors)
        layers = group(base.denoiser, recipe.granularity)
        if unknown := [layer for layer in recipe.weights if layer not in layers]:
            raise RecipeError(f"the recipe weighs '{unknown[0]}', not a layer here.{did_you_mean(unknown[0], layers)}")
        rows = {layer: [recipe.weights.get(layer, {}).get(d.name, 0.0) for d in self.donors] for layer in layers}
        self.rows = {name: rows[layer] for layer, names in layers.items() for name in names}
        self.names = {info.key: name for name, info in base.denoiser.items()}
        self.dtype = DTYPES.get(recipe.dtype)
        self.entries = read_header(base.path).tensors

    def layout(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """{key: (dtype, shape)} in the order of the file to be written."""
        layout = {key: (self._dtype_of(entry.dtype), entry.shape) for key, entry in self.entries.items()}
        if self.dtype is None:
            return layout
        # Wider types first: converted tensors of other widths must still begin on a multiple of their own.
        return dict(sorted(layout.items(), key=lambda item: -item[1][0].itemsize))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(key, tensor) one at a time, in the order of `layout`."""
        for key, (dtype, shape) in self.layout().items():
            name = self.names.get(key)
            kept = self.base.read_key(key)
            if name is None:
                yield key, kept.to(dtype)
                continue
            flat = [donor.read(name).reshape(-1) for donor in self.donors]
            yield key, blend(kept.reshape(-1), flat, self.rows[name], dtype=dtype).reshape(shape)

    def _dtype_of(self, stored: torch.dtype) -> torch.dtype:
        return self.dtype if self.dtype is not None and stored.is_floating_point else stored


def _find(source: Source, file: Path, search: Sequence[Path], base: Checkpoint | None = None) -> Checkpoint:
    """The checkpoint a recipe speaks of, by hash: where it lay, beside the file, or in the folders to search."""
    name = Path(source.path).name
    places = [Path(source.path), file.parent / name]
    places += [place if place.is_file() else place / name for place in map(Path, search)]
    changed = None
    for place in places:
        if not place.exists():
            continue
        found = open_donor(place, base, name=source.name) if base else open_checkpoint(place, name=source.name)
        if found.sha256 == source.sha256:
            return found
        changed = changed or found
    if changed is not None:
        raise RecipeError(_changed(changed, source))
    raise RecipeError(f"'{source.name}' of the recipe is not at {source.path}: say where it is now.")


def _changed(found: Checkpoint, source: Source) -> str:
    return (
        f"{found.path}: not the '{source.name}' of the recipe: its SHA-256 begins {found.sha256[:12]}, "
        f"the recipe's {source.sha256[:12]}."
    )


def _raw(tensor: Tensor) -> Tensor:
    """A tensor's bytes [N] uint8: equal bits are equal, NaN and -0.0 included."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _bytes(tensor: Tensor) -> memoryview:
    return _raw(tensor).numpy().data
