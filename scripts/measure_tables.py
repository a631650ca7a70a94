"""How long all tables of a benchmark take, without drawing: synthetic rows of models x prompts, read from disk.

    python scripts/measure_tables.py

Prints the seconds of processor time of each step, and a line of JSON at the end. The aim is below 5 s for 3 models x
1,000 prompts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark.evaluate.results import Rows, RowSpec
from benchmark.evaluate.runner import Batch
from benchmark.metrics.comparison import as_json, compare
from benchmark.metrics.secondary import References
from benchmark.pipelines.generation import GenerationSettings
from benchmark.prompts.prompt_set import Prompt
from benchmark.report.page import as_html
from benchmark.report.tables import as_markdown

WIDTH, CLASSES = 512, 1000  # of the synthetic embeddings, as CLIP's, and classes, as ImageNet's
Made = TypeVar("Made")


def synthetic_rows(output: Path, model: int, prompts: tuple[Prompt, ...], tags: tuple[str, ...]) -> Rows:
    """Complete rows of one model on disk: two taggers, CLIP's embeddings and a classifier's classes."""
    draw = np.random.default_rng(model)
    roles = {"tagger": "1", "judge": "2"}
    extractors = {"clip": "3", "classes": "4"}
    rows = Rows(output, RowSpec(f"model-{model}", str(model), GenerationSettings(), prompts, tags, roles, extractors))
    shape = (len(prompts), len(tags))
    said = {role: draw.random(shape, dtype=np.float32) ** (0.7 + 0.1 * model) for role in roles}
    features = {
        "clip": draw.normal(size=(len(prompts), WIDTH)).astype(np.float32),
        "classes": draw.dirichlet(np.ones(CLASSES), len(prompts)).astype(np.float32),
    }
    images = np.zeros((len(prompts), 1, 1, 3), dtype=np.uint8)
    digests = np.arange(len(prompts), dtype=np.int64)
    rows.add(0, Batch(0, images, said, np.zeros(len(prompts), dtype=np.bool_), digests, features, 1.0))
    rows.finish()
    return rows


def category_of(tag: str) -> str:
    """One of twelve."""
    return f"category {int(tag[4:]) % 12}"


def timed(what: str, times: dict[str, float], work: Callable[[], Made]) -> Made:
    """Do it, and note how many seconds of processor time it took, all threads together."""
    begun = time.process_time()
    made = work()
    times[what] = round(time.process_time() - begun, 3)
    print(f"{what}: {times[what]} s", file=sys.stderr)
    return made


def measure(models: int, prompts: int, images: int, tags: int, features: bool) -> dict[str, object]:
    """Seconds to read the rows, to score them, and to write tables and page."""
    draw = np.random.default_rng(0)
    names = tuple(f"tag_{number}" for number in range(tags))
    asked = [tuple(draw.choice(names, size, replace=False).tolist()) for size in draw.choice((2, 4, 8), prompts)]
    made = tuple(
        Prompt(index, ", ".join(chosen), chosen, index * images + number)
        for index, chosen in enumerate(asked)
        for number in range(images)
    )
    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        rows = {f"model-{model}": synthetic_rows(Path(folder), model, made, names) for model in range(models)}
        evaluations = timed("read", times, lambda: {name: one.evaluation() for name, one in rows.items()})
    if not features:
        evaluations = {name: replace(done, features={}) for name, done in evaluations.items()}
    reference = {"clip": draw.normal(size=(500, WIDTH))}
    references = References(draw.normal(size=(prompts, WIDTH)), {"clip": "clip"}, reference)
    thresholds = {"tagger": 0.5, "judge": 0.5}
    scored = timed("score", times, lambda: compare(evaluations, category_of, thresholds, references))
    settings: dict[str, object] = {"images": len(made), "prompts": prompts, "width": 512, "height": 512, "steps": 20}
    settings |= {"sampler": "none", "guidance": 7.0}
    timed("tables", times, lambda: as_markdown(scored))
    timed("json", times, lambda: json.dumps(as_json(scored), allow_nan=False))
    timed("page", times, lambda: as_html(scored, settings, []))
    size = {"models": models, "prompts": prompts, "images": len(made), "tags": tags, "features": features}
    return {**size, "seconds": times, "total_seconds": round(sum(times.values()), 3)}


def main() -> int:
    """Parse, measure, print the JSON."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--images", type=int, default=2, help="of each prompt (%(default)s)")
    parser.add_argument("--tags", type=int, default=200, help="of the vocabulary (%(default)s)")
    parser.add_argument("--features", action="store_true", help="the scores of CLIP and of a classifier too")
    given = parser.parse_args()
    print(json.dumps(measure(given.models, given.prompts, given.images, given.tags, given.features)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
