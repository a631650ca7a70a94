"""Files and folders that appear whole or not at all, whatever the disk says."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.errors import WriteError

if TYPE_CHECKING:
    from PIL.Image import Image

_LONGEST_NAME = 255
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def whole_or_nothing(output: Path) -> Iterator[Path]:
    """Yields where to write: a path beside `output`, which takes its place where the block ends well.

    A file or a folder may be written there. Where the block fails, what was written goes, and so do folders that had to
    be made for it; what was at `output` stays. Raises WriteError, in one line, for what the disk refuses.
    """
    partial = _beside(output, "partial")
    before = _beside(output, "before")
    missing = [folder for folder in output.parents if not _is_there(folder)]  # the innermost first
    try:
        output.stat()  # of a name that cannot be, the disk says so here, before anything is computed
    except FileNotFoundError:
        pass
    except OSError as error:
        raise WriteError(f"{output}: {_reason(error)}") from error
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if output.is_dir() and partial.is_dir():  # no folder can be renamed over another one
            output.replace(before)
        partial.replace(output)
    except OSError as error:
        raise WriteError(f"{output}: {_reason(error)}") from error
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


def _beside(output: Path, what: str) -> Path:
    """A hidden name beside `output`, no longer than a name may be (255 bytes on all common systems)."""
    end = f".{os.getpid()}.{what}"
    name = f".{output.name}".encode(errors="surrogateescape")
    if len(name) + len(end) > _LONGEST_NAME:  # two long names that differ only at their ends must not share it
        end = f".{hashlib.sha256(name).hexdigest()[:8]}{end}"
    return output.with_name(name[: _LONGEST_NAME - len(end)].decode(errors="ignore") + end)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long
        return False


def write_text(output: Path, text: str) -> None:
    """A text file, in UTF-8."""
    with whole_or_nothing(output) as partial:
        partial.write_text(text, encoding="utf-8")


def write_arrays(output: Path, arrays: Mapping[str, Any]) -> None:
    """NumPy arrays as a compressed .npz."""
    import numpy as np

    with whole_or_nothing(output) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def write_picture(output: Path, image: Image, **options: Any) -> None:
    """A picture in the format that the name ends in. options: of Pillow's writer of that format."""
    from PIL import Image as Pillow

    with whole_or_nothing(output) as partial:
        image.save(partial, Pillow.registered_extensions()[output.suffix.lower()], **options)


def _reason(error: OSError) -> str:
    """Why something cannot be written, and what to do, as the end of a line."""
    words = error.strerror or str(error)
    if isinstance(error, shutil.Error):  # of a folder that was copied: (from, to, why) of each file that was not
        words = str(error.args[0][0][2])
    full = error.errno in _FULL or any(os.strerror(code) in words for code in _FULL)
    room = " Make room and try again." if full else ""
    return f"cannot be written ({words}). Nothing was left behind.{room}"
