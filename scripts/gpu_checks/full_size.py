"""Full-size models with random weights on a GPU: how fast images are drawn, and what a gradient step takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmark.pipelines.generation import GenerationSettings
from benchmark.pipelines.lending import lent
from benchmark.pipelines.quiet import quiet_diffusers
from benchmark.prompts.prompt_set import Prompt
from merger.blend.live import LiveDenoiser
from merger.blend.sources import SHARE, free_memory
from merger.errors import NoRoom
from merger.layers.channels import CHANNEL, widths
from merger.layers.grouping import group
from merger.scoring.gradients.followed import TooMuch
from merger.scoring.gradients.gradients import BlendGradients
from merger.scoring.gradients.memory import image_memory, size
from merger.scoring.gradients.sampling import DifferentiableGenerator, Differentiation
from merger.scoring.objective import BlendObjective, Metric
from merger.weights import Channels, Weight, Weights
from scripts.full_size_models import FAMILIES, TINY
from scripts.gpu_checks.check import Bench, Finding, Skipped, judged
from scripts.gpu_checks.models import DONORS, live_of, prompts_of, random_pipeline, random_tagger, sources_of

SIDES = {"sd1": 512, "sdxl": 1024}
MOST_IMAGES = {"sd1": 8, "sdxl": 2}
AS_FAST = 0.95
"""The least share of a plain loop's images per second."""
NEAR_PLAN = 0.15
"""How far the memory of a step may be from its plan."""
COSTS = {"kept": 2.0, "computed again": 2.5, "streamed": 2.5}
"""What a step costs in plain trials of as many images if half of the sampling steps are differentiated, counted in
operations (docs/explanation/gradient-search.md): with all steps kept for the backward pass, or each computed again."""
SLOWER = 1.2
"""How many times as much it may take."""

WAYS = {
    "kept": Differentiation(0.5, recompute=False),
    "computed again": Differentiation(0.5),
    "streamed": Differentiation(0.5, streamed=True),
}
"""The product's ways to compute a step, the quickest first (`merger.scoring.gradients.ways`)."""

LOG = Metric("log_probability", 0.5, lambda tag: "general")


@dataclass
class Model:
    """A family's pipeline with a live denoiser of a base and two donors, by channel, and a tagger."""

    live: LiveDenoiser
    generator: DifferentiableGenerator
    tagger: Any
    wide: dict[str, int]

    @property
    def weights(self) -> Weights:
        """About 0.2 of each donor in every channel."""
        draw = np.random.default_rng(0)

        def weight(layer: str) -> Weight:
            values = draw.normal(0.2, 0.05, self.wide.get(layer, 1))
            return Channels(values) if layer in self.wide else float(values[0])

        return {layer: {donor: weight(layer) for donor in DONORS} for layer in self.live.layers}

    def gradients(self, how: Differentiation, micro_batch: int) -> BlendGradients:
        """What takes the step."""
        return BlendGradients(
            self.live, self.generator, self.tagger, LOG, how, micro_batch=micro_batch, widths=self.wide
        )

    def trial(self, prompts: tuple[Prompt, ...]) -> float:
        """A plain trial: blend, images, score. Raises RuntimeError if its score is not finite."""
        score = BlendObjective(self.live, self.generator, self.tagger, prompts, LOG)(self.weights)
        if not np.isfinite(score.value) or score.attributes.get("broken"):
            raise RuntimeError("images of a plain trial are not finite")
        return score.value


def pipeline_of(bench: Bench, name: str, folder: Path) -> Any:
    """The family's pipeline in fp16 (float32 on a CPU)."""
    family = (TINY if bench.tiny else FAMILIES)[name]
    dtype = torch.float16 if bench.cuda else torch.float32
    return random_pipeline(family, folder, bench.device, dtype)


def settings_of(bench: Bench, name: str, batch_size: int | None = None) -> GenerationSettings:
    """Twelve steps, six if quick; the size that the family is made for."""
    side, steps = (64, 2) if bench.tiny else (SIDES[name], 6 if bench.quick else 12)
    return GenerationSettings(steps=steps, sampler="ddim", width=side, height=side, batch_size=batch_size)


