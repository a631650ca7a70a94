"""The method `gradient` in a study: a quadratic, seen through other noise at every step; no models and no disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, create_trial

from benchmark.prompts.prompt_set import Prompt
from merger.errors import StudyError
from merger.scoring.gradients.steps import FreshSteps
from merger.scoring.selection import finalists_of
from merger.search.adam import AdamSettings, AdamState
from merger.search.baselines import baselines_of
from merger.search.gradient import ADAM, GRADIENT, GradientSampler, state_after, steps_among
from merger.search.history import WEIGHTS
from merger.search.loop import search
from merger.search.space import Space, make_space
from merger.search.storage import Storage, stored
from merger.search.study import SearchSettings, Study, incumbent, open_study
from merger.search.trials import STEP, Score, TrialRecord, last_improvement
from merger.weights import Weights

LAYERS, DONORS = ("IN00", "M00", "OUT00"), ("warm", "cool")
TARGET = np.array([0.9, 0.1, 0.2, 0.7, -0.3, 0.4])
SETTINGS = SearchSettings("gradient", 3, 100, 1000, None, AdamSettings(20), 8)


def quadratic(space: Space, weights: Weights, offset: float = 0.0) -> tuple[Score, np.ndarray]:
    """(1 - mean squared distance to the target, which `offset` moves; the gradients of that [L * D])."""
    away = np.array(space.flatten(weights)) - TARGET - offset
    parts = 1 - away**2
    value = float(parts.mean())
    return Score(value, 0.01, value, 0.01, value, {}, parts.tolist(), 8, 0.5), -2 * away / len(away)


class Paraboloid:
    """Objective and steps in one; after `stop_at` calls the program is stopped."""

    def __init__(self, space: Space, stop_at: int | None = None) -> None:
        self.space, self.stop_at = space, stop_at
        self.places: list[int] = []

    def __call__(self, weights: Weights, report: object = None) -> Score:
        self._count()
        return quadratic(self.space, weights)[0]

    def take_step(self, weights: Weights, place: int) -> tuple[Score, dict[str, dict[str, float]]]:
        self._count()
        self.places.append(place)
        score, gradients = quadratic(self.space, weights, 0.1 * float(np.random.default_rng(place).normal()))
        return replace(score, value=score.value + 5), self.space.unflatten(gradients.tolist())

    def _count(self) -> None:
        if self.stop_at == 0:
            raise KeyboardInterrupt
        if self.stop_at is not None:
            self.stop_at -= 1


def searched(
    space: Space, settings: SearchSettings, memory: InMemoryStorage | None = None, stop_at: int | None = None
) -> tuple[Study, str]:
    """A search in a memory of its own, or one that goes on with what is in `memory`."""
    baselines = baselines_of(space, "base")
    study = open_study(memory or InMemoryStorage(), "study", space, identity={}, baselines=baselines)
    world = Paraboloid(space, stop_at)
    return study, search(world, study, settings, take_step=world.take_step)


def space_of(**options: object) -> Space:
    return make_space(LAYERS, DONORS, **{"bounds": (-0.5, 1.5), **options})  # type: ignore[arg-type]


def roles(records: Sequence[TrialRecord]) -> str:
    """One letter a trial after the four baselines."""
    return "".join("s" if record.role == STEP else "C" for record in records[4:])


def test_it_reaches_the_top_and_scores_where_it_is_every_few_steps() -> None:
    study, reason = searched(space_of(), SETTINGS)
    records = study.records()
    assert reason == "gradients: all 20 steps are taken"
    assert roles(records) == "ssssssssC" * 2 + "ssssC"
    assert incumbent(study).role == "search"
    assert incumbent(study).value > 0.97 > max(record.value for record in records[:4])
    steps = [record for record in records if record.role == STEP]
    assert [step.score.attributes["place"] for step in steps] == list(range(20))
    assert all(len(step.score.attributes[GRADIENT]) == 6 for step in steps)


def test_no_step_is_a_candidate_however_high_its_value() -> None:
    records = searched(space_of(), SETTINGS)[0].records()
    assert max(records, key=lambda record: record.value).role == STEP
    assert {record.role for record in finalists_of(records)} == {"search", "uniform"}
    assert records[last_improvement(records)].role != STEP


@pytest.mark.parametrize("options", [{}, {"bounds": (0, 0.5), "tied": [("IN00", "OUT00")], "frozen": {"M00": 0.2}}])
def test_stopping_anywhere_and_going_on_gives_the_same_trials(options: dict[str, object]) -> None:
    space = space_of(**options)
    whole = searched(space, SETTINGS)[0].records()
    memory = InMemoryStorage()
    for calls in (0, 3, 2, 9, 7):
        with pytest.raises(KeyboardInterrupt):
            searched(space, SETTINGS, memory, calls)
    assert searched(space, SETTINGS, memory)[0].records() == whole


def test_layers_that_share_a_weight_share_the_sum_of_their_gradients() -> None:
    space = space_of(tied=[("IN00", "OUT00")])
    records = searched(space, replace(SETTINGS, trials=6))[0].records()
    assert space.to_values(records[4].weights) == dict.fromkeys(["IN00/warm", "IN00/cool", "M00/warm", "M00/cool"], 0.1)
    gradients = quadratic(space, records[4].weights, 0.1 * float(np.random.default_rng(0).normal()))[1]
    expected = [gradients[0] + gradients[4], gradients[1] + gradients[5], gradients[2], gradients[3]]
    assert records[4].score.attributes[GRADIENT] == pytest.approx(expected)


def test_a_limit_lets_the_last_steps_be_scored_and_more_trials_take_the_same_steps() -> None:
    memory = InMemoryStorage()
    study, reason = searched(space_of(), replace(SETTINGS, trials=10), memory)
    assert (reason, roles(study.records())) == ("trials: the limit of 10 is reached", "sssssC")
    two = searched(space_of(), SETTINGS, memory)[0].records()
    one = searched(space_of(), SETTINGS)[0].records()
    assert roles(two) == "sssssCsssCssssssssCssssC"
    assert [r.weights for r in two if r.role == STEP] == [r.weights for r in one if r.role == STEP]
    study, reason = searched(space_of(), replace(SETTINGS, time_limit=3.4))
    assert (reason, roles(study.records())) == ("time: the limit of 3.4 s is reached", "sssC")


def test_a_finished_search_goes_on_with_more_steps() -> None:
    memory = InMemoryStorage()
    study, reason = searched(space_of(), SETTINGS, memory)
    first = study.records()
    assert (reason, roles(first)) == ("gradients: all 20 steps are taken", "ssssssssC" * 2 + "ssssC")
    assert searched(space_of(), SETTINGS, memory)[1] == reason
    assert len(study.records()) == len(first), "nothing is left to do"

    longer = replace(SETTINGS, adam=AdamSettings(30))
    study, reason = searched(space_of(), longer, memory)
    both = study.records()
    assert reason == "gradients: all 30 steps are taken"
    assert both[: len(first)] == first, "no step is lost"
    assert roles(both)[len(roles(first)) :] == "ssssCssssssC"
    steps = [record for record in both if record.role == STEP]
    assert [step.score.attributes["place"] for step in steps] == list(range(30))
    assert [step.score.attributes[ADAM]["steps"] for step in steps] == list(range(1, 31))
    expected = replayed(space_of(), steps[:21], [20] * 20 + [30])
    assert space_of().flatten(steps[20].weights) == expected[20], "the learning rate is that of 30 steps"
    moved = np.abs(np.subtract(expected[20], expected[19]))
    assert moved.max() > 0.005, "after 20 of 20 steps it was 0"


def replayed(space: Space, steps: Sequence[TrialRecord], planned: Sequence[int]) -> list[list[float]]:
    """The weights of every step, by Adam as it is written in books: all gradients are gone through for each of them.

    planned: how many steps were planned when each was proposed. Every layer's weight is free.
    """
    low = np.array([parameter.low for parameter in space.parameters])
    high = np.array([parameter.high for parameter in space.parameters])
    proposed = []
    for count, steps_planned in enumerate(planned):
        settings = AdamSettings(steps_planned)
        if count == 0:
            proposed.append(np.clip(np.full(len(low), settings.start), low, high).tolist())
            continue
        mean, square = np.zeros(len(low)), np.zeros(len(low))
        for step in steps[:count]:
            gradient = np.array(step.score.attributes[GRADIENT])
            mean = settings.beta1 * mean + (1.0 - settings.beta1) * gradient
            square = settings.beta2 * square + (1.0 - settings.beta2) * gradient * gradient
        mean /= 1.0 - settings.beta1**count
        spread = np.sqrt(square / (1.0 - settings.beta2**count))
        scale = spread + settings.eps * math.sqrt(float(np.mean(spread * spread)))
        last = np.array(space.flatten(steps[count - 1].weights))
        moved = last + settings.learning_rate_at(count - 1) * (mean / scale)
        proposed.append(np.clip(moved, low, high).tolist())
    return proposed


@pytest.mark.parametrize("on_disk", [False, True])
def test_every_step_is_that_of_a_replay_bit_for_bit(on_disk: bool, tmp_path: Path) -> None:
    """Stopped again and again, so that steps start from what is stored: the state is exact in JSON."""
    space, baselines = space_of(), baselines_of(space_of(), "base")
    storage: Storage = f"sqlite:///{tmp_path / 'study.db'}" if on_disk else InMemoryStorage()
    settings = replace(SETTINGS, adam=AdamSettings(8), eval_every=3)
    for _ in range(50):
        study = open_study(storage, "study", space, identity={}, baselines=baselines)
        world = Paraboloid(space, 4 if on_disk else 1)
        try:
            search(world, study, settings, take_step=world.take_step)
        except KeyboardInterrupt:
            continue
        break
    steps = [record for record in study.records() if record.role == STEP]
    assert len(steps) == 8
    assert [space.flatten(step.weights) for step in steps] == replayed(space, steps, [8] * 8)


class Counted(dict[str, Any]):
    """A trial's attributes that count how often weights, gradients and states are read."""

    reads = 0

    def __getitem__(self, key: str) -> Any:
        Counted.reads += key in (WEIGHTS, GRADIENT, ADAM)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if dict.__contains__(self, key) else default


