"""The names of preparations and the numbers that each takes, as configurations and recipes write them. No torch.

A preparation is a word (`train_difference`) or a table of one line: `{rank: 64}` for one with a single number, `{trim:
{density: 0.2}}` for any. `merger.preparations.functions` has the function of each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merger.errors import did_you_mean


@dataclass(frozen=True)
class Number:
    """A number that a preparation takes. whole: an integer. above: it must be above `least`, not only equal to it."""

    name: str
    least: float
    most: float = math.inf
    whole: bool = False
    above: bool = False
    default: float | None = None

    def problem(self, value: Any) -> str:
        """What is wrong with a value; '' if nothing is."""
        kind = int if self.whole else (int, float)
        fits = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
        if fits and self.least <= value <= self.most and not (self.above and value == self.least):
            return ""
        bounds = f"{'above' if self.above else 'at least'} {self.least:g}"
        bounds += f" and at most {self.most:g}" if self.most < math.inf else ""
        return f"'{self.name}' must be a {'whole number' if self.whole else 'number'} {bounds}, not {value!r}"


@dataclass(frozen=True)
class Kind:
    """A preparation. needs_minus: whether it looks at what the difference was taken from, which must be given."""

    name: str
    numbers: tuple[Number, ...] = ()
    needs_minus: bool = False


_DENSITY = Number("density", 0, 1, above=True)
_SEED = Number("seed", 0, 2**63 - 1, whole=True, default=0)

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("trim", (_DENSITY,)),
        Kind("dare", (_DENSITY, _SEED)),
        Kind("della", (_DENSITY, Number("epsilon", 0, 1, default=0.1), _SEED)),
        Kind("breadcrumbs", (_DENSITY, Number("outliers", 0, 1, default=0.01))),
        Kind("rank", (Number("rank", 1, whole=True),)),
        Kind("perpendicular"),
        Kind("train_difference", needs_minus=True),
        Kind("add_opposite", needs_minus=True),
    )
}


@dataclass(frozen=True)
class Preparation:
    """One step of preparing a difference: its name and all of its numbers."""

    name: str
    numbers: tuple[tuple[str, float], ...] = ()

    def to_json(self) -> dict[str, dict[str, float]]:
        """`{name: {number: value}}`, which `preparation` reads."""
        return {self.name: dict(self.numbers)}


def preparation(written: Any) -> Preparation:
    """What a word or a table of one line says. Raises ValueError, in one line, for what is unknown or out of range."""
    said: Any
    if isinstance(written, str):
        name, said = written, {}
    elif isinstance(written, Mapping) and len(written) == 1:
        (name, said), *_ = written.items()
    else:
        raise ValueError(f"a preparation is a word or a table of one line, such as {{rank: 64}}, not {written!r}")
    if name not in KINDS:
        raise ValueError(f"no preparation is called {name!r}.{did_you_mean(str(name), sorted(KINDS))}")
    numbers = KINDS[name].numbers
    if not isinstance(said, Mapping):
        if not numbers:
            raise ValueError(f"{name} takes no number")
        said = {numbers[0].name: said}
    known = [number.name for number in numbers]
    for key in said:
        if key not in known:
            has = f"has {', '.join(known)}" if known else "takes no number"
            raise ValueError(f"{name} {has}, and no {key!r}.{did_you_mean(str(key), known)}")
    found = []
    for number in numbers:
        value = said.get(number.name, number.default)
        if value is None:
            raise ValueError(f"{name} needs '{number.name}'")
        if problem := number.problem(value):
            raise ValueError(f"{name}: {problem}")
        found.append((number.name, value if number.whole else float(value)))
    density, outliers = dict(found).get("density", 0.0), dict(found).get("outliers", 0.0)
    if density + outliers > 1:
        raise ValueError(f"{name}: 'density' and 'outliers' are shares of one tensor, and add up to more than 1")
    return Preparation(name, tuple(found))


def preparations(written: Sequence[Any], *, minus: bool) -> tuple[Preparation, ...]:
    """A donor's preparations, in order. minus: whether its `minus` is given. Raises ValueError as `preparation`."""
    found = tuple(preparation(each) for each in written)
    for each in found:
        if KINDS[each.name].needs_minus and not minus:
            raise ValueError(f"{each.name} needs `minus`: the checkpoint that the donor was trained from")
    return found
