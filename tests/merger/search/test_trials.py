from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from benchmark.evaluate.scores import Tally, paired_difference
from merger.report.progress import SearchProgress, duration, time_left, trial_line
from merger.search.trials import (
    PROPOSED,
    STEP,
    Score,
    TrialRecord,
    best_of,
    distinct_best,
    improved_at,
    improvement,
    last_improvement,
    paired,
    since_improvement,
    why_stop,
)


def scored(
    value: float,
    per_prompt: Sequence[float] = (),
    stderr: float = 0.01,
    seconds: float = 2.0,
    asked: Sequence[int] = (),
) -> Score:
    return Score(value, stderr, value, stderr, value, per_prompt=per_prompt, images=10, seconds=seconds, asked=asked)


def records(*scores: Score | float, baselines: int = 0) -> list[TrialRecord]:
    """Records of these scores, the first `baselines` of which are baselines."""
    return [
        TrialRecord(
            number,
            "donor" if number < baselines else "search",
            "",
            {"M00": {"a": float(number)}},
            s if isinstance(s, Score) else scored(s),
        )
        for number, s in enumerate(scores)
    ]


def test_an_improvement_is_paired_if_both_kept_their_parts() -> None:
    difference, noise = improvement(scored(0.6, (0.5, 0.6, 0.7)), scored(0.5, (0.4, 0.5, 0.6)))
    assert difference == pytest.approx(0.1)
    assert noise == pytest.approx(0, abs=1e-12), "every prompt improved by the same"
    difference, noise = improvement(scored(0.6, (0.8, 0.4)), scored(0.5, (0.4, 0.6)))
    assert noise == pytest.approx(math.sqrt(((0.4 - 0.1) ** 2 + (-0.2 - 0.1) ** 2) / 2))


def test_prompts_count_by_the_tags_they_ask_for() -> None:
    """The error is that of the benchmark's paired difference, which the unweighted one is not."""
    draw = np.random.default_rng(3)
    asked = draw.integers(1, 9, 24)
    hits, other = (draw.binomial(asked, share).astype(float) for share in (0.7, 0.6))
    prompts = np.arange(24)
    expected = paired_difference(Tally(prompts, hits, asked.astype(float)), Tally(prompts, other, asked.astype(float)))
    later, earlier = (
        scored(float(found.sum() / asked.sum()), (found / asked).tolist(), asked=asked.tolist())
        for found in (hits, other)
    )
    difference, noise = improvement(later, earlier)
    assert difference == pytest.approx(expected.value)
    assert noise == pytest.approx(expected.stderr)
    parts = hits / asked - other / asked
    assert noise != pytest.approx(parts.std(ddof=1) / math.sqrt(24), rel=0.02)
    assert paired(later, earlier).low == pytest.approx(expected.low)
    # a trial of an earlier version does not say how many were asked; the other trial of the same prompts does
    assert improvement(later, replace(earlier, asked=())) == (difference, noise)
    assert improvement(replace(later, asked=()), replace(earlier, asked=()))[1] == pytest.approx(
        parts.std(ddof=1) / math.sqrt(24)
    )


def test_a_prompt_that_asks_for_nothing_does_not_count() -> None:
    later, earlier = (scored(v, (v, math.nan, v + 0.2), asked=(2, 0, 2)) for v in (0.6, 0.5))
    assert improvement(later, earlier) == (pytest.approx(0.1), pytest.approx(0, abs=1e-12))


def test_an_improvement_of_unlike_scores_adds_their_errors() -> None:
    assert improvement(scored(0.6, stderr=0.03), scored(0.5, stderr=0.04))[1] == pytest.approx(0.05)
    assert improvement(scored(0.6, (0.6,)), scored(0.5, (0.5,)))[1] == math.inf


def test_small_improvements_add_up_to_one() -> None:
    """Each is within the noise of the one before it (0.014), the third is beyond that of the first."""
    assert last_improvement(records(0.500, 0.510, 0.505, 0.520)) == 3
    assert last_improvement(records(0.500, 0.510, 0.505)) == 0
    assert last_improvement([]) == -1


