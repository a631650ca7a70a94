"""Images as arrays: their type, and what is told from their pixels alone.

B images of H x W pixels.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Images = NDArray[np.uint8]  # [B, H, W, 3], RGB

_FLAT = 3  # an image whose brightest and darkest values are this near holds no picture


def check_images(images: NDArray[Any]) -> None:
    """Raise ValueError unless `images` is uint8 [B, H, W, 3]."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images must be uint8 [B, H, W, 3], not {images.dtype} {list(images.shape)}")


def to_bytes(images: Tensor) -> Images:
    """[B, 3, H, W] in 0..1 -> uint8 [B, H, W, 3]; an image with a NaN or an infinity anywhere becomes black."""
    import torch

    whole = torch.isfinite(images).flatten(1).all(dim=1)
    pixels = torch.where(whole[:, None, None, None], images.float(), 0.0).mul(255).round().clamp(0, 255)
    array: Images = pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return array


def is_broken(images: Images) -> NDArray[np.bool_]:
    """[B]: whether each image is of one colour but for rounding. A NaN is drawn black, so it is broken too."""
    flat = images.reshape(len(images), -1, 3)
    spread = flat.max(axis=1).astype(np.int16) - flat.min(axis=1)
    return np.asarray(spread.max(axis=1) < _FLAT)


def image_digests(images: Images) -> NDArray[np.int64]:
    """[B]: the first eight bytes of the SHA-256 of each image's pixels, which are equal for equal images."""
    digests = b"".join(hashlib.sha256(np.ascontiguousarray(image).data).digest()[:8] for image in images)
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)


def grid_side(tags: int) -> int:
    """The side of the smallest square grid with a square for each tag: the fake generator paints it, the fake tagger
    reads it.
    """
    return int(np.ceil(np.sqrt(max(tags, 1))))
