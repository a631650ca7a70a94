"""What studies of earlier versions call things. Pure.

A stored study is never rewritten: what it says is read under today's names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_METHODS = {"slopes": "gradient"}

_ATTRIBUTES = {"slopes": "gradient"}

_GRADIENT_KEYS = {
    "rate": "learning_rate",
    "fraction": "backprop_fraction",
    "check_every": "eval_every",
    "pull": "weight_decay",
}

_GONE = {"polish": "0", "coarse_to_fine": "{}"}
"""Settings that no longer exist, and the value under which they did nothing."""


def method(stored: str | None) -> str | None:
    """A stored method's name today."""
    return None if stored is None else _METHODS.get(stored, stored)


def attributes(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's attributes under today's names."""
    return {_ATTRIBUTES.get(key, key): value for key, value in stored.items()}


def identity(stored: Mapping[str, str]) -> dict[str, str]:
    """A study's identity as this version would have stored it. Settings that are gone stay, unless they did nothing.

    The planned steps of a gradient search were once part of the identity; they may change between sittings.
    """
    names = {"slopes": "gradient", "racing": "pruning"}
    now = {names.get(key, key): value for key, value in stored.items() if _GONE.get(key) != value}
    if "method" in now:
        now["method"] = _METHODS.get(now["method"], now["method"])
    if "gradient" in now:
        settings = json.loads(now["gradient"])
        now["gradient"] = json.dumps(
            {_GRADIENT_KEYS.get(key, key): settings[key] for key in settings if key != "steps"}
        )
    return now
