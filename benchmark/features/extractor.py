"""The seam of the feature extractors: images in, a row of numbers for each out, kept beside the taggers' probabilities.

B images or texts, E numbers for each.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from benchmark.images import Images

Features = NDArray[np.float32]  # [B, E]


class FeatureExtractor(Protocol):
    """A row of numbers for each image (an embedding, classes, style ...), which does not depend on its batch."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of everything that decides its answers."""

    def images(self, images: Images) -> Features:
        """uint8 [B, H, W, 3] -> float32 [B, E]."""
