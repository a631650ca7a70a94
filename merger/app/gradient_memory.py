"""Whether a gradient step fits into the memory that is free, and which way of computing it does."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

import torch

from merger.app.runtime import Runtime
from merger.app.session import Session
from merger.blend.sources import SHARE, free_memory
from merger.config.config import Config
from merger.errors import NoRoom
from merger.scoring.gradients.gradients import BlendGradients
from merger.scoring.gradients.memory import StepMemory, step_memory
from merger.scoring.gradients.sampling import Differentiation
from merger.scoring.gradients.steps import FreshSteps


def differentiation(config: Config) -> Differentiation:
    """What of the drawing carries gradients, as the configuration says."""
    chosen = config.gradient
    return Differentiation(chosen.backprop_fraction, chain=chosen.chain, spread=chosen.backprop_steps == "spread")


@dataclass(frozen=True)
class GradientSearch:
    """What takes the steps of a gradient search, and the memory that each step needs."""

    steps: FreshSteps
    memory: StepMemory


def fit_into_memory(session: Session, runtime: Runtime) -> GradientSearch:
    """The quickest way to compute gradients that fits into the free memory.

    All sampling steps of all images are kept for the backward pass, or each is computed again. One copy of the
    denoiser's gradients is held, or none: they are then streamed, sampling step by sampling step, which blended text
    encoders do not allow. Raises `NoRoom` if neither fits. If the configuration asks for
    gradients by name, the last way is tried whatever the estimate says.
    """
    config, prompts = session.config, session.exam.prompts["search"]
    layers = sorted({layer for parameter in session.sources.space.parameters for layer in parameter.layers})
    # The estimate does not see what kernels need for themselves, so it may use only a share of what is free.
    free = SHARE * free_memory(torch.device(session.device))
    again = differentiation(config)
    streamed = again if config.blends_text else replace(again, streamed=True)
    ways = [(replace(again, recompute=False), free), (again, free), (streamed, free)]
    if config.method != "auto":
        ways.append((streamed, math.inf))
    for how, room in ways:
        steps = runtime.gradient_steps(layers, how, widths=session.sources.space.widths)
        try:
            memory = step_memory(cast(BlendGradients, steps.gradients), prompts[0], len(prompts), room)
        except NoRoom as error:
            refusal = error
        else:
            return GradientSearch(steps, memory)
    raise refusal
