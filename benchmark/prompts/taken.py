"""Which prompts are taken already, and whether a vocabulary has any others left. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from benchmark.prompts.vocabulary import Vocabulary

_MOST_UNITS = 1000  # of a vocabulary whose sets are counted; a larger one has more than any number of prompts


class Taken:
    """The tags of earlier prompts, as sets and in their order; and what is left of each size from `least` to `most`."""

    def __init__(self, vocabulary: Vocabulary, earlier: Iterable[tuple[str, ...]], least: int, most: int):
        self.orders = set(earlier)
        self.sets = {frozenset(tags) for tags in self.orders}
        self._left: dict[int, bool] = {}
        self._order_left = True
        if self.orders:
            self._count(vocabulary, least, most)

    def has_set_left(self, size: int) -> bool:
        """Whether there are `size` tags, at most one of a group, whose set is not taken."""
        return self._left.get(size, True)

    @property
    def any_set_left(self) -> bool:
        """The same for any size."""
        return not self._left or any(self._left.values())

    @property
    def any_order_left(self) -> bool:
        """Whether there are tags whose order is not taken; their set may be."""
        return self._order_left

    def _count(self, vocabulary: Vocabulary, least: int, most: int) -> None:
        groups = Counter(vocabulary.groups.get(tag) or ("", tag) for tag in vocabulary.tags)
        possible = _sets_by_size(groups.values(), most)
        known = set(vocabulary.tags)

        def counts(tags: frozenset[str]) -> bool:
            chosen = [vocabulary.groups.get(tag) or ("", tag) for tag in tags]
            return tags <= known and len(set(chosen)) == len(chosen)

        sets = Counter(len(tags) for tags in self.sets if counts(tags))
        orders = Counter(len(tags) for tags in self.orders if len(set(tags)) == len(tags) and counts(frozenset(tags)))
        sizes = range(least, most + 1)
        self._left = {size: size not in possible or sets[size] < possible[size] for size in sizes}
        self._order_left = any(
            size not in possible or orders[size] < possible[size] * math.factorial(size) for size in sizes
        )


def _sets_by_size(units: Iterable[int], most: int) -> dict[int, int]:
    """{size: how many sets of so many tags there are}, from the number of tags of each group; not for the very many."""
    numbers = list(units)
    if len(numbers) > _MOST_UNITS:
        return {1: sum(numbers)}
    found = [1] + [0] * min(most, len(numbers))
    for number in numbers:
        for size in range(len(found) - 1, 0, -1):
            found[size] += number * found[size - 1]
    return dict(enumerate(found))
