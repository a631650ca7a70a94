"""What each number of steps and size costs, and how far it changes the models' figures and order. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmark.metrics.calibration import Setting
from benchmark.report.tables import Cell, Table


def calibration_table(settings: Sequence[Setting], role: str) -> Table:
    """A row for each number of steps and size, the cheapest first. `role`: whose tagger's accuracies are compared."""
    names = list(settings[0].difference)
    most = max((setting.effort for setting in settings), key=lambda effort: effort.exactness)
    rows = [
        (
            Cell(str(setting.effort.steps)),
            Cell(setting.effort.size),
            Cell(f"{setting.seconds:.3f}"),
            Cell("–" if math.isnan(setting.correlation) else f"{setting.correlation:.3f}"),
            Cell(f"{setting.pairs[0]} of {setting.pairs[1]}"),
            *(Cell(score=setting.difference[name], signed=True) for name in names),
        )
        for setting in settings
    ]
    head = (
        "steps",
        "size",
        "seconds an image",
        f"rank correlation by {role}",
        "pairs alike",
        *(f"{name}, against {most.steps} at {most.size}" for name in names),
    )
    return Table(head, tuple(rows))
