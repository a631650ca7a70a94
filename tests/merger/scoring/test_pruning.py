"""Pruning: the test against counting by hand, and searches that find the same with fewer images."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from optuna.storages import InMemoryStorage

from benchmark.pipelines.generation import FakeGenerator
from benchmark.prompts.prompt_set import make_prompts
from benchmark.prompts.vocabulary import Vocabulary
from benchmark.taggers.tagger import FakeTagger
from merger.scoring.objective import BlendObjective, Metric
from merger.scoring.pruning import EVERY, LEVEL, estimated, hopeless, pruned
from merger.search.baselines import baselines_of
from merger.search.loop import search
from merger.search.space import make_space
from merger.search.study import SearchSettings, Study, incumbent, open_study
from merger.search.trials import PRUNED_AFTER, Score, TrialRecord, candidates, last_improvement
from merger.weights import Weights

SPACE = make_space(("IN", "M", "OUT"), ("warm", "cool"), bounds=(-0.5, 1.5))
TARGET = np.array([0.9, 0.1, 0.2, 0.7, -0.3, 0.4])
PROMPTS = 96


def test_hopeless_is_a_share_of_all_signs_below_the_level() -> None:
    """Wilcoxon's test, counted by hand: how many of all signs of the ranks lie as low as those that were seen."""
    draw = np.random.default_rng(0)
    verdicts = set()
    for count in (1, 4, 5, 6, 9) * 8:
        away = draw.normal(-0.5, size=count)
        ranks = np.argsort(np.argsort(np.abs(away))) + 1
        above = ranks[away > 0].sum()
        all_signs = [
            sum(rank for rank, up in zip(ranks, ups, strict=True) if up)
            for ups in itertools.product([0, 1], repeat=count)
        ]
        expected = bool(away.mean() < 0) and float(np.mean(np.array(all_signs) <= above)) < LEVEL
        assert hopeless(away.tolist(), [0.0] * count) == expected
        verdicts.add((count, expected))
    assert {expected for _, expected in verdicts} == {False, True}


@pytest.mark.parametrize(
    "away",
    [[-0.1] * 16, [-0.2, 0.1] * 8, [-0.1] * 5 + [0.0] * 11, [0.0] * 15 + [-0.1], [-0.25, -0.5, 0.25, 0.0] * 16],
)
def test_equal_differences_and_zeros_give_a_verdict(away: list[float]) -> None:
    """By the normal distribution, corrected for ties and steps (Wilcoxon 1945); zeros are left out."""
    kept = np.array([difference for difference in away if difference != 0])
    ranks = np.array([(np.abs(kept) < size).sum() + ((np.abs(kept) == size).sum() + 1) / 2 for size in np.abs(kept)])
    ties = np.unique(np.abs(kept), return_counts=True)[1]
    count = len(kept)
    mean = count * (count + 1) / 4
    variance = count * (count + 1) * (2 * count + 1) / 24 - float((ties**3 - ties).sum()) / 48
    chance = 0.5 * math.erfc(-(ranks[kept > 0].sum() + 0.5 - mean) / math.sqrt(2 * variance))
    assert hopeless(away, [0.0] * len(away)) == (sum(away) < 0 and chance < LEVEL)


def test_nothing_is_hopeless_without_a_difference() -> None:
    assert not hopeless([0.5] * 16, [0.5] * 64)
    assert hopeless([0.4] * 16, [0.5] * 64)
    assert not hopeless([0.6] * 16, [0.5] * 64)


def test_a_trial_as_good_as_the_best_is_seldom_pruned() -> None:
    draw = np.random.default_rng(2)
    share = np.mean([hopeless(draw.normal(size=EVERY), draw.normal(size=EVERY)) for _ in range(2000)])
    assert share < LEVEL + 0.015


