"""Whether the files of a blend's sources stay what they were while a search runs, which takes hours.

A file that is replaced leaves the search with the old one, and its recipe would name the new one; a file that is
overwritten in place changes under the search's hands, as its tensors are memory-mapped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from merger.checkpoints.checkpoint import Checkpoint
from merger.checkpoints.hashing import file_sha256
from merger.errors import CheckpointError

P = ParamSpec("P")
R = TypeVar("R")


class SourceWatch:
    """Notes the weight files of some checkpoints, and says later whether they are still the same.

    advice: a sentence that ends the message. Looking costs next to nothing: a file is hashed again only if its size,
    times or inode differ from what was noted, so a file that was merely touched counts as the same.
    """

    def __init__(self, sources: Sequence[Checkpoint], advice: str = "") -> None:
        files = dict.fromkeys(file for source in sources for file in source.weight_files)
        self._states = {file: _state(file.stat()) for file in files}
        self._hashes = {file: file_sha256(file) for file in files}
        self._advice = f" {advice}" if advice else ""

    def check(self) -> None:
        """Raise CheckpointError, in one line, if a file is gone or its bytes are no longer the same."""
        for file, before in self._states.items():
            try:
                now = _state(file.stat())
            except OSError:
                raise CheckpointError(f"{file}: is gone since the search began.{self._advice}") from None
            if now == before:
                continue
            if file_sha256(file) != self._hashes[file]:
                raise CheckpointError(
                    f"{file}: changed since the search began: its SHA-256 began {self._hashes[file][:12]}, "
                    f"now {file_sha256(file)[:12]}.{self._advice}"
                )
            self._states[file] = now

    def around(self, call: Callable[P, R]) -> Callable[P, R]:
        """The same function, with a check before it and one before its result is handed on."""

        def watched(*args: P.args, **kwargs: P.kwargs) -> R:
            self.check()
            result = call(*args, **kwargs)
            self.check()
            return result

        return watched


def _state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
