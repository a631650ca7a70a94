"""Files and folders that appear whole or not at all, even on a full disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.errors import WriteError

if TYPE_CHECKING:
    from PIL.Image import Image

_FULL = (errno.ENOSPC, errno.EDQUOT)


LONGEST_NAME = 255
"""Bytes that a file's name may have on the file systems in use."""

_LEFT = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.(?P<kind>partial|before)", re.DOTALL)


@contextmanager
def whole_or_nothing(output: Path) -> Iterator[Path]:
    """Yields a path beside `output` to write a file or folder to, which replaces `output` if the block succeeds.

    If the block fails, what was written is removed, with the folders that were made for it, and `output` stays as it
    was. Raises WriteError, in one line, if the disk refuses.
    """
    partial, before = _beside(output, "partial"), _beside(output, "before")
    missing = [folder for folder in output.parents if not there(folder)]  # the innermost first
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            output.lstat()  # a name that is too long is refused now, and not after everything is written
        yield partial
        if output.is_dir() and partial.is_dir():  # no folder can be renamed over another one
            output.replace(before)
        partial.replace(output)
    except OSError as error:
        raise WriteError(f"{output}: {_reason(error)}") from error
    finally:
        if there(before) and not there(output):
            before.replace(output)
        for left in (partial, before):
            _remove(left)
        if not there(output):
            with contextlib.suppress(OSError):  # not there, or somebody else's files are in it by now
                for folder in missing:
                    folder.rmdir()


def sweep(folder: Path, name: str | None = None) -> None:
    """Removes what writers that were killed left in `folder`: their partial files and folders.

    Those of a process that still runs stay. A folder that was moved out of the way for one that never took its place is
    put back. name: of the one file whose leftovers are meant.
    """
    with contextlib.suppress(OSError):  # no folder, or one that cannot be changed: then nothing is swept
        for path in sorted(folder.iterdir()):
            found = _LEFT.fullmatch(path.name)
            if found is None or _writes(int(found["pid"]), path):
                continue
            output = folder / found["name"]
            if name is not None and path.name != _beside(folder / name, found["kind"], found["pid"]).name:
                continue
            if found["kind"] == "before" and not output.exists():
                path.replace(output)
            else:
                _remove(path)


def there(path: Path) -> bool:
    """Whether a file or folder is there; False for a path that is too long, of which `Path.exists` raises OSError."""
    try:
        return path.exists()
    except OSError:
        return False


def _beside(output: Path, kind: str, pid: str = "") -> Path:
    """The path beside `output` under which this process writes. A long name is cut, and told apart by a hash."""
    ending = f".{pid or os.getpid()}.{kind}"
    name = os.fsencode(output.name)
    if len(name) + len(ending) >= LONGEST_NAME:
        mark = f"~{hashlib.sha256(name).hexdigest()[:12]}"
        name = name[: LONGEST_NAME - len(ending) - len(mark) - 1].decode("utf-8", "ignore").encode() + mark.encode()
    return output.with_name(f".{os.fsdecode(name)}{ending}")


def _writes(pid: int, path: Path) -> bool:
    """Whether the process `pid` runs and may still be writing `path`: it is not another one that began later."""
    import psutil

    try:
        return pid != os.getpid() and psutil.Process(pid).create_time() <= path.lstat().st_mtime + 1
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def _remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    try:
        path.lstat()
    except OSError:
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(output: Path, text: str, *, private: bool = False) -> None:
    """A text file, in UTF-8. private: nobody but its owner may read it."""
    with whole_or_nothing(output) as partial:
        partial.touch(0o600 if private else 0o666)
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
