"""Prompt sets: a vocabulary and a seed in, prompts made of tags out. Pure: no files but the vocabulary's CSV.

A set is balanced: every tag is asked about equally often (where groups allow it), so that its score is a mean over
the vocabulary and not over what happened to be drawn.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from benchmark.errors import InputError, did_you_mean
from benchmark.prompts.text import escaped

NO_CATEGORY = "general"

# Words that never appear in a prompt, and pairs of kinds that never share a vocabulary.
_REFUSED = re.compile(
    r"(?:^|_)(?:loli|shota|lolicon|shotacon|toddlercon|lolidom|pedophilia|child_(?:porn|sex)\w*)(?:_|$)"
)
_MINOR = re.compile(
    r"(?:^|_)(?:child|children|kid|kids|toddler|baby|infant|preteen|underage|teenager?|aged_down|kindergarten|"
    r"elementary_school|randoseru|young|younger|little_(?:girl|boy))(?:_|$)"
)
_SEXUAL = re.compile(
    r"(?:^|_)(?:sex|sexual|nude|nudity|naked|nipples?|areolae?|pussy|vagina|penis|penises|testicles|anus|anal|clitoris|cum|"
    r"semen|ejaculation|orgasm|masturbation|fellatio|cunnilingus|handjob|paizuri|rape|bdsm|bondage|erection|topless|"
    r"bottomless|cameltoe|uncensored|censored|hentai|porn|nsfw|upskirt|panties|underwear|lingerie|ass|breasts?|cleavage|"
    r"groin|crotch|pubic_hair|ahegao|futanari|dildo|vibrator|fingering|groping|penetration|vaginal|condom|underboob|"
    r"sideboob|bra|thong|spread_legs|suggestive|seductive)(?:_|$)"
)


def normal_tag(tag: str) -> str:
    """The spelling that tags are compared by: lower case, underscores for spaces, no escapes."""
    return re.sub(r"\s+", "_", tag.strip().replace("\\", "").lower())


def spoken(tag: str) -> str:
    """The words of one tag: `blue_hair` -> `blue hair`; faces such as `^_^` and `o_o` stay as they are."""
    return tag.replace("_", " ") if re.search(r"[^\W\d_]{2}", tag) else tag


def is_sexual(tag: str) -> bool:
    """Whether a word of the tag is sexual: such tags are left out of every list that the user did not write."""
    return bool(_SEXUAL.search(normal_tag(tag)))


def check_allowed(tags: Iterable[str]) -> None:
    """Raise InputError for a tag that sexualises minors, or sexual tags beside tags of minors in one vocabulary."""
    names = [normal_tag(tag) for tag in tags]
    refused = next((name for name in names if _REFUSED.search(name)), None)
    if refused:
        raise InputError(f"'{refused}' is refused: tags that sexualise minors are never used. Remove it.")
    minor = next((name for name in names if _MINOR.search(name)), None)
    sexual = next((name for name in names if _SEXUAL.search(name)), None)
    if minor and sexual:
        raise InputError(f"'{minor}' and '{sexual}' are refused in one vocabulary. Remove one of them.")


@dataclass(frozen=True)
class Vocabulary:
    """The tags that prompts are made of.

    `categories` names each tag's category (for the tables), `groups` the tags that exclude one another: at most one of
    a group is in a prompt. Both may leave tags out.
    """

    tags: tuple[str, ...]
    categories: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tags:
            raise InputError("The vocabulary holds no tags.")
        twice = [tag for tag, times in Counter(self.tags).items() if times > 1]
        if twice:
            raise InputError(f"The vocabulary has '{twice[0]}' twice. Remove one.")
        check_allowed(self.tags)

    def category(self, tag: str) -> str:
        """The tag's category; `general` where none was given."""
        return self.categories.get(tag) or NO_CATEGORY

    def most_per_prompt(self) -> int:
        """How many tags can stand in one prompt, as groups exclude their own."""
        grouped = [self.groups[tag] for tag in self.tags if self.groups.get(tag)]
        return len(self.tags) - len(grouped) + len(set(grouped))

    def restricted(self, keep: Iterable[str]) -> Vocabulary:
        """The same vocabulary with only these tags, in its own order. Raises InputError for a tag it has not."""
        wanted = {normal_tag(tag): tag for tag in keep}
        known = {normal_tag(tag): tag for tag in self.tags}
        for name, tag in wanted.items():
            if name not in known:
                raise InputError(f"Unknown tag '{tag}'.{did_you_mean(tag, self.tags)}")
        return Vocabulary(
            tuple(tag for name, tag in known.items() if name in wanted), dict(self.categories), dict(self.groups)
        )


@dataclass(frozen=True)
class Prompt:
    """One image asked for. Images of the same text share `index`, the cluster of every interval; seeds differ."""

    index: int
    text: str
    tags: tuple[str, ...]
    seed: int


