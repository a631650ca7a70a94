"""Errors that a person can mend: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path


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


_NO_MEMORY = re.compile(
    r"DefaultCPUAllocator"  # torch
    r"|could not create a (primitive(?! descriptor)|memory object)"  # oneDNN; torch drops the status that it gives
    r"|std::bad_alloc|bad allocation"  # C++
    r"|[Ff]ailed to allocate memory"  # onnxruntime
    r"|[Cc]annot allocate memory"  # the system, and what quotes it: of a thread, a library, a mapped file
    r"|failed to map segment from shared object"  # the loader of a library, when its address space is used up
    r"|can't start new thread|failed to create thread"
)
"""What errors about lack of memory say that have no type of their own."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, on a GPU or on the machine.

    Python, NumPy and torch have types for it; of other libraries' errors, only the text tells. What an error came from
    counts, too: diffusers calls a file that it had no memory for one that cannot be read.
    """
    origin = error.__cause__ or error.__context__
    if isinstance(origin, Exception) and out_of_memory(origin):
        return True
    torch = sys.modules.get("torch")  # imported already if it raised this
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if torch is not None and isinstance(error, getattr(torch, "OutOfMemoryError", ())):
        return True
    return _NO_MEMORY.search(str(error)) is not None


@contextmanager
def memory_said() -> Iterator[None]:
    """Within it, an error about lack of memory becomes an `InputError` that says what to do. Others pass unchanged.

    An `InputError` passes unchanged, too.
    """
    try:
        yield
    except (*UNFORESEEN, SystemError) as error:
        if not out_of_memory(error):
            raise
        if isinstance(error, ImportError) or "Failed to import" in str(error):  # diffusers' words
            raise InputError(
                "out of memory while a library was loaded. End other programs, or raise the limit (`ulimit -v`)."
            ) from error
        size = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
        more = f" for {size[1]} more" if size else ""
        raise InputError(
            f"out of memory{more}. Draw smaller images, fewer at once or in half precision, or end other programs; "
            "what is finished is kept."
        ) from error


def check_working_directory() -> None:
    """Raise InputError if the folder that the command is called from was removed.

    To be called before torch is imported: its MKL then ends the process with a line that blames a library.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise InputError("the folder that this command is called from is gone. Change to another one.") from None


@contextmanager
def surroundings_said() -> Iterator[None]:
    """Within it, what the system refuses about a path is an `InputError` that names it.

    That is a path that is too long, a working directory that is gone, or an encoding of file names that lacks a letter.
    Each can be met wherever a path is used, so it is told here and not at each of these places.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            check_working_directory()
        if error.filename is None:  # it speaks of no file: a pipe, a socket
            raise
        raise InputError(f"{error.filename}: {error.strerror or first_line(error)}.") from error
    except UnicodeEncodeError as error:
        raise InputError(
            f"{ascii(error.object)[:200]}: cannot be written in the encoding '{error.encoding}' of your settings. "
            "Set PYTHONUTF8=1."
        ) from error
