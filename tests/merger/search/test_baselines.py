"""Baselines that are found by trying: which blends are asked for, what they come to; a stop changes nothing."""

from __future__ import annotations

import pytest
from optuna.storages import InMemoryStorage

from merger.search.baselines import KINDS, STRENGTHS, Known, baselines_of, most_trials, next_baseline, outcomes
from merger.search.loop import search
from merger.search.space import Space, make_space
from merger.search.study import SearchSettings, Study, open_study
from merger.search.trials import Score, TrialRecord
from merger.weights import Weights

SPACE = make_space(("IN", "OUT"), ("warm", "cool", "odd"), bounds=(0, 1))
SETTINGS = SearchSettings("random", 3, 16, 1000, baselines=KINDS)


def value_of(weights: Weights) -> float:
    """`warm` and `cool` help up to 0.45 each, `odd` always harms."""
    row = weights["OUT"]
    return 1 - (row["warm"] - 0.45) ** 2 - (row["cool"] - 0.45) ** 2 - 0.3 * row["odd"]


def walked(space: Space = SPACE, kinds: tuple[str, ...] = KINDS) -> list[TrialRecord]:
    """All baselines as trials, by plain repeated asking."""
    records: list[TrialRecord] = []
    fixed = list(baselines_of(space, "base", kinds))

    def try_it(blend) -> None:
        value = value_of(blend.weights)
        records.append(
            TrialRecord(len(records), blend.role, blend.name, blend.weights, Score(value, 0.0, value, 0.0, value))
        )

    for blend in fixed:
        try_it(blend)
    while True:
        known: Known = {tuple(space.flatten(record.weights)): record.value for record in records}
        wanted = next_baseline(space, "base", kinds, known)
        if wanted is None:
            return records
        try_it(wanted)


def test_the_best_uniform_is_the_best_strength_and_the_average_is_not_drawn_twice() -> None:
    records = walked(kinds=("uniform", "best_uniform"))
    assert [record.name for record in records[5:]] == [f"uniform x {s:g}" for s in STRENGTHS if s != 1]
    (best,) = outcomes(SPACE, "base", ("uniform", "best_uniform"), records)
    by_hand = max(STRENGTHS, key=lambda s: value_of(SPACE.everywhere(dict.fromkeys(SPACE.donors, s / 4))))
    assert SPACE.flatten(best.weights) == [by_hand / 4] * 6
    assert len(records) == most_trials(SPACE, ("uniform", "best_uniform"))


def test_the_greedy_soup_takes_in_what_does_not_lower_the_value() -> None:
    records = walked(kinds=("greedy_soup",))
    # parents by value: base, warm and cool, odd
    assert [record.name for record in records[4:]] == [
        "soup of base + warm",
        "soup of base + warm + cool",
        "soup of base + warm + cool + odd",
    ]
    (soup,) = outcomes(SPACE, "base", ("greedy_soup",), records)
    assert soup.weights["IN"] == {"warm": 1 / 3, "cool": 1 / 3, "odd": 0.0}


def test_a_soup_of_all_is_the_uniform_average_and_not_drawn_again() -> None:
    space = make_space(("IN", "OUT"), ("warm", "cool", "odd"), bounds=(0, 1))
    known: dict[tuple[float, ...], float] = {}
    asked = []
    for blend in baselines_of(space, "base"):
        known[tuple(space.flatten(blend.weights))] = 0.5
    while (wanted := next_baseline(space, "base", ("uniform", "greedy_soup"), known)) is not None:
        asked.append(wanted.name)
        known[tuple(space.flatten(wanted.weights))] = 0.5
    assert asked == ["soup of base + warm", "soup of base + warm + cool"], "equal values are taken in"


def test_one_donor_alone_at_full_strength_is_known_already() -> None:
    space = make_space(("IN",), ("warm",), bounds=(0, 1))
    known: Known = {(0.0,): 0.1, (1.0,): 0.2, (0.5,): 0.3}
    assert next_baseline(space, "base", ("best_uniform",), known).name == "uniform x 0.5"  # type: ignore[union-attr]
    known = {(s / 2,): 0.1 for s in STRENGTHS} | {(0.0,): 0.1}
    assert next_baseline(space, "base", KINDS, known) is None


def test_without_values_there_is_no_outcome() -> None:
    assert outcomes(SPACE, "base", KINDS, walked()[:7]) == ()


def opened(memory: InMemoryStorage) -> Study:
    baselines = baselines_of(SPACE, "base", KINDS)
    return open_study(memory, "study", SPACE, identity={}, baselines=baselines)


class Objective:
    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at, self.calls = stop_at, 0

    def __call__(self, weights: Weights, report: object = None) -> Score:
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        return Score(value_of(weights), 0.01, 0.5, 0.01, 0.5, images=8, seconds=0.5)


def test_in_a_study_they_come_before_the_search_and_a_stop_changes_nothing() -> None:
    one, two = InMemoryStorage(), InMemoryStorage()
    count = len(walked())
    search(Objective(), opened(one), SETTINGS)
    whole = opened(one).records()
    expected = ["best_uniform"] * 5 + ["greedy_soup"] * (count - 10) + ["search"] * (16 - count)
    assert [record.role for record in whole[5:]] == expected
    assert [(r.name, r.weights) for r in whole[:count]] == [(r.name, r.weights) for r in walked()]
    for stop in (3, 4, 2, 1):
        with pytest.raises(KeyboardInterrupt):
            search(Objective(stop), opened(two), SETTINGS)
    search(Objective(), opened(two), SETTINGS)
    assert opened(two).records() == whole


def test_the_patience_begins_after_them() -> None:
    study = opened(InMemoryStorage())
    reason = search(
        lambda weights, report=None: Score(0.5, 0.01, 0.5, 0.01, 0.5),
        study,
        SearchSettings("random", 3, 99, 3, baselines=KINDS),
    )
    assert reason.startswith("plateau")
    records = study.records()
    assert [record.role for record in records[-4:]] == ["greedy_soup"] + ["search"] * 3
