from __future__ import annotations

import torch
from torch import nn

from merger.memory import StepMemory, kept_bytes, size


def test_what_autograd_keeps_is_counted_once_and_weights_not_at_all() -> None:
    module = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Sigmoid(), nn.Linear(8, 2, bias=False), nn.Sigmoid())
    images = torch.ones(5, 6)
    # the input of each linear layer and the output of each sigmoid; the first sigmoid's is the second layer's input
    assert kept_bytes(lambda: module(images), module.parameters()) == 4 * 5 * (6 + 8 + 2)
    weights = sum(parameter.nbytes for parameter in module.parameters())
    assert kept_bytes(lambda: module(images)) in (4 * 80 + 4 * 16, 4 * 80 + weights), "the first weight's is not needed"
    with torch.no_grad():
        assert kept_bytes(lambda: module(images)) == 0


def test_the_parts_add_up_and_are_said() -> None:
    memory = StepMemory(2_000_000_000, 500_000_000, 100_000_000, 8)
    assert memory.total == 3_300_000_000
    assert str(memory) == (
        "memory of a step, estimated: 3.3 GB = blend, base and donors 2.0 GB + gradients 500 MB "
        "+ 8 images at once x 100 MB"
    )
    assert size(12_345_678) == "12 MB"