class FrozenStudy:
    """As much of a study as a sampler asks for, with `count` steps."""

    def __init__(self, count: int, space: Space) -> None:
        state = AdamState(count, np.full(6, 0.2), np.full(6, 0.3)).to_json()
        kept = {"role": STEP, WEIGHTS: [0.1] * 6, GRADIENT: [1.0] * 6, ADAM: state}
        self.trials = [create_trial(value=0.0, user_attrs=dict(kept)) for _ in range(count)]
        for trial in self.trials:
            trial.user_attrs = Counted(trial.user_attrs)

    def get_trials(self, deepcopy: bool = True, states: object = None) -> list[FrozenTrial]:
        return self.trials


def test_a_proposal_reads_as_much_of_the_study_at_step_1000_as_at_step_10() -> None:
    sampler = GradientSampler(space_of(), AdamSettings(2000))
    reads = []
    for count in (10, 1000):
        study = FrozenStudy(count, space_of())
        Counted.reads = 0
        sampler.sample_relative(study, study.trials[0], {})  # type: ignore[arg-type]
        reads.append(Counted.reads)
    assert reads == [2, 2], "the last step's weights and its state"


def test_taking_a_step_reads_no_more_of_the_study_than_proposing_one() -> None:
    study = FrozenStudy(1000, space_of())
    Counted.reads = 0
    state = state_after(steps_among(study.trials), AdamSettings(2000))
    assert state is not None and state.steps == 1000
    assert Counted.reads == 1


