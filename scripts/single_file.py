"""A model of diffusers' own networks written as one original single file, as Stable Diffusion 1.x is published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from merger.checkpoints.names.unet import denoiser_names, text_encoder_names, vae_names
from merger.errors import CheckpointError

_VAE_LINEARS = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")


def save_single_file(
    path: Path,
    *,
    unet: Mapping[str, Tensor],
    vae: Mapping[str, Tensor],
    text_encoder: Mapping[str, Tensor],
    unet_config: Mapping[str, object],
    vae_config: Mapping[str, object],
    dtype: torch.dtype = torch.float16,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write diffusers state dicts as one `.safetensors` file in the original single-file layout.

    Floating tensors are stored as `dtype`. The VAE's attention projections [C, C] become the 1×1 convolutions
    [C, C, 1, 1] of the original layout. metadata: what else the file says of itself. Raises CheckpointError if a state
    dict is not that of its configuration.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    parts = (
        ("U-Net", denoiser_names(unet_config), unet),
        ("VAE", vae_names(vae_config), vae),
        ("text encoder", text_encoder_names(text_encoder), text_encoder),
    )
    for part, translation, state in parts:
        if odd := sorted(set(translation) ^ set(state)):
            raise CheckpointError(
                f"the {part}'s tensors are not those of its configuration: {odd[0]} and {len(odd) - 1} more"
            )
        for name, key in translation.items():
            tensor = state[name]
            if part == "VAE" and ".attentions." in name and name.endswith(_VAE_LINEARS):
                tensor = tensor[:, :, None, None]
            kind = dtype if tensor.is_floating_point() else tensor.dtype
            tensors[key] = tensor.detach().to("cpu", kind).contiguous().clone()
    save_file(tensors, path, metadata={"format": "pt", **(metadata or {})})
    return path
