"""Recipe -> checkpoint file, and back: streamed tensor by tensor, atomic, and checked against its own recipe.

The file has the base's keys in the base's order; the denoiser is blended, everything else is the base's, byte for byte,
so it loads wherever the base loads. No more than one tensor per source is in memory at a time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch

from benchmark.pipelines import hub
from benchmark.writing import whole_or_nothing
from merger.blend.prepared import prepare
from merger.checkpoints.adapter import open_donor
from merger.checkpoints.checkpoint import Checkpoint, open_checkpoint
from merger.checkpoints.headers import bytes_of, pack_header, raw_bytes, read_header
from merger.checkpoints.text_encoders import TEXT_FILE, components_of, with_text_encoders
from merger.checkpoints.weight_files import is_there, reader
from merger.errors import CheckpointError, RecipeError
from merger.export.layout import DENOISER_FORMS, FORM_KEY, Form, Layout, changed_source, marked_twice
from merger.export.model_spec import HASH_KEY, UNKNOWN_HASH, metadata_of
from merger.export.recipe import Recipe, RecipeSource, WeightsFile
from merger.export.recipe_weights import beside, find_weights, weights_beside
from merger.export.values import Nonfinite, ValueCheck
from merger.layers.components import TEXT


@dataclass(frozen=True)
class Verification:
    """What a rebuild found. differing: keys whose bytes, dtype or shape differ from the rebuilt blend's, or that only
    one of the two has.
    """

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
    nonfinite: Nonfinite = "refuse",
) -> Path:
    """Write the blend that `recipe` describes as one `.safetensors` file.

    base, donors: the recipe's sources, opened, under the recipe's names (donors with no weight may be left out).
    dtype: `fp16`, `bf16`, `fp32` for all floating tensors; None is the recipe's own. form: `base` for all that the base
    holds, `denoiser` for its denoiser alone (with its markers where loaders of such a file see them), `diffusers` for
    the denoiser under diffusers names. Its metadata are `merger.export.model_spec`'s, `extra_metadata` and the recipe.
    nonfinite: what is done with values that are no finite numbers. The file appears whole or not at all. Weights by
    channel are in a file beside it (`merger.export.recipe_weights`), which appears first. Raises
    CheckpointError for such values, for an output that is a source and for a folder as base of a whole file,
    RecipeError for a recipe that does not match the checkpoints, and WriteError if the disk refuses.
    """
    output = Path(output)
    check_output(output, base, donors, form)
    values = ValueCheck(nonfinite)
    values.sources(recipe, base, donors)
    recipe = as_written(recipe, dtype, values)
    with whole_or_nothing(output) as partial, weights_beside(recipe, beside(output)) as channels:
        write_file(
            recipe,
            partial,
            base=base,
            donors=donors,
            form=form,
            extra_metadata=extra_metadata,
            title=output.stem,
            values=values,
            channels=channels,
        )
    return output


def write_file(
    recipe: Recipe,
    file: Path,
    *,
    base: Checkpoint,
    donors: Sequence[Checkpoint],
    form: Form = "base",
    extra_metadata: Mapping[str, str] | None = None,
    title: str,
    values: ValueCheck,
    channels: WeightsFile | None = None,
) -> None:
    """`export` without checks of the output, written in place: for files of a folder that appears whole.

    recipe: as `as_written` gives it. title: for the metadata. values: checks what is written. channels: where weights
    by channel are. Raises OSError if the disk refuses.
    """
    form = "marked-denoiser" if form == "denoiser" and marked_twice(base) else form
    layout = Layout(recipe, base, donors, form)
    said = metadata_of(recipe, base, donors, title, own_keys=form in ("base", *DENOISER_FORMS))
    metadata = {**said, **(extra_metadata or {}), **recipe.to_metadata(channels)}
    if form != "base":
        metadata[FORM_KEY] = form
    head = pack_header(layout.entries(), metadata)
    place = head.index(UNKNOWN_HASH.encode(), head.index(HASH_KEY.encode()))
    with file.open("wb") as out:
        out.write(head)
        hashed = hashlib.sha256()
        for key, tensor in layout.tensors():
            values.tensor(key, tensor, as_it_was=layout.as_it_was(key, tensor.dtype))
            content = bytes_of(tensor)
            hashed.update(content)
            out.write(content)
        out.seek(place)
        out.write(f"0x{hashed.hexdigest()}".encode())
        out.flush()
        os.fsync(out.fileno())
    layout.check_sources()  # they may have been replaced while they were read
    values.finish(layout.clamped)


def as_written(recipe: Recipe, dtype: str | None, values: ValueCheck) -> Recipe:
    """The recipe of a file in this dtype (None: the recipe's own), whose values are checked so."""
    recipe = replace(recipe, dtype=dtype) if dtype is not None else recipe
    return replace(recipe, clamp=True) if values.how == "clamp" else recipe


def check_output(output: Path, base: Checkpoint, donors: Sequence[Checkpoint], form: Form = "base") -> None:
    """Raise CheckpointError for what cannot be exported. A search asks this before it starts."""
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

    file: what `export` wrote, or a diffusers folder written by `merger.export.folder`, whose blended components are
    compared. search: folders or files to look for the recipe's sources in, by file name, after the places they lay at
    and before the hub's cache, and for the file of weights by channel; their SHA-256 must be the recipe's. Raises
    CheckpointError for a damaged file, and RecipeError for a file without a recipe and for sources or weights that are
    missing or have changed.
    """
    file = Path(file)
    folder = file if file.is_dir() else None
    if folder is not None:
        (file,) = open_checkpoint(folder).files[:1]
    header = read_header(file)
    places = [*([folder] if folder else []), *map(Path, search)]
    recipe = Recipe.from_metadata(header.metadata, lambda said: find_weights(said, file, places))
    base = _find(recipe.base, file, search, None, allow_pickle)
    if TEXT in recipe.components:
        base = with_text_encoders(base)
    donors = [_donor(donor, file, search, base, allow_pickle) for donor in recipe.used]
    form = cast(Form, header.metadata.get(FORM_KEY, "base"))
    compared, differing = _compare(file, Layout(recipe, base, donors, form))
    encoders = {} if folder is None else {part: folder / part / TEXT_FILE for part in components_of(base.text)}
    for component, weights in encoders.items():
        more, odd = _compare(weights, Layout(recipe, base, donors, cast(Form, component)))
        compared += more
        differing += [f"{component}/{key}" for key in odd]
    return Verification(not differing, compared, tuple(differing), recipe)


def _compare(file: Path, layout: Layout) -> tuple[int, list[str]]:
    """(number of tensors of the layout, keys whose bytes, dtype or shape in the file differ from it)."""
    header, entries = read_header(file), layout.entries()
    differing = [key for key in header.tensors if key not in entries]
    compared = 0
    actual = reader(file)
    for key, tensor in layout.tensors():
        entry = header.tensors.get(key)
        same = entry is not None and (entry.dtype, entry.shape) == entries[key]
        if not (same and torch.equal(raw_bytes(tensor), raw_bytes(actual.get_tensor(key)))):
            differing.append(key)
        compared += 1
    return compared, differing


def _donor(
    source: RecipeSource, file: Path, search: Sequence[Path], base: Checkpoint, allow_pickle: bool
) -> Checkpoint:
    """A recipe's donor, with what its difference is taken from and how it is prepared. See `_find`."""
    found = _find(source, file, search, base, allow_pickle)
    minus = None if source.minus is None else _find(source.minus, file, search, base, allow_pickle)
    return prepare(found, base, minus, source.prepare)


def _find(
    source: RecipeSource, file: Path, search: Sequence[Path], base: Checkpoint | None, allow_pickle: bool
) -> Checkpoint:
    """The checkpoint with a recipe source's hash: where it lay, beside the file, in the folders to search, or cached.

    base: the recipe's base if a donor is wanted, None if the base itself is.
    """
    name = Path(source.path).name
    places = [Path(source.path), file.parent / name]
    places += [place if place.is_file() else place / name for place in map(Path, search)]
    if source.hub and (folder := hub.cached(source.hub)) is not None:
        places.append(folder)
    changed = None
    for place in places:
        if not is_there(place):
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
