"""Objective and selection in a world of paint: each tag is drawn with a chance that the weights decide."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from optuna.storages import InMemoryStorage

from benchmark.evaluate import scores
from benchmark.evaluate.runner import Evaluation
from benchmark.pipelines.generation import FakeGenerator
from benchmark.prompts.prompt_set import make_prompts
from benchmark.prompts.vocabulary import Vocabulary
from benchmark.taggers.tagger import FakeTagger
from merger.scoring.evaluation_cache import EvaluationCache
from merger.scoring.objective import JUDGE, TAGGER, BlendObjective, Metric, evaluate_blend
from merger.scoring.selection import Selection, finalists_of, select_winner
from merger.search.baselines import baselines_of, outcomes
from merger.search.loop import search
from merger.search.space import make_space, weight_of
from merger.search.study import SearchSettings, open_study
from merger.search.trials import Score, TrialRecord
from merger.weights import Weights

HAIR, EYES = ("red_hair", "blue_hair", "white_hair", "pink_hair"), ("red_eyes", "blue_eyes", "green_eyes", "grey_eyes")
VOCABULARY = Vocabulary(HAIR + EYES, {tag: tag.rsplit("_", 1)[1] for tag in HAIR + EYES})
SPACE = make_space(("IN", "OUT"), ("hairy", "eyed"), bounds=(0, 1))


class World:
    """A live denoiser and a generator in one: donor `hairy` knows hair in IN, `eyed` knows eyes in OUT; each spoils."""

    def __init__(self) -> None:
        self.generator = FakeGenerator(VOCABULARY.tags, 0.5)
        self.applied: list[str] = []

    def apply(self, weights: Weights) -> str:
        hair = 0.5 + 0.4 * weight_of(weights, "IN", "hairy") - 0.3 * weight_of(weights, "OUT", "eyed") ** 2
        eyes = 0.5 + 0.4 * weight_of(weights, "OUT", "eyed") - 0.3 * weight_of(weights, "IN", "hairy") ** 2
        skill: Mapping[str, float] = {tag: hair if tag in HAIR else eyes for tag in VOCABULARY.tags}
        self.generator = self.living(skill)
        self.applied.append(str(SPACE.flatten(weights)))
        return self.applied[-1]

    def living(self, skill: Mapping[str, float]) -> FakeGenerator:
        return FakeGenerator(VOCABULARY.tags, dict(skill))

    def generate(self, prompts):
        return self.generator.generate(prompts)


def prompts(count: int, seed: int) -> tuple:
    return make_prompts(VOCABULARY, count, tags_per_prompt=3, seed=seed)


def objective(kind: str = "accuracy", count: int = 40) -> BlendObjective:
    world = World()
    metric = Metric(kind, 0.5, VOCABULARY.category)
    return BlendObjective(world, world, FakeTagger(VOCABULARY.tags), prompts(count, 1), metric)


def test_one_floor_holds_for_the_logarithm_of_every_value(monkeypatch: pytest.MonkeyPatch) -> None:
    made = prompts(2, 1)
    tags = tuple(sorted({tag for prompt in made for tag in prompt.tags}))
    said = {TAGGER: np.zeros((2, len(tags)), np.float32)}
    evaluation = Evaluation(made, tags, said, np.zeros(2, bool), np.arange(2), 1.0)
    for floor in (scores.PROBABILITY_FLOOR, 0.01):
        monkeypatch.setattr(scores, "PROBABILITY_FLOOR", floor)
        value, parts = Metric("log_probability", 0.5, VOCABULARY.category).value(evaluation)
        assert value.value == pytest.approx(np.log(floor))
        assert parts == pytest.approx(np.log(floor))


def test_a_score_says_what_was_found() -> None:
    score = objective()(SPACE.everywhere({}))
    assert score.value == score.accuracy
    assert score.accuracy == pytest.approx(0.5, abs=0.1)
    assert set(score.categories) == {"hair", "eyes"}
    assert len(score.per_prompt) == 40
    assert score.value == pytest.approx(np.mean(score.per_prompt), abs=1e-5), "3 tags in every prompt"
    assert 0 < score.stderr < 0.1
    assert score.images == 40
    assert score.checksum == str([0.0] * 4)
    assert score.attributes == {"broken": 0}


def test_the_value_is_of_the_kind_asked_for_and_the_accuracy_always_there() -> None:
    weights = SPACE.everywhere({"hairy": 0.3})
    scores = {kind: objective(kind)(weights) for kind in ("accuracy", "probability", "log_probability")}
    assert len({score.accuracy for score in scores.values()}) == 1
    assert scores["probability"].value == scores["accuracy"].probability
    assert scores["log_probability"].value < 0
    for score in scores.values():
        assert score.value == pytest.approx(np.mean(score.per_prompt), abs=1e-5)


def test_the_objective_reports_while_it_draws() -> None:
    seen: list[int] = []
    objective()(SPACE.everywhere({}), lambda images, value: seen.append(images))
    assert seen == [4 * batch for batch in range(1, 11)]


class Stop(Exception):
    pass


def test_what_the_report_raises_ends_the_trial() -> None:
    def report(images: int, value: float) -> None:
        raise Stop

    with pytest.raises(Stop):
        objective()(SPACE.everywhere({}), report)


def concluded(
    records: list[TrialRecord], *, count: int = 200, kinds: tuple[str, ...] = ()
) -> tuple[Selection, list[tuple[str, str]]]:
    world, drawn = World(), []
    sets = {"validation": prompts(count, 2), "test": prompts(count, 3)}
    taggers = {TAGGER: FakeTagger(VOCABULARY.tags), JUDGE: FakeTagger(VOCABULARY.tags, "judge", 1, 0.1)}

    def evaluate(which: str, weights: Weights) -> Evaluation:
        drawn.append((which, str(SPACE.flatten(weights))))
        return evaluate_blend(world, world, taggers, sets[which], weights, keep_images=2)

    selection = select_winner(
        records,
        (*baselines_of(SPACE, "base"), *outcomes(SPACE, "base", kinds, records)),
        evaluate,
        thresholds={TAGGER: 0.5, JUDGE: 0.5},
        category_of=VOCABULARY.category,
        name="paint",
        stopped_because="trials",
    )
    return selection, drawn


def test_a_search_finds_the_best_blend_and_the_selection_shows_it() -> None:
    study = open_study(InMemoryStorage(), "paint", SPACE, identity={}, baselines=baselines_of(SPACE, "base"))
    search(objective(), study, SearchSettings("cmaes", 1, 60, 99))
    selection, drawn = concluded(study.records())
    winner = {model["role"]: model for model in selection.result["models"]}["winner"]
    assert winner["accuracy"] > 0.6
    found = selection.result["paired_difference_to_best_parent"]
    assert found["tagger"]["interval"][0] > 0
    assert found["judge"]["mean"] > 0
    assert selection.result["recommended"] == winner["name"]
    assert (selection.result["validation_prompts"], selection.result["test_prompts"]) == (200, 200)
    changed = selection.result["gains_and_losses"]
    assert {row["name"] for row in changed["by_tag"]["judge"]} == set(VOCABULARY.tags)
    assert selection.best_parent.name == "eyed", "which knows eyes better than the winner, that knows both"
    assert {row["name"]: row["verdict"] for row in changed["by_category"]["tagger"]} == {"hair": "gain", "eyes": "loss"}
    losing = [row["difference"] for row in changed["by_tag"]["tagger"]]
    assert losing == sorted(losing), "the largest loss first"
    assert selection.result["winner"]["weights"] == selection.winner.weights
    assert {which for which, _ in drawn} == {"validation", "test"}
    assert len([which for which, _ in drawn if which == "test"]) == 5, "winner, base, two donors, average"


def lucky(records: list[tuple[dict, float]]) -> list[TrialRecord]:
    """Trials that observed what they are said to have observed, after the four baselines."""
    base = [(SPACE.everywhere({}), 0.5), (SPACE.everywhere({"hairy": 1}), 0.55), (SPACE.everywhere({"eyed": 1}), 0.55)]
    every = [*base, (SPACE.everywhere({"hairy": 1 / 3, "eyed": 1 / 3}), 0.5), *records]
    roles = [("base", "base"), ("donor", "hairy"), ("donor", "eyed"), ("uniform", "uniform")]
    return [
        TrialRecord(number, *(roles[number] if number < 4 else ("search", "")), weights, Score(v, 0.02, v, 0.02, v))
        for number, (weights, v) in enumerate(every)
    ]


def test_a_winner_that_was_only_lucky_is_not_recommended() -> None:
    """A blend just like the base was observed at 0.9; on fresh prompts it is no better than a parent."""
    selection, _ = concluded(lucky([(SPACE.everywhere({"hairy": 0.001}), 0.9)]))
    assert selection.result["optimism"]["trial"] == 4
    assert selection.result["optimism"]["optimism"] > 0.2
    assert selection.result["recommended"] == selection.best_parent.name
    second = selection.result["next_parent"]
    assert second["name"] != selection.best_parent.name and second["interval"][0] <= second["mean"]


def test_the_winner_is_chosen_on_validation_not_by_what_was_observed() -> None:
    good = {"IN": {"hairy": 0.6, "eyed": 0.0}, "OUT": {"hairy": 0.0, "eyed": 0.6}}
    selection, drawn = concluded(lucky([(SPACE.everywhere({"hairy": 0.001}), 0.9), (good, 0.6)]))
    assert selection.winner.number == 5
    assert ("test", str(SPACE.flatten(SPACE.everywhere({"hairy": 0.001})))) not in drawn


def test_finalists_are_blends_all_different_and_parents_only_where_nothing_else_was_tried() -> None:
    twin = {"IN": {"hairy": 0.5, "eyed": 0.0}, "OUT": {"hairy": 0.0, "eyed": 0.0}}
    records = lucky([(twin, 0.6), (twin, 0.6), (SPACE.everywhere({"eyed": 0.2}), 0.58)])
    assert [record.number for record in finalists_of(records)] == [4, 6, 3]
    assert [record.number for record in finalists_of(records[:3])] == [1, 2, 0]


def test_averages_found_by_trying_are_in_the_table_and_may_win() -> None:
    """Each parent is 0.55, the two donors' average was observed highest: no other trial was better."""
    records = lucky([])
    tried = [("best_uniform", f"uniform x {s:g}", s / 3) for s in (0.5, 1.5, 2.0, 2.5, 3.0)]
    tried += [("greedy_soup", "soup of hairy + eyed", 0.5), ("greedy_soup", "soup of hairy + eyed + base", 1 / 3)]
    for role, name, weight in tried:
        weights = SPACE.everywhere({"hairy": weight, "eyed": weight})
        value = 0.7 if weight == 0.5 else 0.4
        if SPACE.flatten(weights) not in [SPACE.flatten(record.weights) for record in records]:
            records.append(TrialRecord(len(records), role, name, weights, Score(value, 0.02, value, 0.02, value)))
    selection, drawn = concluded(records, kinds=("best_uniform", "greedy_soup"))
    roles = {model["role"]: model["name"] for model in selection.result["models"]}
    assert (roles["best_uniform"], roles["greedy_soup"]) == ("best uniform", "greedy soup")
    assert selection.result["winner"]["role"] in ("uniform", "best_uniform", "greedy_soup")
    assert selection.result["winner"]["name"]
    assert len(drawn) == len(set(drawn)), "a blend with two names is drawn once"
    assert selection.result["images_drawn"] == 200 * len(drawn)


def test_an_evaluation_is_kept_and_read_back(tmp_path: Path) -> None:
    world, sets = World(), {"test": prompts(6, 3)}
    tagger = FakeTagger(VOCABULARY.tags)
    weights = SPACE.everywhere({"hairy": 0.5})
    cache = EvaluationCache(tmp_path, sets, {TAGGER: tagger.fingerprint})
    assert cache.get("test", weights) is None
    found = evaluate_blend(world, world, {TAGGER: tagger}, sets["test"], weights, keep_images=2)
    cache.put("test", weights, found)
    kept = cache.get("test", weights)
    assert kept is not None
    assert kept.tags == found.tags
    assert np.array_equal(kept.probabilities[TAGGER], found.probabilities[TAGGER])
    assert kept.images is not None and np.array_equal(kept.images, found.images)
    assert cache.get("test", SPACE.everywhere({"hairy": 0.6})) is None
    assert EvaluationCache(tmp_path, sets, {TAGGER: "another"}).get("test", weights) is None
    cache.path("test", weights).write_bytes(b"PK\x03\x04 cut short")
    assert cache.get("test", weights) is None
