"""The method `gradient`: every step starts from the last step's weights and the Adam state stored with it.

W  free weights, the parameters of the space
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from merger.errors import StudyError
from merger.search import earlier
from merger.search.adam import AdamSettings, AdamState, first_weights, next_weights, update
from merger.search.history import WEIGHTS, HistorySampler, Observation
from merger.search.space import Space
from merger.search.trials import STEP

GRADIENT = "gradient"
"""The user attribute that holds a step's gradient: one number for every parameter of the space, in its order."""

ADAM = "adam"
"""The user attribute that holds Adam's state after the step, as `AdamState.to_json` gives it."""


def steps_among(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The finished steps, in order. Reads only each trial's state and role."""
    return [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.user_attrs["role"] == STEP]


def state_after(steps: Sequence[FrozenTrial], settings: AdamSettings) -> AdamState | None:
    """Adam's state after `steps`, which are all there are; None if there are none.

    Only the last step is read. Studies of earlier versions store gradients and no states: theirs are replayed, until
    the next step stores the state.
    """
    if not steps:
        return None
    stored = steps[-1].user_attrs.get(ADAM)
    if stored is not None:
        return AdamState.from_json(stored)
    gradients = [earlier.attributes(step.user_attrs)[GRADIENT] for step in steps]
    begin = AdamState.begin(len(gradients[0]))
    return reduce(lambda state, gradient: update(state, gradient, settings), gradients, begin)


class GradientSampler(HistorySampler):
    """Proposes the weights that Adam reaches after the last step.

    Between steps it proposes the same weights however often it is asked: a trial that only scores them leaves the
    search as it was.
    """

    def __init__(self, space: Space, adam: AdamSettings) -> None:
        super().__init__(space, 0)
        self.adam = adam

    def propose(self, given: Sequence[Observation], proposed: Sequence[Observation]) -> Mapping[str, float]:
        """Never called: this sampler reads steps and not the values of trials."""
        raise NotImplementedError

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The weights after the last step."""
        steps = steps_among(study.get_trials(deepcopy=False))
        low = np.array([parameter.low for parameter in self.space.parameters])
        high = np.array([parameter.high for parameter in self.space.parameters])
        state = state_after(steps, self.adam)
        if state is None:
            weights = first_weights(low, high, self.adam)
        else:
            last, _ = self.space.points([steps[-1].user_attrs[WEIGHTS]])
            weights = next_weights(last[0], state, low, high, self.adam)
        names = [parameter.name for parameter in self.space.parameters]
        return dict(zip(names, weights.tolist(), strict=True))


def make(space: Space, seed: int, adam: AdamSettings | None = None) -> GradientSampler:
    """The sampler of one trial; the seed does not matter to it. See `merger.search.registry`."""
    if adam is None:
        raise StudyError("method: 'gradient' needs Adam's settings")
    return GradientSampler(space, adam)
