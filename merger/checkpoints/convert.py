"""A pickle made into a `.safetensors` file: its plain tensors, read by torch with `weights_only=True`."""

from __future__ import annotations

from pathlib import Path

from benchmark.writing import whole_or_nothing
from merger.checkpoints.headers import aligned, bytes_of, check_codes, pack_header
from merger.checkpoints.weight_files import open_weights
from merger.errors import CheckpointError


def convert(source: Path, output: Path) -> Path:
    """Write every tensor of a pickle under its key and in its dtype, one at a time; wider types come first.

    source: the pickle (`.ckpt`, `.pt`, `.pth`, `.bin`). Returns `output`. Raises CheckpointError, in one line, for what
    `open_weights` refuses, a dtype that safetensors does not have, and an output of another ending; WriteError if the
    disk refuses.
    """
    if output.suffix != ".safetensors":
        raise CheckpointError(f"{output}: the name must end in .safetensors.")
    if output.resolve() == source.resolve():
        raise CheckpointError(f"{source}: is a .safetensors file by its name; there is nothing to convert.")
    weights = open_weights(source, allow_pickle=True)
    entries = weights.header.tensors
    check_codes(source, {key: entry.dtype for key, entry in entries.items()})
    layout = aligned({key: (entry.dtype, entry.shape) for key, entry in entries.items()})
    with whole_or_nothing(output) as partial, partial.open("wb") as file:
        file.write(pack_header(layout, {**weights.header.metadata, "format": "pt"}))
        for key in layout:
            file.write(bytes_of(weights.get(key)))
    return output