def test_the_search_stops_for_each_reason_and_says_which() -> None:
    limits = {"trials": 10, "patience": 3, "time_limit": None}
    flat = records(*[0.5] * 10, baselines=2)
    assert why_stop(flat[:4], **limits) is None
    assert why_stop(flat[:5], **limits) == "plateau: no improvement beyond its own noise in 3 trials"
    rising = records(*[0.5 + 0.1 * step for step in range(10)], baselines=2)
    assert why_stop(rising[:9], **limits) is None
    assert why_stop(rising, **limits) == "trials: the limit of 10 is reached"
    assert why_stop(rising[:4], **{**limits, "time_limit": 8.0}) == "time: the limit of 8 s is reached"
    assert why_stop(rising[:3], **{**limits, "time_limit": 8.0}) is None


def test_patience_begins_after_the_baselines() -> None:
    limits = {"trials": 99, "patience": 2, "time_limit": None}
    assert why_stop(records(*[0.5] * 7, baselines=6), **limits) is None
    assert why_stop(records(*[0.5] * 8, baselines=6), **limits) is not None
    assert since_improvement(records(*[0.5] * 17, baselines=15)) == 2
    assert since_improvement(records(*[0.5] * 4, baselines=15)) == 0
    assert since_improvement([]) == 0


def test_a_gradient_search_ends_when_its_last_weights_are_scored() -> None:
    limits = {"trials": 99, "patience": 50, "time_limit": None}
    done = [replace(record, role=STEP) for record in records(*[0.5] * 4)]
    assert why_stop(done, **limits, steps=4) is None
    done += records(0.6)
    assert why_stop(done, **limits, steps=4) == "gradients: all 4 steps are taken"
    assert why_stop(done, **limits, steps=6) is None, "more steps are planned now"


def test_the_last_improvement_is_found_trial_by_trial() -> None:
    draw = np.random.default_rng(1)
    done = records(*(scored(v, stderr=0.02) for v in draw.normal(0.5, 0.05, 60)), baselines=3)
    done = [replace(r, role=STEP) if draw.random() < 0.3 and r.number > 3 else r for r in done]
    mark = -1
    for place in range(len(done)):
        mark = improved_at(done, place, mark)
        assert mark == last_improvement(done[: place + 1])
        limits = {"trials": 99, "patience": 9, "time_limit": None}
        assert why_stop(done[: place + 1], **limits, mark=mark) == why_stop(done[: place + 1], **limits)


def test_trials_of_a_sampler_that_is_gone_are_no_baselines() -> None:
    assert "polish" in PROPOSED


def test_the_best_and_the_best_that_differ() -> None:
    found = records(0.5, 0.7, 0.7, 0.6)
    assert best_of(found) is found[1]
    assert best_of([]) is None
    twin = TrialRecord(9, "search", "", found[1].weights, scored(0.65))
    assert [r.number for r in distinct_best([*found, twin], 3)] == [1, 2, 3]


def test_progress_says_how_far_how_good_how_fast_and_how_long() -> None:
    done = records(scored(0.5), scored(0.625, stderr=0.0125))
    line = trial_line(done[-1], done, trials=32)
    assert line == "trial 1 (2 of 32): 0.6250 | best 0.6250 ± 0.0125 (trial 1) | 5.0 images/s | at most 60 s left"
    assert time_left(done, 32, 10.0) == 6
    assert time_left([], 32, None) is None
    assert [duration(seconds) for seconds in (45, 600, 7200)] == ["45 s", "10 min", "2.0 h"]


def test_progress_off_a_terminal_is_one_line_a_trial() -> None:
    stream = io.StringIO()
    progress = SearchProgress(3, stream=stream)
    done = records(0.5)
    progress.start("trial 0")
    progress.drawn(4, 0.5)
    progress.trial(done[0], done)
    assert stream.getvalue().count("\n") == 1
    assert "\r" not in stream.getvalue()
