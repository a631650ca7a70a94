"""Ways of computing a gradient step, and which of them is the cheapest."""

from __future__ import annotations

import pytest

from merger.scoring.gradients.sampling import Differentiation
from merger.scoring.gradients.ways import OTHERS, Way, ways

PLAIN = Differentiation(0.5, chain=0.25, spread=True)


def cost(way: Way, images: int = 4, *, gpu: bool = True) -> float:
    return way.cost(images, calls=4, steps=8, megapixels=0.25, gpu=gpu)


def every(**changes: object) -> list[Way]:
    can = {"streams": True, "halves": True, "inner": True, "outer": OTHERS, "text_aside": True} | changes
    return list(ways(PLAIN, ("device", "host", "file"), **can))  # type: ignore[arg-type]


def test_all_combinations_are_there_once_and_change_nothing_else() -> None:
    found = every()
    assert len(set(found)) == len(found) == 3 * 2 * 2 * 2 * 3 * 2
    assert {(way.how.fraction, way.how.chain, way.how.spread) for way in found} == {(0.5, 0.25, True)}
    assert not any(way.how.streamed and not way.how.recompute for way in found)
    none = every(streams=False, halves=False, inner=False, outer=frozenset(), text_aside=False)
    assert len(none) == 2 * 3
    assert not any(way.how.streamed or way.how.halves or way.how.checkpointed or way.text_aside for way in none)


@pytest.mark.parametrize("gpu", [False, True])
def test_the_cheapest_way_saves_nothing_and_more_at_once_never_costs_more(gpu: bool) -> None:
    found = sorted(every(), key=lambda way: (cost(way, gpu=gpu), way.savings))
    assert found[0] == Way(Differentiation(0.5, recompute=False, chain=0.25, spread=True), "device")
    assert found[0].savings == 0
    assert max(way.savings for way in found) == 8
    for way in found:
        assert cost(way, 1, gpu=gpu) >= cost(way, 2, gpu=gpu) >= cost(way, 16, gpu=gpu)


def test_what_each_saving_costs() -> None:
    def of(hold: str = "device", **how: object) -> float:
        return cost(Way(Differentiation(0.5, **({"recompute": False} | how)), hold), gpu=False)  # type: ignore[arg-type]

    plain = of()
    assert plain == pytest.approx(8 + 2 * 4 + 0.05 / 4)
    assert of(recompute=True) == pytest.approx(plain + 4)
    assert of(checkpointed=frozenset({"denoiser"})) == pytest.approx(plain + 4)
    assert of(checkpointed=OTHERS) == pytest.approx(plain + 1)
    assert of(halves=True) == plain, "on a CPU, a half takes half the time"
    assert plain < of("host") < of("file")
    assert of("host", recompute=True, streamed=True) - of(recompute=True) > of("host") - plain
