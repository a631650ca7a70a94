"""Gradients of parameters, reduced to gradients of blend weights while the backward pass delivers them.

L layers, D donors, P elements of a parameter.

The gradient of weight w[l, d] is the sum, over the parameters p of layer l, of the dot product of dS / dp with (donor d
- base). A hook takes each dot product as soon as a parameter's gradient is complete, and frees the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from merger.blend.live import LiveDenoiser, Read


@dataclass
class SearchedParameter:
    """One parameter of layer number `row`. `read` gives its values in the base [P] and every donor's difference."""

    row: int
    parameter: Tensor
    read: Read


def searched_parameters(live: LiveDenoiser, layers: Sequence[str]) -> Iterator[SearchedParameter]:
    """The parameters of `layers`, with the values that they are blended from."""
    for row, layer in enumerate(layers):
        for parameter, read in live.differences(layer):
            yield SearchedParameter(row, parameter, read)


@contextmanager
def weight_gradients(searched: Sequence[SearchedParameter], layers: int, donors: int) -> Iterator[Tensor]:
    """Within it, backward passes add up the gradients of the blend weights: [L, D] float64, on the parameters' device.

    The parameters require gradients only within it, and keep none.
    """
    device = searched[0].parameter.device if searched else None
    totals = torch.zeros(layers, donors, dtype=torch.float64, device=device)
    hooks = []
    try:
        for each in searched:
            each.parameter.requires_grad_(True)  # before its hook, which torch refuses otherwise
            hooks.append(each.parameter.register_post_accumulate_grad_hook(_reducer(each, totals)))
        yield totals
    finally:
        for hook in hooks:
            hook.remove()
        for each in searched:
            each.parameter.requires_grad_(False)
            each.parameter.grad = None


def _reducer(searched: SearchedParameter, totals: Tensor) -> Callable[[Tensor], None]:
    """A hook that adds the dot products of a parameter's gradient with the differences to `totals` and frees it."""

    def reduce(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            return
        wide = torch.promote_types(gradient.dtype, torch.float32)
        flat, (held, differences) = gradient.reshape(-1).to(wide), searched.read()
        base = held.to(wide)
        buffer = torch.empty_like(base)
        for column, difference in enumerate(differences):
            totals[searched.row, column] += difference.write(buffer, base).mul_(flat).sum(dtype=torch.float64)

    return reduce
