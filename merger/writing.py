"""Files and folders that appear whole or not at all, whatever the disk says."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from merger.errors import CheckpointError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def whole_or_nothing(output: Path) -> Iterator[Path]:
    """Yields where to write: a path beside `output`, which takes its place where the block ends well.

    A file or a folder may be written there. Where the block fails, what was written goes, and so do folders that had to
    be made for it; what was at `output` stays. Raises CheckpointError, in one line, for what the disk refuses.
    """
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    before = output.with_name(f".{output.name}.{os.getpid()}.before")
    missing = [folder for folder in output.parents if not folder.exists()]  # the innermost first
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if output.is_dir() and partial.is_dir():  # no folder can be renamed over another one
            output.replace(before)
        partial.replace(output)
    except OSError as error:
        raise CheckpointError(f"{output}: {_reason(error)}") from error
    finally:
        if before.exists() and not output.exists():
            before.replace(output)
        for left in (partial, before):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink(missing_ok=True)
        if not output.exists():
            with contextlib.suppress(OSError):  # not there, or somebody else's files are in it by now
                for folder in missing:
                    folder.rmdir()


def _reason(error: OSError) -> str:
    """Why something cannot be written, and what to do, as the end of a line."""
    words = error.strerror or str(error)
    if isinstance(error, shutil.Error):  # of a folder that was copied: (from, to, why) of each file that was not
        words = str(error.args[0][0][2])
    full = error.errno in _FULL or any(os.strerror(code) in words for code in _FULL)
    room = " Make room and try again." if full else ""
    return f"cannot be written ({words}). Nothing was left behind.{room}"
