"""How fast a live denoiser changes its blend, beside the limit: a plain copy of the same bytes.

    python scripts/measure_blend.py                      sizes of a quarter of Stable Diffusion 1.x, 1, 4 and 8 donors
    python scripts/measure_blend.py --parameters 860e6   its full size (needs (donors + 2) x 1.7 GB in fp16)

The last line is JSON. `ratio` is the time a plain copy of as many bytes takes, divided by the blend's own: 1 is as fast
as memory allows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark.pipelines.loading import dtypes
from merger.blend.arithmetic import blend_into
from merger.blend.differences import Difference
from merger.blend.live import checksum_of

DTYPES = dtypes()


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The shortest of some repeats, after one that is thrown away."""
    taken = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - begun)
    return min(taken[1:])


def measure(
    parameters: int, donors: int, dtype: torch.dtype, live: torch.dtype, device: torch.device
) -> dict[str, object]:
    """Time one blend of `parameters` elements in one layer, its checksum, and a copy of the same bytes."""
    parameters -= parameters % 4096
    draw = torch.Generator(device=device).manual_seed(0)
    flat = [torch.empty(parameters, dtype=dtype, device=device).normal_(generator=draw) for _ in range(donors + 1)]
    out = torch.zeros(parameters, dtype=live, device=device)
    weights = [(i + 1) / (2 * donors) for i in range(donors)]
    moved = sum(tensor.nbytes for tensor in flat) + out.nbytes
    differences = [Difference(donor) for donor in flat[1:]]
    blended = seconds(lambda: blend_into(out, flat[0], differences, weights, stored=dtype), device, 3)
    summed = seconds(lambda: checksum_of({"all": out}), device, 3)
    target = torch.empty_like(flat[0])
    copied = seconds(lambda: target.copy_(flat[0]), device, 3)
    copy_rate = 2 * target.nbytes / copied
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "parameters": parameters,
        "donors": donors,
        "dtype": str(dtype).removeprefix("torch."),
        "live": str(live).removeprefix("torch."),
        "blend_seconds": round(blended, 4),
        "blend_gb_per_second": round(moved / blended / 1e9, 2),
        "checksum_seconds": round(summed, 4),
        "copy_gb_per_second": round(copy_rate / 1e9, 2),
        "ratio": round(moved / copy_rate / blended, 3),
    }


def main() -> int:
    """Parse, measure, print a line per number of donors and the JSON."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parameters", type=float, default=215e6, help="elements of the denoiser (default: 215e6)")
    parser.add_argument("--donors", type=int, nargs="+", default=[1, 4, 8], metavar="N")
    parser.add_argument("--dtype", choices=DTYPES, default="fp16", help="of the files")
    parser.add_argument(
        "--live", choices=DTYPES, default=None, help="of the module (default: fp32 on a CPU, else --dtype)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    live = given.live or ("fp32" if device.type == "cpu" else given.dtype)
    rows = []
    for donors in given.donors:
        row = measure(int(given.parameters), donors, DTYPES[given.dtype], DTYPES[live], device)
        rows.append(row)
        print(
            f"{donors} donors: blend {row['blend_seconds']} s = {row['blend_gb_per_second']} GB/s, checksum "
            f"{row['checksum_seconds']} s, copy {row['copy_gb_per_second']} GB/s, ratio {row['ratio']}",
            file=sys.stderr,
        )
    print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
