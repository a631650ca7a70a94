"""Comparisons against figures worked out by hand: 2 models, 3 prompts of 2 images, 4 tags."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from benchmark.evaluate.runner import Evaluation
from benchmark.evaluate.scores import Estimate
from benchmark.metrics import comparison
from benchmark.prompts.prompt_set import Prompt
from benchmark.report import page, tables

TAGS = ("blue_hair", "red_hair", "smile", "hat")
CATEGORY = {"blue_hair": "hair", "red_hair": "hair", "smile": "face", "hat": "clothes"}.__getitem__
TEXTS = (("smile", "blue_hair"), ("red_hair",), ("hat", "smile"))
PROMPTS = tuple(Prompt(i, ", ".join(tags), tags, 10 * i + n) for i, tags in enumerate(TEXTS) for n in range(2))
# Rows: images. Columns: blue_hair, red_hair, smile, hat.
FIRST = [[1, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 1]]
SECOND = [[1, 0, 1, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1]]


def evaluation(found: list[list[int]], judged: list[list[int]] | None = None, broken: int = 0) -> Evaluation:
    said = {"tagger": np.array(found, dtype=np.float32) * 0.8}
    if judged is not None:
        said["judge"] = np.array(judged, dtype=np.float32)
    flags = np.arange(6) < broken
    return Evaluation(PROMPTS, TAGS, said, flags, np.array([1, 2, 3, 4, 5, 1]), 1.0)


def compared(judge: bool = False) -> tuple[comparison.ModelScores, ...]:
    models = {
        "base": evaluation(FIRST, FIRST if judge else None),
        "other": evaluation(SECOND, FIRST if judge else None, broken=1),
    }
    return comparison.compare(models, CATEGORY, {"tagger": 0.5, **({"judge": 0.5} if judge else {})})


def test_figures_by_hand() -> None:
    base, other = compared()
    assert base.accuracy["tagger"].value == pytest.approx(6 / 10)  # 3 of 4, 1 of 2, 2 of 4
    assert other.accuracy["tagger"].value == 1
    assert base.probability["tagger"].value == pytest.approx(0.48)
    assert {c: e.value for c, e in base.categories["tagger"].items()} == pytest.approx(
        {"hair": 3 / 4, "face": 2 / 4, "clothes": 1 / 2}
    )
    assert {m: e.value for m, e in base.by_count["tagger"].items()} == pytest.approx({1: 1 / 2, 2: 5 / 8})
    # First places: smile (2 images: 1, 0), red hair (1, 0), hat (0, 1); second: blue hair (1, 1), smile (1, 0).
    assert {p: e.value for p, e in base.by_position["tagger"].items()} == pytest.approx({1: 3 / 6, 2: 3 / 4})
    assert (base.tags["tagger"]["smile"].score.value, base.tags["tagger"]["smile"].images) == (0.5, 4)
    added = base.added["tagger"]["red_hair"]
    assert (added.score.value, added.images) == (0.25, 4)  # the last image only, of the four that did not ask for it
    assert base.added_per_image["tagger"].value == pytest.approx(1 / 6)
    assert base.category_difference == base.count_difference == base.position_difference == {}
    assert {c: e.value for c, e in other.category_difference["tagger"].items()} == pytest.approx(
        {"hair": 1 / 4, "face": 2 / 4, "clothes": 1 / 2}
    )
    assert {m: e.value for m, e in other.count_difference["tagger"].items()} == pytest.approx({1: 1 / 2, 2: 3 / 8})
    assert {p: e.value for p, e in other.position_difference["tagger"].items()} == pytest.approx({1: 1 / 2, 2: 1 / 4})
    assert base.difference == {}
    assert other.difference["tagger"].value == pytest.approx(0.4)
    # Prompt by prompt the gains are 1 of 4, 1 of 2 and 2 of 4; all are gains, so the interval is above nothing.
    assert 0.25 <= other.difference["tagger"].low < 0.4 < other.difference["tagger"].high <= 0.5


def test_duplicates_are_equal_images_of_other_prompts_and_no_broken_ones() -> None:
    base, other = compared()
    assert (base.duplicates, base.broken) == (1, 0)  # rows 0 and 5 have equal digests
    assert (other.duplicates, other.broken) == (0, 1)  # row 0 is broken there, so row 5 repeats nothing


def test_a_gain_that_only_one_tagger_sees_is_marked() -> None:
    _, other = compared(judge=True)
    assert other.difference["judge"].value == 0
    assert other.note == comparison.ONE_TAGGER
    assert comparison.ONE_TAGGER in tables.as_markdown(compared(judge=True))
    assert compared()[1].note == ""


def test_the_judge_stands_in_every_table() -> None:
    made = tables.make_tables(compared(judge=True))
    for table in made:
        words = " ".join(table.head)
        twins = [other for other in made if " ".join(other.head) == words.replace("by tagger", "by judge")]
        assert ("by tagger" in words and "by judge" in words) or len(twins) == 1, table.head
    titles = [table.title for table in made if table.title]
    assert len(titles) == len(set(titles))


def test_markdown_shows_every_table() -> None:
    text = tables.as_markdown(compared())
    rows = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in text.splitlines() if line
    }
    assert rows["hair"] == ["0.750 [0.500, 1.000]", "**1.000 [0.158, 1.000]**"]
    assert rows["overall"][1].startswith("**1.000")
    assert "| tags in the prompt, by tagger |" in text
    assert "| place in the prompt, by tagger |" in text
    assert "red hair 0.25 (0.00 to 0.50) of 4" in text
    assert "+0.400 [" in text
    assert "0 of 6, 1 alike" in text
    widths = {len(line) for line in text.split("\n\n")[0].splitlines()}
    assert len(widths) == 1  # columns line up, so that it can be read in a terminal


def test_names_cannot_break_the_table() -> None:
    models = {"a|b_c<i>": evaluation(FIRST), "_x_ *y*": evaluation(SECOND)}
    text = tables.as_markdown(comparison.compare(models, CATEGORY, {"tagger": 0.5}))
    assert "a\\|b_c&lt;i>" in text
    assert "\\_x\\_ \\*y\\*" in text


def test_the_page_shows_it_with_every_text_escaped(tmp_path: Path) -> None:
    models = {"<b>a</b>": evaluation(FIRST), "b": evaluation(SECOND)}
    picture = tmp_path / "000000.webp"
    picture.write_bytes(b"RIFF")
    samples = [page.Sample("<script>x</script>", {"b": (picture, ("blue_hair",), ("a<b",))})]
    settings = dict.fromkeys(("images", "prompts", "width", "height", "steps", "sampler", "guidance"), "<i>")
    html = page.as_html(comparison.compare(models, CATEGORY, {"tagger": 0.5}), settings, samples)
    assert "<script>" not in html
    assert "<b>a" not in html
    assert "<i>" not in html
    assert "a&lt;b" in html
    assert '<span class="found">blue hair</span>' in html
    assert "data:image/webp;base64,UklGRg==" in html
    assert html.count("<tr>") == sum(1 + len(t.rows) for t in tables.make_tables(compared())) + 2
    assert 'title="95 % interval [' in html
    assert "; against &lt;b&gt;a&lt;/b&gt; +0.250 [" in html  # a category's difference
    assert "<svg" not in html  # no encoder, no diversity


def test_the_best_three_are_bold_with_ties() -> None:
    assert tables.best_three([0.1, 0.9, 0.5, 0.7, 0.3]) == {1, 2, 3}
    assert tables.best_three([0.9, 0.9, 0.9, 0.9, 0.1]) == {0, 1, 2, 3}
    assert tables.best_three([0.4, 0.6]) == {1}
    assert tables.best_three([0.5, 0.5]) == set()
    assert tables.best_three([float("nan"), 0.5, 0.6]) == {2}


def test_intervals_are_written_short() -> None:
    assert tables.interval(Estimate(0.5, 0.1, 0.3, 0.7)) == "0.500 [0.300, 0.700]"
    assert tables.interval(Estimate(0.5, 0.1, -0.3, 0.7), signed=True) == "+0.500 [-0.300, +0.700]"
    nan = float("nan")
    assert tables.interval(Estimate(nan, nan, nan, nan)) == "–"
    assert tables.interval(Estimate(0.5, nan, nan, nan)) == "0.500"


def test_json_holds_all_of_it() -> None:
    values = json.loads(json.dumps(comparison.as_json(compared(judge=True)), allow_nan=False))
    assert values[0]["name"] == "base"
    assert values[1]["difference"]["tagger"]["value"] == pytest.approx(0.4)
    assert values[0]["by_count"]["tagger"]["2"]["value"] == pytest.approx(5 / 8)


def test_three_models_of_a_thousand_prompts_take_little_time() -> None:
    draw = np.random.default_rng(0)
    tags = tuple(f"tag_{n}" for n in range(100))
    prompts = tuple(
        Prompt(i, "", tuple(draw.choice(tags, 8, replace=False).tolist()), n) for i in range(1000) for n in range(2)
    )
    models = {
        f"m{m}": Evaluation(
            prompts,
            tags,
            {role: draw.random((2000, 100), dtype=np.float32) for role in ("tagger", "judge")},
            np.zeros(2000, dtype=bool),
            np.arange(2000),
            1.0,
        )
        for m in range(3)
    }
    compared()  # imports scipy, which is no part of the work
    started = time.process_time()
    tables.as_markdown(comparison.compare(models, lambda tag: f"c{int(tag[4:]) % 10}", {"tagger": 0.5, "judge": 0.5}))
    assert time.process_time() - started < 5


def test_tags_that_are_lost_stand_in_a_table_of_their_own() -> None:
    prompts = tuple(Prompt(index, "", TAGS, index) for index in range(12))

    def drawn(smile: float, hat: float) -> Evaluation:
        said = np.full((12, 4), 0.9, dtype=np.float32)
        said[:, 2], said[:, 3] = smile + np.linspace(0, 0.05, 12), hat + np.linspace(0, 0.05, 12)
        return Evaluation(prompts, TAGS, {"tagger": said}, np.zeros(12, dtype=bool), np.arange(12), 1.0)

    models = comparison.compare({"base": drawn(0.8, 0.2), "other": drawn(0.3, 0.7)}, CATEGORY, {"tagger": 0.5})
    assert models[0].tag_changes == {}
    (table,) = [table for table in tables.make_tables(models) if table.title == "Gains and losses"]
    assert [cell.text for cell in table.rows[0]] == [
        "other",
        "smile 1.00 to 0.00 (n = 12)",
        "hat 0.00 to 1.00 (n = 12)",
    ]
    assert "about 5% of those named are expected to be chance" in table.note
    assert [row["verdict"] for row in comparison.as_json(models)[1]["tag_changes"]["tagger"]] == [
        "loss",
        "",
        "",
        "gain",
    ]
    (few,) = [table for table in tables.make_tables(compared()) if table.title == "Gains and losses"]
    assert [cell.text for cell in few.rows[0]] == ["other", "–", "–"]
    assert "Below 6 prompts, as for 4 of the tags, nothing can be told." in few.note
