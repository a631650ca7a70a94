"""Evaluations kept on disk, so that an interrupted selection of the winner continues where it was."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.evaluate.runner import Evaluation
from benchmark.prompts.prompt_set import Prompt, fingerprint
from benchmark.writing import write_arrays
from merger.scoring.reward_hacking import THUMBNAILS
from merger.search.space import Weights


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
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
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
