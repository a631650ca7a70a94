"""Blends on a GPU: the same bits as on the CPU, and how fast beside a copy of as many bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from merger.blend.arithmetic import CPU_CHUNK, GPU_CHUNK, blend_into
from merger.blend.differences import Difference
from merger.layers.channels import widths
from merger.layers.grouping import group
from merger.weights import Channels, Weight, Weights
from scripts.full_size_models import TINY
from scripts.gpu_checks.check import Bench, Finding, judged
from scripts.gpu_checks.models import DONORS, filled, live_of, sources_of
from scripts.measure_blend import seconds

# dtype of the files, dtype of the module
PAIRS = (
    (torch.float32, torch.float32),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float16),
    (torch.float16, torch.float32),
    (torch.float8_e4m3fn, torch.float16),
    (torch.float8_e5m2, torch.bfloat16),
)
SPEED_LIMIT = 0.06
"""The least share of a copy's speed. With two donors in half precision, a copy of as many bytes moves 8 an element. The
arithmetic rounds every operation on its own and passes over float32 scratch memory: it moves 88, so 0.09 at most."""


def blend_bits(bench: Bench) -> Finding:
    """Blends of random values and of whole denoisers, on the device and on the CPU."""
    # odd, so that no kernel's vectors fit; on a GPU more than a chunk
    rows, columns = (37, 129) if bench.tiny else (4099, 8209)
    figures: dict[str, int] = {}
    for stored, live in PAIRS:
        sources = _values(rows * columns, stored)
        for kind, weights in {"layer": _per_layer(), "channel": _per_channel(rows)}.items():
            figures[f"{_short(stored)} as {_short(live)}, by {kind}"] = sum(
                _differing(sources, each, stored, live, bench) for each in weights
            )
    figures |= _checksums(bench)
    wrong = [name for name, count in figures.items() if count]
    total = sum(figures.values())
    measured = f"{total} differ in {len(figures)} comparisons" + (f": {'; '.join(wrong[:3])}" if wrong else "")
    return Finding(measured, not wrong, figures)


def _values(count: int, dtype: torch.dtype) -> list[Tensor]:
    """A base and three donors on the CPU; some values agree, some are 0, -0, very small or large."""
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(count, generator=draw)
    odd = torch.tensor([0.0, -0.0, 1.0, 240.0, -240.0, torch.finfo(dtype).smallest_normal, 1e-7, -6e-8, 1e-40])
    base[: 9 * (count // 9)].view(-1, 9)[::100] = odd
    donors = [base + 0.1 * torch.randn(count, generator=draw) for _ in range(3)]
    for number, donor in enumerate(donors):
        donor[number::7] = base[number::7]
    return [each.to(dtype) for each in (base, *donors)]


def _per_layer() -> list[list[Weight]]:
    return [[0.3, -0.7, 1.4], [0.0, 0.0, 1.0], [1 / 3, 0.0, 1e-6]]


def _per_channel(rows: int) -> list[list[Weight]]:
    draw = np.random.default_rng(0)
    weights = draw.uniform(-1, 2, (3, rows)).astype(np.float32)
    weights[draw.random((3, rows)) < 0.2] = 0
    weights[:, ::11] = 0
    weights[1, ::11] = 1
    return [[Channels(row) for row in weights]]


def _differing(
    sources: Sequence[Tensor], weights: Sequence[Weight], stored: torch.dtype, live: torch.dtype, bench: Bench
) -> int:
    """How many elements of a blend on the device have other bits than on the CPU, computed there in other chunks."""

    def blended(device: torch.device, chunk: int | None) -> Tensor:
        base, *donors = (each.to(device) for each in sources)
        out = torch.zeros(base.shape, dtype=live, device=device)
        blend_into(out, base, [Difference(donor) for donor in donors], weights, stored=stored, chunk=chunk)
        return out.cpu()

    expected = blended(torch.device("cpu"), None if bench.cuda else CPU_CHUNK // 64)
    return int((_bits(blended(bench.device, None)) != _bits(expected)).sum())


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def _checksums(bench: Bench) -> dict[str, int]:
    """Tiny denoisers of both families made live here and there: 1 where the checksums of a blend differ."""
    from diffusers import UNet2DConditionModel

    cpu = torch.device("cpu")
    figures = {}
    for name, family in list(TINY.items())[: 1 if bench.tiny else None]:
        for granularity in ("block", "channel"):
            sums = []
            for device in (cpu, bench.device):
                with torch.device("meta"):
                    module = UNet2DConditionModel(**family.unet)
                unet = filled(module, device, torch.float16)
                sources = sources_of(unet, cpu)  # drawn on the CPU, so that both have the same values
                layers = group(list(sources[0].blended), granularity)
                live = live_of(unet, sources, layers, hold="memory")
                sums.append((live.checksum, live.apply(_weights(unet, layers, granularity))))
            figures[f"checksum of a live {name}, {granularity}"] = int(sums[0] != sums[1])
    return figures


def _weights(module: nn.Module, layers: dict[str, tuple[str, ...]], granularity: str) -> Weights:
    """Other weights in every layer, and in every channel where they are by channel."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    wide = widths(layers, shapes) if granularity == "channel" else {}
    draw = np.random.default_rng(0)

    def weight(layer: str) -> Weight:
        values = draw.uniform(-0.3, 0.7, wide.get(layer, 1))
        return Channels(values) if layer in wide else float(values[0])

    return {layer: {donor: weight(layer) for donor in DONORS} for layer in layers}


def blend_speed(bench: Bench) -> Finding:
    """A blend of two donors in half precision, per layer and per channel, and in several sizes of chunks."""
    rows, columns = (64, 64) if bench.tiny else (65536, 3200)
    count = rows * columns
    flat = [torch.zeros(count, dtype=torch.float16, device=bench.device).normal_() for _ in range(3)]
    out = torch.zeros_like(flat[0])
    differences = [Difference(donor) for donor in flat[1:]]
    moved = sum(tensor.nbytes for tensor in (*flat, out))
    repeats = 3 if bench.quick else 7

    def rate(weights: Sequence[Weight], chunk: int | None = None) -> float:
        def work() -> None:
            blend_into(out, flat[0], differences, weights, stored=torch.float16, chunk=chunk)

        return moved / seconds(work, bench.device, repeats) / 1e9

    copied = 2 * out.nbytes / seconds(lambda: out.copy_(flat[0]), bench.device, repeats) / 1e9
    layer = rate([0.3, -0.7])
    generator = np.random.default_rng(0)
    channel = rate([Channels(generator.uniform(-1, 2, rows)) for _ in differences])
    chunks = {f"chunks of 2^{power}": rate([0.3, -0.7], 1 << power) for power in (18, 20, 22, 24, 26)}
    best = max(chunks, key=lambda name: chunks[name])
    ok, why = judged(bench, min(layer, channel) >= SPEED_LIMIT * copied)
    measured = (
        f"per layer {layer:.0f} GB/s, per channel {channel:.0f} GB/s, copy {copied:.0f} GB/s: ratio "
        f"{layer / copied:.3f} and {channel / copied:.3f} (fastest in {best}: {chunks[best] / copied:.3f}; "
        f"used: 2^{(GPU_CHUNK if bench.cuda else CPU_CHUNK).bit_length() - 1})"
    )
    return Finding(measured, ok, {"layer": layer, "channel": channel, "copy": copied, **chunks}, why)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