def test_a_study_of_the_previous_version_goes_on_from_its_gradients() -> None:
    """Its steps have the attribute `slopes` and no state."""
    space, whole = space_of(), searched(space_of(), SETTINGS)[0].records()
    memory = InMemoryStorage()
    with pytest.raises(KeyboardInterrupt):
        searched(space, SETTINGS, memory, 4 + 13)
    before = open_study(memory, "study", space, identity={})
    stored = InMemoryStorage()
    earlier = optuna.create_study(storage=stored, study_name="study", direction="maximize")
    for trial in before._study.trials:
        attributes = dict(trial.user_attrs)
        attributes.pop(ADAM, None)
        if GRADIENT in attributes:
            attributes["slopes"] = attributes.pop(GRADIENT)
        if trial.state.is_finished():
            earlier.add_trial(create_trial(value=trial.value, user_attrs=attributes))
    for key, value in before._study.user_attrs.items():
        earlier.set_user_attr(key, value)
    done = len(earlier.trials)
    found = searched(space, SETTINGS, stored)[0].records()
    assert 10 < done < len(whole)
    assert [record.weights for record in found] == [record.weights for record in whole]
    assert [record.score.attributes.get(GRADIENT) for record in found] == [
        record.score.attributes.get(GRADIENT) for record in whole
    ]
    assert [ADAM in record.score.attributes for record in found if record.role == STEP] == [False] * 12 + [True] * 8
    assert found[-1].score == whole[-1].score


