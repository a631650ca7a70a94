"""Reward hacking: whether a blend draws its tags better or has learnt what its tagger mistakes for them. Pure.

I  images of a prompt set, one per prompt        B  images of a batch, H x W pixels

A finalist is compared with the parents on the same prompts. An honest gain causes none of four signs:

- Images without content (one colour, or NaN): more of them than of any parent, beyond a margin; or more than a fixed
  share, whatever the parents do.
- The same image for different prompts: more of them than of any parent, beyond chance; or more than a fixed share.
- Images that are much more alike than those of any parent that draws pictures.
- Tags that are found only as long as no pixel changes: the gain over the best parent is lost, beyond chance, in images
  that are changed a little.

Fixed shares are needed because one broken parent (a donor with NaN, a donor that draws one picture) would excuse every
blend. They and the margins of the first and the third sign are judgements, and no measured false alarms stand behind
them. They are wide, because these signs are meant for a collapse, which is not subtle, and an alarm costs a winner.
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

BROKEN_MARGIN = 0.02
"""Share of images by which a blend may have more broken ones than the worst parent.

No tag is found in a broken image, so no gain comes from breaking images: the sign stands for blends that are
numerically unstable, which break many at once. The margin, two or three of 128 images, lets a blend have a few by
chance. In the demo not even blends of random weights break an image.
"""

MOST_BROKEN = 0.05
"""Share of broken images above which a blend is passed over, whatever the parents do.

Nobody wants one picture of twenty black. If every parent is worse than that, they or the settings are at fault.
"""

MOST_DUPLICATES = 0.25
"""Share of whole images that repeat another prompt's above which a blend is passed over, whatever the parents do."""

LEAST_SPREAD = 0.5
"""Share of the least spread-out parent's thumbnail spread that a blend must have.

Prompts and noise decide most of it: in the demo, parents and averages lie within 4 % of each other, and blends of
random weights, which draw half the tags, lie up to a quarter below. Half is far outside that, and is reached when most
images show one picture.
"""

LEAST_KEPT = 0.5
"""Share of its gain over the best parent that a blend must keep in changed images."""

DUPLICATES_LEVEL = 0.05
"""Chance that a blend as good as the worst parent is passed over for duplicates: of a one-sided test at 95 %."""

THUMBNAILS = "thumbnails"
"""The name under which evaluations keep thumbnails."""

_SIDE = 8  # pixels of a thumbnail

THUMBNAIL_NUMBERS = 3 * _SIDE**2
"""How many numbers a thumbnail is."""


def shifted(images: Images) -> Images:
    """[B, H, W, 3] moved by one pixel to the right and down; the first row and column are repeated."""
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
    """[B, H, W, 3] brighter by 5 %."""
    return np.clip(images.astype(np.float32) * 1.05, 0, 255).round().astype(np.uint8)


CHANGES: dict[str, Callable[[Images], Images]] = {"shifted": shifted, "blurred": blurred, "brightened": brightened}
"""Changes that leave what an image shows as it is."""


@dataclass(frozen=True)
class ChangedTagger:
    """A tagger that sees every image slightly changed. See `Tagger`."""

    tagger: Tagger
    change: str

    @property
    def name(self) -> str:
        """The tagger's, with the change."""
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
        """The tagger's, with the change."""
        return f"{self.tagger.fingerprint} {self.change}"

    def probabilities(self, images: Images) -> Probabilities:
        """[B, H, W, 3] uint8 -> [B, T]: of the changed images."""
        return self.tagger.probabilities(CHANGES[self.change](images))


def changed_taggers(tagger: Tagger) -> dict[str, Tagger]:
    """{name of a change: the tagger that sees images changed in this way}."""
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


def thumbnail_spread(thumbnails: Floats) -> float:
    """The mean, over all pairs of images, of the root mean square difference of thumbnails [I, 192]; NaN for one image.

    It tells whether the images of a whole prompt set look alike. It is not the benchmark's diversity, which compares
    images of the same prompt by an image encoder.
    """
    count = len(thumbnails)
    if count < 2:
        return float("nan")
    wide = np.asarray(thumbnails, dtype=np.float64)
    squares = (wide**2).sum(axis=1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * wide @ wide.T, 0.0) / wide.shape[1])
    return float(apart[np.triu_indices(count, 1)].mean())


