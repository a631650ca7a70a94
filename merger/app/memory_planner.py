"""How a search uses the memory of its device: what is computed how, how many images at once, and where things lie.

A plan is made before the search. What an image takes is measured (`merger.scoring.gradients.memory`); of all ways of
computing that fit (`merger.scoring.gradients.ways`), the cheapest one is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import nn

from benchmark.pipelines.text_visits import text_encoders
from merger.app.memory_choice import MemoryChoice
from merger.app.memory_plan import MemoryPlan
from merger.app.runtime import Runtime
from merger.app.session import Session
from merger.blend.sources import SHARE, Hold, free_memory
from merger.config.config import Config
from merger.errors import NoRoom
from merger.scoring.gradients.checkpointing import can_checkpoint
from merger.scoring.gradients.gradients import BlendGradients
from merger.scoring.gradients.measured import Measurements
from merger.scoring.gradients.memory import drawing_memory, nbytes_of, size
from merger.scoring.gradients.sampling import Differentiation
from merger.scoring.gradients.steps import FreshSteps
from merger.scoring.gradients.ways import Way, ways
from merger.scoring.objective import TAGGER

CONTEXT = 500_000_000  # bytes that CUDA takes for itself, and that torch does not count


@dataclass(frozen=True)
class Planned:
    """A plan, and what takes the gradient steps as it says; None without gradients."""

    plan: MemoryPlan
    steps: FreshSteps | None = None


def plan_memory(session: Session, runtime: Runtime, *, gradients: bool) -> Planned:
    """Chooses how the search computes and where base and donors lie, and arranges it so.

    gradients: whether it takes gradient steps. Without a limit in the configuration, three quarters of what is free may
    be taken. Raises `NoRoom`, which says what the least would be, if nothing fits. A method that asks for gradients by
    name, without a limit, gets the way that takes least.
    """
    return _Planner(session, runtime).planned(gradients=gradients)


def differentiation(config: Config) -> Differentiation:
    """What of the drawing carries gradients, as the configuration says."""
    chosen = config.gradient
    return Differentiation(chosen.backprop_fraction, chain=chosen.chain, spread=chosen.backprop_steps == "spread")


class _Planner:
    def __init__(self, session: Session, runtime: Runtime) -> None:
        self.session, self.runtime, config = session, runtime, session.config
        live, generator = runtime.live, runtime.generator
        live.hold_in("file")  # the least: what is measured must fit beside it
        self.device = torch.device(session.device)
        self.gpu = self.device.type == "cuda"
        self.limited = config.memory_limit is not None
        self.context = CONTEXT if self.gpu and self.limited else 0
        self.plain = differentiation(config)
        self.streams = not config.blends_text
        self.models = nbytes_of(self._modules(), self.device, live.parameters)
        encoders = text_encoders(generator.pipeline)
        self.can_move_text = bool(self.gpu and encoders and not live.text_encoders and generator.can_set_text_aside)
        self.text = nbytes_of(encoders, self.device) if self.can_move_text else 0
        held = self.models + live.live_nbytes
        self.allowed = config.memory_limit or int(SHARE * free_memory(self.device)) + held
        if self.gpu and self.limited:  # so that more is refused, and fewer images at once are tried
            whole = torch.cuda.get_device_properties(self.device).total_memory
            share = (self.allowed - self.context) / whole
            torch.cuda.set_per_process_memory_fraction(min(max(share, 0.0), 1.0), self.device)
        self.room = max(self.allowed - self.context - held + self.text, 0)
        self.batch = generator.batch_size
        self.most = min(self.batch, len(session.exam.prompts["search"]))

    def planned(self, *, gradients: bool) -> Planned:
        """See `plan_memory`."""
        live, generator = self.runtime.live, self.runtime.generator
        if self.can_move_text and gradients:
            generator.set_text_aside(True)  # what is measured must fit beside it
        plan = self._with_gradients() if gradients else self._without()
        if self.can_move_text:
            generator.set_text_aside(plan.way is not None and plan.way.text_aside)
        live.hold_in(plan.hold)
        generator.batch_size = plan.batch
        if plan.way is None or plan.step is None:
            return Planned(plan)
        return Planned(plan, self._steps(plan.way.how, plan.step.images))

    def _with_gradients(self) -> MemoryPlan:
        """The cheapest plan that fits; the one that takes least if none does and it may be tried all the same."""
        measured = self._measurements(self.room)
        best = self._choice.cheapest(measured)
        if best is not None:
            return best
        auto = self.session.config.method == "auto"
        if self.limited or not auto:
            measured = self._measurements(math.inf)
        least = self._choice.least(measured)
        if least is not None and not self.limited and not auto:
            return least
        raise NoRoom(self._refusal(least))

    def _refusal(self, least: MemoryPlan | None) -> str:
        if not self.limited:
            return f"a gradient step needs more memory than the {size(self.room)} that it may take besides the models"
        needs = f"at least {_rounded_up(least.total)}" if least else "more than there is"
        return (
            f"memory: {self.session.config.memory} is too little for a gradient step: with every saving, all together "
            f"takes {needs}. Allow that much, make images smaller, or search without gradients (method: bayes)."
        )

    def _without(self) -> MemoryPlan:
        """Where base and donors lie, and how many images are drawn at once, of a search without gradients."""
        plans = [self._choice.places(hold) for hold in self._holds]
        found = next((plan for plan in plans if plan.total <= plan.allowed), None)
        if found is None and self.limited:
            raise NoRoom(
                f"memory: {self.session.config.memory} is too little to draw one image: all together takes at least "
                f"{_rounded_up(plans[-1].total)}. Allow that much, or make images smaller."
            )
        return found or plans[-1]

    @cached_property
    def _choice(self) -> MemoryChoice:
        """What the plan is chosen from. Where memory is limited, plain trials keep to the limit too."""
        config, live = self.session.config, self.runtime.live
        width, height = config.size
        return MemoryChoice(
            MemoryPlan(
                self.allowed,
                self.models,
                live.live_nbytes,
                live.copies_nbytes,
                self.context,
                self._holds[0],
                self.batch,
                live.blending_nbytes,
            ),
            self._ways,
            partial(
                Way.cost,
                calls=len(self.plain.differentiated(config.steps)),
                steps=config.steps,
                megapixels=width * height / 1e6,
                gpu=self.gpu,
            ),
            self.most,
            self.streams,
            self.text,
            (lambda: self._drawing) if self.limited else None,
        )

    def _measurements(self, room: float) -> Measurements:
        def taker(how: Differentiation) -> BlendGradients:
            return cast(BlendGradients, self._steps(how, 1).gradients)

        return Measurements(taker, self.session.exam.prompts["search"][0], room, streams=self.streams)

    @cached_property
    def _drawing(self) -> int:
        """The most that one image takes in a plain trial."""
        prompt, tagger = self.session.exam.prompts["search"][0], self.session.exam.taggers[TAGGER]
        return drawing_memory(self.runtime.generator, tagger, prompt, self.device)

    @cached_property
    def _ways(self) -> list[Way]:
        networks = {
            "decoder": self.runtime.generator.pipeline.vae,
            "tagger": getattr(self.runtime.exam.taggers[TAGGER], "model", None),
        }
        found = ways(
            self.plain,
            self._holds,
            streams=self.streams,
            halves=self.session.config.guidance > 1,
            inner=can_checkpoint(self.runtime.live.module),
            outer=frozenset(name for name, network in networks.items() if can_checkpoint(network)),
            text_aside=self.can_move_text,
        )
        return list(found)

    @property
    def _holds(self) -> tuple[Hold, ...]:
        """Where base and donors can lie, the quickest place first."""
        if not self.gpu:
            return "device", "file"
        fits = self.runtime.live.copies_nbytes <= SHARE * free_memory(torch.device("cpu"))
        return ("device", "host", "file") if fits else ("device", "file")

    def _steps(self, how: Differentiation, images: int) -> FreshSteps:
        space = self.session.sources.space
        layers = sorted({layer for parameter in space.parameters for layer in parameter.layers})
        return self.runtime.gradient_steps(layers, how, widths=space.widths, micro_batch=images)

    def _modules(self) -> list[nn.Module]:
        parts: Iterable[Any] = (
            *self.runtime.generator.pipeline.components.values(),
            *(getattr(tagger, "model", None) for tagger in self.runtime.exam.taggers.values()),
        )
        return [part for part in parts if isinstance(part, nn.Module)]


def _rounded_up(count: int) -> str:
    """An amount that is enough, as the configuration wants it."""
    unit, name = (1e9, "GB") if count >= 1e9 else (1e6, "MB")
    digits = 10 if unit == 1e9 else 1
    return f"{math.ceil(count / unit * digits) / digits:g}{name}"
