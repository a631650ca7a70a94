"""JSON files that others wrote, read within bounds: what is damaged or made to be slow is an error in one line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from benchmark.errors import InputError

MOST_BYTES = 32 << 20
"""Of a JSON file. The longest that is read here, a list of tags, has less than 1 MB."""


def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A table of a JSON text (`object_pairs_hook`). Raises ValueError for a key given twice: plain JSON keeps the last.

    Nobody can tell which of the two values was meant.
    """
    table = dict(pairs)
    if len(table) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"'{twice[:80]}' is there twice")
    return table


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises InputError for one that cannot be read, is no JSON, has a key twice in a table, or has over 32 MB.
    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise InputError(f"{path}: has {size >> 20} MB; at most {MOST_BYTES >> 20} MB are read.")
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=no_repeats)
    except RecursionError:
        raise InputError(f"{path}: cannot be read as JSON (it is nested too deeply).") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}).") from None
