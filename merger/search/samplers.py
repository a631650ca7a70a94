"""Who proposes the next blend: Optuna's samplers and ours, all in Optuna's terms. Part of the study: Optuna lives here.

A sampler is made anew for every trial, from the seed and the trial's number, and reads all else from the finished
trials. So a search that was stopped and taken up again proposes what it would have proposed without the stop.
"""

from __future__ import annotations

import importlib.util
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from benchmark.errors import did_you_mean
from merger.errors import StudyError
from merger.search.adam import AdamSettings, next_weights
from merger.search.space import Space
from merger.search.trials import POLISH, STEP

WEIGHTS = "weights"
"""The user attribute that holds a trial's blend: all weights as one list, however many there are."""

GRADIENT = "gradient"
"""The user attribute that holds a step's gradients: one for every parameter of the space, in its order."""

Seen = tuple[dict[str, float], float]
"""(the value of every parameter, the trial's value): one finished trial inside the space."""


@dataclass(frozen=True)
class Level:
    """A part of a black-box search that moves parameters together.

    trials: how many it takes. groups: the number of each parameter's group, 0 to the highest without a gap.
    """

    trials: int
    groups: tuple[int, ...]


def make_sampler(
    method: str,
    space: Space,
    *,
    seed: int,
    number: int,
    adam: AdamSettings | None = None,
    levels: Sequence[Level] = (),
) -> BaseSampler:
    """The sampler of trial `number`; `adam` says how to climb, where the method is `gradients`. `polish` is one too.

    levels: what CMA-ES moves together first. Raises `StudyError` for a method that does not exist or cannot work here.
    """
    if method == POLISH:
        return PolishSampler(space, _own_seed(seed, number))
    check_method(method)
    if method == "cmaes":
        return CmaSampler(space, _own_seed(seed, number), levels)
    if method == "gradient":
        if adam is None:
            raise StudyError("method: 'gradient' must be told how to climb")
        return GradientSampler(space, adam)
    return _SAMPLERS[method](space, _own_seed(seed, number))


def _own_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def check_method(method: str) -> None:
    """Raises `StudyError` for a method that does not exist, or that lacks a package."""
    known = sorted([*_SAMPLERS, "cmaes", "gradient"])
    if method not in known:
        raise StudyError(f"method: there is no '{method}'.{did_you_mean(method, known)}")
    if method == "gp" and importlib.util.find_spec("scipy") is None:
        raise StudyError("method: 'gp' needs the package scipy, which is not installed: pip install scipy")


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space in Optuna's words."""
    return {parameter.name: FloatDistribution(parameter.low, parameter.high) for parameter in space.parameters}


