"""Tiny models of every family, with their true key names: whole pipelines, and original single files made of them.

Widths are 4 to 24 and images 32 x 32. Weights are random, from a seed; a donor is the base with another denoiser.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merger.keys import denoiser_names, text_encoder_names, vae_names
from merger.transformer_keys import transformer_names_in

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.:;()[]|-'\\ "
CHAT = "{% for m in messages %}user {{ m['content'] }} {% endfor %}assistant"


@dataclass(frozen=True)
class Kind:
    """A row of the table of families.

    denoiser: its configuration. pipeline: the diffusers class. text: which text encoders. single: whether it is an
    original single file, with text encoders and VAE inside where `whole`. scheduler: its class and what differs from
    that class's own. draw: settings of the drawing. markers: further keys of the file, each of no elements. keys: of a
    transformer's original file, with their shapes.
    """

    family: str
    denoiser: Mapping[str, Any]
    pipeline: str = "StableDiffusionPipeline"
    text: str = "clip"
    single: bool = True
    whole: bool = True
    scheduler: tuple[str, Mapping[str, Any]] = ("DDIMScheduler", {})
    draw: Mapping[str, Any] = field(default_factory=dict)
    markers: tuple[str, ...] = ()
    prediction: str = "epsilon"
    keys: Callable[[], dict[str, tuple[int, ...]]] | None = None


@dataclass(frozen=True)
class Family:
    """Models on disk: `files["base"]`, `["one"]`, `["two"]`, and the folder that single files are read with."""

    kind: Kind
    files: Mapping[str, Path]
    folder: Path


def make(kind: Kind, folder: Path) -> Family:
    """Write a base and two donors of this kind into `folder`."""
    torch.manual_seed(7)
    pipeline = whole_pipeline(kind)
    denoiser = "unet" if getattr(pipeline, "unet", None) is not None else "transformer"
    made = folder / "pipeline"
    save(pipeline, made)
    if kind.single and kind.whole:
        for weights in [*made.glob("*/*.safetensors")]:
            weights.unlink()  # a configuration folder, as it is fetched for single files
    files = {}
    for number, name in enumerate(("base", "one", "two")):
        if number:
            disturb(getattr(pipeline, denoiser), number)
        if kind.single:
            files[name] = folder / f"{name}.safetensors"
            write_single_file(pipeline, kind, files[name])
        else:
            files[name] = made if name == "base" else folder / name
            if number:
                save(pipeline, files[name])
    return Family(kind, files, made)


def save(pipeline: Any, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.save_pretrained(folder, safe_serialization=True)


def disturb(module: torch.nn.Module, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.parameters():
            spread = tensor.std(correction=0) if tensor.numel() > 1 else torch.tensor(1.0)
            tensor += 0.3 * spread * torch.randn(tensor.shape, generator=source)


# ---- whole pipelines


def whole_pipeline(kind: Kind) -> Any:
    import diffusers

    config = {key: value for key, value in kind.denoiser.items() if key != "_class_name"}
    network = getattr(diffusers, kind.denoiser.get("_class_name", "UNet2DConditionModel"))(**config).eval()
    spread_out(network)
    parts = {
        "transformer" if "Transformer" in type(network).__name__ else "unet": network,
        "vae": autoencoder(kind).eval(),
        "scheduler": getattr(diffusers, kind.scheduler[0])(**kind.scheduler[1]),
        **TEXTS[kind.text](),
    }
    network = getattr(diffusers, kind.pipeline)
    if kind.text == "clip" or kind.text == "openclip":
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return network(**parts)


def spread_out(network: torch.nn.Module) -> None:
    """What begins as zeros or ones in a new transformer would hide most of it from the images."""
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in network.parameters():
            if tensor.numel() > 1 and float(tensor.std(correction=0)) == 0:
                tensor += 0.1 * torch.randn(tensor.shape, generator=source)


def autoencoder(kind: Kind) -> Any:
    from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLQwenImage

    if kind.family == "qwenimage":
        video = AutoencoderKLQwenImage(
            base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
        )
        with torch.no_grad():
            video.post_quant_conv.weight.mul_(20.0)  # else one sees little of the latents
            video.decoder.conv_out.weight.mul_(8.0)
        return video
    if kind.family == "sana":
        return AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            encoder_layers_per_block=(1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1),
            encoder_qkv_multiscales=((), (), (), ()),
            decoder_qkv_multiscales=((), (), (), ()),
        )
    vae = AutoencoderKL(
        sample_size=32,
        latent_channels=16 if kind.family == "sd3" else 4,
        block_out_channels=(4, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=None if "Stable" in kind.pipeline and kind.family != "sd3" else 0.1,
    )
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(3.0)
    return vae


def clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    words = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for letter in LETTERS.replace(" ", ""):
        words[letter] = len(words)
        words[f"{letter}</w>"] = len(words)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CLIPTokenizer(
            vocab=words,
            merges=[],
            model_max_length=77,
            bos_token="<|startoftext|>",
            eos_token="<|endoftext|>",
            unk_token="<|endoftext|>",
            pad_token="<|endoftext|>",
        )


def letters_tokenizer() -> Any:
    """What stands for T5's, Gemma's and Qwen's tokenizers: a token a letter, with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<unk>": 1} | {letter: number + 2 for number, letter in enumerate(LETTERS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    fast.chat_template = CHAT
    return fast


