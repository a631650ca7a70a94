"""One run of the benchmark from the command line: check every argument, then draw what is missing, model by model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmark.app.extractors import open_extractors, references_of, unavailable_metrics
from benchmark.app.studio import Studio, parse_size
from benchmark.errors import InputError
from benchmark.evaluate.completing import complete_rows
from benchmark.evaluate.results import Rows, RowSpec
from benchmark.evaluate.runner import THRESHOLD, Evaluation
from benchmark.features.extractor import FeatureExtractor
from benchmark.metrics.calibration import Effort, Setting, calibrate
from benchmark.metrics.comparison import ModelScores, compare
from benchmark.pipelines.generation import GenerationSettings, ImageGenerator
from benchmark.prompts.prompt_set import Prompt, derive_seed, fingerprint, make_prompts
from benchmark.prompts.text import plain_text
from benchmark.prompts.vocabulary import Vocabulary, read_vocabulary, vocabulary_from_tags
from benchmark.report.lora_table import lora_table
from benchmark.report.page import Sample
from benchmark.report.progress import DrawingProgress
from benchmark.report.tables import Table
from benchmark.taggers.registry import open_tagger, recommended_threshold
from benchmark.taggers.tagger import Tagger, columns_of

SAMPLES = 8  # images of each model that the page shows


@dataclass(frozen=True)
class Benchmark:
    """What a command line asks for, checked. `frechet`: a folder of reference images."""

    studio: Studio
    taggers: Mapping[str, Tagger]
    extractors: Mapping[str, FeatureExtractor]
    frechet: Path | None
    thresholds: Mapping[str, float]
    vocabulary: Vocabulary
    prompts: tuple[Prompt, ...]
    output: Path
    keep_images: bool

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Benchmark:
        """Check the arguments of `cli.add_arguments`. Raises InputError, before anything is loaded or written."""
        if not args.tagger:
            raise InputError("Name a tagger with --tagger: a folder or a hub id.")
        given = {"tagger": args.threshold, "judge": args.threshold}
        if args.judge_threshold is not None:
            given["judge"] = args.judge_threshold
        for role, threshold in given.items():
            if threshold is not None and not 0 < threshold < 1:
                raise InputError(f"The threshold of the {role} is {threshold}; it must lie between 0 and 1.")
        sizes = parse_sizes(args.tags_per_prompt)
        studio = Studio.from_arguments(args)
        device = studio.device
        taggers = {"tagger": open_tagger(args.tagger, kind=args.tagger_kind, device=device, threads=args.threads)}
        if args.judge:
            taggers["judge"] = open_tagger(args.judge, kind=args.judge_kind, device=device, threads=args.threads)
        extractors = open_extractors(args, device, min(studio.settings.width, studio.settings.height))
        for line in unavailable_metrics(extractors, args.images):
            print(line, file=sys.stderr)
        vocabulary = _vocabulary(args.tags, taggers["tagger"])
        for tagger in taggers.values():
            columns_of(tagger, vocabulary.tags)
        prompts = prompts_of_sizes(vocabulary, args.prompts, sizes, args.seed, args.template, args.images)
        thresholds = {role: _threshold(role, tagger, given[role]) for role, tagger in taggers.items()}
        return cls(
            studio, taggers, extractors, args.frechet, thresholds, vocabulary, prompts, args.output, args.keep_images
        )

    def compare(self) -> tuple[tuple[ModelScores, ...], tuple[Sample, ...], tuple[Table, ...]]:
        """Draw what is missing and compare: the figures, a few prompts with every model's picture, and more tables.

        Raises InputError if a model cannot be loaded.
        """
        make_output(self.output)
        evaluations, folders = {}, {}
        for number, name in enumerate(self.studio.models, start=1):
            label = f"{name} ({number}/{len(self.studio.models)})"
            evaluations[name], folders[name] = self._evaluate(name, label)
        references = references_of(self.extractors, self.prompts, self.frechet, self.output / "references")
        models = compare(evaluations, self.vocabulary.category, self.thresholds, references)
        more: tuple[Table, ...] = ()
        if self.studio.pairs:
            more = (lora_table(evaluations, self.studio.pairs, self.vocabulary.category, self.thresholds),)
        return models, self._samples(evaluations, folders), more

    def calibrate(self, efforts: Sequence[Effort]) -> dict[str, tuple[Setting, ...]]:
        """Draw every model with each effort, and compare with the most exact, by each tagger.

        Raises InputError as `compare` does.
        """
        make_output(self.output)
        evaluations: dict[Effort, dict[str, Evaluation]] = {}
        for effort in efforts:
            studio = replace(self.studio, settings=replace(self.studio.settings, **effort._asdict()))
            with_effort = replace(self, studio=studio)
            evaluations[effort] = {
                name: with_effort._evaluate(name, f"{name}, {effort.steps} steps, {effort.size}")[0]
                for name in studio.models
            }
        return {role: calibrate(evaluations, role, threshold) for role, threshold in self.thresholds.items()}

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
        """What decides the figures, as plain values. `looks` is the published key of the feature extractors."""
        settings = asdict(self.studio.settings)
        del settings["batch_size"]
        return {
            **settings,
            "images": len(self.prompts),
            "prompts": len({prompt.index for prompt in self.prompts}),
            "prompts_sha256": fingerprint(self.prompts),
            "tags": len(self.vocabulary.tags),
            "taggers": {role: tagger.name for role, tagger in self.taggers.items()},
            "looks": {role: extractor.name for role, extractor in self.extractors.items()},
            "thresholds": dict(self.thresholds),
        }

    def _evaluate(self, name: str, label: str) -> tuple[Evaluation, Path]:
        """The model's evaluation and the folder of its rows."""
        spec = RowSpec(
            name,
            self.studio.mark(name),
            self.studio.settings,
            self.prompts,
            self.vocabulary.tags,
            {role: tagger.fingerprint for role, tagger in self.taggers.items()},
            {role: extractor.fingerprint for role, extractor in self.extractors.items()},
        )

        def open_generator(batch_size: int | None) -> ImageGenerator:
            return self.studio.open(name, batch_size)

        rows = Rows(self.output, spec)
        images = rows.folder / "images"
        if self.keep_images and rows.complete and len(list(images.glob("*.webp"))) < len(self.prompts):
            print(f"{label}: drawn before without images; remove {rows.folder} to draw them again.", file=sys.stderr)
        progress = DrawingProgress(label, len(self.prompts), images, None if self.keep_images else SAMPLES)
        return complete_rows(rows, open_generator, self.taggers, progress, self.extractors), rows.folder


