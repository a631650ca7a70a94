"""Signals that ask a process to end: Ctrl-C, SIGTERM (service managers, schedulers) and SIGHUP (a lost terminal)."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], None]

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that count. Windows has no SIGHUP."""


class Ended(KeyboardInterrupt):
    """A signal asked the process to end. number: the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


def exit_status(stop: KeyboardInterrupt) -> int:
    """The exit status of a process that was stopped, as shells give it: 128 and the signal's number."""
    return 128 + (stop.number if isinstance(stop, Ended) else signal.SIGINT)


@contextmanager
def handling(handler: Handler) -> Iterator[None]:
    """Has `handler` called for these signals until the end of the block.

    One that is ignored stays ignored, as `nohup` and shells with jobs in the background want it. Outside the main
    thread nothing can be handled.
    """
    before = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)


@contextmanager
def ending() -> Iterator[None]:
    """Within it, the first of these signals is a `KeyboardInterrupt`, so that whatever is half done is put right.

    Another SIGTERM or SIGHUP does not disturb that; another Ctrl-C does.
    """
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number != signal.SIGINT:
            return
        asked = True
        tell("\n")
        raise Ended(number)

    with handling(handle):
        yield


def tell(message: str) -> None:
    """Writes to standard error from within a handler, where print() could interrupt another print().

    If the terminal is gone, all that is printed from now on goes nowhere, and the process can end in good order.
    """
    try:
        os.write(2, message.encode())
    except OSError:
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(nowhere, stream)
