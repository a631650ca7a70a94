"""How much memory a gradient step of full-size models takes, and how many operations, without a GPU.

    python -m scripts.measure_memory               plans for Stable Diffusion 1.5 and SDXL, as Markdown
    python -m scripts.measure_memory --tiny        the same with networks of a few kilobytes

    python -m scripts.measure_memory --real sd1    real steps of a random SD 1.5 on this CPU, beside their plans

Plans are the product's own, for a GPU, with two donors by channel. Networks have their true shapes, and no
weights (`scripts.weightless`). Memory is followed from operation to operation; what kernels take for themselves is not
seen. Operations are matrix products, convolutions and attention.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmark.pipelines.generation import GenerationSettings
from benchmark.pipelines.lending import lent
from benchmark.pipelines.loading import dtypes
from benchmark.pipelines.quiet import quiet_diffusers
from benchmark.pipelines.text_visits import text_encoders
from benchmark.taggers.asking import probabilities_of
from merger.app.memory_choice import MemoryChoice
from merger.app.memory_plan import MemoryPlan
from merger.app.memory_planner import CONTEXT
from merger.blend.live import blending_nbytes
from merger.blend.sources import Hold
from merger.scoring.gradients.gradients import BlendGradients
from merger.scoring.gradients.measured import Measurements
from merger.scoring.gradients.memory import drawing_memory, nbytes_of, size
from merger.scoring.gradients.sampling import NETWORKS, Differentiation
from merger.scoring.gradients.ways import OTHERS, Way, ways
from scripts.full_size_models import FAMILIES, TINY
from scripts.gpu_checks.full_size import SIDES, Model
from scripts.gpu_checks.models import prompts_of
from scripts.real_memory import WAYS, measure_real
from scripts.real_memory import tell as tell_real_step
from scripts.weightless import META, Operations, modules_of, no_values, weightless_model

GB = 10**9
HOLDS: tuple[Hold, ...] = ("device", "host", "file")
STEPS = 12
LIMITS = {"sd1": (6 * GB,), "sdxl": (12 * GB, 24 * GB)}
"""Bytes that plans are asked for."""
CASES = (("sd1", "fp16"), ("sdxl", "fp16"), ("sdxl", "bf16"))
"""SDXL's VAE overflows in fp16, so its pipeline decodes in float32 then, and in bf16 it does not."""
TITLES = {"sd1": "Stable Diffusion 1.5", "sdxl": "SDXL"}
_MOST = 64  # prompts


