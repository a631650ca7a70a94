"""How a LoRA changes each model: the tag accuracy of model + LoRA beside the style loss. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from benchmark.evaluate.runner import Evaluation
from benchmark.metrics.comparison import compare
from benchmark.metrics.secondary import STYLE_CAUTION, STYLE_LOSS
from benchmark.report.tables import Cell, Table

FITS = "A LoRA fits a model that keeps its tag accuracy and comes nearer to the reference style."


def lora_table(
    evaluations: Mapping[str, Evaluation],
    pairs: Mapping[str, str],
    category_of: Callable[[str], str],
    thresholds: Mapping[str, float],
) -> Table:
    """A row for each model: without and with the LoRA, and the paired difference.

    `pairs`: name of a model -> name of the model with the LoRA, both among `evaluations`.
    """
    rows, styled = [], False
    for name, with_lora in pairs.items():
        alone, added = compare({name: evaluations[name], with_lora: evaluations[with_lora]}, category_of, thresholds)
        row = [Cell(name)]
        for role in thresholds:
            row += [Cell(score=alone.accuracy[role]), Cell(score=added.accuracy[role])]
            row.append(Cell(score=added.difference[role], signed=True))
        row[-1] = replace(row[-1], text=added.note)
        styled = STYLE_LOSS in alone.metrics
        if styled:
            row += [Cell(score=alone.metrics[STYLE_LOSS]), Cell(score=added.metrics[STYLE_LOSS])]
            row.append(Cell(score=added.metric_difference[STYLE_LOSS], signed=True))
        rows.append(tuple(row))
    head = ["model"]
    for role in thresholds:
        head += [f"accuracy by {role}", "with the LoRA", "difference"]
    head += ["style loss", "style loss with the LoRA", "difference of style loss"] if styled else []
    return Table(tuple(head), tuple(rows), "With the LoRA", f"{FITS} {STYLE_CAUTION}" if styled else "")
