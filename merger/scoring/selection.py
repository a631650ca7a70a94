"""The honest end: who wins on validation prompts, and what is true of it on test prompts that nothing was chosen on.

Search prompts choose the finalists, validation prompts choose the winner and the best parent, test prompts choose
nothing: they are drawn once for the table.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.evaluate.runner import Evaluation
from benchmark.evaluate.scores import Estimate, paired_difference
from benchmark.prompts.prompt_set import Prompt, fingerprint
from benchmark.writing import write_arrays
from merger.scoring.objective import JUDGE, TAGGER
from merger.scoring.reward_hacking import THUMBNAILS, as_row, looks_of, objections
from merger.search.baselines import Baseline
from merger.search.space import Weights
from merger.search.trials import TrialRecord, candidates, distinct_best

FINALISTS = 5
SHOWN = 8
"""Images of each model kept for samples and report."""

Evaluate = Callable[[str, Weights], Evaluation]
"""`evaluate("validation" or "test", weights)`"""


@dataclass(frozen=True)
class Ending:
    """What the end found out. `tests` holds a test evaluation by model name; `result` is what is written."""

    result: dict[str, Any]
    winner: TrialRecord
    best_parent: Baseline
    tests: Mapping[str, Evaluation]


def finalists_of(records: Sequence[TrialRecord], count: int = FINALISTS) -> list[TrialRecord]:
    """The best distinct trials that are no parents; all the best, where only parents were tried."""
    blends = [record for record in candidates(records) if record.role not in ("base", "donor")]
    return distinct_best(blends or records, count)


def conclude(
    records: Sequence[TrialRecord],
    baselines: Sequence[Baseline],
    evaluate: Evaluate,
    *,
    thresholds: Mapping[str, float],
    category_of: Callable[[str], str],
    name: str,
    stopped_because: str,
    say: Callable[[str], None] = lambda line: None,
) -> Ending:
    """Chooses the winner and the best parent on validation prompts, then scores all on test prompts.

    A finalist that seems to fool the tagger (`merger.scoring.reward_hacking`) is passed over, which `say` is told; where all do, the
    best of them is named all the same, but its parent recommended.
    """
    threshold = thresholds[TAGGER]
    drawn: dict[str, Evaluation] = {}  # blends may be the same: a soup of one is its parent

    def once(which: str, weights: Weights) -> Evaluation:
        key = which + json.dumps({layer: dict(row) for layer, row in weights.items()}, sort_keys=True)
        if key not in drawn:
            drawn[key] = evaluate(which, weights)
        return drawn[key]

    def merit(evaluation: Evaluation) -> tuple[float, float]:
        return evaluation.accuracy(TAGGER, threshold).value, evaluation.mean_probability(TAGGER).value

    finalists = finalists_of(records)
    parents = [baseline for baseline in baselines if baseline.role in ("base", "donor")]
    validated = {trial.number: once("validation", trial.weights) for trial in finalists}
    parents_validated = {parent.name: once("validation", parent.weights) for parent in parents}
    best_parent = max(parents, key=lambda parent: merit(parents_validated[parent.name]))
    against = {
        trial.number: objections(
            validated[trial.number], [*parents_validated.values()], parents_validated[best_parent.name], threshold
        )
        for trial in finalists
    }
    for trial in finalists:
        for reason in against[trial.number]:
            say(f"{trial.label} is passed over: {reason}")
    honest = [trial for trial in finalists if not against[trial.number]]
    winner = max(honest or finalists, key=lambda trial: merit(validated[trial.number]))
    label = f"trial {winner.number}"
    tests = {baseline.name: once("test", baseline.weights) for baseline in baselines}
    tests[label] = once("test", winner.weights)
    roles = {baseline.name: baseline.role for baseline in baselines} | {label: "winner"}
    models = [_model(model, roles[model], test, thresholds, category_of) for model, test in tests.items()]
    models.sort(key=lambda model: (model["role"] != "winner", -model["accuracy"]))
    difference = {
        tagger: _interval(
            paired_difference(
                tests[label].tally(tagger, thresholds[tagger]),
                tests[best_parent.name].tally(tagger, thresholds[tagger]),
            )
        )
        for tagger in tests[label].probabilities
    }
    result = {
        "study": name,
        "stopped_because": stopped_because,
        "trials": len(records),
        "images_drawn": sum(r.score.images for r in records) + sum(len(e.prompts) for e in drawn.values()),
        "seconds": round(math.fsum([r.score.seconds for r in records] + [e.seconds for e in drawn.values()]), 1),
        "models": models,
        "winner": {
            "trial": winner.number,
            "role": winner.role,
            "name": winner.name,
            "weights": {k: dict(row) for k, row in winner.weights.items()},
        },
        "finalists": [
            {"trial": trial.number, "role": trial.role, "name": trial.name, "passed_over": against[trial.number]}
            | as_row(looks_of(validated[trial.number], threshold))
            for trial in finalists
        ],
        "paired_difference_to_best_parent": difference,
        "best_parent": best_parent.name,
        "recommended": label if honest and difference[TAGGER]["interval"][0] > 0 else best_parent.name,
        "luck": _luck(
            records, finalists[0], validated[finalists[0].number], best_parent, parents_validated, thresholds
        ),
    }
    return Ending(_plain(result), winner, best_parent, tests)


def _model(
    name: str, role: str, test: Evaluation, thresholds: Mapping[str, float], category_of: Callable[[str], str]
) -> dict[str, Any]:
    accuracy = test.accuracy(TAGGER, thresholds[TAGGER])
    judged = test.accuracy(JUDGE, thresholds[JUDGE]) if JUDGE in test.probabilities else None
    categories = test.per_category(TAGGER, category_of, thresholds[TAGGER])
    return {
        "name": name,
        "role": role,
        "accuracy": accuracy.value,
        "interval": [accuracy.low, accuracy.high],
        "judge_accuracy": judged.value if judged else None,
        "judge_interval": [judged.low, judged.high] if judged else None,
        "categories": {category: estimate.value for category, estimate in categories.items()},
    }


def _interval(estimate: Estimate) -> dict[str, Any]:
    return {"mean": estimate.value, "interval": [estimate.low, estimate.high]}


def _luck(
    records: Sequence[TrialRecord],
    observed: TrialRecord,
    fresh: Evaluation,
    parent: Baseline,
    parents_fresh: Mapping[str, Evaluation],
    thresholds: Mapping[str, float],
) -> dict[str, Any] | None:
    """How much of the best observed trial's gain over the best parent was not there on fresh (validation) prompts."""
    before = next((record for record in records if record.name == parent.name), None)
    if before is None:
        return None

    def accuracy(evaluation: Evaluation) -> float:
        return evaluation.accuracy(TAGGER, thresholds[TAGGER]).value

    observed_gain = observed.score.accuracy - before.score.accuracy
    fresh_gain = accuracy(fresh) - accuracy(parents_fresh[parent.name])
    return {
        "trial": observed.number,
        "observed_accuracy": observed.score.accuracy,
        "fresh_accuracy": accuracy(fresh),
        "observed_gain": observed_gain,
        "fresh_gain": fresh_gain,
        "luck": observed_gain - fresh_gain,
    }


def _plain(value: Any) -> Any:
    """`value` with floats of six digits (weights whole), and None for what is no number, so that it is JSON."""
    if isinstance(value, dict):
        return {key: item if key == "weights" else _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


class Cache:
    """Evaluations kept on disk: an end that was broken off goes on where it was.

    An entry's name is made of the blend, the prompts and the taggers; a damaged entry is drawn again.
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
        """Keeps an evaluation, whole or not at all."""
        path = self.path(which, weights)
        arrays: dict[str, Any] = {f"probabilities_{name}": p for name, p in evaluation.probabilities.items()}
        arrays |= {"tags": np.array(evaluation.tags), "seconds": np.array(evaluation.seconds)}
        arrays |= {"broken": evaluation.broken_images, "digests": evaluation.digests}
        if evaluation.images is not None:
            arrays["images"] = evaluation.images
        arrays |= evaluation.features
        write_arrays(path, arrays)
