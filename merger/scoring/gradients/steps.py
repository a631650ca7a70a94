"""Steps up the gradients: each on prompts of its own, drawn for its place, so that none is learnt by heart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmark.prompts.prompt_set import Prompt
from merger.scoring.gradients.gradients import Gradient, Gradients
from merger.search.space import Weights
from merger.search.trials import Score


@dataclass(frozen=True)
class FreshSteps:
    """A gradient objective on a stream of prompt sets. See `trials.GradientStep`."""

    gradients: Gradients
    prompts: Callable[[int], Sequence[Prompt]]

    def __call__(self, weights: Weights, place: int) -> tuple[Score, Gradient]:
        """Score and gradients of a blend on the prompts at `place`."""
        return self.gradients(weights, self.prompts(place))
