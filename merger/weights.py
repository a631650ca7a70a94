"""Blend weights: numbers by layer and donor, and arrays of numbers where every output channel has a weight. Pure.

    C   output channels (rows, the first dimension) of a matrix or convolution

A layer's weight is one number for all of its tensors, or, where the layer is a single tensor, one number for each of
its C rows (`Channels`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats32 = NDArray[np.float32]


class Channels:
    """One donor's weights in one tensor, a number for each of its C rows. Immutable; equal if all numbers are.

    values: [C] float32, read-only. Raises ValueError for anything but a list of numbers.
    """

    def __init__(self, values: ArrayLike) -> None:
        given = np.asarray(values, dtype=np.float32)
        if given.ndim != 1 or not given.size:
            raise ValueError(f"the weights of channels are a list of numbers, not {given.shape}")
        array = np.ascontiguousarray(given)
        if array.flags.writeable:  # what the caller may still change is copied
            array = array.copy()
            array.flags.writeable = False
        self.values: Floats32 = array

    def __len__(self) -> int:
        return len(self.values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Channels) and np.array_equal(self.values, other.values)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Channels({len(self)} weights, mean {self.mean:.4g})"

    @cached_property
    def digest(self) -> str:
        """The same for equal weights: 32 hex digits."""
        zeroed = self.values + np.float32(0)  # -0.0 equals 0.0
        return hashlib.blake2b(zeroed.astype("<f4").tobytes(), digest_size=16).hexdigest()

    @property
    def mean(self) -> float:
        """The mean weight: what tables and pages show."""
        return float(np.mean(self.values, dtype=np.float64))


Weight = float | Channels
Weights = Mapping[str, Mapping[str, Weight]]
"""`weights[layer][donor]`; a weight left out is 0."""


def matters(weight: Weight) -> bool:
    """Whether a donor of this weight changes the blend: not 0, or not 0 in every channel."""
    return bool(weight.values.any()) if isinstance(weight, Channels) else weight != 0


def is_finite(weight: Weight) -> bool:
    """Whether all of it are finite numbers."""
    return bool(np.isfinite(weight.values).all()) if isinstance(weight, Channels) else math.isfinite(weight)


def mean_of(weight: Weight) -> float:
    """The number, or the mean of the channels'."""
    return weight.mean if isinstance(weight, Channels) else weight


def by_channel(weights: Weights) -> bool:
    """Whether some weight has a number for each channel."""
    return any(isinstance(weight, Channels) for row in weights.values() for weight in row.values())


def means(weights: Weights) -> dict[str, dict[str, float]]:
    """The weights as numbers, means where there are channels: what tables and pages show."""
    return {layer: {donor: mean_of(weight) for donor, weight in row.items()} for layer, row in weights.items()}


def as_json(weights: Weights) -> dict[str, dict[str, float | str]]:
    """The weights as plain values that differ where they do: digests where there are channels."""
    return {
        layer: {donor: weight.digest if isinstance(weight, Channels) else weight for donor, weight in row.items()}
        for layer, row in weights.items()
    }


def key_of(weights: Weights) -> str:
    """A text that is the same for equal weights."""
    return json.dumps(as_json(weights), sort_keys=True)
