"""Feature extractors: what is kept of an image beside its tags (embeddings, classes, style), for further metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark.lazy import lazily

if TYPE_CHECKING:
    from benchmark.features.classifier import ClassifierFeatures as ClassifierFeatures
    from benchmark.features.encoders import open_encoder as open_encoder
    from benchmark.features.extractor import FeatureExtractor as FeatureExtractor
    from benchmark.features.style import StyleFeatures as StyleFeatures

__getattr__, __dir__ = lazily(
    __name__,
    {
        "ClassifierFeatures": "benchmark.features.classifier",
        "FeatureExtractor": "benchmark.features.extractor",
        "open_encoder": "benchmark.features.encoders",
        "StyleFeatures": "benchmark.features.style",
    },
)
