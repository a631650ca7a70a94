"""Ctrl-C, SIGTERM and SIGHUP in a search: the first ends it where nothing is lost, the second ends it at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from benchmark.app.interrupt import Ended, handling, tell


class Interrupt:
    """Whether the user, or the system, asked to stop. doing: what will be finished first, for the message."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.doing = ""

    def __call__(self) -> bool:
        """Whether to stop as soon as nothing is lost."""
        return self.number is not None

    def stop_if_asked(self) -> None:
        """Raises `KeyboardInterrupt` if asked to stop. For work that can be repeated at no loss."""
        if self.number is not None:
            raise Ended(self.number)

    @contextmanager
    def listening(self) -> Iterator[Interrupt]:
        """Until the end of the block, the first signal to end is only remembered."""
        with handling(self._handle):
            yield self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise Ended(number)
        self.number = number
        tell(f"\nstopping after {self.doing or 'loading'}; Ctrl-C again stops at once\n")
