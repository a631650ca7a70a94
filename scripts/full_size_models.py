"""Checkpoints of the true shapes and original keys of Stable Diffusion 1.5 and XL, with random weights.

Shapes come from diffusers' and transformers' networks, built without memory on the `meta` device. Keys come from the
project's own translation (`merger.checkpoints.names.unet`), except for SDXL's second text encoder, whose keys are
OpenCLIP's. A file is written tensor by tensor. Only the denoiser's values depend on the file's name; all other tensors
are the same in every file.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark.writing import whole_or_nothing
from merger.checkpoints.headers import aligned, bytes_of, pack_header
from merger.checkpoints.names.unet import (
    DENOISER_PREFIX,
    TEXT_ENCODER_PREFIX,
    denoiser_names,
    text_encoder_names,
    vae_names,
)

Shape = tuple[int, ...]
_BLOCK = 1 << 22
_SECOND = "conditioner.embedders.1.model."


@dataclass(frozen=True)
class Family:
    """The configurations of a pipeline's networks. second: of SDXL's second text encoder, None in SD 1.x."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: Mapping[str, Any]
    second: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """`sd1` or `sdxl`, as `merger inspect` says it."""
        return "sd1" if self.second is None else "sdxl"


_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
_TINY_TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
_TINY_VAE = _VAE | {"block_out_channels": (4, 8, 8, 8), "norm_num_groups": 4}
_XL_BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}

