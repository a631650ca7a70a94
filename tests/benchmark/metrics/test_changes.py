"""Gains and losses by tag, against figures by hand, a plain loop, and many searches in which nothing changed."""

from __future__ import annotations

import numpy as np
import pytest

from benchmark.evaluate.runner import Evaluation
from benchmark.metrics.changes import FALSE_DISCOVERIES, GAIN, LOSS, NOT_SHOWN, TOO_FEW, changes
from benchmark.prompts.prompt_set import Prompt, make_prompts
from benchmark.prompts.vocabulary import Vocabulary

TAGS = tuple("abcdefgh")


def evaluation(prompts: tuple[Prompt, ...], probabilities: np.ndarray) -> Evaluation:
    count = len(prompts)
    zeros = np.zeros(count, dtype=bool), np.arange(count)
    return Evaluation(prompts, TAGS, {"tagger": probabilities.astype(np.float32)}, *zeros, 0.0)


def test_a_tag_that_is_lost_is_named_although_the_mean_rises() -> None:
    prompts = make_prompts(Vocabulary(TAGS), 200, tags_per_prompt=4, seed=1)
    draw = np.random.default_rng(2)
    before = draw.uniform(0.3, 0.9, (200, 8))
    after = np.clip(before + draw.normal(0.15, 0.1, before.shape), 0, 1)
    after[:, 0] = np.clip(before[:, 0] - 0.2 + draw.normal(0, 0.05, 200), 0, 1)
    after[:, 1] = np.clip(before[:, 1] + draw.normal(0, 0.02, 200), 0, 1)
    found = changes(evaluation(prompts, after), evaluation(prompts, before), "tagger", 0.5)
    assert [change.key for change in found if change.verdict == LOSS] == ["a"]
    assert found[0].key == "a"
    assert sorted(change.key for change in found if change.verdict == GAIN) == list("cdefgh")
    (loss, *_) = found
    asked = np.array(["a" in prompt.tags for prompt in prompts])
    assert (loss.prompts, loss.before, loss.after) == (
        asked.sum(),
        pytest.approx((before[asked, 0] >= 0.5).mean()),
        pytest.approx((after[asked, 0] >= 0.5).mean()),
    )
    assert loss.difference.low < loss.difference.value < loss.difference.high < 0
    assert loss.q >= loss.p


def test_categories_are_compared_prompt_by_prompt() -> None:
    prompts = tuple(Prompt(index, "", ("a", "b", "c"), index) for index in range(10))
    before, after = np.full((10, 8), 0.9), np.full((10, 8), 0.9)
    after[:8, :2] = 0.4
    both, other = changes(
        evaluation(prompts, after), evaluation(prompts, before), "tagger", 0.5, lambda tag: "ab" if tag in "ab" else "c"
    )
    assert (both.key, both.prompts, both.before, both.after, both.verdict) == ("ab", 10, 1.0, pytest.approx(0.2), LOSS)
    assert both.difference.value == pytest.approx(-0.8)
    assert (other.key, other.p, other.verdict) == ("c", 1.0, NOT_SHOWN)


@pytest.mark.parametrize(("count", "verdict"), [(3, TOO_FEW), (5, TOO_FEW), (6, LOSS)])
def test_too_few_prompts_tell_nothing(count: int, verdict: str) -> None:
    prompts = tuple(Prompt(index, "", ("a",), index) for index in range(count))
    before, after = np.full((count, 8), 0.9), np.linspace(0.1, 0.3, count)[:, None].repeat(8, axis=1)
    (change,) = changes(evaluation(prompts, after), evaluation(prompts, before), "tagger", 0.5)
    assert change.verdict == verdict
    assert np.isnan(change.p) == (verdict == TOO_FEW)


def test_where_nothing_changed_hardly_anything_is_named() -> None:
    """Both are noise around the same skills. A gain or loss is named in about one comparison of twenty, not in each."""
    draw = np.random.default_rng(3)
    prompts = make_prompts(Vocabulary(TAGS), 100, tags_per_prompt=4, seed=4)
    alarms = 0
    for _ in range(100):
        before, after = (np.clip(draw.normal(0.5, 0.2, (100, 8)), 0, 1) for _ in range(2))
        found = changes(evaluation(prompts, after), evaluation(prompts, before), "tagger", 0.5)
        alarms += any(change.verdict in (LOSS, GAIN) for change in found)
    assert alarms <= 100 * FALSE_DISCOVERIES + 7  # three standard errors


def test_other_prompts_are_refused() -> None:
    one, two = (make_prompts(Vocabulary(TAGS), 20, tags_per_prompt=2, seed=seed) for seed in (1, 2))
    with pytest.raises(ValueError, match="same prompts"):
        changes(evaluation(one, np.zeros((20, 8))), evaluation(two, np.zeros((20, 8))), "tagger", 0.5)
