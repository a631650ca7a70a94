"""Scores against figures computed by hand and against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmark.evaluate import scores

# 3 prompts, 4 images, 3 tags. Asked: prompt 0 {a, b} twice, prompt 1 {c}, prompt 2 {a, c}.
PROMPT_OF = np.array([0, 0, 1, 2])
ASKED = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 1]], dtype=bool)
PROBABILITIES = np.array([[0.9, 0.4, 0.9], [0.6, 0.5, 0.1], [0.8, 0.7, 0.2], [0.7, 0.9, 0.1]], dtype=np.float32)


def test_accuracy_by_hand() -> None:
    # Found at 0.5 where asked: prompt 0: a, -, a, b = 3 of 4; prompt 1: 0 of 1; prompt 2: a = 1 of 2. In all 4 of 7.
    score = scores.tag_accuracy(PROBABILITIES, ASKED, PROMPT_OF, 0.5)
    assert score.value == pytest.approx(4 / 7)
    # Residuals hits - 4/7 asked: 5/7, -4/7, -1/7; squares sum to 42/49; sqrt(3/2 * 42/49) / 7 = 9 / (7 sqrt(63)).
    assert score.stderr == pytest.approx(9 / 7 / math.sqrt(63))


def test_the_threshold_is_met_by_an_equal_probability() -> None:
    assert scores.tag_accuracy(np.array([[0.5]]), np.array([[True]]), np.array([0]), 0.5).value == 1
    assert scores.tag_accuracy(np.array([[0.5]]), np.array([[True]]), np.array([0]), 0.51).value == 0


def test_mean_probability_by_hand() -> None:
    score = scores.mean_probability(PROBABILITIES, ASKED, PROMPT_OF)
    assert score.value == pytest.approx((0.9 + 0.4 + 0.6 + 0.5 + 0.2 + 0.7 + 0.1) / 7)
    logs = scores.mean_log_probability(PROBABILITIES, ASKED, PROMPT_OF)
    assert logs.value == pytest.approx(np.log([0.9, 0.4, 0.6, 0.5, 0.2, 0.7, 0.1]).mean(), rel=1e-6)


def test_categories_tags_and_prompts_by_hand() -> None:
    found = scores.found(PROBABILITIES, 0.5)
    category = {"a": "x", "b": "x", "c": "y"}.__getitem__
    by_category = scores.per_category(found, ASKED, PROMPT_OF, ("a", "b", "c"), category)
    assert {name: score.value for name, score in by_category.items()} == pytest.approx({"x": 4 / 5, "y": 0})
    rates = scores.per_tag(found, ASKED, PROMPT_OF, ("a", "b", "c"))
    assert {tag: (rate.score.value, rate.images) for tag, rate in rates.items()} == {
        "a": (1.0, 3),
        "b": (0.5, 2),
        "c": (0.0, 2),
    }
    assert scores.per_prompt(scores.tally(found, ASKED, PROMPT_OF)) == pytest.approx([3 / 4, 0, 1 / 2])


def test_the_interval_of_a_tag_is_that_of_its_own_score() -> None:
    draw = np.random.default_rng(5)
    prompt_of = draw.permutation(np.repeat(np.arange(30), 2))
    asked, values = draw.random((60, 8)) < np.linspace(0.02, 1, 8), (draw.random((60, 8)) < 0.6).astype(float)
    values[:, 6] = 1.0
    rates = scores.per_tag(values, asked, prompt_of, list("abcdefgh"))
    for column, tag in enumerate("abcdefgh"):
        if tag not in rates:
            assert not asked[:, column].any()
            continue
        alone = scores.estimate(scores.tally(values[:, [column]], asked[:, [column]], prompt_of))
        got = rates[tag].score
        assert (got.value, got.stderr) == pytest.approx((alone.value, alone.stderr), nan_ok=True)
        # prompts that were not asked are resampled with the others, which moves the bounds a little
        assert (got.low, got.high) == pytest.approx((alone.low, alone.high), abs=0.03)


def test_the_interval_is_the_percentile_bootstrap_of_whole_prompts() -> None:
    draw = np.random.default_rng(0)
    prompts, images, tags = 40, 3, 12
    prompt_of = np.repeat(np.arange(prompts), images)
    asked = np.repeat(draw.random((prompts, tags)) < 0.3, images, axis=0)
    asked[:, 0] = True
    skill = np.repeat(draw.random(prompts), images)[:, None]
    probabilities = (draw.random(asked.shape) < skill).astype(float)
    score = scores.tag_accuracy(probabilities, asked, prompt_of, 0.5)
    values = []
    for _ in range(4000):  # a plain loop with other random numbers
        chosen = draw.integers(0, prompts, prompts)
        rows = np.concatenate([np.flatnonzero(prompt_of == p) for p in chosen])
        values.append(probabilities[rows][asked[rows]].mean())
    assert (score.low, score.high) == pytest.approx(np.quantile(values, (0.025, 0.975)), abs=0.01)
    assert score.stderr == pytest.approx(np.std(values), rel=0.06)
    naive = math.sqrt(score.value * (1 - score.value) / asked.sum())
    assert score.stderr > 1.5 * naive  # images of a prompt are alike: counting tags as independent would be wrong


def test_a_paired_difference_is_narrower_than_two_scores_apart() -> None:
    draw = np.random.default_rng(1)
    prompt_of = np.repeat(np.arange(200), 2)
    asked = np.ones((400, 4), dtype=bool)
    hard = np.repeat(draw.random(200), 2)[:, None]
    luck = draw.random(asked.shape)
    a, b = (scores.tally((luck < hard * skill).astype(float), asked, prompt_of) for skill in (0.9, 0.8))
    difference = scores.paired_difference(a, b)
    apart = math.hypot(scores.estimate(a).stderr, scores.estimate(b).stderr)
    assert difference.value == pytest.approx(scores.estimate(a).value - scores.estimate(b).value)
    assert difference.stderr < apart / 3
    assert 0 < difference.low < difference.value < difference.high
    opposite = scores.paired_difference(b, a)
    assert (opposite.value, opposite.low, opposite.high) == pytest.approx(
        (-difference.value, -difference.high, -difference.low), abs=1e-3
    )
    same = scores.paired_difference(a, a)
    assert (same.value, same.stderr, same.low, same.high) == (0, 0, 0, 0)


def test_a_paired_difference_of_other_prompts_is_refused() -> None:
    a = scores.tally(PROBABILITIES, ASKED, PROMPT_OF)
    with pytest.raises(ValueError, match="same prompts"):
        scores.paired_difference(a, scores.tally(PROBABILITIES, ASKED, PROMPT_OF + 1))
    with pytest.raises(ValueError, match="do not fit"):
        scores.tally(PROBABILITIES, ASKED[:2], PROMPT_OF)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_or_nothing_found_is_not_certainty(value: float) -> None:
    score = scores.tag_accuracy(np.full((30, 2), value), np.ones((30, 2), dtype=bool), np.arange(30), 0.5)
    assert score.value == value
    assert (score.high - score.low) == pytest.approx(1 - 0.025 ** (1 / 30))
    assert score.low <= value <= score.high


def test_nothing_asked_and_one_prompt() -> None:
    nothing = scores.tag_accuracy(np.ones((2, 2)), np.zeros((2, 2), dtype=bool), np.arange(2), 0.5)
    assert math.isnan(nothing.value)
    one = scores.tag_accuracy(np.array([[0.9, 0.1]]), np.ones((1, 2), dtype=bool), np.array([3]), 0.5)
    assert (one.value, one.low, one.high) == (0.5, 0, 1)
    assert math.isnan(one.stderr)


def test_the_order_of_images_does_not_matter() -> None:
    order = np.array([2, 0, 3, 1])
    shuffled = scores.tag_accuracy(PROBABILITIES[order], ASKED[order], PROMPT_OF[order], 0.5)
    assert shuffled == scores.tag_accuracy(PROBABILITIES, ASKED, PROMPT_OF, 0.5)


def simulated(case: str, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """(hits [2000, C], asked [C], truth): 2,000 benchmarks of C prompts that differ in difficulty, and their truth."""
    prompts = {"few": 50}.get(case, 100)
    asked = np.full(prompts, 6) if case == "equal" else 2 + np.arange(prompts) % 7
    hard = draw.beta(0.7 * 8, 0.3 * 8, (2000, prompts))
    hits = draw.binomial(asked, hard)
    if case != "paired":
        return hits, asked, 0.7
    return draw.binomial(asked, np.minimum(hard + 0.05 * (1 - hard), 1)) - hits, asked, 0.05 * 0.3


@pytest.mark.parametrize("case", ["equal", "unequal", "few", "paired"])
def test_95_of_100_intervals_hold_the_truth(case: str) -> None:
    """All 2,000 benchmarks at once, through the resamples that every interval is made of; some through the function."""
    hits, asked, truth = simulated(case, np.random.default_rng(2))
    times = scores._resamples(len(asked))
    low, high = np.quantile((times @ hits.T) / (times @ asked)[:, None], (0.025, 0.975), axis=0)
    assert 0.93 <= ((low <= truth) & (truth <= high)).mean() <= 0.97
    prompts, weights, nothing = np.arange(len(asked)), asked.astype(float), np.zeros(len(asked))
    for number in range(0, 2000, 400):
        counts = scores.Tally(prompts, hits[number].astype(float), weights)
        one = scores.estimate(counts)
        if case == "paired":
            one = scores.paired_difference(counts, scores.Tally(prompts, nothing, weights))
        assert (one.low, one.high) == pytest.approx((low[number], high[number]))
