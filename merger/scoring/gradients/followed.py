"""Memory followed from operation to operation: every block that is allocated, until it is freed.

PyTorch hands every operation to a dispatch mode, in the forward and in the backward pass alike. The mode sees what an
operation returns, notes each block that it has not seen before, and a weak reference tells it when the block is freed.
So nothing is assumed about what autograd keeps. What a kernel allocates for itself and frees before it returns is not
seen.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class TooMuch(MemoryError):
    """More memory is taken than is allowed. part: what was computing."""

    def __init__(self, part: str) -> None:
        super().__init__(part)
        self.part = part


class Followed(TorchDispatchMode):
    """Within it, the bytes that operations allocate on one device are counted; what was there before is not.

    part: what is computing now; set it. peaks: {part: the most that was there while it computed}. Raises `TooMuch` as
    soon as more than `most` bytes are there.
    """

    def __init__(self, device: torch.device, most: float = math.inf) -> None:
        super().__init__()
        self.part, self.now = "", 0
        self.peaks: Counter[str] = Counter()
        self._device, self._most = device.type, most
        self._alive: dict[int, weakref.ref[UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and note what it returns."""
        result = func(*args, **(kwargs or {}))
        given: set[int] | None = None
        for each in tree_iter(result):
            if not isinstance(each, Tensor) or each.device.type != self._device:
                continue
            storage = each.untyped_storage()
            key = storage._cdata  # the address of the block's own record, unique as long as it lives
            if key in self._alive or not storage.nbytes():
                continue
            if given is None:
                given = {
                    each.untyped_storage()._cdata for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)
                }
            if key not in given:  # or it is a view of what was there before
                self._born(key, storage)
        return result

    def _born(self, key: int, storage: UntypedStorage) -> None:
        count = storage.nbytes()

        def died(_: object) -> None:
            del self._alive[key]
            self.now -= count

        self._alive[key] = weakref.ref(storage, died)
        self.now += count
        self.peaks[self.part] = max(self.peaks[self.part], self.now)
        if self.now > self._most:
            raise TooMuch(self.part)
