"""Whether a blend draws better or has learnt to fool its tagger: what is looked at before a finalist may win. Pure.

I  images of a prompt set, one a prompt        B  images of a batch, H x W pixels

Four things that an honest gain does not do, each compared with the parents on the same prompts: images that hold no
picture; the same picture for different prompts; pictures that are much more alike; and tags that are found only as
long as no pixel is moved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark.evaluate.runner import Evaluation
from benchmark.evaluate.scores import Floats, Tally, paired_difference
from benchmark.features.extractor import Features
from benchmark.images import Images
from benchmark.taggers.tagger import Probabilities, Tagger
from merger.scoring.objective import TAGGER

BROKEN_MORE = 0.02
"""Share of images by which a blend may have more broken ones than the parent that has most."""

LEAST_DIVERSITY = 0.5
"""Share of the least diverse parent's diversity that a blend must have."""

LEAST_KEPT = 0.5
"""Share of its gain over the best parent that must be there in changed images too."""

THUMBNAILS = "thumbnails"
"""The name that evaluations keep them under."""

_SIDE = 8  # pixels of a thumbnail


def shifted(images: Images) -> Images:
    """[B, H, W, 3] moved by one pixel to the right and down; the first row and column stand twice."""
    return np.pad(images, ((0, 0), (1, 0), (1, 0), (0, 0)), mode="edge")[:, :-1, :-1]


def blurred(images: Images) -> Images:
    """[B, H, W, 3] with an eighth of each neighbour above, below, left and right mixed in, one axis at a time."""
    mixed: NDArray[np.float32] = images.astype(np.float32)
    for axis in (1, 2):
        width = [(0, 0)] * 4
        width[axis] = (1, 1)
        padded, size = np.pad(mixed, width, mode="edge"), mixed.shape[axis]
        before, middle, after = (np.take(padded, np.arange(size) + at, axis=axis) for at in range(3))
        mixed = np.asarray((before + 6 * middle + after) / 8, dtype=np.float32)
    return mixed.round().astype(np.uint8)


def brightened(images: Images) -> Images:
    """[B, H, W, 3] brighter by a twentieth."""
    return np.clip(images.astype(np.float32) * 1.05, 0, 255).round().astype(np.uint8)


CHANGES: dict[str, Callable[[Images], Images]] = {"shifted": shifted, "blurred": blurred, "brightened": brightened}
"""Changes that leave a picture what it is."""


@dataclass(frozen=True)
class ChangedTagger:
    """A tagger that is shown every image a little changed. See `Tagger`."""

    tagger: Tagger
    change: str

    @property
    def name(self) -> str:
        """The tagger's, and the change."""
        return f"{self.tagger.name}, {self.change}"

    @property
    def tags(self) -> tuple[str, ...]:
        """The tagger's."""
        return self.tagger.tags

    @property
    def general(self) -> tuple[str, ...]:
        """The tagger's."""
        return self.tagger.general

    @property
    def fingerprint(self) -> str:
        """The tagger's, and the change."""
        return f"{self.tagger.fingerprint} {self.change}"

    def probabilities(self, images: Images) -> Probabilities:
        """[B, H, W, 3] uint8 -> [B, T]: of the changed images."""
        return self.tagger.probabilities(CHANGES[self.change](images))


def changed_taggers(tagger: Tagger) -> dict[str, Tagger]:
    """The tagger once for every change, by the change's name."""
    return {change: ChangedTagger(tagger, change) for change in CHANGES}


class Thumbnails:
    """Images as tiny pictures, which know nothing of tags. See `benchmark.features.extractor.FeatureExtractor`."""

    name = fingerprint = THUMBNAILS

    def images(self, images: Images) -> Features:
        """uint8 [B, H, W, 3] -> float32 [B, 192] in 0..1: the mean of each of 8 x 8 parts."""
        height, width = images.shape[1:3]
        rows, columns = (np.arange(_SIDE) * size // _SIDE for size in (height, width))
        sums = np.add.reduceat(np.add.reduceat(images.astype(np.float32), rows, axis=1), columns, axis=2)
        counts = np.diff([*rows, height])[:, None] * np.diff([*columns, width])[None, :]
        means = sums / (255 * counts[:, :, None])
        return np.asarray(means.reshape(len(images), -1), dtype=np.float32)


def diversity(thumbnails: Floats) -> float:
    """The mean, over all pairs of images, of the root mean square difference of thumbnails [I, 192]; NaN for one."""
    count = len(thumbnails)
    if count < 2:
        return float("nan")
    wide = np.asarray(thumbnails, dtype=np.float64)
    squares = (wide**2).sum(axis=1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * wide @ wide.T, 0.0) / wide.shape[1])
    return float(apart[np.triu_indices(count, 1)].mean())