@contextmanager
def fitting(bench: Bench, name: str) -> Iterator[None]:
    """Within it, memory that does not suffice is a reason to skip the check: it can be made on a larger card."""
    try:
        yield
    except torch.OutOfMemoryError:
        total = torch.cuda.get_device_properties(bench.device).total_memory if bench.cuda else 0
        raise Skipped(f"{name} does not fit into the {size(total)} of this card") from None


def clocked(bench: Bench, work: Callable[[], object]) -> float:
    """Seconds of a piece of work, until the device has done it."""
    bench.wait()
    began = time.perf_counter()
    work()
    bench.wait()
    return time.perf_counter() - began


def images(bench: Bench) -> Finding:
    """SD 1.5: the project's generator beside a loop of plain diffusers, in turns."""
    at_once = 2 if bench.tiny else 4
    settings = settings_of(bench, "sd1", at_once)
    with fitting(bench, "SD 1.5"):
        pipeline = pipeline_of(bench, "sd1", bench.folder / "images")
    generator = DifferentiableGenerator(pipeline, settings)
    tags = [f"tag {number}" for number in range(at_once)]
    rounds = 1 if bench.tiny else 3

    def ours(turn: int) -> None:
        prompts = [Prompt(i, f"{tag} {turn}", (tag,), 100 * turn + i) for i, tag in enumerate(tags)]
        for batch in generator.generate(prompts):
            assert len(batch) == at_once

    def plain(turn: int) -> None:
        with lent(pipeline, "scheduler", generator.scheduler), quiet_diffusers():
            pipeline(
                [f"{tag} {turn}" for tag in tags],
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance,
                width=settings.width,
                height=settings.height,
                generator=[torch.Generator("cpu").manual_seed(100 * turn + i) for i in range(at_once)],
                output_type="np",
            )

    ours(0)
    plain(0)
    taken = {"ours": 0.0, "plain": 0.0}
    for turn in range(1, rounds + 1):
        taken["ours"] += clocked(bench, lambda turn=turn: ours(turn))  # type: ignore[misc]
        taken["plain"] += clocked(bench, lambda turn=turn: plain(turn))  # type: ignore[misc]
    rates = {name: rounds * at_once / seconds for name, seconds in taken.items()}
    ratio = rates["ours"] / rates["plain"]
    ok, why = judged(bench, ratio >= AS_FAST)
    measured = f"{rates['ours']:.2f} images/s, plain {rates['plain']:.2f}: {ratio:.3f} times"
    return Finding(f"{measured} ({settings.width} x {settings.height}, {settings.steps} steps)", ok, rates, why)


def step_sd1(bench: Bench) -> Finding:
    """A gradient step of Stable Diffusion 1.5 at 512 x 512."""
    return _step(bench, "sd1")


def step_sdxl(bench: Bench) -> Finding:
    """A gradient step of SDXL at 1024 x 1024."""
    return _step(bench, "sdxl")


def _step(bench: Bench, name: str) -> Finding:
    with fitting(bench, "a blend of two donors and an image of it"):
        model = _model(bench, name)
        once = prompts_of(model.tagger, 1)
        model.trial(once)  # the first call loads kernels
    plain = clocked(bench, lambda: model.trial(once))
    count = _as_many(bench, name, plain)
    prompts = prompts_of(model.tagger, count)
    plain = clocked(bench, lambda: model.trial(prompts)) if count > 1 else plain
    figures: dict[str, dict[str, float]] = {}
    refusals = []
    for way, how in WAYS.items():
        if figures and bench.quick:
            break
        try:
            figures[way] = _measure(bench, model, prompts, plain, how)
        except NoRoom as error:
            refusals.append(f"{way}: {error}")
    return _found(bench, figures, refusals)


def _model(bench: Bench, name: str) -> Model:
    folder = bench.folder / name
    pipeline = pipeline_of(bench, name, folder)
    tagger = random_tagger(folder / "tagger", bench.device, tiny=bench.tiny)
    sources = sources_of(pipeline.unet, bench.device)
    layers = group(list(sources[0].blended), CHANNEL)
    wide = widths(layers, {tensor: info.shape for tensor, info in sources[0].blended.items()})
    live = live_of(pipeline.unet, sources, layers)
    bench.say(f"{name}: base and donors are held in {live.hold}, {size(live.nbytes)}")
    return Model(live, DifferentiableGenerator(pipeline, settings_of(bench, name)), tagger, wide)


