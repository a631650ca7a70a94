"""Every preparation against a reference in float64, written from its paper, and against sd-mecha where it has it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from merger.preparations.functions import FUNCTIONS, Surroundings, prepared, register_preparation
from merger.preparations.spec import KINDS, Kind, Number, preparation

SHAPES = [(7, 5), (4, 3, 3, 3), (11,), (1, 6)]


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def around(shape: tuple[int, ...]) -> Surroundings:
    return Surroundings("a.weight", drawn(shape, 1), drawn(shape, 2), drawn(shape, 3))


def of(written: object, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, Surroundings]:
    """(difference, prepared difference, surroundings)."""
    there = around(shape)
    difference = there.donor - there.minus
    result = prepared(difference, there, (preparation(written),))
    assert (result.dtype, result.shape) == (torch.float32, difference.shape)
    return difference.double().numpy(), result.double().numpy(), there


def test_every_kind_has_its_function() -> None:
    assert KINDS.keys() == FUNCTIONS.keys()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_trim_keeps_the_largest(shape: tuple[int, ...], density: float) -> None:
    difference, result, _ = of({"trim": {"density": density}}, shape)
    kept = sorted(np.abs(difference).ravel())[difference.size - int(density * difference.size) :]
    np.testing.assert_array_equal(result, np.where(np.isin(np.abs(difference), kept), difference, 0))


@pytest.mark.parametrize("shape", SHAPES)
def test_breadcrumbs_leave_out_the_largest_too(shape: tuple[int, ...]) -> None:
    difference, result, _ = of({"breadcrumbs": {"density": 0.5, "outliers": 0.2}}, shape)
    order = np.argsort(-np.abs(difference).ravel())
    out, count = int(0.2 * difference.size), int(0.5 * difference.size)
    expected = np.zeros(difference.size)
    chosen = order[out : out + count]
    expected[chosen] = difference.ravel()[chosen]
    np.testing.assert_array_equal(result.ravel(), expected)


def test_dare_keeps_a_share_and_the_mean() -> None:
    difference, result, _ = of({"dare": {"density": 0.25, "seed": 3}}, (400, 400))
    kept = result != 0
    assert kept.mean() == pytest.approx(0.25, abs=0.01)
    np.testing.assert_allclose(result[kept], difference[kept] / 0.25, rtol=1e-6)
    assert result.sum() == pytest.approx(difference.sum(), abs=5 * math.sqrt(3 * difference.size))


def test_what_is_drawn_depends_on_seed_and_tensor_alone() -> None:
    there = around((30, 30))
    difference = there.donor - there.minus

    def kept(seed: int, name: str) -> Tensor:
        torch.rand(7)  # the common stream is not used
        step = (preparation({"dare": {"density": 0.5, "seed": seed}}),)
        return prepared(difference, Surroundings(name, there.base, there.donor, there.minus), step)

    assert torch.equal(kept(1, "a"), kept(1, "a"))
    assert not torch.equal(kept(1, "a"), kept(2, "a"))
    assert not torch.equal(kept(1, "a"), kept(1, "b"))


def test_della_keeps_the_large_ones_more_often() -> None:
    difference, result, _ = of({"della": {"density": 0.5, "epsilon": 0.4}}, (300, 200))
    ranks = np.argsort(np.argsort(np.abs(difference), axis=1), axis=1)
    chance = 0.5 + (ranks / 199 - 0.5) * 0.4
    kept = result != 0
    assert kept[ranks < 20].mean() == pytest.approx(chance[ranks < 20].mean(), abs=0.02)
    assert kept[ranks >= 180].mean() == pytest.approx(chance[ranks >= 180].mean(), abs=0.02)
    np.testing.assert_allclose(result[kept], (difference / chance)[kept], rtol=1e-6)


@pytest.mark.parametrize("shape", [(9, 6), (6, 2, 3, 3)])
@pytest.mark.parametrize("rank", [1, 3])
def test_rank_is_the_nearest_of_its_rank(shape: tuple[int, ...], rank: int) -> None:
    difference, result, _ = of({"rank": rank}, shape)
    left, values, right = np.linalg.svd(difference.reshape(shape[0], -1))
    expected = (left[:, :rank] * values[:rank]) @ right[:rank]
    np.testing.assert_allclose(result.reshape(shape[0], -1), expected, atol=1e-6)
    assert np.linalg.matrix_rank(result.reshape(shape[0], -1), tol=1e-4) == rank


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rank_that_is_full_changes_nothing(shape: tuple[int, ...]) -> None:
    difference, result, _ = of({"rank": 64}, shape)
    np.testing.assert_array_equal(result, difference)


@pytest.mark.parametrize("shape", SHAPES)
def test_perpendicular_is_at_right_angles_to_the_base(shape: tuple[int, ...]) -> None:
    difference, result, there = of("perpendicular", shape)
    base = there.base.double().numpy()
    np.testing.assert_allclose(result, difference - base * (base * difference).sum() / (base**2).sum(), atol=1e-6)
    assert abs((result * base).sum()) < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_train_difference_and_add_opposite_weigh_each_element(shape: tuple[int, ...]) -> None:
    difference, trained, there = of("train_difference", shape)
    a, b, c = (tensor.double().numpy() for tensor in (there.base, there.donor, there.minus))
    np.testing.assert_allclose(trained, difference * 1.8 * abs(b - a) / (abs(b - a) + abs(b - c)), atol=1e-5)
    _, opposite, _ = of("add_opposite", shape)
    np.testing.assert_allclose(opposite, difference * 2 * abs(a - b) / (abs(a - b) + abs(a + b - 2 * c)), atol=1e-5)


def test_where_nothing_differs_nothing_is_added() -> None:
    same = drawn((3, 4), 1)
    there = Surroundings("a", same, same, same)
    for name in KINDS:
        written = {"trim": 0.5, "dare": 0.5, "della": 0.5, "breadcrumbs": 0.5, "rank": 1}.get(name)
        step = preparation(name if written is None else {name: written})
        assert torch.equal(prepared(torch.zeros(3, 4), there, (step,)), torch.zeros(3, 4)), name


def test_as_sd_mecha_has_it() -> None:
    """Its functions compute in the type that they are given, and its trimming keeps one or two more."""
    mecha = pytest.importorskip("sd_mecha")
    from sd_mecha.extensions.builtin.merge_methods import linear, ties

    for shape in SHAPES:
        there = around(shape)
        a, b, c = there.base, there.donor, there.minus
        for name, theirs in (
            ("train_difference", linear.train_difference_mask),
            ("add_opposite", linear.add_opposite_mask),
        ):
            mask = theirs.__wrapped__(a, b, c, torch.tensor(1.0))
            _, result, _ = of(name, shape)
            np.testing.assert_allclose(result, ((b - c) * mask).numpy(), rtol=3e-7, atol=1e-9)
        _, result, _ = of("perpendicular", shape)
        theirs = linear.perpendicular_component.__wrapped__(a, b - c)
        np.testing.assert_allclose(result, theirs.numpy(), rtol=1e-4, atol=1e-6)
        _, result, _ = of({"trim": 0.5}, shape)
        kept = ties.filter_top_k(b - c, 0.5).numpy()
        assert ((kept != 0) >= (result != 0)).all() and (kept != 0).sum() - (result != 0).sum() <= 2
    assert mecha is not None


def test_one_of_your_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (KINDS, FUNCTIONS):
        monkeypatch.setitem(table, "mine", None)
        del table["mine"]  # type: ignore[attr-defined]
    kind = Kind("mine", (Number("share", 0, 1),))

    def halved(difference: Tensor, _: Surroundings, numbers: Mapping[str, float]) -> Tensor:
        return difference * numbers["share"]

    register_preparation(kind, halved)
    difference, result, _ = of({"mine": 0.5}, (3, 4))
    np.testing.assert_array_equal(result, difference * 0.5)
    with pytest.raises(ValueError, match="a preparation is called 'trim' already"):
        register_preparation(Kind("trim"), halved)


def test_steps_follow_one_another() -> None:
    there = around((6, 6))
    steps = tuple(preparation(each) for each in ({"trim": 0.5}, {"rank": 2}))
    difference = there.donor - there.minus
    by_hand = FUNCTIONS["rank"](FUNCTIONS["trim"](difference, there, {"density": 0.5}), there, {"rank": 2})
    assert torch.equal(prepared(difference, there, steps), by_hand)
