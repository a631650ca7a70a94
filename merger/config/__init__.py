"""The configuration of a search: its keys with descriptions and limits, and reading it from a YAML file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark.lazy import lazily

if TYPE_CHECKING:
    from merger.config.config import Config as Config
    from merger.config.loading import dump_config as dump_config
    from merger.config.loading import load_config as load_config
    from merger.config.loading import parse_config as parse_config

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Config": "merger.config.config",
        "dump_config": "merger.config.loading",
        "load_config": "merger.config.loading",
        "parse_config": "merger.config.loading",
    },
)
