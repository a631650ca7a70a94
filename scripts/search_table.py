"""The results of `measure_search` as tables, plots and figures: medians over seeds, with quartiles."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.strategies import STRATEGIES, VARIANTS

Row = Mapping[str, Any]

REFERENCE, OURS = "reference", "gradient search"
_TAGGERS = ("tagger", "judge")
_COSTS: Mapping[str, str] = {
    "images": "images (a backward pass counts as the images that take as long)",
    "seconds": "seconds, one thread",
}


def write_table(rows: Sequence[Row], folder: Path | None) -> dict[str, Any]:
    """The figures of all strategies; with a `folder`, its tables and plots are written there too.

    `search.md` has both tables, `search.png` shows the ways to search, `variants.png` the gradient search and its
    variants. Rows of strategies that no longer exist are kept in the results and shown nowhere.
    """
    rows = [row for row in rows if row["strategy"] in STRATEGIES]
    figures = figures_of(rows)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        compares = bool(VARIANTS.keys() & figures.keys())
        tables = [markdown(figures), *([variants(figures)] if compares else [])]
        (folder / "search.md").write_text("\n".join(tables), encoding="utf-8")
        ways = [row for row in rows if row["strategy"] not in VARIANTS]
        compared = [row for row in rows if compares and row["strategy"] in (OURS, *VARIANTS)]
        for shown, name in ((ways, "search.png"), (compared, "variants.png")):
            if shown:
                plot(shown, folder / name)
    return figures


def complete(rows: Iterable[Row], seeds: Collection[int]) -> list[Row]:
    """The rows of these seeds, of strategies measured on all of them: so medians compare the same searches."""
    rows = [row for row in rows if row["seed"] in seeds]
    measured: dict[str, set[int]] = {}
    for row in rows:
        measured.setdefault(row["strategy"], set()).add(row["seed"])
    return [row for row in rows if measured[row["strategy"]] == set(seeds)]


def figures_of(rows: Sequence[Row]) -> dict[str, Any]:
    """{strategy: {figure: [lower quartile, median, upper quartile]}}, best first; how each compares to the reference.

    `miss_cut` is the share of the best parent's misses on the test prompts that the blend does not make; `gain` is the
    difference in accuracy. The best parent is the one that is best on these very prompts: none could do better.
    `times_reference` is the median gain over the one that the reference has after as many seconds. `over_ours` is the
    difference in accuracy to `gradient search` on the same seed.
    """
    names = list(dict.fromkeys(row["strategy"] for row in rows))
    ours = {row["seed"]: row for row in rows if row["strategy"] == OURS}
    figures: dict[str, Any] = {}
    for name in names:
        of = [row for row in rows if row["strategy"] == name]
        figures[name] = {"seeds": len(of)}
        for key, value in _MEASURES.items():
            figures[name][key] = _quartiles([value(row) for row in of])
        pairs = [(row, ours[row["seed"]]) for row in of if row["seed"] in ours]
        for tagger in _TAGGERS if pairs else ():
            differences = [row["final"][tagger] - other["final"][tagger] for row, other in pairs]
            figures[name][f"over_ours_{tagger}"] = _quartiles(differences)
    reference = [row for row in rows if row["strategy"] == REFERENCE]
    if reference:
        goal = float(np.median([row["final"]["tagger"] for row in reference]))
        for name in names:
            of = [row for row in rows if row["strategy"] == name]
            for cost in _COSTS:
                figures[name][f"{cost}_to_reference"] = _reaches(of, goal, cost)
            figures[name]["times_reference"] = _times(figures[name], reference)
    return dict(sorted(figures.items(), key=lambda item: -item[1]["accuracy_tagger"][1]))


def _quartiles(values: Sequence[float]) -> list[float]:
    return [round(float(quartile), 4) for quartile in np.quantile(values, (0.25, 0.5, 0.75))]


def gain(row: Row, tagger: str) -> float:
    """How much higher the blend's test accuracy is than the best parent's."""
    return row["final"][tagger] - best_parent(row, tagger)


def best_parent(row: Row, tagger: str) -> float:
    """The test accuracy of the best parent, as each tagger sees it."""
    return max(accuracy[tagger] for name, accuracy in row["parents"].items() if name != "uniform")


_MEASURES: Mapping[str, Callable[[Row], float]] = {
    "images": lambda row: row["images"],
    "seconds": lambda row: row["seconds"],
    "accuracy_tagger": lambda row: row["final"]["tagger"],
    "accuracy_judge": lambda row: row["final"]["judge"],
    "gain_tagger": lambda row: gain(row, "tagger"),
    "gain_judge": lambda row: gain(row, "judge"),
    "gap": lambda row: row["final"]["tagger"] - row["final"]["judge"],
    "miss_cut_tagger": lambda row: gain(row, "tagger") / (1 - best_parent(row, "tagger")),
    "miss_cut_judge": lambda row: gain(row, "judge") / (1 - best_parent(row, "judge")),
}


def _reaches(rows: Sequence[Row], goal: float, cost: str) -> int | None:
    """The fewest images (or median seconds) after which the median over seeds is at least `goal`; None for never."""
    for points in _milestones(rows):
        if np.median([point["tagger"] for point in points]) >= goal:
            return round(float(np.median([point[cost] for point in points])))
    return None


def _times(figure: Mapping[str, Sequence[float]], reference: Sequence[Row]) -> float | None:
    """A strategy's gain as a multiple of the reference's at its last milestone not later; None where it has none."""
    had = None
    for points in _milestones(reference):
        if np.median([point["seconds"] for point in points]) <= figure["seconds"][1]:
            had = np.median(
                [p["tagger"] - best_parent(row, "tagger") for p, row in zip(points, reference, strict=True)]
            )
    return round(float(figure["gain_tagger"][1] / had), 2) if had else None


def _milestones(rows: Sequence[Row]) -> list[list[Mapping[str, float]]]:
    """The points of the curves that every seed of a strategy has, one list a budget of images, then their ends."""
    at: dict[float, list[Mapping[str, float]]] = {}
    for row in rows:
        for point in row["curve"]:
            at.setdefault(point["images"], []).append(point)
    ends: list[Mapping[str, float]] = [
        {"images": row["images"], "seconds": row["seconds"], **row["final"]} for row in rows
    ]
    return [*(at[images] for images in sorted(at) if len(at[images]) == len(rows)), ends]


def markdown(figures: Mapping[str, Any]) -> str:
    """A table of the ways to search, one row each."""
    header = ["strategy", "seeds", "images", "seconds", "test accuracy", "by the judge", "gap"]
    rows = [
        [
            name,
            str(figure["seeds"]),
            format(figure["images"][1], ".0f"),
            format(figure["seconds"][1], ".0f"),
            _spread(figure["accuracy_tagger"], ".3f"),
            _spread(figure["accuracy_judge"], ".3f"),
            format(figure["gap"][1], ".3f"),
            _spread(figure["miss_cut_tagger"], ".0%"),
            _spread(figure["miss_cut_judge"], ".0%"),
            format(figure["times_reference"], ".1f") if figure.get("times_reference") else "-",
        ]
        for name, figure in figures.items()
        if name not in VARIANTS
    ]
    return _table([*header, "misses cut", "by the judge", "times the reference's gain"], rows)


def variants(figures: Mapping[str, Any]) -> str:
    """A table of the gradient search with one thing changed, compared with it as it is, seed by seed."""
    rows = [
        [
            name.removeprefix(f"{OURS}, "),
            str(figure["seeds"]),
            format(figure["seconds"][1], ".0f"),
            _spread(figure["miss_cut_tagger"], ".0%"),
            _spread(figure["miss_cut_judge"], ".0%"),
            _spread(figure["over_ours_tagger"], "+.3f"),
            _spread(figure["over_ours_judge"], "+.3f"),
        ]
        for name, figure in figures.items()
        if name in VARIANTS and "over_ours_tagger" in figure
    ]
    difference = f"difference to {OURS}"
    header = [f"{OURS}, but", "seeds", "seconds", "misses cut", "by the judge", difference, "by the judge"]
    return _table(header, rows)


def _spread(values: Sequence[float], form: str) -> str:
    low, middle, high = (format(value, form) for value in values)
    return f"{middle} ({low} to {high})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def plot(rows: Sequence[Row], file: Path) -> None:
    """Median test accuracy against images and seconds, quartiles shaded; best parent and uniform average as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(12, 9), sharey=True, layout="constrained")
    titles = ("by the tagger that the search follows", "by the judge")
    for across, cost in zip(panels, _COSTS, strict=True):
        for panel, tagger, title in zip(across, _TAGGERS, titles, strict=True):
            for name in figures_of(rows):
                of = [row for row in rows if row["strategy"] == name]
                milestones = _milestones(of)
                x = [float(np.median([point[cost] for point in points])) for points in milestones]
                bands = np.array([np.quantile([p[tagger] for p in points], (0.25, 0.5, 0.75)) for points in milestones])
                (line,) = panel.plot(x, bands[:, 1], marker="o", markersize=3, label=f"{name} ({len(of)})")
                panel.fill_between(x, bands[:, 0], bands[:, 2], color=line.get_color(), alpha=0.15, linewidth=0)
            known = [row for row in rows if not STRATEGIES[row["strategy"]].noise] or rows  # the family's own, if there
            parent = float(np.median([best_parent(row, tagger) for row in known]))
            uniform = float(np.median([row["parents"]["uniform"][tagger] for row in known]))
            for level, label, shade in ((parent, "best parent ", "0.4"), (uniform, "uniform average ", "0.7")):
                panel.axhline(level, color=shade, linestyle="--", linewidth=1)
                panel.text(0.99, level, label, transform=panel.get_yaxis_transform(), ha="right", va="bottom")
            panel.set_title(title)
            panel.set_xlabel(_COSTS[cost])
            panel.grid(alpha=0.3)
        across[0].set_ylabel("tag accuracy on test prompts")
    lines, names = panels[0][0].get_legend_handles_labels()
    figure.legend(lines, names, title="strategy (seeds)", loc="outside lower center", ncols=4)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
