"""One pass of the benchmark: prompts drawn and tagged, in memory or row by row on disk, and scored with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark.lazy import lazily

if TYPE_CHECKING:
    from benchmark.evaluate.runner import Evaluation as Evaluation
    from benchmark.evaluate.runner import evaluate as evaluate
    from benchmark.evaluate.scores import Estimate as Estimate
    from benchmark.evaluate.scores import paired_difference as paired_difference

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Estimate": "benchmark.evaluate.scores",
        "evaluate": "benchmark.evaluate.runner",
        "Evaluation": "benchmark.evaluate.runner",
        "paired_difference": "benchmark.evaluate.scores",
    },
)
