"""Rows on disk -> complete rows: images that are missing are drawn and tagged, features that are missing are added."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from benchmark.evaluate.results import Rows
from benchmark.evaluate.runner import Batch, Evaluation, score_batches
from benchmark.features.extractor import FeatureExtractor
from benchmark.images import Images, image_digests, is_broken
from benchmark.pipelines.generation import ImageGenerator
from benchmark.taggers.tagger import Tagger


def complete_rows(
    rows: Rows,
    open_generator: Callable[[int | None], ImageGenerator],
    taggers: Mapping[str, Tagger],
    progress: Callable[[int, Batch | None], None] | None = None,
    extractors: Mapping[str, FeatureExtractor] | None = None,
) -> Evaluation:
    """Draw and tag what is missing, row by row on disk, and read all of it.

    `open_generator(batch size or None)` is called only if something is missing: a complete model is not even loaded.
    `progress(rows done, batch)` is called at the start and after each batch. Whatever ends the call, the rows so far
    stay, and the next call continues from there with batches of the same size. Features that complete rows lack are
    taken from images that were kept without loss; images that were not kept are drawn again.
    """
    if not rows.complete:
        start = rows.done
        if progress is not None:
            progress(start, None)
        missing = rows.spec.prompts[start:]
        if missing:
            generator = open_generator(rows.batch_size)
            for batch in score_batches(generator, taggers, missing, rows.spec.tags, extractors):
                rows.add(start + batch.start, batch)
                if progress is not None:
                    progress(start + batch.start + len(batch.images), batch)
        rows.finish()
    elif roles := rows.missing_features:
        _add_features(rows, open_generator, {role: (extractors or {})[role] for role in roles}, progress)
    return rows.evaluation()


def _add_features(
    rows: Rows,
    open_generator: Callable[[int | None], ImageGenerator],
    extractors: Mapping[str, FeatureExtractor],
    progress: Callable[[int, Batch | None], None] | None,
) -> None:
    """Add the features of these extractors to complete rows, batch by batch on disk."""
    row = rows.features_done(list(extractors))
    if progress is not None:
        progress(row, None)

    def images() -> Iterator[Images]:
        yield from rows.kept_images(row)  # `row` rises while this is read
        if row < len(rows.spec.prompts):
            yield from open_generator(None).generate(rows.spec.prompts[row:])

    for batch in images():
        features = {role: extractor.images(batch) for role, extractor in extractors.items()}
        rows.add_features(row, features)
        start, row = row, row + len(batch)
        if progress is not None:
            progress(row, Batch(start, batch, {}, is_broken(batch), image_digests(batch), features))
    rows.finish_features(list(extractors))
