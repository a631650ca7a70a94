"""Which plan a search is given: of all ways of computing that fit, the cheapest one. Nothing is arranged here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from merger.app.memory_plan import MemoryPlan
from merger.blend.sources import Hold
from merger.scoring.gradients.measured import Measurements
from merger.scoring.gradients.ways import Way


@dataclass(frozen=True)
class MemoryChoice:
    """What a plan is chosen from, in bytes.

    bare: what the search takes however it computes; a plan without a step, its text encoders on the device. cost: of an
    image, in a way and with so many at once. most: images of a step. streams: whether gradients can be streamed. text:
    what of the models can leave the device while no text is encoded. drawing: gives the most that an image takes in a
    plain trial; None where plain trials need not keep to the limit.
    """

    bare: MemoryPlan
    ways: Sequence[Way]
    cost: Callable[[Way, int], float]
    most: int
    streams: bool
    text: int = 0
    drawing: Callable[[], int] | None = None

    def cheapest(self, measured: Measurements) -> MemoryPlan | None:
        """The cheapest plan that fits; None if none does."""
        best: MemoryPlan | None = None
        rank: tuple[float, int] = (math.inf, 0)
        for way in sorted(self.ways, key=lambda way: self._rank(way, self.most)):
            if rank <= self._rank(way, self.most):  # it could not be cheaper, so it is not measured
                break
            plan = self.plan(way, measured)
            if plan is not None and plan.step is not None and plan.total <= plan.allowed:
                found = self._rank(way, plan.step.images)
                best, rank = (plan, found) if found < rank else (best, rank)
        return best

    def least(self, measured: Measurements) -> MemoryPlan | None:
        """The plan that takes least; None if even that is more than there is."""
        saving = [way for way in self.ways if way.hold == "file" and way.how.streamed == self.streams]
        most = max(way.savings for way in saving)
        plans = [self.plan(way, measured) for way in saving if way.savings == most]
        return min((plan for plan in plans if plan is not None), key=lambda plan: plan.total, default=None)

    def plan(self, way: Way, measured: Measurements) -> MemoryPlan | None:
        """The plan of computing in this way, with as many images at once as fit; None if it was too much to measure."""
        image = measured.of(way.how)
        if image is None:
            return None
        plan = self.places(way.hold, way.text_aside)
        step = image.of_step(way.how, plan.held, 1)
        if way.text_aside:
            step = replace(step, visiting=self.text)
        images = step.most_images(plan.allowed - plan.held, self.most)
        return replace(plan, way=way, step=replace(step, images=max(images, 1)))

    def places(self, hold: Hold, text_aside: bool = False) -> MemoryPlan:
        """The plan without a step, with base and donors in this place."""
        models = self.bare.models - (self.text if text_aside else 0)
        plan = replace(self.bare, hold=hold, models=models)
        if self.drawing is None:
            return plan
        drawing = self.drawing()
        batch = max(1, min(plan.batch, (plan.allowed - plan.held) // drawing))
        return replace(plan, batch=batch, drawing=batch * drawing)

    def _rank(self, way: Way, images: int) -> tuple[float, int]:
        """What a way costs an image, with so many at once; of equal ones the plainer comes first."""
        return self.cost(way, images), way.savings