class Noisy:
    """1 - the squared distance to a target, on prompts of their own difficulty, with each blend's own noise on each."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.images, self.calls, self.stop_at = 0, 0, stop_at

    def parts(self, weights: Weights) -> np.ndarray:
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        flat = np.array(SPACE.flatten(weights))
        noise = np.random.default_rng(np.abs(flat * 1e6).astype(np.int64).tolist()).normal(0, 0.15, PROMPTS)
        return 1 - ((flat - TARGET) ** 2).mean() + np.linspace(-0.3, 0.3, PROMPTS) + noise

    def score(self, parts: np.ndarray) -> Score:
        self.images += len(parts)
        value = float(parts.mean())
        return Score(value, 0.01, value, 0.01, value, {}, parts.tolist(), len(parts), 1.0)

    def __call__(self, weights: Weights, report: object = None) -> Score:
        return self.score(self.parts(weights))

    def pruned(self, weights: Weights, best: Score, report: object = None) -> Score:
        parts = self.parts(weights)
        for drawn in range(EVERY, PROMPTS, EVERY):
            if hopeless(parts[:drawn].tolist(), best.per_prompt):
                return estimated(self.score(parts[:drawn]), best)
        return self.score(parts)


def searched(
    *, prune: bool, trials: int = 44, stop_at: int | None = None, memory: InMemoryStorage | None = None
) -> tuple[Study, Noisy]:
    world = Noisy(stop_at)
    baselines = baselines_of(SPACE, "base")
    study = open_study(memory or InMemoryStorage(), "study", SPACE, identity={}, baselines=baselines)
    search(world, study, SearchSettings("cmaes", 3, trials, 1000), pruned=world.pruned if prune else None)
    return study, world


def test_pruning_finds_as_good_a_blend_with_fewer_images() -> None:
    plain, all_images = searched(prune=False)
    with_pruning, fewer = searched(prune=True)

    def truth(study: Study) -> float:
        return float(1 - ((np.array(SPACE.flatten(incumbent(study).weights)) - TARGET) ** 2).mean())

    assert all_images.images == 44 * PROMPTS
    assert fewer.images < 0.75 * all_images.images
    assert truth(with_pruning) > truth(plain) - 0.02
    cut = [record for record in with_pruning.records() if not record.whole]
    assert cut and all(record.score.images < PROMPTS for record in cut)
    assert incumbent(with_pruning).whole
    assert with_pruning._study.best_trial.number == incumbent(with_pruning).number, "estimates are set apart"
    assert all(record.whole for record in with_pruning.records()[:4]), "baselines are never pruned"


def test_stopping_and_going_on_gives_the_same_trials() -> None:
    whole = searched(prune=True, trials=12)[0].records()
    memory = InMemoryStorage()
    for stop in (6, 3):
        with pytest.raises(KeyboardInterrupt):
            searched(prune=True, trials=12, stop_at=stop, memory=memory)
    assert searched(prune=True, trials=12, memory=memory)[0].records() == whole
    assert any(not record.whole for record in whole)


def test_a_pruned_trial_is_no_candidate_and_no_improvement() -> None:
    best = Score(0.5, 0.01, 0.5, 0.01, 0.5, per_prompt=[0.5] * 4)
    cut = estimated(Score(0.9, 0.01, 0.9, 0.01, 0.9, per_prompt=[0.3, 0.4]), best)
    assert cut.value == pytest.approx(0.35)
    assert cut.attributes == {PRUNED_AFTER: 2}
    records = [TrialRecord(0, "base", "base", {}, best), TrialRecord(1, "search", "", {}, cut)]
    assert [record.number for record in candidates(records)] == [0]
    assert last_improvement(records) == 0


class Painter:
    """A live denoiser and its generator: how well it paints is the weight."""

    def __init__(self) -> None:
        self.tags = tuple(f"tag_{number}" for number in range(9))
        self.skill = 0.5

    def apply(self, weights: Weights) -> str:
        self.skill = weights["IN"]["warm"]
        return str(self.skill)

    def generate(self, prompts):
        return FakeGenerator(self.tags, self.skill).generate(prompts)


def test_a_trial_that_is_not_pruned_has_the_plain_score() -> None:
    world = Painter()
    prompts = make_prompts(Vocabulary(world.tags), 40, tags_per_prompt=(1, 4), seed=1)
    objective = BlendObjective(world, world, FakeTagger(world.tags), prompts, Metric("probability", 0.5, lambda t: "x"))
    best, worse = (SPACE.everywhere({"warm": skill}) for skill in (0.8, 0.2))
    plain = objective(best)
    assert plain.asked == tuple(len(prompt.tags) for prompt in prompts)
    seen: list[int] = []
    whole = pruned(objective)(best, objective(worse), lambda images, value: seen.append(images))
    assert seen == list(range(4, 41, 4))
    for name in ("value", "stderr", "accuracy", "per_prompt", "images", "checksum", "categories", "asked"):
        assert getattr(whole, name) == pytest.approx(getattr(plain, name)) or getattr(whole, name) == getattr(
            plain, name
        )
    cut = pruned(objective)(worse, plain)
    assert cut.images == cut.attributes[PRUNED_AFTER] == 16
    assert cut.value < plain.value
    assert cut.per_prompt == objective(worse).per_prompt[:16]
