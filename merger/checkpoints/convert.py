"""A pickle made into a `.safetensors` file: its plain tensors, read by torch with `weights_only=True`."""

from __future__ import annotations

from pathlib import Path

from benchmark.writing import whole_or_nothing
from merger.checkpoints.headers import CODES, aligned, pack_header
from merger.checkpoints.weight_files import open_weights
from merger.errors import CheckpointError
from merger.export.write import bytes_of


def convert(source: Path, output: Path) -> Path:
    """Write every tensor of a file under its key and in its dtype, one at a time; wider types come first.

    source: a pickle (`.ckpt`, `.pt`, `.pth`, `.bin`). Raises CheckpointError, in one line: what `open_weights` raises,
    a dtype that safetensors has no place for, an output of another ending or that cannot be written.
    """
    if output.suffix != ".safetensors":
        raise CheckpointError(f"{output}: the name must end in .safetensors.")
    if output.resolve() == source.resolve():
        raise CheckpointError(f"{source}: is a .safetensors file by its name; there is nothing to convert.")
    weights = open_weights(source, allow_pickle=True)
    entries = weights.header.tensors
    if odd := next((key for key, entry in entries.items() if entry.dtype not in CODES), None):
        raise CheckpointError(f"{source}: '{odd}' is {entries[odd].dtype}, which a .safetensors file cannot hold here.")
    layout = aligned({key: (entry.dtype, entry.shape) for key, entry in entries.items()})
    with whole_or_nothing(output) as partial, partial.open("wb") as file:
        file.write(pack_header(layout, {**weights.header.metadata, "format": "pt"}))
        for key in layout:
            file.write(bytes_of(weights.get(key)))
    return output
