"""PEFT's patterns of modules, matched as PEFT matches them, but never for long.

A pattern is a regular expression that must match the end of a module's path, after a dot or from its beginning
(PEFT 0.21: `utils.other.get_pattern_key`). A file from elsewhere may hold one that takes years, or a million of them,
so some are refused when they are read, and all of them together have a second of CPU.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from benchmark.errors import InputError

_MOST = 10_000  # patterns; an adapter that names each module has about a thousand
_LONGEST = 1_000  # characters of one
_REPEATS = 4  # that one may hold, digits aside: the time grows with this power of the path's length
_SECONDS = 1.0  # of CPU for all matches of one table; what people write takes milliseconds
_PATH = re.compile(r"[\w.]*")  # no special characters: such a pattern can match only what ends as it does


class Patterns:
    """A value for each pattern; the first that matches a module counts. where: file and setting, for messages."""

    def __init__(self, values: Mapping[str, Any], where: str = ""):
        """Raises InputError for what is no pattern, and for one, or a number of them, that could take too long."""
        if len(values) > _MOST:
            raise InputError(f"{where} has {len(values)} patterns; {_MOST} are possible.")
        for pattern in values:
            _check(pattern, where)
        self._values = [(pattern, _ending(pattern), value) for pattern, value in values.items()]
        self._where, self._spent = where, 0.0

    def of(self, module: str, otherwise: Any) -> Any:
        """The value for a module, by its path with dots. Raises InputError when matching takes too long."""
        for pattern, ending, value in self._values:
            if module.endswith(ending) and self._matches(pattern, module):
                return value
        return otherwise

    def _matches(self, pattern: str, module: str) -> bool:
        began = time.process_time()
        found = _compiled(pattern).match(module)
        self._spent += time.process_time() - began
        if self._spent > _SECONDS:
            raise InputError(f"{self._where} has patterns that take too long to match. Write them without '.*'.")
        return found is not None


def _ending(pattern: str) -> str:
    """What each path that a pattern matches ends with; empty if that cannot be told."""
    return pattern.rpartition(".")[2] if _PATH.fullmatch(pattern) else ""


def _check(pattern: str, where: str) -> None:
    if len(pattern) > _LONGEST:
        raise InputError(f"{where} has a pattern of {len(pattern)} characters; {_LONGEST} are possible.")
    if _PATH.fullmatch(pattern):
        return
    try:
        _compiled(pattern)
    except (re.error, RecursionError, OverflowError):
        raise InputError(f"{where} has {pattern[:60]!r}, which is no pattern.") from None
    bare = re.sub(r"\\d[+*]?", "0", pattern)  # there are few digits in a path
    bare = re.sub(r"\[[^\]]*\]", "a", re.sub(r"\\.", "a", bare, flags=re.DOTALL)).replace("(?", "(")
    if re.search(r"\)[*+{]", bare) or _count(bare, "*+?{") > _REPEATS:
        raise InputError(
            f"{where} has {pattern[:60]!r}, which could take very long to match: no group may be repeated, and at "
            f"most {_REPEATS} of '*', '+', '?' and '{{' are possible."
        )


def _count(text: str, characters: Iterable[str]) -> int:
    return sum(text.count(character) for character in characters)


@lru_cache(maxsize=2 * _MOST)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")
