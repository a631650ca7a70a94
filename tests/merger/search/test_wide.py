"""Wide spaces, with a weight for each channel: arrays in artifacts, the same search after a stop, nothing in rows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import InMemoryStorage

from merger.errors import ConfigError, StudyError
from merger.search.adam import AdamSettings
from merger.search.artifacts import Artifacts, StoredWeights
from merger.search.baselines import baselines_of, outcomes
from merger.search.gradient import STATES_KEPT
from merger.search.loop import search
from merger.search.space import Space, make_space
from merger.search.storage import Storage
from merger.search.study import SearchSettings, Study, open_study, read_study
from merger.search.trials import SEARCH, STEP, Score, distinct_best
from merger.weights import Channels, Weights, key_of, mean_of

LAYERS, DONORS, WIDTHS = ("a", "b", "c"), ("warm", "cool"), {"a": 3, "c": 4}
SETTINGS = SearchSettings("gradient", 3, 60, 1000, None, AdamSettings(12), 4)
RNG = np.random.default_rng(0)
TARGET = {(layer, donor): RNG.uniform(-0.2, 0.9, WIDTHS.get(layer, 1)) for layer in LAYERS for donor in DONORS}


def space_of(**options: Any) -> Space:
    return make_space(LAYERS, DONORS, **{"bounds": (-0.5, 1.5), "widths": WIDTHS, **options})


def as_array(weight: Any, width: int) -> np.ndarray:
    return weight.values.astype(np.float64) if isinstance(weight, Channels) else np.full(width, float(weight))


class Paraboloid:
    """Objective and steps in one; after `stop_at` calls the program is stopped."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at

    def __call__(self, weights: Weights, report: object = None) -> Score:
        if self.stop_at == 0:
            raise KeyboardInterrupt
        self.stop_at = None if self.stop_at is None else self.stop_at - 1
        parts = [1 - float(np.mean(away**2)) for away in self.away(weights, 0.0).values()]
        value = float(np.mean(parts))
        return Score(value, 0.01, value, 0.01, value, {}, parts, 8, 0.5)

    def away(self, weights: Weights, offset: float) -> dict[tuple[str, str], np.ndarray]:
        return {
            (layer, donor): as_array(weights[layer][donor], len(target)) - target - offset
            for (layer, donor), target in TARGET.items()
        }

    def take_step(self, weights: Weights, place: int) -> tuple[Score, Mapping[str, Mapping[str, Any]]]:
        score = self(weights)
        away = self.away(weights, 0.1 * float(np.random.default_rng(place).normal()))
        return score, {
            layer: {
                donor: -2 * away[layer, donor] if layer in WIDTHS else -2 * float(away[layer, donor][0])
                for donor in DONORS
            }
            for layer in LAYERS
        }


def searched(
    space: Space,
    settings: SearchSettings,
    storage: Storage | None = None,
    artifacts: Artifacts | None = None,
    stop_at: int | None = None,
) -> Study:
    study = open_study(
        storage or InMemoryStorage(),
        "study",
        space,
        identity={},
        baselines=baselines_of(space, "base"),
        artifacts=artifacts,
    )
    world = Paraboloid(stop_at)
    search(world, study, settings, take_step=world.take_step)
    return study


def test_weights_go_from_a_vector_to_layers_and_back() -> None:
    space = space_of()
    assert (space.size, space.wide, len(space.parameters)) == (16, True, 6)
    assert [parameter.width for parameter in space.parameters] == [3, 3, 1, 1, 4, 4]
    values = np.arange(16, dtype=np.float32)
    flat = space.place(values)
    weights = space.blend_of(flat)
    assert weights["a"] == {"warm": Channels([0, 1, 2]), "cool": Channels([3, 4, 5])}
    assert weights["b"] == {"warm": 6.0, "cool": 7.0} and weights["c"]["cool"] == Channels([12, 13, 14, 15])
    assert space.free(flat).tolist() == values.tolist()
    low, high = space_of(donor_bounds={"cool": (0.0, 1.0)}).bounds()
    assert low.tolist() == [-0.5] * 3 + [0.0] * 3 + [-0.5, 0.0] + [-0.5] * 4 + [0.0] * 4 and high[3] == 1.0
    with pytest.raises(StudyError, match="a stored blend has 5 weights, this search 16"):
        space.blend_of(np.zeros(5, dtype=np.float32))
    with pytest.raises(StudyError, match="array"):
        space.flatten(weights)


