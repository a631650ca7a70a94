"""Where a live denoiser's sources lie between two blends: copied into memory, or in their own files, memory-mapped.

Copies are blended in one pass per layer, on the denoiser's own device. If they do not fit into memory, each tensor is
read from its file when it is blended; the system's page cache then keeps as much of the files as it has room for. The
bits of the blend are the same.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from merger.blend.arithmetic import common_dtype
from merger.blend.differences import Difference
from merger.checkpoints.source import Source

Hold = Literal["memory", "file"]

SHARE = 0.75
"""The share of the free memory that copies may take: sampling images needs some as well."""


@dataclass(frozen=True)
class Span:
    """Elements `start` to `end` of a layer's buffer, which the base has in one dtype. name: their (first) tensor."""

    name: str
    start: int
    end: int
    stored: torch.dtype


class Copies:
    """A layer's base and donors, each in a flat buffer with the layer's own layout and its files' dtype."""

    def __init__(self, sources: Sequence[Source], places: Mapping[str, Span], total: int, device: torch.device) -> None:
        self._flats = [_flat(source, places, total, device) for source in sources]
        self.spans = _joined(list(places.values()))
        self.nbytes = sum(flat.nbytes for flat in self._flats)

    def read(self, span: Span, donors: Sequence[int]) -> tuple[Tensor, list[Difference]]:
        """The base [P] on a span of P elements, and what these donors add to it; views, nothing is computed."""
        here = slice(span.start, span.end)
        return self._flats[0][here], [Difference(self._flats[1 + donor][here]) for donor in donors]


class Mapped:
    """The same for sources that stay in their files: only the system's page cache holds anything of them."""

    nbytes = 0

    def __init__(self, sources: Sequence[Source], places: Mapping[str, Span]) -> None:
        self._sources = sources
        self.spans = list(places.values())

    def read(self, span: Span, donors: Sequence[int]) -> tuple[Tensor, list[Difference]]:
        """The base [P] of the one tensor of a span, in the CPU's memory, and what these donors add to it."""
        base, *others = (self._sources[i].read(span.name).reshape(-1) for i in (0, *(1 + donor for donor in donors)))
        return base, [Difference(other) for other in others]


def choose_hold(sources: Sequence[Source], parameters: Mapping[str, Tensor]) -> tuple[Hold, str]:
    """Where the sources of these parameters are held, and a remark for the user if they stay in their files."""
    needed = sum(_nbytes(source, name) for source in sources for name in parameters)
    device = next(iter(parameters.values())).device
    # on a CPU, a module fresh from a file of its own dtype is mapped, so its live buffers have yet to be allocated
    coming = 0 if device.type == "cuda" else sum(parameter.nbytes for parameter in parameters.values())
    free = max(free_memory(device) - coming, 0)
    if needed <= SHARE * free:
        return "memory", ""
    return "file", (
        f"base and donors are read from their files at every blend: copies would take {needed / 1e9:.1f} GB of the "
        f"{free / 1e9:.1f} GB that are free beside the live denoiser"
    )


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device; on a CPU, without swapping."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return min(_free_in_system(), _free_in_group())


def _free_in_system() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _free_in_group(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that a container's own limit leaves (Linux, control groups 2); the page cache counts as free."""
    try:
        limit = int((folder / "memory.max").read_text())  # "max" if there is none
        used = int((folder / "memory.current").read_text())
        kinds = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return sys.maxsize
    return limit - used + int(kinds.get("file", 0))


def _nbytes(source: Source, name: str) -> int:
    info = source.blended[name]
    return torch.Size(info.shape).numel() * min(info.dtype.itemsize, 4)


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Merge neighbours of one dtype into one span, with the zeros between them."""
    joined: list[Span] = []
    for span in spans:
        if joined and joined[-1].stored == span.stored:
            first = joined.pop()
            span = Span(first.name, first.start, span.end, first.stored)
        joined.append(span)
    return joined


def _flat(source: Source, places: Mapping[str, Span], total: int, device: torch.device) -> Tensor:
    """One source's tensors of a layer, in a dtype that holds all of them exactly (float32 at most)."""
    widest = common_dtype(source.blended[name].dtype for name in places)
    flat = torch.zeros(total, dtype=widest, device=device)
    for name, place in places.items():
        flat[place.start : place.end].copy_(source.read(name).reshape(-1))
    return flat
