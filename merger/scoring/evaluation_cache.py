"""Evaluations kept on disk, so that an interrupted selection of the winner continues where it was."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark.evaluate.runner import Evaluation, tags_asked
from benchmark.prompts.prompt_set import Prompt, fingerprint
from benchmark.writing import write_arrays
from merger.scoring.reward_hacking import THUMBNAIL_NUMBERS, THUMBNAILS
from merger.search.trials import TrialRecord
from merger.weights import Weights, as_json

_DAMAGED = (
    *(OSError, ValueError, KeyError, TypeError, EOFError, MemoryError, NotImplementedError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)
"""What NumPy and its reader of archives raise of a file that is cut off, damaged, or not one of these."""


_NEAR = 1e-3  # as far as a tagger's answer may lie beyond 0 and 1


class EvaluationCache:
    """Evaluations of blends on some prompt sets by some taggers, one file each.

    A file's name is made of the blend, the prompts and the taggers. A file that is damaged, or holds something else,
    counts as missing: its images are drawn again. prompts: by the name of their set. taggers: {role: fingerprint}.
    """

    def __init__(self, folder: Path, prompts: Mapping[str, Sequence[Prompt]], taggers: Mapping[str, str]) -> None:
        self.folder, self.prompts, self.taggers = folder, prompts, dict(taggers)

    def path(self, which: str, weights: Weights) -> Path:
        """Where the evaluation of a blend on a prompt set is kept."""
        parts = [fingerprint(self.prompts[which]), self.taggers, as_json(weights)]
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / f"{which}-{key}.npz"

    def get(self, which: str, weights: Weights) -> Evaluation | None:
        """A kept evaluation, or None."""
        path = self.path(which, weights)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                kept = {name: archive[name] for name in archive.files}
        except _DAMAGED:
            return None
        prompts = tuple(self.prompts[which])
        if not _sound(kept, prompts, tuple(self.taggers)):
            return None
        return Evaluation(
            prompts=prompts,
            tags=tuple(kept["tags"].tolist()),
            probabilities={tagger: kept[f"probabilities_{tagger}"] for tagger in self.taggers},
            broken_images=kept["broken"],
            digests=kept["digests"],
            seconds=float(kept["seconds"]),
            images=kept.get("images"),
            features={THUMBNAILS: kept["thumbnails"]} if "thumbnails" in kept else {},
        )

    def put(self, which: str, weights: Weights, evaluation: Evaluation) -> None:
        """Keeps an evaluation. Its file appears whole or not at all."""
        path = self.path(which, weights)
        arrays: dict[str, Any] = {f"probabilities_{name}": p for name, p in evaluation.probabilities.items()}
        arrays |= {"tags": np.array(evaluation.tags), "seconds": np.array(evaluation.seconds)}
        arrays |= {"broken": evaluation.broken_images, "digests": evaluation.digests}
        if evaluation.images is not None:
            arrays["images"] = evaluation.images
        arrays |= evaluation.features
        write_arrays(path, arrays)


def _sound(kept: Mapping[str, NDArray[Any]], prompts: Sequence[Prompt], taggers: Sequence[str]) -> bool:
    """Whether these arrays are what `put` wrote of these prompts and taggers: names, tags, shapes, types, ranges."""
    count, tags = len(prompts), tags_asked(prompts)
    shapes = {"tags": ("U", (len(tags),)), "seconds": ("f", ()), "broken": ("b", (count,)), "digests": ("i", (count,))}
    shapes |= {f"probabilities_{name}": ("f", (count, len(tags))) for name in taggers}
    if any(name not in kept or (kept[name].dtype.kind, kept[name].shape) != shapes[name] for name in shapes):
        return False
    if tuple(kept["tags"].tolist()) != tags or not 0 <= kept["seconds"] < math.inf:
        return False
    if not all(np.all((kept[name] >= -_NEAR) & (kept[name] <= 1 + _NEAR)) for name in shapes if name[:5] == "proba"):
        return False
    images, thumbnails = kept.get("images"), kept.get("thumbnails")
    return (
        images is None or (images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3 and images.size > 0)
    ) and (thumbnails is None or (thumbnails.dtype.kind == "f" and thumbnails.shape == (count, THUMBNAIL_NUMBERS)))


def spent_on(records: Sequence[TrialRecord], folder: Path) -> dict[str, Any]:
    """`images_drawn` and `seconds` of a search so far: of its trials, and of all evaluations kept in `folder`.

    What a run's status, result and page say. An evaluation that was made before a search went on counts as well.
    """
    images, seconds = sum(record.score.images for record in records), [record.score.seconds for record in records]
    for path in sorted(folder.glob("*.npz")):
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                count, took = len(kept["broken"]), float(kept["seconds"])
            if not 0 <= took < math.inf:
                continue
        except _DAMAGED:
            continue
        images += count
        seconds.append(took)
    return {"images_drawn": images, "seconds": round(math.fsum(seconds), 1)}
