"""Several gradient searches in one study: each from the start, then the mean of their ends, and its strengths."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.storages import InMemoryStorage

from merger.errors import ConfigError, StudyError
from merger.search.adam import AdamSettings
from merger.search.artifacts import Artifacts
from merger.search.baselines import baselines_of
from merger.search.importance import attribution, importance, mean_attribution
from merger.search.loop import search
from merger.search.mixtures import Mixture, long_enough, next_strength
from merger.search.settings import SearchSettings
from merger.search.space import Space, make_space
from merger.search.steps import PLACES_APART
from merger.search.storage import Storage
from merger.search.study import Study, open_study
from merger.search.trials import AVERAGE, AVERAGE_OF_SEARCHES, MIXTURE, STEP, STRENGTH, Asked, Score, TrialRecord
from merger.weights import Channels, Weights

LAYERS, DONORS = ("IN00", "M00", "OUT00"), ("warm", "cool")
TARGET = np.array([0.9, 0.1, 0.2, 0.7, -0.3, 0.4])
ONE = SearchSettings("gradient", 3, 200, 1000, None, AdamSettings(12, decay=3), 8)
THREE = replace(ONE, searches=3)
FULL = "ssssssssC" + "sss" + "dD"
"""The trials of one search of 12 steps: the first smaller rate is that of the update after the 11th."""


class World:
    """A quadratic seen through other noise at every place; every trial takes half a second."""

    def __init__(self, space: Space, stop_at: int | None = None, far: float = 1.0) -> None:
        self.space, self.stop_at, self.far = space, stop_at, far

    def numbers(self, weights: Weights) -> np.ndarray:
        rows = [weights[layer][donor] for layer in LAYERS for donor in DONORS]
        return np.array([float(np.mean(row.values)) if isinstance(row, Channels) else float(row) for row in rows])

    def score(self, weights: Weights, offset: float) -> tuple[Score, np.ndarray]:
        if self.stop_at == 0:
            raise KeyboardInterrupt
        self.stop_at = None if self.stop_at is None else self.stop_at - 1
        away = self.numbers(weights) - self.far * TARGET - offset
        parts = 1 - away**2
        value = float(parts.mean())
        return Score(value, 0.01, value, 0.01, value, {}, parts.tolist(), 8, 0.5), -2 * away / 6

    def __call__(self, weights: Weights, report: object = None) -> Score:
        return self.score(weights, 0.0)[0]

    def take_step(self, weights: Weights, place: int) -> Any:
        score, gradient = self.score(weights, 0.3 * float(np.random.default_rng(place).normal()))
        rows = zip(*[iter(gradient)] * 2, strict=True)
        found: Any = {layer: dict(zip(DONORS, row, strict=True)) for layer, row in zip(LAYERS, rows, strict=True)}
        for layer, width in self.space.widths.items():
            found[layer] = {donor: np.full(width, value) for donor, value in found[layer].items()}
        return score, found


class Sittings:
    """A study in memory that is searched again and again."""

    def __init__(self, wide: bool = False, storage: Storage | None = None, artifacts: Artifacts | None = None) -> None:
        self.space = make_space(LAYERS, DONORS, bounds=(-0.5, 1.5), widths={"IN00": 3, "OUT00": 2} if wide else {})
        self.storage, self.artifacts = storage or InMemoryStorage(), artifacts or Artifacts()
        self.said: list[str] = []

    @property
    def study(self) -> Study:
        baselines = baselines_of(self.space, "base")
        return open_study(self.storage, "study", self.space, identity={}, baselines=baselines, artifacts=self.artifacts)

    @property
    def records(self) -> list[TrialRecord]:
        return self.study.records()

    @property
    def letters(self) -> str:
        """A letter a trial after the baselines: s and C of steps and evaluations, d and D of a decay's, A the mean of
        the last steps, M of searches, x a strength."""
        special = {AVERAGE: "A", AVERAGE_OF_SEARCHES: "M", STRENGTH: "x"}
        return "".join(
            special.get(record.role)
            or {(True, True): "s", (True, False): "C", (False, True): "d", (False, False): "D"}[
                record.held, record.role == STEP
            ]
            for record in self.records[4:]
        )

    def go(self, settings: SearchSettings = THREE, asked: Callable[[], Asked] | None = None, **world: Any) -> str:
        made = World(self.space, **world)
        return search(
            made,
            self.study,
            settings,
            take_step=made.take_step,
            interrupted=asked or (lambda: Asked.NOTHING),
            say=self.said.append,
        )

    def numbers(self, record: TrialRecord) -> np.ndarray:
        return World(self.space).numbers(record.weights)


def after(trials: int, *answers: Asked) -> Callable[[], Asked]:
    given = itertools.chain([Asked.NOTHING] * trials, answers, itertools.repeat(answers[-1]))
    return lambda: next(given)


@pytest.mark.parametrize("wide", [False, True])
def test_searches_run_one_after_another_and_their_ends_are_averaged_and_scaled(wide: bool) -> None:
    here = Sittings(wide)
    assert here.go(far=1.3) == "gradients: all 12 steps of 3 searches are taken"
    records = here.records
    assert here.letters.startswith(FULL * 3 + "Mx")
    assert set(here.letters[len(FULL * 3) + 1 :]) == {"x"}
    ends = [record for record in records if not record.held and record.role == "search"]
    assert [end.member for end in ends] == [0, 1, 2]
    steps = [record for record in records if record.role == STEP]
    places = [step.score.attributes["place"] for step in steps]
    assert places == [member * PLACES_APART + step for member in range(3) for step in range(12)]
    first = [here.numbers(step) for step in steps if step.score.attributes["place"] % PLACES_APART == 0]
    np.testing.assert_array_equal(first, np.full((3, 6), first[0][0]), err_msg="each search begins at the start")
    assert len({here.numbers(end).tobytes() for end in ends}) == 3, "and sees prompts of its own"

    (average,) = (record for record in records if record.role == AVERAGE_OF_SEARCHES)
    mean = np.mean([here.numbers(end) for end in ends], axis=0)
    np.testing.assert_allclose(here.numbers(average), mean, rtol=1e-6)
    assert (average.name, average.label, average.whole, average.held) == (
        "average of 3 searches", "average of 3 searches", True, False)  # fmt: skip
    strengths = [record for record in records if record.role == STRENGTH]
    for record in strengths:
        mixture = Mixture.from_json(record.score.attributes[MIXTURE])
        assert mixture.of == tuple(end.number for end in ends)
        assert record.name == f"average of 3 searches x {mixture.strength:g}"
        np.testing.assert_allclose(here.numbers(record), np.clip(mixture.strength * mean, -0.5, 1.5), rtol=1e-6)
    assert here.said[0] == "search 1 of 3: it begins"
    assert "search 2 of 3: it begins" in here.said
    assert "search 3 of 3: after 11 steps the learning rate falls to 0, over 2 updates (gradients: all 12" in " ".join(
        here.said
    )
    trials = ", ".join(str(end.number) for end in ends)
    assert (
        f"3 of 3 searches are averaged, trials {trials} (gradients: all 12 steps of 3 searches are taken)" in here.said
    )
    assert "strength of the whole blend: average of 3 searches x 1.15" in here.said
    before = len(records)
    assert here.go(far=1.3) == "gradients: all 12 steps of 3 searches are taken"
    assert len(here.records) == before, "nothing is left to do"


def test_strengths_are_tried_upwards_then_downwards_while_the_score_rises() -> None:
    def line(best: float) -> list[float]:
        tried = {1.0: -abs(1.0 - best)}
        while (strength := next_strength(tried)) is not None:
            tried[strength] = -abs(strength - best)
        return list(tried)

    assert line(1.0) == [1.0, 1.15, 0.85]
    assert line(1.15) == [1.0, 1.15, 1.3]
    assert line(1.3) == [1.0, 1.15, 1.3, 1.45]
    assert line(9.0) == [1.0, 1.15, 1.3, 1.45]
    assert line(0.85) == [1.0, 1.15, 0.85, 0.7]
    assert line(-9.0) == [1.0, 1.15, 0.85, 0.7]
    assert next_strength({1.0: 0.5, 1.15: 0.5}) == 0.85, "not better: where bounds clip, for one"
    assert long_enough([48, 24, 23]) == [True, True, False]
    assert Mixture.from_json(Mixture((3, 5), 1.15).to_json()) == Mixture((3, 5), 1.15)
    assert Mixture((7,), 0.85).name == "trial 7 x 0.85"


@pytest.mark.parametrize("wide", [False, True])
def test_a_finished_search_goes_on_with_more_searches(wide: bool) -> None:
    """Its trials are those of a study that planned them from the start."""
    here, whole = Sittings(wide), Sittings(wide)
    assert here.go(ONE) == "gradients: all 12 steps are taken"
    assert here.letters == FULL
    here.go()
    whole.go()
    assert here.records == whole.records


def test_more_steps_go_on_from_before_every_decay_and_make_a_new_average() -> None:
    more = replace(THREE, adam=AdamSettings(24, decay=6))
    here, whole = Sittings(), Sittings()
    here.go()
    assert here.go(more) == whole.go(more) == "gradients: all 24 steps of 3 searches are taken"
    assert (here.letters.count("M"), whole.letters.count("M")) == (2, 1)
    ours, theirs = ([r for r in each.records if r.role in (AVERAGE_OF_SEARCHES, STRENGTH)] for each in (here, whole))
    np.testing.assert_array_equal(here.numbers(ours[-1]), whole.numbers(theirs[-1]))
    held = [[here.numbers(r).tolist() for r in each.records if r.role == STEP and r.held] for each in (here, whole)]
    assert sorted(held[0]) == sorted(held[1])


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("on_disk", [False, True])
def test_killed_anywhere_it_makes_the_same_trials(wide: bool, on_disk: bool, tmp_path: Path) -> None:
    def place(name: str) -> Sittings:
        if not on_disk:
            return Sittings(wide)
        return Sittings(wide, f"sqlite:///{tmp_path}/{name}.db", Artifacts(tmp_path / name))

    settings = replace(THREE, adam=AdamSettings(8, decay=3))
    whole, parts = place("whole"), place("parts")
    reason = whole.go(settings, far=1.3)
    for _ in range(100):
        try:
            found = parts.go(settings, far=1.3, stop_at=7 if on_disk else 1)
        except KeyboardInterrupt:
            continue
        break
    assert found == reason
    assert parts.records == whole.records
    assert "Mx" in whole.letters


def test_limits_end_it_in_order_and_what_is_there_is_averaged() -> None:
    seen = set()
    for trials in range(8, 62):
        here = Sittings()
        reason = here.go(replace(THREE, trials=trials))
        seen.add(here.letters.lstrip("sCdD"))
        assert len(here.records) <= trials
        branches = [record for record in here.records if not record.held and record.role in ("search", AVERAGE)]
        ended = len({record.member for record in branches})
        assert ended >= 1 and here.letters.count("M") == (ended > 1)
        assert "xx" in here.letters or trials < 10, "the reserve is enough for strengths"
        assert reason.startswith("trials" if trials < 4 + 3 * len(FULL) + 3 else "gradients"), trials
    assert {"Mxx", "xx"} <= seen
    for limit in (8.0, 15.0, 19.0):
        here = Sittings()
        reason = here.go(replace(THREE, time_limit=limit))
        assert sum(record.score.seconds for record in here.records) <= limit
        assert reason.startswith(f"time: the limit of {limit:g} s leaves no room for ")
        whole = Sittings()
        here.go()
        whole.go()
        ends = [[each.numbers(r) for r in each.records if r.role == AVERAGE_OF_SEARCHES][-1] for each in (here, whole)]
        np.testing.assert_array_equal(*ends, err_msg="with more time it makes what it would have made")


def test_a_search_that_a_limit_made_too_short_is_left_out_of_the_average() -> None:
    here = Sittings()
    with pytest.raises(KeyboardInterrupt):
        here.go(stop_at=4 + 2 * len(FULL) + 3)
    reason = here.go(replace(THREE, trials=4 + 2 * len(FULL) + 9))
    assert reason == f"trials: the limit of {4 + 2 * len(FULL) + 9} leaves no room for another step"
    assert here.letters == FULL * 2 + "sssss" + "D" + "Mxx"
    assert "left out, as too short: 5 steps" in " ".join(here.said)
    (average,) = (record for record in here.records if record.role == AVERAGE_OF_SEARCHES)
    assert average.name == "average of 2 searches"


def test_asked_to_end_it_averages_what_is_there() -> None:
    """The search under way ends with a decay, the others are not begun, and strengths are not tried."""
    there = 4 + len(FULL) + 11
    here = Sittings()
    assert here.go(asked=after(there, Asked.END)) == "interrupt: the user ended it after 10 of 12 steps"
    assert here.letters == FULL + "ssssssssC" + "ss" + "dD" + "M"
    assert here.said[-1].startswith("2 of 3 searches are averaged, trials ")
    here.go()
    whole = Sittings()
    whole.go()
    assert here.letters.count("M") == 2
    np.testing.assert_array_equal(here.numbers(here.records[-1]), whole.numbers(whole.records[-1]))

    here = Sittings()
    here.go(asked=after(there - 1, Asked.END_NOW))
    assert here.letters == FULL + "ssssssssC" + "s" + "A" + "M"
    here = Sittings()
    assert here.go(asked=after(4 + len(FULL), Asked.END)) == "interrupt: the user ended it before search 2 of 3"
    assert here.letters == FULL
    for stop in (6, 12, 2):
        assert here.go(asked=after(stop, Asked.STOP)) == "interrupted"
    here.go()
    assert here.records == whole.records


def test_a_plateau_of_one_search_is_not_that_of_the_next() -> None:
    here = Sittings()
    reason = here.go(replace(THREE, patience=10, eval_every=4))
    assert reason.startswith(("plateau", "gradients"))
    assert {record.member for record in here.records if record.role == STEP} == {0, 1, 2}


def test_an_average_has_the_map_of_all_its_searches() -> None:
    for wide in (False, True):
        here = Sittings(wide)
        here.go()
        records = here.records
        ends = [record for record in records if not record.held and record.role == "search"]
        own = [here.study.gains_until(end.number) for end in ends]
        assert [len(each or []) for each in own] == [1, 1, 1]
        (average,) = (record for record in records if record.role == AVERAGE_OF_SEARCHES)
        for number in (average.number, records[-1].number, 0):
            together = here.study.gains_until(number)
            assert together is not None and len(together) == 3
            for one, each in zip(own, together, strict=True):
                np.testing.assert_array_equal((one or [None])[0], each)
        assert not np.array_equal(together[0], together[1])
        groups = [[0], list(range(6))]
        found, parts = mean_attribution(together, groups), [attribution(each, groups) for each in together]
        np.testing.assert_allclose(found.gain, np.mean([part.gain for part in parts], axis=0))
        np.testing.assert_allclose(found.stderr, np.sqrt(sum(part.stderr**2 for part in parts)) / 3)
        table: Any = importance(together, here.space, dict.fromkeys(LAYERS, "all"))
        assert (table["steps"], table["searches"]) == (36, 3)


def test_several_searches_need_a_rate_that_is_held() -> None:
    with pytest.raises(ConfigError, match="several searches need a learning rate that is held"):
        replace(THREE, adam=AdamSettings(12))


def test_a_damaged_mixture_is_one_line() -> None:
    here = Sittings()
    here.go()
    storage: Any = here.storage
    (kept,) = storage._studies.values()
    kept.trials[-1].user_attrs[MIXTURE] = {"of": "many"}
    with pytest.raises(StudyError, match="damaged"):
        here.study.records()
