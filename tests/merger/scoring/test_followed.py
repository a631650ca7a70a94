"""Memory followed from operation to operation, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from merger.scoring.gradients.followed import Followed, TooMuch

CPU = torch.device("cpu")


def test_what_is_freed_makes_room_for_what_comes() -> None:
    values = torch.ones(100)
    with Followed(CPU, most=800) as followed:
        followed.part = "first"
        for _ in range(5):
            other = values.exp()
            assert followed.now == 400
            del other
            assert followed.now == 0
        followed.part = "second"
        one = values.exp()
        other = one.exp()
        assert followed.now == 800
        other.view(10, 10).add_(1)  # a view and a change in place take nothing
        with pytest.raises(TooMuch) as caught:
            values[:1].exp()
    assert caught.value.part == "second"
    assert dict(followed.peaks) == {"first": 400, "second": 804}


def test_what_was_there_before_is_not_counted() -> None:
    values, out = torch.ones(100), torch.empty(100)
    with Followed(CPU) as followed:
        values[3:].view(97)
        values.mul_(2)
        torch.exp(values, out=out)
        assert followed.now == 0
    del values
    assert followed.now == 0


def test_a_backward_pass_is_followed_too() -> None:
    """N layers keep N activations. With each computed again, one layer's and the inputs of all are there at once."""
    layers = nn.ModuleList(nn.Sequential(*(nn.Sigmoid() for _ in range(10))) for _ in range(5))
    values = torch.ones(1000, requires_grad=True)

    def peak(*, again: bool) -> int:
        with Followed(CPU) as followed:
            there = values
            for layer in layers:
                there = checkpoint(layer, there, use_reentrant=False) if again else layer(there)
            there.sum().backward()
            values.grad = None
            del there
            assert followed.now == 0
        return followed.peaks.total() // 4000

    assert 50 <= peak(again=False) <= 53
    assert 14 <= peak(again=True) <= 18


def test_another_devices_memory_is_not_counted() -> None:
    with Followed(torch.device("meta")) as followed:
        kept = torch.ones(100)
        assert followed.now == 0
        there = torch.ones(50, device="meta")
        assert followed.now == 200
    del kept, there
