"""Taggers that are `transformers` multi-label image classifiers, kept as safetensors; and how such a model is loaded.

transformers is imported here and in the functions of `pipelines.py` and `encoders.py` only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmark.errors import InputError
from benchmark.preprocessing import Preprocessing, read_preprocessing
from benchmark.taggers import MODEL_FILES, Images, Probabilities, check_images, files_fingerprint

if TYPE_CHECKING:
    from torch import Tensor


class TransformersTagger:
    """A transformers multi-label classifier in a folder. See `Tagger`; `logits` can be differentiated."""

    def __init__(self, folder: Path, *, device: str = "cpu", batch_size: int = 64):
        self.name = folder.resolve().name
        self._files = [folder / file for file in MODEL_FILES["transformers"]]
        self.preprocessing = Preprocessing(None, None, None, "bilinear", None, None)
        if (folder / "preprocessor_config.json").is_file():
            self._files.append(folder / "preprocessor_config.json")
            self.preprocessing = read_preprocessing(folder / "preprocessor_config.json")
        _check_kind(folder / "config.json")
        self.model = load_transformers(folder, "AutoModelForImageClassification").to(device)
        self._device, self._batch_size = device, batch_size
        labels = {int(index): str(tag) for index, tag in self.model.config.id2label.items()}
        self.tags = tuple(labels[index] for index in sorted(labels))
        self.general = self.tags

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model, its configuration and its preprocessing."""
        return files_fingerprint(self._files)

    def logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1 -> [B, T], differentiable in the images; weights hold no gradients."""
        logits: Tensor = self.model(self.preprocessing(images)).logits
        return logits

    def probabilities(self, images: Images) -> Probabilities:
        """[B, H, W, 3] uint8 RGB -> [B, T] float32."""
        import torch

        check_images(images)
        parts = [np.empty((0, len(self.tags)), dtype=np.float32)]
        with torch.inference_mode():
            for start in range(0, len(images), self._batch_size):
                batch = torch.from_numpy(np.ascontiguousarray(images[start : start + self._batch_size])).to(
                    self._device
                )
                pixels = batch.permute(0, 3, 1, 2).to(torch.float32) / 255
                parts.append(torch.sigmoid(self.logits(pixels)).cpu().numpy())
        return np.concatenate(parts)


def load_transformers(folder: Path, kind: str) -> Any:
    """The model of a transformers class in a folder: float32, CPU, eval mode, no gradients.

    Raises InputError; a tensor that is missing is an error, not a random one.
    """
    import torch
    import transformers
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / "model.safetensors", framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{folder / 'model.safetensors'}: is no safetensors file, or was cut short ({error})."
        ) from None
    with _quiet():
        try:
            model, told = getattr(transformers, kind).from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(f"{folder}: transformers cannot load it ({_first_line(error)}).") from None
    if told["missing_keys"]:
        missing = sorted(told["missing_keys"])
        raise InputError(f"{folder / 'model.safetensors'}: lacks '{missing[0]}' ({len(missing)} tensors in all).")
    return model.eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a transformers folder. Raises InputError."""
    from transformers import AutoTokenizer

    with _quiet():
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder}: its tokenizer cannot be loaded ({_first_line(error)}).") from None


def _check_kind(config: Path) -> None:
    """Raise InputError, before any weight is read, for a model that is no multi-label classifier."""
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("problem_type")
    except (OSError, ValueError) as error:
        raise InputError(f"{config}: cannot be read as JSON ({error}).") from None
    if kind not in (None, "multi_label_classification"):
        raise InputError(f"{config}: its problem_type is '{kind}'; a tagger's is 'multi_label_classification'.")


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers' progress bars off for a while, and its notices about loading, which are read instead."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
