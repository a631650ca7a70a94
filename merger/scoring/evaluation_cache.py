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

from benchmark.evaluate.runner import Evaluation
from benchmark.prompts.prompt_set import Prompt, fingerprint
from benchmark.writing import write_arrays
from merger.scoring.reward_hacking import THUMBNAILS
from merger.search.space import Weights
from merger.search.trials import TrialRecord

_DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)
"""What NumPy raises of a file that is cut off, damaged, or not one of these."""


class EvaluationCache:
    """Evaluations of blends on some prompt sets by some taggers, one file each.

    A file's name is made of the blend, the prompts and the taggers. A damaged file counts as missing. prompts: by the
    name of their set. taggers: {role: fingerprint}.
    """

    def __init__(self, folder: Path, prompts: Mapping[str, Sequence[Prompt]], taggers: Mapping[str, str]) -> None:
        self.folder, self.prompts, self.taggers = folder, prompts, dict(taggers)

    def path(self, which: str, weights: Weights) -> Path:
        """Where the evaluation of a blend on a prompt set is kept."""
        parts = [fingerprint(self.prompts[which]), self.taggers, {k: dict(row) for k, row in weights.items()}]
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / f"{which}-{key}.npz"

    def get(self, which: str, weights: Weights) -> Evaluation | None:
        """A kept evaluation, or None."""
        path = self.path(which, weights)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                return Evaluation(
                    prompts=tuple(self.prompts[which]),
                    tags=tuple(kept["tags"].tolist()),
                    probabilities={tagger: kept[f"probabilities_{tagger}"] for tagger in self.taggers},
                    broken_images=kept["broken"],
                    digests=kept["digests"],
                    seconds=float(kept["seconds"]),
                    images=kept.get("images"),
                    features={THUMBNAILS: kept["thumbnails"]} if "thumbnails" in kept else {},
                )
        except _DAMAGED:
            return None

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


def spent_on(records: Sequence[TrialRecord], folder: Path) -> dict[str, Any]:
    """`images_drawn` and `seconds` of a search so far: of its trials, and of all evaluations kept in `folder`.

    What a run's status, result and page say. An evaluation that was made before a search went on counts as well.
    """
    images, seconds = sum(record.score.images for record in records), [record.score.seconds for record in records]
    for path in sorted(folder.glob("*.npz")):
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                count, took = len(kept["broken"]), float(kept["seconds"])
        except _DAMAGED:
            continue
        images += count
        seconds.append(took)
    return {"images_drawn": images, "seconds": round(math.fsum(seconds), 1)}
