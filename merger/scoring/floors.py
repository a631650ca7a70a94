"""Floors: how far a blend may fall below the base in each tag and in each category. Pure, apart from torch tensors.

B images of a batch, T tags

A search raises a mean, and may pay for it with a tag. A floor limits that: the mean natural logarithm of a tag's
probability must not fall below the base's, on the same prompts with the same noise, by more than the floor. A floor of
0.02 allows a probability to fall by about 2 % of itself. The base is the measure because it can be drawn on any prompts
without a search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmark.evaluate import scores
from benchmark.evaluate.runner import Evaluation

if TYPE_CHECKING:
    from torch import Tensor

_LEVEL = 0.95
"""Of the one-sided confidence limit that must lie below a floor before a blend is said to break it."""


@dataclass(frozen=True)
class Floors:
    """How far each tag and each category may fall below the base; None where there is no floor.

    strength: by how much the gradient search weighs what is below a floor against the score. category_of: a tag's
    category.
    """

    tag: float | None
    category: float | None
    strength: float
    category_of: Callable[[str], str]

    def groups(self, tags: Sequence[str]) -> Iterator[tuple[str, float, NDArray[np.intp]]]:
        """(name, floor, columns among `tags`) of every tag and category that has a floor."""
        if self.tag is not None:
            for column, tag in enumerate(tags):
                yield tag, self.tag, np.array([column])
        if self.category is not None:
            for name, columns in self._categories(tags):
                yield f"category {name}", self.category, columns

    def _categories(self, tags: Sequence[str]) -> Iterator[tuple[str, NDArray[np.intp]]]:
        """(name, columns among `tags`) of every category."""
        names = np.array([self.category_of(tag) for tag in tags])
        for name in dict.fromkeys(names.tolist()):
            yield name, np.flatnonzero(names == name)

    def broken(self, blend: Evaluation, base: Evaluation, role: str) -> dict[str, float]:
        """{tag or category: how far its mean log probability lies below its floor}, where it does beyond chance.

        Beyond chance: the upper limit of the difference, paired by prompt, lies below the floor too (Student's t, 95 %,
        one-sided). What a single prompt asks for is never beyond chance. Both are of the same prompts. role: of the
        tagger.
        """
        from scipy.stats import t

        logs = [np.log(np.maximum(each.probabilities[role], scores.PROBABILITY_FLOOR)) for each in (blend, base)]
        found = {}
        for name, floor, columns in self.groups(blend.tags):
            asked = blend.asked[:, columns]
            ours, theirs = (scores.tally(each[:, columns], asked, blend.prompt_of) for each in logs)
            difference, prompts = scores.paired_difference(ours, theirs), int((ours.asked > 0).sum())
            if prompts > 1 and difference.value + t.ppf(_LEVEL, prompts - 1) * difference.stderr < -floor:
                found[name] = -floor - difference.value
        return found

    def penalty(self, logs: Tensor, base: Tensor, asked: Tensor, tags: Sequence[str]) -> Tensor:
        """[B]: `strength` times how far each image's tags (the mean over those asked for), and its categories, lie
        below their floors; differentiable in `logs`.

        logs, base: [B, T], log probabilities of the blend's and the base's image of the same prompt; asked: bool
        [B, T]. It counts image by image, so that it does not depend on how many images are drawn at once.
        """
        import torch

        base = torch.nan_to_num(base, nan=-1e4)  # a base that draws nothing sets no floor
        parts = []
        if self.tag is not None:
            below = torch.relu(base - self.tag - logs)
            parts.append(torch.where(asked, below, 0).sum(dim=1) / asked.sum(dim=1))
        if self.category is not None:
            masks = [_columns(asked, columns) for _, columns in self._categories(tags)]
            counts = torch.stack([mask.sum(dim=1) for mask in masks])  # [categories, B]
            means = [
                torch.stack([torch.where(mask, each, 0).sum(dim=1) for mask in masks]) / counts.clamp(min=1)
                for each in (logs, base)
            ]
            below = torch.relu(means[1] - self.category - means[0])
            parts.append(torch.where(counts > 0, below, 0).sum(dim=0) / (counts > 0).sum(dim=0))
        return self.strength * torch.stack(parts).sum(dim=0)


def _columns(asked: Tensor, columns: NDArray[np.intp]) -> Tensor:
    """`asked` [B, T] with all other columns false."""
    import torch

    mask = torch.zeros_like(asked)
    mask[:, torch.from_numpy(columns)] = True
    return asked & mask
