"""A finished search as one self-contained HTML page, as sample pictures, and as lines of text."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmark.evaluate.runner import Evaluation
from benchmark.prompts.prompt_set import Prompt
from benchmark.writing import write_picture, write_text
from merger.report.charts import heat_map, progress_chart
from merger.report.page import PAGE
from merger.report.progress import duration
from merger.scoring.objective import TAGGER
from merger.scoring.selection import Ending
from merger.search.trials import STEP, TrialRecord

if TYPE_CHECKING:
    from merger.app.session import Session


def result_text(result: Mapping[str, Any]) -> str:
    """The final table and its verdict, for a terminal."""
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
    return "\n".join([*lines, "", *difference_lines(result), luck_line(result), *guard_lines(result), verdict(result)])


def guard_lines(result: Mapping[str, Any]) -> list[str]:
    """Who was passed over, and why."""
    return [
        f"trial {finalist['trial']} was passed over: {'; '.join(finalist['passed_over'])}"
        for finalist in result.get("finalists", ())
        if finalist["passed_over"]
    ]


def verdict(result: Mapping[str, Any]) -> str:
    """What the table comes to, in a sentence."""
    parent, named = result["best_parent"], result["winner"].get("name")
    trial = f"trial {result['winner']['trial']}" + (f", {named}" if named else "")
    finalists = result.get("finalists", ())
    if finalists and all(finalist["passed_over"] for finalist in finalists):
        return f"Every finalist seems to fool the tagger, the winner ({trial}) too: use {parent}."
    found = result["paired_difference_to_best_parent"]
    mean, (low, _) = found[TAGGER]["mean"], found[TAGGER]["interval"]
    if low is not None and low > 0:
        judge = found.get("judge")
        if judge and judge["interval"][0] <= 0:
            return (
                f"The winner ({trial}) beats the best parent ({parent}) by the tagger; the judge does not confirm it."
            )
        return f"The winner ({trial}) beats the best parent ({parent})."
    if mean > 0:
        return f"It is not shown that the winner ({trial}) beats the best parent ({parent}): use {parent}."
    return f"The winner ({trial}) does not beat the best parent ({parent}): use {parent}."


def difference_lines(result: Mapping[str, Any]) -> list[str]:
    """The paired difference to the best parent by each tagger."""
    return [
        f"winner - {result['best_parent']}, paired, by the {tagger}: {found['mean']:+.4f} "
        f"[{_number(found['interval'][0])}, {_number(found['interval'][1])}]"
        for tagger, found in result["paired_difference_to_best_parent"].items()
    ]


def luck_line(result: Mapping[str, Any]) -> str:
    """How much of the best observed value was luck."""
    luck = result["luck"]
    if luck is None:
        return "The best parent was not among the trials, so luck cannot be told from gain."
    return (
        f"The best observed trial ({luck['trial']}) was {luck['observed_gain']:+.4f} over the best parent on the "
        f"search prompts and {luck['fresh_gain']:+.4f} on fresh ones: {luck['luck']:+.4f} of it was luck."
    )


def write_report(
    path: Path,
    session: Session,
    records: Sequence[TrialRecord],
    ending: Ending,
    models: Mapping[str, Evaluation],
    prompts: Sequence[Prompt],
) -> None:
    """Writes the page. `models` are the columns of the sample grid, `prompts` its rows."""
    from jinja2 import Environment
    from markupsafe import Markup

    config, result = session.config, ending.result
    baselines = {record.name: record.value for record in records if record.role in ("base", "donor", "uniform")}
    values = [np.nan if record.role == STEP else record.value for record in records]
    rows = {
        "base": config.base,
        "donors": ", ".join(session.space.donors),
        "granularity": f"{config.granularity if isinstance(config.granularity, str) else 'own table'}: "
        f"{len(session.space.layers)} layers",
        **({"blended": "denoiser and text encoders"} if config.blends_text else {}),
        "method": f"{session.chosen.method}, {len(session.space.parameters)} free weights",
        "tagger": f"{session.taggers[TAGGER].name}, threshold {config.tagger_threshold:g}",
        "drawing": f"{config.steps} steps, guidance {config.guidance:g}, {config.size[0]} x {config.size[1]} pixels",
        "seed": config.seed,
    }
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE)
    text = page.render(
        result=result,
        verdict=verdict(result),
        differences=difference_lines(result),
        luck=luck_line(result),
        guard=guard_lines(result),
        judged=any(model["judge_accuracy"] is not None for model in result["models"]),
        duration=duration(result["seconds"]),
        share=share,
        between=between,
        categories=list(result["models"][0]["categories"]),
        samples=_samples(models, prompts, session.config.tagger_threshold),
        test_prompts=len(session.prompts["test"]),
        search_prompts=len(session.prompts["search"]),
        objective={"accuracy": "Tag accuracy", "probability": "Mean tag probability"}.get(
            config.objective, "Mean log tag probability"
        ),
        # the charts escape their own text
        progress=Markup(progress_chart(values, baselines, ylabel=config.objective)),
        heat=Markup(heat_map(ending.winner.weights, session.space.layers, session.space.donors)),
        base=session.base.name,
        settings=list(rows.items()),
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


def _samples(models: Mapping[str, Evaluation], prompts: Sequence[Prompt], threshold: float) -> dict[str, Any]:
    """The sample grid as the page wants it: names, and rows of pictures with the tags asked for, found or missed."""
    rows = []
    for place, prompt in enumerate(prompts):
        pictures = []
        for evaluation in models.values():
            found = evaluation.probabilities[TAGGER][place] >= threshold
            column = {tag: number for number, tag in enumerate(evaluation.tags)}
            tags = [{"name": tag.replace("_", " "), "found": bool(found[column[tag]])} for tag in prompt.tags]
            data = "" if evaluation.images is None else _inline(evaluation.images[place])
            pictures.append({"data": data, "tags": tags})
        rows.append({"prompt": prompt.text, "pictures": pictures})
    return {"names": list(models), "rows": rows}


def _inline(image: np.ndarray) -> str:
    """An image [H, W, 3] uint8 as a data URL; small ones enlarged, so that a browser does not blur them away."""
    from PIL import Image

    picture = Image.fromarray(image)
    if picture.width < 192:
        times = -(-192 // picture.width)
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=90)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
