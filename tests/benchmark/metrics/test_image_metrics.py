"""The secondary metrics by hand, against closed forms and against other ways of computing them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy

from benchmark.evaluate.scores import Estimate
from benchmark.metrics import image_metrics as metrics

DRAW = np.random.default_rng(0)


def diversity(embeddings: np.ndarray, prompt_of: np.ndarray) -> Estimate:
    return metrics.mean_of(metrics.distances(embeddings, prompt_of), prompt_of)


def clip_score(images: np.ndarray, texts: np.ndarray, prompt_of: np.ndarray) -> Estimate:
    return metrics.mean_of(metrics.clip_scores(images, texts, prompt_of), prompt_of)


def r_precision(images: np.ndarray, texts: np.ndarray, prompt_of: np.ndarray, **options: int) -> Estimate:
    return metrics.mean_of(metrics.nearest(images, texts, prompt_of, **options), prompt_of, bounded=True)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    return metrics.frechet_from(a)(b)


def jackknife(statistic: Callable[[np.ndarray], float], prompt_of: np.ndarray) -> Estimate:
    return metrics.from_replicates(metrics.replicates(statistic, prompt_of))


def test_diversity_by_hand() -> None:
    # Prompt 0: three images at 0, 90 and 90 degrees: 1 - cos is 1 and 0. Prompt 1: two opposite ones: 2. Prompt 2: one.
    embeddings = np.array([[2, 0], [0, 1], [0, 5], [1, 0], [-3, 0], [1, 1]], dtype=np.float32)
    score = diversity(embeddings, np.array([0, 0, 0, 1, 1, 2]))
    assert score.value == pytest.approx((1 + 0 + 2) / 3)
    assert math.isnan(diversity(embeddings[:2], np.array([0, 1])).value)


def test_clip_score_by_hand() -> None:
    texts = np.array([[1, 0], [0, 2]])
    images = np.array([[3, 0], [1, 1], [0, -1]])
    score = clip_score(images, texts, np.array([0, 0, 1]))
    assert score.value == pytest.approx(100 * (1 + math.sqrt(0.5) + 0) / 3)


def test_clip_score_against_a_plain_loop() -> None:
    images, texts, prompt_of = DRAW.normal(size=(40, 8)), DRAW.normal(size=(10, 8)), np.repeat(np.arange(10), 4)
    values = []
    for image, prompt in zip(images, prompt_of, strict=True):
        text = texts[prompt]
        cosine = sum(a * b for a, b in zip(image, text, strict=True)) / math.hypot(*image) / math.hypot(*text)
        values.append(max(100 * cosine, 0))
    assert clip_score(images, texts, prompt_of).value == pytest.approx(sum(values) / 40, abs=1e-5)


def test_r_precision_by_hand() -> None:
    texts = np.eye(3)
    images = np.array([[1, 0.2, 0], [0.9, 1, 0], [0, 0, 1], [0, 1, 0.5], [1, 1, 1]])
    prompt_of = np.array([0, 0, 2, 2, 1])  # nearest: 0, 1, 2, 1, and a tie of all three
    assert r_precision(images, texts, prompt_of).value == pytest.approx(2 / 5)


def test_r_precision_against_sorting() -> None:
    """scipy's cosine distances, sorted: a hit where the own prompt comes first."""
    images, texts, prompt_of = DRAW.normal(size=(60, 8)), DRAW.normal(size=(20, 8)), np.repeat(np.arange(20), 3)
    images += 0.7 * texts[prompt_of]
    nearest = scipy.spatial.distance.cdist(images, texts, "cosine").argsort(axis=1)[:, 0]
    expected = (nearest == prompt_of).mean()
    assert 0.2 < expected < 0.95
    assert r_precision(images, texts, prompt_of).value == pytest.approx(expected, abs=1e-5)


def test_r_precision_among_few_is_easier_and_chance_is_one_in_n() -> None:
    images, texts = DRAW.normal(size=(2000, 16)), DRAW.normal(size=(200, 16))
    prompt_of = np.repeat(np.arange(200), 10)
    for candidates in (2, 10):
        score = r_precision(images, texts, prompt_of, candidates=candidates, seed=1)
        assert score.value == pytest.approx(1 / candidates, abs=0.04)
        assert score == r_precision(images, texts, prompt_of, candidates=candidates, seed=1)