class HistorySampler(BaseSampler):
    """A sampler whose proposal is a function of the finished trials alone, for any number of weights.

    A subclass says `propose`. Trials outside the space (a donor alone, where it is beyond the bounds) are not shown.
    """

    role = "search"
    """Of the trials that it proposes."""

    def __init__(self, space: Space, seed: int) -> None:
        self.space, self.seed = space, seed

    @abstractmethod
    def propose(self, given: Sequence[Seen], proposed: Sequence[Seen]) -> Mapping[str, float]:
        """The next value of every parameter.

        `given` are the finished trials of other roles, scored on the same prompts (parents, averages), `proposed` those
        that such a sampler proposed; each in the order of their numbers.
        """

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space, from the first trial on."""
        return distributions(self.space)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """`propose`, told of the study's trials."""
        given: list[Seen] = []
        proposed: list[Seen] = []
        for done in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            role = done.user_attrs["role"]
            values = self.space.to_values(self.space.unflatten(done.user_attrs[WEIGHTS])) if role != STEP else None
            if values is not None and done.value is not None:
                (proposed if role == self.role else given).append((values, done.value))
        return dict(self.propose(given, proposed))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never asked: every parameter is proposed at once."""
        raise NotImplementedError(param_name)


class CmaSampler(HistorySampler):
    """Covariance-matrix adaptation from the best blend known, its state rebuilt by telling it the trials again.

    It opens with the uniform average made stronger step by step: how much of the donors in all is the one direction
    that single draws in many weights find slowest. It then starts at the best trial so far, with a spread of a tenth
    of the bounds' width. Above 200 weights the covariance is kept diagonal. Every generation ends with a trial of the
    distribution's mean, which it learns nothing from: single draws stray from the mean in every weight at once, so with
    many weights the mean is the better blend.

    Coarse to fine: each of `levels` moves groups of parameters as one for its trials, from the best blend known when it
    begins; after them every parameter moves by itself.
    """

    spread = 0.1
    largest_full = 200
    opening: tuple[float, ...] = (1.5, 2.0, 2.5, 3.0)  # times the weight of the uniform average

    def __init__(self, space: Space, seed: int, levels: Sequence[Level] = ()) -> None:
        super().__init__(space, seed)
        self.levels = levels

    def propose(self, given: Sequence[Seen], proposed: Sequence[Seen]) -> Mapping[str, float]:
        """The opening; then one draw from the distribution that the trials lead to, after each generation its mean."""
        import cmaes

        opening = self._opening(given)
        if len(proposed) < len(opening):
            return opening[len(proposed)]
        given, proposed = [*given, *proposed[: len(opening)]], proposed[len(opening) :]
        groups = np.arange(len(self.space.parameters))
        for level in self.levels:
            if len(proposed) < level.trials:
                groups = np.array(level.groups)
                break
            given, proposed = [*given, *proposed[: level.trials]], proposed[level.trials :]
        names = [parameter.name for parameter in self.space.parameters]
        low = np.array([parameter.low for parameter in self.space.parameters])
        width = np.array([parameter.high for parameter in self.space.parameters]) - low
        sizes = np.bincount(groups)

        def to_unit(values: Mapping[str, float]) -> np.ndarray:
            return (np.array([values[name] for name in names]) - low) / width

        def means(unit: np.ndarray) -> np.ndarray:
            return np.bincount(groups, unit) / sizes

        start = to_unit(max(given, key=lambda seen: seen[1])[0])
        kind = cmaes.CMA if 1 < len(sizes) <= self.largest_full else cmaes.SepCMA
        bounds = np.tile([0.0, 1.0], (len(sizes), 1))
        # its seed is this trial's own: every draw of a generation is independent of the others
        optimizer = kind(mean=means(start), sigma=self.spread, bounds=bounds, seed=self.seed % 2**32)
        size = optimizer.population_size
        for first in range(0, len(proposed) - size + 1, size + 1):
            optimizer.tell([(means(to_unit(values)), -value) for values, value in proposed[first : first + size]])
        is_mean = len(proposed) % (size + 1) == size
        moved = (optimizer.mean if is_mean else optimizer.ask()) - means(start)  # a group moves as one
        drawn = low + width * np.clip(start + moved[groups], 0.0, 1.0)
        return {name: float(value) for name, value in zip(names, drawn, strict=True)}

    def _opening(self, given: Sequence[Seen]) -> list[dict[str, float]]:
        """The stronger averages that are not among the baselines already."""
        there = [values for values, _ in given]
        blends = []
        for strength in self.opening:
            weight = strength / (len(self.space.donors) + 1)
            blends.append({each.name: min(max(weight, each.low), each.high) for each in self.space.parameters})
        return [blend for blend in blends if blend not in there]


class PolishSampler(CmaSampler):
    """The same from the best blend that a climb found, nearer to it: single draws must not lose what gradients gained."""

    role = POLISH
    spread = 0.02
    opening = ()


class GradientSampler(HistorySampler):
    """Climbs by the gradients that earlier steps have found; all it needs is stored with them. See `merger.search.adam`.

    Between steps it proposes the same weights however often it is asked: a trial that only looks where the climb
    stands leaves it as it was.
    """

    def __init__(self, space: Space, adam: AdamSettings) -> None:
        super().__init__(space, 0)
        self.adam = adam

    def propose(self, given: Sequence[Seen], proposed: Sequence[Seen]) -> Mapping[str, float]:
        """Never asked: values do not matter to it."""
        raise NotImplementedError

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The weights after the last step."""
        history = []
        for done in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if done.user_attrs["role"] == STEP:
                values = self.space.to_values(self.space.unflatten(done.user_attrs[WEIGHTS]))
                if values is not None:
                    history.append((list(values.values()), done.user_attrs[GRADIENT]))
        low = [parameter.low for parameter in self.space.parameters]
        high = [parameter.high for parameter in self.space.parameters]
        names = [parameter.name for parameter in self.space.parameters]
        return dict(zip(names, next_weights(history, low, high, self.adam).tolist(), strict=True))


class OptunaSampler(HistorySampler):
    """One of Optuna's own samplers, asked in a study in memory that holds only the trials inside the space.

    In the stored study Optuna would intersect the parameters of all trials, and a parent outside the bounds, which has
    none, would leave nothing; and a trial under way when the search was killed would be taken for another worker's.
    """

    def __init__(self, space: Space, seed: int, make: Callable[[int], BaseSampler]) -> None:
        super().__init__(space, seed)
        self.make = make

    def propose(self, given: Sequence[Seen], proposed: Sequence[Seen]) -> Mapping[str, float]:
        """What the sampler proposes after these trials."""
        space = distributions(self.space)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(direction="maximize", sampler=self.make(self.seed))
        study.add_trials(
            [
                optuna.trial.create_trial(params=values, distributions=space, value=value)
                for values, value in [*given, *proposed]
            ]
        )
        return {name: float(value) for name, value in study.ask(space).params.items()}


def _of_optuna(make: Callable[[int], BaseSampler]) -> Callable[[Space, int], BaseSampler]:
    return lambda space, seed: OptunaSampler(space, seed, make)


_SAMPLERS: dict[str, Callable[[Space, int], BaseSampler]] = {
    "gp": _of_optuna(lambda seed: optuna.samplers.GPSampler(seed=seed)),
    "random": _of_optuna(lambda seed: optuna.samplers.RandomSampler(seed=seed)),
    "tpe": _of_optuna(lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True)),
}
