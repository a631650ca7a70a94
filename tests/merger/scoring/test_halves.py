"""Guided pairs one half at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmark.pipelines.lending import lent
from merger.scoring.gradients.halves import in_halves
from merger.scoring.gradients.sampling import Differentiation
from tests.merger.scoring.test_gradients import (
    PROMPTS,
    World,
    as_vector,
    dit64,  # noqa: F401
    tagger64,  # noqa: F401
    unet32,  # noqa: F401
    unet64,  # noqa: F401
)


def test_everything_with_a_row_for_each_half_is_cut() -> None:
    calls: list[Any] = []

    def forward(latents: Any, time: Tensor, *, text: Tensor, more: dict[str, Any], scale: float) -> tuple[Any, Any]:
        calls.append((time.tolist(), text.tolist(), more["ids"].tolist(), scale))
        return (latents, more)

    rows = torch.arange(4.0)
    given = {"text": 10 * rows, "more": {"ids": 100 * rows, "one": torch.ones(1)}, "scale": 2.0}
    whole, more = in_halves(forward, (rows, torch.tensor(7)), given, 2)
    assert calls == [(7, [0, 10], [0, 100], 2.0), (7, [20, 30], [200, 300], 2.0)]
    assert whole.tolist() == rows.tolist()
    assert more["ids"].tolist() == [0, 100, 200, 300]
    calls.clear()
    listed, _ = in_halves(forward, ([*rows], rows), given, 2)
    assert [float(each) for each in listed] == rows.tolist()
    assert [call[0] for call in calls] == [[0, 1], [2, 3]]


def test_what_is_no_guided_pair_is_computed_at_once() -> None:
    rows = torch.arange(4.0)
    for images in (4, 3, 1):
        calls: list[int] = []
        assert in_halves(lambda latents, calls=calls: calls.append(len(latents)), (rows,), {}, images) is None
        assert calls == [4]


@pytest.mark.parametrize("options", [{}, {"streamed": True}, {"recompute": False}, {"chain": 0.5}], ids=str)
@pytest.mark.parametrize("world", ["unet32", "unet64", "dit64"])
def test_gradients_stay_the_same(world: str, options: dict[str, Any], request: pytest.FixtureRequest) -> None:
    tiny: World = request.getfixturevalue(world)
    most: list[int] = []
    forward = tiny.live.module.forward

    def noted(*args: Any, **kwargs: Any) -> Any:
        most.append(len(args[0] if args else kwargs["hidden_states"]))
        return forward(*args, **kwargs)

    with lent(tiny.live.module, "forward", noted):
        found = [
            tiny.gradients(Differentiation(0.7, halves=halves, **options), micro_batch=2).measure(
                tiny.weights, PROMPTS[:2]
            )
            for halves in (False, True)
        ]
    assert (max(most), min(most)) == (4, 2)
    plain, halved = (as_vector(each.gradients) for each in found)
    limit = 1e-5 if world == "unet32" else 1e-9
    assert found[1].score.value == pytest.approx(found[0].score.value, rel=limit)
    assert np.linalg.norm(halved - plain) <= limit * np.linalg.norm(plain)
