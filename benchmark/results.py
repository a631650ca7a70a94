"""Result rows on disk: one row an image, with the raw probability of every tag. Nothing drawn twice, nothing mixed.

    OUTPUT/rows/NAME-FINGERPRINT/
        about.json       everything that decides the rows: model, settings, prompts, tags, taggers
        part-000000.npz  the rows of one batch, named by the first; while the run is under way
        rows.npz         all rows, once complete

Columns of an .npz: `prompt`, `seed`, `broken`, `digest` (of the pixels), `seconds` (that the image took) [n], and
`probabilities/TAGGER` float32 [n, T]; with an encoder also `embedding` float32 [n, E].
The fingerprint covers all that decides a row, so rows of another model version, tagger, vocabulary or setting have
another folder.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark.encoders import Encoder
from benchmark.errors import InputError
from benchmark.generation import GenerationSettings, ImageGenerator
from benchmark.prompts import Prompt, fingerprint
from benchmark.runner import Batch, Evaluation, score_batches
from benchmark.taggers import Tagger

FORMAT = 1  # of the rows; a change of what they mean needs another number
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Plan:
    """All that decides the rows of one model.

    `taggers`: role -> fingerprint; `tags`: the T columns; `encoder`: its fingerprint, "" for none.
    """

    name: str
    model: str
    settings: GenerationSettings
    prompts: tuple[Prompt, ...]
    tags: tuple[str, ...]
    taggers: Mapping[str, str]
    encoder: str = ""

    def about(self) -> dict[str, Any]:
        """What is written beside the rows, and fingerprinted. The name and the batch size decide nothing."""
        settings = asdict(self.settings)
        del settings["batch_size"]
        return {
            "format": FORMAT,
            "model_sha256": self.model,
            "settings": settings,
            "prompts_sha256": fingerprint(self.prompts),
            "tags": list(self.tags),
            "taggers": dict(sorted(self.taggers.items())),
            "encoder": self.encoder,
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 over `about()`."""
        return hashlib.sha256(json.dumps(self.about(), sort_keys=True).encode()).hexdigest()

    def folder(self, output: Path) -> Path:
        """Where this plan's rows are."""
        return output / "rows" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', self.name)}-{self.fingerprint[:12]}"


class Rows:
    """The rows of one plan, on disk. The folder is made with the first rows."""

    def __init__(self, output: Path, plan: Plan):
        self.plan, self.folder = plan, plan.folder(output)

    @property
    def complete(self) -> bool:
        """Whether every row is there."""
        return (self.folder / "rows.npz").is_file()

    @property
    def done(self) -> int:
        """How many rows are there, from the first on without a gap."""
        return len(self.plan.prompts) if self.complete else sum(len(part["seed"]) for part in self._parts())

    @property
    def batch_size(self) -> int | None:
        """The size of the last batch of an interrupted run, so that the next has the same; None for a fresh one."""
        parts = [] if self.complete else self._parts()
        return len(parts[-1]["seed"]) if parts else None

    def add(self, start: int, batch: Batch) -> None:
        """Keep a batch's rows. `start` is the row of its first image."""
        if not (self.folder / "about.json").is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            about = {
                **self.plan.about(),
                "prompts": [[p.index, p.text, list(p.tags), p.seed] for p in self.plan.prompts],
            }
            _write(self.folder / "about.json", json.dumps(about, indent=1).encode())
        prompts = self.plan.prompts[start : start + len(batch.images)]
        columns: Columns = {
            "prompt": np.array([prompt.index for prompt in prompts], dtype=np.int64),
            "seed": np.array([prompt.seed for prompt in prompts], dtype=np.int64),
            "broken": batch.broken,
            "digest": batch.digests,
            "seconds": np.full(len(prompts), batch.seconds / max(len(prompts), 1), dtype=np.float32),
        }
        columns |= {f"probabilities/{role}": said for role, said in batch.probabilities.items()}
        if batch.embeddings is not None:
            columns["embedding"] = batch.embeddings
        _write_columns(self.folder / f"part-{start:06}.npz", columns)

    def finish(self) -> None:
        """Join the parts. Raises RuntimeError where rows are missing."""
        if self.complete:
            return
        parts = self._parts()
        if sum(len(part["seed"]) for part in parts) != len(self.plan.prompts):
            raise RuntimeError(f"{self.folder}: {self.done} of {len(self.plan.prompts)} rows are there")
        _write_columns(self.folder / "rows.npz", {name: np.concatenate([p[name] for p in parts]) for name in parts[0]})
        for file in self.folder.glob("part-*.npz"):
            file.unlink()

    def evaluation(self) -> Evaluation:
        """The complete rows as an Evaluation (without images). Raises InputError where the file is damaged."""
        columns = _read_columns(self.folder / "rows.npz")
        seeds = np.array([prompt.seed for prompt in self.plan.prompts], dtype=np.int64)
        roles = {f"probabilities/{role}": role for role in self.plan.taggers}
        needed = {"seed", "broken", "digest", "seconds", *roles, *(["embedding"] if self.plan.encoder else [])}
        whole = columns is not None and needed <= columns.keys()
        if columns is None or not whole or not np.array_equal(columns["seed"], seeds):
            raise InputError(
                f"{self.folder / 'rows.npz'}: is damaged. Remove the folder, and its images are drawn again."
            )
        said = {role: columns[name] for name, role in roles.items()}
        return Evaluation(
            self.plan.prompts,
            self.plan.tags,
            said,
            columns["broken"],
            columns["digest"],
            float(columns["seconds"].sum(dtype=np.float64)),
            embeddings=columns.get("embedding"),
        )

    def _parts(self) -> list[Columns]:
        """The readable parts that follow one another from row 0; what follows a gap is drawn again."""
        parts: list[Columns] = []
        row = 0
        while (file := self.folder / f"part-{row:06}.npz").is_file():
            columns = _read_columns(file)
            if columns is None or not len(columns["seed"]):
                break
            parts.append(columns)
            row += len(columns["seed"])
        return parts


def complete_rows(
    rows: Rows,
    open_generator: Callable[[int | None], ImageGenerator],
    taggers: Mapping[str, Tagger],
    progress: Callable[[int, Batch | None], None] | None = None,
    encoder: Encoder | None = None,
) -> Evaluation:
    """Draw and tag what is missing, row by row on disk, and read all of it.

    `open_generator(batch size or None)` is called only where something is missing, so a complete model is not even
    loaded. `progress(rows done, batch)` is called at the start and after each batch. Whatever ends it, the rows so far
    stay, and the next call goes on from there with batches of the same size.
    """
    if not rows.complete:
        start = rows.done
        if progress is not None:
            progress(start, None)
        missing = rows.plan.prompts[start:]
        if missing:
            generator = open_generator(rows.batch_size)
            for batch in score_batches(generator, taggers, missing, rows.plan.tags, encoder):
                rows.add(start + batch.start, batch)
                if progress is not None:
                    progress(start + batch.start + len(batch.images), batch)
        rows.finish()
    return rows.evaluation()


def model_fingerprint(path: Path) -> str:
    """SHA-256 of a model: of the file, or of every weight, configuration and tokenizer file of a folder."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file_path in sorted(path.rglob("*")):
        if file_path.is_file() and file_path.suffix in {".safetensors", ".json", ".txt", ".model"}:
            with file_path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{file_path.relative_to(path).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def joint_fingerprint(parts: Sequence[str]) -> str:
    """One SHA-256 for several, in their order."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _write_columns(path: Path, columns: Columns) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **columns)
    partial.replace(path)


def _read_columns(path: Path) -> Columns | None:
    """The columns; None where the file is no whole .npz."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)
