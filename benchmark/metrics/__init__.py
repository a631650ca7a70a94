"""Figures from evaluations: models compared, metrics of features, and how few steps still rank models alike. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark.lazy import lazily

if TYPE_CHECKING:
    from benchmark.metrics.calibration import calibrate as calibrate
    from benchmark.metrics.comparison import ModelScores as ModelScores
    from benchmark.metrics.comparison import compare as compare
    from benchmark.metrics.secondary import References as References

__getattr__, __dir__ = lazily(
    __name__,
    {
        "calibrate": "benchmark.metrics.calibration",
        "compare": "benchmark.metrics.comparison",
        "ModelScores": "benchmark.metrics.comparison",
        "References": "benchmark.metrics.secondary",
    },
)
