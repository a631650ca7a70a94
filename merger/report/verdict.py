"""The verdict of a finished search, in sentences: what was shown, what was lost, and what the choices rest on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmark.metrics.changes import FEWEST_PROMPTS
from merger.report.gains_and_losses import loss_sentence
from merger.scoring.objective import JUDGE, TAGGER


def verdict(result: Mapping[str, Any]) -> str:
    """What the table means. Tags that the winner loses beyond chance are named, whatever it gains in the mean."""
    parent, named = result["best_parent"], result["winner"].get("name")
    trial = f"trial {result['winner']['trial']}" + (f", {named}" if named else "")
    finalists = result.get("finalists", ())
    advice = advice_of(result)
    if finalists and all(finalist["passed_over"] for finalist in finalists):
        return f"Every finalist seems to exploit the tagger, the winner ({trial}) too: {advice}"
    found = result["paired_difference_to_best_parent"]
    mean, (low, _) = found[TAGGER]["mean"], found[TAGGER]["interval"]
    losses = loss_sentence(result)
    if result.get("test_prompts", FEWEST_PROMPTS) < FEWEST_PROMPTS:
        count = result["test_prompts"]
        said = f"{count} test prompts are too few to tell whether the winner ({trial}) beats the best parent ({parent})"
        return _joined(f"{said}: {advice}", losses)
    if low is not None and low > 0:
        said = f"The winner ({trial}) beats the best parent ({parent})"
        judge = found.get(JUDGE)
        if judge and (judge["interval"][0] is None or judge["interval"][0] <= 0):
            return _joined(f"{said} by the tagger; the judge does not confirm it.", losses)
        return _joined(f"{said}.", losses)
    if mean > 0:
        return _joined(f"It is not shown that the winner ({trial}) beats the best parent ({parent}): {advice}", losses)
    return _joined(f"The winner ({trial}) does not beat the best parent ({parent}): {advice}", losses)


def advice_of(result: Mapping[str, Any]) -> str:
    """Which parent to use. Parents are compared on validation prompts, and other prompts may order them otherwise."""
    parent = result["best_parent"]
    parents = [model for model in result["models"] if model["role"] in ("base", "donor")]
    best = max(parents, key=lambda model: model["accuracy"], default=None)
    own = next((model for model in parents if model["name"] == parent), None)
    if best is None or own is None or best["accuracy"] <= own["accuracy"]:
        return f"use {parent}."
    return (
        f"use a parent. {parent} was the best of them on the {_count(result, 'validation')}, which choose, and "
        f"{best['name']} is on the {_count(result, 'test')} of the table{_undecided(result)}."
    )


def choice_line(result: Mapping[str, Any]) -> str:
    """What chose the winner and the best parent; the table chooses nothing."""
    return (
        f"The {_count(result, 'validation')} chose the winner and the best parent ({result['best_parent']}); the table "
        f"is of the {_count(result, 'test')}, which choose nothing."
    )


def _undecided(result: Mapping[str, Any]) -> str:
    """A remark if the validation prompts do not tell the two best parents apart; '' if they do."""
    found = result.get("next_parent")
    if found is None or (found["interval"][0] is not None and found["interval"][0] > 0):
        return ""
    return f"; the validation prompts are too few to tell {result['best_parent']} from {found['name']}"


def _count(result: Mapping[str, Any], which: str) -> str:
    """`128 validation prompts`; without the number in results of earlier versions."""
    count = result.get(f"{which}_prompts")
    return f"{count} {which} prompts" if count else f"{which} prompts"


def _joined(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)
