"""Everything that only a GPU can show, in one command: correctness, memory and speed.

    scripts/check_gpu                           makes the environment first; at most 15 minutes
    scripts/check_gpu --quick                   smaller measurements, at most 4 minutes
    scripts/check_gpu --only step-sd1 --json    one check; figures as JSON on the standard output
    python -m scripts.check_gpu --device cpu --tiny        whether it runs at all, without a GPU

Models are made in memory with random weights; nothing is downloaded. Lines of progress go to the standard error, a
Markdown table to the standard output. A check that no longer fits into the time is skipped, and the table says so.
Exit status: 0 if none failed, 1 if one did, 2 if there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmark.errors import first_line
from merger.version import __version__
from scripts.gpu_checks import blending, copies, full_size, gradients
from scripts.gpu_checks.check import Bench, Check, Row, run

MINUTES, QUICK_MINUTES = 15.0, 4.0


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _limits() -> str:
    return "; ".join(
        f"{name} {cosine:g}, {error:g}, {layers:g}" for name, (cosine, error, layers) in gradients.LIMITS.items()
    )


def _step_limit() -> str:
    trials = ", ".join(f"{full_size.SLOWER * cost:g} ({way})" for way, cost in full_size.COSTS.items())
    near = _percent(full_size.NEAR_PLAN)
    return (
        f"memory within {near} of the plan, no batch halved; at most as many plain trials of as many images: {trials}"
    )


CHECKS = (
    Check(
        "blend-bits",
        "elements of a blend, and checksums of live denoisers, that differ from the CPU's: by dtype, per layer and per "
        "channel",
        "0",
        blending.blend_bits,
        (60, 60),
    ),
    Check(
        "gradient-types",
        "gradient of the demo family beside the GPU's float32: cosine, relative error, cosine of 95 % of the layers",
        f"at least, at most, at least: {_limits()}",
        gradients.gradient_types,
        (120, 70),
    ),
    Check(
        "savings",
        "relative difference of the gradient in float32 with each way to save memory",
        f"at most {gradients.SAME:g}",
        gradients.savings,
        (30, 30),
    ),
    Check(
        "out-of-memory",
        "a gradient step with less memory than its batch wants",
        f"halved for good, gradient within {gradients.SAME:g}",
        gradients.out_of_memory,
        (40, 40),
    ),
    Check(
        "pinned-copy",
        "copies from pinned memory to the GPU beside plain ones, and behind computation",
        f"at least {copies.AT_LEAST:g} times as fast, at least {_percent(copies.HIDDEN)} hidden",
        copies.pinned_copy,
        (20, 15),
    ),
    Check(
        "blend-speed",
        "a blend of two donors in fp16 beside a copy of as many bytes on the device",
        f"at least {blending.SPEED_LIMIT:g} of the copy's speed",
        blending.blend_speed,
        (20, 15),
    ),
    Check(
        "images",
        "images per second of full-size SD 1.5 beside a loop of plain diffusers",
        f"at least {full_size.AS_FAST:g} times as many",
        full_size.images,
        (150, 60),
    ),
    Check(
        "step-sd1",
        "a gradient step of full-size SD 1.5 at 512 x 512: memory, seconds",
        _step_limit(),
        full_size.step_sd1,
        (150, 60),
    ),
    Check(
        "step-sdxl",
        "a gradient step of full-size SDXL at 1024 x 1024: memory, seconds",
        _step_limit(),
        full_size.step_sdxl,
        (240, 90),
    ),
)


def machine(device: torch.device) -> dict[str, str]:
    """What the figures were measured on."""
    said = {"device": "CPU", "torch": torch.__version__, "python": platform.python_version()}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        said |= {
            "device": f"{card.name}, {card.total_memory / 1e9:.1f} GB, compute capability {card.major}.{card.minor}",
            "driver": _driver(),
            "cuda": str(torch.version.cuda or torch.version.hip),
        }
    return {**said, "layermerge": __version__}


def _driver() -> str:
    """The driver's version as `nvidia-smi` says it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    return said[0] if said else "unknown"


def table(rows: Sequence[Row], made_on: dict[str, str]) -> str:
    """The rows as Markdown, under what they were measured on."""
    lines = [", ".join(f"{name} {value}" if name != "device" else value for name, value in made_on.items()), ""]
    lines += ["| check | what | limit | result | measured | seconds |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        found = "; ".join(filter(None, (row.measured, row.reason)))
        cells = (row.name, row.measures, row.limit, row.result, found, f"{row.seconds:.0f}")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _refusal(device: str, *, tiny: bool) -> str:
    """Why the checks cannot be made on this device, in one line; empty if they can."""
    if device.startswith("cpu"):
        return "" if tiny else "--device cpu: on a CPU, checks run with --tiny only. Add it."
    if not torch.cuda.is_available():
        found = "torch.cuda.is_available() is False"
        if torch.version.cuda is None and torch.version.hip is None:
            found = f"torch {torch.__version__} is built for CPUs"
        return (
            f"no GPU is found here ({found}). Run it where there is one, or, to see whether it runs at all, with "
            "--device cpu --tiny."
        )
    if not device.startswith("cuda"):
        return f"--device {device}: checks run on cuda, cuda:1 ..., or on cpu with --tiny."
    try:
        torch.zeros(1, device=device)
    except RuntimeError as error:
        return f"--device {device}: cannot be used here ({first_line(error)})."
    return ""


@contextmanager
def _threads(device: torch.device) -> Iterator[None]:
    """One thread on a CPU: tiny networks gain nothing from more, which wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if device.type == "cpu" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: give a number of minutes above 0")
    return minutes


def main(argv: list[str] | None = None) -> int:
    """Parse, check, print the table or the JSON."""
    parser = argparse.ArgumentParser(
        prog="check_gpu",
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [check.name for check in CHECKS]
    parser.add_argument("--only", choices=names, nargs="+", metavar="NAME", help=f"some of them: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="smaller measurements")
    parser.add_argument(
        "--minutes", type=_minutes, help=f"the time for all (default: {MINUTES:g}; {QUICK_MINUTES:g} if quick)"
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 ..., or cpu with --tiny")
    parser.add_argument("--tiny", action="store_true", help="networks of a few channels; nothing is said about speed")
    parser.add_argument("--json", action="store_true", help="print JSON; the table then goes to the standard error")
    given = parser.parse_args(argv)
    if refusal := _refusal(given.device, tiny=given.tiny):
        print(f"error: {refusal}", file=sys.stderr)
        return 2
    device = torch.device(given.device)
    minutes = given.minutes or (QUICK_MINUTES if given.quick else MINUTES)
    chosen = [check for check in CHECKS if not given.only or check.name in given.only]
    with tempfile.TemporaryDirectory(prefix="check-gpu-") as folder, _threads(device):
        bench = Bench(device, given.tiny, given.quick, Path(folder), time.monotonic() + 60 * minutes, _say)
        rows = run(chosen, bench)
    made_on = machine(device)
    print(table(rows, made_on), file=sys.stderr if given.json else sys.stdout)
    if given.json:
        print(json.dumps(as_json(rows, made_on), indent=1))
    return int(any(row.result == "FAIL" for row in rows))


def as_json(rows: Sequence[Row], made_on: dict[str, str]) -> dict[str, Any]:
    """All figures as plain values."""
    return {
        "ok": all(row.result != "FAIL" for row in rows),
        "made_on": made_on,
        "rows": [row.as_json() for row in rows],
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
