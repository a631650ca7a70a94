"""The mathematics: against plain numpy float32, bit for bit, and against float64 for what it means."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from merger.blend import arithmetic
from merger.blend.arithmetic import blend_into
from merger.blend.differences import Difference

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def drawn(count: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).to(dtype)


def blend(base: Tensor, donors: list[Tensor], weights: list[float], **how: Any) -> Tensor:
    return arithmetic.blend(base, [Difference(donor) for donor in donors], weights, **how)


def bits(tensor: Tensor) -> list[int]:
    return tensor.contiguous().view(torch.uint8).tolist()


def reference(base: Tensor, donors: list[Tensor], weights: list[float]) -> Tensor:
    """One numpy float32 operation after the other: numpy never fuses a multiplication with an addition."""
    origin = base.float().numpy()
    total = origin.copy()
    for donor, weight in zip(donors, weights, strict=True):
        if weight != 0:
            total = total + (donor.float().numpy() - origin) * np.float32(weight)
    return torch.from_numpy(total).to(base.dtype)


@pytest.mark.parametrize(("dtype", "donor_dtype"), list(itertools.product(DTYPES, DTYPES)))
def test_it_is_the_reference_bit_for_bit(dtype: torch.dtype, donor_dtype: torch.dtype) -> None:
    base = drawn(1001, dtype)
    donors = [drawn(1001, donor_dtype, seed) for seed in (1, 2, 3)]
    weights = [0.3, -0.2, 1.7]
    assert bits(blend(base, donors, weights)) == bits(reference(base, donors, weights))


def test_it_means_what_it_says() -> None:
    base, *donors = (drawn(5000, seed=seed) for seed in range(5))
    weights = [0.1, 0.9, -0.4, 0.25]
    exact = (1 - sum(weights)) * base.double() + sum(w * d.double() for w, d in zip(weights, donors, strict=True))
    torch.testing.assert_close(blend(base, donors, weights).double(), exact, rtol=0, atol=3e-6)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000, 1001, 5000])
def test_chunks_do_not_change_a_bit(chunk: int) -> None:
    base, *donors = (drawn(1001, torch.float16, seed) for seed in range(4))
    weights = [1 / 3, 0.123456789, -0.7]
    assert bits(blend(base, donors, weights, chunk=chunk)) == bits(blend(base, donors, weights))


def test_pieces_are_the_whole() -> None:
    """As export works tensor by tensor and the live denoiser layer by layer."""
    base, *donors = (drawn(1001, torch.float16, seed) for seed in range(4))
    weights = [0.3, 0.3, 0.3]
    cuts = [0, 1, 17, 500, 1001]
    pieces = [blend(base[a:b], [d[a:b] for d in donors], weights) for a, b in itertools.pairwise(cuts)]
    assert bits(torch.cat(pieces)) == bits(blend(base, donors, weights))


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_weight_is_the_base_and_one_weight_of_one_is_the_donor(dtype: torch.dtype) -> None:
    awkward = torch.tensor([-0.0, 0.0, float("inf"), float("nan"), 1e-7, 6e4], dtype=dtype)
    base, warm, cool = (torch.cat([awkward.roll(seed), drawn(99, dtype, seed)]) for seed in range(3))
    assert bits(blend(base, [warm, cool], [0.0, -0.0])) == bits(base)
    assert bits(blend(base, [warm, cool], [1.0, 0.0])) == bits(warm)
    assert bits(blend(base, [warm, cool], [0.0, 1.0])) == bits(cool)
    assert bits(blend(base, [], [])) == bits(base)


def test_a_weight_is_the_float32_it_rounds_to() -> None:
    base, donor = drawn(500), drawn(500, seed=1)
    assert bits(blend(base, [donor], [1 + 1e-12])) == bits(donor)
    assert bits(blend(base, [donor], [0.1])) == bits(blend(base, [donor], [float(np.float32(0.1))]))


def test_where_donors_agree_with_the_base_nothing_moves() -> None:
    base = drawn(500)
    assert bits(blend(base, [base.clone(), base.clone()], [0.37, -1.9])) == bits(base)


def test_a_donor_without_weight_is_not_looked_at() -> None:
    base, donor = drawn(10), drawn(10, seed=1)
    ill = torch.full((10,), float("nan"))
    assert bits(blend(base, [ill, donor], [0.0, 0.5])) == bits(blend(base, [donor], [0.5]))


def test_it_rounds_through_the_stored_type() -> None:
    base, donor = drawn(300, torch.float16), drawn(300, torch.float16, 1)
    for weight in (0.0, 0.3, 1.0):
        live = torch.empty(300)
        blend_into(live, base, [Difference(donor)], [weight], stored=torch.float16)
        assert bits(live) == bits(blend(base, [donor], [weight]).float())
    fine = torch.empty(300)
    blend_into(fine, base, [Difference(donor)], [0.3])
    assert not torch.equal(fine, fine.half().float())


def test_it_gives_the_dtype_asked_for() -> None:
    base, donor = drawn(30, torch.float16), drawn(30, torch.float16, 1)
    assert blend(base, [donor], [0.5]).dtype == torch.float16
    assert blend(base, [donor], [0.5], dtype=torch.bfloat16).dtype == torch.bfloat16


def test_an_empty_tensor_stays_empty() -> None:
    assert blend(torch.zeros(0), [torch.zeros(0)], [0.5]).shape == (0,)


def test_it_refuses_what_has_no_meaning() -> None:
    base = drawn(4)
    with pytest.raises(ValueError, match="1 donors but 2 weights"):
        blend(base, [base], [0.1, 0.2])
    with pytest.raises(ValueError, match="one length"):
        blend(base, [drawn(5)], [0.1])
    with pytest.raises(ValueError, match="one length"):
        blend(drawn(4).reshape(2, 2), [], [])
    with pytest.raises(ValueError, match="finite"):
        blend(base, [base], [float("nan")])