def read_vocabulary(path: Path) -> Vocabulary:
    """Read a CSV with the columns `tag`, and optionally `category` and `group`. Raises InputError with the line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
            columns = set(rows[0]) if rows else set()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file. Name a CSV with the columns tag,category,group.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error}).") from None
    if "tag" not in columns:
        raise InputError(f"{path}: needs a first line 'tag,category,group' and at least one tag below it.")
    categories: dict[str, str] = {}
    groups: dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        tag = normal_tag(row["tag"] or "")
        if not tag:
            raise InputError(f"{path}, line {number}: the tag is empty.")
        if tag in categories:
            raise InputError(f"{path}, line {number}: '{tag}' is there twice. Remove one.")
        categories[tag] = (row.get("category") or "").strip() or NO_CATEGORY
        group = (row.get("group") or "").strip()
        if group:
            groups[tag] = group
    try:
        return Vocabulary(tuple(categories), categories, groups)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


@lru_cache(maxsize=1)
def shipped_vocabulary() -> Vocabulary:
    """About 600 ordinary tags with categories and groups, for a general audience; written by hand for this project."""
    return read_vocabulary(Path(__file__).with_name("categories.csv"))


def vocabulary_from_tags(tags: Sequence[str], top: int, known: Vocabulary | None = None) -> Vocabulary:
    """The first `top` of a tagger's list (most common first), with the categories and groups that `known` gives them.

    `known` None is the shipped vocabulary. Sexual tags are left out, and those that are refused.
    """
    if top < 1:
        raise InputError(f"top: {top} tags make no vocabulary. Use 1 or more.")
    known = known or shipped_vocabulary()
    chosen = []
    for tag in dict.fromkeys(normal_tag(tag) for tag in tags):
        if not is_sexual(tag) and not _REFUSED.search(tag):
            chosen.append(tag)
        if len(chosen) == top:
            break
    categories = {tag: known.categories[tag] for tag in chosen if tag in known.categories}
    groups = {tag: known.groups[tag] for tag in chosen if tag in known.groups}
    return Vocabulary(tuple(chosen), categories, groups)


def derive_seed(seed: int, *names: object) -> int:
    """A seed of 63 bits for one purpose (`derive_seed(7, "validation")`), the same on every machine."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def make_prompts(
    vocabulary: Vocabulary,
    count: int,
    *,
    tags_per_prompt: int | tuple[int, int],
    seed: int,
    template: str = "{tags}",
    images: int = 1,
) -> tuple[Prompt, ...]:
    """`count` prompts of random, balanced tags, each `images` times with other noise: `count * images` values.

    `tags_per_prompt` is a number or a range with both ends; `template` has `{tags}` where the tags go, and may have
    emphasis, `(like this:1.2)`; parentheses of a tag are escaped, so that they are not read as such. The same
    arguments give the same prompts on every machine; give each purpose (search, validation, test) its own
    `derive_seed(seed, purpose)`. Raises InputError where the vocabulary cannot fill a prompt.
    """
    least, most = (tags_per_prompt, tags_per_prompt) if isinstance(tags_per_prompt, int) else tags_per_prompt
    if count < 1 or images < 1:
        raise InputError(f"{count} prompts with {images} images each: both must be 1 or more.")
    if not 1 <= least <= most:
        raise InputError(
            f"tags per prompt {least} to {most}: give a number from 1 up, or a range with the smaller first."
        )
    if most > vocabulary.most_per_prompt():
        raise InputError(
            f"{most} tags per prompt: this vocabulary of {len(vocabulary.tags)} tags, at most one of a group, "
            f"fills at most {vocabulary.most_per_prompt()}. Use fewer tags per prompt."
        )
    if "{tags}" not in template:
        raise InputError(f"The template '{template}' has no {{tags}} in it.")
    draw = random.Random(seed)
    asked = dict.fromkeys(vocabulary.tags, 0)
    prompts = []
    for index in range(count):
        size = least + int(draw.random() * (most - least + 1))
        tags = _least_asked(vocabulary, asked, size, draw)
        for tag in tags:
            asked[tag] += 1
        text = template.replace("{tags}", ", ".join(escaped(spoken(tag)) for tag in tags))
        prompts += [Prompt(index, text, tags, derive_seed(seed, index, number)) for number in range(images)]
    return tuple(prompts)


def _least_asked(vocabulary: Vocabulary, asked: Mapping[str, int], size: int, draw: random.Random) -> tuple[str, ...]:
    """`size` tags that were asked about least, ties broken and order shuffled at random, at most one of a group."""
    order = sorted((asked[tag], draw.random(), tag) for tag in vocabulary.tags)
    chosen: list[str] = []
    taken = set()
    for _, _, tag in order:
        group = vocabulary.groups.get(tag)
        if group and group in taken:
            continue
        taken.add(group)
        chosen.append(tag)
        if len(chosen) == size:
            break
    return tuple(sorted(chosen, key=lambda _: draw.random()))


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """A SHA-256 over indices, texts, tags and seeds: equal exactly when the sets are."""
    rows = [[prompt.index, prompt.text, list(prompt.tags), prompt.seed] for prompt in prompts]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=True).encode()).hexdigest()
