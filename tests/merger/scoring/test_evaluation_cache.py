"""Evaluations kept on disk: what they cost is counted, whatever else lies there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.evaluate.runner import Evaluation, evaluate
from benchmark.images import Images
from benchmark.pipelines.generation import FakeGenerator
from benchmark.prompts.prompt_set import make_prompts
from benchmark.prompts.vocabulary import vocabulary_from_tags
from benchmark.taggers.tagger import FakeTagger
from merger.scoring.evaluation_cache import EvaluationCache, spent_on
from merger.scoring.reward_hacking import THUMBNAILS, Thumbnails
from merger.search.trials import Score, TrialRecord


def test_images_and_seconds_are_of_trials_and_kept_evaluations(tmp_path: Path) -> None:
    score = Score(0.5, 0.1, 0.5, 0.1, 0.5, images=8, seconds=1.25)
    records = [TrialRecord(number, "search", "", {}, score) for number in range(3)]
    assert spent_on(records, tmp_path / "scores") == {"images_drawn": 24, "seconds": 3.8}
    for name, images in (("validation-1", 4), ("test-1", 6)):
        np.savez(tmp_path / f"{name}.npz", broken=np.zeros(images, bool), seconds=np.array(2.0))
    (tmp_path / "test-2.npz").write_bytes((tmp_path / "test-1.npz").read_bytes()[:-100])
    (tmp_path / "test-3.npz").write_text("damaged")
    np.savez(tmp_path / "test-4.npz", other=np.zeros(3))
    assert spent_on(records, tmp_path) == {"images_drawn": 34, "seconds": 7.8}


TAGS = tuple("abcdefgh")
PROMPTS = make_prompts(vocabulary_from_tags(TAGS, 8), 6, tags_per_prompt=(2, 3), seed=1)
WEIGHTS = {"IN": {"one": 0.5}}


@pytest.fixture
def cache(tmp_path: Path) -> EvaluationCache:
    return EvaluationCache(tmp_path, {"test": PROMPTS}, {"tagger": "1", "judge": "2"})


@pytest.fixture
def kept(cache: EvaluationCache) -> Evaluation:
    taggers = {"tagger": FakeTagger(TAGS), "judge": FakeTagger(TAGS, "judge", 1, 0.1)}
    done = evaluate(FakeGenerator(TAGS), taggers, PROMPTS, keep_images=4, extractors={THUMBNAILS: Thumbnails()})
    cache.put("test", WEIGHTS, done)
    return done


def test_what_was_kept_comes_back(cache: EvaluationCache, kept: Evaluation) -> None:
    back = cache.get("test", WEIGHTS)
    assert back is not None
    assert (back.tags, back.prompts, back.seconds) == (kept.tags, kept.prompts, kept.seconds)
    for name, values in kept.probabilities.items():
        np.testing.assert_array_equal(back.probabilities[name], values)
    np.testing.assert_array_equal(back.features[THUMBNAILS], kept.features[THUMBNAILS])
    assert isinstance(back.images, np.ndarray)
    assert cache.get("test", {"IN": {"one": 0.25}}) is None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tags", lambda tags: np.array([f"foreign {tag}" for tag in tags])),
        ("tags", lambda tags: tags[:-1]),
        ("tags", lambda tags: tags[::-1]),
        ("tags", lambda tags: np.arange(len(tags))),
        ("probabilities_judge", lambda said: said[:, :-1]),
        ("probabilities_judge", lambda said: said[:-1]),
        ("probabilities_judge", lambda said: said * np.nan),
        ("probabilities_judge", lambda said: said + 2),
        ("probabilities_judge", lambda said: said.astype(str)),
        ("probabilities_judge", None),
        ("broken", lambda broken: broken[:-1]),
        ("broken", lambda broken: broken.astype(np.float32)),
        ("digests", lambda digests: digests[:-1]),
        ("seconds", lambda seconds: np.array([seconds, seconds])),
        ("seconds", lambda seconds: seconds * np.nan),
        ("images", lambda images: images[..., 0]),
        ("images", lambda images: images.astype(np.float32)),
        ("thumbnails", lambda thumbnails: thumbnails[:, :5]),
    ],
)
def test_an_entry_that_holds_something_else_is_made_again(
    name: str, change: Callable[[Images], Any] | None, cache: EvaluationCache, kept: Evaluation
) -> None:
    path = cache.path("test", WEIGHTS)
    with np.load(path) as archive:
        arrays = dict(archive)
    changed = arrays.pop(name)
    if change is not None:
        arrays[name] = change(changed)
    np.savez(path, **arrays)
    assert cache.get("test", WEIGHTS) is None
    cache.put("test", WEIGHTS, kept)
    assert cache.get("test", WEIGHTS) is not None
