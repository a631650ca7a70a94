"""JSON files that others wrote, read within bounds: what is damaged or made to be slow is an error in one line."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark.errors import InputError

MOST_BYTES = 32 << 20
"""Of a JSON file. The longest that is read here, a list of tags, has less than 1 MB."""

NOT_JSON = (OSError, ValueError, RecursionError)
"""What reading a file of JSON raises if it cannot be read, is no JSON, or is nested too deeply."""

_MOST_NUMBER = 10**7  # of any count in a model's configuration
_MOST_OF = (  # what only some counts are -> the most
    (re.compile(r"^(?!.*(channels|size|dim)).*(layer|depth|block|stage)", re.IGNORECASE), 512),
    (re.compile(r"num_labels|num_classes"), 10**6),
    (re.compile(r"timesteps"), 10**5),
)


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


def check_numbers(path: Path, config: Any) -> None:
    """Raise InputError for numbers in a model's configuration that no model has, before anything is made from them.

    A model is made before its weights are compared with it, so a wrong number could take all memory or hours.
    """
    for key, value in _numbers(config, ""):
        most = next((most for pattern, most in _MOST_OF if pattern.search(key)), _MOST_NUMBER)
        if isinstance(value, int) and abs(value) > most:
            raise InputError(f"{path}: {key} {str(value)[:20]} is beyond {most}.")


def _numbers(value: Any, key: str) -> Iterator[tuple[str, int | float]]:
    """(key, number) of every number in a configuration, at any depth; the key is the nearest one above it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name != "label2id":  # its keys are tags, which may have any name
                yield from _numbers(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value
