"""What each preparation does to a difference, tensor by tensor: pure functions.

S   a tensor's own shape

Each takes the difference [S] in float32 and its surroundings, and returns the prepared difference [S] in float32. They
are computed on the CPU, so that they are the same bits every time. What draws at random has a stream of its own for
every tensor, so nothing depends on the order in which tensors are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from merger.preparations.spec import KINDS, Kind, Preparation


@dataclass(frozen=True)
class Surroundings:
    """Where a difference is: the tensor's name, and the tensors [S] in float32 of the base, of the donor and of `minus`
    (the base where none is given)."""

    name: str
    base: Tensor
    donor: Tensor
    minus: Tensor


def prepared(difference: Tensor, around: Surroundings, steps: tuple[Preparation, ...]) -> Tensor:
    """The difference after all steps, one after another."""
    for step in steps:
        difference = FUNCTIONS[step.name](difference, around, dict(step.numbers))
    return difference


def _largest(difference: Tensor, count: int) -> Tensor:
    """Whether each element is among the `count` of largest magnitude; of equal ones the first count."""
    kept = torch.zeros(difference.numel(), dtype=torch.bool)
    if count:
        kept[torch.sort(difference.abs().reshape(-1), descending=True, stable=True).indices[:count]] = True
    return kept.view(difference.shape)


def trim(difference: Tensor, around: Surroundings, numbers: Mapping[str, float]) -> Tensor:
    """Keeps the share `density` of largest magnitude, and sets all else to 0.

    Yadav et al., "TIES-Merging: Resolving Interference When Merging Models" (2023), its first step.
    """
    return torch.where(_largest(difference, int(numbers["density"] * difference.numel())), difference, 0)


def breadcrumbs(difference: Tensor, around: Surroundings, numbers: Mapping[str, float]) -> Tensor:
    """Sets the share `outliers` of largest magnitude to 0 and keeps the share `density` that comes next.

    Davari and Belilovsky, "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks" (2023).
    """
    out = int(numbers["outliers"] * difference.numel())
    within = out + int(numbers["density"] * difference.numel())
    return torch.where(_largest(difference, within) & ~_largest(difference, out), difference, 0)


def _stream(around: Surroundings, seed: float) -> torch.Generator:
    digest = hashlib.sha256(f"{int(seed)} {around.name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def dare(difference: Tensor, around: Surroundings, numbers: Mapping[str, float]) -> Tensor:
    """Keeps each element with probability `density`, divided by it, so that the mean stays.

    Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch" (2023).
    """
    draws = torch.rand(difference.shape, generator=_stream(around, numbers["seed"]), dtype=torch.float64)
    return torch.where(draws < numbers["density"], difference / numbers["density"], 0)


def della(difference: Tensor, around: Surroundings, numbers: Mapping[str, float]) -> Tensor:
    """DARE with a probability that grows with an element's rank by magnitude within its row, by `epsilon` in all.

    Each kept element is divided by its own probability. Deep et al., "DELLA-Merging: Reducing Interference in Model
    Merging through Magnitude-Based Sampling" (2024). Vectors are one row.
    """
    rows = difference.reshape(difference.shape[0] if difference.ndim > 1 else 1, -1)
    count = rows.shape[1]
    order = torch.sort(rows.abs(), dim=1, stable=True).indices
    ranks = torch.empty_like(order)
    ranks.scatter_(1, order, torch.arange(count).expand_as(order).contiguous())
    centred = ranks.double() / max(count - 1, 1) - 0.5 if count > 1 else torch.zeros(rows.shape, dtype=torch.float64)
    chance = (numbers["density"] + centred * numbers["epsilon"]).clamp(0, 1)
    draws = torch.rand(rows.shape, generator=_stream(around, numbers["seed"]), dtype=torch.float64)
    kept = torch.where(draws < chance, rows.double() / chance, 0)
    return kept.float().view(difference.shape)


def rank(difference: Tensor, around: Surroundings, numbers: Mapping[str, float]) -> Tensor:
    """The nearest tensor of this rank: a truncated singular value decomposition. Kernels are columns, vectors stay.

    Eckart and Young, "The approximation of one matrix by another of lower rank" (1936). Computed in float64.
    """
    matrix = difference.reshape(difference.shape[0], -1) if difference.ndim > 1 else difference.reshape(1, -1)
    most = int(numbers["rank"])
    if min(matrix.shape) <= most:
        return difference
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (left[:, :most] * values[:most] @ right[:most]).float().view(difference.shape)


def perpendicular(difference: Tensor, around: Surroundings, numbers: Mapping[str, float]) -> Tensor:
    """The part of the difference that is at right angles to the base's tensor.

    sd-mecha's `perpendicular_component` of base and difference. Computed in float64.
    """
    base, own = around.base.double(), difference.double()
    square = float((base * base).sum())
    return difference if square == 0 else (own - base * (float((base * own).sum()) / square)).float()


def train_difference(difference: Tensor, around: Surroundings, numbers: Mapping[str, float]) -> Tensor:
    """Weighs each element by how far the donor is from the base, against how far its own training moved it.

    1.8 |B - A| / (|B - A| + |B - C|) times the difference: A the base, B the donor, C its `minus`. supermerger's "train
    difference", and sd-mecha's `train_difference_mask`. Elements with 0 / 0 become 0.
    """
    far, own = (around.donor - around.base).abs(), (around.donor - around.minus).abs()
    return difference * (1.8 * torch.nan_to_num(far / (far + own), nan=0.0))


def add_opposite(difference: Tensor, around: Surroundings, numbers: Mapping[str, float]) -> Tensor:
    """Weighs each element by how far base and donor moved in opposite directions from `minus`.

    2 |A - B| / (|A - B| + |A + B - 2 C|) times the difference: A the base, B the donor, C its `minus`. sd-mecha's
    `add_opposite_mask`. Elements with 0 / 0 become 0.
    """
    apart = (around.base - around.donor).abs()
    along = (around.base + around.donor - 2 * around.minus).abs()
    return difference * (2 * torch.nan_to_num(apart / (apart + along), nan=0.0))


Function = Callable[[Tensor, Surroundings, Mapping[str, float]], Tensor]

FUNCTIONS: dict[str, Function] = {
    "trim": trim,
    "dare": dare,
    "della": della,
    "breadcrumbs": breadcrumbs,
    "rank": rank,
    "perpendicular": perpendicular,
    "train_difference": train_difference,
    "add_opposite": add_opposite,
}
"""The function of each of `merger.preparations.spec.KINDS`."""


def register_preparation(kind: Kind, function: Function) -> None:
    """Add a preparation of one's own, before a configuration or a recipe that names it is read.

    Raises ValueError if its name is taken by another one.
    """
    if KINDS.get(kind.name, kind) != kind or FUNCTIONS.get(kind.name, function) is not function:
        raise ValueError(f"a preparation is called '{kind.name}' already")
    KINDS[kind.name], FUNCTIONS[kind.name] = kind, function
