"""Racing: the test against counting by hand, and searches that find the same with fewer images."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from benchmark.pipelines.generation import FakeGenerator
from benchmark.prompts.prompt_set import make_prompts
from benchmark.prompts.vocabulary import Vocabulary
from benchmark.taggers.tagger import FakeTagger
from merger.scoring.objective import BlendObjective, Metric
from merger.scoring.pruning import EVERY, LEVEL, Racer, hopeless, signed_rank, stopped
from merger.search.baselines import baselines_of
from merger.search.space import Weights, make_space
from merger.search.study import SearchSettings, Study, incumbent, open_study, search
from merger.search.trials import STOPPED_AFTER, Score, TrialRecord, candidates, last_improvement

SPACE = make_space(("IN", "M", "OUT"), ("warm", "cool"), bounds=(-0.5, 1.5))
TARGET = np.array([0.9, 0.1, 0.2, 0.7, -0.3, 0.4])
PROMPTS = 96


def test_the_chance_is_the_share_of_all_signs() -> None:
    draw = np.random.default_rng(0)
    for count in (1, 4, 9):
        away = draw.normal(size=count)
        ranks = np.argsort(np.argsort(np.abs(away))) + 1
        above = ranks[away > 0].sum()
        all_signs = [
            sum(rank for rank, up in zip(ranks, ups, strict=True) if up)
            for ups in itertools.product([0, 1], repeat=count)
        ]
        assert signed_rank(away.tolist()) == pytest.approx(np.mean(np.array(all_signs) <= above))


def test_many_or_equal_differences_go_by_the_normal_distribution() -> None:
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(1)
    for away in (draw.normal(-0.2, 1, 40), draw.integers(-3, 3, 60).astype(float), draw.integers(-1, 2, 16) / 4):
        kept = away[away != 0]
        theirs = stats.wilcoxon(kept, alternative="less", method="approx", correction=True).pvalue
        assert signed_rank(away.tolist()) == pytest.approx(theirs, abs=1e-9)
    exact = draw.normal(size=20)
    assert signed_rank(exact.tolist()) == pytest.approx(
        stats.wilcoxon(exact, alternative="less", method="exact").pvalue
    )


def test_nothing_is_hopeless_without_a_difference() -> None:
    assert signed_rank([]) == signed_rank([0.0] * 9) == 1.0
    assert not hopeless([0.5] * 16, [0.5] * 64)
    assert hopeless([0.4] * 16, [0.5] * 64)
    assert not hopeless([0.6] * 16, [0.5] * 64)


def test_a_trial_as_good_as_the_best_is_seldom_given_up() -> None:
    draw = np.random.default_rng(2)
    given_up = np.mean([hopeless(draw.normal(size=EVERY), draw.normal(size=EVERY)) for _ in range(2000)])
    assert given_up < LEVEL + 0.015


class Noisy:
    """1 - the squared distance to a target, on prompts of their own difficulty, with each blend's own luck on each."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.images, self.calls, self.stop_at = 0, 0, stop_at

    def parts(self, weights: Weights) -> np.ndarray:
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        flat = np.array(SPACE.flatten(weights))
        luck = np.random.default_rng(np.abs(flat * 1e6).astype(np.int64).tolist()).normal(0, 0.15, PROMPTS)
        return 1 - ((flat - TARGET) ** 2).mean() + np.linspace(-0.3, 0.3, PROMPTS) + luck

    def score(self, parts: np.ndarray) -> Score:
        self.images += len(parts)
        value = float(parts.mean())
        return Score(value, 0.01, value, 0.01, value, {}, parts.tolist(), len(parts), 1.0)

    def __call__(self, weights: Weights, report: object = None) -> Score:
        return self.score(self.parts(weights))

    def race(self, weights: Weights, best: Score, report: object = None) -> Score:
        parts = self.parts(weights)
        for drawn in range(EVERY, PROMPTS, EVERY):
            if hopeless(parts[:drawn].tolist(), best.per_prompt):
                return stopped(self.score(parts[:drawn]), best)
        return self.score(parts)


def searched(folder: Path, *, race: bool, trials: int = 44, stop_at: int | None = None) -> tuple[Study, Noisy]:
    folder.mkdir(exist_ok=True)
    world = Noisy(stop_at)
    baselines = baselines_of(SPACE, "base")
    study = open_study(f"sqlite:///{folder / 'study.db'}", "study", SPACE, identity={}, baselines=baselines)
    settings = SearchSettings("cmaes", 3, trials, 1000)
    search(world, study, settings, baselines=4, race=world.race if race else None)
    return study, world


def test_racing_finds_as_good_a_blend_with_fewer_images(tmp_path: Path) -> None:
    plain, all_drawn = searched(tmp_path / "plain", race=False)
    raced, fewer = searched(tmp_path / "raced", race=True)

    def truth(study: Study) -> float:
        return float(1 - ((np.array(SPACE.flatten(incumbent(study).weights)) - TARGET) ** 2).mean())

    assert all_drawn.images == 44 * PROMPTS
    assert fewer.images < 0.75 * all_drawn.images
    assert truth(raced) > truth(plain) - 0.02
    given_up = [record for record in raced.records() if not record.whole]
    assert given_up and all(record.score.images < PROMPTS for record in given_up)
    assert incumbent(raced).whole
    assert all(record.whole for record in raced.records()[:4]), "baselines are never given up"


def test_stopping_and_going_on_gives_the_same_trials(tmp_path: Path) -> None:
    whole = searched(tmp_path / "whole", race=True, trials=12)[0].records()
    for stop in (6, 3):
        with pytest.raises(KeyboardInterrupt):
            searched(tmp_path / "broken", race=True, trials=12, stop_at=stop)
    assert searched(tmp_path / "broken", race=True, trials=12)[0].records() == whole
    assert any(not record.whole for record in whole)


def test_what_was_given_up_is_no_candidate_and_no_rise() -> None:
    best = Score(0.5, 0.01, 0.5, 0.01, 0.5, per_prompt=[0.5] * 4)
    given_up = stopped(Score(0.9, 0.01, 0.9, 0.01, 0.9, per_prompt=[0.3, 0.4]), best)
    assert given_up.value == pytest.approx(0.35)
    assert given_up.attributes == {STOPPED_AFTER: 2}
    records = [TrialRecord(0, "base", "base", {}, best), TrialRecord(1, "search", "", {}, given_up)]
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


def test_a_race_that_is_drawn_to_its_end_is_the_plain_score() -> None:
    world = Painter()
    prompts = make_prompts(Vocabulary(world.tags), 40, tags_per_prompt=(1, 4), seed=1)
    objective = BlendObjective(world, world, FakeTagger(world.tags), prompts, Metric("probability", 0.5, lambda t: "x"))
    best, worse = (SPACE.everywhere({"warm": skill}) for skill in (0.8, 0.2))
    plain = objective(best)
    seen: list[int] = []
    raced = Racer(objective)(best, objective(worse), lambda images, value: seen.append(images))
    assert seen == list(range(4, 41, 4))
    for name in ("value", "stderr", "accuracy", "per_prompt", "images", "checksum", "categories"):
        assert getattr(raced, name) == pytest.approx(getattr(plain, name)) or getattr(raced, name) == getattr(
            plain, name
        )
    given_up = Racer(objective)(worse, plain)
    assert given_up.images == given_up.attributes[STOPPED_AFTER] == 16
    assert given_up.value < plain.value
    assert given_up.per_prompt == objective(worse).per_prompt[:16]
