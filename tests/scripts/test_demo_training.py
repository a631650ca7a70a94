"""A training that was broken off goes on as if it had not been."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scripts.demo_training import area_of, step_generator, train


class Broken(Exception):
    """What stops a training here."""


def trained(file: Path, *, broken_at: int | None = None) -> Tensor:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def loss_of(step: int) -> Tensor:
        if step == broken_at:
            raise Broken
        inputs = torch.randn(4, 3, generator=step_generator(5, step))
        return (model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()

    train(file, model, loss_of, steps=600, rate=1e-2)
    return model.weight.detach().clone()


def test_it_goes_on_from_its_last_saved_step(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole.pt")
    with pytest.raises(Broken):
        trained(tmp_path / "halves.pt", broken_at=550)
    assert not (tmp_path / "halves.pt").exists()
    assert torch.equal(trained(tmp_path / "halves.pt"), whole)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["halves.pt", "whole.pt"]


def test_what_is_trained_is_not_trained_again(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole.pt")
    assert torch.equal(trained(tmp_path / "whole.pt", broken_at=0), whole)


def test_an_area_counts_more_and_the_mean_stays() -> None:
    area = area_of(4, (slice(0, 2), slice(0, 2)), 3.0)
    assert area.mean() == pytest.approx(1.0)
    assert area[0, 0] == pytest.approx(3 * float(area[3, 3]))
