"""What scores a blend: prompts made of tags, and the taggers that look for those tags in the images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmark.prompts.prompt_set import Prompt, derive_seed, make_prompts
from benchmark.prompts.vocabulary import Vocabulary, read_vocabulary, vocabulary_from_tags
from benchmark.taggers.registry import open_tagger
from benchmark.taggers.tagger import Tagger, columns_of
from merger.config.config import Config
from merger.config.parts import TaggerSettings
from merger.scoring.objective import JUDGE, TAGGER, Metric

SETS = ("search", "validation", "test")
"""The names of the prompt sets. No prompt's noise is in two of them."""

_STEPS = "slopes"
"""The seed of a gradient step's prompts is derived from this word. Another word would give other prompts, and with them
other searches, for the same seed."""


@dataclass(frozen=True)
class PromptSource:
    """Makes prompts from a vocabulary. Each purpose has a seed of its own, derived from `seed`."""

    vocabulary: Vocabulary
    tags_per_prompt: tuple[int, int]
    template: str
    seed: int

    def make(self, count: int, *purpose: object) -> tuple[Prompt, ...]:
        """`count` prompts for a purpose; always the same ones for the same purpose."""
        return make_prompts(
            self.vocabulary,
            count,
            tags_per_prompt=self.tags_per_prompt,
            seed=derive_seed(self.seed, *purpose),
            template=self.template,
        )


@dataclass(frozen=True)
class Exam:
    """The questions and the examiners of a search.

    taggers: by role, `TAGGER` and maybe `JUDGE`. thresholds: the probability from which each has found a tag. prompts:
    by the names of `SETS`. metric: turns the tagger's findings into the score that the search maximizes.
    """

    taggers: Mapping[str, Tagger]
    thresholds: Mapping[str, float]
    prompts: Mapping[str, tuple[Prompt, ...]]
    source: PromptSource
    metric: Metric

    @property
    def vocabulary(self) -> Vocabulary:
        """The tags that prompts ask for."""
        return self.source.vocabulary

    def step_prompts(self, place: int) -> tuple[Prompt, ...]:
        """The prompts of the gradient step at `place` 0, 1, ...: as many as in a trial, and in no other step."""
        return self.source.make(len(self.prompts["search"]), _STEPS, place)


def open_exam(config: Config, device: str) -> Exam:
    """Opens the taggers and the vocabulary that `config` names, and makes the prompts.

    device: where the taggers compute. Raises `InputError` in one line, also for a tag that a tagger does not know.
    """
    taggers = {TAGGER: _open(config.tagger, config, device)}
    thresholds = {TAGGER: config.tagger_threshold, JUDGE: config.judge_threshold}
    if config.judge is not None:
        taggers[JUDGE] = _open(config.judge, config, device)
    vocabulary = _vocabulary(config, taggers[TAGGER])
    for tagger in taggers.values():
        columns_of(tagger, vocabulary.tags)
    source = PromptSource(vocabulary, config.tags_per_prompt, config.template, config.seed)
    counts = (config.prompts, config.validation_prompts, config.test_prompts)
    prompts = {which: source.make(count, which) for which, count in zip(SETS, counts, strict=True)}
    metric = Metric(config.objective, config.tagger_threshold, vocabulary.category)
    return Exam(taggers, thresholds, prompts, source, metric)


def _open(settings: TaggerSettings, config: Config, device: str) -> Tagger:
    return open_tagger(settings.path, kind=settings.kind, device=device, threads=config.threads)


def _vocabulary(config: Config, tagger: Tagger) -> Vocabulary:
    if config.vocabulary.path is not None:
        return read_vocabulary(config.vocabulary.path)
    return vocabulary_from_tags(tagger.general, config.vocabulary.top or len(tagger.general))
