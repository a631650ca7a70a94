"""The methods `gp`, `tpe` and `random`: Optuna's own samplers, shown only what they can use."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from merger.search.adam import AdamSettings
from merger.search.history import HistorySampler, Observation
from merger.search.space import Space

Constraints = Callable[[FrozenTrial], Sequence[float]]


class _Immutable(FloatDistribution):
    """A distribution that is not copied. Optuna would copy one per weight for every trial that is added."""

    def __deepcopy__(self, memo: object) -> _Immutable:
        return self


class OptunaSampler(HistorySampler):
    """One of Optuna's own samplers, asked in a study in memory that holds only the trials inside the space.

    In the stored study Optuna would intersect the parameters of all trials, and a parent outside the bounds, which has
    no parameters, would leave nothing. Optuna would also take a trial that was under way when the search was killed for
    another worker's. `reads` is off for a sampler that does not look at trials at all.
    """

    def __init__(
        self, space: Space, seed: int, make: Callable[[Constraints | None], BaseSampler], *, reads: bool = True
    ) -> None:
        super().__init__(space, seed)
        self.make, self.reads = make, reads

    def propose(self, given: Sequence[Observation], proposed: Sequence[Observation]) -> Mapping[str, float]:
        """What Optuna's sampler proposes after these trials."""
        space: dict[str, BaseDistribution] = {
            parameter.name: _Immutable(parameter.low, parameter.high) for parameter in self.space.parameters
        }
        limited = any(seen.broken for seen in (*given, *proposed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.simplefilter("ignore", FutureWarning)  # Optuna 4 knows no other way to name constraints
            study = optuna.create_study(direction="maximize", sampler=self.make(_constraints if limited else None))
        study.add_trials(
            [
                optuna.trial.create_trial(
                    params=dict(zip(space, seen.values.tolist(), strict=True)),
                    distributions=space,
                    value=seen.value,
                    system_attrs={"constraints": [seen.broken]} if limited else None,  # where Optuna keeps them
                )
                for seen in ([*given, *proposed] if self.reads else [])
            ]
        )
        return {name: float(value) for name, value in study.ask(space).params.items()}


def gp(space: Space, seed: int, adam: AdamSettings | None = None) -> OptunaSampler:
    """A Gaussian process: each proposal costs the cube of the trials so far."""
    return OptunaSampler(space, seed, lambda limits: GPSampler(seed=seed, constraints_func=limits))


def tpe(space: Space, seed: int, adam: AdamSettings | None = None) -> OptunaSampler:
    """A tree-structured Parzen estimator that looks at all weights together."""
    return OptunaSampler(space, seed, lambda limits: TPESampler(seed=seed, multivariate=True, constraints_func=limits))


def random(space: Space, seed: int, adam: AdamSettings | None = None) -> OptunaSampler:
    """Uniform draws within the bounds."""
    return OptunaSampler(space, seed, lambda limits: RandomSampler(seed=seed), reads=False)


def _constraints(trial: FrozenTrial) -> Sequence[float]:
    """Optuna's form: above 0 is broken. Asked only of trials that are told, and all of those have them."""
    found: Sequence[float] = trial.system_attrs["constraints"]
    return found
