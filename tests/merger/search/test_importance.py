"""The importance map: gains that are known, errors by simulation, and what a study keeps of its steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from optuna.storages import InMemoryStorage

from merger.search.adam import AdamSettings, AdamState, first_weights, next_weights, update
from merger.search.artifacts import ARTIFACT, Artifacts
from merger.search.baselines import baselines_of
from merger.search.endings import on_course
from merger.search.gradient import GRADIENT
from merger.search.importance import FEWEST_STEPS, GAINS, attribution, gains_of_step, importance
from merger.search.loop import search
from merger.search.settings import SearchSettings
from merger.search.space import Space, make_space
from merger.search.study import Study, open_study
from merger.search.trials import AVERAGE, STEP, Asked, Score, TrialRecord
from merger.weights import Channels, Weights

LAYERS, DONORS = ("IN00", "M00", "OUT00"), ("warm", "cool")
TARGET = np.array([0.9, 0.1, 0.2, 0.7, -0.3, 0.4])
SETTINGS = SearchSettings("gradient", 3, 200, 1000, None, AdamSettings(20, decay=5), 8)


def way(rng: np.random.Generator, noise: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(weights, gradients) [T, 6] of Adam on 1 - |w - target|² with noise that a step's 6 gradients share in part."""
    low, high = np.full(6, -1.0), np.full(6, 2.0)
    adam, state = AdamSettings(steps), AdamState.begin(6)
    weights, gradients = [first_weights(low, high, adam)], []
    for _ in range(steps):
        seen = noise * (rng.normal(size=6) + rng.normal())
        gradients.append(-2 * (weights[-1] - TARGET) + seen)
        state = update(state, gradients[-1], adam)
        weights.append(next_weights(weights[-1], state, low, high, adam))
    return np.array(weights[:-1]), np.array(gradients)


