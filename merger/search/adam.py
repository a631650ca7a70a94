"""Adam on blend weights: the next weights from the last ones and a small state. Pure.

W  free weights

The gradient search raises the score with Adam (Kingma and Ba 2015). Its learning rate is held, then it falls along half
a cosine: warmup-stable-decay without the warmup (Hu et al., "MiniCPM", 2024; Hägele et al., "Scaling Laws and
Compute-Optimal Training Beyond Fixed Training Durations", 2024). A decay can begin at any step, so a search can end
well at any time, and it can go on from the last step before its decay.

Adam divides a gradient by its own spread, weight by weight, so the learning rate is in units of weight per step:
another tagger or a larger family whose gradients are twice as steep changes nothing.

What Adam remembers between steps is one `AdamState`. Whoever stores it with every step can go on from the last step
alone: JSON keeps a float exactly, so a search that was stopped takes the same steps, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from merger.errors import ConfigError

Floats = NDArray[np.float64]


SHORTEST_DECAY = 2
"""Steps of the shortest decay. The first has the whole rate, as half a cosine begins with it; the second has half."""


@dataclass(frozen=True)
class Decay:
    """A decay that has begun. Every trial that belongs to it keeps it.

    steps: of the whole search, after which the learning rate is 0. over: how many of the last of them it falls over.
    planned: how many steps were planned when it began. why: the reason, for people.
    """

    steps: int
    over: int
    planned: int
    why: str

    @classmethod
    def after(cls, taken: int, over: int, planned: int, why: str) -> Decay:
        """The decay over `over` steps whose first smaller rate is that of the update after `taken` steps."""
        return cls(taken + over - 2, over, planned, why)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Decay:
        """The decay that `to_json` gave. Raises KeyError or TypeError for something else."""
        return cls(int(stored["steps"]), int(stored["over"]), int(stored["planned"]), str(stored["why"]))

    def to_json(self) -> dict[str, Any]:
        """The decay as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class AdamSettings:
    """How the gradient search moves.

    steps: how many are planned; after as many the learning rate is 0. learning_rate: the most that a weight moves in
    the first step. decay: over how many of the last steps the learning rate falls; None is all, a plain half cosine.
    begun: the decay that the next step belongs to, where one has begun; it goes before `steps` and `decay`. member:
    which of several searches takes the next step, from 0; each begins anew, with prompts of its own. start: the first
    value of every weight. beta1, beta2: the share of the running mean of the gradients, and of their squares, that a
    step keeps. eps: gradients below this share of the root mean square of all are not scaled up to a full step.
    weight_decay: the share of its distance from 0 (the base) that a weight loses per step, times the learning rate: a
    penalty weight_decay / 2 * w^2 that is not divided by the gradients' spread (decoupled, Loshchilov and Hutter 2019).
    negative_penalty: the same on top for what of a weight lies below 0.
    """

    steps: int
    learning_rate: float = 0.06
    start: float = 0.1
    beta1: float = 0.8
    beta2: float = 0.95
    eps: float = 1e-3
    weight_decay: float = 0.0
    negative_penalty: float = 0.0
    decay: int | None = None
    begun: Decay | None = None
    member: int = 0

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
        if self.decay is not None and self.decay < SHORTEST_DECAY:
            raise ConfigError(f"decay {self.decay}: use at least {SHORTEST_DECAY} steps")

    @property
    def holds(self) -> bool:
        """Whether the learning rate is held before it falls, so that a decay may begin at any step."""
        return self.decay is not None and self.decay < self.steps

    def decay_after(self, taken: int) -> int:
        """Over how many steps the rate falls if a decay begins after `taken` steps: their planned share, no more.

        For settings that hold the learning rate.
        """
        planned = self.decay or self.steps
        return min(planned, max(SHORTEST_DECAY, round(taken * planned / max(self.steps - planned, 1))))

    @property
    def first_decayed(self) -> int:
        """How many steps are taken when the planned decay begins: the next is the first with a smaller rate."""
        return self.steps - (self.decay or self.steps) + 2

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step 0, 1, ...: held, then half a cosine from `learning_rate` to 0, and 0 after that."""
        steps, over = (self.steps, self.decay or self.steps)
        if self.begun is not None:
            steps, over = self.begun.steps, self.begun.over
        fallen = min(max(step - (steps - over), 0) / over, 1.0)
        return 0.5 * self.learning_rate * (1.0 + math.cos(math.pi * fallen))


@dataclass(frozen=True)
class AdamState:
    """What Adam remembers: how many steps it took, and the running means of gradients and of their squares, [W] each.

    Both means start at 0 and are kept uncorrected; `next_weights` corrects them for that.
    """

    steps: int
    mean: Floats
    square: Floats

    @classmethod
    def begin(cls, width: int) -> AdamState:
        """The state before the first step of a search of `width` weights."""
        return cls(0, np.zeros(width), np.zeros(width))

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> AdamState:
        """The state that `to_json` gave, bit for bit."""
        return cls(int(stored["steps"]), *(np.asarray(stored[key], dtype=np.float64) for key in ("mean", "square")))

    def to_json(self) -> dict[str, Any]:
        """The state as plain lists."""
        return {"steps": self.steps, "mean": self.mean.tolist(), "square": self.square.tolist()}


def first_weights(low: ArrayLike, high: ArrayLike, settings: AdamSettings) -> Floats:
    """[W]: the weights of the first step, `settings.start` or the bound nearest to it. low, high: [W]."""
    return np.clip(np.full(np.shape(low), settings.start, dtype=np.float64), low, high)


def update(state: AdamState, gradient: ArrayLike, settings: AdamSettings) -> AdamState:
    """The state after one more step, whose gradient [W] was found at the weights of that step.

    Raises ValueError for a gradient of another length, or one that is not finite.
    """
    found = np.asarray(gradient, dtype=np.float64)
    if found.shape != state.mean.shape:
        raise ValueError(f"a gradient {found.shape} does not fit a state of {state.mean.shape} weights")
    if not np.isfinite(found).all():
        raise ValueError("a gradient is not a finite number")
    mean = settings.beta1 * state.mean + (1.0 - settings.beta1) * found
    square = settings.beta2 * state.square + (1.0 - settings.beta2) * found * found
    return AdamState(state.steps + 1, mean, square)


def next_weights(
    weights: ArrayLike, state: AdamState, low: ArrayLike, high: ArrayLike, settings: AdamSettings
) -> Floats:
    """The weights [W] of the next step, within low..high [W].

    weights: those of the last step [W]; they count, not what was proposed. state: after the gradient found there, so it
    has at least one step. Raises ValueError for lengths that differ, a state without steps, and weights that are not
    finite.
    """
    last = np.asarray(weights, dtype=np.float64)
    shapes = {last.shape, state.mean.shape, state.square.shape, np.shape(low), np.shape(high)}
    if len(shapes) > 1:
        raise ValueError(f"weights {last.shape}, state {state.mean.shape}, bounds {np.shape(low)}: not one length")
    if state.steps < 1:
        raise ValueError("no step was taken yet: the first weights are `first_weights`")
    if not np.isfinite(last).all():
        raise ValueError("a weight is not a finite number")
    rate = settings.learning_rate_at(state.steps - 1)
    decay = settings.weight_decay * last + settings.negative_penalty * np.minimum(last, 0.0)
    return np.clip(last + rate * (_direction(state, settings) - decay), low, high)


def _direction(state: AdamState, settings: AdamSettings) -> Floats:
    """[W]: the mean gradient over the root of the mean square, both corrected for starting at 0; about -1..1."""
    mean = state.mean / (1.0 - settings.beta1**state.steps)
    spread = np.sqrt(state.square / (1.0 - settings.beta2**state.steps))
    scale = spread + settings.eps * math.sqrt(float(np.mean(spread * spread)))
    return np.divide(mean, scale, out=np.zeros_like(mean), where=scale > 0)
