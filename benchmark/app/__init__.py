"""The command line of the benchmark: its arguments, checked and opened, and the run that they ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark.lazy import lazily

if TYPE_CHECKING:
    from benchmark.app.benchmark import Benchmark as Benchmark
    from benchmark.app.cli import main as main

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Benchmark": "benchmark.app.benchmark",
        "main": "benchmark.app.cli",
    },
)
