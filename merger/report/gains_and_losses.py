"""Gains and losses by tag and category as words: for the terminal, the page and the verdict.

Results of earlier versions have none, and nothing is said of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmark.metrics.changes import FEWEST_PROMPTS, GAIN, LOSS, TOO_FEW
from merger.scoring.objective import JUDGE, TAGGER

Row = Mapping[str, Any]

_NAMED = 5  # gains or losses in a line of the terminal
_IN_VERDICT = 3


def rows_of(result: Row, what: str, role: str = TAGGER) -> Sequence[Row]:
    """The changes `by_tag` or `by_category` that a tagger sees, the largest loss first; none in earlier results."""
    found: Sequence[Row] = result.get("gains_and_losses", {}).get(what, {}).get(role, ())
    return found


def named(result: Row, what: str, verdict: str, role: str = TAGGER) -> list[Row]:
    """Those that are losses (or gains) beyond chance, the largest first."""
    rows = [row for row in rows_of(result, what, role) if row["verdict"] == verdict]
    return rows if verdict == LOSS else rows[::-1]


def loss_sentence(result: Row) -> str:
    """Which tags the winner loses beyond chance, for the verdict; '' if none."""
    losses = named(result, "by_tag", LOSS)
    if not losses:
        return ""
    judged = {row["name"]: row for row in rows_of(result, "by_tag", JUDGE)}
    words = [_words(row, judged.get(row["name"]), code=True) for row in losses[:_IN_VERDICT]]
    more = len(losses) - len(words)
    tail = f", and {more} more tag{'s' * (more > 1)}" if more else ""
    return f"The winner loses {', '.join(words)}{tail}."


def gain_and_loss_lines(result: Row) -> list[str]:
    """What was gained and lost beyond chance by tag and by category, by each tagger, for the terminal."""
    if "gains_and_losses" not in result:
        return []
    lines = []
    for role in (role for role in (TAGGER, JUDGE) if rows_of(result, "by_tag", role)):
        for verdict, title in ((LOSS, "lost"), (GAIN, "gained")):
            for what in ("tag", "category"):
                rows = named(result, f"by_{what}", verdict, role)
                if rows or verdict == LOSS:
                    lines.append(f"{title} by {what}, by the {role}: {_listed(rows)}")
    rate = result["gains_and_losses"]["false_discovery_rate"]
    lines.append(f"(about {rate:.0%} of the gains and losses that are named are expected to be chance)")
    return lines + too_few_lines(result)


def too_few_lines(result: Row) -> list[str]:
    """The tags that too few test prompts ask for to tell anything; none if there are none."""
    few = [row for row in rows_of(result, "by_tag") if row["verdict"] == TOO_FEW]
    if not few:
        return []
    words = [f"{row['name']} (n = {row['prompts']})" for row in sorted(few, key=lambda row: row["name"])]
    return [f"too few to tell (below {FEWEST_PROMPTS} test prompts): {_cut(words)}"]


def _listed(rows: Sequence[Row]) -> str:
    return _cut([_words(row) for row in rows]) if rows else "nothing beyond chance"


def _cut(words: Sequence[str]) -> str:
    more = len(words) - _NAMED
    return ", ".join(words[:_NAMED]) + (f", and {more} more" if more > 0 else "")


def _words(row: Row, judged: Row | None = None, *, code: bool = False) -> str:
    """`smile: 0.50 -> 0.23 [-0.54, +0.00] (n = 26)`: shares found, and the interval of their difference.

    judged: what the judge saw, if it is to be said. code: as the verdict has it, in one short sentence.
    """
    name = f"`{row['name']}`" if code else row["name"]
    interval = "" if code else f" {_interval(row['interval'])}"
    by_judge = f"; by the judge {judged['parent']:.2f} -> {judged['winner']:.2f}" if judged else ""
    return f"{name}: {row['parent']:.2f} -> {row['winner']:.2f}{interval} (n = {row['prompts']}{by_judge})"


def _interval(bounds: Sequence[float | None]) -> str:
    low, high = ("?" if bound is None else f"{bound:+.2f}" for bound in bounds)
    return f"[{low}, {high}]"