def clip(width: int, layers: int = 2, projection: int | None = None, activation: str = "quick_gelu") -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=2 + 2 * (len(LETTERS) - 1),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
        hidden_act=activation,
        projection_dim=projection or width,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5(width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=len(LETTERS) + 2, d_model=width, d_kv=4, d_ff=2 * width, num_layers=1, num_heads=2)
    ).eval()


def decoder_kind(name: str, **more: Any) -> Any:
    """A tiny language model of transformers' class `name`Model, 12 wide."""
    import transformers

    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(LETTERS) + 2,
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=6,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        **more,
    )
    return getattr(transformers, f"{name}Model")(config).eval()


def qwen_vl() -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "vocab_size": len(LETTERS) + 2,
        "hidden_size": 12,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 1], "rope_theta": 10000.0},
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 12}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval()


TEXTS: dict[str, Any] = {
    "clip": lambda: {"tokenizer": clip_tokenizer(), "text_encoder": clip(16)},
    "openclip": lambda: {"tokenizer": clip_tokenizer(), "text_encoder": clip(16, layers=23, activation="gelu")},
    "two clips": lambda: {
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "text_encoder": clip(4),
        "text_encoder_2": clip(12, projection=12, activation="gelu"),
    },
    "sd3": lambda: {
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "tokenizer_3": letters_tokenizer(),
        "text_encoder": clip(4, projection=4),
        "text_encoder_2": clip(8, projection=6),
        "text_encoder_3": t5(12),
    },
    "flux": lambda: {
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": letters_tokenizer(),
        "text_encoder": clip(10),
        "text_encoder_2": t5(12),
    },
    "gemma": lambda: {"tokenizer": letters_tokenizer(), "text_encoder": decoder_kind("Gemma2")},
    "qwen": lambda: {"tokenizer": letters_tokenizer(), "text_encoder": decoder_kind("Qwen3")},
    "qwen-vl": lambda: {"tokenizer": letters_tokenizer(), "text_encoder": qwen_vl()},
}


# ---- original single files


def write_single_file(pipeline: Any, kind: Kind, file: Path) -> None:
    """The pipeline under its family's original keys, fp16."""
    from safetensors.torch import save_file

    tensors = original_denoiser(pipeline, kind)
    if kind.whole:
        state = pipeline.vae.state_dict()
        for name, key in vae_names(dict(pipeline.vae.config)).items():
            attention = ".attentions." in name and name.endswith("weight") and state[name].ndim == 2
            tensors[key] = state[name][:, :, None, None] if attention else state[name]
        tensors |= original_text(pipeline, kind)
    tensors = {key: tensor.detach().half().contiguous().clone() for key, tensor in tensors.items()}
    save_file(tensors | {key: torch.zeros(0) for key in kind.markers}, file, metadata={"format": "pt"})


def original_denoiser(pipeline: Any, kind: Kind) -> dict[str, Tensor]:
    if kind.keys is not None:
        return original_transformer(pipeline.transformer.state_dict(), kind.keys())
    state = pipeline.unet.state_dict()
    return {key: state[name] for name, key in denoiser_names(dict(pipeline.unet.config)).items()}


def original_transformer(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Rows of the network's tensors, where an original file of these keys has them."""
    _, names = transformer_names_in(shapes, "the keys given")
    tensors = {key: torch.zeros(shape) for key, shape in shapes.items()}
    for name, pieces in names.items():
        rows = state[name].split([piece.stop - piece.start for piece in pieces])
        for piece, part in zip(pieces, rows, strict=True):
            here = tensors[piece.key][piece.start : piece.stop]
            here.copy_(part.reshape(here.shape))
    return tensors


def original_text(pipeline: Any, kind: Kind) -> dict[str, Tensor]:
    state = pipeline.text_encoder.state_dict()
    if kind.text == "clip":
        return {key: state[name] for name, key in text_encoder_names(state).items()}
    if kind.text == "openclip":
        last = {  # the 24th layer, which is in the file and never used
            name.replace(".22.", ".23."): torch.randn_like(tensor) for name, tensor in state.items() if ".22." in name
        }
        return open_clip(state | last, "cond_stage_model.model.")
    prefix = "conditioner.embedders.0.transformer.text_model."
    first = {prefix + name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    return first | open_clip(pipeline.text_encoder_2.state_dict(), "conditioner.embedders.1.model.")


def open_clip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """OpenCLIP's keys for transformers' names: q, k and v in one tensor."""
    from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING

    table = DIFFUSERS_TO_LDM_MAPPING["openclip"]
    state = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}
    projection = state.pop("text_model.text_projection.weight", None)
    width = state["text_model.final_layer_norm.weight"].shape[0]
    found = {"text_projection": torch.eye(width) if projection is None else projection.T}
    fused: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name in table["layers"]:
            found[table["layers"][name]] = tensor
            continue
        key = name
        for theirs, ours in table["transformer"].items():
            key = key.replace(theirs, ours)
        stem, _, kind = key.rpartition(".")
        owner, _, which = stem.rpartition(".")
        if which in ("q_proj", "k_proj", "v_proj"):
            fused.setdefault(f"{owner}.in_proj_{kind}", {})[which] = tensor
        else:
            found[f"transformer.{key}"] = tensor
    for key, parts in fused.items():
        found[f"transformer.{key}"] = torch.cat([parts[which] for which in ("q_proj", "k_proj", "v_proj")])
    return {prefix + key: tensor for key, tensor in found.items()}


def read_index(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model_index.json").read_text())
