"""A finished search as one self-contained HTML page, as sample images, and as lines of text."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.evaluate.runner import Evaluation
from benchmark.prompts.prompt_set import Prompt
from benchmark.writing import write_picture, write_text
from merger.report.charts import heat_map, progress_chart
from merger.report.gains_and_losses import gain_and_loss_lines, rows_of, too_few_lines
from merger.report.importance import gained, importance_chart, importance_line, shown_rows
from merger.report.progress import duration
from merger.report.searches import search_rows, searches_lines
from merger.report.verdict import choice_line, verdict
from merger.scoring.objective import TAGGER
from merger.search.space import Space
from merger.search.trials import STEP, TrialRecord
from merger.weights import Weights

RECALL = "Tag accuracy is recall: the share of the tags asked for that a tagger finds in the images."

PAGE = "page.html"
"""The page's template, beside this module."""

_OBJECTIVES = {"accuracy": "Tag accuracy", "probability": "Mean tag probability"}


@dataclass(frozen=True)
class ReportInput:
    """What the page shows.

    result: as `merger.scoring.selection` documents it. weights: the winner's. base: the base's name. samples: the
    evaluations whose images are shown, by the name of their column; sample_prompts: the rows. threshold: the
    probability from which a tag is found. objective: the kind of the search's score. search_prompts, test_prompts: how
    many. settings: the rows of the table of how the winner was made.
    """

    result: Mapping[str, Any]
    records: Sequence[TrialRecord]
    weights: Weights
    space: Space
    base: str
    samples: Mapping[str, Evaluation]
    sample_prompts: Sequence[Prompt]
    threshold: float
    objective: str
    search_prompts: int
    test_prompts: int
    settings: Mapping[str, str]


def result_text(result: Mapping[str, Any]) -> str:
    """The final table, what it measures, gains and losses by tag, and the verdict, for a terminal."""
    judged = any(model["judge_accuracy"] is not None for model in result["models"])
    width = max(len(model["name"]) for model in result["models"])
    head = f"{'model':{width}}  {'role':12}  accuracy" + (" " * 19 + "by the judge" if judged else "")
    lines = [head]
    for model in result["models"]:
        line = (
            f"{model['name']:{width}}  {model['role']:12}  {share(model['accuracy'])} {between(model['interval']):20}"
        )
        if judged:
            line += f"  {share(model['judge_accuracy'])} {between(model['judge_interval'])}"
        lines.append(line.rstrip())
    lines += [RECALL, choice_line(result), "", *difference_lines(result), *gain_and_loss_lines(result)]
    lines += searches_lines(result)
    along = [line for line in [importance_line(result)] if line]
    return "\n".join([*lines, optimism_line(result), *along, *passed_over_lines(result), verdict(result)])


def passed_over_lines(result: Mapping[str, Any]) -> list[str]:
    """Which finalists were passed over, and why."""
    return [
        f"trial {finalist['trial']} was passed over: {'; '.join(finalist['passed_over'])}"
        for finalist in result.get("finalists", ())
        if finalist["passed_over"]
    ]


def difference_lines(result: Mapping[str, Any]) -> list[str]:
    """The paired difference to the best parent by each tagger."""
    return [
        f"winner - {result['best_parent']}, paired, by the {tagger}: {found['mean']:+.4f} "
        f"[{_number(found['interval'][0])}, {_number(found['interval'][1])}]"
        for tagger, found in result["paired_difference_to_best_parent"].items()
    ]


def optimism_line(result: Mapping[str, Any]) -> str:
    """How much of the best observed gain is absent on fresh prompts."""
    found = result["optimism"]
    if found is None:
        return "The best parent was not among the trials, so the optimism of the best observed value is unknown."
    return (
        f"The best observed trial ({found['trial']}) was {found['observed_gain']:+.4f} over the best parent on the "
        f"search prompts and {found['fresh_gain']:+.4f} on fresh ones: its optimism is {found['optimism']:+.4f}."
    )


