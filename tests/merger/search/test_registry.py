"""Samplers are found by name alone; one from outside is as good as ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from optuna.storages import InMemoryStorage

from merger.config.loading import load_config
from merger.errors import ConfigError, StudyError
from merger.search import registry
from merger.search.baselines import baselines_of
from merger.search.history import HistorySampler, Observation
from merger.search.loop import search
from merger.search.registry import SamplerEntry, register_sampler, sampler_named, sampler_names
from merger.search.samplers import make_sampler
from merger.search.space import Space, make_space
from merger.search.study import SearchSettings, open_study
from merger.search.trials import Score

SPACE = make_space(("IN", "OUT"), ("warm", "cool"), bounds=(0, 1))
LEAST = {"base": "a.safetensors", "donors": ["b.safetensors"], "tagger": "tagger", "vocabulary": {"top": 50}}


class Corner(HistorySampler):
    """Moves the best blend known halfway to a corner that the seed names."""

    def propose(self, given: Sequence[Observation], proposed: Sequence[Observation]) -> Mapping[str, float]:
        best = max([*given, *proposed], key=lambda seen: seen.value).values
        names = [parameter.name for parameter in self.space.parameters]
        return {
            name: (float(w) + (self.seed >> place & 1)) / 2
            for place, (name, w) in enumerate(zip(names, best, strict=True))
        }


@pytest.fixture
def corner(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    module = type(sys)("samplers_from_outside")
    module.make = lambda space, seed, adam: Corner(space, seed)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    register_sampler(SamplerEntry("corner", "samplers_from_outside:make", "halfway to a corner"))
    yield "corner"


def written(folder: Path, method: str) -> Path:
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump({**LEAST, "method": method}))
    return file


def value_of(space: Space, weights: Mapping[str, Mapping[str, float]]) -> Score:
    value = 1 - sum((weight - 0.8) ** 2 for weight in space.flatten(weights))
    return Score(value, 0.01, value, 0.01, value, seconds=1.0)


def test_a_sampler_from_outside_searches_by_its_name(corner: str, tmp_path: Path) -> None:
    method = load_config(written(tmp_path, corner)).method
    whole, broken = (
        open_study(InMemoryStorage(), "study", SPACE, identity={}, baselines=baselines_of(SPACE, "base"))
        for _ in range(2)
    )
    for study, trials in ((whole, 30), (broken, 7), (broken, 30)):
        search(lambda weights, report=None: value_of(SPACE, weights), study, SearchSettings(method, 3, trials, 99))
    assert whole.records() == broken.records()
    assert len({tuple(SPACE.flatten(record.weights)) for record in whole.records()[4:]}) > 5


def test_a_name_that_nothing_has_is_answered_with_the_nearest(corner: str, tmp_path: Path) -> None:
    for wrong, said in (("cmae", "Did you mean 'cmaes'?"), ("corners", "'corner'"), ("aut", "'auto'")):
        with pytest.raises(ConfigError, match="method: there is no") as caught:
            load_config(written(tmp_path, wrong))
        assert said in str(caught.value)
        with pytest.raises(StudyError, match="method: there is no"):
            sampler_named(wrong)


def test_a_name_stands_for_one_sampler(corner: str) -> None:
    register_sampler(sampler_named(corner))
    for taken in (corner, "gradient", "auto", "bayes"):
        with pytest.raises(ValueError, match="already"):
            register_sampler(SamplerEntry(taken, "elsewhere:make", ""))


@pytest.mark.parametrize("method", sampler_names())
def test_every_sampler_can_be_configured_and_made(method: str, tmp_path: Path) -> None:
    from merger.search.adam import AdamSettings

    assert load_config(written(tmp_path, method)).method == method
    adam = AdamSettings(5) if sampler_named(method).needs_gradients else None
    assert isinstance(make_sampler(method, SPACE, seed=1, number=3, adam=adam), HistorySampler)
    if adam is not None:
        with pytest.raises(StudyError, match="follows gradients and needs"):
            make_sampler(method, SPACE, seed=1, number=3)


def test_random_draws_need_no_history() -> None:
    """So that their cost does not grow with the trials; TPE's draws depend on it."""
    draw = np.random.default_rng(1)
    history = [Observation(draw.random(4), float(draw.random())) for _ in range(30)]
    for method, same in (("random", True), ("tpe", False)):
        drawn = [make_sampler(method, SPACE, seed=1, number=40).propose([], seen) for seen in ([], history)]
        assert (drawn[0] == drawn[1]) == same


def test_the_table_loads_no_sampler() -> None:
    code = "import sys, merger.search.registry; print([m for m in ('optuna', 'cmaes', 'scipy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
