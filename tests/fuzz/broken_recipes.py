"""Recipes with something broken in them, made from a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.broken_checkpoints import ODD_VALUES


def sound_recipe(base: Path, donor: Path) -> dict[str, Any]:
    """A recipe with every key that there is."""
    from merger.checkpoints.checkpoint import open_checkpoint

    source = {"path": str(base), "name": "base", "sha256": open_checkpoint(base).sha256, "hub": ""}
    other = {"path": str(donor), "name": "donor"}
    return {
        "base": source,
        "donors": [other],
        "granularity": "block",
        "weights": {"*": {"donor": 0.3}, "OUT*": {"donor": 0.5}},
        "dtype": "base",
        "method": "linear",
        "version": "0.2.0",
        "components": ["denoiser"],
        "clamp": False,
        "block_names": "community",
    }


def broken_recipe(sound: dict[str, Any], seed: int) -> str:
    """The text of a recipe with a few changes."""
    dice = random.Random(seed)
    if dice.random() < 0.1:
        return dice.choice(
            ("", "[" * 50_000, '{"a":' * 20_000, "nul", "3", '"x"', "[]", "\ufeff{}", "{}{}", "9" * 5000)
        )
    recipe = json.loads(json.dumps(sound))
    for _ in range(dice.randint(1, 3)):
        places = list(_places(recipe))
        holder, key = dice.choice(places)
        if isinstance(holder, dict) and dice.random() < 0.2:
            holder[dice.choice(("", "x", "*", "[", "weights", "𝟙", "block_names", "clamp"))] = dice.choice(ODD_VALUES)
        elif dice.random() < 0.2:
            del holder[key]
        else:
            odd = (*ODD_VALUES, "~nouser/x", "/", "..", "x" * 5000, "a\u0000b", "*", "[", "[!", "owner/name")
            holder[key] = dice.choice(odd)
        if not recipe:
            break
    text = json.dumps(recipe, ensure_ascii=dice.random() < 0.5)
    if dice.random() < 0.1:
        place = dice.randrange(len(text))
        text = text[:place] + dice.choice('{}[]",:9eE-\\') + text[place + 1 :]
    return text.replace("Infinity", dice.choice(("Infinity", "1e999", "9" * 5000)))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(table or list, key) of every value in a recipe."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(inside):
        yield value, key
        yield from _places(part)
