"""What a check is, what it is given, and what it finds; and how a list of them is run within a time."""

from __future__ import annotations

import gc
import math
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from benchmark.errors import UNFORESEEN, InputError, first_line

Result = Literal["PASS", "FAIL", "SKIPPED"]


class Skipped(Exception):
    """A check cannot be made here; the text is the reason."""


@dataclass(frozen=True)
class Bench:
    """What a check is given.

    tiny: networks of a few channels, whose speed means nothing. quick: fewer or smaller measurements. folder: an empty
    one, for files. ends: when all checks must be done, by `time.monotonic()`. say: prints a line of progress.
    """

    device: torch.device
    tiny: bool
    quick: bool
    folder: Path
    ends: float = math.inf
    say: Callable[[str], None] = lambda line: None

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.ends - time.monotonic()

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Until the device has done all that it was told to do."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def clear(self) -> None:
        """Free what nobody uses; peaks of memory are counted from here."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


@dataclass(frozen=True)
class Finding:
    """What a check measured, as a text and as figures, and whether it is within the check's limit.

    ok: None if the limit does not apply here; `why` says the reason.
    """

    measured: str
    ok: bool | None
    figures: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class Check:
    """One thing that only a GPU can show.

    measures, limit: for the table. seconds: how long it may take on a slow card, all of it and `--quick`; without as
    many left it is skipped. It raises `Skipped` where it cannot be made.
    """

    name: str
    measures: str
    limit: str
    work: Callable[[Bench], Finding]
    seconds: tuple[float, float]


@dataclass(frozen=True)
class Row:
    """A check's line of the table."""

    name: str
    measures: str
    limit: str
    result: Result
    measured: str
    reason: str
    seconds: float
    figures: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Plain values; numbers that are not finite are texts."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def run(checks: Sequence[Check], bench: Bench) -> list[Row]:
    """Every check in turn, each said when it begins and when it ends."""
    rows = []
    for check in checks:
        bench.say(f"{check.name}: {check.measures} ...")
        began = time.monotonic()
        result, finding = _one(check, bench)
        row = Row(
            check.name,
            check.measures,
            check.limit,
            result,
            finding.measured,
            finding.why,
            round(time.monotonic() - began, 1),
            finding.figures,
        )
        rows.append(row)
        bench.say(f"{check.name}: {result}  {'; '.join(filter(None, (row.measured, row.reason)))}  ({row.seconds} s)")
    return rows


def _one(check: Check, bench: Bench) -> tuple[Result, Finding]:
    needed = 0.0 if bench.tiny else check.seconds[bench.quick]
    if bench.left < needed:
        left = max(bench.left, 0)
        return "SKIPPED", Finding("", None, why=f"it may take {needed:.0f} s, and {left:.0f} s of the time are left")
    bench.clear()
    try:
        finding = check.work(bench)
    except Skipped as reason:
        return "SKIPPED", Finding("", None, why=str(reason))
    except (*UNFORESEEN, InputError) as error:  # whatever it is, the other checks are still worth making
        traceback.print_exc(file=sys.stderr)
        return "FAIL", Finding("", False, why=f"{type(error).__name__}: {first_line(error)}")
    finally:
        bench.clear()
    if finding.ok is None:
        return "SKIPPED", finding
    return ("PASS" if finding.ok else "FAIL"), finding


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def judged(bench: Bench, ok: bool) -> tuple[bool | None, str]:
    """`ok` and `why` of a finding about speed or memory: they mean something only on a GPU, and at full size."""
    if bench.cuda and not bench.tiny:
        return ok, ""
    return None, "it ran, but speed and memory are judged on a GPU and at full size only"
