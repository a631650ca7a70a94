"""Files and folders that appear whole or not at all, even on a full disk."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.errors import WriteError

if TYPE_CHECKING:
    from PIL.Image import Image

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def whole_or_nothing(output: Path) -> Iterator[Path]:
    """Yields a path beside `output` to write a file or folder to, which replaces `output` if the block succeeds.

    If the block fails, what was written is removed, with the folders that were made for it, and `output` stays as it
    was. Raises WriteError, in one line, if the disk refuses.
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
    """A picture in the format of the name's ending. options: for Pillow's writer of that format."""
    from PIL import Image as Pillow

    with whole_or_nothing(output) as partial:
        image.save(partial, Pillow.registered_extensions()[output.suffix.lower()], **options)


def _reason(error: OSError) -> str:
    """Why something cannot be written, and what to do: the end of an error message."""
    words = error.strerror or str(error)
    if isinstance(error, shutil.Error):  # of a copied folder: (from, to, why) of each file that failed
        words = str(error.args[0][0][2])
    full = error.errno in _FULL or any(os.strerror(code) in words for code in _FULL)
    room = " Make room and try again." if full else ""
    return f"cannot be written ({words}). Nothing was left behind.{room}"
