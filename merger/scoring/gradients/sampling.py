"""Drawing that can be differentiated: the benchmark's own images, with a graph back to the denoiser's parameters.

The pipeline's own call draws, only with gradients on. Its denoiser is lent a `forward` that runs the first part of the
steps without a graph and keeps of every later step its input alone: the step is computed once more when the backward
pass arrives at it. All between the steps (guidance, scheduler) is a few latents and stays in the graph as it is, so any
scheduler will do, those that remember earlier steps and those that add noise of the prompt's seed too.

B images of H x W pixels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from benchmark.pipelines.diffusers_generator import DiffusersGenerator
from benchmark.pipelines.generation import GenerationSettings
from benchmark.pipelines.lending import lent
from benchmark.pipelines.loading import Pipeline
from benchmark.pipelines.quiet import quiet_diffusers
from benchmark.prompts.prompt_set import Prompt
from merger.errors import ConfigError
from merger.scoring.gradients.halves import in_halves

NETWORKS = ("denoiser", "decoder", "tagger")
"""The networks that a gradient passes through."""

_DECODED_AT_ONCE = 1 << 20  # pixels; the decoder's activations are about 1.5 kB a pixel in half precision


@dataclass(frozen=True)
class Differentiation:
    """What of the drawing carries gradients, and what is kept for them. Images depend on none of it.

    fraction: share of the steps, in 0..1. Too few can teach a search to fool the tagger (2 of 8 steps did on one family
    and not on another, 4 on neither). spread: steps at equal distances, up to the last one, in place of the last ones.
    recompute: keep only the steps' inputs and compute each step twice; without it every step's activations are held at
    once, and the second computing is saved. streamed: hand out a parameter's gradient once for every step, as each is
    done, instead of once for all, so that no copy of the denoiser's gradients is ever held; needs `recompute`. chain:
    the share of the gradient that passes from one step into the step before it, through the latents that the denoiser
    is given, in 0..1. 1 is the whole gradient. At 0 every step has a gradient of its own, as in DRTune (Wu et al.
    2024): the latents are constants to the denoiser, and the gradient reaches each step through the scheduler alone.
    checkpointed: those of `NETWORKS` whose blocks keep their inputs alone and are computed again in the backward pass.
    halves: call the denoiser with one half of a guided pair at a time.
    """

    fraction: float = 0.5
    recompute: bool = True
    streamed: bool = False
    chain: float = 1.0
    spread: bool = False
    checkpointed: frozenset[str] = frozenset()
    halves: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"fraction {self.fraction}: the share of steps differentiated is above 0, at most 1")
        if not 0 <= self.chain <= 1:
            raise ConfigError(f"chain {self.chain}: the share of the gradient passed on is at least 0, at most 1")
        if self.streamed and not self.recompute:
            raise ConfigError("streamed: gradients come step by step only where the steps are computed again")

    def differentiated(self, steps: int) -> frozenset[int]:
        """Which of the steps 0 .. `steps` - 1 carry gradients. The last one always does."""
        count = math.ceil(self.fraction * steps - 1e-9)
        return frozenset(steps - 1 - (place * steps // count if self.spread else place) for place in range(count))


class DifferentiableGenerator(DiffusersGenerator):
    """`DiffusersGenerator` whose images can also be had as tensors with a graph. See `draw`."""

    def __init__(
        self, pipeline: Pipeline, settings: GenerationSettings, text_state: Callable[[], object] | None = None
    ) -> None:
        super().__init__(pipeline, settings, text_state)
        self._call = getattr(type(pipeline).__call__, "__wrapped__", None)  # what torch.no_grad() was put around
        if self._call is None:
            raise ConfigError(f"gradients: a {type(pipeline).__name__} cannot be drawn with gradients")

    def draw(self, prompts: Sequence[Prompt], denoiser: nn.Module, how: Differentiation) -> Tensor:
        """The images of `prompts` as one batch, [B, 3, H, W] in 0..1, not yet rounded to bytes.

        `denoiser` is the pipeline's own; gradients go to those of its parameters that ask for them, and of the text
        encoders'. They are the images that `generate` draws. The backward pass must lie within `decoder_type_kept`.
        Raises torch.OutOfMemoryError where the batch is too large, and ConfigError where gradients of the text were to
        be handed out step by step.
        """
        with self._text_gradients(how):
            arguments = self.arguments(prompts)
        with (
            torch.enable_grad(),
            quiet_diffusers(),  # its schedulers speak numpy 1, its SDXL warns of its own casts
            lent(self.pipeline, "scheduler", self.scheduler),
            self.text_kept(),
            _lent_steps(self.scheduler, denoiser, how, len(prompts)),
            _lent_decoder(self.pipeline, decoded_at_once(self.settings)),
        ):
            images: Tensor = self._call(  # type: ignore[misc]
                self.pipeline, **arguments
            )[0]
        return images

    @contextmanager
    def decoder_type_kept(self) -> Iterator[None]:
        """Within it, the VAE keeps the type that it has decoded in; afterwards it has its own again.

        SDXL's pipeline decodes in float32, as its VAE overflows in fp16, and casts the VAE back at once. A backward
        pass needs the weights that the images were decoded with.
        """
        vae = self.pipeline.vae
        own, cast = vae.dtype, vae.to

        def to(*args: Any, **kwargs: Any) -> Any:
            return vae if own in (*args, kwargs.get("dtype")) else cast(*args, **kwargs)

        with lent(vae, "to", to):
            try:
                yield
            finally:
                if vae.dtype != own:
                    cast(dtype=own)

    def _text_gradients(self, how: Differentiation) -> AbstractContextManager[None]:
        """Within it, text is encoded with a graph if a parameter of a text encoder asks for gradients."""
        encoders = [
            part
            for name, part in self.pipeline.components.items()
            if name.startswith("text_encoder") and isinstance(part, nn.Module)
        ]
        if not any(parameter.requires_grad for part in encoders for parameter in part.parameters()):
            return nullcontext()
        if how.streamed:
            raise ConfigError("streamed: gradients go back through the text in one piece only")
        return self.text_with_graph()


def decoded_at_once(settings: GenerationSettings) -> int:
    """How many images are decoded together with a graph; of more, slices of as many are."""
    return max(1, _DECODED_AT_ONCE // (settings.width * settings.height))


@contextmanager
def _lent_steps(scheduler: Any, denoiser: nn.Module, how: Differentiation, images: int) -> Iterator[None]:
    """For one drawing, the denoiser has a graph in some steps, computed again if `how` says so, and none in others."""
    advance, forward = scheduler.step, denoiser.forward
    done = 0

    @functools.wraps(advance)  # pipelines look at its signature: whether it takes the prompts' generators
    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal done
        done += 1
        return advance(*args, **kwargs)

    def differentiated(*args: Any, **kwargs: Any) -> Any:
        if not how.recompute:
            return forward(*args, **kwargs)
        return _computed_again(forward, args, kwargs, streamed=how.streamed)

    @functools.wraps(forward)
    def predict(*args: Any, **kwargs: Any) -> Any:
        if done not in how.differentiated(len(scheduler.timesteps)):
            with torch.no_grad():
                return in_halves(forward, args, kwargs, images) if how.halves else forward(*args, **kwargs)
        args, kwargs = _chained(args, kwargs, how.chain)
        return in_halves(differentiated, args, kwargs, images) if how.halves else differentiated(*args, **kwargs)

    with lent(scheduler, "step", step), lent(denoiser, "forward", predict):
        yield


def _chained(args: tuple[Any, ...], kwargs: dict[str, Any], share: float) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The denoiser's arguments, where only a share of the gradient passes back through the latents.

    The latents are the first argument that is a tensor or a list of tensors (one for each image, as Z-Image wants
    them): every pipeline gives them before the time step and the text.
    """
    if share == 1:
        return args, kwargs
    if args:
        return (_latents_chained(args[0], share), *args[1:]), kwargs
    first = next(name for name, value in kwargs.items() if isinstance(value, Tensor | list))
    return args, {**kwargs, first: _latents_chained(kwargs[first], share)}