def make_output(folder: Path) -> None:
    """Make the folder of the results. Raises InputError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to ({error.strerror}).") from None


def parse_sizes(text: str) -> list[tuple[int, int]]:
    """`4` -> [(4, 4)], `3-6` -> [(3, 6)], `2,4,8` -> three sizes. Raises InputError for anything else."""
    sizes = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()):
            raise InputError(f"tags per prompt '{text}': give a number (4), a range (3-6) or a list (2,4,8).")
        sizes.append((int(low), int(high or low)))
    return sizes


def parse_efforts(steps: str, sizes: str) -> list[Effort]:
    """`8,20` and `256,512x384` -> four efforts. Raises InputError for anything but two or more different ones."""
    parts = [part.strip() for part in steps.split(",")]
    numbers = {int(part) for part in parts if part.isdecimal() and int(part)}
    shapes = {parse_size(part.strip()) for part in sizes.split(",")}
    if len(numbers) != len(parts) or len(numbers) * len(shapes) < 2:
        raise InputError(
            f"calibrate '{steps}' at '{sizes}': give two or more different numbers of steps, such as 8,12,20, or sizes."
        )
    efforts = sorted(Effort(number, *shape) for number in numbers for shape in shapes)
    for effort in efforts:
        GenerationSettings(**effort._asdict())  # raises for a size that cannot be drawn, before anything is
    return efforts


def prompts_of_sizes(
    vocabulary: Vocabulary, count: int, sizes: Sequence[tuple[int, int]], seed: int, template: str, images: int
) -> tuple[Prompt, ...]:
    """`count` prompts of each size, one set after another, with indices that count through all of them."""
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


def _threshold(role: str, tagger: Tagger, given: float | None) -> float:
    """The threshold given, else a known tagger's, which is printed, else the benchmark's own."""
    if given is not None:
        return given
    known = recommended_threshold(tagger)
    if known is None:
        return THRESHOLD
    option = "--threshold" if role == "tagger" else "--judge-threshold"
    print(
        f"{role} {tagger.name}: found means {known[0]} or more ({known[1]}); {option} chooses another", file=sys.stderr
    )
    return known[0]


def _vocabulary(text: str, tagger: Tagger) -> Vocabulary:
    word, colon, number = text.partition(":")
    if word != "top" or not colon:
        return read_vocabulary(Path(text))
    if not number.isdecimal():
        raise InputError(f"tags '{text}': give a CSV file, or top:K with a number K.")
    return vocabulary_from_tags(tagger.general, int(number))