def test_layers_may_be_frozen_or_tied() -> None:
    space = make_space(
        ("a", "b", "c"), DONORS, bounds=(0, 1), widths={"a": 3, "b": 2, "c": 3}, frozen={"b": 0.25}, tied=[("a", "c")]
    )
    assert space.size == 6 and space.widths == {"a": 3, "c": 3}
    values = np.arange(6, dtype=np.float32)
    weights = space.blend_of(space.place(values))
    assert weights["b"] == {"warm": 0.25, "cool": 0.25} and weights["a"] == weights["c"]
    assert space.free(space.place(values)).tolist() == values.tolist()
    row = {"warm": np.array([1.0, 2, 3]), "cool": np.array([0.0, 0, 1])}
    assert space.gradient_of({"a": row, "c": row}).tolist() == [2, 4, 6, 0, 0, 2]
    with pytest.raises(ConfigError, match="'a' and 'c' have different numbers of channels"):
        space_of(tied=[("a", "c")])


def test_it_takes_the_steps_of_a_search_in_which_every_channel_is_a_layer() -> None:
    wide = [record for record in searched(space_of(), SETTINGS).records() if record.role == STEP]
    names = [f"{layer}.{row}" for layer in LAYERS for row in range(WIDTHS.get(layer, 1))]
    narrow = make_space(names, DONORS, bounds=(-0.5, 1.5))

    class Apart(Paraboloid):
        def together(self, weights: Weights) -> Weights:
            return {
                layer: {
                    donor: Channels([weights[f"{layer}.{row}"][donor] for row in range(WIDTHS.get(layer, 1))])  # type: ignore[misc]
                    for donor in DONORS
                }
                for layer in LAYERS
            }

        def __call__(self, weights: Weights, report: object = None) -> Score:
            return super().__call__(self.together(weights) if "a" not in weights else weights)

        def take_step(self, weights: Weights, place: int) -> Any:
            score, gradient = super().take_step(self.together(weights), place)
            return score, {
                f"{layer}.{row}": {donor: float(np.atleast_1d(gradient[layer][donor])[row]) for donor in DONORS}
                for layer in LAYERS
                for row in range(WIDTHS.get(layer, 1))
            }

    world = Apart()
    study = open_study(InMemoryStorage(), "s", narrow, identity={}, baselines=baselines_of(narrow, "base"))
    search(world, study, SETTINGS, take_step=world.take_step)
    apart = [record for record in study.records() if record.role == STEP]
    assert len(wide) == len(apart) == 12
    for mine, other in zip(wide, apart, strict=True):
        for layer in LAYERS:
            for donor in DONORS:
                found = as_array(mine.weights[layer][donor], WIDTHS.get(layer, 1))
                alike = [other.weights[f"{layer}.{row}"][donor] for row in range(len(found))]
                np.testing.assert_allclose(found, alike, atol=1e-5)