def gains_of(weights: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """[T, 2, N], each step by itself."""
    still = np.zeros_like(weights[:1])
    moved = np.concatenate([still, weights[1:] - weights[:-1]])
    before = np.concatenate([still, moved[:-1]])
    widths = [1] * weights.shape[1]
    return np.stack([gains_of_step(*step, widths) for step in zip(gradients, moved, before, strict=True)])


def test_without_noise_the_parts_are_the_rise_of_a_quadratic_less_its_curvature() -> None:
    weights, gradients = way(np.random.default_rng(0), 0.0, 30)
    found = attribution(gains_of(weights, gradients), [[place] for place in range(6)])
    rise = (weights[0] - TARGET) ** 2 - (weights[-1] - TARGET) ** 2
    curvature = (np.diff(weights, axis=0) ** 2).sum(axis=0)  # half the second derivative, at the end of each move
    np.testing.assert_allclose(found.gain, rise - curvature, atol=1e-12)
    assert curvature.sum() < 0.1 * rise.sum()
    assert found.gain.argmax() == 0 and found.gain.argmin() in (1, 2), "far from the target, and near it"


def test_errors_are_as_large_as_gains_vary_about_the_truth() -> None:
    """1,000 searches, each against what its own way gains without noise; single weights and sums of them."""
    groups = [[0], [1], [4], [0, 2, 4], list(range(6))]
    rng = np.random.default_rng(1)
    apart, at_beginning = [], []
    for _ in range(1000):
        weights, gradients = way(rng, 0.5, 40)
        gains = gains_of(weights, gradients)
        found = attribution(gains, groups)
        true = attribution(gains_of(weights, -2 * (weights - TARGET)), groups).gain
        apart.append(np.stack([found.gain - true, found.stderr]))
        at_beginning.append((gradients[:-1] * np.diff(weights, axis=0)).sum() - true[-1])
    off, stderr = np.stack(apart, axis=1)
    spread = off.std(axis=0)
    assert (abs(off.mean(axis=0)) < 4 * spread / np.sqrt(len(off))).all(), "the noise is 0 in the mean"
    ratio = np.sqrt((stderr**2).mean(axis=0)) / spread
    assert ((ratio > 0.9) & (ratio < 1.25)).all(), ratio
    covered = (abs(off) < 1.96 * stderr).mean(axis=0)
    assert ((covered > 0.9) & (covered < 0.985)).all(), covered
    assert np.mean(at_beginning) > 3 * spread[-1], "a gradient at a move's beginning takes its noise for gain"


def test_too_few_steps_have_no_errors() -> None:
    with pytest.raises(ValueError, match="7 steps are too few"):
        attribution(np.zeros((FEWEST_STEPS - 1, 2, 1)), [[0]])


class World:
    """A quadratic with other noise at every place."""

    def __init__(self, space: Space) -> None:
        self.space = space

    def numbers(self, weights: Weights) -> list[np.ndarray]:
        rows = [weights[layer][donor] for layer in self.space.layers for donor in DONORS]
        return [row.values.astype(float) if isinstance(row, Channels) else np.array([float(row)]) for row in rows]

    def __call__(self, weights: Weights, report: object = None) -> Score:
        away = [row.mean() - target for row, target in zip(self.numbers(weights), TARGET, strict=True)]
        value = 1 - float(np.mean(np.square(away)))
        return Score(value, 0.01, value, 0.01, value, {}, [value] * 4, 8, 0.5)

    def take_step(self, weights: Weights, place: int) -> Any:
        rng = np.random.default_rng(place)
        rows = iter(
            -2 * (row - target - 0.2 * rng.normal(size=4)[: len(row)])
            for row, target in zip(self.numbers(weights), TARGET, strict=True)
        )
        return self(weights), {layer: {donor: next(rows) for donor in DONORS} for layer in self.space.layers}


class Sitting:
    """A study in memory."""

    def __init__(self, **options: Any) -> None:
        self.space = make_space(LAYERS, DONORS, bounds=(-0.5, 1.5), **options)
        self.artifacts, self.storage = Artifacts(), InMemoryStorage()

    @property
    def study(self) -> Study:
        baselines = baselines_of(self.space, "base")
        return open_study(self.storage, "study", self.space, identity={}, baselines=baselines, artifacts=self.artifacts)

    def go(self, settings: SearchSettings = SETTINGS, asked: Any = lambda: Asked.NOTHING) -> list[TrialRecord]:
        world = World(self.space)
        search(world, self.study, settings, take_step=world.take_step, interrupted=asked)
        return self.study.records()

    def gains_until(self, number: int) -> np.ndarray:
        """[T, 2, N] of a trial that one search led to."""
        (gains,) = self.study.gains_until(number) or [np.zeros(0)]
        return gains

    def gains_of(self, steps: list[TrialRecord]) -> np.ndarray:
        """[T, 2, N] of these steps, each after the one before, with gradients taken again."""
        world = World(self.space)
        weights, gradients = [], []
        for place, step in enumerate(steps):
            assert step.role == STEP and step.score.attributes["place"] == place
            gradients.append(self.space.gradient_of(world.take_step(step.weights, place)[1]))
            rows = world.numbers(step.weights)
            at = {(layer, donor): rows.pop(0) for layer in LAYERS for donor in DONORS}
            weights.append(np.concatenate([at[each.layers[0], each.donor] for each in self.space.parameters]))
        by_weight = gains_of(np.array(weights), np.array(gradients))
        ends = np.cumsum([each.width for each in self.space.parameters])
        return np.stack([part.sum(axis=2) for part in np.split(by_weight, ends[:-1], axis=2)], axis=2)


SPACES = [{}, {"tied": [("IN00", "OUT00")]}, {"widths": {"IN00": 3, "OUT00": 2}}, {"frozen": {"M00": 0.2}}]


@pytest.mark.parametrize("options", SPACES)
def test_a_study_tells_the_gains_of_the_steps_that_led_to_a_trial(options: dict[str, Any]) -> None:
    sitting = Sitting(**options)
    records = sitting.go()
    course = [record for record in records if record.role == STEP]
    assert len(course) == 20 and records[-1].role == "search"
    whole = sitting.gains_until(records[-1].number)
    assert whole.shape == (20, 2, len(sitting.space.parameters))
    # arrays are kept in float32
    np.testing.assert_allclose(whole, sitting.gains_of(course), rtol=0, atol=1e-6)
    eighth = next(record for record in records if record.role == "search")
    np.testing.assert_allclose(sitting.gains_until(eighth.number), whole[:9], err_msg="8, and the one from there")
    np.testing.assert_allclose(sitting.gains_until(0), whole, err_msg="a baseline has the whole search")
    assert GRADIENT in course[0].score.attributes or ARTIFACT in course[0].score.attributes[GAINS]


@pytest.mark.parametrize("options", [SPACES[0], SPACES[2]])
def test_decays_that_led_elsewhere_have_no_part(options: dict[str, Any]) -> None:
    sitting = Sitting(**options)
    first = sitting.go()
    records = sitting.go(replace(SETTINGS, adam=AdamSettings(40, decay=5)))
    old, new = first[-1].number, records[-1].number
    course = [x for x in on_course(records, lambda x: x.held, decaying=True) if x.role == STEP]
    assert len(course) == 40 < sum(record.role == STEP for record in records)
    found = sitting.gains_until(new)
    np.testing.assert_allclose(found, sitting.gains_of(course), rtol=0, atol=1e-6)
    np.testing.assert_allclose(sitting.gains_until(old), sitting.gains_of([r for r in first if r.role == STEP]),
                               rtol=0, atol=1e-6, err_msg="the end of the decay still has its own")  # fmt: skip


def test_an_average_has_the_steps_up_to_it() -> None:
    sitting = Sitting()
    answers = iter([Asked.NOTHING] * 16 + [Asked.END_NOW] * 10)
    records = sitting.go(asked=lambda: next(answers))
    assert records[-1].role == AVERAGE
    steps = [record for record in records if record.role == STEP]
    np.testing.assert_allclose(sitting.gains_until(records[-1].number), sitting.gains_of(steps), atol=1e-12)


def test_steps_by_channel_of_a_version_without_maps_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    sitting = Sitting(widths={"IN00": 3})
    monkeypatch.setattr("merger.search.steps.GAINS", "something else")
    sitting.go()
    assert sitting.study.gains_until(0) is None


def test_without_gradients_there_are_no_gains() -> None:
    sitting = Sitting()
    sitting.go(SearchSettings("cmaes", 3, 12, 1000, None))
    assert sitting.study.gains_until(5) is None


def test_rows_and_donors_add_up_to_the_whole_and_keep_the_errors_of_sums() -> None:
    space = make_space(LAYERS, DONORS, bounds=(-1, 2))
    weights, gradients = way(np.random.default_rng(2), 0.5, 40)
    gains = gains_of(weights, gradients)
    found: Any = importance([gains], space, {"IN00": "IN", "M00": "rest", "OUT00": "rest"})
    assert list(found["rows"]) == ["IN", "rest"] and found["steps"] == 40
    parts = attribution(gains, [[2, 4], [3, 5]])
    assert found["rows"]["rest"]["warm"] == pytest.approx([parts.gain[0], parts.stderr[0]], rel=1e-3)
    assert found["rows"]["rest"]["cool"] == pytest.approx([parts.gain[1], parts.stderr[1]], rel=1e-3)
    for cells in (found["donors"], {(row, d): cell for row, own in found["rows"].items() for d, cell in own.items()}):
        assert sum(gain for gain, _ in cells.values()) == pytest.approx(found["gain"], rel=2e-3)
    tied = make_space(LAYERS, DONORS, bounds=(-1, 2), tied=[("IN00", "OUT00")], frozen={"M00": 0.5})
    found = importance([gains[..., :2]], tied, {"IN00": "IN", "M00": "MID", "OUT00": "OUT"})
    assert list(found["rows"]) == ["IN + OUT"], "a weight of several rows is one, and frozen layers are none"
