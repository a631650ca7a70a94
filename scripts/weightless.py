"""Networks of the true sizes without weights, on torch's `meta` device: shapes are computed there, and no values.

The product's own code runs on them as it does on a GPU. `no_values` answers 0 wherever that code asks for a value, and
stands for the attention kernels that a GPU has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any
from torch.utils.flop_counter import flop_registry

from benchmark.pipelines.generation import GenerationSettings
from benchmark.pipelines.lending import lent
from merger.blend.live import LiveDenoiser
from merger.checkpoints.checkpoint import Checkpoint
from merger.checkpoints.source import TensorInfo
from merger.layers.channels import CHANNEL, widths
from merger.layers.grouping import group
from merger.scoring.gradients.sampling import DifferentiableGenerator
from scripts.full_size_models import Family
from scripts.gpu_checks.full_size import Model
from scripts.gpu_checks.models import DONORS, RandomSource, random_pipeline, random_tagger

META = torch.device("meta")


@contextmanager
def no_values() -> Iterator[None]:
    """Within it, values of `meta` tensors are 0, and attention keeps no matrix.

    Attention without a mask is `torch.ops.aten._scaled_dot_product_efficient_attention`. For the backward pass it keeps
    queries, keys, values, results and one number for each row, as flash attention does, which GPUs take in half
    precision. `meta` itself would take plain attention, which keeps a matrix.
    """
    with lent(torch.nn.functional, "scaled_dot_product_attention", _attention), _NoValues():
        yield


class _NoValues(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.zeros((), dtype=args[0].dtype).item()
        if func in _COPIES and args[0].is_meta and _leaves(kwargs.get("device")):
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func is torch.ops.aten.copy_.default and args[1].is_meta and not args[0].is_meta:
            return args[0].zero_()
        return func(*args, **kwargs)


_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.to.dtype_layout}
"""What copies to another device: the first, the second where torch is in its inference mode."""


def _leaves(device: torch.device | None) -> bool:
    return device is not None and device.type != "meta"


_plain_attention = torch.nn.functional.scaled_dot_product_attention


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` as a GPU computes it, where there is no mask."""
    masked = bool(args) or any(options.get(name) for name in ("dropout_p", "is_causal", "enable_gqa"))
    if masked or options.get("attn_mask") is not None or not query.is_meta:
        return _plain_attention(query, key, value, *args, **options)
    graph = torch.is_grad_enabled() and tree_any(lambda each: each.requires_grad, (query, key, value))
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    result: Tensor = kernel(query, key, value, None, graph, scale=options.get("scale"))[0]
    return result


class WeightlessSource(RandomSource):
    """A base or donor without values; every tensor that is read is a new one, as if it had been copied to a GPU."""

    def read(self, name: str) -> Tensor:
        """One tensor."""
        info = self.blended[name]
        return torch.empty(info.shape, dtype=info.dtype, device=META)


def weightless_model(family: Family, settings: GenerationSettings, folder: Path, dtype: torch.dtype) -> Model:
    """The family's pipeline, live with a base and two donors in half precision, by channel, and a tagger.

    folder: where configurations are written. Call it within `no_values`.
    """
    pipeline = random_pipeline(family, folder, META, dtype)
    tagger = random_tagger(folder / "tagger", torch.device("cpu"), tiny=pipeline.unet.config.sample_size < 64)
    tagger.model.to(META)
    tagger._device = META  # or it would take images back to the CPU
    shapes = {name: tuple(tensor.shape) for name, tensor in pipeline.unet.state_dict().items()}
    blended = {name: TensorInfo(name, Path("none"), shape, torch.float16) for name, shape in shapes.items()}
    base, *donors = (WeightlessSource(name, blended, META) for name in ("base", *DONORS))
    layers = group(list(blended), CHANNEL)
    live = LiveDenoiser(pipeline.unet, cast(Checkpoint, base), donors, layers, hold="file")
    return Model(live, DifferentiableGenerator(pipeline, settings), tagger, widths(layers, shapes))


def modules_of(model: Model) -> list[nn.Module]:
    """The networks of its pipeline, and the tagger's."""
    parts = (*model.generator.pipeline.components.values(), model.tagger.model)
    return [part for part in parts if isinstance(part, nn.Module)]


class Operations(TorchDispatchMode):
    """Within it, floating-point operations are counted as `torch.utils.flop_counter` counts them: `total`."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.total += int(count(*args, **kwargs, out_val=result))
        return result
