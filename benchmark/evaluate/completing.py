"""Rows on disk -> complete rows: draws and tags what is missing, and shows looks what they have not seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from benchmark.evaluate.results import Rows
from benchmark.evaluate.runner import Batch, Evaluation, image_digests, is_broken, score_batches
from benchmark.features.encoders import Look
from benchmark.pipelines.generation import ImageGenerator
from benchmark.taggers.tagger import Images, Tagger


def complete_rows(
    rows: Rows,
    open_generator: Callable[[int | None], ImageGenerator],
    taggers: Mapping[str, Tagger],
    progress: Callable[[int, Batch | None], None] | None = None,
    looks: Mapping[str, Look] | None = None,
) -> Evaluation:
    """Draw and tag what is missing, row by row on disk, and read all of it.

    `open_generator(batch size or None)` is called only where something is missing, so a complete model is not even
    loaded. `progress(rows done, batch)` is called at the start and after each batch. Whatever ends it, the rows so far
    stay, and the next call goes on from there with batches of the same size. Looks that complete rows lack are given
    the images that were kept without loss; only where there are none is drawn again.
    """
    if not rows.complete:
        start = rows.done
        if progress is not None:
            progress(start, None)
        missing = rows.plan.prompts[start:]
        if missing:
            generator = open_generator(rows.batch_size)
            for batch in score_batches(generator, taggers, missing, rows.plan.tags, looks):
                rows.add(start + batch.start, batch)
                if progress is not None:
                    progress(start + batch.start + len(batch.images), batch)
        rows.finish()
    elif roles := rows.missing_looks:
        _look_again(rows, open_generator, {role: (looks or {})[role] for role in roles}, progress)
    return rows.evaluation()


def _look_again(
    rows: Rows,
    open_generator: Callable[[int | None], ImageGenerator],
    looks: Mapping[str, Look],
    progress: Callable[[int, Batch | None], None] | None,
) -> None:
    """Add looks to complete rows, batch by batch on disk."""
    row = rows.features_done(list(looks))
    if progress is not None:
        progress(row, None)

    def images() -> Iterator[Images]:
        yield from rows.kept_images(row)  # `row` rises while this is read
        if row < len(rows.plan.prompts):
            yield from open_generator(None).generate(rows.plan.prompts[row:])

    for batch in images():
        features = {role: look.images(batch) for role, look in looks.items()}
        rows.add_features(row, features)
        start, row = row, row + len(batch)
        if progress is not None:
            progress(row, Batch(start, batch, {}, is_broken(batch), image_digests(batch), features))
    rows.finish_features(list(looks))
