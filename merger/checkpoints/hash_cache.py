"""SHA-256 of files, kept between two calls of the program in the user's cache folder, as web UIs do.

A file is known by its path, size and time of change. That is enough to show a hash. Whatever decides what a search or
an export is made of reads the bytes (`merger.checkpoints.hashing`).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmark.errors import WriteError
from benchmark.reading import NOT_JSON
from benchmark.writing import write_text
from merger.checkpoints.hashing import Contents, file_contents

_MOST = 10_000
"""Files that are remembered; the ones added first go first."""


def cache_file() -> Path:
    """Where hashes are kept: `layermerge/hashes.json` in the user's cache folder (`XDG_CACHE_HOME` if it is set)."""
    named = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None)
    return Path(named or Path.home() / ".cache") / "layermerge" / "hashes.json"


def known_contents(path: Path) -> Contents:
    """`merger.checkpoints.hashing.file_contents`, from the cache if the file was hashed before and has not changed.

    A cache that cannot be read or written is no error. Raises CheckpointError if the file cannot be read.
    """
    try:
        status = path.stat()
        key, state = str(path.resolve()), [status.st_size, status.st_mtime_ns]
    except OSError:
        return file_contents(path)
    kept = _read().get(key)
    if (found := _contents(kept, state)) is not None:
        return found
    contents = file_contents(path)
    table = _read()  # another program may have added to it meanwhile
    table.pop(key, None)
    table[key] = {"state": state, "sha256": contents.sha256, "nonfinite": dict(contents.nonfinite)}
    newest = dict(list(table.items())[-_MOST:])
    with contextlib.suppress(WriteError):
        write_text(cache_file(), json.dumps(newest))
    return contents


def _contents(kept: Any, state: list[int]) -> Contents | None:
    """What the cache has of a file in this state, if that is sound."""
    if not isinstance(kept, dict) or kept.get("state") != state:
        return None
    sha256, nonfinite = kept.get("sha256"), kept.get("nonfinite")
    if not isinstance(sha256, str) or not isinstance(nonfinite, dict):
        return None
    return Contents(sha256, {str(key): str(what) for key, what in nonfinite.items()})


def _read() -> dict[str, Any]:
    try:
        table = json.loads(cache_file().read_text(encoding="utf-8"))
    except NOT_JSON:
        return {}
    return table if isinstance(table, dict) else {}
