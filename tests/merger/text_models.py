"""Tiny whole models that differ in their text encoders too: SD 1, SD 2 and SDXL under the true keys, with pipelines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from merger.checkpoints.names.unet import denoiser_names, vae_names
from tests.conftest import TEXT_CONFIG, VAE_CONFIG

UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 4,
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
    "layers_per_block": 2,
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "attention_head_dim": 2,
}
XL: dict[str, Any] = UNET | {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (1, 2, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 40,
}
VAE: dict[str, Any] = VAE_CONFIG | {"latent_channels": 4}
TEXT: dict[str, Any] = TEXT_CONFIG | {"bos_token_id": 0, "eos_token_id": 1}
# family -> its pipeline, its U-Net, {component: (network, configuration, prefix of its keys, OpenCLIP's keys or not)}
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, tuple[str, dict[str, Any], str, bool]]]] = {
    "sd1": (
        "StableDiffusionPipeline",
        UNET,
        {"text_encoder": ("CLIPTextModel", TEXT, "cond_stage_model.transformer.", False)},
    ),
    "sd2": (
        "StableDiffusionPipeline",
        UNET | {"use_linear_projection": True},
        {"text_encoder": ("CLIPTextModel", TEXT, "cond_stage_model.model.", True)},
    ),
    "sdxl": (
        "StableDiffusionXLPipeline",
        XL,
        {
            "text_encoder": (
                "CLIPTextModel",
                TEXT | {"hidden_size": 4},
                "conditioner.embedders.0.transformer.",
                False,
            ),
            "text_encoder_2": (
                "CLIPTextModelWithProjection",
                TEXT | {"hidden_size": 12, "projection_dim": 16},
                "conditioner.embedders.1.model.",
                True,
            ),
        },
    ),
}
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


@dataclass
class Family:
    """A configuration folder and single files `base`, `warm` and `cool`, which differ in everything but the VAE."""

    name: str
    pipeline: Path
    files: dict[str, Path]
    components: tuple[str, ...]


def make_family(name: str, folder: Path, tokenizer: Path) -> Family:
    """Random models from fixed seeds, fp16. tokenizer: a folder with one of CLIP's kind."""
    import diffusers
    import transformers

    pipeline, unet_config, encoders = FAMILIES[name]
    words = len(json.loads((tokenizer / "vocab.json").read_text()))
    home = folder / "pipeline"
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.35.0"}
    index |= {"feature_extractor": [None, None], "image_encoder": [None, None], "safety_checker": [None, None]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        vae = diffusers.AutoencoderKL(**VAE)
        with torch.no_grad():
            vae.decoder.conv_out.weight.mul_(3.0)
        unet = diffusers.UNet2DConditionModel.from_config(unet_config)
        texts = {}
        for component, (network, config, _, _) in encoders.items():
            settings = transformers.CLIPTextConfig(vocab_size=words, **config)
            texts[component] = getattr(transformers, network)(settings)
            index[component] = ["transformers", network]
            tokens = component.replace("text_encoder", "tokenizer")
            index[tokens] = ["transformers", "CLIPTokenizer"]
            shutil.copytree(tokenizer, home / tokens)
            texts[component].config.architectures = [network]
    for component, module in {"unet": unet, "vae": vae, **texts}.items():
        (home / component).mkdir(parents=True)
        said = module.config.to_json_string() if component in texts else module.to_json_string()
        (home / component / "config.json").write_text(said)
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    index |= {"scheduler": ["diffusers", "DDIMScheduler"]}
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    scheduler.save_pretrained(home / "scheduler")
    (home / "model_index.json").write_text(json.dumps(index))
    files = {}
    for number, called in enumerate(("base", "warm", "cool")):
        draw = torch.Generator().manual_seed(200 + number)
        tensors: dict[str, Tensor] = {}
        names = denoiser_names(unet_config)
        tensors |= {names[key]: value for key, value in _moved(unet.state_dict(), draw, 0.3 * (number > 0)).items()}
        for component, (_, _, prefix, open_clip) in encoders.items():
            state = _moved(texts[component].state_dict(), draw, 0.5 * (number > 0))
            state = {key.removeprefix("text_model."): value for key, value in state.items()}
            keyed = as_open_clip(state) if open_clip else {f"text_model.{key}": value for key, value in state.items()}
            tensors |= {prefix + key: value for key, value in keyed.items()}
        places = vae_names(dict(vae.config))
        for key, value in vae.state_dict().items():
            linear = ".attentions." in key and value.dim() == 2
            tensors[places[key]] = value[:, :, None, None] if linear else value
        tensors = {key: value.detach().half().contiguous().clone() for key, value in tensors.items()}
        if name == "sd1":
            tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
        files[called] = folder / f"{called}.safetensors"
        save_file(tensors, files[called], metadata={"format": "pt"})
    return Family(name, home, files, tuple(encoders))


def as_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a CLIP text encoder (names without `text_model.`) as OpenCLIP keeps them."""
    width = state["final_layer_norm.weight"].shape[0]
    made = {key: state[name] for name, key in _OPEN_CLIP.items()}
    projection = state.get("text_projection.weight", torch.eye(width))
    made |= {"text_projection": projection.T, "logit_scale": torch.tensor(4.6)}
    layers = {name.split(".")[2] for name in state if name.startswith("encoder.layers.")}
    for number in layers:
        here, there = f"encoder.layers.{number}.", f"transformer.resblocks.{number}."
        for kind in ("weight", "bias"):
            parts = [state[f"{here}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            made[f"{there}attn.in_proj_{kind}"] = torch.cat(parts)
            made |= {f"{there}{key}.{kind}": state[f"{here}{name}.{kind}"] for name, key in _OPEN_CLIP_LAYER.items()}
    return made


def _moved(state: Mapping[str, Tensor], draw: torch.Generator, by: float) -> dict[str, Tensor]:
    """The tensors with noise of `by` times their own spread."""
    return {
        key: value + by * value.std(correction=0).clamp_min(0.02) * torch.randn(value.shape, generator=draw)
        for key, value in state.items()
    }
