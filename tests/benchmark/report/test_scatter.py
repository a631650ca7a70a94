"""The chart of accuracy against diversity: where its dots lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmark.evaluate.runner import Evaluation
from benchmark.evaluate.scores import Estimate
from benchmark.metrics.comparison import ModelScores, compare
from benchmark.prompts.prompt_set import Prompt
from benchmark.report.page import as_html
from benchmark.report.scatter import BOTTOM, HEIGHT, LEFT, MARGIN, WIDTH, save_png, scatter, ticks

PROMPTS = (Prompt(0, "a", ("a",), 0), Prompt(1, "a", ("a",), 1))
DONE = Evaluation(PROMPTS, ("a",), {"t": np.ones((2, 1), np.float32)}, np.zeros(2, bool), np.arange(2), 1.0)
(EMPTY,) = compare({"m": DONE}, lambda _: "all", {"t": 0.5})


def model(name: str, x: float, y: float) -> ModelScores:
    across, up = Estimate(x, 0.01, x - 0.1, x + 0.1), Estimate(y, 0.01, y - 0.1, y + 0.1)
    told = {"CLIP score": up, "diversity by dino": across}
    return replace(EMPTY, name=name, metrics=told, metric_difference=told, accuracy={"t": up})


MODELS = (model("low", 0.2, 0.5), model("high", 0.4, 0.7), model("near", 0.399, 0.7))


def test_dots_stand_where_their_figures_say() -> None:
    chart = scatter(MODELS)
    assert chart is not None
    low, high, near = chart.dots
    assert [words for _, words in chart.upright] == ["0.1", "0.2", "0.3", "0.4", "0.5"]
    assert [words for _, words in chart.level] == ["0.4", "0.5", "0.6", "0.7", "0.8"]
    assert (chart.upright[0][0], chart.upright[-1][0]) == (LEFT, WIDTH - MARGIN)
    assert (chart.level[0][0], chart.level[-1][0]) == (HEIGHT - BOTTOM, MARGIN)
    assert low.x == chart.upright[1][0]
    assert low.y == chart.level[1][0]
    assert (low.left, low.right) == (chart.upright[0][0], chart.upright[2][0])
    assert (low.top, low.bottom) == (chart.level[2][0], chart.level[0][0])
    assert high.x > low.x
    assert high.y < low.y
    assert near.label_y - high.label_y >= 14  # names do not lie on one another
    assert low.hover == "low: accuracy 0.500 [0.400, 0.600], diversity by dino 0.200 [0.100, 0.300]"


def test_names_stand_in_the_order_of_their_dots_and_inside_the_chart() -> None:
    chart = scatter((model("below", 0.3, 0.70), model("above", 0.3, 0.71), model("a long name " * 4, 0.4, 0.5)))
    assert chart is not None
    below, above, right = chart.dots
    assert above.y < below.y
    assert above.label_y <= below.label_y - 14
    assert (below.label_end, right.label_end) == ("start", "end")
    assert right.label_x < right.x


def test_no_diversity_no_chart() -> None:
    assert scatter([EMPTY]) is None


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.701, 0.702), (-3, 100), (0, 1)])
def test_ticks_are_round_and_hold_every_interval(low: float, high: float) -> None:
    marks = ticks([Estimate(low, 0, low, high), Estimate(high, 0, low, high)])
    assert 2 <= len(marks) <= 7
    assert marks[0] <= low + 1e-9
    assert marks[-1] >= high - 1e-9
    assert np.diff(marks) == pytest.approx(marks[1] - marks[0])


def test_the_picture_and_the_page_show_it(tmp_path: Path) -> None:
    chart = scatter(MODELS)
    assert chart is not None
    save_png(chart, tmp_path / "chart.png", scale=1)
    with Image.open(tmp_path / "chart.png") as image:
        assert image.size == (WIDTH, HEIGHT)
        assert image.getpixel((round(chart.dots[0].x), round(chart.dots[0].y))) == (0x2A, 0x78, 0xB5)
    settings = dict.fromkeys(("images", "prompts", "width", "height", "steps", "sampler", "guidance"), 1)
    html = as_html((model("<a>", 0.2, 0.5), *MODELS), settings, [])
    assert html.count("<circle") == 4
    assert "<title>&lt;a&gt;: accuracy 0.500" in html
    assert 'text-anchor="middle">diversity by dino</text>' in html
    assert "<a>" not in html
