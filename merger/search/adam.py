"""Climbing by gradients: the next weights, from all weights and gradients so far. Pure.

W  free weights

Adam's adam with a rate that falls as half a cosine. Nothing is kept between steps: the state is rebuilt from the
history in the order of its steps, by the same operations, so that a search taken up again goes on bit for bit as if it
had not stopped. Gradient are divided by their own spread, weight by weight, so the rate is in units of weight a step:
gradients twice as steep, by another tagger or in a larger family, change nothing.
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
"""(weights [W], gradients [W] of the score there): one step taken."""


@dataclass(frozen=True)
class AdamSettings:
    """How to climb.

    steps: planned; after as many the rate is 0. learning_rate: most that a weight moves in the first step. start: every
    weight's first value. beta1, beta2: share of the running mean of gradients, and of their squares, that a step
    keeps. eps: gradients that stay below this share of the root mean square of all are not scaled up to a full step.
    weight_decay: share of its distance from 0 (the base) that a weight loses per step, times the rate: of a penalty
    weight_decay / 2 * w^2, but not divided by the gradients' spread (decoupled, Loshchilov and Hutter 2019). negative_penalty: the
    same for what of a weight lies below 0, on top.
    """

    steps: int
    learning_rate: float = 0.06
    start: float = 0.1
    beta1: float = 0.8
    beta2: float = 0.95
    eps: float = 1e-3
    weight_decay: float = 0.0
    negative_penalty: float = 0.0

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}: use at least 0 and less than 1")
        for name in ("steps", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} {getattr(self, name)}: use more than 0")
        for name in ("eps", "weight_decay", "negative_penalty"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} {getattr(self, name)}: use 0 or more")

    def learning_rate_at(self, step: int) -> float:
        """The rate of step 0, 1, ...: half a cosine from `rate` to 0."""
        return 0.5 * self.learning_rate * (1.0 + math.cos(math.pi * min(step / self.steps, 1.0)))


def first_weights(low: ArrayLike, high: ArrayLike, settings: AdamSettings) -> Floats:
    """[W]: where a climb begins, `settings.start` or the bound nearest to it. low, high: [W]."""
    return np.clip(np.full(np.shape(low), settings.start, dtype=np.float64), low, high)


def next_weights(history: Sequence[Step], low: ArrayLike, high: ArrayLike, settings: AdamSettings) -> Floats:
    """The weights [W] to try next: within low..high [W], after the steps of `history`, oldest first.

    Without a history it is `first_weights`. The weights that were tried count, not those that were proposed: a step
    from elsewhere may stand in between. Raises ValueError for lengths that do not agree, and for gradients that are no
    numbers.
    """
    if not history:
        return first_weights(low, high, settings)
    gradients = np.asarray([gradient for _, gradient in history], dtype=np.float64)  # [steps, W]
    weights = np.asarray(history[-1][0], dtype=np.float64)
    if gradients.shape[1:] != np.shape(low) or weights.shape != np.shape(low) or np.shape(high) != np.shape(low):
        raise ValueError(
            f"gradients {gradients.shape[1:]}, weights {weights.shape}, bounds {np.shape(low)}: not one length"
        )
    if not (np.isfinite(gradients).all() and np.isfinite(weights).all()):
        raise ValueError("a gradient or weight of the history is not a finite number")
    step = settings.learning_rate_at(len(history) - 1)
    back = settings.weight_decay * weights + settings.negative_penalty * np.minimum(weights, 0.0)
    moved = weights + step * (_direction(gradients, settings) - back)
    return np.clip(moved, low, high)


def _direction(gradients: Floats, settings: AdamSettings) -> Floats:
    """[steps, W] -> [W]: running mean of the gradients over the root of that of their squares, about -1..1 (Adam)."""
    mean, square = np.zeros(gradients.shape[1]), np.zeros(gradients.shape[1])
    for gradient in gradients:
        mean = settings.beta1 * mean + (1.0 - settings.beta1) * gradient
        square = settings.beta2 * square + (1.0 - settings.beta2) * gradient * gradient
    mean /= 1.0 - settings.beta1 ** len(gradients)  # both began at 0
    spread = np.sqrt(square / (1.0 - settings.beta2 ** len(gradients)))
    scale = spread + settings.eps * math.sqrt(float(np.mean(spread * spread)))
    return np.divide(mean, scale, out=np.zeros_like(mean), where=scale > 0)
