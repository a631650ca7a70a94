"""What a donor adds: one definition, written where it is wanted, and whatever kind it is, blended as it says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from merger.blend.arithmetic import blend
from merger.blend.differences import Difference

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def drawn(seed: int, dtype: torch.dtype = torch.float32, count: int = 1001) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("here", [slice(None), slice(17, 500)])
def test_it_is_the_donor_less_the_base_rounded_once(dtype: torch.dtype, here: slice) -> None:
    base, donor = drawn(0), drawn(1, dtype)
    out = torch.empty_like(base[here])
    assert Difference(donor).write(out, base[here], here) is out
    assert np.array_equal(out.numpy(), donor.float().numpy()[here] - base.numpy()[here])
    assert torch.equal(donor, drawn(1, dtype)), "the donor itself is not written to"


def test_it_is_computed_in_the_dtype_that_is_asked_for() -> None:
    base, donor = drawn(0).double(), drawn(1, torch.float16)
    out = Difference(donor).write(torch.empty_like(base), base)
    assert torch.equal(out, donor.double() - base)


@dataclass(frozen=True)
class Halved(Difference):
    """Another way to prepare a donor."""

    def write(self, out: Tensor, base: Tensor, here: slice = slice(None)) -> Tensor:
        return super().write(out, base, here).mul_(0.5)


def test_a_difference_of_another_kind_is_blended_as_it_says() -> None:
    base, donor = drawn(0), drawn(1)
    assert torch.equal(blend(base, [Halved(donor)], [0.5], chunk=100), blend(base, [Difference(donor)], [0.25]))
