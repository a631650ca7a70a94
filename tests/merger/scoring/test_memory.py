from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from merger.scoring.gradients.memory import Kept, StepMemory, TooMuch, size


def test_what_autograd_keeps_is_counted_once_and_weights_not_at_all() -> None:
    module = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Sigmoid(), nn.Linear(8, 2, bias=False), nn.Sigmoid())
    images = torch.ones(5, 6)
    with Kept(module.parameters()) as kept:
        module(images)
    # the input of each linear layer and the output of each sigmoid; the first sigmoid's is the second layer's input
    assert kept.bytes.total() == 4 * 5 * (6 + 8 + 2)
    weights = sum(parameter.nbytes for parameter in module.parameters())
    with Kept() as kept:
        module(images)
    assert kept.bytes.total() in (4 * 80 + 4 * 16, 4 * 80 + weights), "the first weight's is not needed"
    with Kept() as kept, torch.no_grad():
        module(images)
    assert kept.bytes.total() == 0


def test_what_is_let_go_makes_room_for_what_comes() -> None:
    images = torch.ones(100, requires_grad=True)
    with Kept(most=800) as kept:
        kept.part = "first"
        images.exp()
        kept.drop("first")
        kept.part = "second"
        images.exp()
    assert kept.bytes == {"first": 400, "second": 400}
    with pytest.raises(TooMuch), Kept(most=799) as kept:
        images.exp()
        images.exp()


def test_the_larger_of_step_and_decoder_counts_and_is_said() -> None:
    parts = {"text": 10_000_000, "decoder": 90_000_000, "tagger": 5_000_000}
    memory = StepMemory(2_000_000_000, 500_000_000, **parts, step=70_000_000, images=8, decoded=4)
    assert memory.kept(1) == 105_000_000
    assert memory.kept(8) == 80_000_000 + 8 * 70_000_000, "four of the eight are decoded at once"
    assert memory.least == 605_000_000
    assert memory.total == 3_140_000_000
    assert str(memory) == (
        "memory of a step, estimated: 3.1 GB = blend, base and donors 2.0 GB + gradients 500 MB "
        "+ 640 MB kept of 8 images at once"
    )
    kept = replace(memory, steps_kept=4)
    assert kept.kept(8) == 80_000_000 + 4 * 8 * 70_000_000 + 4 * 90_000_000 + 8 * 5_000_000, "steps and decoder at once"
    assert size(12_345_678) == "12 MB"
