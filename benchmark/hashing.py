"""SHA-256 fingerprints of files, of models, and of several fingerprints together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

_DECIDING = {".safetensors", ".json", ".txt", ".model"}  # of a model's folder: weights, configurations, tokenizers


def files_fingerprint(files: Sequence[Path]) -> str:
    """SHA-256 over the names, sizes and contents of files, in their order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def model_fingerprint(path: Path) -> str:
    """SHA-256 of a model: of the file, or of every weight, configuration and tokenizer file of a folder."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file_path in sorted(path.rglob("*")):
        if file_path.is_file() and file_path.suffix in _DECIDING:
            with file_path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{file_path.relative_to(path).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def joint_fingerprint(parts: Sequence[str]) -> str:
    """One SHA-256 for several, in their order."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
