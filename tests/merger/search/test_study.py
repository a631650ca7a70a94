"""The study with plain functions for an objective: quadratics, no models, and no disk but where the disk is tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.storages import InMemoryStorage

from merger.errors import StudyError
from merger.search.baselines import baselines_of
from merger.search.cma import CmaSampler
from merger.search.loop import search
from merger.search.space import Space, make_space
from merger.search.storage import Storage
from merger.search.study import (
    MOST_ROWS,
    SearchSettings,
    Study,
    describe_difference,
    incumbent,
    open_study,
    read_study,
)
from merger.search.trials import Score, best_of
from merger.weights import Weights

LAYERS, DONORS = ("IN00", "M00", "OUT00"), ("warm", "cool")
TARGET = (0.9, 0.1, 0.2, 0.7, -0.3, 0.4)
METHODS = ("cmaes", "tpe", "random", "gp")


class Quadratic:
    """1 - mean squared distance of the weights to a target; counts its calls."""

    def __init__(self, space: Space, target: tuple[float, ...] = TARGET, stop_at: int | None = None) -> None:
        self.space, self.target, self.calls, self.stop_at = space, target, 0, stop_at

    def __call__(self, weights: Weights, report: object = None) -> Score:
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        parts = [1 - (a - b) ** 2 for a, b in zip(self.space.flatten(weights), self.target, strict=True)]
        value = sum(parts) / len(parts)
        return Score(value, 0.01, value, 0.01, value, {"hair": value}, parts, 8, 0.5, f"{value:.9f}")


def space_of(**options: object) -> Space:
    return make_space(LAYERS, DONORS, **{"bounds": (-0.5, 1.5), **options})  # type: ignore[arg-type]


@pytest.fixture
def memory() -> InMemoryStorage:
    return InMemoryStorage()


def opened(storage: Storage, space: Space, name: str = "study", **identity: str) -> Study:
    return open_study(storage, name, space, identity=identity, baselines=baselines_of(space, "base"))


def settings(trials: int, method: str = "cmaes", patience: int = 1000, **more: Any) -> SearchSettings:
    return SearchSettings(method, 3, trials, patience, **more)


def test_it_begins_with_the_parents_and_the_average(memory: InMemoryStorage) -> None:
    space = space_of(bounds=(0, 0.5), frozen={"M00": 0.0})
    study = opened(memory, space)
    assert search(Quadratic(space), study, settings(6)) == "trials: the limit of 6 is reached"
    records = study.records()
    assert [(record.role, record.name) for record in records[:4]] == [
        ("base", "base"),
        ("donor", "warm"),
        ("donor", "cool"),
        ("uniform", "uniform"),
    ]
    assert space.flatten(records[0].weights) == [0.0] * 6
    assert space.flatten(records[2].weights) == [0.0, 1.0] * 3, "a donor alone, though bounds and frozen forbid it"
    assert space.flatten(records[3].weights) == pytest.approx([1 / 3] * 6)
    assert all(space.to_values(record.weights) is not None for record in records[4:])


def test_all_of_a_score_is_kept(tmp_path: Path) -> None:
    space, url = space_of(), f"sqlite:///{tmp_path / 'study.db'}"
    kept = {"gradient": [1.0, 1 / 3]}

    def objective(weights: Weights, report: object = None) -> Score:
        return Score(0.5, 0.02, 0.6, 0.03, 0.7, {"hair": 0.1}, [0.4, 0.6], 2, 1.5, "abc", kept, [3, 4])

    search(objective, opened(url, space), settings(1))
    (record,) = read_study(url, "study").records()
    assert record.score == objective({})
    assert record.value == 0.5


@pytest.mark.parametrize(("method", "on_disk"), [("cmaes", True), ("tpe", False), ("random", False), ("gp", False)])
def test_stopping_anywhere_and_going_on_gives_the_same_trials(method: str, on_disk: bool, tmp_path: Path) -> None:
    """Also if the program was killed in the middle of a trial, which leaves it under way in the database."""
    space = space_of(bounds=(0, 1), tied=[("IN00", "OUT00")])  # the base and donors inside, so samplers learn of them
    broken: Storage = f"sqlite:///{tmp_path / 'study.db'}" if on_disk else InMemoryStorage()
    whole = opened(InMemoryStorage(), space)
    search(Quadratic(space), whole, settings(24, method))
    for stop in (0, 2, 4, 9):
        with pytest.raises(KeyboardInterrupt):
            search(Quadratic(space, stop_at=stop), opened(broken, space), settings(24, method))
    search(Quadratic(space), opened(broken, space), settings(24, method))
    found = opened(broken, space).records()
    assert [record.number for record in found] == list(range(24))
    assert found == whole.records()


@pytest.mark.parametrize("method", METHODS)
def test_proposals_differ_from_each_other_and_by_seed(method: str, memory: InMemoryStorage) -> None:
    space = space_of()
    study, other = opened(memory, space), opened(memory, space, "other")
    search(Quadratic(space), study, settings(20, method))
    search(Quadratic(space), other, SearchSettings(method, 4, 20, 1000))
    first, second = ([tuple(space.flatten(record.weights)) for record in each.records()[4:]] for each in (study, other))
    assert len(set(first)) == len(set(second)) == 16
    opening = len(CmaSampler.opening) if method == "cmaes" else 0  # the same whatever the seed
    assert first[:opening] == second[:opening]
    assert not set(first[opening:]) & set(second[opening:])


def test_cma_climbs_where_random_search_does_not(memory: InMemoryStorage) -> None:
    space = space_of()
    values = {}
    for method in ("cmaes", "random"):
        study = opened(memory, space, method)
        search(Quadratic(space), study, settings(100, method))
        values[method] = incumbent(study).value
    assert values["cmaes"] > 0.97
    assert values["cmaes"] > values["random"]


def test_thousands_of_weights_are_one_row(memory: InMemoryStorage) -> None:
    layers = tuple(f"tensor.{number}" for number in range(MOST_ROWS))
    space = make_space(layers, DONORS, bounds=(-0.5, 1.5))
    study = opened(memory, space)
    target = (0.25,) * (2 * MOST_ROWS)
    search(Quadratic(space, target), study, settings(8))
    trial = study._study.trials[-1]
    assert trial.params == {}
    assert len(trial.user_attrs["weights"]) == 2 * MOST_ROWS
    assert len({tuple(space.flatten(record.weights)) for record in study.records()}) == 8


def test_a_plateau_ends_it(memory: InMemoryStorage) -> None:
    space = space_of()
    study = opened(memory, space)

    def flat(weights: Weights, report: object = None) -> Score:
        return Score(0.5, 0.01, 0.5, 0.01, 0.5, seconds=1.0)

    assert search(flat, study, settings(99, patience=5)).startswith("plateau")
    assert len(study.records()) == 9
    assert search(flat, study, settings(99, time_limit=3.0)).startswith("time")


def test_when_asked_to_stop_it_finishes_the_trial_under_way(memory: InMemoryStorage) -> None:
    space = space_of()
    study = opened(memory, space)
    objective = Quadratic(space)
    assert search(objective, study, settings(9), interrupted=lambda: objective.calls >= 3) == "interrupted"
    assert len(study.records()) == 3
    search(objective, study, settings(9))
    assert objective.calls == 9


def test_a_study_begun_differently_is_refused_and_the_difference_named(memory: InMemoryStorage) -> None:
    space = space_of()
    opened(memory, space, steps="8", base="a" * 64)
    opened(memory, space, steps="8", base="a" * 64)
    with pytest.raises(StudyError) as caught:
        opened(memory, space, steps="12", base="b" * 64)
    assert "steps was 8, is 12; base was aaaaaaaaaaaa…, is bbbbbbbbbbbb…" in str(caught.value)
    assert describe_difference({"judge": "x"}, {}) == ["judge was x, is nothing"]


def test_a_start_broken_off_before_its_identity_was_kept_is_made_whole(memory: InMemoryStorage) -> None:
    space = space_of()
    study = opened(memory, space)
    study._study.set_user_attr("identity", None)
    again = open_study(memory, "study", space, identity={}, baselines=baselines_of(space, "base"))
    assert len(again._study.trials) == 4


def test_a_value_that_is_no_number_stops_the_search(memory: InMemoryStorage) -> None:
    space = space_of()

    def broken(weights: Weights, report: object = None) -> Score:
        return Score(float("nan"), 0.0, 0.0, 0.0, 0.0)

    with pytest.raises(StudyError, match="trial 0 scored nan"):
        search(broken, opened(memory, space), settings(3))


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    space = space_of()
    study = opened(url, space)
    with pytest.raises(StudyError, match="there is no study 'other'"):
        read_study(url, "other")
    with pytest.raises(StudyError, match="no finished trial 7"):
        study.record(7)
    with pytest.raises(StudyError, match="no trial of this study is finished"):
        incumbent(study)
    with pytest.raises(StudyError, match="Did you mean 'cmaes'"):
        search(Quadratic(space), study, settings(5, "cmae"))
    with pytest.raises(StudyError, match="cannot be opened"):
        read_study("nonsense://x", "study")
    assert best_of(study.records()) is None
