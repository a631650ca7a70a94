"""The method `gradient`: every step starts from the last step's weights and the Adam state stored with it.

W  free weights, the parameters of the space
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import optuna
from numpy.typing import ArrayLike
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from merger.errors import StudyError
from merger.search import earlier
from merger.search.adam import AdamSettings, AdamState, Floats, first_weights, next_weights, update
from merger.search.artifacts import ARTIFACT, Artifacts
from merger.search.endings import on_course
from merger.search.history import WEIGHTS, HistorySampler, Observation
from merger.search.mixtures import Mixture
from merger.search.space import Space
from merger.search.trials import MIXTURE, STEP, held, member_of

GRADIENT = "gradient"
"""The user attribute that holds a step's gradient: one number for every parameter of the space, in its order."""

ADAM = "adam"
"""The user attribute that holds Adam's state after the step, as `AdamState.to_json` gives it.

In a wide space it names an artifact [2, W] instead, the two means, which only the last steps have.
"""

STATES_KEPT = 2
"""The last steps of a wide search whose states are kept: a search goes on from the last one."""


def steps_among(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The finished steps, in order. Reads only each trial's state and role."""
    return [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.user_attrs["role"] == STEP]


def course_of(trials: Sequence[FrozenTrial], *, decaying: bool, member: int = 0) -> list[FrozenTrial]:
    """The finished trials that lead to the next one of a search. Reads states, roles and marks. See `on_course`.

    member: which of several searches; the baselines, which lead to all, are only with the first one.
    """
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE and _is_of(trial.user_attrs, member)]
    return on_course(done, lambda trial: held(trial.user_attrs["role"], trial.user_attrs), decaying=decaying)


def _is_of(attributes: Mapping[str, Any], member: int) -> bool:
    return member_of(attributes) == member and attributes.get(MIXTURE) is None


def state_after(
    steps: Sequence[FrozenTrial], settings: AdamSettings, artifacts: Artifacts | None = None
) -> AdamState | None:
    """Adam's state after `steps`, which are all there are; None if there are none.

    artifacts: where the states of a wide search are. Only the last step is read. Studies of earlier versions store
    gradients and no states: theirs are replayed, until the next step stores the state.
    """
    if not steps:
        return None
    stored = steps[-1].user_attrs.get(ADAM)
    if stored is not None and ARTIFACT in stored and artifacts is not None:
        mean, square = artifacts.get(stored[ARTIFACT]).astype(np.float64)
        return AdamState(int(stored["steps"]), mean, square)
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
        if self.space.wide:  # the study asks for an array
            return {}
        steps = self.steps_of(study.get_trials(deepcopy=False))
        state = state_after(steps, self.adam)
        last = None if state is None else self.space.points([steps[-1].user_attrs[WEIGHTS]])[0][0]
        names = [parameter.name for parameter in self.space.parameters]
        return dict(zip(names, self.next(last, state).tolist(), strict=True))

    def steps_of(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """The steps that lead to the next weights."""
        return steps_among(course_of(trials, decaying=self.adam.begun is not None, member=self.adam.member))

    def average(self, trials: Sequence[FrozenTrial], artifacts: Artifacts) -> Floats:
        """[W]: the mean weights of the last steps, as many as a decay would have taken (Polyak and Juditsky 1992)."""
        steps = self.steps_of(trials)
        return self._mean(steps[-self.adam.decay_after(len(steps)) :], artifacts)

    def mixed(self, trials: Sequence[FrozenTrial], mixture: Mixture, artifacts: Artifacts) -> Floats:
        """[W]: the mean weights of the trials that the mixture names, times its strength, within the bounds."""
        return self._mean([trials[number] for number in mixture.of], artifacts, mixture.strength)

    def _mean(self, trials: Sequence[FrozenTrial], artifacts: Artifacts, strength: float = 1.0) -> Floats:
        blends = [trial.user_attrs[WEIGHTS] for trial in trials]
        if self.space.wide:
            total = sum(self.space.free(artifacts.get(kept[ARTIFACT])).astype(np.float64) for kept in blends)
        else:
            total = self.space.points(blends)[0].sum(axis=0)
        low, high = self.space.bounds()
        return np.clip(strength * (total / len(blends)), low, high)  # a mean may lie beyond a bound by its rounding

    def next(self, last: ArrayLike | None, state: AdamState | None) -> Floats:
        """[W]: the weights of the next step, or of the first one. last, state: of the last step, None before any."""
        low, high = self.space.bounds()
        if last is None or state is None:
            return first_weights(low, high, self.adam)
        return next_weights(last, state, low, high, self.adam)

    def next_of_wide(self, trials: Sequence[FrozenTrial], artifacts: Artifacts) -> Floats:
        """[W]: the weights after `trials`, all of a wide study. They are float32 where they are kept."""
        steps = self.steps_of(trials)
        state = state_after(steps, self.adam, artifacts)
        last = None if state is None else self.space.free(artifacts.get(steps[-1].user_attrs[WEIGHTS][ARTIFACT]))
        return self.next(last, state)


def make(space: Space, seed: int, adam: AdamSettings | None = None) -> GradientSampler:
    """The sampler of one trial; the seed does not matter to it. See `merger.search.registry`."""
    if adam is None:
        raise StudyError("method: 'gradient' needs Adam's settings")
    return GradientSampler(space, adam)
