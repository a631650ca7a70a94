"""Ctrl-C, SIGTERM and SIGHUP in a search: the first ends it where nothing is lost, the last at once.

A gradient search that holds its learning rate ends well on the first Ctrl-C: the rate falls, and the winner is chosen.
A second one ends it sooner, with the mean of the last steps; a third stops it at once, to be resumed.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from benchmark.app.interrupt import Ended, handling, tell
from merger.search.trials import Asked


class Interrupt:
    """What the user, or the system, asked a search to do.

    doing: what will be finished first, for the message. ends_well: whether a Ctrl-C now lets the search end well,
    instead of stopping it.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.doing = ""
        self.ends_well = False
        self._asked = Asked.NOTHING

    def __call__(self) -> Asked:
        """What to do as soon as nothing is lost."""
        return Asked.STOP if self.number is not None else self._asked

    def stop_if_asked(self) -> None:
        """Raises `KeyboardInterrupt` if asked to stop. For work that can be repeated at no loss."""
        if self.number is not None:
            raise Ended(self.number)

    def ended(self) -> None:
        """The search has ended, as asked or not: the next signal is a first one, and it stops."""
        self.ends_well, self._asked = False, Asked.NOTHING

    @contextmanager
    def listening(self) -> Iterator[Interrupt]:
        """Until the end of the block, the first signal to end is only remembered."""
        with handling(self._handle):
            yield self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None or (number == signal.SIGINT and self._asked == Asked.END_NOW):
            raise Ended(number)
        doing = self.doing or "loading"
        if number == signal.SIGINT and self._asked == Asked.END:
            self._asked = Asked.END_NOW
            tell(f"\nending after {doing}, with the mean of the last steps; Ctrl-C again stops at once\n")
        elif number == signal.SIGINT and self.ends_well:
            self._asked = Asked.END
            then = "Ctrl-C again ends it without that, a third one stops at once"
            tell(f"\nafter {doing} the learning rate falls, and the search ends well; {then}\n")
        else:
            self.number = number
            tell(f"\nstopping after {doing}; Ctrl-C again stops at once\n")
