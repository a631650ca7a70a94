from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from merger.report.charts import heat_map, padded_range, progress_chart, shade
from merger.report.importance import importance_chart, importance_line
from merger.report.report import RECALL, ReportInput, contact_sheet, optimism_line, result_text, write_report
from merger.report.searches import search_rows, searches_lines
from merger.report.verdict import verdict
from merger.search.space import make_space
from merger.search.trials import Score, TrialRecord


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
    assert lines[4].startswith("The validation prompts chose the winner and the best parent (warm)")


def with_changes(**more: object) -> dict:
    """A winner that gains in the mean and loses a tag, on 128 validation and 256 test prompts."""

    def row(name: str, prompts: int, parent: float, winner: float, verdict: str) -> dict:
        difference = winner - parent
        interval = [difference - 0.1, difference + 0.1]
        few = verdict == "too few"
        numbers = {"p": None if few else 0.01, "q": None if few else 0.02}
        return {
            "name": name, "prompts": prompts, "parent": parent, "winner": winner, "difference": difference,
            "interval": interval, **numbers, "verdict": verdict,
        }  # fmt: skip

    tags = [row("smile", 26, 0.5, 0.23, "loss"), row("<b>", 3, 0.5, 0.3, "too few"), row("hat", 25, 0.2, 0.9, "gain")]
    judged = [row("smile", 26, 0.5, 0.31, ""), row("hat", 25, 0.2, 0.8, "gain")]
    categories = [row("face", 50, 0.4, 0.6, "gain")]
    changes = {
        "by_tag": {"tagger": tags, "judge": judged},
        "by_category": {"tagger": categories, "judge": categories},
        "false_discovery_rate": 0.05,
    }
    counts = {"validation_prompts": 128, "test_prompts": 256}
    return {**result(0.05, (0.02, 0.08), (0.01, 0.05)), "gains_and_losses": changes, **counts, **more}


def test_the_verdict_names_what_is_lost_whatever_is_gained() -> None:
    assert verdict(with_changes()) == (
        "The winner (trial 7) beats the best parent (warm). "
        "The winner loses `smile`: 0.50 -> 0.23 (n = 26; by the judge 0.50 -> 0.31)."
    )
    text = result_text(with_changes())
    assert "lost by tag, by the tagger: smile: 0.50 -> 0.23 [-0.37, -0.17] (n = 26)" in text
    assert "lost by category, by the tagger: nothing beyond chance" in text
    assert "gained by tag, by the judge: hat: 0.20 -> 0.80 [+0.50, +0.70] (n = 25)" in text
    assert "about 5% of the gains and losses that are named are expected to be chance" in text
    assert "too few to tell (below 6 test prompts): <b> (n = 3)" in text


def test_many_losses_are_counted_and_not_all_listed() -> None:
    found = with_changes()
    rows = [{**found["gains_and_losses"]["by_tag"]["tagger"][0], "name": f"tag_{number}"} for number in range(8)]
    found["gains_and_losses"]["by_tag"] = {"tagger": rows}
    assert verdict(found).endswith("`tag_2`: 0.50 -> 0.23 (n = 26), and 5 more tags.")
    assert "tag_4: 0.50 -> 0.23 [-0.37, -0.17] (n = 26), and 3 more" in result_text(found)


def test_too_few_test_prompts_are_said() -> None:
    said = verdict(with_changes(test_prompts=4))
    assert said.startswith(
        "4 test prompts are too few to tell whether the winner (trial 7) beats the best parent (warm)"
    )


def with_parents(warm: float, cold: float, **more: object) -> dict:
    found = {**result(0.01, (-0.01, 0.03)), "validation_prompts": 128, "test_prompts": 256, **more}
    model = found["models"][1]
    found["models"] = [
        found["models"][0],
        {**model, "accuracy": warm},
        {**model, "name": "cold", "accuracy": cold},
        {**model, "name": "uniform", "role": "uniform", "accuracy": 0.99},
    ]
    return found


def test_a_parent_that_is_last_in_the_table_is_not_simply_recommended() -> None:
    assert verdict(with_parents(0.8, 0.7)).endswith("beats the best parent (warm): use warm.")
    close = {"name": "cold", "mean": 0.01, "interval": [-0.02, 0.04]}
    assert verdict(with_parents(0.7, 0.8, next_parent=close)).endswith(
        "use a parent. warm was the best of them on the 128 validation prompts, which choose, and cold is on the 256 "
        "test prompts of the table; the validation prompts are too few to tell warm from cold."
    )
    clear = {"name": "cold", "mean": 0.05, "interval": [0.02, 0.08]}
    assert verdict(with_parents(0.7, 0.8, next_parent=clear)).endswith("256 test prompts of the table.")


def test_the_table_says_what_chose() -> None:
    assert (
        "The 128 validation prompts chose the winner and the best parent (warm); the table is of the 256 test prompts"
        in result_text(with_parents(0.7, 0.8))
    )


