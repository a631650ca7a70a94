"""Taggers that are `transformers` multi-label image classifiers, kept as safetensors. B images, T tags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.errors import InputError
from benchmark.images import Images
from benchmark.taggers.networks import CONFIG, PREPROCESSOR, WEIGHTS, TransformersNetwork, natural_size
from benchmark.taggers.tagger import Probabilities, check_answers

if TYPE_CHECKING:
    from torch import Tensor


class TransformersTagger(TransformersNetwork):
    """A transformers multi-label classifier in a folder. See `Tagger`; `logits` can be differentiated.

    `threads` is not used: torch has its own setting.
    """

    def __init__(self, folder: Path, *, device: str = "cpu", threads: int | None = None, batch_size: int = 64):
        needed = [CONFIG, WEIGHTS]
        needed += [PREPROCESSOR] if (folder / PREPROCESSOR).is_file() else []
        kind = "AutoModelForImageClassification"
        super().__init__(folder, kind, "tagger's folder", needed, device=device, batch_size=batch_size)
        labels = {int(index): str(tag) for index, tag in self.model.config.id2label.items()}
        if sorted(labels) != list(range(len(labels))) or not all(tag.strip() for tag in labels.values()):
            raise InputError(f"{folder / CONFIG}: id2label must name every output from 0 on, none of them empty.")
        self.tags = tuple(labels[index] for index in range(len(labels)))
        self.general = self.tags
        check_answers(self, folder, natural_size(folder, self.model.config))

    def check(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Raise InputError for a classifier of one class an image."""
        kind, ours = config.get("problem_type"), "multi_label_classification"
        if kind not in (None, ours):
            raise InputError(f"{folder / CONFIG}: its problem_type is '{kind}'; a tagger's is '{ours}'.")

    def logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1 -> [B, T], differentiable in the images; the model's weights get no gradients."""
        logits: Tensor = self.model(self.preprocessing(images)).logits
        return logits

    def probabilities(self, images: Images) -> Probabilities:
        """[B, H, W, 3] uint8 RGB -> [B, T] float32."""
        return self.show(images, lambda pixels: self.logits(pixels).sigmoid(), len(self.tags))