def _latents_chained(latents: Tensor | list[Tensor], share: float) -> Tensor | list[Tensor]:
    if isinstance(latents, list):
        return [_scaled_gradient(each, share) for each in latents]
    return _scaled_gradient(latents, share)


def _scaled_gradient(tensor: Tensor, share: float) -> Tensor:
    """The same values; a gradient that passes back through them is multiplied by `share`."""
    if share == 0 or not tensor.requires_grad:
        return tensor.detach()
    passed = tensor.view_as(tensor)
    passed.register_hook(lambda gradient: gradient * share)
    return passed


def _computed_again(
    forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, streamed: bool
) -> Any:
    """`forward(*args, **kwargs)`, of which only the arguments are kept for the backward pass.

    Streamed, that pass runs the step's own backward pass inside it (what torch calls reentrant), which hands out the
    gradients of the parameters before it goes on. It sees the tensors that it is given and returns one by one only, so
    those in lists (Z-Image takes and returns a list of images) are taken out of them and put back.
    """
    if not streamed:
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
    values, structure = tree_flatten((args, kwargs))
    if not any(isinstance(value, Tensor) and value.requires_grad for value in values):
        # No latents of this step come from the step before it, but it must not be taken for constant.
        first = next(place for place, value in enumerate(values) if isinstance(value, Tensor))
        values[first] = values[first].detach().requires_grad_()
    returned = None

    def one_by_one(*given: Any) -> tuple[Any, ...]:
        nonlocal returned
        args, kwargs = tree_unflatten(list(given), structure)
        outputs, returned = tree_flatten(forward(*args, **kwargs))
        return tuple(outputs)

    outputs = checkpoint(one_by_one, *values, use_reentrant=True, preserve_rng_state=False)
    assert returned is not None
    return tree_unflatten(list(outputs), returned)


@contextmanager
def _lent_decoder(pipeline: Pipeline, at_once: int) -> Iterator[None]:
    """For one drawing, a batch too large to decode at once is decoded in slices, each computed again when needed."""
    vae = pipeline.vae
    decode = vae.decode

    def sliced(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("generator", None)  # one per image, and used by no decoder
        if len(latents) <= at_once or not latents.requires_grad:
            return decode(latents, *args, **kwargs)
        parts = [
            checkpoint(decode, part, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)[0]
            for part in latents.split(at_once)
        ]
        return (torch.cat(parts),)

    with lent(vae, "decode", sliced):
        yield
