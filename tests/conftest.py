"""Tiny real models, made once a session: the layout and the key names of Stable Diffusion 1.x at widths of 8 to 16.

Nothing here is trained, so scores mean nothing; but every file opens with the library that its format belongs to.
Images are 32 x 32 (latents 4 x 4), text is at most 77 tokens.
"""

from __future__ import annotations

import json
import signal
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests import tiny_taggers
from tests.tiny_taggers import TINY_TAGS

UNET_CONFIG: dict[str, Any] = {
    "sample_size": 4,
    "in_channels": 8,
    "out_channels": 8,
    "layers_per_block": 2,
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
VAE_CONFIG: dict[str, Any] = {
    "sample_size": 32,
    "latent_channels": 8,
    "block_out_channels": (4, 8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.5,
}
TEXT_CONFIG: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
}
SCHEDULER_CONFIG: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def _save_tokenizer(folder: Path) -> int:
    """A CLIP byte-pair tokenizer of about 300 entries, trained on the tiny tags. Returns its size."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    words = [tag.replace("_", " ") for tag in TINY_TAGS] * 3 + ["a drawing of a girl, with and without"]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    splits = (pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(splits))
    special = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = list("abcdefghijklmnopqrstuvwxyz0123456789,.:;()[]|-'\\")
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=special,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
    )
    tokenizer.train_from_iterator(words, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    # the trainer numbers what it learnt in another order every time
    entries = sorted({*learned["vocab"], *(f"{letter}</w>" for letter in alphabet)} - {*special})
    vocabulary = {entry: number for number, entry in enumerate([*special, *entries])}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in learned["merges"]]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    described = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    return len(vocabulary)


def _tiny_modules(vocabulary_size: int) -> tuple[Any, Any, Any]:
    """(unet, vae, text encoder), random from a fixed seed, eval mode, float32."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        unet = UNet2DConditionModel(**UNET_CONFIG)
        vae = AutoencoderKL(**VAE_CONFIG)
        text = CLIPTextModel(CLIPTextConfig(vocab_size=vocabulary_size, bos_token_id=0, eos_token_id=1, **TEXT_CONFIG))
    with torch.no_grad():  # far from grey, so that models that differ draw pictures that differ
        vae.decoder.conv_out.weight.mul_(3.0)
    return unet.eval(), vae.eval(), text.eval()


@pytest.fixture(scope="session", autouse=True)
def _signals_as_in_a_terminal() -> None:
    """Tests send signals to programs that they start. `nohup` and shells' background jobs have them ignored."""
    for sign, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(sign) == signal.SIG_IGN:
            signal.signal(sign, handler)


@pytest.fixture(scope="session")
def _tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Any, Any, Any]]:
    """The configuration folder and the base's (unet, vae, text encoder)."""
    from diffusers import DDIMScheduler

    folder = tmp_path_factory.mktemp("tiny") / "pipeline"
    modules = _tiny_modules(_save_tokenizer(folder / "tokenizer"))
    for name, module in zip(("unet", "vae", "text_encoder"), modules, strict=True):
        (folder / name).mkdir()
        described = module.config.to_json_string() if name == "text_encoder" else module.to_json_string()
        (folder / name / "config.json").write_text(described)
    DDIMScheduler(**SCHEDULER_CONFIG).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.35.0",
        "requires_safety_checker": False,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder, modules


@pytest.fixture(scope="session")
def tiny_pipeline_folder(_tiny_pipeline: tuple[Path, Any]) -> Path:
    """A diffusers pipeline folder without weights: configs, tokenizer and scheduler, as `demo/pipeline` is."""
    return _tiny_pipeline[0]


@pytest.fixture(scope="session")
def tiny_family(_tiny_pipeline: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`base`, `warm` and `cool`: original-layout single files, fp16; the donors differ from the base in the UNet."""
    from scripts.single_file import save_single_file

    _, (unet, vae, text) = _tiny_pipeline
    folder = tmp_path_factory.mktemp("family")
    family = {}
    for number, name in enumerate(("base", "warm", "cool")):
        noise = torch.Generator().manual_seed(100 + number)
        weights = {
            key: value + (0.3 * value.std(correction=0) * torch.randn(value.shape, generator=noise) if number else 0)
            for key, value in unet.state_dict().items()
        }
        family[name] = folder / f"{name}.safetensors"
        save_single_file(
            family[name],
            unet=weights,
            vae=vae.state_dict(),
            text_encoder=text.state_dict(),
            unet_config=dict(unet.config),
            vae_config=dict(vae.config),
            dtype=torch.float16,
        )
    return family


@pytest.fixture(scope="session")
def tiny_diffusers_folder(_tiny_pipeline: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base as a complete diffusers folder, float32."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    source, (unet, vae, text) = _tiny_pipeline
    folder = tmp_path_factory.mktemp("folder") / "base"
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=CLIPTokenizer.from_pretrained(source / "tokenizer"),
        unet=unet,
        scheduler=DDIMScheduler.from_pretrained(source / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def tiny_tagger_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers multi-label image classifier over `TINY_TAGS`."""
    return tiny_taggers.write_transformers(tmp_path_factory.mktemp("tagger") / "vit")


@pytest.fixture(scope="session")
def tiny_wd_tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model.onnx` with `selected_tags.csv`."""
    return tiny_taggers.write_wd(tmp_path_factory.mktemp("wd"))


@pytest.fixture(scope="session")
def tiny_ml_danbooru(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny.onnx` with `classes.json`."""
    return tiny_taggers.write_ml_danbooru(tmp_path_factory.mktemp("mld"))


@pytest.fixture(scope="session")
def tiny_timm_tagger(tiny_wd_tagger: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_wd_tagger` with its weights beside it as timm keeps them; `timm`, below, opens them."""
    return tiny_taggers.write_timm(tmp_path_factory.mktemp("timm") / "wd", tiny_wd_tagger)


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """timm, which needs torchvision, played by a module that makes the tiny model of `tiny_timm_tagger` alone."""
    module = tiny_taggers.timm_module()
    monkeypatch.setitem(sys.modules, "timm", module)
    return module
