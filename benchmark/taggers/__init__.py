"""Taggers: images in, a probability per tag out. Each format has a file of its own and an entry in `registry`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark.lazy import lazily

if TYPE_CHECKING:
    from benchmark.taggers.registry import TaggerFormat as TaggerFormat
    from benchmark.taggers.registry import open_tagger as open_tagger
    from benchmark.taggers.registry import register_tagger as register_tagger
    from benchmark.taggers.registry import tagger_kinds as tagger_kinds
    from benchmark.taggers.tagger import FakeTagger as FakeTagger
    from benchmark.taggers.tagger import Tagger as Tagger
    from benchmark.taggers.tagger import columns_of as columns_of

__getattr__, __dir__ = lazily(
    __name__,
    {
        "columns_of": "benchmark.taggers.tagger",
        "FakeTagger": "benchmark.taggers.tagger",
        "open_tagger": "benchmark.taggers.registry",
        "register_tagger": "benchmark.taggers.registry",
        "Tagger": "benchmark.taggers.tagger",
        "tagger_kinds": "benchmark.taggers.registry",
        "TaggerFormat": "benchmark.taggers.registry",
    },
)
