"""The weights of a channel-wise recipe, in a file of their own: `best.recipe.safetensors` beside `best.safetensors`.

    D  donors with a weight, C  channels of a tensor

It holds one tensor for each layer, [D, C] float32 (or [D, 1] for one weight for all of it), and in its metadata the
recipe itself, so that it alone is enough to make the blend again. The blend's own file names it and its SHA-256.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from benchmark.hashing import model_fingerprint
from benchmark.writing import whole_or_nothing
from merger.checkpoints.headers import bytes_of, pack_header
from merger.checkpoints.recipe_metadata import METADATA_KEY
from merger.checkpoints.weight_files import is_there, open_weights
from merger.errors import CheckpointError, RecipeError
from merger.export.recipe import Recipe, WeightsFile
from merger.weights import Channels, Floats32, Weight, Weights, by_channel

ENDING = ".recipe.safetensors"


def beside(output: Path) -> Path:
    """Where the weights of a blend's recipe lie: beside its file, or inside its folder."""
    return output.with_name(output.stem + ENDING) if output.suffix == ".safetensors" else output / f"blend{ENDING}"


@contextmanager
def weights_beside(recipe: Recipe, path: Path) -> Iterator[WeightsFile | None]:
    """Write the weights of a recipe with weights by channel to `path`, which appears only if the block succeeds.

    Yields what the blend's own file says of them; None, and nothing is written, for other recipes. Raises WriteError if
    the disk refuses.
    """
    if not by_channel(recipe.weights):
        yield None
        return
    with whole_or_nothing(path) as partial:
        _write(recipe, partial)
        yield WeightsFile(path.name, model_fingerprint(partial), tuple(donor.name for donor in recipe.used))


def read_weights(path: Path, donors: Sequence[str]) -> Weights:
    """The weights in a file: {layer: {donor: weight}}. Raises RecipeError or CheckpointError, in one line.

    donors: the D donors, in the order of the rows.
    """
    opened = open_weights(path)
    weights: dict[str, dict[str, Weight]] = {}
    for layer, entry in opened.header.tensors.items():
        if entry.dtype != torch.float32 or len(entry.shape) != 2 or entry.shape[0] != len(donors) or not entry.shape[1]:
            raise RecipeError(
                f"{path}: '{layer}' is {entry.dtype} {list(entry.shape)}, not weights of {len(donors)} donors"
            )
        rows = opened.get(layer).numpy()
        weights[layer] = {
            donor: float(row[0]) if row.size == 1 else Channels(row) for donor, row in zip(donors, rows, strict=True)
        }
    return weights


def find_weights(said: WeightsFile, file: Path, places: Sequence[Path]) -> Weights:
    """The weights that a blend's file names, wherever they lie now.

    file: the blend, for messages; beside it is looked first, under the old name and under the file's own. places: files
    or folders to look in as well. Raises RecipeError if none there has the right SHA-256.
    """
    candidates = [file.parent / said.file, beside(file), *(p if p.is_file() else p / said.file for p in places)]
    there = [path for path in candidates if is_there(path) and path.is_file()]
    for path in there:
        if model_fingerprint(path) == said.sha256:
            return read_weights(path, said.donors)
    found = f"{there[0]} is another file" if there else f"'{said.file}' is not beside it"
    raise RecipeError(
        f"{file}: the weights of its recipe are in a file of their own (SHA-256 {said.sha256[:12]}...), and {found}. "
        "Say where it is with --search."
    )


def _write(recipe: Recipe, file: Path) -> None:
    donors = [donor.name for donor in recipe.used]
    arrays = {layer: _rows([row.get(donor, 0.0) for donor in donors]) for layer, row in recipe.weights.items()}
    tensors = {layer: torch.tensor(array) for layer, array in arrays.items()}
    said = WeightsFile("", "", tuple(donors))
    entries = {layer: (tensor.dtype, tuple(tensor.shape)) for layer, tensor in tensors.items()}
    with file.open("wb") as out:
        out.write(pack_header(entries, {METADATA_KEY: recipe.to_json(said)}))
        for tensor in tensors.values():
            out.write(bytes_of(tensor))
        out.flush()
        os.fsync(out.fileno())


def _rows(weights: Sequence[Weight]) -> Floats32:
    """[D, C], one number repeated for all channels where others of the layer have one each."""
    width = max(len(weight) if isinstance(weight, Channels) else 1 for weight in weights)
    rows = [weight.values if isinstance(weight, Channels) else np.full(width, weight, np.float32) for weight in weights]
    try:
        return np.stack(rows).astype(np.float32)
    except ValueError:
        raise CheckpointError(f"donors have different numbers of channels: {[row.size for row in rows]}") from None
