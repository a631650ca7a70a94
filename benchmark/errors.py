"""Errors that a person can mend: one line that says what is wrong, where, and what to do."""

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
    """A file that cannot be written. Its text says that nothing was left behind, and what to do."""


UNFORESEEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What libraries raise for a model file whose content they did not expect: any of Python's own errors."""


def did_you_mean(word: str, known: Iterable[str], *, most: int = 12) -> str:
    """The end of an error message about an unknown `word`: the nearest known word, or the first `most` known ones.

    It starts with a space, to follow a sentence. It is empty if nothing is known.
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
    """The first line of an error's text, or its type if it has no text."""
    return next((line for line in str(error).strip().splitlines() if line), type(error).__name__)


@contextmanager
def memory_said() -> Iterator[None]:
    """Within it, an error about lack of memory becomes an `InputError` that says what to do. Others pass unchanged.

    torch has a type of its own for a GPU's memory; for a CPU's, only the text of the error tells.
    """
    try:
        yield
    except RuntimeError as error:
        torch = sys.modules.get("torch")  # imported already if it raised this
        on_gpu = torch is not None and isinstance(error, torch.OutOfMemoryError)
        if not on_gpu and "DefaultCPUAllocator" not in str(error):
            raise
        size = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
        more = f" for {size[1]} more" if size else ""
        raise InputError(
            f"out of memory{more}. Draw smaller images, fewer at once or in half precision, or end other programs; "
            "what is finished is kept."
        ) from error


@contextmanager
def files_said() -> Iterator[None]:
    """Within it, the system's refusal of a file becomes an `InputError` that names it: a path that is too long, say."""
    try:
        yield
    except OSError as error:
        if error.filename is None:  # it speaks of no file: a pipe, a socket
            raise
        raise InputError(f"{error.filename}: {error.strerror or first_line(error)}.") from error
