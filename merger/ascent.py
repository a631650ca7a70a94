"""Climbing by slopes: the next weights, from all weights and slopes so far. Pure.

W  free weights

Adam's ascent with a rate that falls as half a cosine. Nothing is kept between steps: the state is rebuilt from the
history in the order of its steps, by the same operations, so that a search taken up again goes on bit for bit as if it
had not stopped. Slopes are divided by their own spread, weight by weight, so the rate is in units of weight a step:
slopes twice as steep, by another tagger or in a larger family, change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from merger.errors import ConfigError

Floats = NDArray[np.float64]
Step = tuple[Sequence[float] | Floats, Sequence[float] | Floats]
"""(weights [W], slopes [W] of the score there): one step taken."""


@dataclass(frozen=True)
class AscentSettings:
    """How to climb.

    steps: planned; after as many the rate is 0. rate: most that a weight moves in the first step. start: every
    weight's first value. momentum, memory: share of the running mean of slopes, and of their squares, that a step
    keeps. damping: slopes that stay below this share of the root mean square of all are not scaled up to a full step.
    pull: share of its distance from 0 (the base) that a weight loses per step, times the rate: of a penalty
    pull / 2 * w^2, but not divided by the slopes' spread (decoupled, Loshchilov and Hutter 2019). negative_penalty: the
    same for what of a weight lies below 0, on top.
    """

    steps: int
    rate: float = 0.06
    start: float = 0.1
    momentum: float = 0.8
    memory: float = 0.95
    damping: float = 1e-3
    pull: float = 0.0
    negative_penalty: float = 0.0

    def __post_init__(self) -> None:
        for name in ("momentum", "memory"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}: use at least 0 and less than 1")
        for name in ("steps", "rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} {getattr(self, name)}: use more than 0")
        for name in ("damping", "pull", "negative_penalty"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} {getattr(self, name)}: use 0 or more")

    def rate_at(self, step: int) -> float:
        """The rate of step 0, 1, ...: half a cosine from `rate` to 0."""
        return 0.5 * self.rate * (1.0 + math.cos(math.pi * min(step / self.steps, 1.0)))


def first_weights(low: ArrayLike, high: ArrayLike, settings: AscentSettings) -> Floats:
    """[W]: where a climb begins, `settings.start` or the bound nearest to it. low, high: [W]."""
    return np.clip(np.full(np.shape(low), settings.start, dtype=np.float64), low, high)


def next_weights(history: Sequence[Step], low: ArrayLike, high: ArrayLike, settings: AscentSettings) -> Floats:
    """The weights [W] to try next: within low..high [W], after the steps of `history`, oldest first.

    Without a history it is `first_weights`. The weights that were tried count, not those that were proposed: a step
    from elsewhere may stand in between. Raises ValueError for lengths that do not agree, and for slopes that are no
    numbers.
    """
    if not history:
        return first_weights(low, high, settings)
    slopes = np.asarray([slope for _, slope in history], dtype=np.float64)  # [steps, W]
    weights = np.asarray(history[-1][0], dtype=np.float64)
    if slopes.shape[1:] != np.shape(low) or weights.shape != np.shape(low) or np.shape(high) != np.shape(low):
        raise ValueError(f"slopes {slopes.shape[1:]}, weights {weights.shape}, bounds {np.shape(low)}: not one length")
    if not (np.isfinite(slopes).all() and np.isfinite(weights).all()):
        raise ValueError("a slope or weight of the history is not a finite number")
    step = settings.rate_at(len(history) - 1)
    back = settings.pull * weights + settings.negative_penalty * np.minimum(weights, 0.0)
    moved = weights + step * (_direction(slopes, settings) - back)
    return np.clip(moved, low, high)


def _direction(slopes: Floats, settings: AscentSettings) -> Floats:
    """[steps, W] -> [W]: running mean of the slopes over the root of that of their squares, about -1..1 (Adam)."""
    mean, square = np.zeros(slopes.shape[1]), np.zeros(slopes.shape[1])
    for slope in slopes:
        mean = settings.momentum * mean + (1.0 - settings.momentum) * slope
        square = settings.memory * square + (1.0 - settings.memory) * slope * slope
    mean /= 1.0 - settings.momentum ** len(slopes)  # both began at 0
    spread = np.sqrt(square / (1.0 - settings.memory ** len(slopes)))
    scale = spread + settings.damping * math.sqrt(float(np.mean(spread * spread)))
    return np.divide(mean, scale, out=np.zeros_like(mean), where=scale > 0)
