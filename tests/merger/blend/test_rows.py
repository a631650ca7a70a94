"""Weights by row: every row is bit for bit that of a whole tensor blended with its weight."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from merger.blend.arithmetic import blend, blend_into
from merger.blend.differences import Difference
from merger.weights import Channels, Weight

ROWS, COLUMNS = 13, 7
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
WARM = Channels([0.0, 1.0, 0.3, -0.2, 1.0, 0.0, 2.0, 0.1, 0.0, 1.0, 0.7, -0.0, 1 / 3])
COOL = Channels([0.0, 0.0, 0.5, 0.0, 1.0, 1.0, -1.0, 0.2, 0.4, -0.0, 0.0, 0.0, 1e-30])


def drawn(seed: int, dtype: torch.dtype) -> Tensor:
    """[ROWS * COLUMNS], with values that simple arithmetic would not leave as they are."""
    values = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values[:, seed] = -0.0
    if dtype.itemsize > 1:
        values[::2, 3 + seed % 3] = float("inf")
    return values.reshape(-1).to(dtype)


def row(tensor: Tensor, number: int) -> list[int]:
    return tensor.view(ROWS, -1).contiguous().view(torch.uint8)[number].tolist()


def of_row(weight: Weight, number: int) -> float:
    return float(weight.values[number]) if isinstance(weight, Channels) else weight


@pytest.mark.parametrize(("dtype", "donor_dtype"), list(itertools.product(DTYPES, DTYPES)))
@pytest.mark.parametrize("weights", [[WARM, COOL], [WARM, 0.3], [WARM, 0.0], [1.0, COOL], [WARM, 1e-60]])
def test_a_row_is_that_of_the_tensor_blended_with_its_weight(
    dtype: torch.dtype, donor_dtype: torch.dtype, weights: list[Weight]
) -> None:
    base = drawn(0, dtype)
    donors = [Difference(drawn(seed, donor_dtype)) for seed in (1, 2)]
    for clamp in (False, True):
        found = blend(base, donors, weights, clamp=clamp)
        for number in range(ROWS):
            alike = blend(base, donors, [of_row(weight, number) for weight in weights], clamp=clamp)
            assert row(found, number) == row(alike, number), (number, clamp)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", [0.0, 1.0, 0.3, -1.7])
def test_equal_weights_by_row_are_one_weight(dtype: torch.dtype, weight: float) -> None:
    base, donors = drawn(0, dtype), [Difference(drawn(seed, dtype)) for seed in (1, 2)]
    uniform = Channels(np.full(ROWS, weight))
    for second in (0.0, 0.25):
        found, alike = blend(base, donors, [uniform, second]), blend(base, donors, [weight, second])
        assert torch.equal(found.view(torch.uint8), alike.view(torch.uint8))


@pytest.mark.parametrize("chunk", [1, 7, 15, 21, 1000])
@pytest.mark.parametrize("live", [torch.float32, torch.float16, torch.bfloat16])
def test_chunks_change_no_bit_and_results_are_rounded_through_the_stored_type(chunk: int, live: torch.dtype) -> None:
    # no infinities: how a NaN is written is the processor's affair, and depends on the length of a chunk
    base, *others = (drawn(seed, torch.float16).nan_to_num(3.0, 3.0, 3.0) for seed in range(3))
    donors = [Difference(other) for other in others]
    out = torch.empty(ROWS * COLUMNS, dtype=live)
    blend_into(out, base, donors, [WARM, COOL], stored=torch.float16, chunk=chunk)
    assert torch.equal(out.view(torch.uint8), blend(base, donors, [WARM, COOL]).to(live).view(torch.uint8))


def test_rows_must_fit_the_tensor() -> None:
    base = torch.zeros(10)
    for weights in ([Channels([1.0, 2.0, 3.0])], [Channels([0.5] * 5), Channels([0.5] * 2)]):
        with pytest.raises(ValueError, match="do not fit"):
            blend(base, [Difference(base)] * len(weights), weights)
    with pytest.raises(ValueError, match="finite"):
        blend(base, [Difference(base)], [Channels([float("nan"), 1.0])])
    assert blend(torch.zeros(0), [Difference(torch.zeros(0))], [Channels([0.5])]).shape == (0,)
