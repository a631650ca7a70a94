"""Ctrl-C: the first ends the search at the next point where nothing is lost, the second ends it at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether the user asked to stop. doing: what will be finished first, for the message."""

    def __init__(self) -> None:
        self.asked = False
        self.doing = ""

    def __call__(self) -> bool:
        """Whether to stop as soon as nothing is lost."""
        return self.asked

    def stop_if_asked(self) -> None:
        """Raises `KeyboardInterrupt` if the user asked to stop. For work that can be repeated at no loss."""
        if self.asked:
            raise KeyboardInterrupt

    @contextmanager
    def listening(self) -> Iterator[Interrupt]:
        """Until the end of the block, the first Ctrl-C only sets `asked`."""
        before = signal.signal(signal.SIGINT, self._handle)
        try:
            yield self
        finally:
            signal.signal(signal.SIGINT, before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        message = f"\nstopping after {self.doing or 'loading'}; Ctrl-C again stops at once\n"
        os.write(2, message.encode())  # print() could interrupt another print() that is half done
