"""What the bytes of a file say: their SHA-256, and which tensors hold values that are no finite numbers or very large.

Both come from one pass over the file, which is computed once per file and process: a search asks for the same gigabytes
several times.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from merger.checkpoints.headers import Header, raw_bytes, read_header
from merger.errors import CheckpointError

_BLOCK = 1 << 22
"""Bytes that are read, hashed and checked at a time: a multiple of every type's width that fits into the caches."""

# Type -> (numpy's integers of its width, its infinity shifted left by one bit). The shift drops the sign, so a value is
# infinite if it equals the number and NaN if it is larger. Patterns: IEEE 754, and OCP's 8-bit formats; E4M3 has no
# infinity, and its only NaN is 0x7F.
_PATTERNS: dict[torch.dtype, tuple[str, int]] = {
    torch.float64: ("<u8", 0xFFE0_0000_0000_0000),
    torch.float32: ("<u4", 0xFF00_0000),
    torch.float16: ("<u2", 0xF800),
    torch.bfloat16: ("<u2", 0xFF00),
    torch.float8_e5m2: ("u1", 0xF8),
    torch.float8_e4m3fn: ("u1", 0xFD),
}
NAN, INFINITE = "NaN", "infinite values"
LARGE = torch.finfo(torch.float16).max
"""Size of a value above which it is noted: some type of a base cannot hold it."""


@dataclass(frozen=True)
class Contents:
    """sha256: of all bytes, in hex. nonfinite: {key of a tensor: `NaN` or `infinite values`}, in the file's order.

    large: {key of a tensor of finite numbers: the largest size of its values}, where that is above `LARGE`.
    """

    sha256: str
    nonfinite: Mapping[str, str]
    large: Mapping[str, float] = field(default_factory=dict)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex. Raises CheckpointError if it cannot be read."""
    return file_contents(path).sha256


def file_contents(path: Path) -> Contents:
    """What a file's bytes say. In a file of another format than safetensors no tensor is looked at.

    Raises CheckpointError if it cannot be read.
    """
    try:
        status = path.stat()
        # whoever sets a file's time of change back cannot set back when its entry was changed
        state = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        return _computed(path.resolve(), state)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None


def nonfinite_in(tensor: Tensor) -> str:
    """`NaN` or `infinite values` if a tensor holds such; empty if all its values are finite numbers."""
    if tensor.dtype not in _PATTERNS:
        return ""
    return _word(_largest(raw_bytes(tensor).numpy(), tensor.dtype), tensor.dtype)


@functools.cache
def _computed(path: Path, state: tuple[int, ...]) -> Contents:
    """state: only part of the cache's key, so that another file under the same name is read anew."""
    try:
        header = read_header(path)
    except CheckpointError:  # another format, or damaged: whoever opens it says so; its bytes have a hash all the same
        header = None
    with path.open("rb") as file:
        if header is None:
            return Contents(hashlib.file_digest(file, "sha256").hexdigest(), {})
        return _read_through(path, file, header)


def _read_through(path: Path, file: BufferedReader, header: Header) -> Contents:
    """Hash a safetensors file and check its tensors, block by block in the order of its bytes."""
    hashed = hashlib.sha256()
    length = file.read(8)
    hashed.update(length)
    hashed.update(file.read(int.from_bytes(length, "little")))
    block = bytearray(_BLOCK)
    found = {}
    large = {}
    for key, entry in header.tensors.items():
        largest = 0
        for start in range(entry.start, entry.end, _BLOCK):
            here = memoryview(block)[: min(_BLOCK, entry.end - start)]
            if file.readinto(here) < len(here):
                raise CheckpointError(f"{path}: became shorter while it was read. Fetch it again.")
            hashed.update(here)
            if entry.dtype in _PATTERNS:
                largest = max(largest, _largest(np.frombuffer(here, np.uint8), entry.dtype))
        if not largest:
            continue
        if word := _word(largest, entry.dtype):
            found[key] = word
        elif (size := _number(largest, entry.dtype)) > LARGE:
            large[key] = size
    for rest in iter(lambda: file.read(_BLOCK), b""):  # what was added since the header was read
        hashed.update(rest)
    return Contents(hashed.hexdigest(), found, large)


def _largest(values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], dtype: torch.dtype) -> int:
    """The pattern of the value that is largest in size, shifted left by one bit; NaN counts as larger than infinity.

    values: [N] uint8, a whole number of elements.
    """
    return int(np.left_shift(values.view(_PATTERNS[dtype][0]), 1).max()) if values.size else 0


def _word(largest: int, dtype: torch.dtype) -> str:
    """`NaN` or `infinite values` for what `_largest` gives; empty if it is a finite number."""
    infinity = _PATTERNS[dtype][1]
    return "" if largest < infinity else INFINITE if largest == infinity else NAN


def _number(largest: int, dtype: torch.dtype) -> float:
    """The size of the value that `_largest` gives the pattern of."""
    bits = np.array([largest >> 1], _PATTERNS[dtype][0])
    return float(torch.from_numpy(bits).view(dtype).double())
