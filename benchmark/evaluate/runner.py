"""Prompts -> images -> probabilities: one pass of the benchmark, held in memory.

I  images (one for each prompt value)    T  tags scored (a column each)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmark.errors import InputError
from benchmark.evaluate import scores
from benchmark.evaluate.scores import Bools, Estimate, Floats, Integers, Tally
from benchmark.features.extractor import FeatureExtractor, Features
from benchmark.images import Images, image_digests, is_broken
from benchmark.pipelines.generation import ImageGenerator
from benchmark.prompts.prompt_set import Prompt
from benchmark.prompts.vocabulary import normal_tag
from benchmark.taggers.asking import foreign, probabilities_of
from benchmark.taggers.tagger import Probabilities, Tagger, columns_of

THRESHOLD = 0.5


@dataclass(frozen=True)
class Evaluation:
    """What one pass measured. Thresholds and categories are applied later: another one needs no new images.

    `tags` [T]; `asked` [I, T]; `prompt_of` [I] (the clusters); `probabilities[tagger]` [I, T] float32;
    `broken_images` [I]: black, NaN or flat pictures, whose probabilities are 0; `digests` [I]: equal for equal pixels;
    `images` the first few, [K, H, W, 3]; `features[extractor]` [I, E].
    """

    prompts: tuple[Prompt, ...]
    tags: tuple[str, ...]
    probabilities: Mapping[str, Probabilities]
    broken_images: Bools
    digests: Integers
    seconds: float
    images: Images | None = None
    features: Mapping[str, Features] = field(default_factory=dict)
    asked: Bools = field(init=False)
    prompt_of: Integers = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "asked", asked_matrix(self.prompts, self.tags))
        object.__setattr__(self, "prompt_of", np.array([prompt.index for prompt in self.prompts], dtype=np.int64))

    @property
    def broken(self) -> int:
        """How many images hold no picture."""
        return int(self.broken_images.sum())

    @property
    def duplicates(self) -> int:
        """How many images repeat the image of another prompt, pixel by pixel. Broken images are not counted."""
        first: dict[int, int] = {}
        repeated = 0
        for row in np.flatnonzero(~self.broken_images):
            prompt = int(self.prompt_of[row])
            repeated += first.setdefault(int(self.digests[row]), prompt) != prompt
        return repeated

    def found(self, tagger: str, threshold: float = THRESHOLD) -> Floats:
        """[I, T]: 1.0 where the tagger finds the tag, asked for or not."""
        return scores.found(self.probabilities[tagger], threshold)

    def tally(self, tagger: str, threshold: float = THRESHOLD) -> Tally:
        """Hits and tags asked for, prompt by prompt: what `scores.paired_difference` compares."""
        return scores.tally(self.found(tagger, threshold), self.asked, self.prompt_of)

    def accuracy(self, tagger: str, threshold: float = THRESHOLD) -> Estimate:
        """Tag accuracy: tags asked for and found / tags asked for (their recall)."""
        return scores.tag_accuracy(self.probabilities[tagger], self.asked, self.prompt_of, threshold)

    def mean_probability(self, tagger: str) -> Estimate:
        """The mean probability of the tags asked for."""
        return scores.mean_probability(self.probabilities[tagger], self.asked, self.prompt_of)

    def mean_log_probability(self, tagger: str) -> Estimate:
        """The mean natural logarithm of the probability of the tags asked for."""
        return scores.mean_log_probability(self.probabilities[tagger], self.asked, self.prompt_of)

    def per_category(
        self, tagger: str, category_of: Callable[[str], str], threshold: float = THRESHOLD
    ) -> dict[str, Estimate]:
        """The accuracy of each category with a tag that was asked for."""
        return scores.per_category(self.found(tagger, threshold), self.asked, self.prompt_of, self.tags, category_of)

    def per_prompt(self, tagger: str, threshold: float = THRESHOLD) -> Floats:
        """The accuracy of each prompt, in the order of its index."""
        return scores.per_prompt(self.tally(tagger, threshold))


def asked_matrix(prompts: Sequence[Prompt], tags: Sequence[str]) -> Bools:
    """bool [I, T]: whether each prompt asks for each tag. Raises InputError for a tag that has no column."""
    column = {normal_tag(tag): number for number, tag in enumerate(tags)}
    asked = np.zeros((len(prompts), len(tags)), dtype=np.bool_)
    for row, prompt in enumerate(prompts):
        for tag in prompt.tags:
            if normal_tag(tag) not in column:
                raise InputError(f"Prompt {prompt.index} asks for '{tag}', which is not among the tags scored.")
            asked[row, column[normal_tag(tag)]] = True
    return asked


def tags_asked(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """Every tag that a prompt asks for, sorted."""
    return tuple(sorted({tag for prompt in prompts for tag in prompt.tags}))


def evaluate(
    generator: ImageGenerator,
    taggers: Mapping[str, Tagger],
    prompts: Sequence[Prompt],
    *,
    tags: Sequence[str] | None = None,
    report: Callable[[int, float], None] | None = None,
    keep_images: int = 0,
    threshold: float = THRESHOLD,
    extractors: Mapping[str, FeatureExtractor] | None = None,
) -> Evaluation:
    """Draw every prompt once and ask every tagger about every image.

    `tags`: the columns to keep; None keeps the tags that are asked for. `report(images done, their accuracy by the
    first tagger at threshold)` is called after each batch; what it raises ends the pass. `keep_images`: how many of
    the first pictures to keep. `extractors`: what else to keep of every picture, by name.
    Raises InputError, before anything is drawn, for a tag that a tagger does not know.
    """
    tags = tuple(tags) if tags is not None else tags_asked(prompts)
    asked = asked_matrix(prompts, tags)
    probabilities = {name: np.zeros((len(prompts), len(tags)), dtype=np.float32) for name in taggers}
    broken = np.zeros(len(prompts), dtype=np.bool_)
    digests = np.zeros(len(prompts), dtype=np.int64)
    kept: list[Images] = []
    features: dict[str, list[Features]] = {role: [] for role in extractors or {}}
    started = time.perf_counter()
    for batch in score_batches(generator, taggers, prompts, tags, extractors):
        rows = slice(batch.start, batch.start + len(batch.images))
        broken[rows], digests[rows] = batch.broken, batch.digests
        for name, said in batch.probabilities.items():
            probabilities[name][rows] = said
        for role, seen in batch.features.items():
            features[role].append(seen)
        if batch.start < keep_images:
            kept.append(batch.images[: keep_images - batch.start])
        if report is not None:
            first = next(iter(probabilities.values()))[: rows.stop]
            report(rows.stop, float(scores.found(first, threshold)[asked[: rows.stop]].mean()))
    seconds = time.perf_counter() - started
    images = np.concatenate(kept) if kept else None
    joined = {role: np.concatenate(parts) for role, parts in features.items()}
    return Evaluation(tuple(prompts), tags, probabilities, broken, digests, seconds, images, joined)


@dataclass(frozen=True)
class Batch:
    """Images [B, H, W, 3] of the prompts from `start` on, and what was measured of them.

    `probabilities[tagger]` [B, T]; `broken` [B]; `digests` [B], equal for equal pixels; `features[extractor]` [B, E];
    `seconds`: to draw and tag all of them.
    """

    start: int
    images: Images
    probabilities: Mapping[str, Probabilities]
    broken: Bools
    digests: Integers
    features: Mapping[str, Features] = field(default_factory=dict)
    seconds: float = 0.0


def score_batches(
    generator: ImageGenerator,
    taggers: Mapping[str, Tagger],
    prompts: Sequence[Prompt],
    tags: Sequence[str],
    extractors: Mapping[str, FeatureExtractor] | None = None,
) -> Iterator[Batch]:
    """Draw and tag, batch by batch. The columns are `tags`; a broken image's probabilities are 0.

    Raises InputError, before anything is drawn, for a tag that a tagger does not know, and `TaggerError` for a tagger
    that fails.
    """
    columns = {name: columns_of(tagger, tags) for name, tagger in taggers.items()}
    done, started = 0, time.perf_counter()
    for images in generator.generate(prompts):
        broken = is_broken(images)
        said = {name: probabilities_of(tagger, images, broken)[:, columns[name]] for name, tagger in taggers.items()}
        features = {}
        for role, extractor in (extractors or {}).items():
            with foreign(f"{extractor.name} fails on {len(images)} images"):
                features[role] = extractor.images(images)
        seconds = time.perf_counter() - started
        yield Batch(done, images, said, broken, image_digests(images), features, seconds)
        done, started = done + len(images), time.perf_counter()
    if done != len(prompts):
        raise RuntimeError(f"the generator drew {done} images for {len(prompts)} prompts")
