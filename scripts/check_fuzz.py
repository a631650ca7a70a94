"""Broken files by the thousand: none may end in a traceback, take more than 2 s of CPU or more than 200 MB.

    python -m scripts.check_fuzz --full

The tests run the same in small (`tests/fuzz`, 500 of each kind). `--full` tries 10,000 checkpoints and adapters, each
in every way that one is read, 2,000 configurations, 700 recipes and 300 taggers, on files that are made from seeds. It
prints each failure, a table, and at the end a line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.fuzz.answers import run
from tests.fuzz.kinds import KINDS

FULL = {"checkpoints": 10_000, "configurations": 2_000, "recipes": 700, "taggers": 300}
SMALL = 500
COLUMNS = ("files", "calls", "refused", "read", "tracebacks", "failed", "slowest_cpu_s", "most_mb")


def main() -> int:
    """Try the broken files that the arguments ask for. Returns 1 if one was not answered in a line, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--full", action="store_true", help=", ".join(f"{count:,} {kind}" for kind, count in FULL.items())
    )
    parser.add_argument("--kind", choices=[*KINDS], action="append", help="this kind only (may be given again)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first seed")
    parser.add_argument("--count", type=int, metavar="N", help="how many of each kind")
    args = parser.parse_args()
    found = {}
    for kind in args.kind or KINDS:
        count = args.count or (FULL[kind] if args.full else SMALL)
        with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
            found[kind] = run(KINDS[kind](Path(place)), args.first, count)
    print(table(found))
    print(json.dumps({"kinds": found, "first_seed": args.first, "cpus": os.cpu_count()}))
    return int(any(figures["failed"] for figures in found.values()))


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures of each kind as a table in Markdown."""
    lines = [
        " | ".join(("kind", *(name.replace("_", " ") for name in COLUMNS))),
        " | ".join(["---"] * (len(COLUMNS) + 1)),
    ]
    lines += [" | ".join((kind, *(f"{figures[name]:,}" for name in COLUMNS))) for kind, figures in found.items()]
    return "\n".join(f"| {line} |" for line in lines)


if __name__ == "__main__":
    raise SystemExit(main())
