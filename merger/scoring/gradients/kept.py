"""The gradient of the score in every parameter, kept: what any donor would gain follows from it, donor by donor.

A gradient step reduces gradients to those of the blend weights while they are delivered, so it reads every donor in
every step. Where only the base is asked about, the gradient in its parameters can be kept instead, and each donor is
read once afterwards, however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmark.prompts.prompt_set import Prompt
from merger.scoring.gradients.checkpointing import checkpointed
from merger.scoring.gradients.gradients import BlendGradients
from merger.search.trials import Score


class KeptGradients(BlendGradients):
    """`BlendGradients` that keeps the gradient in each parameter instead of reducing it. See `of_base`."""

    _kept: list[Tensor]

    def of_base(self, prompts: Sequence[Prompt]) -> tuple[Score, list[Tensor]]:
        """The base's score on `prompts`, and its gradient in each of `parameters`: float32, flat, on the CPU.

        Raises what `measure` raises.
        """
        self._kept = [torch.zeros(parameter.numel()) for parameter in self.parameters]
        score, _, _ = self.measure({}, prompts)
        return score, self._kept

    @contextmanager
    def _weight_gradients(self) -> Iterator[Callable[[], Tensor]]:
        """What a forward and a backward pass lie within.

        What it yields says whether all that was delivered is finite (0, else NaN), for every weight. Only then it is
        kept: where gradients overflow at a scale, the pass is repeated at a smaller one. Without a scale they are added
        at once, as an overflow then ends it all.
        """
        none = torch.zeros(sum(self.widths.values()), len(self.live.donors), dtype=torch.float64)
        delivered = self._kept if self._scale == 1 else [torch.zeros_like(kept) for kept in self._kept]
        hooks = []

        def keeper(into: Tensor) -> Callable[[Tensor], None]:
            def hook(parameter: Tensor) -> None:
                gradient, parameter.grad = parameter.grad, None
                if gradient is not None:
                    into.add_(gradient.reshape(-1).to("cpu", torch.float32))

            return hook

        def all_finite() -> Tensor:
            if not all(bool(torch.isfinite(each).all()) for each in delivered):
                return torch.full_like(none, torch.nan)
            if delivered is not self._kept:
                for kept, each in zip(self._kept, delivered, strict=True):
                    kept.add_(each, alpha=1 / self._scale)
            return none

        try:
            with self.generator.decoder_type_kept(), checkpointed(self._checkpointed()):
                for parameter, into in zip(self.parameters, delivered, strict=True):
                    parameter.requires_grad_(True)
                    hooks.append(parameter.register_post_accumulate_grad_hook(keeper(into)))
                yield all_finite
        finally:
            for hook in hooks:
                hook.remove()
            for parameter in self.parameters:
                parameter.requires_grad_(False)
                parameter.grad = None
