"""One self-contained HTML page of a benchmark: the tables, a chart, and the same prompts drawn by every model."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.evaluate.scores import Estimate
from benchmark.metrics.comparison import ModelScores
from benchmark.prompts.vocabulary import spoken
from benchmark.report.scatter import BOTTOM, HEIGHT, LEFT, MARGIN, WIDTH, scatter
from benchmark.report.tables import Table, interval, interval_parts, make_tables


@dataclass(frozen=True)
class Sample:
    """One prompt, and what each model drew for it: name -> (picture file, tags found, tags missed)."""

    text: str
    drawn: Mapping[str, tuple[Path, tuple[str, ...], tuple[str, ...]]]


def as_html(
    models: Sequence[ModelScores], settings: Mapping[str, Any], samples: Sequence[Sample], more: Sequence[Table] = ()
) -> str:
    """The page, with the pictures inside. Every text is escaped."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"parts": interval_parts, "hover": _hover, "spoken": spoken, "data": _data_uri}
    return environment.get_template("page.html").render(
        names=[model.name for model in models],
        tables=make_tables(models, more),
        settings=settings,
        samples=samples,
        chart=scatter(models),
        box={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - MARGIN, "top": MARGIN},
        floor=HEIGHT - BOTTOM,
    )


def _hover(score: Estimate, against: Estimate | None, first: str) -> str:
    """What a figure shows under the pointer. `against`: its difference to the model `first`."""
    _, bounds = interval_parts(score)
    text = f"95 % interval {bounds}, standard error {score.stderr:.4f}" if bounds else "no interval"
    return text if against is None else f"{text}; against {first} {interval(against, signed=True)}"


def _data_uri(path: Path) -> str:
    return f"data:image/{path.suffix[1:]};base64,{base64.b64encode(path.read_bytes()).decode()}"
