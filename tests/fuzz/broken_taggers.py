"""Folders of taggers with one broken file, and what opening and asking them comes to."""

from __future__ import annotations

import random
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmark.errors import InputError
from benchmark.taggers.registry import open_tagger
from tests.fuzz.broken_json import broken

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


class Outcome(NamedTuple):
    """error: its line; '' if the tagger answered. seconds: of CPU. mib: by which the process grew beyond its peak."""

    error: str
    seconds: float
    mib: float


def broken_taggers(source: Path, file: str, kind: str, place: Path, seed: int, count: int) -> Iterator[Outcome]:
    """Open `count` copies of a tagger's folder whose `file` is broken in different ways, and ask each.

    The copies are made in `place`, one after another. What is no InputError goes through, with a note of the case.
    """
    for number in range(count):
        draw = random.Random(f"{seed} {kind} {file} {number}")
        folder = place / f"{kind}-{number}"
        shutil.copytree(source, folder)
        text = (source / file).read_text(encoding="utf-8")
        data = broken_csv(text, draw) if file.endswith(".csv") else broken(text, draw)
        (folder / file).write_bytes(data)
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        error = ""
        try:
            said = open_tagger(folder, kind=kind, threads=1).probabilities(IMAGES)
            assert said.dtype == np.float32 and said.shape[0] == len(IMAGES) and np.isfinite(said).all()
        except InputError as refused:
            error = str(refused)
        except BaseException as failure:
            failure.add_note(f"seed {seed}, {kind}, case {number}: {file} is {data[:600]!r}")
            raise
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        yield Outcome(error, time.process_time() - began, (after - before) / 1024)
        shutil.rmtree(folder)


def broken_csv(text: str, draw: random.Random) -> bytes:
    """The CSV `text` with some fields, lines or bytes changed."""
    lines = text.splitlines()
    for _ in range(draw.randint(1, 2)):
        place = draw.randrange(len(lines))
        fields = lines[place].split(",")
        fields[draw.randrange(len(fields))] = draw.choice(
            ["", "x", "-1", "٣", "9" * 5000, '"', "a,b", "\x00", "1e9", "é"]
        )
        lines[place] = draw.choice([",".join(fields), ",".join(fields), "", lines[place] + "\n" + lines[place]])
    return "\n".join(lines).encode()