@pytest.mark.parametrize("on_disk", [False, True])
def test_stopping_anywhere_and_going_on_gives_the_same_trials(on_disk: bool, tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [{}] if on_disk else [{}, {"bounds": (0, 0.5), "frozen": {"b": 0.2}}]
    for option in options:
        space = space_of(**option)
        whole = searched(space, SETTINGS)
        storage: Storage = f"sqlite:///{tmp_path}/study.db" if on_disk else InMemoryStorage()
        kept = Artifacts(tmp_path / "artifacts" if on_disk else None)
        for calls in (0, 3, 2, 6, 4):
            with pytest.raises(KeyboardInterrupt):
                searched(space, SETTINGS, storage, kept, calls)
        found = searched(space, SETTINGS, storage, Artifacts(kept.folder) if on_disk else kept).records()
        assert found == whole.records()
        assert [key_of(record.weights) for record in found] == [key_of(record.weights) for record in whole.records()]
        assert max(record.value for record in found if record.role == SEARCH) > found[2].value


def test_rows_hold_names_and_the_files_the_numbers(tmp_path: Path) -> None:
    wide = make_space(("big",), DONORS, bounds=(-1, 2), widths={"big": 5000})
    url, folder = f"sqlite:///{tmp_path}/study.db", tmp_path / "artifacts"
    study = open_study(url, "s", wide, identity={}, baselines=baselines_of(wide, "base"), artifacts=Artifacts(folder))

    def objective(weights: Weights, report: object = None) -> Score:
        value = -sum(mean_of(weight) for row in weights.values() for weight in row.values())
        return Score(value, 0.01, 0.5, 0.01, 0.5, {}, (value,), 8, 0.5)

    def step(weights: Weights, place: int) -> Any:
        return objective(weights), {"big": {donor: np.random.default_rng(place).normal(size=5000) for donor in DONORS}}

    search(objective, study, replace(SETTINGS, trials=16), take_step=step)
    stored = optuna.load_study(study_name="s", storage=url)
    assert all(not trial.params and len(str(trial.user_attrs)) < 3000 for trial in stored.trials)
    named = [trial.user_attrs["weights"] for trial in stored.trials]
    arrays = {kept["artifact"] for kept in named if isinstance(kept, dict)}
    states = [trial.user_attrs["adam"]["artifact"] for trial in stored.trials if "adam" in trial.user_attrs]
    gains = {trial.user_attrs["gains"]["artifact"] for trial in stored.trials if "gains" in trial.user_attrs}
    assert len(states) > 4 and {path.name for path in folder.iterdir()} == arrays | gains | set(states[-STATES_KEPT:])
    assert gains and all((folder / name).stat().st_size < 300 for name in gains), "four numbers, not 10,000"
    assert isinstance(named[0], list)  # a parent has one weight for all channels

    seen = read_study(url, "s", artifacts=Artifacts(folder))
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    records = seen.records()  # reads no array
    assert isinstance(records[-1].weights, StoredWeights) and len(outcomes(wide, "base", ["uniform"], records)) == 0
    with pytest.raises(StudyError, match=r"artifacts.*is damaged. Put back a copy"):
        dict(records[-1].weights)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(StudyError, match="an array of this study is missing"):
        dict(read_study(url, "s", artifacts=Artifacts(folder)).records()[-1].weights)


def test_an_array_is_on_the_disk_before_a_row_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Artifacts(tmp_path / "artifacts")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(descriptor))
    name = kept.put(np.arange(5))
    assert len(synced) == 1 and kept.get(name).tolist() == [0, 1, 2, 3, 4] and kept.put(np.arange(5)) == name
    (tmp_path / "artifacts" / name).write_bytes(b"cut off")
    assert kept.put(np.arange(5)) == name and kept.get(name).dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        kept.get(name)[0] = 1
    kept.drop(name)
    kept.drop(name)


@pytest.mark.parametrize("method", ["cmaes", "tpe", "gp", "random"])
def test_methods_without_gradients_are_refused_in_one_line(method: str) -> None:
    with pytest.raises(StudyError, match=f"'{method}' cannot propose the 16 weights .* Use method 'gradient'"):
        searched(space_of(), replace(SETTINGS, method=method, adam=None))


def test_equal_blends_are_one_finalist() -> None:
    study = searched(space_of(), SETTINGS)
    best = distinct_best(study.records(), 5)
    assert len({key_of(record.weights) for record in best}) == len(best) == 5
    first = study.records()[-1].weights
    assert first == dict(first) and dict(first) == first and first != {} and len(first) == 3
