"""Twelve images, nine tags, every probability known: each figure of a comparison against one worked out by hand.

Six prompts of two images. Probabilities are 0.1 where nothing else is said, so what counts can be counted on fingers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from benchmark.evaluate.runner import Evaluation
from benchmark.evaluate.scores import Rate
from benchmark.metrics import image_metrics as metrics
from benchmark.metrics.comparison import ModelScores, compare
from benchmark.metrics.secondary import References
from benchmark.prompts.prompt_set import Prompt

TAGS = tuple("abcdefghi")
CATEGORY = {**dict.fromkeys("abc", "hair"), **dict.fromkeys("def", "face"), **dict.fromkeys("ghi", "clothes")}
ASKED = ("ad", "b", "gea", "ch", "i", "fgb")
PROMPTS = tuple(Prompt(i, tags, tuple(tags), 10 * i + n) for i, tags in enumerate(ASKED) for n in range(2))
# What the tagger says of the tags asked for, in the prompt's order. The last image is broken.
SAID = [[0.9, 0.6], [0.5, 0.4], [0.2], [0.9], [0.6, 0.2, 0.9], [0.6, 0.6, 0.4]]
SAID += [[0.9, 0.9], [0.2, 0.6], [0.4], [0.6], [0.9, 0.9, 0.5], [0, 0, 0]]
ADDED = {(0, "b"): 0.9, (3, "i"): 0.7, (4, "b"): 0.5, (6, "f"): 0.9, (6, "i"): 0.9}  # (image, tag): unasked for
CHANGED = {(2, "b"): 0.9, (8, "i"): 0.9, (6, "c"): 0.2}  # the other model: one more, one more, one less
DIGESTS = np.array([1, 2, 3, 4, 5, 5, 7, 8, 1, 10, 11, 1])  # 4 and 5 share a prompt, 11 is broken: one repeat, row 8
ANGLES = [0, 90, 0, 60, 0, 0, 0, 180, 0, 90, 45, 0]  # of the images' embeddings
TEXT_ANGLES = [0, 60, 30, 90, 180, 45]
CLASSES = np.array([[1, 0], [0, 1]] * 5 + [[0.5, 0.5], [1, 0]])


def directions(angles: list[int]) -> np.ndarray:
    radians = np.radians(angles)
    lengths = 1 + np.arange(len(angles)) % 3  # the length of an embedding says nothing
    return np.stack([np.cos(radians), np.sin(radians)], axis=1) * lengths[:, None]


# The reference images are the first model's own, five away.
REFERENCES = References(
    directions(TEXT_ANGLES), {"clip": "c"}, {"clip": directions(ANGLES)[:11] + np.array([3.0, 4.0])}
)


def evaluation(changed: bool) -> Evaluation:
    said = np.full((12, 9), 0.1, dtype=np.float32)
    for row, (prompt, values) in enumerate(zip(PROMPTS, SAID, strict=True)):
        said[row, [TAGS.index(tag) for tag in prompt.tags]] = values
    for (row, tag), value in {**ADDED, **(CHANGED if changed else {})}.items():
        said[row, TAGS.index(tag)] = value
    said[11] = 0
    done = Evaluation(PROMPTS, TAGS, {"tagger": said}, np.arange(12) == 11, DIGESTS, 6.0)
    angles, classes = list(ANGLES), CLASSES.astype(np.float32)
    if changed:
        angles[3], classes[10] = 0, [1, 0]
    features = {"clip": directions(angles).astype(np.float32), "classes": classes}
    features["style"] = np.arange(24, dtype=np.float32).reshape(12, 2) / (2 if changed else 1)
    return replace(done, features=features)


@pytest.fixture(scope="module")
def models() -> tuple[ModelScores, ...]:
    evaluations = {"one": evaluation(False), "other": evaluation(True)}
    return compare(evaluations, CATEGORY.__getitem__, {"tagger": 0.5}, REFERENCES)


def values(scores: dict) -> dict:
    return {key: score.value for key, score in scores.items()}


def rates(found: Mapping[str, Mapping[str, Rate]]) -> dict[str, tuple[float, int]]:
    return {tag: (rate.score.value, rate.images) for tag, rate in found["tagger"].items()}


def test_accuracy_its_error_and_the_probabilities(models: tuple[ModelScores, ...]) -> None:
    accuracy = models[0].accuracy["tagger"]
    assert accuracy.value == pytest.approx(15 / 24)  # by prompt: 3 of 4, 1 of 2, 4 of 6, 3 of 4, 1 of 2, 3 of 6
    # Residuals hits - 15/24 asked: 1/2, -1/4, 1/4, 1/2, -1/4, -3/4. Their squares sum to 5/4.
    assert accuracy.stderr == pytest.approx(math.sqrt(6 / 5 * 5 / 4) / 24)
    assert accuracy.low < 15 / 24 < accuracy.high
    assert models[0].probability["tagger"].value == pytest.approx(12.7 / 24)
    logs = 7 * math.log(0.9) + 6 * math.log(0.6) + 2 * math.log(0.5) + 3 * math.log(0.4) + 3 * math.log(0.2)
    logs += 3 * math.log(1e-4)  # the broken image's
    assert evaluation(False).mean_log_probability("tagger").value == pytest.approx(logs / 24, rel=1e-6)


def test_categories_counts_and_places(models: tuple[ModelScores, ...]) -> None:
    assert values(models[0].categories["tagger"]) == pytest.approx({"hair": 6 / 10, "face": 3 / 6, "clothes": 6 / 8})
    assert values(models[0].by_count["tagger"]) == pytest.approx({1: 2 / 4, 2: 6 / 8, 3: 7 / 12})
    assert values(models[0].by_position["tagger"]) == pytest.approx({1: 8 / 12, 2: 5 / 8, 3: 2 / 4})


def test_tags_found_and_added(models: tuple[ModelScores, ...]) -> None:
    hits = {"a": (3, 4), "b": (2, 4), "c": (1, 2), "d": (1, 2), "e": (1, 2), "f": (1, 2), "g": (3, 4), "h": (2, 2)}
    hits["i"] = (1, 2)
    assert rates(models[0].tags) == {tag: (pytest.approx(n / of), of) for tag, (n, of) in hits.items()}
    added = {"a": (0, 8), "b": (2, 8), "c": (0, 10), "d": (0, 10), "e": (0, 10), "f": (1, 10), "g": (0, 8)}
    added |= {"h": (0, 10), "i": (2, 10)}
    assert rates(models[0].added) == {tag: (pytest.approx(n / of), of) for tag, (n, of) in added.items()}
    assert models[0].added_per_image["tagger"].value == pytest.approx(5 / 12)


def test_broken_and_repeated_images(models: tuple[ModelScores, ...]) -> None:
    assert [(model.images, model.broken, model.duplicates) for model in models] == [(12, 1, 1)] * 2
    share = models[0].broken_share
    assert share.value == pytest.approx(1 / 12)
    assert 0 == share.low < share.value < share.high < 0.4  # one of six prompts has it


def test_the_paired_difference(models: tuple[ModelScores, ...]) -> None:
    assert models[0].difference == {}
    difference = models[1].difference["tagger"]
    assert difference.value == pytest.approx(1 / 24)  # by prompt 0, +1, 0, -1, +1, 0
    residuals = [-4 / 24, 1 - 2 / 24, -6 / 24, -1 - 4 / 24, 1 - 2 / 24, -6 / 24]
    assert difference.stderr == pytest.approx(math.sqrt(6 / 5 * sum(r**2 for r in residuals)) / 24)


def test_diversity_clip_score_and_r_precision(models: tuple[ModelScores, ...]) -> None:
    assert values(models[0].metrics) == pytest.approx(
        {
            "diversity by c": (1 + 0.5 + 0 + 2 + 1) / 5,  # the last prompt has one whole image
            "CLIP score": 100 * (1 + 0.5 + 1 + math.sqrt(3) + 1) / 11,
            "R-precision of 6": 3 / 11,  # images 0, 3 and 10 are nearest to their own prompt
            # Five images surely of each class and one of either: all but it are ln 2 from the mean.
            "Inception Score": 2 ** (10 / 11),
            "Fréchet distance by c": 25,
            "style loss": 10.5,  # the mean of 0 to 21
        },
        rel=1e-5,
    )


def test_paired_differences_of_what_looks_tell(models: tuple[ModelScores, ...]) -> None:
    differences = values(models[1].metric_difference)
    sixths = -(6 / 11 * math.log(6 / 11) + 5 / 11 * math.log(5 / 11))
    distance = "Fréchet distance by c"
    assert differences.pop(distance) == pytest.approx(models[1].metrics[distance].value - 25)
    assert differences == pytest.approx(
        {
            "diversity by c": -0.5 / 5,
            "CLIP score": -50 / 11,
            "R-precision of 6": -1 / 11,
            "Inception Score": math.exp(sixths) - 2 ** (10 / 11),
            "style loss": -10.5 / 2,
        },
        rel=1e-5,
    )
    assert models[0].metric_difference == {}


def test_a_frechet_distance_of_unlike_clouds() -> None:
    spread = np.array([[1, 0], [-1, 0], [0, 2], [0, -2]])  # variances 2/3 and 8/3
    expected = (math.sqrt(2 / 3) - math.sqrt(8 / 3)) ** 2 * 2
    assert metrics.frechet_from(spread)(spread[:, ::-1]) == pytest.approx(expected)
