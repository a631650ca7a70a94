"""Activation checkpointing inside the networks of a gradient step (Chen et al. 2016, "Training Deep Nets with Sublinear
Memory Cost"): their blocks keep their inputs alone and compute everything else again in the backward pass.

The networks' own switches are used: diffusers' and transformers' `gradient_checkpointing`, timm's
`set_grad_checkpointing`. They are on for a gradient step only. Forward and backward pass must both lie within
`checkpointed`, and the parameters must not change in between: a live blend is applied before, and stays until the step
has its gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from benchmark.pipelines.lending import lent

_PARTS = frozenset({"ResnetBlock2D", "Upsample2D"})
"""Parts of a decoder's blocks that are computed again one by one, within the block: at the highest resolution a block
is most of the decoder (of SDXL's at 1024 x 1024 in fp16: 6.6 GB with its blocks alone, 3.9 GB with their parts)."""

_FLAG, _FUNCTION = "gradient_checkpointing", "_gradient_checkpointing_func"


def can_checkpoint(module: object) -> bool:
    """Whether a network has blocks that can compute their activations again."""
    if not isinstance(module, nn.Module):
        return False
    if hasattr(module, "set_grad_checkpointing"):  # timm
        return True
    offered = getattr(module, "_supports_gradient_checkpointing", False)  # diffusers
    offered = offered or getattr(module, "supports_gradient_checkpointing", False)  # transformers
    return bool(offered) and any(hasattr(part, _FLAG) for part in module.modules())


@contextmanager
def checkpointed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it, the blocks of these networks compute their activations again. Afterwards all is as before.

    Values and gradients stay the same: dropout stays off, nothing is random, so no state of random numbers is kept.
    Networks that cannot do it are left as they are.
    """
    with ExitStack() as stack:
        for module in modules:
            if can_checkpoint(module):
                stack.enter_context(_timm(module) if hasattr(module, "set_grad_checkpointing") else _flagged(module))
        yield


@contextmanager
def _timm(module: Any) -> Iterator[None]:
    """timm's models have one switch, which cannot be read."""
    module.set_grad_checkpointing(True)
    try:
        yield
    finally:
        module.set_grad_checkpointing(False)


@contextmanager
def _flagged(module: nn.Module) -> Iterator[None]:
    """diffusers' and transformers' blocks have a flag and a function each.

    transformers' blocks look at the flag in training mode only. The mode is set on the block itself and not on the
    modules inside it, so dropout and normalisation stay as they are in inference.
    """
    with ExitStack() as stack:
        decoder = getattr(module, "decoder", None)
        for part in decoder.modules() if isinstance(decoder, nn.Module) else ():
            if type(part).__name__ in _PARTS:
                stack.enter_context(lent(part, "forward", functools.partial(_again, part.forward)))
        for part in module.modules():
            if hasattr(part, _FLAG):
                stack.enter_context(lent(part, _FLAG, True))
                stack.enter_context(lent(part, _FUNCTION, _again))
                stack.enter_context(lent(part, "training", _is_block(part) or part.training))
        yield


def _is_block(part: nn.Module) -> bool:
    """Whether a module is one of transformers' blocks."""
    return any(kind.__name__ == "GradientCheckpointingLayer" for kind in type(part).__mro__)


def _again(block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`block(*args)`, of which the arguments alone are kept. Checkpoints may lie within checkpoints."""
    return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
