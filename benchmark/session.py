"""One run of the benchmark from the command line: check every argument, then draw what is missing, model by model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmark.calibration import Setting, calibrate
from benchmark.comparison import ModelScores, compare
from benchmark.completing import complete_rows
from benchmark.encoders import Look
from benchmark.errors import InputError, did_you_mean
from benchmark.generation import DiffusersGenerator, GenerationSettings, ImageGenerator
from benchmark.looks import beside, open_looks
from benchmark.page import Sample
from benchmark.pipelines import OWN_SAMPLER, SAMPLERS, check_single_file, load_pipeline, local_source
from benchmark.progress import Progress
from benchmark.prompts import (
    Prompt,
    Vocabulary,
    derive_seed,
    fingerprint,
    make_prompts,
    read_vocabulary,
    vocabulary_from_tags,
)
from benchmark.results import Plan, Rows, joint_fingerprint, model_fingerprint
from benchmark.runner import Evaluation
from benchmark.taggers import Tagger, columns_of, open_tagger
from benchmark.text import plain_text

SAMPLES = 8  # images of each model that the page shows


@dataclass(frozen=True)
class Session:
    """What a command line asks for, checked. `models`: name -> file or folder on this disk."""

    models: Mapping[str, Path]
    taggers: Mapping[str, Tagger]
    looks: Mapping[str, Look]
    frechet: Path | None
    thresholds: Mapping[str, float]
    vocabulary: Vocabulary
    prompts: tuple[Prompt, ...]
    settings: GenerationSettings
    pipeline: str | None
    device: str
    dtype: str | None
    output: Path
    keep_images: bool

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Session:
        """Check the arguments of `cli.add_arguments`. Raises InputError, before anything is loaded or written."""
        width, height = _size(args.size)
        settings = GenerationSettings(
            args.steps, args.sampler, args.guidance, width, height, args.negative, args.batch_size, args.clip_skip - 1
        )
        if settings.sampler not in (OWN_SAMPLER, *SAMPLERS):
            raise InputError(f"Unknown sampler '{args.sampler}'.{did_you_mean(args.sampler, [OWN_SAMPLER, *SAMPLERS])}")
        thresholds = {"tagger": args.threshold}
        if args.judge:
            thresholds["judge"] = args.threshold if args.judge_threshold is None else args.judge_threshold
        for role, threshold in thresholds.items():
            if not 0 < threshold < 1:
                raise InputError(f"The threshold of the {role} is {threshold}; it must lie between 0 and 1.")
        sizes = parse_sizes(args.tags_per_prompt)
        models = _models(args.models)
        if args.pipeline and not Path(args.pipeline).is_dir() and args.pipeline.count("/") != 1:
            raise InputError(f"{args.pipeline}: there is no such folder (--pipeline).")
        device = args.device or _default_device()
        taggers = {"tagger": open_tagger(args.tagger, kind=args.tagger_kind, device=device, threads=args.threads)}
        if args.judge:
            taggers["judge"] = open_tagger(args.judge, kind=args.judge_kind, device=device, threads=args.threads)
        looks = open_looks(args, device)
        vocabulary = _vocabulary(args.tags, taggers["tagger"])
        for tagger in taggers.values():
            columns_of(tagger, vocabulary.tags)
        prompts = prompts_of_sizes(vocabulary, args.prompts, sizes, args.seed, args.template, args.images)
        return cls(
            models,
            taggers,
            looks,
            args.frechet,
            thresholds,
            vocabulary,
            prompts,
            settings,
            args.pipeline,
            device,
            args.dtype,
            args.output,
            args.keep_images,
        )

    def compare(self) -> tuple[tuple[ModelScores, ...], tuple[Sample, ...]]:
        """Draw what is missing and compare: the figures, and a few prompts with every model's picture.

        Raises InputError where a model cannot be loaded.
        """
        self._make_output()
        evaluations, folders = {}, {}
        for number, (name, path) in enumerate(self.models.items(), start=1):
            label = f"{name} ({number}/{len(self.models)})"
            evaluations[name], folders[name] = self._evaluate(name, path, label)
        against = beside(self.looks, self.prompts, self.frechet, self.output / "references")
        models = compare(evaluations, self.vocabulary.category, self.thresholds, against)
        return models, self._samples(evaluations, folders)

    def calibrate(self, steps: Sequence[int]) -> tuple[Setting, ...]:
        """Draw every model at each number of steps, and compare them with the most. Raises InputError as `compare`."""
        self._make_output()
        evaluations: dict[int, dict[str, Evaluation]] = {}
        for number in steps:
            session = replace(self, settings=replace(self.settings, steps=number))
            evaluations[number] = {
                name: session._evaluate(name, path, f"{name}, {number} steps")[0] for name, path in self.models.items()
            }
        main, threshold = next(iter(self.thresholds.items()))
        return calibrate(evaluations, main, threshold)

    def _make_output(self) -> None:
        try:
            self.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.output}: cannot be written to ({error.strerror}).") from None

    def _samples(self, evaluations: Mapping[str, Evaluation], folders: Mapping[str, Path]) -> tuple[Sample, ...]:
        """The first images of every model that kept its pictures, with the tags found and missed."""
        main, threshold = next(iter(self.thresholds.items()))
        samples = []
        for row, prompt in enumerate(self.prompts[:SAMPLES]):
            drawn = {}
            for name, evaluation in evaluations.items():
                picture = folders[name] / "images" / f"{row:06}.webp"
                said = dict(zip(evaluation.tags, evaluation.probabilities[main][row], strict=True))
                found = tuple(tag for tag in prompt.tags if said[tag] >= threshold)
                if picture.is_file():
                    drawn[name] = (picture, found, tuple(tag for tag in prompt.tags if tag not in found))
            if drawn:
                samples.append(Sample(plain_text(prompt.text), drawn))
        return tuple(samples)

    def settings_for_json(self) -> dict[str, Any]:
        """What decides the figures."""
        settings = asdict(replace(self.settings, batch_size=None))
        del settings["batch_size"]
        return {
            **settings,
            "images": len(self.prompts),
            "prompts": len({prompt.index for prompt in self.prompts}),
            "prompts_sha256": fingerprint(self.prompts),
            "tags": len(self.vocabulary.tags),
            "taggers": {role: tagger.name for role, tagger in self.taggers.items()},
            "looks": {role: look.name for role, look in self.looks.items()},
            "thresholds": dict(self.thresholds),
        }

    def _evaluate(self, name: str, path: Path, label: str) -> tuple[Evaluation, Path]:
        """The model's evaluation and the folder of its rows."""
        config = Path(self.pipeline) if self.pipeline else None
        parts = [model_fingerprint(path), self.dtype or self.device.partition(":")[0]]
        if config is not None and path.is_file():
            parts.append(model_fingerprint(config) if config.is_dir() else str(config))
        plan = Plan(
            name,
            joint_fingerprint(parts),
            self.settings,
            self.prompts,
            self.vocabulary.tags,
            {role: tagger.fingerprint for role, tagger in self.taggers.items()},
            {role: look.fingerprint for role, look in self.looks.items()},
        )

        def open_generator(batch_size: int | None) -> ImageGenerator:
            pipeline = load_pipeline(path, config=self.pipeline, dtype=_dtype(self.dtype), device=self.device)
            settings = replace(self.settings, batch_size=self.settings.batch_size or batch_size)
            return DiffusersGenerator(pipeline, settings)

        rows = Rows(self.output, plan)
        images = rows.folder / "images"
        if self.keep_images and rows.complete and len(list(images.glob("*.webp"))) < len(self.prompts):
            print(f"{label}: drawn before without images; remove {rows.folder} to draw them again.", file=sys.stderr)
        progress = Progress(label, len(self.prompts), images, None if self.keep_images else SAMPLES)
        return complete_rows(rows, open_generator, self.taggers, progress, self.looks), rows.folder


