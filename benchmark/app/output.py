"""What a command prints: it reaches its reader whole, or the command ends in one line and a status that is not 0."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import TextIO

from benchmark.errors import InputError

_ESCAPED = "layermerge.escaped"
"""The name of our way to print what an encoding does not have."""


class OutputError(InputError):
    """Standard output that takes nothing any more: a full disk, a lost network drive."""


class OutputClosed(Exception):
    """The reader of our output went away (`merger list | head -1`), which is no fault."""


def printing(command: Callable[[], int]) -> int:
    """Runs a command and returns its exit status, once all that it printed is written.

    If standard output takes no more, an error is printed and the status is 2; if its reader went away, nothing is
    printed and the status is 1. What standard error does not take is lost, and the command goes on.
    """
    _open_closed()
    before = sys.stdout, sys.stderr
    for name, kind in (("stdout", _Results), ("stderr", _Notes)):
        if getattr(sys, name) is not None:  # of a program without a terminal it may be
            setattr(sys, name, kind(getattr(sys, name)))
    try:
        try:
            return command()
        finally:  # before the interpreter does it, whose error nobody could catch
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
    except OutputClosed:
        return 1
    except OutputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        sys.stdout, sys.stderr = before


class _Stream(io.TextIOBase):
    """A text stream that writes what its encoding does not have as `\\u` escapes, as JSON does."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As of any text stream."""
        encoding = getattr(self._stream, "encoding", None)
        if encoding and not text.isascii():
            try:
                text.encode(encoding, getattr(self._stream, "errors", None) or "strict")
            except UnicodeEncodeError:
                text = text.encode(encoding, _ESCAPED).decode(encoding)
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop()
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        """As of any text stream."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop()
            self._failed(error)

    def isatty(self) -> bool:
        """As of any text stream."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """As of any text stream."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's."""
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """The stream's."""
        return self._stream.errors

    @property
    def buffer(self) -> io.BufferedIOBase:
        """Bytes are written past all of this."""
        return self._stream.buffer  # type: ignore[return-value]

    def _drop(self) -> None:
        """Has all that is still to be written go nowhere, at the end of the process too."""
        with contextlib.suppress(OSError):  # also of a stream in memory
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def _failed(self, error: OSError) -> None:
        """What to do about it."""


class _Notes(_Stream):
    """Standard error: there is no place left to report its failure, and the work itself is not concerned."""


class _Results(_Stream):
    """Standard output: who cannot have the results must learn it."""

    def _failed(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            raise OutputClosed from None
        raise OutputError(f"standard output cannot be written ({error.strerror or error}).") from None


def _open_closed() -> None:
    """Opens those of the three standard files that are closed (`>&-`), to nowhere.

    Otherwise the next file that is opened, maybe a study, would take their number, and all that is printed by a library
    would be written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Python's protocol of such a function: what to write instead, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2)), error.end


codecs.register_error(_ESCAPED, _escaped)
