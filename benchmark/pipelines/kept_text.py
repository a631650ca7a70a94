"""The text encodings of pipelines that encode their own words (T5, Gemma, Qwen, ...), kept from call to call.

A search draws the same prompts in every trial, and such encoders are often larger than the denoiser. What a pipeline's
`encode_prompt` gives differs from family to family (tensors, lists, masks, in any order), so it is kept as it is, by
the arguments of the call.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

_MOST = 2 << 30  # bytes; a fresh prompt in every step of a climb must not fill the memory


class KeptText:
    """`pipeline.encode_prompt`, which is called once for the same words. Encodings are kept in ordinary memory."""

    def __init__(self, pipeline: Any):
        self._encode = pipeline.encode_prompt
        self._device = pipeline._execution_device
        self._kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the pipeline's own gives for these arguments."""
        import torch

        key = repr((args, sorted(kwargs.items())))  # before the call: some pipelines change the list of words
        if any(isinstance(value, torch.Tensor) for value in (*args, *kwargs.values())):
            return self._encode(*args, **kwargs)
        if key not in self._kept:
            with torch.no_grad():
                encoded = self._encode(*args, **kwargs)
            self._kept[key] = (_moved(encoded, "cpu"), _bytes(encoded))
            while len(self._kept) > 1 and sum(size for _, size in self._kept.values()) > _MOST:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return _moved(self._kept[key][0], self._device)


def _moved(value: Any, device: Any) -> Any:
    """The same tensors, in lists of their own, on another device."""
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item, device) for item in value)
    return value.to(device) if hasattr(value, "to") else value


def _bytes(value: Any) -> int:
    if isinstance(value, (list, tuple)):
        return sum(_bytes(item) for item in value)
    return int(getattr(value, "nbytes", 0))
