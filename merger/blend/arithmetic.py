"""The mathematics of a blend. Tensors in, tensor out; no names, no files.

    P   parameters of a layer, as one flat vector
    D   donors
    b   base                            [P]
    d_i difference of donor i           [P], donor - base (`merger.blend.differences`)
    w_i weight of donor i; any real number, or one for each of the C rows that P elements make up

    blended = b + w_1 d_1 + ... + w_D d_D

Every step is one float32 operation rounded on its own, in the order of the donors. Multiplication and addition are kept
apart on purpose: fused into one they would round once less, on some devices and some lengths only, and a blend rebuilt
tensor by tensor from disk would not be, bit for bit, the one that was scored in memory. Three exact consequences: if
all weights are 0, the result is the base; if one weight is 1 and the rest are 0, it is that donor; and where the donors
agree with the base nothing changes, whatever the weights. With weights by row, every row is bit for bit what it would
be if the whole tensor had that row's weights.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merger.blend.differences import Difference
from merger.weights import Channels, Weight, is_finite

# Elements blended at a time; not a bit of the result depends on it. On a CPU three float32 vectors of this length stay
# in the caches and the calls' own cost is small beside the work (measured: scripts/measure_blend.py); a GPU wants as
# much in one launch as possible.
CPU_CHUNK = 1 << 16
GPU_CHUNK = 1 << 24


def blend(
    base: Tensor,
    differences: Sequence[Difference],
    weights: Sequence[Weight],
    *,
    dtype: torch.dtype | None = None,
    chunk: int | None = None,
    clamp: bool = False,
) -> Tensor:
    """Blend flat tensors: `base + sum(weight * difference)`.

    base: [P]. differences: D of [P] each. weights: [D], finite; a weight by channel has C numbers, for C rows of P / C
    elements. clamp: whether values beyond the range of the dtype become its largest number instead of infinite. Returns
    a new [P] of `dtype` (the base's own by default) on the base's device. Raises ValueError on lengths that do not
    agree and on weights that are not finite.
    """
    through = dtype or base.dtype
    if not clamp:
        out = torch.empty(base.shape, dtype=through, device=base.device)
        blend_into(out, base, differences, weights, stored=through, chunk=chunk)
        return out
    # held in a type that rounds nothing away, then clamped and rounded once
    inputs = {base.dtype, *(difference.donor.dtype for difference in differences)}
    wide = torch.float64 if torch.float64 in inputs else torch.float32
    unrounded = blend(base, differences, weights, dtype=wide, chunk=chunk)
    return rounded(unrounded, through, clamp=True)


def blend_into(
    out: Tensor,
    base: Tensor,
    differences: Sequence[Difference],
    weights: Sequence[Weight],
    *,
    stored: torch.dtype | None = None,
    chunk: int | None = None,
) -> None:
    """`blend`, written into `out` [P], which keeps its dtype and device.

    stored: dtype the result is rounded to first, so that `out` holds what a file of that dtype would give; None rounds
    to `out`'s own only. `out` must not overlap the inputs.
    """
    if len(differences) != len(weights):
        raise ValueError(f"{len(differences)} donors but {len(weights)} weights")
    shapes = [tuple(tensor.shape) for tensor in (out, base, *(difference.donor for difference in differences))]
    if len(set(shapes)) != 1 or base.dim() != 1:
        raise ValueError(f"a blend takes flat tensors of one length, not {shapes}")
    if not all(is_finite(weight) for weight in weights):
        raise ValueError(f"weights must be finite numbers, not {list(weights)}")
    through = stored or out.dtype
    if any(isinstance(weight, Channels) for weight in weights):
        _blend_rows(out, base, differences, weights, through, chunk or (GPU_CHUNK if out.is_cuda else CPU_CHUNK))
        return
    numbers = [weight for weight in weights if not isinstance(weight, Channels)]
    active = [(each, _as_float32(weight)) for each, weight in zip(differences, numbers, strict=True) if weight != 0]
    if not active or (len(active) == 1 and active[0][1] == 1.0):
        source = active[0][0].donor if active else base
        out.copy_(rounded(source, through))
        return
    step = chunk or (GPU_CHUNK if out.is_cuda else CPU_CHUNK)
    scratch = torch.empty((3, min(step, max(out.numel(), 1))), dtype=torch.float32, device=out.device)
    for start in range(0, out.numel(), step):
        here = slice(start, start + step)
        total, origin, added = scratch[:, : out[here].numel()]
        origin.copy_(base[here])
        so_far = origin
        for difference, weight in active:
            difference.write(added, origin, here).mul_(weight)
            so_far = torch.add(so_far, added, out=total)
        _store(out[here], total, through)


def _blend_rows(
    out: Tensor,
    base: Tensor,
    differences: Sequence[Difference],
    weights: Sequence[Weight],
    through: torch.dtype,
    step: int,
) -> None:
    """`blend_into` for weights by row: the same operations in the same order, on chunks of whole rows.

    A donor of weight 0 in a row leaves that row as it is, and a row that is one source alone is copied, exactly as with
    one weight for all rows. through: the dtype that results are rounded to first. step: elements in a chunk, about.
    """
    counts = {len(weight) for weight in weights if isinstance(weight, Channels)}
    rows = max(counts)
    if len(counts) > 1 or out.numel() % rows:
        raise ValueError(f"weights of {sorted(counts)} rows do not fit a tensor of {out.numel()} elements")
    if not out.numel():
        return
    columns, device = out.numel() // rows, out.device
    active = np.stack([_rows_that_matter(weight, rows) for weight in weights])  # [D, rows]
    numbers = np.stack([_as_rows(weight, rows) for weight in weights])  # [D, rows] float32
    used = [
        (difference, torch.tensor(number, device=device)[:, None], torch.tensor(acts, device=device)[:, None], acts)
        for difference, number, acts in zip(differences, numbers, active, strict=True)
        if acts.any()
    ]
    several = min(max(step // columns, 1), rows)
    scratch = torch.empty((3, several, columns), dtype=torch.float32, device=device)
    for first in range(0, rows, several):
        some = slice(first, min(first + several, rows))
        here = slice(some.start * columns, some.stop * columns)
        total, origin, added = scratch[:, : some.stop - first]
        origin.copy_(base[here].view(-1, columns))
        so_far = origin
        for difference, number, acts, acting in used:
            difference.write(added.view(-1), origin.view(-1), here)
            added.mul_(number[some])
            if acting[some].all():
                so_far = torch.add(so_far, added, out=total)
            else:  # adding 0 would change -0, and 0 times infinity is no number
                so_far = torch.where(acts[some], torch.add(so_far, added, out=added), so_far, out=total)
        _store(out[here], so_far.view(-1), through)
    count = active.sum(axis=0)
    _copy_rows(out.view(rows, columns), base, np.flatnonzero(count == 0), through)
    alone = (count == 1) & (np.where(active, numbers, 0) == 1).any(axis=0)
    for difference, acts in zip(differences, active, strict=True):
        _copy_rows(out.view(rows, columns), difference.donor, np.flatnonzero(alone & acts), through)


def _rows_that_matter(weight: Weight, rows: int) -> NDArray[np.bool_]:
    return np.asarray(weight.values != 0) if isinstance(weight, Channels) else np.full(rows, weight != 0)


def _as_rows(weight: Weight, rows: int) -> NDArray[np.float32]:
    return weight.values if isinstance(weight, Channels) else np.full(rows, weight, dtype=np.float32)


def _copy_rows(out: Tensor, source: Tensor, rows: NDArray[np.intp], through: torch.dtype) -> None:
    """Set these rows of `out` [rows, columns] to those of `source` [P]. As bytes, which can be indexed in any dtype."""
    if not rows.size:
        return
    at = torch.from_numpy(rows)
    chosen = source.reshape(out.shape).view(torch.uint8)[at.to(source.device)].view(source.dtype)
    values = rounded(chosen, through).to(device=out.device, dtype=out.dtype)
    out.view(torch.uint8)[at.to(out.device)] = values.view(torch.uint8)


def _store(out: Tensor, values: Tensor, through: torch.dtype) -> None:
    """Round `values`, float32, to `through` and write them into `out`."""
    if through.itemsize > 1 and through in (torch.float32, out.dtype):
        out.copy_(values)
    else:
        out.copy_(rounded(values, through))


def rounded(values: Tensor, dtype: torch.dtype, *, clamp: bool = False) -> Tensor:
    """`values` as `dtype`.

    Values that overflow an 8-bit float would become NaN, so they become its largest number. clamp: whether they do so
    in wider types as well, where they would become infinite.
    """
    if clamp or (dtype.itemsize == 1 and values.dtype != dtype):
        end = torch.finfo(dtype).max
        wide = values if values.dtype == torch.float64 else values.to(torch.float32)
        return wide.clamp(-end, end).to(dtype)
    return values.to(dtype)


def common_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The narrowest dtype that holds every value of these floating dtypes exactly; float32 at most."""
    known = set(dtypes)
    if len(known) > 1:  # torch does not mix 8-bit floats with others; float16 holds the values of both kinds
        known = {torch.float16 if dtype.itemsize == 1 else dtype for dtype in known}
    widest = functools.reduce(torch.promote_types, known)
    return torch.float32 if widest == torch.float64 else widest


def _as_float32(weight: float) -> float:
    """The nearest float32: what every device computes with."""
    return torch.tensor(weight, dtype=torch.float32).item()