FAMILIES = {
    "sd1": Family(
        {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        _VAE | {"sample_size": 512, "scaling_factor": 0.18215},
        _CLIP_L | {"hidden_act": "quick_gelu", "vocab_size": 49408},
    ),
    "sdxl": Family(
        _XL_BLOCKS
        | {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 1280 + 6 * 256,
        },
        _VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        _CLIP_L | {"hidden_act": "quick_gelu", "vocab_size": 49408},
        _CLIP_G | {"hidden_act": "gelu", "vocab_size": 49408, "projection_dim": 1280},
    ),
}
TINY = {
    "sd1": Family(
        {
            "sample_size": 8,
            "block_out_channels": (8, 16, 16, 16),
            "cross_attention_dim": 16,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
        },
        _TINY_VAE,
        _TINY_TEXT | {"vocab_size": 600},
    ),
    "sdxl": Family(
        _XL_BLOCKS
        | {
            "sample_size": 8,
            "block_out_channels": (8, 16, 16),
            "transformer_layers_per_block": (1, 1, 2),
            "attention_head_dim": (1, 2, 2),
            "cross_attention_dim": 40,
            "norm_num_groups": 4,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24 + 6 * 8,
        },
        _TINY_VAE,
        _TINY_TEXT | {"vocab_size": 600},
        _TINY_TEXT | {"hidden_size": 24, "vocab_size": 600, "projection_dim": 24},
    ),
}


def layout_of(family: Family) -> dict[str, tuple[torch.dtype, Shape]]:
    """{key: (dtype, shape)} of an fp16 single file, in the order in which it is written."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    unet = _shapes(UNet2DConditionModel, family.unet)
    vae = {  # the original layout has 1x1 convolutions where diffusers has matrices
        name: (*shape, 1, 1) if ".attentions." in name and len(shape) == 2 else shape
        for name, shape in _shapes(AutoencoderKL, family.vae).items()
    }
    text = _shapes(CLIPTextModel, {"config": _text_config(family.text)})
    first = TEXT_ENCODER_PREFIX if family.second is None else "conditioner.embedders.0.transformer."
    shapes = {key: unet[name] for name, key in denoiser_names(family.unet).items()}
    shapes |= {key: vae[name] for name, key in vae_names(family.vae).items()}
    shapes |= {
        first + key.removeprefix(TEXT_ENCODER_PREFIX): text[name] for name, key in text_encoder_names(text).items()
    }
    if family.second is not None:
        shapes |= _open_clip(family.second)
    layout = {key: (torch.float16, shapes[key]) for key in sorted(shapes)}
    return aligned(layout | {f"{first}text_model.embeddings.position_ids": (torch.int64, (1, 77))})


def write_model(family: Family, file: Path) -> Path:
    """Write one checkpoint; the same name gives the same denoiser."""
    layout = layout_of(family)
    with whole_or_nothing(file) as partial, partial.open("wb") as out:
        out.write(pack_header(layout, {"format": "pt"}))
        for tensor in _values(layout, file.stem):
            out.write(bytes_of(tensor))
    return file


def write_pipeline(family: Family, folder: Path) -> Path:
    """Write the configuration that diffusers reads such a file with; its tokenizer knows letters only."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    parts: dict[str, list[str | None]] = {
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    texts = {"": family.text} | ({"_2": family.second} if family.second is not None else {})
    if family.second is None:
        parts["safety_checker"] = [None, None]
    else:
        parts |= {
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
        }
    kind = "StableDiffusionPipeline" if family.second is None else "StableDiffusionXLPipeline"
    _write_json(folder / "model_index.json", {"_class_name": kind, "_diffusers_version": "0.35.0", **parts})
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    _write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": "DDIMScheduler", **noise})
    for part, network in (
        ("unet", _built(UNet2DConditionModel, family.unet)),
        ("vae", _built(AutoencoderKL, family.vae)),
    ):
        _write_json(folder / part / "config.json", json.loads(network.to_json_string()))
    for number, config in texts.items():
        _write_json(folder / f"text_encoder{number}" / "config.json", _text_config(config).to_dict())
        _write_tokenizer(folder / f"tokenizer{number}", int(config["vocab_size"]))
    return folder


def _text_config(config: Mapping[str, Any]) -> Any:
    from transformers import CLIPTextConfig

    size = config["vocab_size"]
    return CLIPTextConfig(**config, bos_token_id=size - 2, eos_token_id=size - 1)


def _shapes(network: Any, config: Mapping[str, Any]) -> dict[str, Shape]:
    """{name: shape} of a network's tensors."""
    return {name: tuple(tensor.shape) for name, tensor in _built(network, config).state_dict().items()}


def _built(network: Any, config: Mapping[str, Any]) -> Any:
    """The network, without memory for its tensors."""
    with torch.device("meta"):
        return network(**config)


def _open_clip(config: Mapping[str, Any]) -> dict[str, Shape]:
    """{key: shape} of OpenCLIP's text transformer: fused projections, and a last projection the other way round."""
    width, inner, layers = (config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    shapes: dict[str, Shape] = {
        "positional_embedding": (77, width),
        "token_embedding.weight": (config["vocab_size"], width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        "text_projection": (width, config["projection_dim"]),
        "logit_scale": (),
    }
    block: dict[str, Shape] = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (inner, width),
        "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (width, inner),
        "mlp.c_proj.bias": (width,),
    }
    block |= {f"ln_{n}.{kind}": (width,) for n in (1, 2) for kind in ("weight", "bias")}
    shapes |= {f"transformer.resblocks.{i}.{key}": shape for i in range(layers) for key, shape in block.items()}
    return {_SECOND + key: shape for key, shape in shapes.items()}


def _values(layout: Mapping[str, tuple[torch.dtype, Shape]], name: str) -> Iterator[Tensor]:
    """Random weights, one tensor at a time, of sizes that keep activations finite: normal, by the number of inputs.

    They are cut from one block of noise, each tensor's from a place of its own: to draw billions would take long.
    """
    block = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0))
    for key, (dtype, shape) in layout.items():
        count = math.prod(shape)
        if not dtype.is_floating_point:
            yield torch.arange(count, dtype=dtype).reshape(shape)
            continue
        owner = name if key.startswith(DENOISER_PREFIX) else ""
        start = zlib.crc32(f"{owner} {key}".encode()) % _BLOCK
        rows = [block[start : start + count]]
        rows += [block[: count - at] for at in range(_BLOCK - start, count, _BLOCK)]
        spread = 0.02 if len(shape) < 2 or "embedding" in key else math.prod(shape[1:]) ** -0.5
        values = torch.cat(rows).reshape(shape).mul_(spread)
        if len(shape) == 1 and key.endswith("weight"):  # a normalisation's
            values += 1
        yield values.to(dtype)


def _write_tokenizer(folder: Path, size: int) -> None:
    """A byte-pair tokenizer without a single merge; what is left of its vocabulary is never used."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [f"<unused {i}>" for i in range(size - 2 - len(words))]
    words += ["<|startoftext|>", "<|endoftext|>"]
    _write_json(folder / "vocab.json", {word: i for i, word in enumerate(words)})
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    end = dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    said = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "bos_token": "<|startoftext|>", **end}
    _write_json(folder / "tokenizer_config.json", said)


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=1), encoding="utf-8")
