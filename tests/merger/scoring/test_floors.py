"""Floors: what is below them by hand and by a plain loop, in trials, among finalists and for samplers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from optuna.storages import InMemoryStorage

from benchmark.evaluate.runner import Evaluation
from benchmark.pipelines.generation import FakeGenerator
from benchmark.prompts.prompt_set import Prompt, make_prompts
from benchmark.prompts.vocabulary import Vocabulary
from benchmark.taggers.tagger import FakeTagger
from merger.scoring.floors import Floors
from merger.scoring.objective import TAGGER, BlendObjective, Metric, evaluate_blend
from merger.scoring.pruning import pruned
from merger.scoring.selection import finalists_of, select_winner
from merger.search.baselines import baselines_of
from merger.search.loop import search
from merger.search.space import make_space, weight_of
from merger.search.study import SearchSettings, open_study
from merger.search.trials import BELOW_FLOOR, Score, TrialRecord
from merger.weights import Weights

TAGS = ("red_hair", "blue_hair", "smile", "frown")
CATEGORY = {"red_hair": "hair", "blue_hair": "hair", "smile": "face", "frown": "face"}.__getitem__
SPACE = make_space(("IN",), ("hairy",), bounds=(0, 1))


def evaluation(probabilities: np.ndarray) -> Evaluation:
    """Every prompt asks for every tag."""
    prompts = tuple(Prompt(index, "", TAGS, index) for index in range(len(probabilities)))
    flags, digests = np.zeros(len(prompts), dtype=bool), np.arange(len(prompts))
    return Evaluation(prompts, TAGS, {TAGGER: probabilities.astype(np.float32)}, flags, digests, 0.0)


def test_what_is_below_a_floor_beyond_chance() -> None:
    draw = np.random.default_rng(0)
    base = draw.uniform(0.5, 0.9, (20, 4))
    change = np.array([0.7, 1.2, 0.95, 0.9])  # of the probability
    noise = np.exp(draw.normal(0, 0.01, base.shape))
    blend = evaluation(base * change * noise)
    found = Floors(0.08, 0.02, 1.0, CATEGORY).broken(blend, evaluation(base), TAGGER)
    assert set(found) == {"red_hair", "frown", "category hair", "category face"}
    assert found["red_hair"] == pytest.approx(-math.log(0.7) - 0.08, abs=0.01)
    assert found["category hair"] == pytest.approx(-(math.log(0.7) + math.log(1.2)) / 2 - 0.02, abs=0.01)
    assert set(Floors(0.08, None, 1.0, CATEGORY).broken(blend, evaluation(base), TAGGER)) == {"red_hair", "frown"}
    swings = np.exp(np.where(np.arange(20) % 2, 0.5, -0.5))[:, None]
    low = evaluation(base * 0.5 * change * swings)
    assert "frown" in Floors(0.08, None, 1.0, CATEGORY).broken(low, evaluation(base), TAGGER)
    loud = evaluation(base * change * swings)
    assert "frown" not in Floors(0.08, None, 1.0, CATEGORY).broken(loud, evaluation(base), TAGGER)
    assert Floors(0.0, 0.0, 1.0, CATEGORY).broken(evaluation(base[:1] * 0.1), evaluation(base[:1]), TAGGER) == {}


def test_the_penalty_is_that_of_a_plain_loop() -> None:
    draw = torch.Generator().manual_seed(1)
    logs, base = (-3 * torch.rand(6, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    asked = torch.rand(6, 4, generator=draw) < 0.6
    asked[:, 2] = True
    base[5] = torch.nan  # the base's image was broken
    floors = Floors(0.3, 0.1, 2.5, CATEGORY)
    expected = []
    for row in range(6):
        columns = [column for column in range(4) if asked[row, column]]
        by_tag = [max(0.0, float(base[row, c]) - 0.3 - float(logs[row, c])) for c in columns]
        by_category = []
        for name in sorted({CATEGORY(TAGS[c]) for c in columns}):
            own = [c for c in columns if CATEGORY(TAGS[c]) == name]
            ours, theirs = (float(values[row, own].mean()) for values in (logs, base))
            by_category.append(max(0.0, theirs - 0.1 - ours))
        expected.append(2.5 * (np.mean(by_tag) + np.mean(by_category)) if row < 5 else 0.0)
    got = floors.penalty(logs.requires_grad_(), base, asked, TAGS)
    assert got.detach().numpy() == pytest.approx(np.array(expected))
    got.sum().backward()
    assert logs.grad is not None and torch.isfinite(logs.grad).all() and (logs.grad <= 0).all()
    halves = [floors.penalty(logs[part], base[part], asked[part], TAGS) for part in (slice(0, 3), slice(3, 6))]
    assert torch.allclose(torch.cat(halves), got)


class World:
    """A live denoiser and a generator in one: the donor knows hair, and above 0.5 it forgets faces."""

    def __init__(self) -> None:
        self.generator = FakeGenerator(TAGS, 0.5)

    def apply(self, weights: Weights) -> str:
        weight = weight_of(weights, "IN", "hairy")
        faces, hair = 0.5 - (weight > 0.5) * 0.2, 0.5 + 0.5 * weight
        self.generator = FakeGenerator(TAGS, {tag: hair if "hair" in tag else faces for tag in TAGS})
        return str(weight)

    def generate(self, prompts):
        return self.generator.generate(prompts)


FLOORS = Floors(None, 0.1, 1.0, CATEGORY)


def prompts(seed: int, count: int = 80) -> tuple[Prompt, ...]:
    return make_prompts(Vocabulary(TAGS), count, tags_per_prompt=2, seed=seed)


def objective(floors: Floors | None = FLOORS) -> BlendObjective:
    world, tagger = World(), FakeTagger(TAGS)
    scored = (world, world, tagger, prompts(1), Metric("accuracy", 0.5, CATEGORY))

    def broken(evaluation: Evaluation) -> dict[str, float]:
        assert floors is not None
        base = evaluate_blend(world, world, {TAGGER: tagger}, prompts(1), SPACE.everywhere({}))
        return floors.broken(evaluation, base, TAGGER)

    return BlendObjective(*scored, broken if floors is not None else None)


def at(weight: float) -> Weights:
    return SPACE.everywhere({"hairy": weight})


def test_a_trial_names_the_floors_that_it_breaks() -> None:
    assert BELOW_FLOOR not in objective(None)(at(1.0)).attributes
    assert objective()(at(0.0)).attributes[BELOW_FLOOR] == {}
    assert objective()(at(0.4)).attributes[BELOW_FLOOR] == {}
    assert set(objective()(at(1.0)).attributes[BELOW_FLOOR]) == {"category face"}
    whole = pruned(objective())(at(1.0), objective()(at(1.0)))
    assert set(whole.attributes[BELOW_FLOOR]) == {"category face"}


def concluded(floors: Floors | None) -> tuple[int, dict, list[str]]:
    world, said = World(), []
    sets = {"validation": prompts(2), "test": prompts(3)}
    baselines = baselines_of(SPACE, "base", ())
    records = [
        TrialRecord(number, role, name, weights, Score(value, 0.02, value, 0.02, value))
        for number, (role, name, weights, value) in enumerate(
            [(b.role, b.name, b.weights, 0.5) for b in baselines]
            + [("search", "", at(0.9), 0.7), ("search", "", at(0.1), 0.55)]
        )
    ]
    selection = select_winner(
        records,
        baselines,
        lambda which, weights: evaluate_blend(world, world, {TAGGER: FakeTagger(TAGS)}, sets[which], weights),
        thresholds={TAGGER: 0.5},
        category_of=CATEGORY,
        name="floors",
        stopped_because="trials",
        floors=floors,
        say=said.append,
    )
    return selection.winner.number, selection.result, said


def test_a_finalist_below_a_floor_ranks_behind_one_that_is_not() -> None:
    winner, result, said = concluded(None)
    assert winner == 2 and said == []
    assert [finalist[BELOW_FLOOR] for finalist in result["finalists"]] == [{}, {}]
    winner, result, said = concluded(FLOORS)
    assert winner == 3
    (line,) = said
    assert line.startswith("trial 2 is below the floor, in mean log probability: category face by ")
    assert {finalist["trial"]: set(finalist[BELOW_FLOOR]) for finalist in result["finalists"]} == {
        2: {"category face"},
        3: set(),
    }


def test_trials_below_a_floor_are_finalists_only_if_others_are_too_few() -> None:
    def record(number: int, value: float, below: dict[str, float]) -> TrialRecord:
        score = Score(value, 0.01, value, 0.01, value, attributes={BELOW_FLOOR: below})
        return TrialRecord(number, "search", "", at(number / 10), score)

    records = [record(0, 0.9, {"smile": 0.2}), record(1, 0.5, {}), record(2, 0.6, {}), record(3, 0.95, {"smile": 0.1})]
    assert [found.number for found in finalists_of(records, 3)] == [2, 1, 3]
    assert [found.number for found in finalists_of(records, 2)] == [2, 1]


@pytest.mark.parametrize("method", ["tpe", "gp"])
def test_samplers_that_take_constraints_turn_away_from_what_breaks_a_floor(method: str) -> None:
    """The value rises with the weight, and above 0.5 a floor is broken."""

    def found(limited: bool) -> list[float]:
        def score(weights: Weights, report: object = None) -> Score:
            weight = weight_of(weights, "IN", "hairy")
            attributes = {BELOW_FLOOR: {"smile": weight - 0.5} if weight > 0.5 else {}} if limited else {}
            return Score(weight, 0.01, weight, 0.01, weight, attributes=attributes, images=1, seconds=1.0)

        study = open_study(InMemoryStorage(), "s", SPACE, identity={}, baselines=baselines_of(SPACE, "base"))
        search(score, study, SearchSettings(method, 1, 26, 99))
        return [weight_of(record.weights, "IN", "hairy") for record in study.records()][-8:]

    assert np.mean(found(False)) > 0.8
    assert np.mean(found(True)) < 0.6
