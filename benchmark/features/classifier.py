"""Features for the Inception Score: the classes that a transformers image classifier gives an image.

B images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.errors import InputError
from benchmark.features.extractor import Features
from benchmark.images import Images
from benchmark.taggers.networks import CONFIG, PREPROCESSOR, WEIGHTS, TransformersNetwork

if TYPE_CHECKING:
    from torch import Tensor


class ClassifierFeatures(TransformersNetwork):
    """Any transformers image classifier with its preprocessing. See `FeatureExtractor`."""

    def __init__(self, folder: Path | str, *, device: str = "cpu", batch_size: int = 32):
        folder, needed = Path(folder), (CONFIG, WEIGHTS, PREPROCESSOR)
        kind = "AutoModelForImageClassification"
        super().__init__(folder, kind, "image classifier's folder", needed, device=device, batch_size=batch_size)

    def check(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Raise InputError for a tagger."""
        if config.get("problem_type") == "multi_label_classification":
            raise InputError(f"{folder}: is a tagger. The Inception Score needs a classifier of one class an image.")

    def images(self, images: Images) -> Features:
        """uint8 [B, H, W, 3] -> the probability of each class [B, K]; rows sum to 1."""
        return self.show(images, self._classes, self.model.config.num_labels)

    def _classes(self, pixels: Tensor) -> Tensor:
        classes: Tensor = self.model(self.preprocessing(pixels)).logits.softmax(dim=1)
        return classes
