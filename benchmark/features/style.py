"""Style loss: how far an image's textures are from reference images', by Gram matrices of VGG-19's features.

Gatys, Ecker and Bethge 2016 (Image Style Transfer Using Convolutional Neural Networks), with layers conv1_1 to conv5_1
weighted alike. It measures textures and colours: a picture of the wrong thing in the right colours is near. It must not
be the only objective.

B images; C channels of a layer, M its pixels; L = 5 layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmark.errors import InputError
from benchmark.features.extractor import Features
from benchmark.features.references import picture_files, read_picture
from benchmark.hashing import files_fingerprint, joint_fingerprint
from benchmark.images import Images, check_images

if TYPE_CHECKING:
    from torch import Tensor

# Numbers of `features.N` in torchvision's and timm's VGG-19: convolutions by block, a pooling after each block.
_BLOCKS = ((0, 2), (5, 7), (10, 12, 14, 16), (19, 21, 23, 25), (28,))
_USED = (0, 5, 10, 19, 28)  # conv1_1, conv2_1, conv3_1, conv4_1, conv5_1
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pictures VGG was trained on
_LEAST = 16  # pixels: conv5_1 sees a sixteenth


class StyleFeatures:
    """The style loss of each layer to the mean Gram matrices of a folder of reference images. See `FeatureExtractor`.

    `weights`: a safetensors file with `features.N.weight` and `.bias`. References whose shorter side is longer than
    `side` are reduced to it, as textures depend on size. Raises InputError.
    """

    def __init__(self, weights: Path, references: Path, side: int, *, device: str = "cpu", batch_size: int = 8):
        if side < _LEAST:
            raise InputError(f"style loss: images of {side} pixels are too small; VGG-19 needs {_LEAST}.")
        self.name = f"style of {references.resolve().name}"
        self._files, self._side = [weights, *picture_files(references)], side
        self._device, self._batch_size = device, batch_size
        self._layers = {number: [t.to(device) for t in pair] for number, pair in read_vgg(weights).items()}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights, the reference images and the size they are compared at."""
        return joint_fingerprint([files_fingerprint(self._files), str(self._side)])

    def images(self, images: Images) -> Features:
        """uint8 [B, H, W, 3] -> [B, L]: each layer's loss, mean over C x C of (Gram - reference)^2, divided by 4."""
        check_images(images)
        rows = []
        for image in images:
            apart = [
                (gram - wanted).square().mean() / 4
                for gram, wanted in zip(self.grams(image), self._reference, strict=True)
            ]
            rows.append([float(value) for value in apart])
        return np.array(rows, dtype=np.float32).reshape(len(images), len(_USED))

    def grams(self, image: Images) -> list[Tensor]:
        """uint8 [H, W, 3] -> [C, C] for each layer: F F' / M, so that the size of an image does not scale it."""
        import torch

        found = []
        with torch.inference_mode():
            for features in self._features(image):
                flat = features[0].flatten(1)
                found.append(flat @ flat.T / flat.shape[1])
        return found

    @cached_property
    def _reference(self) -> list[Tensor]:
        """The mean Gram matrix of each layer over the reference images."""
        sums: list[Tensor] = []
        for file in self._files[1:]:
            grams = self.grams(_smaller(read_picture(file), self._side))
            sums = [total + gram for total, gram in zip(sums, grams, strict=True)] if sums else grams
        return [total / (len(self._files) - 1) for total in sums]

    def _features(self, image: Images) -> Iterator[Tensor]:
        """[1, C, h, w] after the rectifier of each layer of the loss."""
        import torch
        from torch.nn.functional import conv2d, max_pool2d

        mean, std = (torch.tensor(values, device=self._device)[:, None, None] for values in (_MEAN, _STD))
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(self._device).permute(2, 0, 1) / 255
        features = ((pixels - mean) / std)[None]
        for number, block in enumerate(_BLOCKS):
            if number:
                features = max_pool2d(features, 2)
            for layer in block:
                weight, bias = self._layers[layer]
                features = conv2d(features, weight, bias, padding=1).relu()
                if layer in _USED:
                    yield features


def read_vgg(path: Path) -> dict[int, tuple[Tensor, Tensor]]:
    """N -> (weight [C, C_before, 3, 3], bias [C]), float32, of VGG-19's convolutions up to conv5_1.

    Raises InputError for a file that is no safetensors file, or has another layout.
    """
    from safetensors import SafetensorError, safe_open

    layers = {}
    channels = 3
    try:
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
            for number in (layer for block in _BLOCKS for layer in block):
                names = f"features.{number}.weight", f"features.{number}.bias"
                missing = [name for name in names if name not in keys]
                if missing:
                    raise InputError(f"{path}: is no VGG-19 in torchvision's layout; it has no '{missing[0]}'.")
                weight, bias = (file.get_tensor(name).float() for name in names)
                if weight.shape[1:] != (channels, 3, 3) or bias.shape != weight.shape[:1]:
                    raise InputError(
                        f"{path}: '{names[0]}' is {list(weight.shape)}; a VGG-19 without batch norm has "
                        f"[channels, {channels}, 3, 3] there."
                    )
                layers[number], channels = (weight, bias), weight.shape[0]
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: is no safetensors file, or was cut short ({error}).") from None
    return layers


def _smaller(picture: Images, side: int) -> Images:
    """The picture with a shorter side of at most `side`, at its own ratio."""
    from PIL import Image

    height, width = picture.shape[:2]
    if min(height, width) <= side:
        return picture
    size = (max(side, round(width * side / min(height, width))), max(side, round(height * side / min(height, width))))
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
