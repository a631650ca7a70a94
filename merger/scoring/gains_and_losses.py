"""What the winner gained and lost against the best parent on the test prompts, by tag and by category. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmark.evaluate.runner import Evaluation
from benchmark.metrics.changes import FALSE_DISCOVERIES, Change, changes


def gains_and_losses(
    winner: Evaluation, parent: Evaluation, thresholds: Mapping[str, float], category_of: Callable[[str], str]
) -> dict[str, Any]:
    """Plain values, for the result; both evaluations are of the same prompts.

    by_tag, by_category: by the role of every tagger a list, the largest loss first, of name, prompts (that asked for
    it), parent and winner (shares found), difference (paired by prompt) with its 95 % interval, p, q (p adjusted for
    all tags, or categories, of the list) and verdict, as `benchmark.metrics.changes.Change` explains them.
    false_discovery_rate: the expected share of chance among the named gains and losses.
    """

    def rows(key_of: Callable[[str], str]) -> dict[str, list[dict[str, Any]]]:
        return {
            role: [_row(change) for change in changes(winner, parent, role, thresholds[role], key_of)]
            for role in winner.probabilities
        }

    return {
        "by_tag": rows(lambda tag: tag),
        "by_category": rows(category_of),
        "false_discovery_rate": FALSE_DISCOVERIES,
    }


def _row(change: Change) -> dict[str, Any]:
    return {
        "name": change.key,
        "prompts": change.prompts,
        "parent": change.before,
        "winner": change.after,
        "difference": change.difference.value,
        "interval": [change.difference.low, change.difference.high],
        "p": change.p,
        "q": change.q,
        "verdict": change.verdict,
    }
