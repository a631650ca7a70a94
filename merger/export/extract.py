"""A checkpoint's difference from a base as a LoRA file: the nearest one of a given rank, tensor by tensor.

o, i   outputs and inputs of a matrix or convolution      k   its kernel's sides      r   rank

A LoRA adds `up down` to a weight. Of all products of rank r the truncated singular value decomposition is the nearest
(Eckart and Young, "The approximation of one matrix by another of lower rank", 1936). Keys are kohya's, over diffusers
names (`lora_unet_..._to_q.lora_down.weight`), which diffusers, ComfyUI and Automatic1111 read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmark.writing import whole_or_nothing
from merger.checkpoints.checkpoint import Checkpoint
from merger.errors import CheckpointError
from merger.version import __version__

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Extracted:
    """A tensor of the LoRA. norm: of its difference. error: of what the file says, as a share of it."""

    name: str
    rank: int
    norm: float
    error: float


@dataclass(frozen=True)
class Extraction:
    """layers: what was written. left_out: {tensor: the norm of its difference} of what a LoRA cannot hold."""

    file: Path
    layers: tuple[Extracted, ...]
    left_out: dict[str, float]

    @property
    def error(self) -> float:
        """The norm of all that is missing, as a share of the whole difference's; 0 if there is none."""
        missing = sum((each.norm * each.error) ** 2 for each in self.layers) + sum(n**2 for n in self.left_out.values())
        whole = sum(each.norm**2 for each in self.layers) + sum(n**2 for n in self.left_out.values())
        return float((missing / whole) ** 0.5) if whole else 0.0

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        layers = {each.name: {"rank": each.rank, "norm": each.norm, "error": each.error} for each in self.layers}
        return {"file": str(self.file), "error": self.error, "layers": layers, "left_out": self.left_out}


def extract(
    base: Checkpoint,
    donor: Checkpoint,
    rank: int,
    output: Path,
    dtype: str = "fp16",
    tell: Callable[[str], None] | None = None,
) -> Extraction:
    """Write the denoiser's difference `donor - base` as a LoRA of this rank to `output`, a `.safetensors` file.

    Matrices and convolutions become factors; biases and normalisations are left out, as a LoRA has no place for them.
    tell: is told of every tensor. The decompositions are computed in float64. Raises CheckpointError for an output of
    another ending or that is a source, for transformers, and for a donor that does not differ from the base.
    """
    if output.suffix != ".safetensors":
        raise CheckpointError(f"{output}: the name must end in .safetensors.")
    if output.resolve() in {file.resolve() for source in (base, donor) for file in source.weight_files}:
        raise CheckpointError(f"{output}: is what the difference is taken from. Give another name.")
    if not any(name.startswith("down_blocks.") for name in base.denoiser):
        raise CheckpointError(f"{base.path.name}: has a transformer as its denoiser, and only a U-Net's is extracted.")
    tensors: dict[str, Tensor] = {}
    layers, left_out = [], {}
    for name, difference in _differences(base, donor):
        norm = float(difference.norm())
        if difference.ndim < 2:
            left_out[name] = norm
            continue
        up, down = _factors(difference, rank)
        up, down = (factor.to(DTYPES[dtype]).contiguous() for factor in (up, down))
        kept = (up.flatten(1).double() @ down.flatten(1).double()).view(difference.shape)
        error = float((kept - difference).norm()) / norm
        module = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        tensors |= {f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up}
        tensors[f"{module}.alpha"] = torch.tensor(float(len(down)))
        layers.append(Extracted(name, len(down), norm, error))
        if tell:
            tell(f"{name}: rank {len(down)}, {error:.1%} of its difference is missing")
    if not layers:
        raise CheckpointError(f"{donor.path.name}: its denoiser has the base's matrices: there is nothing to extract.")
    metadata = {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "ss_training_comment": f"{donor.name} - {base.name}, extracted by layermerge {__version__}",
    }
    with whole_or_nothing(output) as partial:
        save_file(tensors, partial, metadata)
    return Extraction(output, tuple(layers), left_out)


def _differences(base: Checkpoint, donor: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """(tensor, difference in float64) of what differs in the denoiser."""
    for name in base.denoiser:
        difference = donor.read(name).double() - base.read(name).double()
        if bool(difference.any()):
            yield name, difference


def _factors(difference: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(up [o, r, ...], down [r, i, ...]) of the nearest product of this rank; both have the singular values' root."""
    left, values, right = torch.linalg.svd(difference.flatten(1), full_matrices=False)
    rank = min(rank, len(values))
    root = values[:rank].sqrt()
    up, down = left[:, :rank] * root, root[:, None] * right[:rank]
    if difference.ndim == 2:
        return up, down
    return up.reshape(*up.shape, *(1 for _ in difference.shape[2:])), down.reshape(rank, *difference.shape[1:])
