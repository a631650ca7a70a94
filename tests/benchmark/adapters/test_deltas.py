"""What adapters add, against the same formulas written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmark.adapters.deltas import delta

O, I, R, K = 6, 4, 2, 3  # noqa: E741 - as in the module's glossary
RANDOM = np.random.default_rng(3)
LINEAR = RANDOM.normal(size=(O, I))
CONV = RANDOM.normal(size=(O, I, K, K))


def check(parts: dict[str, np.ndarray], weight: np.ndarray, alpha: float | None, wanted: np.ndarray) -> None:
    tensors = {name: torch.tensor(value, dtype=torch.float32) for name, value in parts.items()}
    found = delta(tensors, torch.tensor(weight, dtype=torch.float32), alpha)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), wanted, rtol=2e-5, atol=2e-5)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape)


def tucker(core: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Sum over a, b of core[a, b, k, l] left[a, o] right[b, i], one entry after the other."""
    out = np.zeros((left.shape[1], right.shape[1], *core.shape[2:]))
    for a in range(core.shape[0]):
        for b in range(core.shape[1]):
            out += left[a][:, None, None, None] * right[b][None, :, None, None] * core[a, b][None, None]
    return out


@pytest.mark.parametrize("alpha", [None, 1.0, 3.0])
def test_lora(alpha: float | None) -> None:
    up, down = normal(O, R), normal(R, I)
    check({"up": up, "down": down}, LINEAR, alpha, up @ down * (1 if alpha is None else alpha / R))
    # the same for a 1 x 1 convolution, whose parts may have either shape
    check({"up": up, "down": down}, LINEAR[:, :, None, None], None, (up @ down)[:, :, None, None])
    check({"up": up[:, :, None, None], "down": down[:, :, None, None]}, LINEAR, None, up @ down)


def test_locon() -> None:
    up, down = normal(O, R, 1, 1), normal(R, I, K, K)
    wanted = np.einsum("or,rikl->oikl", up[:, :, 0, 0], down) * (4 / R)
    check({"up": up, "down": down}, CONV, 4.0, wanted)
    mid = normal(R, R, K, K)
    down = normal(R, I, 1, 1)
    wanted = tucker(mid, up[:, :, 0, 0].T, down[:, :, 0, 0]) / R
    check({"up": up, "down": down, "mid": mid}, CONV, 1.0, wanted)


def test_loha() -> None:
    parts = {"w1_a": normal(O, R), "w1_b": normal(R, I), "w2_a": normal(O, R), "w2_b": normal(R, I)}
    product = (parts["w1_a"] @ parts["w1_b"]) * (parts["w2_a"] @ parts["w2_b"])
    check(parts, LINEAR, 1.0, product / R)
    flat = {"w1_a": normal(O, R), "w1_b": normal(R, I * K * K), "w2_a": normal(O, R), "w2_b": normal(R, I * K * K)}
    product = (flat["w1_a"] @ flat["w1_b"]) * (flat["w2_a"] @ flat["w2_b"])
    check(flat, CONV, None, product.reshape(CONV.shape))
    cores = {"t1": normal(R, R, K, K), "t2": normal(R, R, K, K)}
    parts = {"w1_a": normal(R, O), "w1_b": normal(R, I), "w2_a": normal(R, O), "w2_b": normal(R, I)}
    wanted = tucker(cores["t1"], parts["w1_a"], parts["w1_b"]) * tucker(cores["t2"], parts["w2_a"], parts["w2_b"])
    check(parts | cores, CONV, 1.0, wanted / R)


def test_lokr() -> None:
    first, second = normal(2, 2), normal(3, 2)
    check({"k1": first, "k2": second}, LINEAR, 7.0, np.kron(first, second))  # whole factors have no scale
    a, b = normal(3, R), normal(R, 2)
    check({"k1": first, "k2_a": a, "k2_b": b}, LINEAR, 1.0, np.kron(first, a @ b) / R)
    c, d = normal(2, R), normal(R, 2)
    check({"k1_a": c, "k1_b": d, "k2_a": a, "k2_b": b}, LINEAR, None, np.kron(c @ d, a @ b))
    whole = normal(3, 2, K, K)
    wanted = np.zeros((O, I, K, K))
    for row in range(2):
        for column in range(2):
            wanted[row * 3 : row * 3 + 3, column * 2 : column * 2 + 2] = first[row, column] * whole
    check({"k1": first, "k2": whole}, CONV, None, wanted)
    check({"k1": first, "k2_a": a, "k2_b": normal(R, 2 * K * K) * 0}, CONV, None, wanted * 0)
    core, left, right = normal(R, R, K, K), normal(R, 3), normal(R, 2)
    second = tucker(core, left, right)
    for row in range(2):
        for column in range(2):
            wanted[row * 3 : row * 3 + 3, column * 2 : column * 2 + 2] = first[row, column] * second / R
    check({"k1": first, "kt2": core, "k2_a": left, "k2_b": right}, CONV, 1.0, wanted)


@pytest.mark.parametrize("weight", [LINEAR, CONV], ids=["linear", "conv"])
def test_dora(weight: np.ndarray) -> None:
    up, down = normal(O, R), normal(R, I * (K * K if weight.ndim == 4 else 1))
    whole = weight + (up @ down).reshape(weight.shape)
    rest = (1,) * (weight.ndim - 2)
    rows, columns = normal(O), normal(I)
    by_row = np.stack([rows[o] * whole[o] / np.linalg.norm(whole[o]) for o in range(O)])
    by_column = np.stack([columns[i] * whole[:, i] / np.linalg.norm(whole[:, i]) for i in range(I)], axis=1)
    parts = {"up": up, "down": down}
    check(parts | {"magnitude": rows.reshape(O, 1, *rest)}, weight, None, by_row - weight)
    check(parts | {"row_magnitude": rows.reshape(1, O, *rest)}, weight, None, by_row - weight)  # as PEFT keeps them
    check(parts | {"row_magnitude": rows}, weight, None, by_row - weight)
    check(parts | {"magnitude": columns.reshape(1, I, *rest)}, weight, None, by_column - weight)


def test_whole_differences_and_bad_parts() -> None:
    check({"diff": LINEAR}, LINEAR, 3.0, LINEAR)
    weight = torch.zeros(O, I)
    with pytest.raises(ValueError, match="incomplete: it has only up"):
        delta({"up": torch.zeros(O, R)}, weight, None)
    with pytest.raises(ValueError, match=r"gives \[5, 4\] for a weight of \[6, 4\]"):
        delta({"up": torch.zeros(5, R), "down": torch.zeros(R, I)}, weight, None)
    with pytest.raises(ValueError, match="magnitude"):
        delta({"diff": weight, "magnitude": torch.zeros(5, 1)}, weight, None)