def test_inception_score_at_its_ends_and_by_hand() -> None:
    assert metrics.inception_score(np.full((6, 4), 0.25)) == pytest.approx(1)
    assert metrics.inception_score(np.tile(np.eye(4), (3, 1))) == pytest.approx(4)
    p = np.array([[0.9, 0.1], [0.5, 0.5]])  # marginal 0.7, 0.3
    by_hand = (0.9 * math.log(9 / 7) + 0.1 * math.log(1 / 3) + 0.5 * math.log(5 / 7) + 0.5 * math.log(5 / 3)) / 2
    assert metrics.inception_score(p) == pytest.approx(math.exp(by_hand), abs=1e-9)


def test_inception_score_is_the_information_between_image_and_class() -> None:
    p = DRAW.dirichlet(np.full(7, 0.5), 300)

    information = scipy.stats.entropy(p.mean(0)) - scipy.stats.entropy(p, axis=1).mean()
    assert metrics.inception_score(p) == pytest.approx(np.exp(information), abs=1e-5)
    divergence = scipy.stats.entropy(p, np.broadcast_to(p.mean(0), p.shape), axis=1)
    assert metrics.inception_score(p) == pytest.approx(np.exp(divergence.mean()), abs=1e-5)


@pytest.mark.parametrize(("width", "size"), [(2, 40), (12, 300), (40, 200)])
def test_frechet_distance_against_scipys_square_root_of_a_matrix(width: int, size: int) -> None:
    a = DRAW.normal(size=(size, width)) @ DRAW.normal(size=(width, width)) + DRAW.normal(size=width)
    b = DRAW.normal(size=(size, width)) @ DRAW.normal(size=(width, width))
    first, second = np.cov(a.T), np.cov(b.T)
    root = np.trace(scipy.linalg.sqrtm(first @ second)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)


def test_frechet_distance_of_fewer_images_than_features() -> None:
    """There `sqrtm` is lost; the eigenvalues of A B are those of X Y' Y X', whose roots are singular values."""
    a, b = DRAW.normal(size=(10, 64)), DRAW.normal(1, 2, size=(14, 64))
    x, y = (a - a.mean(0)) / 3, (b - b.mean(0)) / math.sqrt(13)
    root = scipy.linalg.svdvals(x @ y.T).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)


def test_frechet_distance_of_one_feature_is_closed() -> None:
    a, b = DRAW.normal(1, 2, (500, 1)), DRAW.normal(-1, 3, (500, 1))
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError, match="two images or more"):
        frechet_distance(a[:1], b)
    with pytest.raises(ValueError, match="two images or more"):
        frechet_distance(a, b[:1])


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values, prompt_of = DRAW.normal(size=40), np.repeat(np.arange(10), 4)
    score = jackknife(lambda used: float(values[used].mean()), prompt_of)
    pairs = values.reshape(10, 4).mean(axis=1)
    assert score.stderr == pytest.approx(pairs.std(ddof=1) / math.sqrt(10))
    assert score.high - score.value == pytest.approx(scipy.stats.t.ppf(0.975, 9) * score.stderr)
    few = jackknife(lambda used: float(values[used].mean()), prompt_of % 3)
    assert few.value == score.value
    assert math.isnan(few.low)


def test_the_jackknifed_inception_score_holds_what_many_images_tell() -> None:
    """Intervals of 400 sets of 100 prompts against the mean of all of them: what such a set tells, bias included."""
    sharp = np.random.default_rng(0).dirichlet(np.full(5, 0.4), (400, 100))
    prompt_of = np.arange(100)
    truth = np.mean([metrics.inception_score(p) for p in sharp])
    held = 0
    for p in sharp:
        score = jackknife(lambda used, p=p: metrics.inception_score(p[used]), prompt_of)
        held += score.low <= truth <= score.high
    assert 0.93 <= held / 400 <= 0.97
