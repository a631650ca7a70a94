"""Where a live denoiser's sources lie between two blends: on its device, in the host's memory, or in their own files.

Copies on the device are blended in one pass per layer. Copies in the host's memory lie in pinned pages and are fetched
piece by piece, the next piece while one is blended (`merger.blend.fetching`). Files are memory-mapped, and each tensor
is read when it is blended; the system's page cache then keeps as much of them as it has room for. The bits of the blend
are the same. Where the device is the CPU, the host's memory is the device's.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from merger.blend.arithmetic import common_dtype
from merger.blend.differences import Difference
from merger.checkpoints.source import Source

Hold = Literal["device", "host", "file"]

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
    """A layer's base and donors, each in flat buffers with the layer's own layout and its files' dtype.

    device: where they lie. pinned: whether their pages stay where they are, so that a GPU copies them by itself.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        places: Mapping[str, Span],
        total: int,
        device: torch.device,
        *,
        pinned: bool = False,
    ) -> None:
        self._flats = [_Flat(source, places, total, device, pinned=pinned) for source in sources]
        starts = sorted({start for flat in self._flats for start in flat.starts})
        self.spans = _joined(list(places.values()), frozenset(starts))
        self.nbytes = sum(flat.nbytes for flat in self._flats)

    def read(self, span: Span, donors: Sequence[int]) -> tuple[Tensor, list[Difference]]:
        """The base [P] on a span of P elements, and what these donors add to it; views, nothing is computed."""
        base, *others = (self._flats[i].read(span) for i in (0, *(1 + donor for donor in donors)))
        return base, [Difference(other) for other in others]


class Mapped:
    """The same for sources that stay in their files: only the system's page cache holds anything of them.

    Each span is one tensor.
    """

    nbytes = 0

    def __init__(self, sources: Sequence[Source], places: Mapping[str, Span]) -> None:
        self._sources = sources
        self.spans = list(places.values())

    def read(self, span: Span, donors: Sequence[int]) -> tuple[Tensor, list[Difference]]:
        """The base [P] of the one tensor of a span, in the CPU's memory, and what these donors add to it."""
        base, *others = (self._sources[i].read(span.name).reshape(-1) for i in (0, *(1 + donor for donor in donors)))
        return base, [Difference(other) for other in others]


def choose_hold(sources: Sequence[Source], parameters: Mapping[str, Tensor]) -> tuple[Hold, str]:
    """Where the sources of these parameters are held, and a remark for the user if it is not on the device."""
    needed = copies_nbytes(sources, parameters)
    device = next(iter(parameters.values())).device
    # on a CPU, a module fresh from a file of its own dtype is mapped, so its live buffers have yet to be allocated
    coming = 0 if device.type == "cuda" else sum(parameter.nbytes for parameter in parameters.values())
    free = max(free_memory(device) - coming, 0)
    if needed <= SHARE * free:
        return "device", ""
    taken = f"copies would take {needed / 1e9:.1f} GB of the {free / 1e9:.1f} GB that are free beside the live denoiser"
    if device.type != "cpu" and needed <= SHARE * free_memory(torch.device("cpu")):
        return "host", f"base and donors are kept in the host's memory and copied at every blend: {taken}"
    return "file", f"base and donors are read from their files at every blend: {taken}"


def copies_nbytes(sources: Sequence[Source], names: Iterable[str]) -> int:
    """Bytes of copies of these tensors of all sources, about: tensors that share a layer may need a wider dtype."""
    return sum(_nbytes(source, name) for name in names for source in sources)


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


def _joined(spans: Sequence[Span], starts: frozenset[int]) -> list[Span]:
    """Merge neighbours of one dtype into one span, with the zeros between them; at `starts` a new one begins."""
    joined: list[Span] = []
    for span in spans:
        if joined and joined[-1].stored == span.stored and span.start not in starts:
            first = joined.pop()
            span = Span(first.name, first.start, span.end, first.stored)
        joined.append(span)
    return joined


class _Flat:
    """One source's tensors of a layer, end to end, in a dtype that holds all of them exactly (float32 at most).

    Tensors of 8 bits stay so: between them and wider ones a new buffer begins. starts: where each begins.
    """

    def __init__(
        self, source: Source, places: Mapping[str, Span], total: int, device: torch.device, *, pinned: bool
    ) -> None:
        self.starts: list[int] = []
        self._buffers: list[Tensor] = []
        runs = [list(run) for _, run in groupby(places, lambda name: _eight_bits(source.blended[name].dtype))]
        ends = [*(places[run[0]].start for run in runs[1:]), total]
        for run, end in zip(runs, ends, strict=True):
            start = places[run[0]].start if self.starts else 0
            widest = common_dtype(source.blended[name].dtype for name in run)
            buffer = torch.zeros(end - start, dtype=widest, device=device, pin_memory=pinned)
            for name in run:
                place = places[name]
                buffer[place.start - start : place.end - start].copy_(source.read(name).reshape(-1))
            self.starts.append(start)
            self._buffers.append(buffer)
        self.nbytes = sum(buffer.nbytes for buffer in self._buffers)

    def read(self, span: Span) -> Tensor:
        """The elements of a span, which lies in one buffer; a view."""
        which = bisect_right(self.starts, span.start) - 1
        first = self.starts[which]
        return self._buffers[which][span.start - first : span.end - first]


def _eight_bits(dtype: torch.dtype) -> torch.dtype | None:
    """An 8-bit float's dtype; None for all wider ones, which may share a buffer."""
    return dtype if dtype.itemsize == 1 else None
