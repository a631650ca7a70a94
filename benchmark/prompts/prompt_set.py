"""Prompt sets: a vocabulary and a seed in, prompts made of tags out. Pure.

A set is balanced: every tag is asked for equally often (where groups allow it), so that a score is a mean over the
vocabulary and does not depend on which tags happened to be drawn.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from benchmark.errors import InputError
from benchmark.prompts.taken import Taken
from benchmark.prompts.text import escaped, filled
from benchmark.prompts.vocabulary import Vocabulary, spoken

_BALANCED, _FREE = 32, 512  # draws, with balance and without, for a prompt that is unlike earlier ones


@dataclass(frozen=True)
class Prompt:
    """One image asked for. Images of one text share `index`, the cluster of every interval; their seeds differ."""

    index: int
    text: str
    tags: tuple[str, ...]
    seed: int


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
    unlike: Sequence[Prompt] = (),
) -> tuple[Prompt, ...]:
    """`count` prompts of random, balanced tags, each `images` times with different noise: `count * images` values.

    `tags_per_prompt`: a number, or a range with both ends. `template`: the prompt with `{tags}` in place of the tags;
    it may have emphasis, `(like this:1.2)`. No character of a tag is read as emphasis (`escaped`, `filled`).
    The same arguments give the same prompts on every machine. Give each purpose (search, validation, test) its own
    `derive_seed(seed, purpose)`, and the prompts of earlier purposes as `unlike`: a prompt with the text of one of them
    is drawn again, with other tags; if a small vocabulary has none left, with tags in another order; and if it has not
    even that, it stays the same (`repeated` counts these). Prompts before the first that is drawn again do not change.
    Raises InputError if the vocabulary cannot fill a prompt.
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
    word = cache(lambda tag: escaped(spoken(tag)))
    asked = dict.fromkeys(vocabulary.tags, 0)
    prompts = []
    taken = Taken(vocabulary, (prompt.tags for prompt in unlike), least, most)
    for index in range(count):
        size = least + int(draw.random() * (most - least + 1))
        tags = _least_asked(vocabulary, asked, size, draw)
        if tags in taken.orders:
            tags = _others(vocabulary, asked, (least, most), tags, taken, derive_seed(seed, index, "again"))
        for tag in tags:
            asked[tag] += 1
        text = filled(template, ", ".join(word(tag) for tag in tags))
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


def _others(
    vocabulary: Vocabulary,
    asked: Mapping[str, int],
    sizes: tuple[int, int],
    tags: tuple[str, ...],
    taken: Taken,
    seed: int,
) -> tuple[str, ...]:
    """Tags whose set is not taken; else some in an order that is not taken; else `tags` themselves.

    Draws with balance first, then without, of any size in `sizes`. It has a seed of its own, so that the draws after it
    are the same whether it was needed or not. Draws that can find nothing are left out, as far as no other changes.
    """
    if not taken.any_order_left:
        return tags
    draw = random.Random(seed)
    if taken.has_set_left(len(tags)):
        for _ in range(_BALANCED):
            found = _least_asked(vocabulary, asked, len(tags), draw)
            if frozenset(found) not in taken.sets:
                return found
    else:
        for _ in range(_BALANCED * (len(vocabulary.tags) + len(tags))):  # as many numbers as those draws would take
            draw.random()
    alike = dict.fromkeys(vocabulary.tags, 0)
    other_order = None
    for _ in range(_FREE):
        found = _least_asked(vocabulary, alike, sizes[0] + int(draw.random() * (sizes[1] - sizes[0] + 1)), draw)
        if frozenset(found) not in taken.sets:
            return found
        if other_order is None and found not in taken.orders:
            other_order = found
        if other_order is not None and not taken.any_set_left:
            break
    return other_order or tags


def repeated(prompts: Sequence[Prompt], earlier: Sequence[Prompt]) -> int:
    """How many of the prompts have the text of an earlier one. Images of one prompt count once."""
    texts = {prompt.text for prompt in earlier}
    return len({prompt.index for prompt in prompts if prompt.text in texts})


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """A SHA-256 over indices, texts, tags and seeds: equal exactly when the sets are."""
    rows = [[prompt.index, prompt.text, list(prompt.tags), prompt.seed] for prompt in prompts]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=True).encode()).hexdigest()