def write_report(path: Path, page: ReportInput) -> None:
    """Writes the page."""
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    result, records = page.result, page.records
    roles = list(result["paired_difference_to_best_parent"])
    baselines = {record.name: record.value for record in records if record.role in ("base", "donor", "uniform")}
    values = [np.nan if record.role == STEP else record.value for record in records]
    loader = PackageLoader("merger.report", ".")
    template = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(PAGE)
    text = template.render(
        page=page,
        result=result,
        verdict=verdict(result),
        differences=difference_lines(result),
        optimism=optimism_line(result),
        passed_over=passed_over_lines(result),
        choice=choice_line(result),
        changes={what: {role: rows_of(result, f"by_{what}", role) for role in roles} for what in ("category", "tag")},
        too_few=too_few_lines(result),
        signed=_number,
        judged=any(model["judge_accuracy"] is not None for model in result["models"]),
        duration=duration(result["seconds"]),
        share=share,
        between=between,
        categories=list(result["models"][0]["categories"]),
        samples=_samples(page),
        objective=_OBJECTIVES.get(page.objective, "Mean log tag probability"),
        searches=search_rows(result),
        # the charts escape their own text
        progress_chart=Markup(progress_chart(values, baselines, ylabel=page.objective)),
        heat_map=Markup(heat_map(page.weights, page.space.layers, page.space.donors)),
        **_importance(result.get("importance")),
    )
    write_text(path, text)


def write_samples(folder: Path, models: Mapping[str, Evaluation]) -> None:
    """Writes a contact sheet for each model, the same prompts at the same places, as PNG."""
    from PIL import Image

    for name, evaluation in models.items():
        if evaluation.images is not None:
            sheet = contact_sheet(evaluation.images)
            write_picture(folder / f"{name.replace(' ', '_')}.png", Image.fromarray(sheet))


def contact_sheet(images: np.ndarray, columns: int = 4, gap: int = 2) -> np.ndarray:
    """Images [K, H, W, 3] uint8 on one white sheet, `columns` across, `gap` pixels apart."""
    count, height, width = images.shape[:3]
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for place, image in enumerate(images):
        y, x = (place // columns) * (height + gap), (place % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = image
    return sheet


def share(value: float | None) -> str:
    """A share of 0..1 with four digits; a dash for none."""
    return "-" if value is None else f"{value:.4f}"


def between(interval: Sequence[float | None] | None) -> str:
    """`[0.8123, 0.8456]`"""
    return "" if interval is None else f"[{share(interval[0])}, {share(interval[1])}]"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:+.4f}"


def _importance(found: Mapping[str, Any] | None) -> dict[str, Any]:
    """The importance map as the page wants it: its rows, how many are left out, the chart; nothing if there is none."""
    from markupsafe import Markup

    if not found:
        return {"importance": None}
    rows = shown_rows(found["rows"])
    return {
        "importance": found,
        "important": rows,
        "unimportant": len(found["rows"]) - len(rows),
        "importance_chart": Markup(importance_chart(rows, found["donors"])),
        "gained": gained,
    }


def _samples(page: ReportInput) -> dict[str, Any]:
    """The sample grid as the page wants it: names, and rows of images with the tags asked for, found or missed."""
    rows = []
    for place, prompt in enumerate(page.sample_prompts):
        pictures = []
        for evaluation in page.samples.values():
            found = evaluation.probabilities[TAGGER][place] >= page.threshold
            column = {tag: number for number, tag in enumerate(evaluation.tags)}
            tags = [{"name": tag.replace("_", " "), "found": bool(found[column[tag]])} for tag in prompt.tags]
            images = evaluation.images
            data = "" if images is None or place >= len(images) else _inline(images[place])
            pictures.append({"data": data, "tags": tags})
        rows.append({"prompt": prompt.text, "pictures": pictures})
    return {"names": list(page.samples), "rows": rows}


def _inline(image: np.ndarray) -> str:
    """An image [H, W, 3] uint8 as a data URL. Small ones are enlarged here, as browsers blur what they enlarge."""
    from PIL import Image

    picture = Image.fromarray(image)
    if picture.width < 192:
        times = -(-192 // picture.width)
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=90)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
