"""Which setting is the cheapest that ranks alike: by hand, on figures made up for it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmark.evaluate.runner import Evaluation
from benchmark.metrics.calibration import Effort, calibrate, cheapest, pairs_alike, rank_correlation
from benchmark.prompts.prompt_set import Prompt
from benchmark.report.calibration_table import calibration_table
from benchmark.report.tables import table_as_markdown

PROMPTS = tuple(Prompt(i, "a", ("a",), i) for i in range(10))


def evaluation(hits: int, seconds: float) -> Evaluation:
    said = (np.arange(10) < hits).astype(np.float32)[:, None]
    return Evaluation(PROMPTS, ("a",), {"t": said}, np.zeros(10, bool), np.arange(10), seconds)


def test_rank_correlation_by_hand() -> None:
    assert rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # Ranks 1 2 3 4 5 and 2 1 4 3 5: 1 - 6 * (1 + 1 + 1 + 1) / (5 * 24).
    assert rank_correlation([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(1 - 24 / 120)
    # Ties share ranks: 1.5 1.5 3 against 1 2 3: covariance 1.5, variances 1.5 and 2.
    assert rank_correlation([0, 0, 1], [1, 2, 3]) == pytest.approx(1.5 / math.sqrt(1.5 * 2))
    assert math.isnan(rank_correlation([1, 1], [1, 2]))
    assert math.isnan(rank_correlation([1], [1]))


def test_pairs_by_hand() -> None:
    assert pairs_alike([1, 2, 3], [1, 3, 2]) == (2, 3)
    assert pairs_alike([1, 1], [2, 2]) == (1, 1)
    assert pairs_alike([1, 1], [2, 3]) == (0, 1)


def test_the_cheapest_setting_that_ranks_alike() -> None:
    hits = {20: (9, 6, 3), 8: (8, 6, 3), 4: (5, 6, 3)}  # at 4 steps the first two change places
    evaluations = {
        Effort(steps, 64, 64): {name: evaluation(n, steps / 2) for name, n in zip("abc", counts, strict=True)}
        for steps, counts in hits.items()
    }
    settings = calibrate(evaluations, "t", 0.5)
    assert [setting.effort.steps for setting in settings] == [4, 8, 20]
    assert [setting.seconds for setting in settings] == pytest.approx([0.2, 0.4, 1.0])
    assert [setting.correlation for setting in settings] == pytest.approx([0.5, 1, 1])
    assert [setting.pairs for setting in settings] == [(2, 3), (3, 3), (3, 3)]
    assert settings[0].difference["a"].value == pytest.approx(-0.4)
    assert settings[2].difference["a"].value == 0
    chosen = cheapest(settings)
    assert chosen is not None
    assert chosen.effort.steps == 8
    text = table_as_markdown(calibration_table(settings, "t"))
    assert "| 8 " in text
    assert "a, against 20 at 64x64" in text
    assert "-0.400 [" in text


def test_one_model_has_no_rank() -> None:
    settings = calibrate(
        {Effort(4, 64, 64): {"a": evaluation(3, 1)}, Effort(8, 64, 64): {"a": evaluation(5, 2)}}, "t", 0.5
    )
    assert cheapest(settings) is None
    assert "–" in table_as_markdown(calibration_table(settings, "t"))


def test_sizes_are_compared_too_and_the_cheapest_is_the_least_steps_times_pixels() -> None:
    hits = {(20, 64): (9, 6, 3), (20, 32): (8, 6, 3), (8, 64): (9, 5, 3), (8, 32): (3, 6, 9), (40, 32): (9, 6, 3)}
    evaluations = {
        Effort(steps, side, side): {name: evaluation(n, 1) for name, n in zip("abc", counts, strict=True)}
        for (steps, side), counts in hits.items()
    }
    settings = calibrate(evaluations, "t", 0.5)
    order = [(s.effort.steps, s.effort.width) for s in settings]
    assert order == [(8, 32), (20, 32), (8, 64), (40, 32), (20, 64)]  # 8, 20, 32, 40 and 80 thousand
    assert settings[-1].difference["a"].value == 0  # compared with the most steps of the largest size
    assert [s.correlation for s in settings] == pytest.approx([-1, 1, 1, 1, 1])
    chosen = cheapest(settings)
    assert chosen is not None
    assert chosen.effort == (20, 32, 32)
    assert "| 20    | 32x32 |" in table_as_markdown(calibration_table(settings, "t"))
