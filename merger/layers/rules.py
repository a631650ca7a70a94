"""A user's own layers: an ordered table `pattern -> layer`; the first pattern that matches a tensor's name decides.

Patterns are shell wildcards over diffusers names (`*` any characters, dots too; `?` one; `[ab]` one of these). They
match the whole name, and case counts. Two patterns may lead to one layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import translate
from pathlib import Path

from merger.errors import ConfigError
from merger.yaml_text import read_document

Rules = Mapping[str, str]


def read_rules(path: Path) -> dict[str, str]:
    """Read the table of a YAML file, in its order. Raises ConfigError, in one line, for all but `pattern: layer`."""
    return check_rules(read_document(path, "table of layers").value, str(path))


def check_rules(table: object, where: str) -> dict[str, str]:
    """Return `table` as rules. Raises ConfigError unless it is a table of text to text with at least one line.

    where: what holds the table, for messages.
    """
    if not isinstance(table, Mapping) or not table:
        raise ConfigError(f"{where}: should hold lines of `pattern: layer`, for example `'up_blocks.*': UP`")
    for pattern, layer in table.items():
        if not isinstance(pattern, str) or not isinstance(layer, str) or not layer:
            raise ConfigError(f"{where}: '{pattern}: {layer}' is no `pattern: layer`; put numbers in quotes")
    return dict(table)


def group_by_rules(names: Iterable[str], rules: Rules) -> dict[str, tuple[str, ...]]:
    """Sort tensors into the layers of a table: {layer: its tensors}, layers in the order of the table.

    Every name is in exactly one layer. Raises ConfigError for a pattern that decides for no tensor, and for a tensor
    that no pattern matches.
    """
    known = tuple(names)
    patterns = [(pattern, re.compile(translate(pattern)), layer) for pattern, layer in rules.items()]
    layers: dict[str, list[str]] = {layer: [] for layer in rules.values()}
    used = set()
    homeless = []
    for name in known:
        for pattern, expression, layer in patterns:
            if expression.match(name):
                layers[layer].append(name)
                used.add(pattern)
                break
        else:
            homeless.append(name)
    for pattern, expression, _ in patterns:
        if pattern not in used:
            taken = any(expression.match(name) for name in known)
            why = "only fits tensors that earlier patterns take: move it up" if taken else "fits no tensor"
            raise ConfigError(f"layers: the pattern '{pattern}' {why}")
    if homeless:
        raise ConfigError(
            f"layers: no pattern fits '{homeless[0]}' ({len(homeless)} such tensors). End the table with '*': REST"
        )
    return {layer: tuple(members) for layer, members in layers.items()}
