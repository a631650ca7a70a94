"""Result rows on disk: one row an image, with the raw probability of every tag. No image is drawn twice.

    OUTPUT/rows/NAME-FINGERPRINT/
        about.json       everything that decides the rows: model, settings, prompts, tags, taggers
        part-000000.npz  the rows of one batch, named by the first; while the run is under way
        look-000000.npz  the features of one batch, while features are added to rows that are complete
        rows.npz         all rows, once complete

Columns of an .npz: `prompt`, `seed`, `broken`, `digest` (of the pixels), `seconds` (that the image took) [n], and
`probabilities/TAGGER` float32 [n, T], and `features/ROLE-FINGERPRINT` float32 [n, E] for each extractor (CLIP, ...).
The fingerprint covers all that decides a row, so rows of another model version, tagger, vocabulary or setting have
another folder. Features do not decide what is drawn: their columns are added to existing rows.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import InputError
from benchmark.evaluate.runner import Batch, Evaluation
from benchmark.features.extractor import Features
from benchmark.features.references import read_picture
from benchmark.images import Images, image_digests
from benchmark.pipelines.generation import GenerationSettings
from benchmark.prompts.prompt_set import Prompt, fingerprint
from benchmark.writing import write_arrays, write_text

FORMAT = 2  # of the rows; a change of what they mean needs another number
Columns = dict[str, NDArray[Any]]
_AT_ONCE = 32  # kept images read at a time


@dataclass(frozen=True)
class RowSpec:
    """All that decides the rows of one model.

    `taggers` and `extractors`: role -> fingerprint; `tags`: the T columns.
    """

    name: str
    model: str
    settings: GenerationSettings
    prompts: tuple[Prompt, ...]
    tags: tuple[str, ...]
    taggers: Mapping[str, str]
    extractors: Mapping[str, str] = field(default_factory=dict)

    def about(self) -> dict[str, Any]:
        """What is written beside the rows, and fingerprinted. Name, batch size and extractors decide no row."""
        settings = asdict(self.settings)
        del settings["batch_size"]
        return {
            "format": FORMAT,
            "model_sha256": self.model,
            "settings": settings,
            "prompts_sha256": fingerprint(self.prompts),
            "tags": list(self.tags),
            "taggers": dict(sorted(self.taggers.items())),
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 over `about()`."""
        return hashlib.sha256(json.dumps(self.about(), sort_keys=True).encode()).hexdigest()

    def folder(self, output: Path) -> Path:
        """Where these rows are kept."""
        return output / "rows" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', self.name)}-{self.fingerprint[:12]}"


