"""JSON files that others wrote, read within bounds: what is damaged or made to be slow is an error in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmark.errors import InputError

MOST_BYTES = 32 << 20
"""Of a JSON file. The longest that is read here, a list of tags, has less than 1 MB."""


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises InputError for one that cannot be read, is no JSON, or has over 32 MB."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise InputError(f"{path}: has {size >> 20} MB; at most {MOST_BYTES >> 20} MB are read.")
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise InputError(f"{path}: cannot be read as JSON (it is nested too deeply).") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}).") from None
