from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from merger.report.charts import heat_map, padded_range, progress_chart, shade
from merger.report.report import RECALL, contact_sheet, optimism_line, result_text, verdict


def result(mean: float, interval: tuple[float, float], judge: tuple[float, float] | None = None) -> dict:
    model = {"accuracy": 0.8, "interval": [0.7, 0.9], "judge_accuracy": None, "judge_interval": None, "categories": {}}
    difference = {"tagger": {"mean": mean, "interval": list(interval)}}
    if judge:
        difference["judge"] = {"mean": sum(judge) / 2, "interval": list(judge)}
    return {
        "models": [{**model, "name": "trial 7", "role": "winner"}, {**model, "name": "warm", "role": "donor"}],
        "winner": {"trial": 7},
        "best_parent": "warm",
        "paired_difference_to_best_parent": difference,
        "optimism": {"trial": 9, "observed_gain": 0.06, "fresh_gain": 0.01, "optimism": 0.05},
    }


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (result(0.05, (0.02, 0.08)), "The winner (trial 7) beats the best parent (warm)."),
        (result(0.05, (0.02, 0.08), (0.01, 0.05)), "The winner (trial 7) beats the best parent (warm)."),
        (result(0.05, (0.02, 0.08), (-0.01, 0.05)), "the judge does not confirm it"),
        (result(0.01, (-0.01, 0.03)), "It is not shown"),
        (result(-0.01, (-0.03, 0.01)), "does not beat the best parent (warm): use warm."),
    ],
)
def test_the_verdict_claims_no_more_than_was_shown(found: dict, said: str) -> None:
    assert said in verdict(found)
    assert result_text(found).endswith(verdict(found))


def test_the_optimism_is_said() -> None:
    assert "its optimism is +0.0500" in optimism_line(result(0.05, (0.02, 0.08)))
    assert "is unknown" in optimism_line({**result(0.05, (0.02, 0.08)), "optimism": None})


def test_what_accuracy_measures_is_said_below_the_table() -> None:
    lines = result_text(result(0.05, (0.02, 0.08))).splitlines()
    assert lines[3] == RECALL


def test_charts_are_whole_and_escape_their_text() -> None:
    chart = progress_chart([0.5, 0.6, 0.55, 0.7], {"<b>&": 0.5, "warm": 0.52}, ylabel='acc"uracy')
    tree = ElementTree.fromstring(chart)
    assert len(tree.findall("circle")) == 4
    assert "<b>" not in chart
    (line,) = tree.findall("polyline")
    heights = [float(point.split(",")[1]) for point in line.attrib["points"].split()]
    assert heights == sorted(heights, reverse=True), "the best so far never falls"
    ElementTree.fromstring(progress_chart([], {}, ylabel="x"))
    ElementTree.fromstring(progress_chart([0.5], {"one": 0.5}, ylabel="x"))


@pytest.mark.parametrize("layers", [26, 300])
def test_the_heat_map_has_every_weight(layers: int) -> None:
    names = [f"L{number:02}" for number in range(layers)]
    weights = {name: {"a": 0.5, "b": -2.0} for name in names}
    tree = ElementTree.fromstring(heat_map(weights, names, ["a", "b"]))
    cells = tree.findall("rect")
    assert len(cells) == 2 * layers
    assert cells[0].attrib["fill"] == shade(0.25)
    assert cells[-1].attrib["fill"] == shade(-1.0)
    if layers == 26:
        assert sum(text.text == "-2.00" for text in tree.findall("text")) == layers


def test_shades_run_from_blue_over_white_to_orange() -> None:
    assert shade(-5) == shade(-1) != shade(1)
    assert re.fullmatch("#f[0-9a-f]f[0-9a-f]f[0-9a-f]", shade(0))


def test_a_flat_chart_has_height() -> None:
    low, high = padded_range([0.5, 0.5])
    assert low < 0.5 < high


def test_a_contact_sheet_keeps_every_pixel_in_its_place() -> None:
    images = np.random.default_rng(0).integers(0, 250, (5, 4, 6, 3), dtype=np.uint8)
    sheet = contact_sheet(images, columns=3, gap=2)
    assert sheet.shape == (10, 22, 3)
    assert np.array_equal(sheet[:4, 8:14], images[1])
    assert np.array_equal(sheet[6:10, 8:14], images[4])
    assert (sheet[6:10, 16:] == 255).all()