class Rows:
    """The rows of one spec, on disk. The folder is made with the first rows."""

    def __init__(self, output: Path, spec: RowSpec):
        self.spec, self.folder = spec, spec.folder(output)

    @property
    def complete(self) -> bool:
        """Whether every row is there."""
        return (self.folder / "rows.npz").is_file()

    @property
    def done(self) -> int:
        """How many rows are there, from the first on without a gap."""
        return len(self.spec.prompts) if self.complete else sum(len(part["seed"]) for part in self._parts())

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
                **self.spec.about(),
                "prompts": [[p.index, p.text, list(p.tags), p.seed] for p in self.spec.prompts],
            }
            write_text(self.folder / "about.json", json.dumps(about, indent=1))
        prompts = self.spec.prompts[start : start + len(batch.images)]
        columns: Columns = {
            "prompt": np.array([prompt.index for prompt in prompts], dtype=np.int64),
            "seed": np.array([prompt.seed for prompt in prompts], dtype=np.int64),
            "broken": batch.broken,
            "digest": batch.digests,
            "seconds": np.full(len(prompts), batch.seconds / max(len(prompts), 1), dtype=np.float32),
        }
        columns |= {f"probabilities/{role}": said for role, said in batch.probabilities.items()}
        columns |= self._named(batch.features)
        write_arrays(self.folder / f"part-{start:06}.npz", columns)

    def finish(self) -> None:
        """Join the parts. Raises RuntimeError if rows are missing."""
        if self.complete:
            return
        self._join("part", {})

    def evaluation(self) -> Evaluation:
        """The complete rows as an Evaluation (without images). Raises InputError if the file is damaged."""
        columns = _read_columns(self.folder / "rows.npz")
        roles = {f"probabilities/{role}": role for role in self.spec.taggers}
        extracted = {name: role for role, name in self._feature_columns().items()}
        needed = {"seed", "broken", "digest", "seconds", *roles, *extracted}
        if columns is None or not needed <= columns.keys() or not self._sound(columns, 0, len(self.spec.prompts)):
            raise InputError(
                f"{self.folder / 'rows.npz'}: is damaged. Remove the folder, and its images are drawn again."
            )
        said = {role: columns[name] for name, role in roles.items()}
        return Evaluation(
            self.spec.prompts,
            self.spec.tags,
            said,
            columns["broken"],
            columns["digest"],
            float(columns["seconds"].sum(dtype=np.float64)),
            features={role: columns[name] for name, role in extracted.items()},
        )

    @property
    def missing_features(self) -> list[str]:
        """Roles of extractors whose features these rows, which are complete, lack."""
        columns = _read_columns(self.folder / "rows.npz") or {}
        return [role for role, name in self._feature_columns().items() if name not in columns]

    def add_features(self, start: int, features: Mapping[str, Features]) -> None:
        """Keep the features of the images from row `start` on, beside rows that are complete."""
        count = len(next(iter(features.values())))
        seeds = np.array([prompt.seed for prompt in self.spec.prompts[start : start + count]], dtype=np.int64)
        write_arrays(self.folder / f"look-{start:06}.npz", {"seed": seeds, **self._named(features)})

    def features_done(self, roles: Sequence[str]) -> int:
        """How many rows have the features of all these roles, from the first on."""
        return sum(len(part["seed"]) for part in self._parts("look", roles))

    def finish_features(self, roles: Sequence[str]) -> None:
        """Join the features to the rows. Raises RuntimeError if some are missing."""
        self._join("look", _read_columns(self.folder / "rows.npz") or {}, roles)

    def kept_images(self, start: int) -> Iterator[Images]:
        """The images from row `start` on as they were drawn, a few at a time, up to the first that was not kept so."""
        columns = _read_columns(self.folder / "rows.npz")
        digests = () if columns is None else columns["digest"][start:]
        kept: list[Images] = []
        for row, digest in enumerate(digests, start=start):
            file = self.folder / "images" / f"{row:06}.webp"
            image = read_picture(file) if file.is_file() else None
            if image is None or image_digests(image[None])[0] != digest:  # kept with loss, for the page only
                break
            kept.append(image)
            if len(kept) == _AT_ONCE:
                yield np.stack(kept)
                kept = []
        if kept:
            yield np.stack(kept)

    def _feature_columns(self) -> dict[str, str]:
        """role -> name of its column, which identifies the extractor."""
        return {role: f"features/{role}-{mark[:12]}" for role, mark in self.spec.extractors.items()}

    def _named(self, features: Mapping[str, Features]) -> Columns:
        names = self._feature_columns()
        return {names[role]: values for role, values in features.items()}

    def _join(self, kind: str, columns: Columns, roles: Sequence[str] | None = None) -> None:
        parts = self._parts(kind, roles)
        there = sum(len(part["seed"]) for part in parts)
        if there != len(self.spec.prompts):
            raise RuntimeError(f"{self.folder}: {there} of {len(self.spec.prompts)} rows are there")
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        write_arrays(self.folder / "rows.npz", columns | joined)
        for file in self.folder.glob(f"{kind}-*.npz"):
            file.unlink()

    def _parts(self, kind: str = "part", roles: Sequence[str] | None = None) -> list[Columns]:
        """The readable parts from row 0 up to the first gap, or to the first part that lacks features of `roles`."""
        names = self._feature_columns()
        needed = {"seed", *(names[role] for role in (self.spec.extractors if roles is None else roles))}
        parts: list[Columns] = []
        row = 0
        while (file := self.folder / f"{kind}-{row:06}.npz").is_file():
            columns = _read_columns(file)
            if columns is None or not needed <= columns.keys() or not self._sound(columns, row):
                break
            parts.append({name: columns[name] for name in columns if name in needed or name[:9] != "features/"})
            row += len(columns["seed"])
        return parts

    def _sound(self, columns: Columns, start: int, count: int | None = None) -> bool:
        """Whether these are columns of the rows from `start` on, as `add` keeps them; of `count` rows, if given."""
        seeds = columns["seed"]
        expected = [prompt.seed for prompt in self.spec.prompts[start : start + seeds.size]]
        if not seeds.size or count not in (None, seeds.size) or not np.array_equal(seeds, expected):
            return False
        kinds = {"broken": "b", "digest": "i", "seconds": "f"}
        shapes = {f"probabilities/{role}": (len(self.spec.tags),) for role in self.spec.taggers}
        return all(
            values.shape[:1] == seeds.shape
            and values.dtype.kind == kinds.get(name, "f" if "/" in name else values.dtype.kind)
            and values.shape[1:] == shapes.get(name, values.shape[1:])
            and (not name.startswith("features/") or values.ndim == 2)
            for name, values in columns.items()
        )


def _read_columns(path: Path) -> Columns | None:
    """The columns; None if the file is no whole .npz."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None
