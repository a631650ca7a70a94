"""A search by gradients ends well at any time: its learning rate falls, and later it goes on from before that."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import InMemoryStorage

from merger.errors import ConfigError, StudyError
from merger.scoring.selection import finalists_of
from merger.search.adam import AdamSettings, Decay
from merger.search.artifacts import Artifacts
from merger.search.baselines import baselines_of
from merger.search.endings import on_course
from merger.search.gradient import ADAM, GRADIENT
from merger.search.loop import search
from merger.search.settings import SearchSettings
from merger.search.space import Space, make_space
from merger.search.storage import Storage
from merger.search.study import Study, open_study
from merger.search.trials import AVERAGE, DECAY, STEP, Asked, Score, TrialRecord
from merger.weights import Channels, Weights

LAYERS, DONORS = ("IN00", "M00", "OUT00"), ("warm", "cool")
TARGET = np.array([0.9, 0.1, 0.2, 0.7, -0.3, 0.4])
ADAM20 = AdamSettings(20, decay=5)
SETTINGS = SearchSettings("gradient", 3, 200, 1000, None, ADAM20, 8)


class World:
    """A quadratic seen through other noise at every place; an evaluation takes 0.5 s and a step `step_seconds`."""

    def __init__(self, space: Space, stop_at: int | None = None, step_seconds: float = 0.5, flat: bool = False) -> None:
        self.space, self.stop_at, self.step_seconds, self.flat = space, stop_at, step_seconds, flat

    def numbers(self, weights: Weights) -> np.ndarray:
        if not self.space.wide:
            return np.array(self.space.flatten(weights))
        rows = [weights[layer][donor] for layer in LAYERS for donor in DONORS]
        means = [float(np.mean(row.values)) if isinstance(row, Channels) else float(row) for row in rows]
        return np.array(means)

    def score(self, weights: Weights, offset: float) -> tuple[Score, np.ndarray]:
        away = self.numbers(weights) - TARGET - offset
        parts = np.ones(6) if self.flat else 1 - away**2
        value = float(parts.mean())
        return Score(value, 0.01, value, 0.01, value, {}, parts.tolist(), 8, 0.5), -2 * away / 6

    def __call__(self, weights: Weights, report: object = None) -> Score:
        self._count()
        return self.score(weights, 0.0)[0]

    def take_step(self, weights: Weights, place: int) -> Any:
        self._count()
        score, gradient = self.score(weights, 0.1 * float(np.random.default_rng(place).normal()))
        rows = zip(*[iter(gradient)] * 2, strict=True)
        found = {
            layer: dict(zip(DONORS, map(float, row), strict=True)) for layer, row in zip(LAYERS, rows, strict=True)
        }
        for layer, width in self.space.widths.items():
            found[layer] = {donor: np.full(width, value) for donor, value in found[layer].items()}  # type: ignore[misc]
        return replace(score, seconds=self.step_seconds), found

    def _count(self) -> None:
        if self.stop_at == 0:
            raise KeyboardInterrupt
        if self.stop_at is not None:
            self.stop_at -= 1


def space_of(wide: bool = False) -> Space:
    return make_space(LAYERS, DONORS, bounds=(-0.5, 1.5), widths={"IN00": 3, "OUT00": 2} if wide else {})


class Sittings:
    """A study in memory that is searched again and again; `said` are the lines about the learning rate."""

    def __init__(self, wide: bool = False, storage: Storage | None = None, artifacts: Artifacts | None = None) -> None:
        self.space = space_of(wide)
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
        """A letter a trial after the baselines: s a step, C an evaluation; small and capital d those of a decay."""
        return "".join(
            "A"
            if record.role == AVERAGE
            else ("s" if record.role == STEP else "C")
            if record.held
            else ("d" if record.role == STEP else "D")
            for record in self.records[4:]
        )

    def go(self, settings: SearchSettings = SETTINGS, asked: Callable[[], Asked] | None = None, **world: Any) -> str:
        made = World(self.space, **world)
        return search(
            made,
            self.study,
            settings,
            take_step=made.take_step,
            interrupted=asked or (lambda: Asked.NOTHING),
            say=self.said.append,
        )

    def steps(self, decaying: bool = False) -> list[TrialRecord]:
        return [x for x in on_course(self.records, lambda x: x.held, decaying=decaying) if x.role == STEP]


def after(trials: int, *answers: Asked) -> Callable[[], Asked]:
    """Asked for nothing so many times, then for each of the answers, the last one for good."""
    given = itertools.chain([Asked.NOTHING] * trials, answers, itertools.repeat(answers[-1]))
    return lambda: next(given)


def numbers(records: Sequence[TrialRecord]) -> list[dict[str, dict[str, Any]]]:
    return [{layer: dict(row) for layer, row in record.weights.items()} for record in records]


def test_the_rate_is_held_and_then_falls_as_half_a_cosine() -> None:
    plain, held = AdamSettings(20), AdamSettings(20, decay=5)
    assert [plain.learning_rate_at(step) for step in range(21)] == pytest.approx(
        [0.03 * (1 + np.cos(np.pi * step / 20)) for step in range(21)]
    )
    assert [held.learning_rate_at(step) for step in range(16)] == [0.06] * 16
    assert held.learning_rate_at(16) == AdamSettings(5).learning_rate_at(1) < 0.06
    assert held.learning_rate_at(20) == held.learning_rate_at(30) == 0
    assert AdamSettings(20, decay=20).learning_rate_at(7) == plain.learning_rate_at(7)
    assert (held.holds, plain.holds, AdamSettings(20, decay=20).holds) == (True, False, False)
    begun = replace(held, begun=Decay.after(8, 3, 20, "why"))
    assert [begun.learning_rate_at(step) for step in range(8)] == [0.06] * 7 + [AdamSettings(3).learning_rate_at(1)]
    assert [held.decay_after(taken) for taken in (1, 3, 6, 12, 18, 40)] == [2, 2, 2, 4, 5, 5]
    assert Decay.from_json(Decay.after(8, 3, 20, "why").to_json()) == Decay.after(8, 3, 20, "why")
    with pytest.raises(ConfigError, match="decay 1: use at least 2"):
        AdamSettings(20, decay=1)


@pytest.mark.parametrize("wide", [False, True])
def test_a_planned_decay_is_that_of_the_whole_plan(wide: bool) -> None:
    here = Sittings(wide)
    assert here.go() == "gradients: all 20 steps are taken"
    assert here.letters == "ssssssssC" * 2 + "sdddD"
    assert here.said == [
        "after 17 steps the learning rate falls to 0, over 4 updates (gradients: all 20 steps are taken)"
    ]
    assert here.go() == "gradients: all 20 steps are taken", "nothing is left to do"
    assert here.letters == "ssssssssC" * 2 + "sdddD"
    assert len(here.said) == 1
    assert max(here.records[-1:], key=lambda record: record.value).value > 0.97
    moved = [
        float(np.abs(World(here.space).numbers(a.weights) - World(here.space).numbers(b.weights)).max())
        for a, b in itertools.pairwise([*here.steps(decaying=True)[16:], here.records[-1]])
    ]
    assert moved[0] > moved[-1] > 0


@pytest.mark.parametrize("wide", [False, True])
def test_a_search_with_more_steps_goes_on_from_before_its_decay(wide: bool) -> None:
    """Its held steps and their evaluations are those of a search that planned all steps from the start."""
    more = replace(SETTINGS, adam=AdamSettings(40, decay=10))
    whole, two = Sittings(wide), Sittings(wide)
    two.go()
    assert whole.go(more) == two.go(more) == "gradients: all 40 steps are taken"
    assert whole.letters == "ssssssssC" * 3 + "ssssssssD" + "ddddddddD"
    assert two.letters == "ssssssssC" * 2 + "s" + "dddD" + "sssssssC" + "ssssssssD" + "ddddddddD"
    assert two.said[1] == "the learning rate is held again: the search goes on after its 17 steps before the decay"
    for decaying in (False, True):
        first, second = (
            on_course(each.records, lambda record: record.held, decaying=decaying) for each in (whole, two)
        )
        assert numbers(first) == numbers(second)
        assert [record.score for record in first] == [record.score for record in second] or wide
        assert [record.value for record in first] == [record.value for record in second]
    assert [step.score.attributes["place"] for step in two.steps(decaying=True)] == list(range(40))
    assert [step.score.attributes[ADAM]["steps"] for step in two.steps(decaying=True)] == list(range(1, 41))


def test_a_plateau_begins_the_decay_and_ends_the_search_however_much_the_decay_gains() -> None:
    here, settings = Sittings(), replace(SETTINGS, eval_every=3, patience=8)
    reason = here.go(settings, flat=True)
    assert reason == "plateau: no improvement beyond its own noise in 8 trials"
    # the first evaluation is no improvement on the baselines, as all score the same
    assert here.letters == "sssCsssC" + "D"
    assert here.said[0].startswith("after 6 steps the learning rate falls to 0, over 1 updates (plateau")
    assert here.go(settings, flat=True) == reason
    assert here.letters == "sssCsssCD"
    assert here.go(replace(settings, patience=12), flat=True) == reason.replace(" 8 ", " 12 ")
    assert here.letters == "sssCsssCD" + "sssC" + "dD"


@pytest.mark.parametrize("limit", [6.0, 8.2, 9.0, 11.9, 100.0])
def test_the_decay_fits_before_a_limit_of_time(limit: float) -> None:
    here, settings = Sittings(), replace(SETTINGS, time_limit=limit, eval_every=4)
    reason = here.go(settings)
    spent = sum(record.score.seconds for record in here.records)
    assert spent <= limit
    assert here.letters.endswith("D")
    taken = len(here.steps())
    if limit == 100:
        assert reason.startswith("gradients")
        return
    assert reason == f"time: the limit of {limit:g} s leaves no room for another step"
    over = here.records[-1].score.attributes[DECAY]["over"]
    assert over == ADAM20.decay_after(taken), "no part of it was left out"
    assert limit - spent <= 1.5, "nor was time: a step more would have taken an evaluation with it"
    before = len(here.records)
    assert here.go(settings) == reason
    assert len(here.records) == before
    assert here.go(replace(settings, time_limit=100)).startswith("gradients")
    whole = Sittings()
    whole.go(replace(SETTINGS, eval_every=4))
    assert numbers(whole.steps(decaying=True)) == numbers(here.steps(decaying=True))


def test_so_does_it_before_a_limit_of_trials() -> None:
    for trials in range(7, 26):
        here = Sittings()
        reason = here.go(replace(SETTINGS, trials=trials))
        assert len(here.records) <= trials
        assert trials - len(here.records) <= 2
        assert here.letters[-1] == "D", trials
        assert reason == f"trials: the limit of {trials} leaves no room for another step"
    here = Sittings()
    here.go(replace(SETTINGS, trials=6))
    assert here.letters == "sD"


def test_without_time_for_a_decay_the_last_steps_are_averaged() -> None:
    """Steps take longer than those that the plan was made of: here a hundred times."""
    for wide in (False, True):
        here, settings = Sittings(wide), replace(SETTINGS, time_limit=9.0)
        with pytest.raises(KeyboardInterrupt):
            here.go(settings, stop_at=4 + 6)
        reason = here.go(settings, step_seconds=50.0)
        assert reason == "time: the limit of 9 s leaves no room for another step"
        assert here.letters == "sssssss" + "A"
        assert here.said[-1].startswith("no decay, as there is no room for one or none is wanted: the last steps are")
        average, steps = here.records[-1], here.steps()[-2:]
        world = World(here.space)
        np.testing.assert_allclose(
            world.numbers(average.weights), np.mean([world.numbers(step.weights) for step in steps], axis=0), rtol=1e-6
        )
        assert average in finalists_of(here.records)
        assert average.whole and not average.held
        assert here.go(settings) == reason
        assert here.letters == "sssssssA"
        here.go(replace(settings, time_limit=None))
        assert here.letters == "sssssssA" + "sCssssssssCs" + "dddD"


def test_asked_to_end_it_lets_the_rate_fall_and_later_goes_on() -> None:
    here = Sittings()
    assert here.go(asked=after(4 + 13, Asked.END)) == "interrupt: the user ended it after 12 of 20 steps"
    assert here.letters == "ssssssssCssss" + "ddD"
    assert here.said == [
        "after 12 steps the learning rate falls to 0, over 3 updates "
        "(interrupt: the user ended it after 12 of 20 steps)"
    ]
    assert here.go() == "gradients: all 20 steps are taken"
    assert here.letters == "ssssssssCssss" + "ddD" + "ssssC" + "sdddD"
    whole = Sittings()
    whole.go()
    assert numbers(whole.steps(decaying=True)) == numbers(here.steps(decaying=True))


def test_asked_twice_it_ends_with_the_average() -> None:
    for asked, letters in (
        (after(4 + 13, Asked.END, Asked.END_NOW), "ssssssssCssss" + "d" + "A"),
        (after(4 + 13, Asked.END_NOW), "ssssssssCssss" + "A"),
    ):
        here = Sittings()
        assert here.go(asked=asked) == "interrupt: the user ended it after 12 of 20 steps"
        assert here.letters == letters
        assert here.go() == "gradients: all 20 steps are taken"
        assert here.letters == letters + "ssssC" + "sdddD"


def test_asked_to_stop_it_decays_nothing_and_goes_on_as_if_nothing_had_been() -> None:
    here, whole = Sittings(), Sittings()
    whole.go()
    for trials in (2, 6, 11, 0):
        assert here.go(asked=after(trials, Asked.STOP)) == "interrupted"
    here.go()
    assert here.records == whole.records
    early = Sittings()
    assert early.go(asked=after(3, Asked.END)) == "interrupted", "there is no step yet that a decay could follow"
    assert len(early.records) == 3


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("on_disk", [False, True])
def test_stopped_anywhere_it_takes_the_same_trials(wide: bool, on_disk: bool, tmp_path: Path) -> None:
    """Killed after every single trial, on a plateau and with more patience after it."""
    first, second = (replace(SETTINGS, eval_every=3, patience=patience) for patience in (14, 1000))

    def place(name: str) -> Sittings:
        if not on_disk:
            return Sittings(wide)
        return Sittings(wide, f"sqlite:///{tmp_path}/{name}.db", Artifacts(tmp_path / name))

    whole, parts = place("whole"), place("parts")
    for settings in (first, second):
        flat = settings is first
        reason = whole.go(settings, flat=flat)
        for _ in range(100):
            try:
                found = parts.go(settings, flat=flat, stop_at=4 if on_disk else 1)
            except KeyboardInterrupt:
                continue
            break
        assert found == reason
        assert parts.letters == whole.letters
        assert parts.records == whole.records
    assert "d" in whole.letters.partition("D")[0]
    if wide and on_disk:  # of Adam's states only those are kept that some step may go on from
        trials = optuna.load_study(study_name="study", storage=whole.storage).trials
        states = {trial.user_attrs[ADAM]["artifact"] for trial in trials if ADAM in trial.user_attrs}
        left = states & {path.name for path in (tmp_path / "whole").iterdir()}
        held = [step.score.attributes[ADAM]["artifact"] for step in whole.steps()]
        assert len(left) == 3 and held[-1] in left


def test_a_kill_in_a_decay_that_the_user_began_goes_on_with_it() -> None:
    here, whole = Sittings(), Sittings()
    whole.go(asked=after(4 + 13, Asked.END))
    with pytest.raises(KeyboardInterrupt):
        here.go(asked=after(4 + 13, Asked.END), stop_at=4 + 13)
    done = len(whole.records)
    here.go(replace(SETTINGS, trials=200))
    assert here.records[:done] == whole.records


def test_with_more_steps_a_decay_that_is_not_done_is_left() -> None:
    here = Sittings()
    with pytest.raises(KeyboardInterrupt):
        here.go(stop_at=4 + 20)
    assert here.letters == "ssssssssC" * 2 + "sd"
    here.go(replace(SETTINGS, adam=AdamSettings(40, decay=10)))
    left = "d"  # the trial that was under way is finished
    assert here.letters == "ssssssssC" * 2 + "sd" + left + "sssssssC" + "ssssssssD" + "ddddddddD"
    assert [step.score.attributes["place"] for step in here.steps(decaying=True)] == list(range(40))


def test_a_rate_that_is_never_held_ends_as_ever() -> None:
    here, settings = Sittings(), replace(SETTINGS, adam=AdamSettings(20))
    assert here.go(settings, asked=after(4 + 13, Asked.END)) == "interrupted"
    assert here.go(replace(settings, time_limit=8.6)) == "time: the limit of 8.6 s is reached"
    here.go(settings)
    assert set(here.letters) == {"s", "C"} and here.said == []
    assert all(DECAY not in record.score.attributes for record in here.records)
    assert len(here.steps()[0].score.attributes[GRADIENT]) == 6


def test_a_damaged_decay_is_one_line() -> None:
    here = Sittings()
    here.go()
    storage: Any = here.storage
    (kept,) = storage._studies.values()
    kept.trials[-1].user_attrs[DECAY] = {"steps": "many"}
    with pytest.raises(StudyError, match="damaged"):
        here.study.records()