def test_a_gradient_search_ends_on_a_plateau() -> None:
    """Patience counts steps and checks since the last check that improved by more than its noise."""
    space = space_of()
    baselines = baselines_of(space, "base")
    study = open_study(InMemoryStorage(), "study", space, identity={}, baselines=baselines)
    flat = Score(0.5, 0.01, 0.5, 0.01, 0.5)
    settings = replace(SETTINGS, eval_every=2, patience=7)
    reason = search(
        lambda weights, report=None: flat,
        study,
        settings,
        take_step=lambda weights, place: (replace(flat, value=place), space.unflatten([1.0] * 6)),
    )
    assert reason.startswith("plateau")
    assert roles(study.records()) == "ssCssCsC"


def test_a_gradient_that_is_no_number_ends_the_search_and_keeps_nothing() -> None:
    space = space_of()
    study = searched(space, replace(SETTINGS, trials=4))[0]

    def broken(weights: Weights, place: int) -> tuple[Score, dict[str, dict[str, float]]]:
        return quadratic(space, weights)[0], space.unflatten([float("nan")] * 6)

    with pytest.raises(StudyError, match="not a finite number"):
        search(Paraboloid(space), study, SETTINGS, take_step=broken)
    assert len(study.records()) == 4


def test_every_step_has_prompts_of_its_own() -> None:
    seen: list[tuple[Prompt, ...]] = []

    def gradients(weights: Weights, prompts: Sequence[Prompt]) -> tuple[Score, dict[str, dict[str, float]]]:
        seen.append(tuple(prompts))
        return Score(0, 0, 0, 0, 0), {}

    gradient_steps = FreshSteps(gradients, lambda place: [Prompt(0, "hat", ("hat",), 100 + place)])
    for place in (0, 1, 0):
        gradient_steps({}, place)
    assert seen[0] == seen[2] != seen[1]


def test_optunas_own_tools_leave_steps_out(tmp_path: Path) -> None:
    """A step's value is on prompts of its own, here 5 above all others: it must not be the best trial."""
    url = f"sqlite:///{tmp_path}/study.db"
    for storage in (InMemoryStorage(), url):
        with stored(storage) as memory:
            study = open_study(memory, "study", space_of(), identity={}, baselines=baselines_of(space_of(), "base"))
            world = Paraboloid(study.space)
            search(world, study, SETTINGS, take_step=world.take_step)
            best = optuna.load_study(study_name="study", storage=memory).best_trial
        assert best.number == incumbent(study).number
        assert best.user_attrs["role"] != STEP
        assert max(record.value for record in study.records()) > best.value
