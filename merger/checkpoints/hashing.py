"""SHA-256 of files, computed once per file and process: a search asks for the same gigabytes several times."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from merger.errors import CheckpointError


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex. Raises CheckpointError if it cannot be read."""
    try:
        status = path.stat()
        return _computed(path.resolve(), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None


@functools.cache
def _computed(path: Path, size: int, changed: int) -> str:
    """size, changed: only part of the cache's key, so that another file under the same name is hashed anew."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
