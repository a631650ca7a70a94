"""Recipe -> checkpoint file, and back: streamed tensor by tensor, atomic, and checked against its own recipe.

The file has the base's keys in the base's order; the denoiser is blended, everything else is the base's, byte for byte.
It loads wherever the base loads. No more than one tensor per source is in memory at a time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from benchmark.pipelines import hub
from benchmark.writing import whole_or_nothing
from merger.checkpoints.adapter import open_donor
from merger.checkpoints.checkpoint import Checkpoint, open_checkpoint
from merger.checkpoints.headers import pack_header, read_header
from merger.checkpoints.text_encoders import TEXT_FILE, components_of, with_text_encoders
from merger.checkpoints.weight_files import reader
from merger.errors import CheckpointError, RecipeError
from merger.export.layout import FORM_KEY, Form, Plan, changed_source
from merger.export.model_spec import HASH_KEY, UNKNOWN_HASH, metadata_of
from merger.export.recipe import TEXT, Recipe, Source


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
    form: Form = "base",
    extra_metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write the blend that `recipe` describes as one `.safetensors` file.

    base, donors: the recipe's sources, opened, under the recipe's names (donors with no weight may be left out).
    dtype: `fp16`, `bf16`, `fp32` for all floating tensors; None is the recipe's own. form: `base` for all that the base
    holds, `denoiser` for its denoiser alone, `diffusers` for the denoiser under diffusers names. The base's metadata is
    kept; recipe, `merger.export.model_spec`'s and `extra_metadata` are added. The file appears whole or not at all.
    Raises CheckpointError for an output that is a source and for a folder as base of a whole file, RecipeError for a
    recipe that does not match the checkpoints given.
    """
    output = Path(output)
    check_output(output, base, donors, form)
    with whole_or_nothing(output) as partial:
        write_file(
            recipe,
            partial,
            base=base,
            donors=donors,
            dtype=dtype,
            form=form,
            extra_metadata=extra_metadata,
            title=output.stem,
        )
    return output


def write_file(
    recipe: Recipe,
    file: Path,
    *,
    base: Checkpoint,
    donors: Sequence[Checkpoint],
    dtype: str | None = None,
    form: Form = "base",
    extra_metadata: Mapping[str, str] | None = None,
    title: str,
) -> None:
    """`export` without asking whether it makes sense as a file of its own, and straight to its place.

    title: for the metadata. Raises OSError where the disk refuses.
    """
    recipe = replace(recipe, dtype=dtype) if dtype is not None else recipe
    plan = Plan(recipe, base, donors, form)
    # What an earlier blend said of itself (its recipe, its score) is not true of this one.
    kept = {key: value for key, value in base.metadata.items() if not key.startswith(("layermerge.", "modelspec.hash"))}
    said = metadata_of(recipe, base, donors, title)
    metadata = {**kept, "format": "pt", **said, **(extra_metadata or {}), **recipe.to_metadata()}
    if form != "base":
        metadata[FORM_KEY] = form
    head = pack_header(plan.layout(), metadata)
    place = head.index(UNKNOWN_HASH.encode(), head.index(HASH_KEY.encode()))
    with file.open("wb") as out:
        out.write(head)
        hashed = hashlib.sha256()
        for _, tensor in plan.tensors():
            content = bytes_of(tensor)
            hashed.update(content)
            out.write(content)
        out.seek(place)
        out.write(f"0x{hashed.hexdigest()}".encode())
        out.flush()
        os.fsync(out.fileno())


def check_output(output: Path, base: Checkpoint, donors: Sequence[Checkpoint], form: Form = "base") -> None:
    """Refuse, with a CheckpointError, what could not be exported: to be asked before a long search, too."""
    if base.layout == "folder" and form == "base":
        raise CheckpointError(
            f"{base.path}: a diffusers folder cannot be the base of an export to one file: use a single file, "
            "or export the denoiser only, or a folder."
        )
    if output.suffix != ".safetensors":
        raise CheckpointError(f"{output}: the name must end in .safetensors.")
    if any(output.resolve() == source.path.resolve() for source in (base, *donors)):
        raise CheckpointError(f"{output}: is one of the blend's own sources. Choose another name.")


def verify(file: Path, search: Sequence[Path] = (), *, allow_pickle: bool = False) -> Verification:
    """Rebuild the blend from the recipe in the file's metadata and compare every tensor, bit for bit.

    file: what `export` wrote, or a diffusers folder written by `merger.export.folder`, of which what is blended is compared.
    The recipe's sources are looked for where they lay, then under the same file name in `search` (folders or files),
    then in the hub's cache; their SHA-256 must be the recipe's. Raises CheckpointError for a damaged file, RecipeError
    for a file without a recipe and for sources that are missing or have changed.
    """
    file = Path(file)
    folder = file if file.is_dir() else None
    if folder is not None:
        (file,) = open_checkpoint(folder).files[:1]
    header = read_header(file)
    recipe = Recipe.from_metadata(header.metadata)
    base = _find(recipe.base, file, search, None, allow_pickle)
    if TEXT in recipe.components:
        base = with_text_encoders(base)
    donors = [_find(donor, file, search, base, allow_pickle) for donor in recipe.used]
    compared, differing = _compare(file, Plan(recipe, base, donors, cast(Form, header.metadata.get(FORM_KEY, "base"))))
    encoders = {} if folder is None else {part: folder / part / TEXT_FILE for part in components_of(base.text)}
    for component, weights in encoders.items():
        more, odd = _compare(weights, Plan(recipe, base, donors, cast(Form, component)))
        compared += more
        differing += [f"{component}/{key}" for key in odd]
    return Verification(not differing, compared, tuple(differing), recipe)


def _compare(file: Path, plan: Plan) -> tuple[int, list[str]]:
    """(how many tensors the plan has, the keys whose bytes, dtype or shape in the file are not the plan's)."""
    header, layout = read_header(file), plan.layout()
    differing = [key for key in header.tensors if key not in layout]
    compared = 0
    actual = reader(file)
    for key, tensor in plan.tensors():
        entry = header.tensors.get(key)
        same = entry is not None and (entry.dtype, entry.shape) == layout[key]
        if not (same and torch.equal(_raw(tensor), _raw(actual.get_tensor(key)))):
            differing.append(key)
        compared += 1
    return compared, differing


def _find(
    source: Source, file: Path, search: Sequence[Path], base: Checkpoint | None, allow_pickle: bool
) -> Checkpoint:
    """The checkpoint a recipe speaks of, by hash: where it lay, beside the file, or in the folders to search."""
    name = Path(source.path).name
    places = [Path(source.path), file.parent / name]
    places += [place if place.is_file() else place / name for place in map(Path, search)]
    if source.hub and (folder := hub.cached(source.hub)) is not None:
        places.append(folder)
    changed = None
    for place in places:
        if not place.exists():
            continue
        if base is None:
            found = open_checkpoint(place, name=source.name, allow_pickle=allow_pickle)
        else:
            found = open_donor(place, base, name=source.name, allow_pickle=allow_pickle)
        if found.sha256 == source.sha256:
            return found
        changed = changed or found
    if changed is not None:
        raise RecipeError(changed_source(changed, source))
    fetch = f" Fetch it with: {hub.command(source.hub)}." if source.hub else ""
    raise RecipeError(f"'{source.name}' of the recipe is not at {source.path}: say where it is now.{fetch}")


def _raw(tensor: Tensor) -> Tensor:
    """A tensor's bytes [N] uint8: equal bits are equal, NaN and -0.0 included."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes, not copied where they lie in a row already."""
    return _raw(tensor).numpy().data
