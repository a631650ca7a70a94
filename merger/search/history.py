"""What samplers share: they read the finished trials of a study and nothing else. In Optuna's terms.

N  parameters of the space
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from merger.search.space import Floats, Space
from merger.search.trials import BELOW_FLOOR, SEARCH, STEP

WEIGHTS = "weights"
"""The user attribute that holds a trial's blend: all weights as one list, or the artifact of a wide one."""


class Observation(NamedTuple):
    """A finished trial inside the space: the value of every parameter [N], and the trial's own value.

    broken: how far it breaks floors, summed; 0 if it breaks none, or if there are none.
    """

    values: Floats
    value: float
    broken: float = 0.0


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space in Optuna's terms."""
    return {parameter.name: FloatDistribution(parameter.low, parameter.high) for parameter in space.parameters}


class HistorySampler(BaseSampler):
    """A sampler whose proposal depends on the finished trials alone, for any number of weights.

    A subclass implements `propose`. It does not see trials outside the space, such as a donor alone where that is
    beyond the bounds.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self.space, self.seed = space, seed

    @abstractmethod
    def propose(self, given: Sequence[Observation], proposed: Sequence[Observation]) -> Mapping[str, float]:
        """The next value of every parameter, by its name.

        `given` are the baselines (parents, averages), `proposed` the trials that the search itself proposed; each in
        the order of the trials' numbers. All were scored on the same prompts.
        """

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space, from the first trial on; nothing of a wide one, which has no parameters of Optuna."""
        return {} if self.space.wide else distributions(self.space)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """What `propose` returns for the study's trials."""
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        trials = [done for done in finished if done.user_attrs["role"] != STEP]
        values, inside = self.space.points([done.user_attrs[WEIGHTS] for done in trials])
        given: list[Observation] = []
        proposed: list[Observation] = []
        for done, point, fits in zip(trials, values, inside, strict=True):
            if fits and done.value is not None:
                among = proposed if done.user_attrs["role"] == SEARCH else given
                among.append(Observation(point, done.value, sum(done.user_attrs.get(BELOW_FLOOR, {}).values())))
        return dict(self.propose(given, proposed))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never called: every parameter is proposed at once."""
        raise NotImplementedError(param_name)
