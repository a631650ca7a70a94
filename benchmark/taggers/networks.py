"""What taggers, classifiers and encoders in torch share: a folder is checked and loaded, and the model is shown images.

B images, E numbers for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import UNFORESEEN, InputError, first_line, out_of_memory
from benchmark.hashing import files_fingerprint
from benchmark.images import Images, check_images
from benchmark.reading import check_numbers, read_json
from benchmark.taggers.preprocessing import MOST_SIDE, Preprocessing, is_side, read_preprocessing

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, CONFIG, PREPROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
_SPARE = 10**7  # numbers that a model may have beyond twice those in its file: buffers, and a part that is left out


class ImageNetwork:
    """A network in torch, and the files that it was read from."""

    def __init__(self, folder: Path, files: Sequence[str], model: Any, *, device: str, batch_size: int):
        self.name = folder.resolve().name
        self._files = [folder / name for name in files]
        self.model = model.to(device)
        self._device, self._batch_size = device, batch_size

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model, its configuration and its preprocessing."""
        return files_fingerprint(self._files)

    def show(self, images: Images, see: Callable[[Tensor], Tensor], width: int) -> NDArray[np.float32]:
        """uint8 [B, H, W, 3] -> what `see` makes of float32 [b, 3, H, W] in 0..1, batch by batch: [B, width].

        Raises InputError for images of a size that the model does not take.
        """
        import torch

        check_images(images)
        parts = [np.empty((0, width), dtype=np.float32)]
        with torch.inference_mode():
            for start in range(0, len(images), self._batch_size):
                batch = torch.from_numpy(np.ascontiguousarray(images[start : start + self._batch_size]))
                pixels = batch.to(self._device).permute(0, 3, 1, 2).to(torch.float32) / 255
                try:
                    parts.append(see(pixels).cpu().numpy())
                except (ValueError, TypeError, LookupError) as error:  # a size that it cannot take
                    size = f"{images.shape[2]} x {images.shape[1]}"
                    raise InputError(f"{self.name}: does not take images of {size} ({first_line(error)}).") from None
        return np.concatenate(parts)


class TransformersNetwork(ImageNetwork):
    """A transformers model in a folder with its preprocessing; without a file of that, pixels pass as they are.

    kind: its class in transformers. what: what errors call such a folder. needed: files it must have. spare: as for
    `load_transformers`. Raises InputError.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        what: str,
        needed: Sequence[str],
        *,
        device: str = "cpu",
        batch_size: int = 32,
        spare: str | None = None,
    ):
        missing = [name for name in needed if not (folder / name).is_file()]
        if missing:
            raise InputError(f"{folder}: is no {what}; it has no {missing[0]}.")
        self.preprocessing = Preprocessing(None, None, None, "bilinear", None, None)
        if PREPROCESSOR in needed:
            self.preprocessing = read_preprocessing(folder / PREPROCESSOR)
        config = read_config(folder)
        check_config(folder / CONFIG, config)
        self.check(folder, config)
        model = load_transformers(folder, kind, spare)
        super().__init__(folder, needed, model, device=device, batch_size=batch_size)

    def check(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Raise InputError, before any weight is read, if its `config.json` describes another kind of model."""


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's `config.json`. Raises InputError if it cannot be read."""
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise InputError(f"{folder / CONFIG}: is no table of settings.")
    return config


def check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raise InputError for numbers and labels in a `config.json` that no tagger has."""
    check_numbers(path, config)
    labels = config.get("id2label")
    if labels is not None and not (
        isinstance(labels, dict) and all(key.isascii() and key.isdecimal() and len(key) < 8 for key in labels)
    ):
        raise InputError(f"{path}: id2label must be a table from the number of an output to its tag.")


def natural_size(folder: Path, config: Any) -> tuple[int, int]:
    """(height, width) of the images that a model of transformers was made for; 224 if it does not say.

    Raises InputError for a size that no image has.
    """
    size = getattr(config, "image_size", None)
    if size is None:
        return (224, 224)
    pair = (size, size) if isinstance(size, int) else size
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(is_side(side) for side in pair):
        raise InputError(f"{folder / CONFIG}: image_size {str(size)[:40]}: give 1 to {MOST_SIDE} pixels.")
    return (int(pair[0]), int(pair[1]))


def check_weights(folder: Path) -> None:
    """Raise InputError unless a folder's `model.safetensors` is as long as its header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS, framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{folder / WEIGHTS}: is no safetensors file, or was cut short ({error}).") from None


def load_transformers(folder: Path, kind: str, spare: str | None = None) -> Any:
    """The model of a transformers class in a folder: float32, CPU, eval mode, no gradients.

    `spare`: a part that the file may lack as a whole; the model's attribute is then None. Raises InputError for what
    cannot be loaded without running code of its own, and for any other missing tensor.
    """
    import torch
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    check_weights(folder)
    with _quiet():
        try:
            _check_size(folder, kind)
            model, told = getattr(transformers, kind).from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,  # None would ask at the terminal
                dtype=torch.float32,
                output_loading_info=True,
            )
        except (*UNFORESEEN, StrictDataclassError) as error:
            if out_of_memory(error):
                raise
            raise InputError(f"{folder}: transformers cannot load it ({first_line(error)}).") from None
    missing = sorted(told["missing_keys"])
    if missing and spare and missing == sorted(key for key in model.state_dict() if key.startswith(f"{spare}.")):
        setattr(model, spare, None)
    elif missing:
        raise InputError(f"{folder / WEIGHTS}: lacks '{missing[0]}' ({len(missing)} tensors in all).")
    return model.eval().requires_grad_(False)


def _check_size(folder: Path, kind: str) -> None:
    """Raise InputError if the model that `config.json` describes is far larger than the file of its weights.

    It is made on torch's meta device, which takes no memory. Otherwise transformers makes every tensor that does not
    fit the file before it says so.
    """
    import torch
    import transformers
    from safetensors import safe_open

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    made = getattr(transformers, kind)
    with torch.device("meta"):
        model = made.from_config(config) if hasattr(made, "from_config") else made(config)
    described = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    with safe_open(folder / WEIGHTS, framework="numpy") as file:
        there = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    if described > 2 * there + _SPARE:
        raise InputError(
            f"{folder}: {CONFIG} describes a model of {described:,} numbers, {WEIGHTS} holds {there:,}; mixed files?"
        )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a transformers folder. Raises InputError."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoTokenizer

    with _quiet():
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (*UNFORESEEN, StrictDataclassError) as error:
            if out_of_memory(error):
                raise
            raise InputError(f"{folder}: its tokenizer cannot be loaded ({first_line(error)}).") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it, transformers shows no progress bars and no notices about loading: the loading info is read instead."""
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
