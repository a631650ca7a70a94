"""What low-rank adapters add to a weight: LoRA, LoCon, LoHa, LoKr, DoRA. Tensors in, tensor out; float32 throughout.

    W     the weight [o, i] or [o, i, k, k]           r   rank
    scale alpha / r; 1 where no alpha is given

    LoRA   up [o, r] down [r, i]                       delta = scale * up down
    LoCon  up [o, r, 1, 1] down [r, i, k, k]           the same, as matrices; with mid [r, r, k, k] a Tucker product
    LoHa   w1_a [o, r] w1_b [r, i], w2_a, w2_b         delta = scale * (w1_a w1_b) * (w2_a w2_b), or Tucker with t1, t2
    LoKr   k1 or k1_a k1_b, k2 or k2_a k2_b (or kt2)   delta = scale * kron(k1, k2); scale 1 where both are whole
    DoRA   magnitude m, over one of the above          delta = m (W + delta) / |W + delta| - W, norms over inputs (m is
                                                       [o, 1], or PEFT's row_magnitude) or over outputs (m is [1, i])
    full   diff                                        delta = diff

Sources: Hu et al. 2021 (LoRA), Hyeon-Woo et al. 2022 (LoHa), LyCORIS (Yeh et al. 2023), Liu et al. 2024 (DoRA).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Parts: TypeAlias = "Mapping[str, Tensor]"  # float32, under the names above


def delta(parts: Parts, weight: Tensor, alpha: float | None) -> Tensor:
    """What an adapter at strength 1 adds to `weight`; same shape, float32. `weight` matters to DoRA and for its shape.

    Raises ValueError if the parts make no known kind, or something of another shape.
    """
    change = _change(parts, weight, alpha)
    if change.numel() != weight.numel():
        raise ValueError(f"gives {list(change.shape)} for a weight of {list(weight.shape)}")
    change = change.reshape(weight.shape)
    if "row_magnitude" in parts:
        return _decomposed(change, weight, parts["row_magnitude"].flatten())
    return _decomposed(change, weight, parts["magnitude"]) if "magnitude" in parts else change


def _change(parts: Parts, weight: Tensor, alpha: float | None) -> Tensor:
    if "diff" in parts:
        return parts["diff"]
    if "up" in parts and "down" in parts:
        up, down = parts["up"], parts["down"]
        scale = _scale(alpha, down.shape[0])
        if "mid" in parts:
            return _tucker(parts["mid"], up.flatten(1).T, down.flatten(1)) * scale
        return (up.flatten(1) @ down.flatten(1)) * scale
    if {"w1_a", "w1_b", "w2_a", "w2_b"} <= parts.keys():
        return _hadamard(parts) * _scale(alpha, parts["w1_b"].shape[0])
    if ("k1" in parts or {"k1_a", "k1_b"} <= parts.keys()) and ("k2" in parts or {"k2_a", "k2_b"} <= parts.keys()):
        return _kronecker(parts, weight, alpha)
    raise ValueError(f"is incomplete: it has only {', '.join(sorted(parts))}")


def _hadamard(parts: Parts) -> Tensor:
    if "t1" in parts and "t2" in parts:
        first = _tucker(parts["t1"], parts["w1_a"], parts["w1_b"])
        return first * _tucker(parts["t2"], parts["w2_a"], parts["w2_b"])
    return (parts["w1_a"] @ parts["w1_b"]) * (parts["w2_a"] @ parts["w2_b"])


def _kronecker(parts: Parts, weight: Tensor, alpha: float | None) -> Tensor:
    import torch

    rank = next((parts[part].shape[0] for part in ("k1_b", "k2_b") if part in parts), None)
    first = parts["k1"] if "k1" in parts else parts["k1_a"] @ parts["k1_b"]
    if "k2" in parts:
        second = parts["k2"]
    elif "kt2" in parts:
        second = _tucker(parts["kt2"], parts["k2_a"], parts["k2_b"])
    else:
        second = parts["k2_a"] @ parts["k2_b"]
    if weight.dim() == 4:
        second = second.reshape(second.shape[0], -1, *weight.shape[2:])
        first = first[:, :, None, None]
    whole = torch.kron(first.contiguous(), second.contiguous())
    return whole * (_scale(alpha, rank) if rank is not None else 1.0)


def _tucker(core: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """core [a, b, k, l], left [a, o], right [b, i] -> [o, i, k, l]."""
    import torch

    return torch.einsum("abkl,ao,bi->oikl", core, left, right)


def _decomposed(change: Tensor, weight: Tensor, magnitude: Tensor) -> Tensor:
    import torch

    whole = weight + change
    over_inputs = magnitude.dim() == 1 or magnitude.shape[0] == weight.shape[0] != 1
    kept = 0 if over_inputs else 1
    others = [dim for dim in range(weight.dim()) if dim != kept]
    norm = whole.square().sum(others, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    shape = [weight.shape[kept] if dim == kept else 1 for dim in range(weight.dim())]
    if magnitude.numel() != weight.shape[kept]:
        raise ValueError(f"has a magnitude of {list(magnitude.shape)} for a weight of {list(weight.shape)}")
    return whole * (magnitude.reshape(shape) / norm) - weight


def _scale(alpha: float | None, rank: int) -> float:
    return 1.0 if alpha is None else alpha / rank
