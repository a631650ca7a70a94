"""What a search prints while it runs, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from merger.search.trials import DECAY, PRUNED_AFTER, STEP, TrialRecord, best_of, spent


class SearchProgress:
    """Prints a line per finished trial; on a terminal also one that changes while images are generated.

    trials, time_limit (seconds): the limits from which the time left is estimated.
    """

    def __init__(
        self,
        trials: int,
        time_limit: float | None = None,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.trials, self.time_limit = trials, time_limit
        self.stream, self.clock = stream or sys.stderr, clock
        self.title, self.began = "", clock()

    def start(self, title: str) -> None:
        """Images for something new are being generated; `title` names it."""
        self.title, self.began = title, self.clock()

    def drawn(self, images: int, value: float) -> None:
        """So many of its images are generated, with this value so far."""
        if self.stream.isatty():
            rate = images / max(self.clock() - self.began, 1e-9)
            line = f"{self.title}: {images} images, {value:.3f} so far, {rate:.1f} images/s"
            print(f"\r{line:<78}", end="", file=self.stream, flush=True)

    def trial(self, record: TrialRecord, records: Sequence[TrialRecord]) -> None:
        """A trial is finished; `records` are all so far."""
        self.say(trial_line(record, records, self.trials, self.time_limit))

    def say(self, line: str) -> None:
        """A line of its own."""
        start = "\r\033[K" if self.stream.isatty() else ""
        print(start + line, file=self.stream, flush=True)


def trial_line(
    record: TrialRecord, records: Sequence[TrialRecord], trials: int, time_limit: float | None = None
) -> str:
    """`trial 11 (12 of 100): 0.812 | best 0.843 ± 0.012 (uniform) | 31.0 images/s | 8 min left`."""
    best = best_of(records)
    decaying = ", learning rate falling" if record.score.attributes.get(DECAY) else ""
    which = f" of search {record.member + 1}" if record.member else ""
    remark = f"step{which}, own prompts{decaying}" if record.role == STEP else record.name
    if PRUNED_AFTER in record.score.attributes:
        remark = f"pruned after {record.score.attributes[PRUNED_AFTER]} prompts"
    parts = [
        f"trial {record.number} ({len(records)} of {trials}): {record.value:.4f}" + (f" ({remark})" if remark else "")
    ]
    if best is not None:
        parts.append(f"best {best.value:.4f} ± {best.score.stderr:.4f} ({best.label})")
    if record.score.seconds > 0:
        parts.append(f"{record.score.images / record.score.seconds:.1f} images/s")
    left = time_left(records, trials, time_limit)
    if left is not None:
        parts.append(f"at most {duration(left)} left")
    return " | ".join(parts)


def time_left(records: Sequence[TrialRecord], trials: int, time_limit: float | None) -> float | None:
    """Seconds until the first limit, if trials take as long as the last ten did; None before the first trial."""
    if not records:
        return None
    recent = records[-10:]
    left = max(trials - len(records), 0) * spent(recent) / len(recent)
    return left if time_limit is None else min(left, max(time_limit - spent(records), 0.0))


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
