"""Gradients on a GPU: in half precision beside float32, with every saving of memory, and with too little memory.

On the demo family: its weights, its tagger and its prompts are trained and real, however small.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from benchmark.pipelines.lending import lent
from benchmark.pipelines.quiet import quiet_diffusers
from benchmark.prompts.prompt_set import Prompt
from merger.app.runtime import load_runtime
from merger.app.session import open_session
from merger.config.loading import load_config
from merger.scoring.gradients.gradients import BlendGradients
from merger.scoring.gradients.sampling import Differentiation
from merger.weights import Weights
from scripts.gpu_checks.check import Bench, Finding, Skipped

DEMO = Path(__file__).resolve().parent.parent.parent / "demo" / "search.yaml"

# type -> least cosine of the whole gradient, its largest relative error, least cosine of 95 % of the layers. On a CPU,
# with 4 prompts: fp16 0.9989, 0.05, 0.996; bf16 0.945, 0.57, 0.72.
LIMITS = {"cpu fp32": (0.9999, 0.01, 0.999), "tf32": (0.999, 0.05, 0.99), "fp16": (0.99, 0.15, 0.95)}
LIMITS["bf16"] = (0.85, 0.8, 0.5)
SAME = 1e-4
"""The most relative difference of gradients that are the same but for rounding, in float32."""

Gradient = NDArray[np.float64]  # [layer, donor]


@dataclass(frozen=True)
class Demo:
    """The demo family on a device, ready for gradients."""

    gradients: BlendGradients
    prompts: tuple[Prompt, ...]

    @property
    def weights(self) -> Weights:
        """The uniform average, where the demo's search begins."""
        return {layer: dict.fromkeys(self.gradients.live.donors, 0.2) for layer in self.gradients.layers}

    def step(self) -> Gradient:
        """The gradient of a step. Raises RuntimeError if an image is broken."""
        score, found, evaluation = self.gradients.measure(self.weights, self.prompts)
        if np.any(evaluation.broken) or not np.isfinite(score.value):
            raise RuntimeError(f"{int(np.sum(evaluation.broken))} images are not finite")
        return np.array([[row[donor] for donor in self.gradients.live.donors] for row in found.values()])


