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
    bias   up_bias [o]                                 delta = scale * up_bias, of the module's bias (PEFT's lora_bias)

Sources: Hu et al. 2021 (LoRA), Hyeon-Woo et al. 2022 (LoHa), LyCORIS (Yeh et al. 2023), Liu et al. 2024 (DoRA).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Parts: TypeAlias = "Mapping[str, Tensor]"  # float32, under the names above


_LORA, _LOHA = {"up", "down", "mid"}, {"w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"}
_LOKR = {"k1", "k1_a", "k1_b", "k2", "k2_a", "k2_b", "kt2"}
_MAGNITUDES = {"magnitude", "row_magnitude"}
_RANKS = ("down", "w1_b", "k1_b", "k2_b")  # parts whose first dimension is the rank


def delta(parts: Parts, weight: Tensor, alpha: float | None, scale: float | None = None) -> Tensor:
    """What an adapter at strength 1 adds to `weight`; same shape, float32. `weight` matters to DoRA and for its shape.

    scale: in place of alpha / r, where the adapter's settings say the whole factor. Raises ValueError if the parts make
    no known kind, or something of another shape.
    """
    change = _change(parts, weight, alpha, scale)
    if _rows(change) != _rows(weight):
        raise ValueError(f"gives {list(change.shape)} for a weight of {list(weight.shape)}")
    change = change.reshape(weight.shape)
    if "row_magnitude" in parts:
        return _decomposed(change, weight, parts["row_magnitude"].flatten())
    return _decomposed(change, weight, parts["magnitude"]) if "magnitude" in parts else change


def check(shapes: Mapping[str, tuple[int, ...]], weight: tuple[int, ...]) -> None:
    """Make sure that parts of these shapes change a weight of this shape, without reading them.

    shapes: {part: shape}, without alpha. Raises ValueError with the reason, as the end of a sentence.
    """
    import torch

    try:
        hollow = {part: torch.empty(shape, device="meta") for part, shape in shapes.items()}
        delta(hollow, torch.empty(weight, device="meta"), 1.0)
    except (RuntimeError, IndexError, TypeError, KeyError, OverflowError):
        listed = ", ".join(f"{part} {list(shape)}" for part, shape in shapes.items())
        raise ValueError(f"has shapes that make no change of a weight of {list(weight)} ({listed})") from None


def rank_of(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The rank of an adapter's parts {part: shape}; None if they have none."""
    return next((shapes[part][0] for part in _RANKS if shapes.get(part)), None)


def _change(parts: Parts, weight: Tensor, alpha: float | None, scale: float | None) -> Tensor:
    kind, known = _kind(parts)
    if over := sorted(parts.keys() - known - _MAGNITUDES):
        raise ValueError(f"has '{over[0]}' beside '{kind}', which are of two kinds of change")
    if parts.keys() >= _MAGNITUDES:
        raise ValueError("has two magnitudes")
    if kind == "diff":
        return parts["diff"]
    if kind == "up_bias":
        return parts["up_bias"] * _scale(alpha, parts["down"].shape[0], scale)
    if kind == "up":
        up, down = parts["up"], parts["down"]
        factor = _scale(alpha, down.shape[0], scale)
        if "mid" in parts:
            return _tucker(parts["mid"], up.flatten(1).T, down.flatten(1)) * factor
        return (up.flatten(1) @ down.flatten(1)) * factor
    if kind == "w1_a":
        return _hadamard(parts) * _scale(alpha, parts["w1_b"].shape[0], scale)
    return _kronecker(parts, weight, alpha, scale)


def _rows(tensor: Tensor) -> tuple[int, int]:
    """(rows, elements): equal for a matrix and the convolution that it is another view of."""
    return (tensor.shape[0] if tensor.dim() else 1), tensor.numel()


def _kind(parts: Parts) -> tuple[str, set[str]]:
    """(a part that names the kind of change, the parts that it may have). Raises ValueError for an incomplete one."""
    held = parts.keys()
    if "diff" in held:
        return "diff", {"diff"}
    if {"up_bias", "down"} <= held:
        return "up_bias", {"up_bias", "down"}
    if {"up", "down"} <= held:
        return "up", _LORA
    if {"w1_a", "w1_b", "w2_a", "w2_b"} <= held and ("t1" in held) == ("t2" in held):
        return "w1_a", _LOHA
    if ("k1" in held or {"k1_a", "k1_b"} <= held) and ("k2" in held or {"k2_a", "k2_b"} <= held):
        extra = {"k1_a", "k1_b"} if "k1" in held else set()
        return "k1", _LOKR - extra - ({"k2_a", "k2_b", "kt2"} if "k2" in held else set())
    raise ValueError(f"is incomplete: it has only {', '.join(sorted(held))}")


def _hadamard(parts: Parts) -> Tensor:
    if "t1" in parts and "t2" in parts:
        first = _tucker(parts["t1"], parts["w1_a"], parts["w1_b"])
        return first * _tucker(parts["t2"], parts["w2_a"], parts["w2_b"])
    return (parts["w1_a"] @ parts["w1_b"]) * (parts["w2_a"] @ parts["w2_b"])


def _kronecker(parts: Parts, weight: Tensor, alpha: float | None, scale: float | None) -> Tensor:
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
    if rank is None and scale is None:
        return whole  # LyCORIS counts whole matrices once, whatever alpha says
    return whole * _scale(alpha, rank, scale)


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


def _scale(alpha: float | None, rank: int | None, scale: float | None) -> float:
    if rank == 0:
        raise ValueError("has rank 0")
    if scale is not None:
        return scale
    return 1.0 if alpha is None or rank is None else alpha / rank