@dataclass(frozen=True)
class Looks:
    """What is looked at of one blend. `diversity` is NaN where no thumbnails were kept; `changed` empty without."""

    accuracy: float
    changed: Mapping[str, float]
    broken: float
    duplicates: int
    diversity: float


def looks_of(evaluation: Evaluation, threshold: float) -> Looks:
    """What is to be seen of an evaluation by the search's tagger and its changed forms."""
    whole = ~evaluation.broken_images
    kept = evaluation.features.get(THUMBNAILS)
    return Looks(
        accuracy=evaluation.accuracy(TAGGER, threshold).value,
        changed={
            change: evaluation.accuracy(change, threshold).value
            for change in CHANGES
            if change in evaluation.probabilities
        },
        broken=float(evaluation.broken_images.mean()),
        duplicates=evaluation.duplicates,
        diversity=float("nan") if kept is None else diversity(kept[whole]),
    )


def objections(
    blend: Evaluation, parents: Sequence[Evaluation], best_parent: Evaluation, threshold: float
) -> list[str]:
    """Why a blend must not win, in words; nothing where all is well. All evaluations are of the same prompts."""
    seen, theirs = looks_of(blend, threshold), [looks_of(parent, threshold) for parent in parents]
    found = []
    most = max(parent.broken for parent in theirs)
    if seen.broken > most + BROKEN_MORE:
        found.append(f"{seen.broken:.1%} of its images hold no picture, of a parent's at most {most:.1%}")
    copies = max(parent.duplicates for parent in theirs)
    if seen.duplicates > copies:
        found.append(f"{seen.duplicates} of its images repeat that of another prompt, of a parent's at most {copies}")
    least = min(parent.diversity for parent in theirs)
    if seen.diversity < LEAST_DIVERSITY * least:
        found.append(f"its images are too much alike: diversity {seen.diversity:.3f}, of a parent at least {least:.3f}")
    fragile = _fragile(blend, best_parent, threshold)
    if fragile:
        found.append(fragile)
    return found


def _fragile(blend: Evaluation, parent: Evaluation, threshold: float) -> str | None:
    """Whether the gain over the parent is lost, beyond chance, when no picture changes but every pixel does a little.

    Chance is judged by the 95 % interval, paired by prompt, of how much more the blend loses than the parent does.
    """
    changes = [change for change in CHANGES if change in blend.probabilities and change in parent.probabilities]
    if not changes:
        return None
    gain = paired_difference(blend.tally(TAGGER, threshold), parent.tally(TAGGER, threshold)).value
    theirs, ours = (_changed_tally(evaluation, changes, threshold) for evaluation in (parent, blend))
    kept = paired_difference(ours, theirs).value
    more_lost = paired_difference(_lost(blend, ours, threshold), _lost(parent, theirs, threshold))
    if gain > 0 and kept < LEAST_KEPT * gain and more_lost.low > 0:
        return f"its gain over the best parent, {gain:+.4f}, is {kept:+.4f} in images changed a little"
    return None


def _changed_tally(evaluation: Evaluation, changes: Sequence[str], threshold: float) -> Tally:
    """Hits in changed images, the mean over the changes."""
    tallies = [evaluation.tally(change, threshold) for change in changes]
    return Tally(tallies[0].prompts, np.mean([tally.hits for tally in tallies], axis=0), tallies[0].asked)


def _lost(evaluation: Evaluation, changed: Tally, threshold: float) -> Tally:
    plain = evaluation.tally(TAGGER, threshold)
    return Tally(plain.prompts, plain.hits - changed.hits, plain.asked)


def as_row(looks: Looks) -> dict[str, Any]:
    """Plain values, for the result."""
    return {
        "validation_accuracy": looks.accuracy,
        "changed_accuracy": dict(looks.changed),
        "broken": looks.broken,
        "duplicates": looks.duplicates,
        "diversity": looks.diversity,
    }
