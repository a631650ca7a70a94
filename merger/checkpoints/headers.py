"""The head of a `.safetensors` file: eight bytes of length, then JSON that says where each tensor lies.

It is read and checked before any tensor is touched, so that a damaged file is refused in a line and not in a crash.
Format: https://huggingface.co/docs/safetensors (little-endian length, entries `dtype`, `shape`, `data_offsets`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from merger.errors import CheckpointError

_LONGEST = 100_000_000  # bytes; the format's own limit
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: dtype, shape, and where its bytes lie, counted from the end of the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """All tensors of a file in the order their bytes lie in, and its free-text metadata."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Read and check the header of one file. Raises CheckpointError: missing, another format, damaged, truncated."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
            _refuse_other_formats(path, head)
            length = int.from_bytes(head[:8], "little")
            if not 2 <= length <= _LONGEST:
                raise CheckpointError(f"{path}: not a safetensors file (it does not begin with a header).")
            if 8 + length > size:
                raise CheckpointError(
                    f"{path}: truncated: its header takes {8 + length} bytes, the file has {size}. Fetch it again."
                )
            file.seek(8)
            raw = file.read(length)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file.") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None
    try:
        table = json.loads(raw)
        metadata = {str(key): str(value) for key, value in table.pop("__metadata__", {}).items()}
        entries = {key: _entry(value) for key, value in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a safetensors file, or a damaged one (header: {_line(error)}).") from None
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)))
    _check_offsets(path, ordered, size - 8 - length)
    return Header(ordered, metadata)


def pack_header(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The bytes a file begins with when its tensors are to follow in the order given, without gaps."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for key, (dtype, shape) in tensors.items():
        end = at + math.prod(shape) * dtype.itemsize
        table[key] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin on a multiple of 8 bytes, as memory maps want them
    return len(text).to_bytes(8, "little") + text


def aligned(
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """The same tensors in an order in which each begins on a multiple of its own width: wider types first."""
    return dict(sorted(tensors.items(), key=lambda item: -item[1][0].itemsize))


def _entry(value: Mapping[str, Any]) -> Entry:
    start, end = value["data_offsets"]
    shape = tuple(value["shape"])
    code = value["dtype"]
    if not all(type(number) is int and number >= 0 for number in (start, end, *shape)):
        raise ValueError(f"{list(shape)} at bytes {start} to {end} is no shape or no place")
    if code not in DTYPES:
        raise ValueError(f"dtype {code} is not supported")
    if end - start != math.prod(shape) * DTYPES[code].itemsize:
        raise ValueError(f"{list(shape)} of {code} does not fill bytes {start} to {end}")
    return Entry(DTYPES[code], shape, start, end)


def _check_offsets(path: Path, entries: Mapping[str, Entry], have: int) -> None:
    """The tensors follow one another without gaps and end where the file ends."""
    at = 0
    for key, entry in entries.items():
        if entry.start != at:
            raise CheckpointError(f"{path}: damaged: '{key}' begins at byte {entry.start}, expected {at}.")
        at = entry.end
    if have < at:
        raise CheckpointError(
            f"{path}: truncated: its header promises {at} bytes of tensors, {have} are there. Fetch it again."
        )
    if have > at:
        raise CheckpointError(f"{path}: damaged: {have - at} bytes follow the last tensor.")


def convert_command(path: Path) -> str:
    """A sentence with the command that makes a `.safetensors` file of this pickle."""
    target = path.with_suffix(".safetensors")
    if target == path:
        return "To convert: give it back its ending .ckpt, then `merger convert`"
    return f"To convert: merger convert {path} --output {target}"


def _refuse_other_formats(path: Path, head: bytes) -> None:
    if len(head) < 8:
        raise CheckpointError(f"{path}: not a safetensors file: it has only {len(head)} bytes.")
    if head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and head[1] in range(2, 6) and any(head[4:8])):
        raise CheckpointError(
            f"{path}: a pickle checkpoint, which could run any program when opened, so it is not. "
            "Convert it to .safetensors first, or say --allow-pickle to have its plain tensors read. "
            f"{convert_command(path)}"
        )
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: only a Git LFS pointer; the file itself was not fetched. Run 'git lfs pull'.")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
