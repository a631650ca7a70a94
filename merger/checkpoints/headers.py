"""The head of a `.safetensors` file: eight bytes of length, then JSON that says where each tensor lies.

It is read and checked before any tensor is touched, so that a damaged file is refused in one line and not by a crash.
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
from torch import Tensor

from benchmark.reading import no_repeats
from merger.errors import CheckpointError

# Limits, far above what real files have: their headers take some hundred KB (a preview picture or a training log makes
# it a few MB), with some thousand tensors of at most five dimensions. Without them a small file could take minutes and
# gigabytes to be refused.
_FORMATS_LONGEST = 100_000_000  # bytes; the format's own limit
_LONGEST = 25_000_000
_MOST_TENSORS = 50_000
_MOST_DIMENSIONS = 16
_MOST_EMPTY = 1 << 20
"""The largest size in the shape of a tensor without elements, which takes no bytes that would limit it."""
_MOST_SIGNS = {b"{": 500_000, b"[": 500_000, b",": 3_000_000}
"""How often the signs may appear that make JSON large in memory."""
# safetensors' code of a type -> torch's name of it
_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
# Code -> torch's type. Older versions of torch lack the newest types, and no version has 6-bit floats (F6_E2M3, ...).
DTYPES: dict[str, torch.dtype] = {code: getattr(torch, name) for code, name in _NAMES.items() if hasattr(torch, name)}
CODES = {dtype: code for code, dtype in DTYPES.items()}
_PACKED = {"F4": 2}
"""How many values torch packs into one element, for types whose values are smaller than a byte; 1 for all others."""

_SAVE_AGAIN = "Save it again without them."

FLOATING = frozenset(DTYPES[code] for code in ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"))
"""The types that hold weights themselves, which can be blended and converted.

torch's other floating types hold parts of quantised weights (F8_E8M0, F4) or are made for one kind of hardware (FNUZ).
"""

TensorTable = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""{key: (dtype, shape)}, in the order of the file. Types and shapes are torch's, here and in `Entry`."""


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
    """Read and check the header of one file.

    Raises CheckpointError for a file that is missing, of another format, damaged or truncated, and for a tensor of a
    type that torch cannot hold.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
            _refuse_other_formats(path, head)
            length = int.from_bytes(head[:8], "little")
            if not 2 <= length <= _FORMATS_LONGEST:
                raise CheckpointError(f"{path}: not a safetensors file (it does not begin with a header).")
            if 8 + length <= size and length > _LONGEST:
                raise CheckpointError(f"{path}: its header of {length} bytes is larger than that of any model.")
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
        table = _parsed(raw)
        metadata = _metadata(path, {} if table.get("__metadata__") is None else table["__metadata__"])
        table.pop("__metadata__", None)
        if len(table) > _MOST_TENSORS:
            raise ValueError(f"{len(table)} tensors are more than any model has")
        entries = {key: _entry(path, key, value) for key, value in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a safetensors file, or a damaged one (header: {_line(error)}).") from None
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)))
    _check_offsets(path, ordered, size - 8 - length)
    return Header(ordered, metadata)


def pack_header(tensors: TensorTable, metadata: Mapping[str, str]) -> bytes:
    """The bytes a file begins with if its tensors are to follow in the order of `tensors`, without gaps.

    Every dtype must have a code (`check_codes`).
    """
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for key, (dtype, shape) in tensors.items():
        end = at + math.prod(shape) * dtype.itemsize
        code = CODES[dtype]
        sizes = [*shape[:-1], shape[-1] * _PACKED[code]] if code in _PACKED else list(shape)
        table[key] = {"dtype": code, "shape": sizes, "data_offsets": [at, end]}
        at = end
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin on a multiple of 8 bytes, as memory maps want them
    return len(text).to_bytes(8, "little") + text


def check_codes(where: Path, dtypes: Mapping[str, torch.dtype]) -> None:
    """Make sure that a `.safetensors` file can hold these tensors of the file `where`: {key: dtype}.

    Raises CheckpointError, naming the first that it cannot: pickles may hold types that the format does not have.
    """
    if odd := next((key for key, dtype in dtypes.items() if dtype not in CODES), None):
        raise CheckpointError(f"{where}: '{odd}' is {dtypes[odd]}, which a .safetensors file cannot hold here.")


def aligned(tensors: TensorTable) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """The same tensors in an order in which each begins on a multiple of its own width: wider types first."""
    return dict(sorted(tensors.items(), key=lambda item: -item[1][0].itemsize))


def raw_bytes(tensor: Tensor) -> Tensor:
    """A tensor's bytes [N] uint8, not copied if they are contiguous. Equal bits are equal here, also NaN and -0.0."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes, to be written to a file."""
    return raw_bytes(tensor).numpy().data


def _parsed(raw: bytes) -> dict[str, Any]:
    """The JSON table of a header. Raises ValueError for anything else, a key given twice, and a header too large."""
    for sign, most in _MOST_SIGNS.items():
        if raw.count(sign) > most:
            raise ValueError(f"'{sign.decode()}' stands more than {most} times in it")
    table = json.loads(raw.decode(), object_pairs_hook=no_repeats)
    if not isinstance(table, dict):
        raise TypeError(f"a {type(table).__name__}, not a table")
    return table


def _metadata(path: Path, table: Any) -> dict[str, str]:
    """The free text of a header. Raises CheckpointError for what is no text: safetensors reads no such file."""
    if not isinstance(table, dict):
        raise CheckpointError(f"{path}: its metadata are a {type(table).__name__}, not a table of texts. {_SAVE_AGAIN}")
    for key, value in table.items():
        if not isinstance(value, str):
            raise CheckpointError(
                f"{path}: its metadata hold {type(value).__name__} under '{key[:80]}' where the format has text only. "
                f"{_SAVE_AGAIN}"
            )
    return table


def _entry(path: Path, key: str, value: Mapping[str, Any]) -> Entry:
    """One line of the header. Raises ValueError, KeyError, TypeError or AttributeError if it is damaged."""
    start, end = value["data_offsets"]
    shape = tuple(value["shape"])
    code = value["dtype"]
    if not isinstance(code, str):
        raise TypeError(f"{code!r} is no dtype")
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"a tensor of {len(shape)} dimensions")
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in (start, end, *shape)):
        raise ValueError(f"no shape or no place: {list(shape)} at bytes {start} to {end}")
    if 0 in shape and max(shape) > _MOST_EMPTY:
        raise ValueError(f"no shape of a tensor without elements: {list(shape)}")
    packed = _PACKED.get(code, 1)
    if code not in DTYPES or (packed > 1 and (not shape or shape[-1] % packed)):
        what = f"type {code}" if code not in DTYPES else f"type {code} and shape {list(shape)}"
        raise CheckpointError(f"{path}: holds a tensor of {what}, which this version cannot read: '{key}'.")
    held = (*shape[:-1], shape[-1] // packed) if packed > 1 else shape
    if end - start != math.prod(held) * DTYPES[code].itemsize:
        raise ValueError(f"{list(shape)} of {code} does not fill bytes {start} to {end}")
    return Entry(DTYPES[code], held, start, end)


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
