"""Steps up the slopes: each on prompts of its own, drawn for its place, so that none is learnt by heart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmark.prompts import Prompt
from merger.slopes import SlopeObjective, Slopes
from merger.space import Weights
from merger.trials import Score


@dataclass(frozen=True)
class Climber:
    """A slope objective on a stream of prompt sets. See `trials.Climb`."""

    slopes: SlopeObjective
    prompts: Callable[[int], Sequence[Prompt]]

    def __call__(self, weights: Weights, place: int) -> tuple[Score, Slopes]:
        """Score and slopes of a blend on the prompts at `place`."""
        return self.slopes(weights, self.prompts(place))
