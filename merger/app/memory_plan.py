"""What a search takes of its device's memory, and how: the plan that is printed and kept with the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from merger.blend.sources import Hold
from merger.scoring.gradients.memory import StepMemory, size
from merger.scoring.gradients.ways import Way


@dataclass(frozen=True)
class MemoryPlan:
    """What a search takes of its device's memory, in bytes, and how.

    allowed: what it may take. models: those that stay on the device, without what is blended. live: the live blend.
    copies: base and donors, which lie on the device only if `hold` says so. context: what the device's driver takes.
    batch: images drawn at once in a plain trial. blending: the most that a blend takes while it is computed. drawing:
    the most of a plain trial, if it was measured. step: the memory of a gradient step, computed in this `way`; both
    None without gradients.
    """

    allowed: int
    models: int
    live: int
    copies: int
    context: int
    hold: Hold
    batch: int
    blending: int
    drawing: int | None = None
    way: Way | None = None
    step: StepMemory | None = None

    @property
    def held(self) -> int:
        """What is on the device all the time."""
        return self.context + self.models + self.live + (self.copies if self.hold == "device" else 0)

    @property
    def computing(self) -> int:
        """The most that computing takes besides: a blend, and what was measured of images."""
        return max(self.blending, self.drawing or 0, self.step.needed(self.step.images) if self.step else 0)

    @property
    def total(self) -> int:
        """The most at any time."""
        return self.held + self.computing

    @property
    def lines(self) -> list[str]:
        """What to print."""
        places: dict[Hold, str] = {
            "device": f"base and donors {size(self.copies)}",
            "host": f"base and donors none ({size(self.copies)} of the host's memory)",
            "file": "base and donors none (read from their files)",
        }
        parts = [f"models {size(self.models)}", f"blend {size(self.live)}", places[self.hold]]
        if self.context:
            parts.append(f"CUDA {size(self.context)}")
        computed = "a gradient step" if self.step else "a blend" if self.drawing is None else "images"
        parts.append(f"{computed} {size(self.computing)}")
        lines = [f"memory: {size(self.total)} of the {size(self.allowed)} that may be taken: {', '.join(parts)}"]
        if self.step is not None:
            lines.append(f"memory of a step: {self.step.images} at once, {', '.join(self._said())}")
        return lines

    def _said(self) -> list[str]:
        assert self.way is not None
        how = self.way.how
        said = ["sampling steps computed again" if how.recompute else "sampling steps kept"]
        if how.checkpointed:
            said.append(f"activations computed again in {_listed(sorted(how.checkpointed))}")
        if how.halves:
            said.append("guided pairs one half at a time")
        if how.streamed:
            said.append("gradients streamed")
        if self.way.text_aside:
            said.append("text encoders there only while they encode")
        return said

    @property
    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        found: dict[str, Any] = {
            "allowed": self.allowed,
            "planned": self.total,
            "models": self.models,
            "blend": self.live,
            "base_and_donors": self.copies,
            "base_and_donors_lie": self.hold,
            "computing": self.computing,
        }
        if self.way is not None and self.step is not None:
            how = self.way.how
            found["gradient_step"] = {
                "images_at_once": self.step.images,
                "sampling_steps": "computed again" if how.recompute else "kept",
                "checkpointed": sorted(how.checkpointed),
                "guided_pairs": "halves" if how.halves else "whole",
                "gradients": "streamed" if how.streamed else "gathered",
                "text_encoders": "only while they encode" if self.way.text_aside else "on the device",
            }
        return found


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
