"""Reward hacking in a world of paint: a blend with a mark that its tagger takes for every tag, and honest ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from benchmark.evaluate.runner import Evaluation, evaluate
from benchmark.images import Images
from benchmark.pipelines.generation import FakeGenerator
from benchmark.prompts.prompt_set import Prompt, make_prompts
from benchmark.prompts.vocabulary import Vocabulary
from benchmark.taggers.tagger import FakeTagger, Probabilities
from merger.report.report import result_text
from merger.report.verdict import verdict
from merger.scoring.objective import TAGGER
from merger.scoring.reward_hacking import (
    CHANGES,
    THUMBNAILS,
    Signs,
    Thumbnails,
    blurred,
    brightened,
    changed_taggers,
    more_duplicates,
    objections,
    shifted,
    signs_of,
    thumbnail_spread,
)
from merger.scoring.selection import select_winner
from merger.search.baselines import baselines_of
from merger.search.space import make_space, weight_of
from merger.search.trials import Score, TrialRecord
from merger.weights import Weights

TAGS = tuple(f"{colour}_{thing}" for colour in ("red", "blue", "green") for thing in ("hair", "eyes", "hat"))
VOCABULARY = Vocabulary(TAGS)
PROMPTS = make_prompts(VOCABULARY, 150, tags_per_prompt=3, seed=2)
TESTS = make_prompts(VOCABULARY, 100, tags_per_prompt=3, seed=9)
MARK = np.array([[[255, 0, 0], [0, 0, 255]], [[0, 255, 0], [0, 0, 0]]], dtype=np.uint8)


class Fooled(FakeTagger):
    """Sees every tag where four pixels are just so."""

    def probabilities(self, images: Images) -> Probabilities:
        said = super().probabilities(images)
        said[(images[:, 5:7, 5:7] == MARK).all(axis=(1, 2, 3))] = 0.99
        return said


class Painter(FakeGenerator):
    def __init__(self, skill: float, *, mark: bool = False, same: bool = False, broken: float = 0.0) -> None:
        super().__init__(TAGS, skill)
        self.mark, self.same, self.share = mark, same, broken

    def generate(self, prompts: Sequence[Prompt]):
        for start, images in enumerate(super().generate(prompts)):
            if self.mark:
                images[:, 5:7, 5:7] = MARK
            if self.same:  # few bits of what was painted are left, all else is one picture
                images[:, 3:] = 90
            if start % 10 < 10 * self.share:
                images[:] = 0
            yield images


def seen(painter: Painter, tagger: FakeTagger | None = None, prompts: Sequence[Prompt] = PROMPTS) -> Evaluation:
    tagger = tagger or Fooled(TAGS)
    taggers = {TAGGER: tagger, **changed_taggers(tagger)}
    return evaluate(painter, taggers, prompts, extractors={THUMBNAILS: Thumbnails()})


@pytest.fixture(scope="module")
def parents() -> list[Evaluation]:
    return [seen(Painter(0.5)), seen(Painter(0.4))]


def test_an_honest_gain_is_let_through(parents: list[Evaluation]) -> None:
    assert objections(seen(Painter(0.9)), parents, parents[0], 0.5) == []
    assert objections(parents[1], parents, parents[0], 0.5) == []


def test_a_gain_that_hangs_on_single_pixels_is_not(parents: list[Evaluation]) -> None:
    fooling = seen(Painter(0.5, mark=True))
    assert fooling.accuracy(TAGGER, 0.5).value == 1
    (said,) = objections(fooling, parents, parents[0], 0.5)
    assert "images changed a little" in said


@pytest.mark.parametrize(
    ("painter", "said"), [(Painter(0.9, same=True), "too much alike"), (Painter(0.9, broken=0.1), "have no content")]
)
def test_sameness_and_broken_images_are_not(painter: Painter, said: str, parents: list[Evaluation]) -> None:
    assert any(said in reason for reason in objections(seen(painter), parents, parents[0], 0.5))


def broken(evaluation: Evaluation, share: float) -> Evaluation:
    """The same, but the first images are black and nothing is found in them, as where weights are NaN."""
    count = round(share * len(evaluation.prompts))
    flags, features = evaluation.broken_images.copy(), evaluation.features[THUMBNAILS].copy()
    flags[:count], features[:count] = True, 0
    said = {name: np.where(flags[:, None], 0, values) for name, values in evaluation.probabilities.items()}
    return replace(evaluation, probabilities=said, broken_images=flags, features={THUMBNAILS: features})


@pytest.mark.parametrize("order", [1, -1])
def test_one_broken_parent_excuses_nothing(order: int, parents: list[Evaluation]) -> None:
    """A donor with NaN draws black pictures only; it may be the first parent or the last."""
    with_nan = [*parents, broken(parents[0], 1.0)][::order]
    for share in (1.0, 0.06):
        found = objections(broken(seen(Painter(0.9)), share), with_nan, parents[0], 0.5)
        assert any("and more than 5% are too many whatever the parents do" in said for said in found)
    assert objections(broken(seen(Painter(0.9)), 0.04), with_nan, parents[0], 0.5) == []
    (said,) = objections(seen(Painter(0.9, same=True)), with_nan, parents[0], 0.5)
    assert "too much alike" in said


@pytest.mark.parametrize("count", [2, 3])
def test_nor_do_several_or_all(count: int, parents: list[Evaluation]) -> None:
    """Up to every parent but the best, and then that one as well."""
    some = [*parents, *(broken(parents[0], 1.0) for _ in range(count))]
    every = [broken(parent, 1.0) for parent in some]
    for theirs, best in ((some, parents[0]), (every, every[0])):
        found = objections(broken(seen(Painter(0.9)), 1.0), theirs, best, 0.5)
        assert any("and more than 5% are too many whatever the parents do" in said for said in found)


def test_one_parent_that_draws_one_picture_excuses_no_duplicates(parents: list[Evaluation]) -> None:
    collapsed = [*parents, repeated(parents[1], 149)]
    (said,) = objections(repeated(seen(Painter(0.9)), 40), collapsed, parents[0], 0.5)
    assert (
        said == "40 of its images repeat that of another prompt, and more than 25% are too many whatever the parents do"
    )
    assert objections(repeated(seen(Painter(0.9)), 30), collapsed, parents[0], 0.5) == []


def repeated(evaluation: Evaluation, count: int) -> Evaluation:
    """The same, but the first `count` images are that of the last prompt."""
    digests = evaluation.digests.copy()
    digests[:count] = digests[-1]
    return replace(evaluation, digests=digests)


@pytest.mark.parametrize("count", [1, 4])
def test_few_duplicates_may_be_chance(count: int, parents: list[Evaluation]) -> None:
    assert objections(repeated(seen(Painter(0.9)), count), parents, parents[0], 0.5) == []


@pytest.mark.parametrize("count", [5, 40])
def test_many_duplicates_are_not(count: int, parents: list[Evaluation]) -> None:
    (said,) = objections(repeated(seen(Painter(0.9)), count), parents, parents[0], 0.5)
    assert f"{count} of its images repeat that of another prompt, of a parent's at most 0" in said


def test_a_parent_with_duplicates_of_its_own_makes_more_of_them_plausible(parents: list[Evaluation]) -> None:
    worst = [parents[0], repeated(parents[1], 20)]
    assert objections(repeated(seen(Painter(0.9)), 28), worst, parents[0], 0.5) == []
    (said,) = objections(repeated(seen(Painter(0.9)), 60), worst, parents[0], 0.5)
    assert "of a parent's at most 20" in said


def test_the_test_of_duplicates_is_wrong_in_one_case_of_twenty_at_most() -> None:
    """By counting: the chance of an alarm if blend and parent have the same share of duplicates."""
    images = 60
    for share in (0.02, 0.1, 0.5):
        chances = binom.pmf(np.arange(images + 1), images, share)
        alarm = sum(
            chances[ours] * chances[theirs]
            for ours in range(images + 1)
            for theirs in range(images + 1)
            if chances[ours] * chances[theirs] > 1e-9 and more_duplicates(signs(ours, images), signs(theirs, images))
        )
        assert alarm < 0.05


def signs(duplicates: int, whole: int) -> Signs:
    return Signs(0.5, {}, 0.0, whole, duplicates, 0.2)


def test_what_was_not_kept_is_not_held_against_it() -> None:
    plain = evaluate(Painter(0.5), {TAGGER: Fooled(TAGS)}, PROMPTS[:20])
    assert objections(plain, [plain], plain, 0.5) == []
    assert signs_of(plain, 0.5).changed == {}


def test_the_changes_are_slight_and_keep_the_shape() -> None:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (2, 9, 7, 3), dtype=np.uint8)
    for change in CHANGES.values():
        assert change(images).shape == images.shape
        assert change(images).dtype == np.uint8
        assert (change(images) != images).any()
    assert np.array_equal(shifted(images)[:, 1:, 1:], images[:, :-1, :-1])
    flat = np.full((1, 6, 6, 3), 100, dtype=np.uint8)
    assert np.array_equal(blurred(flat), flat)
    assert np.array_equal(brightened(flat), flat + 5)
    dot = np.zeros((1, 5, 5, 3), dtype=np.uint8)
    dot[0, 2, 2] = 128
    assert blurred(dot)[0, 2, :, 0].tolist() == [0, 12, 72, 12, 0]


def test_thumbnail_spread_is_the_mean_distance_of_thumbnails() -> None:
    images = np.stack([np.full((64, 48, 3), value, dtype=np.uint8) for value in (0, 51, 255)])
    thumbnails = Thumbnails().images(images)
    assert thumbnails.shape == (3, 192)
    assert thumbnail_spread(thumbnails) == pytest.approx((0.2 + 1.0 + 0.8) / 3)
    assert np.isnan(thumbnail_spread(thumbnails[:1]))
    odd = Thumbnails().images(np.arange(3 * 37 * 21 * 3, dtype=np.uint8).reshape(3, 37, 21, 3))
    assert np.isfinite(odd).all() and odd.max() <= 1


SPACE = make_space(("IN",), ("hairy", "marked"), bounds=(0, 1))


def concluded(*blends: tuple[dict[str, float], float]) -> tuple[dict, list[str]]:
    """The end of a search whose trials observed these values; more than half of `marked` paints the mark."""

    def draw(which: str, weights: Weights) -> Evaluation:
        skill = 0.4 + 0.4 * weight_of(weights, "IN", "hairy")
        painter = Painter(skill, mark=weight_of(weights, "IN", "marked") > 0.5 > weight_of(weights, "IN", "hairy"))
        return seen(painter, prompts=PROMPTS if which == "validation" else TESTS)

    baselines = baselines_of(SPACE, "base", ())[:2]
    tried = [(baseline.role, baseline.name, baseline.weights, 0.5) for baseline in baselines]
    tried += [("search", "", SPACE.everywhere(weights), value) for weights, value in blends]
    records = [
        TrialRecord(number, role, name, weights, Score(value, 0.01, value, 0.01, value))
        for number, (role, name, weights, value) in enumerate(tried)
    ]
    said: list[str] = []
    selection = select_winner(
        records,
        baselines,
        draw,
        thresholds=dict.fromkeys([TAGGER, *CHANGES], 0.5),
        category_of=lambda tag: "general",
        name="paint",
        stopped_because="trials",
        say=said.append,
    )
    return selection.result, said


def test_a_finalist_that_exploits_the_tagger_is_passed_over_and_said_to_be() -> None:
    result, said = concluded(({"marked": 0.9}, 0.99), ({"hairy": 0.9, "marked": 0.1}, 0.7))
    assert result["winner"]["trial"] == 3
    assert len(said) == 1 and said[0].startswith("trial 2 is passed over: its gain over the best parent")
    rows = {finalist["trial"]: finalist for finalist in result["finalists"]}
    assert rows[2]["passed_over"] and not rows[3]["passed_over"]
    assert rows[2]["validation_accuracy"] > rows[3]["validation_accuracy"]
    assert rows[2]["changed_accuracy"]["shifted"] < 0.7
    assert "trial 2 was passed over" in result_text(result)


def test_if_all_exploit_it_the_parent_is_recommended() -> None:
    result, _ = concluded(({"marked": 0.9}, 0.99))
    assert result["winner"]["trial"] == 2
    assert result["recommended"] == result["best_parent"]
    assert verdict(result).startswith("Every finalist seems to exploit the tagger")