@dataclass(eq=False)
class Case:
    """A family at its own size. name: `sd1` or `sdxl`. plain: how much of the sampling carries gradients."""

    name: str
    model: Model
    side: int
    plain: Differentiation

    @property
    def calls(self) -> int:
        """Sampling steps that carry gradients."""
        return len(self.plain.differentiated(STEPS))

    @cached_property
    def measured(self) -> Measurements:
        """What an image takes in each way; measured when it is asked for."""

        def taker(how: Differentiation) -> BlendGradients:
            return self.model.gradients(how, 1)

        return Measurements(taker, self.prompts[0], math.inf, streams=True)

    @cached_property
    def prompts(self) -> tuple[Any, ...]:
        """One prompt."""
        return prompts_of(self.model.tagger, 1)

    @cached_property
    def drawing(self) -> int:
        """Bytes that one image takes in a plain trial."""
        return drawing_memory(self.model.generator, self.model.tagger, self.prompts[0], META)

    @cached_property
    def ways(self) -> list[Way]:
        """All ways of computing a step on a GPU."""
        return list(ways(self.plain, HOLDS, streams=True, halves=True, inner=True, outer=OTHERS, text_aside=True))

    def choice(self, allowed: int) -> MemoryChoice:
        """What the product chooses a plan from, on a GPU with so many bytes."""
        live = self.model.live
        models = nbytes_of(modules_of(self.model), META, live.parameters)
        text = nbytes_of(text_encoders(self.model.generator.pipeline), META)
        largest = max(parameter.numel() for parameter in live.parameters)
        blending = blending_nbytes(largest, live.parameters[0].element_size(), len(live.donors), gpu=True)
        free = max(allowed - CONTEXT - models - live.live_nbytes, 0)
        batch = max(1, min(256, free // (6000 * self.side**2)))  # as the product's generator does it on a GPU
        return MemoryChoice(
            MemoryPlan(allowed, models, live.live_nbytes, live.copies_nbytes, CONTEXT, "device", batch, blending),
            self.ways,
            functools.partial(Way.cost, calls=self.calls, steps=STEPS, megapixels=self.side**2 / 1e6, gpu=True),
            min(batch, _MOST),
            streams=True,
            text=text,
            drawing=lambda: self.drawing,
        )

    @functools.cache  # noqa: B019 - a case lives as long as the program
    def operations(self, how: Differentiation | None) -> float:
        """Of an image in a step computed so, or of a plain one.

        Counted in one and in two sampling steps: all others take as many as the second.
        """
        one, two = (self._counted(how, steps) for steps in (1, 2))
        if how is None:
            return one + (STEPS - 1) * (two - one)
        plain_one, plain_two = (self._counted(None, steps) for steps in (1, 2))
        return one + (self.calls - 1) * (two - one) + (STEPS - self.calls) * (plain_two - plain_one)

    @functools.cache  # noqa: B019
    def _counted(self, how: Differentiation | None, steps: int) -> int:
        generator = self.model.generator
        with Operations() as counted:
            if how is not None:
                self.model.gradients(how, 1).rehearse(self.prompts[0], steps)
            else:
                settings = GenerationSettings(steps=steps, sampler="ddim", width=self.side, height=self.side)
                with lent(generator, "settings", settings):
                    for images in generator.generate(self.prompts):
                        probabilities_of(self.model.tagger, images)
        return counted.total

    def times(self, how: Differentiation) -> float:
        """Operations of an image in a step, in plain images."""
        how = replace(how, streamed=False, halves=False)  # which take no more
        return self.operations(how) / self.operations(None)


def least_of(case: Case, hold: Hold, *, streamed: bool) -> MemoryPlan:
    """The plan that takes least, with base and donors in this place."""
    some = [way for way in case.ways if way.hold == hold and way.how.streamed == streamed and way.how.recompute]
    most = max(way.savings for way in some)
    choice = case.choice(0)  # so there is one image at once
    plan = next(choice.plan(way, case.measured) for way in some if way.savings == most)
    assert plan is not None
    return replace(plan, allowed=plan.total)


def plans_of(case: Case, limits: Sequence[int]) -> Iterator[tuple[str, MemoryPlan | None]]:
    """What is asked for, and the plan; None if none fits."""
    for limit in limits:
        yield f"`memory: {limit // GB}GB`", case.choice(limit).cheapest(case.measured)
    yield "least, gradients streamed, base and donors in the host's memory", least_of(case, "host", streamed=True)
    yield "least, gradients not streamed", least_of(case, "host", streamed=False)


def tell_plans(case: Case, limits: Sequence[int]) -> None:
    """Print a table of the plans, and each as the product prints it."""
    found = list(plans_of(case, limits))
    print("| plan | memory | images at once | operations of an image in a step |")
    print("| --- | --- | --- | --- |")
    for asked, plan in found:
        if plan is None or plan.way is None or plan.step is None:
            print(f"| {asked} | none fits | - | - |")
            continue
        times = case.times(plan.way.how)
        print(f"| {asked} | {size(plan.total)} | {plan.step.images} | {times:.2f} plain images |")
    print("\n```")
    for asked, plan in found:
        if plan is not None:
            print(asked.replace("`", ""), *plan.lines, sep="\n  ")
    print("```\n")


def tell_parts(case: Case) -> None:
    """Print what one image takes in each way of computing it."""
    print("| saving | one sampling step | decoder | decoder, while the tagger computes | tagger |")
    print("| --- | --- | --- | --- | --- |")
    for name, checkpointed, halves in (
        ("none", frozenset[str](), False),
        ("guided pairs in halves", frozenset[str](), True),
        ("activation checkpointing", frozenset(NETWORKS), False),
        ("both", frozenset(NETWORKS), True),
    ):
        image = case.measured.of(replace(case.plain, streamed=True, checkpointed=checkpointed, halves=halves))
        assert image is not None
        parts = (image.step, image.decoder + image.fixed, image.decoded_kept + image.fixed, image.tagger)
        print(f"| {name} | {' | '.join(map(size, parts))} |")
    print()


def tell_operations(case: Case) -> None:
    """Print the operations of an image, in plain images."""
    everything = frozenset(NETWORKS)
    print(f"A plain image takes {case.operations(None) / 1e12:.4g} TFLOP; an image in a step takes as many as\n")
    print("| what is computed again | plain images |")
    print("| --- | --- |")
    for name, how in (
        ("nothing", replace(case.plain, recompute=False)),
        ("decoder and tagger", replace(case.plain, recompute=False, checkpointed=OTHERS)),
        ("sampling steps", case.plain),
        ("sampling steps, and activations in all networks", replace(case.plain, checkpointed=everything)),
    ):
        print(f"| {name} | {case.times(how):.2f} |")
    print()


def tell_case(name: str, dtype: str, fraction: float, *, tiny: bool) -> None:
    """Measure a family in a type, and print all of it."""
    side = 64 if tiny else SIDES[name]
    settings = GenerationSettings(steps=STEPS, sampler="ddim", width=side, height=side, batch_size=1)
    family, plain = (TINY if tiny else FAMILIES)[name], Differentiation(fraction)
    with tempfile.TemporaryDirectory() as folder, quiet_diffusers(), no_values():
        case = Case(name, weightless_model(family, settings, Path(folder), dtypes()[dtype]), side, plain)
        print(f"{TITLES[name]} at {side} x {side} in {dtype}, {STEPS} sampling steps, {case.calls} with gradients:\n")
        tell_plans(case, LIMITS[name])
        print("What one image takes:\n")
        tell_parts(case)
        tell_operations(case)


def tell_real(name: str, ways: Sequence[str], *, tiny: bool, folder: Path | None) -> bool:
    """Take real steps and print a table; whether every one is near its plan."""
    print(f"| model | type | way | planned | measured | measured / planned | seconds |\n|{' --- |' * 7}", flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        near = [tell_real_step(measure_real(name, way, tiny=tiny, folder=Path(made))) for way in ways]
    return all(near)


def main(arguments: Sequence[str]) -> int:
    """Measure and print; 1 if a real step is not near its plan."""
    parser = argparse.ArgumentParser(prog="measure_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="networks of a few kilobytes, to try the program")
    parser.add_argument("--only", choices=LIMITS, help="one of the two families")
    parser.add_argument("--dtype", choices=("fp16", "bf16"), help="one of the two types")
    parser.add_argument("--fraction", type=float, default=0.5, help="share of the sampling steps with gradients")
    parser.add_argument("--real", choices=LIMITS, help="a real step of this family in place of plans")
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=list(WAYS), help="how real steps are computed")
    parser.add_argument("--folder", type=Path, help="where a real step's files are written for a while; 7 or 21 GB")
    options = parser.parse_args(arguments)
    if options.real:
        return 0 if tell_real(options.real, options.ways, tiny=options.tiny, folder=options.folder) else 1
    for name, dtype in CASES:
        if options.only in (None, name) and options.dtype in (None, dtype):
            tell_case(name, dtype, options.fraction, tiny=options.tiny)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