def test_the_page_shows_gains_and_losses_and_escapes_names(tmp_path: Path) -> None:
    found = with_changes(
        study="demo", trials=8, images_drawn=1000, seconds=60.0, stopped_because="trials", finalists=[]
    )
    space = make_space(("IN",), ("warm",), bounds=(0, 1))
    score = Score(0.5, 0.1, 0.5, 0.1, 0.5)
    records = [TrialRecord(0, "base", "base", space.everywhere({}), score)]
    page = ReportInput(
        result=found, records=records, weights=space.everywhere({}), space=space, base="base", samples={},
        sample_prompts=(), threshold=0.5, objective="accuracy", search_prompts=8, test_prompts=256, settings={},
    )  # fmt: skip
    write_report(tmp_path / "page.html", page)
    text = (tmp_path / "page.html").read_text()
    assert "The winner loses `smile`" in text
    assert '<tr class="loss"><td>smile</td><td>26</td>' in text
    assert "-0.2700 <small>[-0.3700, -0.1700]</small>" in text
    assert "<td>&lt;b&gt;</td>" in text and "too few to tell" in text
    assert "By category, by the judge" in text
    write_report(
        tmp_path / "old.html", replace(page, result={k: v for k, v in found.items() if k != "gains_and_losses"})
    )
    assert "Gains and losses" not in (tmp_path / "old.html").read_text()
    assert "Where the gain came from" not in text
    write_report(tmp_path / "map.html", replace(page, result={**found, "importance": importance_of(2)}))
    text = (tmp_path / "map.html").read_text()
    assert "Where the gain came from" in text and "+0.0300 ± 0.0100 together" in " ".join(text.split())
    assert "<td>L01</td><td>-0.0010 ± 0.0200</td>" in text.replace("\n", "")
    assert "only in result.json" not in text
    write_report(tmp_path / "many.html", replace(page, result={**found, "importance": importance_of(50)}))
    text = (tmp_path / "many.html").read_text()
    assert "The 10 rows of the smallest gains are only in result.json" in text
    assert "<td>L49</td>" in text and "<td>L01</td>" not in text


def test_several_searches_have_a_table() -> None:
    scored = [{"trial": number, "value": 0.1 * number, "accuracy": 0.1 * number} for number in range(5)]
    members = [
        {"search": 1, "steps": 48, "averaged": True, **scored[1]},
        {"search": 2, "steps": 5, "averaged": False, **scored[2]},
    ]
    strengths = [{"strength": 1.15, **scored[3]}]
    found: dict[str, Any] = {"planned": 3, "members": members, "average": None, "strengths": strengths}
    finalist = {"trial": 3, "validation_accuracy": 0.35, "passed_over": []}
    shown: dict[str, Any] = {"searches": found, "finalists": [finalist]}
    assert [(row["what"], row["steps"], row["validated"]) for row in search_rows(shown)] == [
        ("search 1 of 3", 48, None),
        ("search 2 of 3, left out: too short", 5, None),
        ("search 1 x 1.15", None, 0.35),
    ]
    found = {**found, "members": [{**each, "averaged": True} for each in members], "average": scored[4]}
    lines = searches_lines({**shown, "searches": found})
    assert lines[0].split()[:5] == ["searches", "and", "their", "average", "trial"] and len(lines) == 6
    assert lines[3].split() == ["average", "of", "2", "searches", "4", "0.4000", "-"]
    assert lines[4].split() == ["average", "of", "2", "searches", "x", "1.15", "3", "0.3000", "0.3500"]
    assert search_rows({}) == search_rows({"searches": None}) == [] and searches_lines({}) == []


def importance_of(rows: int) -> dict[str, Any]:
    """A map of two donors, in which later rows count for more. The last row has one donor, with a gain beyond noise."""
    cells = {f"L{row:02}": {"warm": [-0.001 * row, 0.02], "<c>": [0.0, 0.0]} for row in range(rows - 1)}
    cells[f"L{rows - 1:02}"] = {"warm": [-0.001 * (rows - 1), 0.02]}
    donors = {"warm": [0.03, 0.01], "<c>": [-0.00001, 0.0]}
    return {"steps": 20, "gain": 0.03, "stderr": 0.01, "donors": donors, "rows": cells}


def test_the_chart_of_importance_has_a_bar_and_an_interval_for_every_cell() -> None:
    cells = {"IN": {"warm": (0.04, 0.01), "<c>": (-0.02, 0.03)}, "OUT": {"warm": (-0.03, 0.001)}}
    chart = importance_chart(cells, {"warm": (0.01, 0.01), "<c>": (-0.02, 0.03)})
    assert "<c>" not in chart
    drawn = {}
    for cell in ElementTree.fromstring(chart).findall("g"):
        _, bar = cell.findall("rect")
        (line,) = cell.findall("line")
        drawn[str(cell.findtext("title")).split(":")[0]] = (
            bar.attrib,
            float(line.attrib["x1"]),
            float(line.attrib["x2"]),
        )
    assert set(drawn) == {"IN warm", "OUT warm", "IN <c>"}
    bar, low, high = drawn["IN warm"]
    unit = float(bar["width"]) / 0.04
    assert high - low == pytest.approx(2 * 1.96 * 0.01 * unit, abs=0.2), "bars and intervals have one scale"
    assert float(drawn["OUT warm"][0]["width"]) == pytest.approx(0.03 * unit, abs=0.2)
    assert bar["fill"] == shade(1) != drawn["OUT warm"][0]["fill"] and "fill-opacity" not in bar
    assert "fill-opacity" in drawn["IN <c>"][0], "it may be nothing"
    many = {f"L{row}": dict.fromkeys("abcdef", (0.0, 0.0)) for row in range(3)}
    ElementTree.fromstring(importance_chart(many, dict.fromkeys("abcdef", (0.0, 0.0))))


def test_the_terminal_says_the_gain_by_donor_and_nothing_of_what_is_missing() -> None:
    said = importance_line({"importance": importance_of(3)})
    assert said.endswith("+0.0300 ± 0.0100 (warm +0.0300 ± 0.0100, <c> +0.0000 ± 0.0000)")
    assert said in result_text({**result(0.05, (0.02, 0.08)), "importance": importance_of(3)})
    assert importance_line({}) == importance_line({"importance": None}) == ""


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
