"""The table of the measurements says what its rows say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scripts import search_table
from scripts.measure_search import read_rows
from scripts.search_table import best_parent, complete, figures_of, markdown, variants
from scripts.strategies import STRATEGIES, configuration

DEMO = Path(__file__).parents[2] / "demo" / "search.yaml"


def row(strategy: str, seed: int, final: float, curve: dict[int, float]) -> dict[str, Any]:
    return {
        "strategy": strategy,
        "seed": seed,
        "images": 1000,
        "seconds": 50.0 + seed,
        "final": {"tagger": final, "judge": final - 0.02},
        "curve": [
            {"images": images, "seconds": images / 10 + seed, "tagger": seen, "judge": seen}
            for images, seen in curve.items()
        ],
        "parents": {
            "base": {"tagger": 0.60, "judge": 0.65},
            "other": {"tagger": 0.70, "judge": 0.60},
            "uniform": {"tagger": 0.99, "judge": 0.99},
        },
    }


def test_the_average_is_no_parent() -> None:
    assert best_parent(row("a", 1, 0.8, {}), "tagger") == 0.70
    assert best_parent(row("a", 1, 0.8, {}), "judge") == 0.65


def test_figures_are_quartiles_over_seeds() -> None:
    rows = [row("ours", seed, 0.7 + 0.02 * seed, {}) for seed in range(1, 6)]
    figures = figures_of(rows)["ours"]
    assert figures["seeds"] == 5
    assert figures["accuracy_tagger"] == [0.74, 0.76, 0.78]
    assert figures["gain_tagger"][1] == pytest.approx(0.06)
    assert figures["miss_cut_tagger"][1] == pytest.approx(0.2)
    assert figures["miss_cut_judge"][1] == pytest.approx((0.74 - 0.65) / 0.35, abs=1e-4)


def test_how_soon_the_reference_is_reached() -> None:
    rows = [
        row("reference", 1, 0.72, {500: 0.70, 1000: 0.72}),
        row("ours", 1, 0.80, {500: 0.71, 1000: 0.75}),
        row("never", 1, 0.71, {500: 0.70, 1000: 0.71}),
    ]
    figures = figures_of(rows)
    assert [figures[name]["images_to_reference"] for name in ("reference", "ours", "never")] == [1000, 1000, None]
    assert [figures[name]["seconds_to_reference"] for name in ("reference", "ours", "never")] == [101, 101, None]
    assert list(figures) == ["ours", "reference", "never"]


def test_its_end_may_be_where_it_reaches_the_reference() -> None:
    rows = [row("reference", 1, 0.72, {500: 0.70}), row("ours", 1, 0.80, {500: 0.70})]
    assert figures_of(rows)["ours"]["images_to_reference"] == 1000
    assert figures_of(rows)["ours"]["seconds_to_reference"] == 51


def test_gains_are_compared_at_equal_seconds() -> None:
    rows = [
        row("reference", 1, 0.80, {300: 0.72, 400: 0.75}),  # after 31, 41 and, at its end, 51 seconds
        row("ours", 1, 0.85, {}) | {"seconds": 45},
        row("slow", 1, 0.85, {}) | {"seconds": 60},
        row("soon", 1, 0.85, {}) | {"seconds": 10},
    ]
    figures = figures_of(rows)
    times = {name: figure["times_reference"] for name, figure in figures.items()}
    assert times == {"reference": 1.0, "ours": 3.0, "slow": 1.5, "soon": None}
    assert " 3.0 |\n" in markdown(figures)
    assert " - |\n" in markdown(figures)


def test_the_table_has_a_line_for_each_strategy(tmp_path: Path) -> None:
    text = markdown(figures_of([row("reference", 1, 0.72, {}), row("ours", 1, 0.80, {})]))
    lines = text.splitlines()
    assert lines[2].startswith("| ours | 1 | 1000 | 51 | 0.800 (0.800 to 0.800)")
    assert lines[3].startswith("| reference |")


def test_variants_are_compared_seed_by_seed() -> None:
    rows = [
        row("gradient search", 1, 0.80, {}),
        row("gradient search", 2, 0.90, {}),
        row("gradient search", 3, 0.85, {}),
    ]
    rows += [
        row("gradient search, narrow", 2, 0.87, {}),
        row("gradient search, narrow", 3, 0.84, {}),
        row("random", 1, 0.7, {}),
    ]
    figures = figures_of(rows)
    assert figures["gradient search, narrow"]["over_ours_tagger"] == pytest.approx([-0.025, -0.02, -0.015])
    assert figures["gradient search"]["over_ours_judge"] == [0, 0, 0]
    (line,) = variants(figures).splitlines()[2:]
    assert line.startswith("| narrow | 2 | 52 | 52% (49% to 54%) | 53% (51% to 55%) |")
    assert line.endswith("| -0.020 (-0.025 to -0.015) | -0.020 (-0.025 to -0.015) |")
    assert "narrow" not in markdown(figures)


def test_without_the_gradient_search_there_is_nothing_to_compare_with() -> None:
    figures = figures_of([row("gradient search, narrow", 2, 0.87, {})])
    assert "over_ours_tagger" not in figures["gradient search, narrow"]
    assert len(variants(figures).splitlines()) == 2


def test_strategies_and_variants_have_pictures_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, set[str]] = {}
    monkeypatch.setattr(
        search_table, "plot", lambda rows, file: shown.update({file.name: {row["strategy"] for row in rows}})
    )
    names = ("gradient search", "reference", "gradient search, narrow", "gradient search, noise donors")
    gone = ("black box, coarse to fine", "gradient search, polished")
    rows = [row(name, 1, 0.8, {500: 0.7}) for name in (*names, *gone)]
    search_table.write_table(rows, tmp_path)
    assert shown == {
        "search.png": {"gradient search", "reference", "gradient search, noise donors"},
        "variants.png": {"gradient search", "gradient search, narrow"},
    }
    text = (tmp_path / "search.md").read_text()
    assert "\n\n| gradient search, but |" in text
    assert "polished" not in text and "coarse" not in text, "rows of strategies that are gone are not shown"


def test_a_table_has_what_was_measured_on_all_of_its_seeds() -> None:
    rows = [row("reference", seed, 0.8, {}) for seed in (1, 2, 3)] + [row("gradient search", 2, 0.9, {})]
    assert complete(rows, [1, 2]) == rows[:2], "one seed of the other strategy is missing"
    assert complete(rows, [2]) == [rows[1], rows[3]]


def test_every_strategy_is_a_change_to_the_search_file(tmp_path: Path) -> None:
    for name, strategy in STRATEGIES.items():
        if not strategy.noise:
            config = configuration(DEMO, strategy, 101, 1, tmp_path)
            assert (config.seed, config.threads) == (101, 1), name


def test_measured_rows_are_kept() -> None:
    rows = read_rows(DEMO.parents[1] / "docs" / "measurements" / "search.jsonl")
    assert {row["strategy"] for row in rows} == {*STRATEGIES, "black box, coarse to fine", "gradient search, polished"}
