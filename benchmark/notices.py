"""Lines for the user while a library function works: what was set aside, or read in an unusual way."""

from __future__ import annotations

import sys

_said: set[str] = set()


def say(line: str) -> None:
    """Print a line to stderr, once in a process: models are loaded again and again."""
    if line not in _said:
        _said.add(line)
        print(line, file=sys.stderr)