@dataclass(frozen=True)
class Signs:
    """What one blend's images show. Each number is compared with the parents'.

    accuracy: by the search's tagger. changed: the same in changed images, by the change's name; empty if none were
    seen. broken: share of the images without content. whole: number of the others. duplicates: how many of these equal
    another prompt's image, the first of equal images not counted. spread: `thumbnail_spread`; NaN without thumbnails.
    """

    accuracy: float
    changed: Mapping[str, float]
    broken: float
    whole: int
    duplicates: int
    spread: float


def signs_of(evaluation: Evaluation, threshold: float) -> Signs:
    """The signs in an evaluation by the search's tagger, with or without its changed forms."""
    whole = ~evaluation.broken_images
    thumbnails = evaluation.features.get(THUMBNAILS)
    return Signs(
        accuracy=evaluation.accuracy(TAGGER, threshold).value,
        changed={
            change: evaluation.accuracy(change, threshold).value
            for change in CHANGES
            if change in evaluation.probabilities
        },
        broken=float(evaluation.broken_images.mean()),
        whole=int(whole.sum()),
        duplicates=evaluation.duplicates,
        spread=float("nan") if thumbnails is None else thumbnail_spread(thumbnails[whole]),
    )


def objections(
    blend: Evaluation, parents: Sequence[Evaluation], best_parent: Evaluation, threshold: float
) -> list[str]:
    """Why a blend must not win, in words; empty if nothing speaks against it.

    All evaluations are of the same prompts.
    """
    ours, theirs = signs_of(blend, threshold), [signs_of(parent, threshold) for parent in parents]
    found = []
    most = max(parent.broken for parent in theirs)
    if ours.broken > min(most + BROKEN_MARGIN, MOST_BROKEN):
        allowed = f"of a parent's at most {most:.1%}" if most + BROKEN_MARGIN <= MOST_BROKEN else _fixed(MOST_BROKEN)
        found.append(f"{ours.broken:.1%} of its images have no content, {allowed}")
    worst = max(theirs, key=lambda parent: parent.duplicates / max(parent.whole, 1))
    if more_duplicates(ours, worst):
        found.append(
            f"{ours.duplicates} of its images repeat that of another prompt, of a parent's at most {worst.duplicates}"
        )
    elif ours.duplicates > MOST_DUPLICATES * ours.whole:
        found.append(f"{ours.duplicates} of its images repeat that of another prompt, {_fixed(MOST_DUPLICATES)}")
    # a parent without pictures has no spread (NaN) or that of a few pictures
    least = min((parent.spread for parent in theirs if parent.broken <= MOST_BROKEN), default=float("nan"))
    if ours.spread < LEAST_SPREAD * least:
        found.append(
            f"its images are too much alike: thumbnail spread {ours.spread:.3f}, of a parent's at least {least:.3f}"
        )
    fragile = _fragile(blend, best_parent, threshold)
    if fragile:
        found.append(fragile)
    return found


def _fixed(share: float) -> str:
    return f"and more than {share:.0%} are too many whatever the parents do"


def more_duplicates(ours: Signs, theirs: Signs) -> bool:
    """Whether a blend has more duplicates than a parent, beyond chance.

    Fisher's exact test, one-sided, of the two shares of whole images that are duplicates. If a parent has none of 128,
    four duplicates may be chance and five are not.
    """
    if ours.duplicates == 0:
        return False
    from scipy.stats import fisher_exact

    table = [[signs.duplicates, signs.whole - signs.duplicates] for signs in (ours, theirs)]
    return bool(fisher_exact(table, alternative="greater").pvalue < DUPLICATES_LEVEL)


def _fragile(blend: Evaluation, parent: Evaluation, threshold: float) -> str | None:
    """A phrase if the gain over the parent is lost, beyond chance, in images that are changed a little; else None.

    Beyond chance: the 95 % interval, paired by prompt, of how much more the blend loses than the parent lies above 0.
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


def as_row(signs: Signs) -> dict[str, Any]:
    """Plain values, for the result.

    validation_accuracy: tag accuracy (recall of the tags asked for). changed_accuracy: the same in changed images, by
    change. broken: share of images without content. duplicates: images that repeat another prompt's. thumbnail_spread:
    how much the images differ from each other, in 0..1.
    """
    return {
        "validation_accuracy": signs.accuracy,
        "changed_accuracy": dict(signs.changed),
        "broken": signs.broken,
        "duplicates": signs.duplicates,
        "thumbnail_spread": signs.spread,
    }
