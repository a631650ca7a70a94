"""WD taggers by their PyTorch weights, which timm reads, so that they can be differentiated. B images, T tags.

Beside `selected_tags.csv` the folder holds timm's files of a model: `config.json` (the architecture, its arguments,
the size and normalisation of its input) and `model.safetensors`. The picture is padded with white to a square, resized
(bicubic), normalised, and its channels turned to BGR, as in the example github.com/neggles/wdv3-timm.

timm is an extra, as it brings torchvision, and it is imported here only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.errors import UNFORESEEN, InputError, first_line, memory_said, out_of_memory
from benchmark.images import Images
from benchmark.taggers.networks import CONFIG, WEIGHTS, ImageNetwork, check_config, check_weights, read_config
from benchmark.taggers.preprocessing import Preprocessing, is_side, three_numbers
from benchmark.taggers.tagger import Probabilities, check_answers, check_width
from benchmark.taggers.wd import TAGS_FILE, general_tags, read_selected_tags

if TYPE_CHECKING:
    from torch import Tensor


class TimmTagger(ImageNetwork):
    """A WD tagger in a folder, in torch. See `Tagger`; `logits` can be differentiated.

    `threads` is not used: torch has its own setting.
    """

    def __init__(self, folder: Path, *, device: str = "cpu", threads: int | None = None, batch_size: int = 32):
        rows = read_selected_tags(folder / TAGS_FILE)
        model = _load(folder)
        check_width(folder, model.num_classes, len(rows), f"{TAGS_FILE} {len(rows)} rows")
        self.tags = tuple(row.name for row in rows)
        self.general = general_tags(rows)
        self.preprocessing = _preprocessing(folder, model.pretrained_cfg)
        super().__init__(folder, (TAGS_FILE, CONFIG, WEIGHTS), model, device=device, batch_size=batch_size)
        check_answers(self, folder)

    def logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1 -> [B, T], differentiable in the images; the model's weights get no gradients."""
        logits: Tensor = self.model(self.preprocessing(_squared(images)).flip(1))
        return logits

    def probabilities(self, images: Images) -> Probabilities:
        """[B, H, W, 3] uint8 RGB -> [B, T] float32."""
        return self.show(images, lambda pixels: self.logits(pixels).sigmoid(), len(self.tags))


def _load(folder: Path) -> Any:
    """The model in a folder: float32, CPU, eval mode, no gradients; every tensor is in the file. Raises InputError."""
    try:
        import timm
    except ImportError:
        raise InputError(
            f"{folder}: its PyTorch weights need timm. Install the extra (pip install 'layermerge[timm]'), or take its "
            "ONNX form, which has no gradients (kind: wd)."
        ) from None
    from safetensors.torch import load_file

    check_weights(folder)
    check_config(folder / CONFIG, read_config(folder))
    try:
        with memory_said():
            model = timm.create_model(f"local-dir:{folder}")
    except UNFORESEEN as error:
        raise InputError(f"{folder / CONFIG}: timm cannot make this model ({first_line(error)}).") from None
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except UNFORESEEN as error:
        if out_of_memory(error):
            raise
        raise InputError(f"{folder / WEIGHTS}: does not fit {CONFIG} ({first_line(error)}).") from None
    return model.float().eval().requires_grad_(False)


def _preprocessing(folder: Path, config: Any) -> Preprocessing:
    """What timm's configuration of a pretrained model asks of a square picture. Raises InputError."""
    try:
        size, interpolation, crop = (config[key] for key in ("input_size", "interpolation", "crop_pct"))
        mean, std = config["mean"], config["std"]
    except UNFORESEEN:
        raise InputError(
            f"{folder / CONFIG}: pretrained_cfg lacks input_size, interpolation, crop_pct, mean or std."
        ) from None
    side = size[2] if isinstance(size, list | tuple) and len(size) == 3 else None
    if not is_side(side) or tuple(size) != (3, side, side) or interpolation != "bicubic" or crop != 1.0:
        raise InputError(
            f"{folder / CONFIG}: a WD tagger sees all of a square, resized bicubically, not input_size {size}, "
            f"interpolation {interpolation}, crop_pct {crop}."
        )
    normal = three_numbers(folder / CONFIG, "mean", mean), three_numbers(folder / CONFIG, "std", std, positive=True)
    return Preprocessing(None, (side, side), None, "bicubic", *normal)


def _squared(images: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 3, S, S], S the longer side: white above and below, or left and right."""
    from torch.nn.functional import pad

    height, width = images.shape[2:]
    over = max(height, width)
    top, left = (over - height) // 2, (over - width) // 2
    return pad(images, (left, over - width - left, top, over - height - top), value=1.0)
