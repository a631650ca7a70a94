"""What `preprocessor_config.json` says of a picture, done in torch, so that it can be differentiated.

One function serves the images that the benchmark draws and the gradients of a search. It is what the model's own
processor does, but for that one rounding resized pictures to whole bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_RESAMPLE = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers -> torch's names
_IGNORED = {"image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb", "rescale_factor"}
_IGNORED |= {
    "data_format",
    "input_data_format",
    "return_tensors",
    "_valid_processor_keys",
    "_processor_class",
    "auto_map",
}
_IGNORED |= {"device", "disable_grouping", "default_to_square", "do_reduce_labels"}


@dataclass(frozen=True)
class Preprocessing:
    """0..1 pixels -> a classifier's input. `edge`: the shorter side; `size`: (height, width), whatever the ratio."""

    edge: int | None
    size: tuple[int, int] | None
    crop: tuple[int, int] | None
    resample: str
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    scale: float = 1.0

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1 -> [B, 3, h, w], differentiable."""
        import torch
        from torch.nn.functional import interpolate, pad

        size = self.size
        if self.edge is not None:
            height, width = images.shape[2:]
            shorter = min(height, width)
            size = (int(height * self.edge / shorter), int(width * self.edge / shorter))
        if size is not None and size != tuple(images.shape[2:]):
            smooth = self.resample != "nearest-exact"
            images = interpolate(
                images, size, mode=self.resample, antialias=smooth, align_corners=False if smooth else None
            )
            images = images.clamp(0, 1)  # bicubic overshoots, where bytes could not
        if self.crop is not None:
            over = [max(0, want - have) for want, have in zip(self.crop, images.shape[2:], strict=True)]
            if any(over):  # Hugging Face pads with black where the crop is larger
                images = pad(images, (over[1] // 2, over[1] - over[1] // 2, over[0] // 2, over[0] - over[0] // 2))
            top, left = ((have - want) // 2 for want, have in zip(self.crop, images.shape[2:], strict=True))
            images = images[:, :, top : top + self.crop[0], left : left + self.crop[1]]
        if self.scale != 1.0:
            images = images * self.scale
        if self.mean is not None and self.std is not None:
            mean, std = (torch.tensor(v, dtype=images.dtype, device=images.device) for v in (self.mean, self.std))
            images = (images - mean[:, None, None]) / std[:, None, None]
        return images


def read_preprocessing(path: Path) -> Preprocessing:
    """Read a `preprocessor_config.json`. Raises InputError for an option that is not understood, by name."""
    try:
        options: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}).") from None
    edge = size = crop = None
    if options.pop("do_resize", True) and options.get("size") is not None:
        edge, size = _edge_or_size(path, options["size"])
    if options.pop("do_center_crop", False):
        crop = _edge_or_size(path, options.get("crop_size"), square=True)[1]
    ratio = options.pop("crop_pct", None)
    if edge is not None and "ConvNext" in str(options.get("image_processor_type")):  # resizes, then crops small sizes
        edge, size, crop = (
            (None, (edge, edge), None) if edge >= 384 else (int(edge / (ratio or 224 / 256)), None, (edge, edge))
        )
    resample = options.pop("resample", 2)
    if resample not in _RESAMPLE:
        raise InputError(f"{path}: resample {resample} is not supported. Use one of {sorted(_RESAMPLE)}.")
    factor = float(options.get("rescale_factor") or 1 / 255) if options.pop("do_rescale", True) else 1.0
    mean = std = None
    if options.pop("do_normalize", False):
        mean, std = (tuple(float(v) for v in options[key]) for key in ("image_mean", "image_std"))
    for used in ("size", "crop_size", "image_mean", "image_std", *_IGNORED):
        options.pop(used, None)
    unknown = [name for name, value in options.items() if value not in (None, False)]
    if unknown:
        raise InputError(f"{path}: the option '{unknown[0]}' is not supported.")
    return Preprocessing(edge, size, crop, _RESAMPLE[resample], mean, std, factor * 255)


def _edge_or_size(path: Path, size: Any, *, square: bool = False) -> tuple[int | None, tuple[int, int] | None]:
    """(shorter edge, None) or (None, (height, width)) from the forms that `size` takes."""
    if isinstance(size, int):
        return (None, (size, size))
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        return None, (int(size["height"]), int(size["width"]))
    if isinstance(size, dict) and set(size) == {"shortest_edge"}:
        edge = int(size["shortest_edge"])
        return (None, (edge, edge)) if square else (edge, None)
    raise InputError(f"{path}: the size {size} is not supported; give height and width, or shortest_edge.")
