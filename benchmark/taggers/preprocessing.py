"""What `preprocessor_config.json` says of a picture, done in torch, so that it can be differentiated.

One function serves the images that the benchmark draws and the gradients of a search. It is what the model's own
processor does, but for that one rounding resized pictures to whole bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from benchmark.errors import InputError
from benchmark.reading import read_json

if TYPE_CHECKING:
    from torch import Tensor

MOST_SIDE = 2048
"""Pixels of a side that a tagger or another image encoder may ask for; theirs are 224 to 1024."""

_RESAMPLE = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers -> torch's names
_SIZES = (("height", "width"), ("shortest_edge",), ("side",))
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
    """Read a `preprocessor_config.json`. Raises InputError for what is not understood, and for impossible values."""
    options = read_json(path)
    if not isinstance(options, dict):
        raise InputError(f"{path}: is no table of settings.")
    edge = size = crop = None
    resize = options.get("do_resize")
    if _switch(path, options, "do_resize", True) and (options.get("size") is not None or resize):
        edge, size = _edge_or_size(path, options.get("size"))
    if _switch(path, options, "do_center_crop", False):
        crop = _edge_or_size(path, options.get("crop_size"), square=True)[1]
    ratio = options.pop("crop_pct", None)
    if edge is not None and "ConvNext" in str(options.get("image_processor_type")):  # resizes, then crops small sizes
        ratio = 224 / 256 if ratio is None else _number(path, "crop_pct", ratio, least=0.1, most=1.0)
        edge, size, crop = (None, (edge, edge), None) if edge >= 384 else (int(edge / ratio), None, (edge, edge))
    resample = options.pop("resample", 2)
    if not isinstance(resample, int) or isinstance(resample, bool) or resample not in _RESAMPLE:
        raise InputError(f"{path}: resample {_short(resample)} is not supported. Use one of {sorted(_RESAMPLE)}.")
    factor = 1.0
    if _switch(path, options, "do_rescale", True):
        given = options.get("rescale_factor")
        factor = 1 / 255 if given is None else _number(path, "rescale_factor", given, least=1e-6, most=1e6)
    mean = std = None
    if _switch(path, options, "do_normalize", False):
        mean = three_numbers(path, "image_mean", options.get("image_mean"))
        std = three_numbers(path, "image_std", options.get("image_std"), positive=True)
    for used in ("size", "crop_size", "image_mean", "image_std", *_IGNORED):
        options.pop(used, None)
    unknown = [name for name, value in options.items() if value not in (None, False)]
    if unknown:
        raise InputError(f"{path}: the option '{_short(unknown[0])}' is not supported.")
    return Preprocessing(edge, size, crop, _RESAMPLE[resample], mean, std, factor * 255)


def is_side(value: Any) -> TypeGuard[int]:
    """Whether a value is a number of pixels that an image may have on a side."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_SIDE


def three_numbers(path: Path, name: str, value: Any, *, positive: bool = False) -> tuple[float, ...]:
    """A number for each channel; one number counts for all. Raises InputError. positive: each must be above 0."""
    values = list(value) if isinstance(value, list | tuple) else [value] * 3
    if len(values) != 3:
        raise InputError(f"{path}: {name} {_short(value)}: give three numbers, one for each of red, green and blue.")
    return tuple(_number(path, name, each, least=1e-6 if positive else -1e6, most=1e6) for each in values)


def _switch(path: Path, options: dict[str, Any], name: str, default: bool) -> bool:
    """A setting that is on or off, taken out of the options; none given is the default."""
    value = options.pop(name, default)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InputError(f"{path}: {name} {_short(value)}: give true or false.")
    return value


def _number(path: Path, name: str, value: Any, *, least: float, most: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(f"{path}: {name} {_short(value)}: give a number from {least:g} to {most:g}.")
    return float(value)


def _edge_or_size(path: Path, size: Any, *, square: bool = False) -> tuple[int | None, tuple[int, int] | None]:
    """(shorter edge, None) or (None, (height, width)) from the forms that `size` takes."""
    named = size if isinstance(size, dict) else {"side": size}
    wanted = next((names for names in _SIZES if set(names) <= named.keys()), ())
    if not wanted or (wanted == ("shortest_edge",) and len(named) > 1):  # a longest edge is not understood
        raise InputError(f"{path}: the size {_short(size)} is not supported; give height and width, or shortest_edge.")
    sides = [side for side in (named[name] for name in wanted) if is_side(side)]
    if len(sides) < len(wanted):
        raise InputError(f"{path}: the size {_short(size)}: give 1 to {MOST_SIDE} pixels.")
    if wanted == ("shortest_edge",) and not square:
        return sides[0], None
    return None, (sides[0], sides[-1])


def _short(value: Any) -> str:
    """A value in an error's line."""
    text = repr(value) if not isinstance(value, str) else value
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:60]}…"
