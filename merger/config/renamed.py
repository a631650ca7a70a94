"""Keys and values that version 0.1.0 of the configuration called otherwise, and keys that are gone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

RENAMED = {
    "slopes": "gradient",
    "slopes.steps": "gradient.steps",
    "slopes.rate": "gradient.learning_rate",
    "slopes.start": "gradient.start",
    "slopes.fraction": "gradient.backprop_fraction",
    "slopes.check_every": "gradient.eval_every",
    "slopes.pull": "gradient.weight_decay",
    "slopes.negative_penalty": "gradient.negative_penalty",
    "racing": "pruning",
}
"""{old key: new key}. A dot leads to a part of a key."""

RENAMED_VALUES = {"method": {"slopes": "gradient"}}
"""{key: {old value: new value}}."""

REMOVED = {
    "polish": "it gained nothing in measurements",
    "coarse_to_fine": "it gained nothing in measurements",
}
"""{key: why it was removed}."""


def new_names(raw: Mapping[str, Any]) -> list[tuple[tuple[str, ...], str]]:
    """(its keys, a phrase) for every old key and value in `raw`, a configuration as read from YAML."""
    return list(_phrases(raw))


def _phrases(raw: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    for key, value in raw.items():
        parts = [f"{key}.{part}" for part in value] if isinstance(value, Mapping) else []
        if named := [part for part in parts if part in RENAMED] or [key] * (key in RENAMED):
            yield from ((tuple(old.split(".")), f"'{old}' is now '{RENAMED[old]}'") for old in named)
        elif key in REMOVED:
            yield (key,), f"'{key}' was removed: {REMOVED[key]}"
        elif isinstance(value, str) and value in RENAMED_VALUES.get(key, {}):
            yield (key,), f"'{key}: {value}' is now '{key}: {RENAMED_VALUES[key][value]}'"