def parse_sizes(text: str) -> list[tuple[int, int]]:
    """`4` -> [(4, 4)], `3-6` -> [(3, 6)], `2,4,8` -> three sizes. Raises InputError for anything else."""
    sizes = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()):
            raise InputError(f"tags per prompt '{text}': give a number (4), a range (3-6) or a list (2,4,8).")
        sizes.append((int(low), int(high or low)))
    return sizes


def parse_steps(text: str) -> list[int]:
    """`8,12,20` -> [8, 12, 20]. Raises InputError for anything but two or more different numbers."""
    parts = [part.strip() for part in text.split(",")]
    steps = sorted({int(part) for part in parts if part.isdecimal() and int(part)})
    if len(steps) != len(parts) or len(steps) < 2:
        raise InputError(f"calibrate '{text}': give two or more different numbers of steps, such as 8,12,20.")
    return steps


def prompts_of_sizes(
    vocabulary: Vocabulary, count: int, sizes: Sequence[tuple[int, int]], seed: int, template: str, images: int
) -> tuple[Prompt, ...]:
    """`count` prompts of each size, one set after another, indices rising through all of them."""
    prompts: list[Prompt] = []
    for size in sizes:
        made = make_prompts(
            vocabulary,
            count,
            tags_per_prompt=size,
            seed=derive_seed(seed, "benchmark", *size),
            template=template,
            images=images,
        )
        offset = prompts[-1].index + 1 if prompts else 0
        prompts += [replace(prompt, index=prompt.index + offset) for prompt in made]
    return tuple(prompts)


def _models(arguments: Sequence[str]) -> dict[str, Path]:
    """name -> local source, for `MODEL` and `NAME=MODEL`; names of equal files get their folder's name in front."""
    models: dict[str, Path] = {}
    for argument in arguments:
        named, equals, source = argument.partition("=")
        if not equals or Path(argument).exists():
            named, source = "", argument
        path = local_source(source)
        if path.is_file():
            check_single_file(path)  # all of them now, not after hours of drawing with the first
        name = named or (path.stem if path.is_file() else Path(source).name)
        if name in models and not named:
            name = f"{path.resolve().parent.name}/{name}"
        if name in models:
            raise InputError(f"Two models are called '{name}'. Name them apart with NAME=MODEL.")
        models[name] = path
    return models


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not width.isdecimal() or (cross and not height.isdecimal()):
        raise InputError(f"size '{text}': give WIDTHxHEIGHT, such as 512x768.")
    return int(width), int(height or width)


def _vocabulary(text: str, tagger: Tagger) -> Vocabulary:
    word, colon, number = text.partition(":")
    if word != "top" or not colon:
        return read_vocabulary(Path(text))
    if not number.isdecimal():
        raise InputError(f"tags '{text}': give a CSV file, or top:K with a number K.")
    return vocabulary_from_tags(tagger.general, int(number))


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype(name: str | None) -> Any:
    import torch

    return {None: None, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]
