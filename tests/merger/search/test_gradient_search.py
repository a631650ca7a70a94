"""The method `gradients` in a study: a quadratic to climb, seen through other noise at every step; no models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmark.prompts.prompt_set import Prompt
from merger.errors import StudyError
from merger.scoring.gradients.steps import FreshSteps
from merger.scoring.selection import finalists_of
from merger.search.adam import AdamSettings
from merger.search.baselines import baselines_of
from merger.search.samplers import GRADIENT
from merger.search.space import Space, Weights, make_space
from merger.search.study import SearchSettings, Study, incumbent, open_study, search
from merger.search.trials import STEP, Score, TrialRecord, last_improvement

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
    """Objective and climb in one; after `stop_at` calls the program is stopped."""

    def __init__(self, space: Space, stop_at: int | None = None) -> None:
        self.space, self.stop_at = space, stop_at
        self.places: list[int] = []

    def __call__(self, weights: Weights, report: object = None) -> Score:
        self._count()
        return quadratic(self.space, weights)[0]

    def climb(self, weights: Weights, place: int) -> tuple[Score, dict[str, dict[str, float]]]:
        self._count()
        self.places.append(place)
        score, gradients = quadratic(self.space, weights, 0.1 * float(np.random.default_rng(place).normal()))
        return replace(score, value=score.value + 5), self.space.unflatten(gradients.tolist())

    def _count(self) -> None:
        if self.stop_at == 0:
            raise KeyboardInterrupt
        if self.stop_at is not None:
            self.stop_at -= 1


def searched(folder: Path, space: Space, settings: SearchSettings, stop_at: int | None = None) -> tuple[Study, str]:
    folder.mkdir(exist_ok=True)
    baselines = baselines_of(space, "base")
    study = open_study(f"sqlite:///{folder / 'study.db'}", "study", space, identity={}, baselines=baselines)
    world = Paraboloid(space, stop_at)
    return study, search(world, study, settings, baselines=len(baselines), climb=world.climb)


def space_of(**options: object) -> Space:
    return make_space(LAYERS, DONORS, **{"bounds": (-0.5, 1.5), **options})  # type: ignore[arg-type]


def roles(records: Sequence[TrialRecord]) -> str:
    """One letter a trial after the four baselines."""
    return "".join("s" if record.role == STEP else "C" for record in records[4:])


def test_it_climbs_and_scores_where_it_is_every_few_steps(tmp_path: Path) -> None:
    study, reason = searched(tmp_path, space_of(), SETTINGS)
    records = study.records()
    assert reason == "gradients: all 20 steps are taken"
    assert roles(records) == "ssssssssC" * 2 + "ssssC"
    assert incumbent(study).role == "search"
    assert incumbent(study).value > 0.97 > max(record.value for record in records[:4])
    steps = [record for record in records if record.role == STEP]
    assert [step.score.attributes["place"] for step in steps] == list(range(20))
    assert all(len(step.score.attributes[GRADIENT]) == 6 for step in steps)


def test_no_step_is_a_candidate_however_high_its_value(tmp_path: Path) -> None:
    records = searched(tmp_path, space_of(), SETTINGS)[0].records()
    assert max(records, key=lambda record: record.value).role == STEP
    assert {record.role for record in finalists_of(records)} == {"search", "uniform"}
    assert records[last_improvement(records)].role != STEP


@pytest.mark.parametrize("options", [{}, {"bounds": (0, 0.5), "tied": [("IN00", "OUT00")], "frozen": {"M00": 0.2}}])
def test_stopping_anywhere_and_going_on_gives_the_same_trials(options: dict[str, object], tmp_path: Path) -> None:
    space = space_of(**options)
    whole = searched(tmp_path / "whole", space, SETTINGS)[0].records()
    for calls in (0, 3, 2, 9, 7):
        with pytest.raises(KeyboardInterrupt):
            searched(tmp_path / "broken", space, SETTINGS, calls)
    assert searched(tmp_path / "broken", space, SETTINGS)[0].records() == whole


def test_layers_that_share_a_weight_share_the_sum_of_their_gradients(tmp_path: Path) -> None:
    space = space_of(tied=[("IN00", "OUT00")])
    records = searched(tmp_path, space, replace(SETTINGS, trials=6))[0].records()
    assert space.to_values(records[4].weights) == dict.fromkeys(["IN00/warm", "IN00/cool", "M00/warm", "M00/cool"], 0.1)
    gradients = quadratic(space, records[4].weights, 0.1 * float(np.random.default_rng(0).normal()))[1]
    expected = [gradients[0] + gradients[4], gradients[1] + gradients[5], gradients[2], gradients[3]]
    assert records[4].score.attributes[GRADIENT] == pytest.approx(expected)


def test_a_limit_lets_the_last_steps_be_scored_and_more_trials_take_the_same_steps(tmp_path: Path) -> None:
    study, reason = searched(tmp_path / "two", space_of(), replace(SETTINGS, trials=10))
    assert (reason, roles(study.records())) == ("trials: the limit of 10 is reached", "sssssC")
    two = searched(tmp_path / "two", space_of(), SETTINGS)[0].records()
    one = searched(tmp_path / "one", space_of(), SETTINGS)[0].records()
    assert roles(two) == "sssssCsssCssssssssCssssC"
    assert [r.weights for r in two if r.role == STEP] == [r.weights for r in one if r.role == STEP]
    study, reason = searched(tmp_path / "time", space_of(), replace(SETTINGS, time_limit=3.4))
    assert (reason, roles(study.records())) == ("time: the limit of 3.4 s is reached", "sssC")


def test_black_box_trials_near_the_best_may_follow_a_climb(tmp_path: Path) -> None:
    settings = replace(SETTINGS, adam=AdamSettings(6), eval_every=3, polish=12)
    whole, reason = searched(tmp_path / "whole", space_of(), settings)
    records = whole.records()
    assert reason == "gradients: all 6 steps are taken, and 12 trials near the best"
    assert [record.role for record in records[12:]] == ["polish"] * 12
    climbed = max(record.value for record in records[:12] if record.role != STEP)
    assert incumbent(whole).role == "polish"
    assert incumbent(whole).value > climbed
    best = next(record for record in records if record.value == climbed)
    away = np.abs(np.array(space_of().flatten(records[12].weights)) - space_of().flatten(best.weights))
    assert 0 < away.max() < 0.2
    for calls in (10, 5, 6):
        with pytest.raises(KeyboardInterrupt):
            searched(tmp_path / "broken", space_of(), settings, calls)
    assert searched(tmp_path / "broken", space_of(), settings)[0].records() == records


def test_a_climb_ends_where_what_it_reaches_no_longer_rises(tmp_path: Path) -> None:
    """Patience counts steps and checks since the last check that rose by more than its noise."""
    space = space_of()
    baselines = baselines_of(space, "base")
    study = open_study(f"sqlite:///{tmp_path / 'study.db'}", "study", space, identity={}, baselines=baselines)
    flat = Score(0.5, 0.01, 0.5, 0.01, 0.5)
    settings = replace(SETTINGS, eval_every=2, patience=7)
    reason = search(
        lambda weights, report=None: flat,
        study,
        settings,
        baselines=len(baselines),
        climb=lambda weights, place: (replace(flat, value=place), space.unflatten([1.0] * 6)),
    )
    assert reason.startswith("plateau")
    assert roles(study.records()) == "ssCssCsC"


def test_a_gradient_that_is_no_number_ends_the_search_and_keeps_nothing(tmp_path: Path) -> None:
    space = space_of()
    study = searched(tmp_path, space, replace(SETTINGS, trials=4))[0]

    def broken(weights: Weights, place: int) -> tuple[Score, dict[str, dict[str, float]]]:
        return quadratic(space, weights)[0], space.unflatten([float("nan")] * 6)

    with pytest.raises(StudyError, match="not a finite number"):
        search(Paraboloid(space), study, SETTINGS, baselines=4, climb=broken)
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
