"""Text encoders that are on their device only while they encode: a search draws long, and encodes seldom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


class TextVisits:
    """The text encoders of a pipeline, which are kept in the host's memory, pinned where their device is a GPU.

    They must not change from now on. Raises ValueError for a pipeline without any.
    """

    def __init__(self, pipeline: Any) -> None:
        encoders = text_encoders(pipeline)
        tensors = {id(t): t for each in encoders for t in (*each.parameters(), *each.buffers())}
        if not tensors:
            raise ValueError(f"a {type(pipeline).__name__} has no text encoder")
        self.device = next(iter(tensors.values())).device
        gpu = self.device.type == "cuda"
        hosts = [(tensor, tensor.detach().cpu()) for tensor in tensors.values()]
        self._tensors = [(tensor, host.pin_memory() if gpu else host) for tensor, host in hosts]
        self._leave()

    @contextmanager
    def here(self) -> Iterator[None]:
        """Within it they are on their device."""
        for tensor, host in self._tensors:
            tensor.data = host.to(self.device, non_blocking=True)
        try:
            yield
        finally:
            self._leave()

    def end(self) -> None:
        """Let them stay on their device from now on."""
        for tensor, host in self._tensors:
            tensor.data = host.to(self.device)

    def _leave(self) -> None:
        for tensor, host in self._tensors:
            tensor.data = host


def text_encoders(pipeline: Any) -> list[nn.Module]:
    """The networks that encode a pipeline's text."""
    from torch import nn

    named = (part for name, part in sorted(pipeline.components.items()) if name.startswith("text_encoder"))
    return [part for part in named if isinstance(part, nn.Module)]
