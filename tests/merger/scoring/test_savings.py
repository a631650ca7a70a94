"""Every saving of memory, alone and all at once: the gradient stays that of a step that saves nothing, in float32."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from merger.blend.sources import Hold
from merger.scoring.gradients.sampling import NETWORKS, Differentiation
from tests.merger.scoring.test_gradients import PROMPTS, World, as_vector, unet32  # noqa: F401

NOTHING = Differentiation(0.7, recompute=False)
LIMIT = 1e-5  # of the gradient's length

SAVINGS: dict[str, dict[str, Any]] = {
    "recomputed": {"recompute": True},
    "streamed": {"recompute": True, "streamed": True},
    **{f"checkpointed {name}": {"checkpointed": frozenset({name})} for name in NETWORKS},
    "halves": {"halves": True},
    "one at a time": {"micro_batch": 1},
    "host": {"hold": "host"},
    "file": {"hold": "file"},
    "text aside": {"text_aside": True},
}
EVERYTHING = {name: value for changes in SAVINGS.values() for name, value in changes.items()}
EVERYTHING["checkpointed"] = frozenset(NETWORKS)


def gradient(
    tiny: World,
    how: Differentiation = NOTHING,
    hold: Hold = "device",
    micro_batch: int = 2,
    *,
    text_aside: bool = False,
) -> np.ndarray:
    before = tiny.live.hold
    tiny.live.hold_in(hold)
    tiny.generator.set_text_aside(text_aside)
    try:
        found = tiny.gradients(how, micro_batch=micro_batch).measure(tiny.weights, PROMPTS[:2])
    finally:
        tiny.generator.set_text_aside(False)
        tiny.live.hold_in(before)
    return as_vector(found.gradients)


@pytest.mark.parametrize("saving", [*SAVINGS, "everything"])
def test_the_gradient_stays_the_same(unet32: World, saving: str) -> None:  # noqa: F811
    changes = dict(SAVINGS.get(saving, EVERYTHING))
    more = {name: changes.pop(name) for name in ("hold", "micro_batch", "text_aside") if name in changes}
    plain = gradient(unet32)
    assert np.linalg.norm(plain) > 0
    saved = gradient(unet32, replace(NOTHING, **changes), **more)
    assert np.linalg.norm(saved - plain) <= LIMIT * np.linalg.norm(plain)
