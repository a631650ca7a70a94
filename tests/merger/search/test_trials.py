from __future__ import annotations

import io
import math

import pytest

from merger.report.progress import SearchProgress, duration, time_left, trial_line
from merger.search.trials import Score, TrialRecord, best_of, distinct_best, improvement, last_improvement, why_stop


def scored(value: float, per_prompt: tuple[float, ...] = (), stderr: float = 0.01, seconds: float = 2.0) -> Score:
    return Score(value, stderr, value, stderr, value, per_prompt=per_prompt, images=10, seconds=seconds)


def records(*scores: Score | float) -> list[TrialRecord]:
    return [
        TrialRecord(number, "search", "", {"M00": {"a": float(number)}}, s if isinstance(s, Score) else scored(s))
        for number, s in enumerate(scores)
    ]


def test_a_rise_is_paired_where_both_kept_their_parts() -> None:
    difference, noise = improvement(scored(0.6, (0.5, 0.6, 0.7)), scored(0.5, (0.4, 0.5, 0.6)))
    assert difference == pytest.approx(0.1)
    assert noise == pytest.approx(0, abs=1e-12), "every prompt rose by the same"
    difference, noise = improvement(scored(0.6, (0.8, 0.4)), scored(0.5, (0.4, 0.6)))
    assert noise == pytest.approx(math.sqrt(((0.4 - 0.1) ** 2 + (-0.2 - 0.1) ** 2) / 2))


def test_a_rise_of_unlike_scores_adds_their_errors() -> None:
    assert improvement(scored(0.6, stderr=0.03), scored(0.5, stderr=0.04))[1] == pytest.approx(0.05)
    assert improvement(scored(0.6, (0.6,)), scored(0.5, (0.5,)))[1] == math.inf


def test_small_rises_add_up_to_one() -> None:
    """Each is within the noise of the one before it (0.014), the third is beyond that of the first."""
    assert last_improvement(records(0.500, 0.510, 0.505, 0.520)) == 3
    assert last_improvement(records(0.500, 0.510, 0.505)) == 0
    assert last_improvement([]) == -1


def test_the_search_stops_for_each_reason_and_says_which() -> None:
    limits = {"trials": 10, "patience": 3, "time_limit": None, "baselines": 2}
    flat = records(*[0.5] * 10)
    assert why_stop(flat[:4], **limits) is None
    assert why_stop(flat[:5], **limits) == "plateau: no rise beyond its own noise in 3 trials"
    rising = records(*[0.5 + 0.1 * step for step in range(10)])
    assert why_stop(rising[:9], **limits) is None
    assert why_stop(rising, **limits) == "trials: the limit of 10 is reached"
    assert why_stop(rising[:4], **{**limits, "time_limit": 8.0}) == "time: the limit of 8 s is reached"
    assert why_stop(rising[:3], **{**limits, "time_limit": 8.0}) is None


def test_patience_begins_after_the_baselines() -> None:
    limits = {"trials": 99, "patience": 2, "time_limit": None, "baselines": 6}
    assert why_stop(records(*[0.5] * 7), **limits) is None
    assert why_stop(records(*[0.5] * 8), **limits) is not None


def test_the_best_and_the_best_that_differ() -> None:
    found = records(0.5, 0.7, 0.7, 0.6)
    assert best_of(found) is found[1]
    assert best_of([]) is None
    twin = TrialRecord(9, "search", "", found[1].weights, scored(0.65))
    assert [r.number for r in distinct_best([*found, twin], 3)] == [1, 2, 3]


def test_progress_says_how_far_how_good_how_fast_and_how_long() -> None:
    done = records(scored(0.5), scored(0.625, stderr=0.0125))
    line = trial_line(done[-1], done, trials=32)
    assert line == "trial 2 of 32: 0.6250 | best 0.6250 ± 0.0125 (trial 1) | 5.0 images/s | at most 60 s left"
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
