"""What becomes of several gradient searches of one study: the mean of their ends, and that mean times a number. Pure.

A blend is linear in its weights, so the mean of the weights of several blends is the mean of the blended models: model
soups (Wortsman et al. 2022), here of searches that saw other prompts. What is by chance in each of them shrinks in the
mean, and so does the way from the base. So other strengths of the mean are tried, one after another, each scored like
any other trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

STRONGER = (1.15, 1.3, 1.45)
"""Strengths that are tried in turn while the score rises."""

WEAKER = (0.85, 0.7)
"""Strengths that are tried in turn where the first stronger one is not better."""


@dataclass(frozen=True)
class Mixture:
    """The mean weights of the trials with the numbers `of`, in the order of their searches, times `strength`."""

    of: tuple[int, ...]
    strength: float = 1.0

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Mixture:
        """The mixture that `to_json` gave. Raises KeyError, TypeError or ValueError for something else."""
        return cls(tuple(int(number) for number in stored["of"]), float(stored["strength"]))

    def to_json(self) -> dict[str, Any]:
        """The mixture as plain values."""
        return asdict(self) | {"of": list(self.of)}

    @property
    def name(self) -> str:
        """What to call the blend: `average of 3 searches x 1.15`."""
        what = f"average of {len(self.of)} searches" if len(self.of) > 1 else f"trial {self.of[0]}"
        return what if self.strength == 1 else f"{what} x {self.strength:g}"


def next_strength(tried: Mapping[float, Any]) -> float | None:
    """The strength to try next; None if none is left that promises more. tried: {strength: how good}, with 1.0."""
    for strengths in (STRONGER, WEAKER):
        best = tried[1.0]
        for strength in strengths:
            if strength not in tried:
                return strength
            if not tried[strength] > best:
                break
            best = tried[strength]
        if best is not tried[1.0]:  # the first one was better, so the other way leads down
            return None
    return None


def long_enough(steps: Sequence[int]) -> list[bool]:
    """Which searches, of so many steps each, belong into the average: not those of fewer than half of the most.

    A search that a limit cut short has hardly left its start, and would only pull the average back to it.
    """
    return [2 * taken >= max(steps) for taken in steps]
