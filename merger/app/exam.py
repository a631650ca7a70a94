"""What scores a blend: prompts made of tags, and the taggers that look for those tags in the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmark.prompts.prompt_set import Prompt, derive_seed, make_prompts, repeated
from benchmark.prompts.vocabulary import Vocabulary, read_vocabulary, vocabulary_from_tags
from benchmark.taggers.registry import open_tagger
from benchmark.taggers.tagger import Tagger, columns_of
from merger.config.config import Config
from merger.config.parts import TaggerSettings
from merger.scoring.floors import Floors
from merger.scoring.objective import JUDGE, TAGGER, Metric

SETS = ("search", "validation", "test")
"""The names of the prompt sets. No prompt's noise is in two of them, and no text if the vocabulary has enough."""

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

    def make(self, count: int, *purpose: object, unlike: Sequence[Prompt] = ()) -> tuple[Prompt, ...]:
        """`count` prompts for a purpose; always the same ones for the same purpose. unlike: see `make_prompts`."""
        return make_prompts(
            self.vocabulary,
            count,
            tags_per_prompt=self.tags_per_prompt,
            seed=derive_seed(self.seed, *purpose),
            template=self.template,
            unlike=unlike,
        )


@dataclass(frozen=True)
class Exam:
    """The questions and the examiners of a search.

    taggers: by role, `TAGGER` and maybe `JUDGE`. thresholds: the probability from which each has found a tag. prompts:
    by the names of `SETS`. metric: turns the tagger's findings into the score that the search maximizes. distinct:
    whether prompts of different sets are kept different. floors: what a blend must keep of the base.
    """

    taggers: Mapping[str, Tagger]
    thresholds: Mapping[str, float]
    prompts: Mapping[str, tuple[Prompt, ...]]
    source: PromptSource
    metric: Metric
    distinct: bool = True
    floors: Floors | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        """The tags that prompts ask for."""
        return self.source.vocabulary

    def step_prompts(self, place: int) -> tuple[Prompt, ...]:
        """The prompts of the gradient step at `place` 0, 1, ...: as many as in a trial, and in no other step."""
        fresh = [*self.prompts["validation"], *self.prompts["test"]] if self.distinct else []
        return self.source.make(len(self.prompts["search"]), _STEPS, place, unlike=fresh)

    def remarks(self) -> list[str]:
        """A line for every set with prompts that are also in a set before it."""
        lines = []
        for which, before in ((SETS[1], SETS[:1]), (SETS[2], SETS[:2])):
            prompts = self.prompts[which]
            count = repeated(prompts, [prompt for earlier in before for prompt in self.prompts[earlier]])
            if count:
                lines.append(
                    f"{count} of {len(prompts)} {which} prompts repeat the text of {' or '.join(before)} prompts, with "
                    "other noise: give a larger vocabulary, more tags per prompt or fewer prompts"
                )
        return lines


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
    prompts: dict[str, tuple[Prompt, ...]] = {}
    for which, count in zip(SETS, counts, strict=True):
        earlier = [prompt for made in prompts.values() for prompt in made]
        prompts[which] = source.make(count, which, unlike=earlier if config.distinct_prompts else ())
    metric = Metric(config.objective, config.tagger_threshold, vocabulary.category)
    keep, floors = config.keep, None
    if keep.tag is not None or keep.category is not None:
        floors = Floors(keep.tag, keep.category, keep.strength, vocabulary.category)
    return Exam(taggers, thresholds, prompts, source, metric, config.distinct_prompts, floors)


def _open(settings: TaggerSettings, config: Config, device: str) -> Tagger:
    return open_tagger(settings.path, kind=settings.kind, device=device, threads=config.threads)


def _vocabulary(config: Config, tagger: Tagger) -> Vocabulary:
    if config.vocabulary.path is not None:
        return read_vocabulary(config.vocabulary.path)
    return vocabulary_from_tags(tagger.general, config.vocabulary.top or len(tagger.general))
