"""The steps of a gradient search: each has prompts of its own, made for its place, so none can be overfitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmark.prompts.prompt_set import Prompt
from merger.scoring.gradients.gradients import Gradient, Gradients
from merger.search.trials import Score
from merger.weights import Weights


@dataclass(frozen=True)
class FreshSteps:
    """Score and gradient on a stream of prompt sets. See `merger.search.trials.GradientStep`.

    prompts: the prompts of a place 0, 1, ...; always the same for the same place.
    """

    gradients: Gradients
    prompts: Callable[[int], Sequence[Prompt]]

    def __call__(self, weights: Weights, place: int) -> tuple[Score, Gradient]:
        """Score and gradient of a blend on the prompts at `place`."""
        return self.gradients(weights, self.prompts(place))
