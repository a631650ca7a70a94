"""The selection of the winner on validation prompts, and what is true of it on test prompts that nothing is chosen on.

The search prompts choose the finalists. The validation prompts choose the winner and the best parent. The test prompts
choose nothing: they are used once, for the table.

What is written (`Selection.result`, the file result.json):

    study, stopped_because, trials      the study's name, why the search ended, how many trials are finished
    images_drawn, seconds               of all trials and evaluations
    models                              winner first, then by accuracy, each on the test prompts: name, role, accuracy
                                        (recall of the tags asked for) with its 95 % interval, the same by the judge
                                        (judge_accuracy, judge_interval; null without one), accuracy by category
    winner                              trial, role, name (of a baseline), weights {layer: {donor: weight}}; means of
                                        weights by channel, which are in the file weights_file beside this one
    finalists                           each on the validation prompts: trial, role, name, passed_over (reasons),
                                        below_floor ({tag or category: by how much}) and the keys of
                                        `merger.scoring.reward_hacking.as_row`
    paired_difference_to_best_parent    winner - best parent on the test prompts, by tagger and judge: mean, interval
    gains_and_losses                    of the winner against the best parent on the test prompts, by tag and category:
                                        see `merger.scoring.gains_and_losses`
    best_parent                         the base or donor of the highest accuracy on the validation prompts
    next_parent                         how far it was ahead of the next one there: name, mean, interval (null if there
                                        is no other)
    validation_prompts, test_prompts    how many there were
    recommended                         the winner (`trial N`) or the best parent
    optimism                            see `_optimism`
    searches                            several gradient searches and what was made of them: see
                                        `merger.scoring.several_searches`; null for one
    importance                          of a gradient search, where its gain came from: steps, searches, gain, stderr,
                                        donors {donor: [gain, stderr]}, rows {layers: {donor: [gain, stderr]}}; null
                                        with too few steps: see `merger.search.importance`
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmark.evaluate.runner import Evaluation
from benchmark.evaluate.scores import Estimate, paired_difference
from merger.scoring.floors import Floors
from merger.scoring.gains_and_losses import gains_and_losses
from merger.scoring.objective import JUDGE, TAGGER
from merger.scoring.reward_hacking import as_row, objections, signs_of
from merger.scoring.several_searches import latest_mixtures
from merger.search.baselines import Baseline
from merger.search.trials import BELOW_FLOOR, TrialRecord, candidates, distinct_best
from merger.weights import Weights, key_of, means

FINALISTS = 5
SHOWN = 8
"""Images of each model that are kept for samples and report."""

Evaluate = Callable[[str, Weights], Evaluation]
"""`evaluate("validation" or "test", weights)`"""

Expect = Callable[[str, Sequence[tuple[str, Weights]]], None]
"""`expect("validation" or "test", [(name, weights), ...])`"""


@dataclass(frozen=True)
class Selection:
    """What the selection found. tests: the test evaluation of every model, by name. result: what is written."""

    result: dict[str, Any]
    winner: TrialRecord
    best_parent: Baseline
    tests: Mapping[str, Evaluation]


def finalists_of(records: Sequence[TrialRecord], count: int = FINALISTS) -> list[TrialRecord]:
    """The best distinct trials that are not parents, those that break a floor last; parents if no others were tried.

    And, after them, the average of several searches and its strengths: the validation prompts choose the strength.
    """
    blends = [record for record in candidates(records) if record.role not in ("base", "donor")]
    below = [record for record in blends if record.score.attributes.get(BELOW_FLOOR)]
    kept = [record for record in blends or records if not record.score.attributes.get(BELOW_FLOOR)]
    chosen = [*distinct_best(kept, count), *distinct_best(below, count)][:count]
    for record in latest_mixtures(records):
        if all(record.weights != other.weights for other in chosen):
            chosen.append(record)
    return chosen


def select_winner(
    records: Sequence[TrialRecord],
    baselines: Sequence[Baseline],
    evaluate: Evaluate,
    *,
    thresholds: Mapping[str, float],
    category_of: Callable[[str], str],
    name: str,
    stopped_because: str,
    floors: Floors | None = None,
    say: Callable[[str], None] = lambda line: None,
    expect: Expect = lambda which, models: None,
) -> Selection:
    """Chooses the winner and the best parent on validation prompts, then scores all models on test prompts.

    A finalist that seems to exploit the tagger (`merger.scoring.reward_hacking`) is passed over, and `say` gets the
    reason. If all do, the best of them is still the winner, but the best parent is recommended. A finalist that breaks
    one of the `floors` ranks below all that do not. thresholds: by role, as `Evaluation.probabilities`. name: the
    study's. expect: is told, before the evaluations on a prompt set, which models they are of.
    """
    evaluated = _Evaluated(evaluate)
    chosen = _choose(records, baselines, evaluated, thresholds[TAGGER], floors, say, expect)
    winner, best_parent, label = chosen.winner, chosen.best_parent, f"trial {chosen.winner.number}"
    expect("test", [*((baseline.name, baseline.weights) for baseline in baselines), (label, winner.weights)])
    tests = {baseline.name: evaluated("test", baseline.weights) for baseline in baselines}
    tests[label] = evaluated("test", winner.weights)
    roles = {baseline.name: baseline.role for baseline in baselines} | {label: "winner"}
    models = [_model(model, roles[model], test, thresholds, category_of) for model, test in tests.items()]
    models.sort(key=lambda model: (model["role"] != "winner", -model["accuracy"]))
    difference = {
        role: _interval(
            paired_difference(
                tests[label].tally(role, thresholds[role]), tests[best_parent.name].tally(role, thresholds[role])
            )
        )
        for role in tests[label].probabilities
    }
    shown = difference[TAGGER]["interval"][0] > 0 and not chosen.against[winner.number]
    result = {
        "study": name,
        "stopped_because": stopped_because,
        "trials": len(records),
        "images_drawn": sum(record.score.images for record in records) + evaluated.images,
        "seconds": round(math.fsum([*(record.score.seconds for record in records), *evaluated.seconds]), 1),
        "models": models,
        "winner": {
            "trial": winner.number,
            "role": winner.role,
            "name": winner.name,
            "weights": means(winner.weights),
        },
        "finalists": [
            {"trial": trial.number, "role": trial.role, "name": trial.name, "passed_over": chosen.against[trial.number]}
            | {BELOW_FLOOR: chosen.below[trial.number]}
            | as_row(signs_of(chosen.finalists[trial.number], thresholds[TAGGER]))
            for trial in finalists_of(records)
        ],
        "paired_difference_to_best_parent": difference,
        "gains_and_losses": gains_and_losses(tests[label], tests[best_parent.name], thresholds, category_of),
        "best_parent": best_parent.name,
        "next_parent": _next_parent(best_parent.name, chosen.parents, thresholds[TAGGER]),
        "validation_prompts": len(chosen.parents[best_parent.name].prompts),
        "test_prompts": len(tests[label].prompts),
        "recommended": label if shown else best_parent.name,
        "optimism": _optimism(records, chosen, thresholds[TAGGER]),
    }
    return Selection(_plain(result), winner, best_parent, tests)


class _Evaluated:
    """`evaluate`, once for every blend and prompt set: two names may be one blend (a soup of one parent)."""

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self._made: dict[str, Evaluation] = {}

    def __call__(self, which: str, weights: Weights) -> Evaluation:
        key = which + key_of(weights)
        if key not in self._made:
            self._made[key] = self._evaluate(which, weights)
        return self._made[key]

    @property
    def images(self) -> int:
        """How many images were generated."""
        return sum(len(evaluation.prompts) for evaluation in self._made.values())

    @property
    def seconds(self) -> list[float]:
        """How long each evaluation took."""
        return [evaluation.seconds for evaluation in self._made.values()]


@dataclass(frozen=True)
class _Chosen:
    """What the validation prompts decide.

    By trial number: finalists, against (objections), below (floors that are broken). parents: by name.
    """

    winner: TrialRecord
    best_parent: Baseline
    finalists: Mapping[int, Evaluation]
    parents: Mapping[str, Evaluation]
    against: Mapping[int, list[str]]
    below: Mapping[int, dict[str, float]]


def _choose(
    records: Sequence[TrialRecord],
    baselines: Sequence[Baseline],
    evaluated: Evaluate,
    threshold: float,
    floors: Floors | None,
    say: Callable[[str], None],
    expect: Expect,
) -> _Chosen:
    trials = finalists_of(records)
    parents_of = [(baseline.name, baseline.weights) for baseline in baselines if baseline.role in ("base", "donor")]
    expect("validation", [*((trial.title, trial.weights) for trial in trials), *parents_of])
    finalists = {trial.number: evaluated("validation", trial.weights) for trial in trials}
    candidates = [baseline for baseline in baselines if baseline.role in ("base", "donor")]
    parents = {parent.name: evaluated("validation", parent.weights) for parent in candidates}
    best_parent = max(candidates, key=lambda parent: _merit(parents[parent.name], threshold))
    against = {}
    for trial in trials:
        best = parents[best_parent.name]
        against[trial.number] = objections(finalists[trial.number], [*parents.values()], best, threshold)
        for reason in against[trial.number]:
            say(f"{trial.label} is passed over: {reason}")
    honest = [trial for trial in trials if not against[trial.number]]
    base = next(parents[each.name] for each in candidates if each.role == "base")
    below = {
        trial.number: floors.broken(finalists[trial.number], base, TAGGER) if floors is not None else {}
        for trial in trials
    }
    for trial in trials:
        if below[trial.number]:
            lost = ", ".join(f"{name} by {much:.2f}" for name, much in below[trial.number].items())
            say(f"{trial.label} is below the floor, in mean log probability: {lost}")
    winner = max(
        honest or trials, key=lambda trial: (not below[trial.number], _merit(finalists[trial.number], threshold))
    )
    return _Chosen(winner, best_parent, finalists, parents, against, below)


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


def _merit(evaluation: Evaluation, threshold: float) -> tuple[float, float]:
    """What a choice on validation prompts goes by: the accuracy, and among equals the mean probability."""
    return evaluation.accuracy(TAGGER, threshold).value, evaluation.mean_probability(TAGGER).value


def _next_parent(best: str, validated: Mapping[str, Evaluation], threshold: float) -> dict[str, Any] | None:
    """How far the best parent was ahead of the next one, paired by prompt; None if there is no other."""
    others = [name for name in validated if name != best]
    if not others:
        return None
    second = max(others, key=lambda name: _merit(validated[name], threshold))
    tallies = (validated[name].tally(TAGGER, threshold) for name in (best, second))
    return {"name": second, **_interval(paired_difference(*tallies))}


def _interval(estimate: Estimate) -> dict[str, Any]:
    return {"mean": estimate.value, "interval": [estimate.low, estimate.high]}


def _optimism(records: Sequence[TrialRecord], chosen: _Chosen, threshold: float) -> dict[str, Any] | None:
    """How much of the best observed trial's gain over the best parent is absent on fresh (validation) prompts.

    None if the best parent is not among the trials.
    """
    parent = chosen.best_parent.name
    before = next((record for record in records if record.name == parent), None)
    if before is None:
        return None
    observed = finalists_of(records)[0]
    fresh_accuracy = chosen.finalists[observed.number].accuracy(TAGGER, threshold).value
    observed_gain = observed.score.accuracy - before.score.accuracy
    fresh_gain = fresh_accuracy - chosen.parents[parent].accuracy(TAGGER, threshold).value
    return {
        "trial": observed.number,
        "observed_accuracy": observed.score.accuracy,
        "fresh_accuracy": fresh_accuracy,
        "observed_gain": observed_gain,
        "fresh_gain": fresh_gain,
        "optimism": observed_gain - fresh_gain,
    }


def _plain(value: Any) -> Any:
    """`value` as JSON takes it: floats rounded to six digits (but not weights), and None for NaN and infinities."""
    if isinstance(value, dict):
        return {key: item if key == "weights" else _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