def _as_many(bench: Bench, name: str, seconds: float) -> int:
    """How many images a step may have in the time that is left: one takes about 3 plain ones, twice over if warm."""
    fit = int(bench.left / (8 * seconds)) if bench.left < float("inf") else MOST_IMAGES[name]
    if fit < 1:
        raise Skipped(f"an image takes {seconds:.0f} s, too long for the time that is left")
    return min(fit, 2 if bench.tiny or bench.quick else MOST_IMAGES[name])


def _measure(
    bench: Bench, model: Model, prompts: tuple[Prompt, ...], plain: float, how: Differentiation
) -> dict[str, float]:
    """One way to take the step. Raises NoRoom if its plan says that it does not fit."""
    plan = planned(bench, model, prompts, how)
    gradients = model.gradients(how, plan.at_once)
    gradients.measure(model.weights, prompts[:1])  # the first call loads kernels
    bench.clear()
    other = torch.cuda.memory_allocated(bench.device) - model.live.nbytes if bench.cuda else 0
    found: list[Any] = []
    seconds = clocked(bench, lambda: found.append(gradients.measure(model.weights, prompts)))
    check_step(found[0])
    peak = torch.cuda.max_memory_allocated(bench.device) if bench.cuda else 0
    reserved = torch.cuda.max_memory_reserved(bench.device) if bench.cuda else 0
    expected = other + plan.bytes
    return {
        "images": len(prompts),
        "at once": plan.at_once,
        "at once in the end": gradients.micro_batch,
        "seconds": seconds,
        "plain trials": seconds / plain,
        "planned": expected,
        "peak": peak,
        "peak of planned": peak / expected,
        "reserved": reserved,
        **plan.parts,
    }


@dataclass(frozen=True)
class Plan:
    """What the program plans for a step: images at once, and bytes of blend, sources, gradients and activations."""

    at_once: int
    bytes: int
    parts: Mapping[str, float]


def planned(bench: Bench, model: Model, prompts: tuple[Prompt, ...], how: Differentiation) -> Plan:
    """The program's own plan for a step of these prompts. All that is known here of how it plans is in this function.

    Raises NoRoom if the step does not fit.
    """
    free = SHARE * free_memory(bench.device)
    at_once = 0
    try:
        memory = image_memory(model.gradients(how, 1), prompts[0], free).of_step(how, model.live.nbytes, 1)
        at_once = memory.most_images(free, len(prompts))
    except (TooMuch, torch.OutOfMemoryError):
        pass
    if not at_once:
        raise NoRoom(f"a gradient step needs more memory than the {size(free)} that it may take besides the models")
    parts = {"held": memory.held, "gradients": memory.gradients, "one image": memory.needed(1) - memory.gradients}
    return Plan(at_once, memory.held + memory.needed(at_once), parts)


def check_step(found: Any) -> None:
    """Raise RuntimeError unless a step has finite images and a finite gradient that is not 0 throughout."""
    score, gradients, evaluation = found
    values = np.concatenate([np.ravel(weight) for row in gradients.values() for weight in row.values()])
    if np.any(evaluation.broken) or not np.isfinite(score.value) or not np.isfinite(values).all() or not values.any():
        raise RuntimeError("images or gradients of a step are not finite, or all of the gradient is 0")


def _found(bench: Bench, figures: dict[str, dict[str, float]], refusals: list[str]) -> Finding:
    if not figures:
        raise Skipped("; ".join(refusals))
    texts, ok = [], True
    for way, figure in figures.items():
        texts.append(
            f"{way}: {figure['peak'] / 1e9:.1f} GB, planned {figure['planned'] / 1e9:.1f}; "
            f"{figure['seconds']:.1f} s for {figure['images']:.0f} images, {figure['at once in the end']:.0f} at once: "
            f"{figure['plain trials']:.2f} plain trials"
        )
        near = abs(figure["peak of planned"] - 1) <= NEAR_PLAN
        ok = (
            ok
            and near
            and figure["plain trials"] <= SLOWER * COSTS[way]
            and figure["at once in the end"] == figure["at once"]
        )
    judgement, why = judged(bench, ok)
    return Finding("; ".join(texts), judgement, figures, "; ".join(filter(None, (why, *refusals))))
