"""Base and donors on their way from the host's memory to a GPU, while the GPU computes.

    P   elements of a piece: a part of a layer's buffer

A blend takes its sources piece by piece: while one is blended, the next is copied on a stream of its own, from pinned
memory. Dot products with gradients are taken on that stream too, copies and all, so the backward pass goes on
meanwhile. Both wait as soon as more is on its way than a fixed amount, which the plan of a search counts. Where the
device is the CPU everything is there already, and nothing of this happens.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from merger.blend.differences import Difference

PIECE = 1 << 24
"""The most elements of a piece, where a layer's channels do not need all of it at once."""

_PIECES = 2  # there at a time: one that is blended, and one that comes
_WAITING = 1 << 24  # elements of gradients that may wait for their dot products


@dataclass(frozen=True)
class Piece:
    """Elements of a layer: `here` in its buffer, base [P], what each donor adds, and the dtype the base stores."""

    here: slice
    base: Tensor
    differences: tuple[Difference, ...]
    stored: torch.dtype

    def parts(self, most: int) -> Iterator[Piece]:
        """The same in pieces of at most so many elements."""
        for start in range(0, self.base.numel(), most):
            some = slice(start, min(start + most, self.base.numel()))
            first = self.here.start
            yield replace(
                self,
                here=slice(first + some.start, first + some.stop),
                base=self.base[some],
                differences=tuple(replace(each, donor=each.donor[some]) for each in self.differences),
            )

    def to(self, device: torch.device) -> Piece:
        """The same with its values on this device; copied without waiting where that is possible."""
        return replace(
            self,
            base=self.base.to(device, non_blocking=True),
            differences=tuple(each.to(device) for each in self.differences),
        )


def ahead(pieces: Iterable[Piece], device: torch.device) -> Iterator[Piece]:
    """The pieces on a device, each of which is used up before the next is asked for; the next one comes meanwhile."""
    if device.type != "cuda":
        yield from pieces
        return
    side, used = _side_stream(device), deque[Any]()
    coming: tuple[Piece, Any] | None = None
    for piece in pieces:
        if len(used) >= _PIECES:
            used.popleft().synchronize()  # or the host runs ahead, and all pieces are there at once
        with torch.cuda.stream(side):
            next_one = (piece.to(device), side.record_event())
        if coming is not None:
            yield _arrived(*coming)
            used.append(torch.cuda.current_stream(device).record_event())
        coming = next_one
    if coming is not None:
        yield _arrived(*coming)


def _arrived(piece: Piece, event: Any) -> Piece:
    """The piece, for the stream that computes now."""
    now = torch.cuda.current_stream(piece.base.device)
    now.wait_event(event)
    for tensor in (piece.base, *(each.donor for each in piece.differences)):
        tensor.record_stream(now)
    return piece


def fetched_nbytes(donors: int) -> int:
    """The most bytes of pieces that are on their way or there, of sources in half precision."""
    return _PIECES * PIECE * 2 * (1 + donors)


class Aside:
    """Work that a backward pass need not wait for, done on a stream of its own; on a CPU, done at once."""

    def __init__(self, device: torch.device | None) -> None:
        self._side = _side_stream(device) if device is not None and device.type == "cuda" else None
        self._device, self._waiting, self._elements = device, deque[tuple[Any, int]](), 0

    def do(self, work: Callable[[], None], given: Tensor) -> None:
        """Do `work`, which uses `given`, a tensor that the caller computed and drops."""
        if self._side is None:
            work()
            return
        self._elements += given.numel()
        while self._waiting and self._elements > _WAITING:  # or all gradients would wait at once
            event, elements = self._waiting.popleft()
            event.synchronize()
            self._elements -= elements
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        given.record_stream(self._side)
        with torch.cuda.stream(self._side):
            work()
            self._waiting.append((self._side.record_event(), given.numel()))

    def finish(self) -> None:
        """Wait until all of it is done."""
        if self._side is not None:
            self._side.synchronize()
            self._waiting.clear()
            self._elements = 0


@functools.cache
def _side_stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)
