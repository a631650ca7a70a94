"""Copies from the machine's memory to the GPU: from pinned memory, and while the GPU computes."""

from __future__ import annotations

import torch

from scripts.gpu_checks.check import Bench, Finding, Skipped, judged
from scripts.measure_blend import seconds

AT_LEAST = 0.95
"""Of a plain copy's speed: a pinned copy must not be slower, but for noise."""
HIDDEN = 0.5
"""The least share of the shorter of copy and computation that is hidden behind the other."""


def pinned_copy(bench: Bench) -> Finding:
    """GB/s of pinned and plain copies, and how much of a pinned copy is hidden behind products of matrices."""
    if not bench.cuda:
        raise Skipped("memory is pinned for a GPU's sake only")
    count = 1 << (20 if bench.tiny else 28 if bench.quick else 29)  # bytes
    plain = torch.ones(count, dtype=torch.uint8)
    pinned = plain.pin_memory()
    there = torch.empty(count, dtype=torch.uint8, device=bench.device)

    def rate(host: torch.Tensor) -> float:
        return count / seconds(lambda: there.copy_(host, non_blocking=True), bench.device, 5) / 1e9

    rates = {"pinned": rate(pinned), "plain": rate(plain)}
    hidden = _hidden(bench, pinned, there)
    right = bool((there == 1).all())
    ok, why = judged(bench, right and rates["pinned"] >= AT_LEAST * rates["plain"] and hidden >= HIDDEN)
    measured = (
        f"pinned {rates['pinned']:.1f} GB/s, plain {rates['plain']:.1f} GB/s: "
        f"{rates['pinned'] / rates['plain']:.2f} times; {hidden:.0%} hidden behind computation"
        + ("" if right else "; the bytes are wrong")
    )
    return Finding(measured, ok if right else False, {**rates, "hidden": hidden}, why)


def _hidden(bench: Bench, host: torch.Tensor, there: torch.Tensor) -> float:
    """(copy + computation - both at once) / the shorter of them: 1 if they do not hinder one another."""
    side = 256 if bench.tiny else 4096
    matrix = torch.full((side, side), 1 / side, dtype=torch.float16, device=bench.device)
    result = torch.empty_like(matrix)
    stream = torch.cuda.Stream(bench.device)

    def compute(times: int) -> None:
        for _ in range(times):
            torch.mm(matrix, matrix, out=result)

    def copy() -> None:
        with torch.cuda.stream(stream):
            there.copy_(host, non_blocking=True)

    copied = seconds(copy, bench.device, 3)
    once = seconds(lambda: compute(10), bench.device, 3) / 10
    times = max(1, round(copied / once))  # about as long as the copy
    computed = seconds(lambda: compute(times), bench.device, 3)

    def both() -> None:
        copy()
        compute(times)

    together = seconds(both, bench.device, 3)
    return min(max((copied + computed - together) / min(copied, computed), 0.0), 1.0)
