"""Original tensors of transformers, put together from diffusers' tensors: diffusers' converters take them apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils as converters

from benchmark.adapters.fused_names import exchanged, fused_tensors

FLUX: dict[str, Any] = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 128,  # the converter knows Flux's own width only
    "num_attention_heads": 24,
    "guidance_embeds": True,
}
SD3: dict[str, Any] = {
    "sample_size": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 10,
    "pos_embed_max_size": 4,
    "dual_attention_layers": (0,),
    "qk_norm": "rms_norm",
}
ZIMAGE: dict[str, Any] = {
    "dim": 64,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 4,
    "n_kv_heads": 4,
    "cap_feat_dim": 16,
    "axes_dims": [4, 6, 6],
    "axes_lens": [8, 8, 8],
}


@pytest.mark.parametrize(
    ("network", "config", "convert", "least"),
    [
        ("FluxTransformer2DModel", FLUX, "convert_flux_transformer_checkpoint_to_diffusers", 0.7),
        ("SD3Transformer2DModel", SD3, "convert_sd3_transformer_checkpoint_to_diffusers", 0.7),
        ("ZImageTransformer2DModel", ZIMAGE, "convert_z_image_transformer_checkpoint_to_diffusers", 0.1),
    ],
)
def test_diffusers_converter_takes_them_apart_again(
    network: str, config: dict[str, Any], convert: str, least: float
) -> None:
    import diffusers

    with torch.device("meta"):
        model: Any = getattr(diffusers, network)(**config)
    noise = torch.Generator().manual_seed(1)
    held = {  # a column of each: only rows are cut and joined
        name: torch.randn(tensor.shape[0], *[1] * (tensor.dim() - 1), generator=noise)
        for name, tensor in model.state_dict().items()
        if tensor.dim()
    }
    fused = fused_tensors(held)
    original = {}
    for key, each in fused.items():
        whole = torch.cat([held[name] for name in each.names])
        original[key] = exchanged(whole) if each.swapped else whole
    taken = {name: tensor for name, tensor in original.items() if "linear1_qkv" not in name}
    taken |= {name: tensor for name, tensor in held.items() if not any(name in each.names for each in fused.values())}
    landed = getattr(converters, convert)(Kept(taken))
    wanted = {name for each in fused.values() for name in each.names}
    found = {name for name in wanted if name in landed and landed[name].shape == held[name].shape}
    assert len(found) == len(wanted) >= least * len(held)
    for name in wanted:
        assert torch.equal(landed[name], held[name]), name


class Kept(dict[str, torch.Tensor]):
    """A state dict that answers with zeros for what the tables leave out (norms), which converters ask for."""

    def pop(self, key: str, *default: Any) -> Any:
        return super().pop(key, torch.zeros(1))


def test_other_networks_have_none() -> None:
    assert fused_tensors(["down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"]) == {}
