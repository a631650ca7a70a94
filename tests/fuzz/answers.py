"""What a command or a function made of its input: a line, an answer or a traceback; how long it took, how much memory.

Cases are numbered by seeds, and a seed always makes the same case. `run` tries some hundreds or thousands of them.
"""

from __future__ import annotations

import contextlib
import io
import re
import resource
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.errors import InputError, memory_said

MOST_SECONDS = 2.0
MOST_MEMORY = 200_000_000
LONGEST = 6000  # characters of a line that refuses something; the longest texts in broken files have 5,000
HANGS = 30  # seconds of CPU after which a case is given up


class Hang(BaseException):
    """Raised by the timer, wherever the process is. No handler of errors takes it for something else."""


@dataclass(frozen=True)
class Answer:
    """What became of one call.

    status: 0 if the input was read, else the exit status. lines: what was said of it on standard error. seconds: of
    CPU. memory: bytes by which the process grew while it ran. traceback: of what got out, else empty.
    """

    status: int
    lines: tuple[str, ...]
    seconds: float
    memory: int
    traceback: str = ""

    @property
    def problem(self) -> str:
        """Why this is no answer that a user may get, else nothing."""
        if self.traceback:
            return self.traceback.strip().splitlines()[-1][:200]
        if self.status not in (0, 1, 2):
            return f"exit status {self.status}"
        if self.status == 2 and not (self.lines and self.lines[-1].startswith("error: ")):
            return "refused without a line that says why"
        if any(len(line) > LONGEST for line in self.lines):
            return f"a line of {max(map(len, self.lines))} characters"
        if self.seconds > MOST_SECONDS:
            return f"took {self.seconds:.1f} s"
        if self.memory > MOST_MEMORY:
            return f"took {self.memory / 1e6:.0f} MB"
        return ""


@dataclass(frozen=True)
class Cases:
    """A kind of input. sound: calls with sound input, all of which must be read. broken: calls with the case of a seed.

    note: what the case of a seed is, for whoever looks for the defect.
    """

    sound: Callable[[], Iterator[Answer]]
    broken: Callable[[int], Iterator[Answer]]
    note: Callable[[int], str] = str


def command(arguments: list[str]) -> Answer:
    """Run a `merger` command in this process."""
    from merger.app.cli import main

    return measured(lambda: main(arguments))


def refusal(work: Callable[[], Any]) -> Answer:
    """Call something that raises InputError for bad input. Lack of memory is put in words as the commands do it."""

    def status() -> int:
        try:
            with memory_said():
                work()
        except InputError as error:
            for line in getattr(error, "lines", None) or (str(error),):
                print(f"error: {line}", file=sys.stderr)
            return 2
        return 0

    return measured(status)


def measured(work: Callable[[], int]) -> Answer:
    """Call something that returns an exit status, or raises SystemExit."""
    out, err, caught, status = io.StringIO(), io.StringIO(), "", 1
    _forget_peak()
    before, began = _memory("VmRSS"), time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _hangs_end():
        try:
            status = work()
        except SystemExit as error:
            status = int(error.code or 0)
        except (Exception, Hang):  # noqa: BLE001  whatever gets out is what is looked for
            caught = traceback.format_exc()
    seconds = time.process_time() - began
    return Answer(
        status, tuple(err.getvalue().strip().splitlines()), seconds, max(0, _memory("VmHWM") - before), caught
    )


def run(cases: Cases, first: int, count: int) -> dict[str, Any]:
    """Try the cases of `count` seeds and print what is no answer. Returns the figures.

    Sound input comes first, and a few broken cases are tried twice: what a first call imports is not the case's.
    """
    for answer in cases.sound():
        assert answer.status == 0, f"sound input is refused: {answer.lines} {answer.traceback}"
    for seed in range(first, first + min(count, 20)):
        list(cases.broken(seed))
    statuses: Counter[int] = Counter()
    failed, tracebacks, slowest, largest = 0, 0, 0.0, 0
    for seed in range(first, first + count):
        for call, answer in enumerate(cases.broken(seed)):
            statuses[answer.status] += 1
            tracebacks += bool(answer.traceback)
            slowest, largest = max(slowest, answer.seconds), max(largest, answer.memory)
            if answer.problem:
                failed += 1
                print(f"seed {seed}, call {call}: {answer.problem} | {cases.note(seed)[:300]}", flush=True)
                if answer.traceback:
                    print("   ", " < ".join(_frames(answer.traceback)), flush=True)
    return {
        "files": count,
        "calls": statuses.total(),
        "refused": statuses[1] + statuses[2] - tracebacks,
        "read": statuses[0],
        "tracebacks": tracebacks,
        "failed": failed,
        "slowest_cpu_s": round(slowest, 2),
        "most_mb": round(largest / 1e6),
    }


@contextlib.contextmanager
def _hangs_end() -> Iterator[None]:
    """Ends a call after `HANGS` seconds of CPU. Signals reach the main thread only; elsewhere nothing is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Hang(f"no answer after {HANGS} s of CPU")

    earlier = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, HANGS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, earlier)


def _forget_peak() -> None:
    """Lets the kernel count the peak of this process's memory anew; the peak of its whole life hides later ones."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _memory(name: str) -> int:
    """Bytes: `VmRSS`, the memory in use, or `VmHWM`, its peak. Without Linux's /proc, the peak of the whole life."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _frames(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("File ")]
    return [line.split("/")[-1].replace('", line ', ":").replace(", in ", " ") for line in reversed(lines)][:4]
