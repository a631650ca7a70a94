"""Tensor names: the original (LDM) single-file layout on one side, diffusers' on the other.

The translation is *derived*, not listed: every key the original layout could have goes through diffusers' own
converter as a tensor that holds nothing but its own number, and the name under which the number comes out is its name.
diffusers is imported inside the functions only.

Words: a *name* is diffusers' (`down_blocks.0.resnets.0.conv1.weight`), a *key* is the original file's
(`model.diffusion_model.input_blocks.1.0.in_layers.2.weight`).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping

import torch

from benchmark.adapters.original_names import DENOISER_PREFIX, keys_of, land, unet_converter
from benchmark.errors import out_of_memory
from merger.checkpoints.names.pieces import CONVERTER_ERRORS
from merger.errors import CheckpointError

VAE_PREFIX = "first_stage_model."
TEXT_ENCODER_PREFIX = "cond_stage_model.transformer."

_VAE_RESNET = ("norm1", "conv1", "norm2", "conv2", "nin_shortcut")
_VAE_ATTENTION = ("norm", "q", "k", "v", "proj_out")


def denoiser_names(unet_config: Mapping[str, object]) -> dict[str, str]:
    """Translate every tensor of a U-Net with this `unet/config.json` to its key in an original single file.

    Returns {diffusers name: key with `model.diffusion_model.`} in the order of the network's own state dict.
    Raises CheckpointError if the original layout has no place for a tensor.
    """
    from diffusers import UNet2DConditionModel

    names = _names_of(UNet2DConditionModel, unet_config)
    blocks = unet_config.get("layers_per_block", 2)
    if not isinstance(blocks, int):
        raise CheckpointError(f"layers_per_block is {blocks!r}: the original layout has one number for all levels")
    return _complete(names, keys_of(names, blocks), DENOISER_PREFIX, "U-Net")


def denoiser_names_in(keys: Iterable[str], prefix: str = DENOISER_PREFIX, where: str = "the file") -> dict[str, str]:
    """Translate the U-Net keys that a file really has, without a configuration.

    keys: all keys of the file; those that begin with `prefix` are the denoiser's. where: the file, for messages.
    Returns {diffusers name: key} without the keys that diffusers' converter does not know. The numbers of levels and
    blocks are counted from the keys. Raises CheckpointError if the converter lacks keys that it needs.
    """
    bare = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
    inputs = {key.split(".")[1] for key in bare if key.startswith("input_blocks.")}
    levels = 1 + sum(key.startswith("input_blocks.") and key.endswith(".0.op.weight") for key in bare)
    blocks, odd = divmod(len(inputs), levels)
    if odd or blocks < 2:
        return {}
    try:
        found = land(bare, unet_converter(blocks - 1, _conditioning(set(bare))))
    except CONVERTER_ERRORS as error:
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"{where}: seems to be a U-Net, but diffusers' converter cannot read it "
            f"({type(error).__name__}: {reason}). Is it whole?"
        ) from None
    return {name: prefix + key for name, key in found.items()}


def _conditioning(bare: set[str]) -> dict[str, object]:
    """What a U-Net is conditioned on besides time and text, as its `config.json` has it, from its original keys."""
    config: dict[str, object] = {}
    if "label_emb.weight" in bare:  # the x4 upscaler: one of a thousand noise levels
        config["num_class_embeds"] = 1000
    if "label_emb.0.0.weight" in bare:
        # SDXL takes sizes there and has no attention at full resolution; unCLIP takes an image and has attention.
        unclip = any(key.startswith("input_blocks.1.1.") for key in bare)
        config |= {"class_embed_type": "projection"} if unclip else {"addition_embed_type": "text_time"}
    return config


def vae_names(vae_config: Mapping[str, object]) -> dict[str, str]:
    """Translate every tensor of an AutoencoderKL with this `vae/config.json` to its key (`first_stage_model.`).

    Returns {diffusers name: key}. Raises CheckpointError if the original layout has no place for a tensor.
    """
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    names = _names_of(AutoencoderKL, vae_config)
    levels = len({name.split(".")[2] for name in names if name.startswith("encoder.down_blocks.")})
    counted = dict.fromkeys(("down_block_types", "up_block_types"), range(levels))  # the converter only counts them
    found = land(_vae_candidates(names, levels), lambda marked: convert_ldm_vae_checkpoint(marked, counted))
    return _complete(names, found, VAE_PREFIX, "VAE")


def text_encoder_names(names: Iterable[str]) -> dict[str, str]:
    """Translate CLIPTextModel names to keys, whether or not they carry transformers 4's `text_model.` already."""
    return {name: f"{TEXT_ENCODER_PREFIX}text_model.{name.removeprefix('text_model.')}" for name in names}


def _names_of(network: type, config: Mapping[str, object]) -> list[str]:
    """Names of the tensors of a network, built on the meta device: no memory, no random numbers."""
    return list(_built_names(network, json.dumps(dict(config), sort_keys=True)))


@functools.lru_cache(16)  # files that are opened together share one configuration
def _built_names(network: type, config: str) -> tuple[str, ...]:
    with torch.device("meta"):
        built: torch.nn.Module = network.from_config(json.loads(config))  # type: ignore[attr-defined]
    return tuple(built.state_dict())


def _complete(names: list[str], found: Mapping[str, str], prefix: str, part: str) -> dict[str, str]:
    """Keep the names that the network has. Raises CheckpointError if one has no key: candidates must not be too few."""
    if missing := [name for name in names if name not in found]:
        raise CheckpointError(
            f"the original single-file layout has no key for the {part}'s {missing[0]} ({len(missing)} such)"
        )
    return {name: prefix + found[name] for name in names}


def _vae_candidates(names: list[str], levels: int) -> list[str]:
    """Every key an original VAE of this size might have, and more."""
    resnets = 1 + max(int(name.split(".")[4]) for name in names if "_blocks." in name and ".resnets." in name)
    stems = ["quant_conv", "post_quant_conv"]
    for half, side, sampler in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        stems += [f"{half}.{part}" for part in ("conv_in", "conv_out", "norm_out")]
        stems += [f"{half}.mid.block_{i}.{part}" for i in (1, 2) for part in _VAE_RESNET]
        stems += [f"{half}.mid.attn_1.{part}" for part in _VAE_ATTENTION]
        for level in range(levels):
            stems.append(f"{half}.{side}.{level}.{sampler}.conv")
            stems += [f"{half}.{side}.{level}.block.{i}.{part}" for i in range(resnets) for part in _VAE_RESNET]
    return [f"{stem}.{kind}" for stem in stems for kind in ("weight", "bias")]
