"""Arrays of a study that are too large for its database: wide blends and Adam's state. Optuna's artifact stores.

An array is kept under the SHA-256 of its bytes, so that equal arrays are one artifact, and so that damage shows. It is
whole on the disk before a row of the study names it: a search that is killed leaves no row without its array.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from benchmark.writing import whole_or_nothing
from merger.errors import StudyError
from merger.weights import Weight, Weights

ARTIFACT = "artifact"
"""The key under which an attribute of a trial names an artifact."""

AT_HAND = 4
"""Blends that stay in memory after they were read."""


class _WholeFiles(FileSystemArtifactStore):
    """Optuna's store of files in a folder, whose files appear whole and are on the disk when `write` returns."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Writes one artifact. Raises `WriteError` if the disk refuses."""
        with whole_or_nothing(self.folder / artifact_id) as partial, partial.open("wb") as file:
            file.write(content_body.read())
            file.flush()
            os.fsync(file.fileno())


class _InMemory:
    """An artifact store for studies that need no disk."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """The bytes of an artifact."""
        if artifact_id not in self._kept:
            raise ArtifactNotFound("not found")
        return io.BytesIO(self._kept[artifact_id])

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Keeps an artifact."""
        self._kept[artifact_id] = content_body.read()

    def remove(self, artifact_id: str) -> None:
        """Forgets an artifact."""
        del self._kept[artifact_id]


class Artifacts:
    """Arrays of float32 by name. folder: where their files lie; None keeps them in memory."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._store: Any = _InMemory() if folder is None else _WholeFiles(folder)

    def put(self, array: NDArray[Any]) -> str:
        """Keeps an array, rounded to float32, and returns its name. Raises `WriteError` if the disk refuses."""
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(array, dtype="<f4"), allow_pickle=False)
        content = buffer.getvalue()
        name = f"{hashlib.sha256(content).hexdigest()}.npy"
        if self._content(name) != content:
            self._store.write(name, io.BytesIO(content))
        return name

    def get(self, name: str) -> NDArray[np.float32]:
        """The array of this name, read-only. Raises `StudyError` if it is missing or damaged."""
        content = self._content(name)
        where = name if self.folder is None else self.folder / name
        if content is None:
            raise StudyError(f"{where}: an array of this study is missing. Put it back, with all others of its folder.")
        if f"{hashlib.sha256(content).hexdigest()}.npy" != name:
            raise StudyError(f"{where}: is damaged. Put back a copy of it, if there is one.")
        array = np.load(io.BytesIO(content), allow_pickle=False)
        array.flags.writeable = False
        return array

    def drop(self, name: str) -> None:
        """Removes an array, if it is there."""
        try:
            self._store.remove(name)
        except (ArtifactNotFound, KeyError):
            return

    def _content(self, name: str) -> bytes | None:
        try:
            with self._store.open_reader(name) as file:
                return bytes(file.read())
        except (ArtifactNotFound, ValueError, OSError):
            return None


class StoredWeights(Mapping[str, Mapping[str, Weight]]):
    """The weights of a wide blend, read from their artifact when they are looked at. See `merger.weights.Weights`.

    Equal artifacts are equal blends, which is known without reading them.
    """

    def __init__(self, name: str, read: Callable[[str], Weights]) -> None:
        self.name, self._read = name, read

    def __getitem__(self, layer: str) -> Mapping[str, Weight]:
        return self._read(self.name)[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read(self.name))

    def __len__(self) -> int:
        return len(self._read(self.name))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StoredWeights):
            return self.name == other.name
        return isinstance(other, Mapping) and dict(self._read(self.name)) == dict(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"StoredWeights({self.name})"


class Blends:
    """Wide blends out of their artifacts; the last few that were read stay in memory.

    make: weights from the array [F] of a blend.
    """

    def __init__(self, artifacts: Artifacts, make: Callable[[NDArray[np.float32]], Weights]) -> None:
        self._artifacts, self._make = artifacts, make
        self._at_hand: OrderedDict[str, Weights] = OrderedDict()

    def stored(self, name: str) -> StoredWeights:
        """The blend of this name, not yet read."""
        return StoredWeights(name, self._weights)

    def _weights(self, name: str) -> Weights:
        if name not in self._at_hand:
            self._at_hand[name] = self._make(self._artifacts.get(name))
            if len(self._at_hand) > AT_HAND:
                self._at_hand.popitem(last=False)
        self._at_hand.move_to_end(name)
        return self._at_hand[name]
