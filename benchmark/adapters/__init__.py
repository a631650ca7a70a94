"""LoRA and its relatives: the keys of their files, what they add to a weight, and adding them to a loaded pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark.lazy import lazily

if TYPE_CHECKING:
    from benchmark.adapters.deltas import delta as delta
    from benchmark.adapters.lora import Lora as Lora
    from benchmark.adapters.lora import add_lora as add_lora

__getattr__, __dir__ = lazily(
    __name__,
    {
        "add_lora": "benchmark.adapters.lora",
        "delta": "benchmark.adapters.deltas",
        "Lora": "benchmark.adapters.lora",
    },
)