def demo(bench: Bench, device: str, dtype: str, prompts: int) -> Demo:
    """The demo's search, opened as the program opens it. The first prompts of its first step."""
    changed: dict[str, Any] = {"device": device, "dtype": dtype, "judge": None}
    changed |= {"validation_prompts": 8, "test_prompts": 8}
    changed |= {"steps": 2} if bench.tiny else {}
    with quiet_diffusers():  # it warns of half precision on a CPU
        session = open_session(load_config(DEMO).model_copy(update=changed))
        runtime = load_runtime(session, gradients=True)
    made = runtime.gradient_steps(list(session.sources.layers), Differentiation(0.5))
    return Demo(cast(BlendGradients, made.gradients), session.exam.step_prompts(0)[:prompts])


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Within it, convolutions and products of matrices in float32 may round their factors to TF32, or may not."""
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = allowed
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def gradient_types(bench: Bench) -> Finding:
    """fp16, bf16 and TF32 beside float32 on the device, and float32 on the CPU too."""
    prompts = 1 if bench.tiny else 8 if bench.quick else 16
    here = str(bench.device)
    with tf32(False):
        reference = demo(bench, here, "fp32", prompts).step()
    ways: dict[str, tuple[str, str]] = {"fp16": (here, "fp16"), "bf16": (here, "bf16")}
    if bench.cuda:
        ways = {"cpu fp32": ("cpu", "fp32"), "tf32": (here, "fp32"), **ways}
    figures, wrong = {}, []
    for name, (device, dtype) in ways.items():
        with tf32(name == "tf32"):
            found = demo(bench, device, dtype, prompts).step()
        bench.clear()
        figures[name] = agreement(reference, found)
        least, most, layers = LIMITS[name]
        figure = figures[name]
        if figure["cosine"] < least or figure["relative error"] > most or figure["layers, 5 %"] < layers:
            wrong.append(name)
    measured = "; ".join(
        f"{name}: {figure['cosine']:.4f}, {figure['relative error']:.3f}, {figure['layers, 5 %']:.3f}"
        for name, figure in figures.items()
    )
    ok, why = (not wrong, f"beyond its limit: {', '.join(wrong)}" if wrong else "")
    if bench.tiny:
        return Finding(measured, None, figures, "it ran; a prompt and two steps are too few for the limits")
    return Finding(measured, ok, figures, why)


def agreement(expected: Gradient, found: Gradient) -> dict[str, float]:
    """Of two gradients [layer, donor]: the whole, and the layers one by one."""
    sizes = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    cosines = (expected * found).sum(axis=1) / np.where(sizes > 0, sizes, 1)
    errors = np.linalg.norm(found - expected, axis=1) / np.maximum(np.linalg.norm(expected, axis=1), 1e-30)
    whole = float(np.linalg.norm(expected) * np.linalg.norm(found))
    return {
        "cosine": float((expected * found).sum() / whole) if whole else 0.0,
        "relative error": float(np.linalg.norm(found - expected) / np.linalg.norm(expected)),
        "layers, 5 %": float(np.quantile(cosines, 0.05)),
        "layers, least": float(cosines.min()),
        "layers' error, median": float(np.median(errors)),
        "layers' error, 95 %": float(np.quantile(errors, 0.95)),
    }


def savings(bench: Bench) -> Finding:
    """The same gradient in float32 with each way to save memory, and prompt by prompt."""
    prompts = 2 if bench.tiny else 8
    ways = {
        "streamed": (Differentiation(streamed=True), prompts),
        "steps kept": (Differentiation(recompute=False), prompts),
        "prompt by prompt": (Differentiation(), 1),
    }
    figures = {}
    with tf32(False):
        made = demo(bench, str(bench.device), "fp32", prompts)
        expected = made.step()
        for name, (how, at_once) in ways.items():
            made.gradients.how, made.gradients.micro_batch = how, at_once
            figures[name] = float(np.linalg.norm(made.step() - expected) / np.linalg.norm(expected))
    measured = "; ".join(f"{name} {value:.1e}" for name, value in figures.items())
    return Finding(measured, max(figures.values()) <= SAME, figures)


def out_of_memory(bench: Bench) -> Finding:
    """A step with less memory than its batch wants: halved for good, with the same gradient."""
    prompts = 4 if bench.tiny else 32
    with tf32(False):
        made = demo(bench, str(bench.device), "fp32", prompts)
        made.gradients.micro_batch = prompts
        if bench.cuda:
            made.step()  # libraries take their own memory at their first call
        most, expected = _peak(bench, made)
        least = _least(bench, made, prompts // 4)
        made.gradients.micro_batch = prompts
        if bench.cuda and most - least < 1 << 26:
            raise Skipped(f"{prompts} images take only {(most - least) / 1e6:.0f} MB more than {prompts // 4}")
        with _limited(bench, made, (most + least) / 2):
            failures = [_failures(bench)]
            found = made.step()
            halved = made.gradients.micro_batch
            failures.append(_failures(bench))
            again = made.step()
            failures.append(_failures(bench))
    error = max(float(np.linalg.norm(each - expected) / np.linalg.norm(expected)) for each in (found, again))
    kept = made.gradients.micro_batch == halved
    figures: dict[str, Any] = {"from": prompts, "to": halved, "relative difference": error, "peak": most}
    figures |= {"failures": failures[1] - failures[0], "failures of the next step": failures[2] - failures[1]}
    measured = f"{prompts} images at once became {halved}" + ("" if kept else ", then fewer")
    return Finding(f"{measured}; gradient differs by {error:.1e}", halved < prompts and kept and error <= SAME, figures)


def _peak(bench: Bench, made: Demo) -> tuple[int, Gradient]:
    """The most memory that a step reserves on a GPU, in bytes (0 on a CPU), and its gradient."""
    bench.clear()
    gradient = made.step()
    return (torch.cuda.max_memory_reserved(bench.device) if bench.cuda else 0), gradient


def _least(bench: Bench, made: Demo, images: int) -> int:
    """The same with so many images at once; on a CPU, where it is not known, nothing is computed."""
    made.gradients.micro_batch = images
    return _peak(bench, made)[0] if bench.cuda else 0


def _failures(bench: Bench) -> int:
    """How many allocations have failed on a GPU so far."""
    return int(torch.cuda.memory_stats(bench.device).get("num_ooms", 0)) if bench.cuda else 0


@contextmanager
def _limited(bench: Bench, made: Demo, most: float) -> Iterator[None]:
    """Within it, only `most` bytes can be had on a GPU; on a CPU, more than a quarter of the images are refused."""
    if bench.cuda:
        bench.clear()
        total = torch.cuda.get_device_properties(bench.device).total_memory
        torch.cuda.set_per_process_memory_fraction(most / total, bench.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, bench.device)
        return
    draw = made.gradients.generator.draw

    def cramped(prompts: Any, *args: Any) -> Any:
        if len(prompts) > len(made.prompts) // 4:
            raise torch.OutOfMemoryError("a limit that a check has set")
        return draw(prompts, *args)

    with lent(made.gradients.generator, "draw", cramped):
        yield
