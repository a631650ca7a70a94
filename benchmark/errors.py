"""What a person did wrong, in one line: what, where, how to mend it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class InputError(Exception):
    """Bad input. Its text is one line; the command line prints it after `error: ` and exits with status 2."""

    @property
    def lines(self) -> tuple[str, ...]:
        """What to print, each after `error: `: one line, unless several things are wrong at once."""
        return (" ".join(str(self).split()),)


class WriteError(InputError):
    """What a disk does not take. Its text says that nothing was left behind, and what to do."""


def did_you_mean(word: str, known: Iterable[str], *, most: int = 12) -> str:
    """The end of an error message about an unknown `word`: the nearest known one, or what there is.

    Starts with a space, so that it can be put straight after a sentence. Empty where nothing is known.
    """
    names = list(dict.fromkeys(known))
    lowered = {name.lower(): name for name in reversed(names)}
    near = get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.6)
    if near:
        return f" Did you mean '{lowered[near[0]]}'?"
    if not names:
        return ""
    shown = ", ".join(names[:most])
    return f" Available: {shown}, and {len(names) - most} more." if len(names) > most else f" Available: {shown}."


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return next((line for line in str(error).strip().splitlines() if line), type(error).__name__)


@contextmanager
def memory_said() -> Iterator[None]:
    """Within it, memory that does not suffice is an `InputError`, whose line says what to do; all else goes through.

    On a GPU torch has a type of its own for that, on a CPU only words.
    """
    try:
        yield
    except RuntimeError as error:
        torch = sys.modules.get("torch")  # not imported here: it was, where it raised this
        on_gpu = torch is not None and isinstance(error, torch.OutOfMemoryError)
        if not on_gpu and "DefaultCPUAllocator" not in str(error):
            raise
        size = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
        more = f" for {size[1]} more" if size else ""
        raise InputError(
            f"out of memory{more}. Draw smaller images, fewer at once or in half precision, or end other programs; "
            "what is finished is kept."
        ) from error
