"""Gradients of parameters, reduced to gradients of blend weights while the backward pass delivers them.

L layers, D donors, P elements of a parameter, C rows of one whose rows (output channels) have weights of their own.
R weights per donor: one for each layer, C for a layer of one tensor with weights by channel.

The gradient of weight w[l, d] is the sum, over the parameters p of layer l, of the dot product of dS / dp with (donor d
- base); that of one channel is the dot product over its row. A hook takes each dot product as soon as a parameter's
gradient is complete, and frees the gradient. On a GPU that is done beside the backward pass (`merger.blend.fetching`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from merger.blend.fetching import Aside
from merger.blend.live import LiveDenoiser, Read


@dataclass
class SearchedParameter:
    """One parameter. `read` gives its values in the base [P] and every donor's difference.

    at, width: its weights are `width` of the R, from number `at` on; several parameters may share them.
    """

    at: int
    parameter: Tensor
    read: Read
    width: int = 1


def searched_parameters(
    live: LiveDenoiser, layers: Sequence[str], widths: Mapping[str, int] = MappingProxyType({})
) -> Iterator[SearchedParameter]:
    """The parameters of `layers`, with the values that they are blended from.

    widths: how many weights per donor a layer has, if not one. Raises ValueError if they are not its tensor's rows.
    """
    at = 0
    for layer in layers:
        width, parameters = widths.get(layer, 1), list(live.differences(layer))
        if width > 1 and (len(parameters) > 1 or parameters[0][0].shape[0] != width):
            raise ValueError(f"{layer}: {width} weights are not one for each row of one tensor")
        for parameter, read in parameters:
            yield SearchedParameter(at, parameter, read, width)
        at += width


@contextmanager
def weight_gradients(
    searched: Sequence[SearchedParameter], weights: int, donors: int
) -> Iterator[Callable[[], Tensor]]:
    """Within it, backward passes add up the gradients of the blend weights, and what it yields gives their sum so far.

    weights: R. The sum is [R, D] float64, on the CPU. The parameters require gradients only within it, and keep none.
    """
    device = searched[0].parameter.device if searched else None
    totals = torch.zeros(weights, donors, dtype=torch.float64, device=device)
    aside = Aside(device)
    hooks = []

    def so_far() -> Tensor:
        aside.finish()
        return totals.cpu()

    try:
        for each in searched:
            each.parameter.requires_grad_(True)  # before its hook, which torch refuses otherwise
            hooks.append(each.parameter.register_post_accumulate_grad_hook(_reducer(each, totals, aside)))
        yield so_far
    finally:
        aside.finish()
        for hook in hooks:
            hook.remove()
        for each in searched:
            each.parameter.requires_grad_(False)
            each.parameter.grad = None


def _reducer(searched: SearchedParameter, totals: Tensor, aside: Aside) -> Callable[[Tensor], None]:
    """A hook that adds the dot products of a parameter's gradient with the differences to `totals` and frees it."""

    def hook(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None:
            aside.do(lambda: _add_products(searched, gradient, totals), gradient)

    return hook


def _add_products(searched: SearchedParameter, gradient: Tensor, totals: Tensor) -> None:
    """Add the dot products of `gradient` with every donor's difference to the parameter's rows of `totals`."""
    wide = torch.promote_types(gradient.dtype, torch.float32)
    flat, (held, differences) = gradient.reshape(-1).to(wide), searched.read()
    base = held.to(wide)
    buffer = torch.empty_like(base)
    own = slice(searched.at, searched.at + searched.width)
    for column, difference in enumerate(differences):
        products = difference.write(buffer, base).mul_(flat)
        if searched.width == 1:
            totals[searched.at, column] += products.sum(dtype=torch.float64)
        else:
            totals[own, column] += products.view(searched.width, -1).sum(dim=1, dtype=torch.float64)
