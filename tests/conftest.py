"""Tiny real models, made once a session: the layout and the key names of Stable Diffusion 1.x at widths of 8 to 16.

Nothing here is trained, so scores mean nothing; but every file opens with the library that its format belongs to.
Images are 32 x 32 (latents 4 x 4), text is at most 77 tokens.
"""

from __future__ import annotations

import csv
import json
import shutil
import signal
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

TINY_TAGS = (
    "blonde_hair",
    "blue_hair",
    "red_hair",
    "blue_eyes",
    "green_eyes",
    "smile",
    "open_mouth",
    "glasses",
    "hat",
    "red_dress",
    "star_(symbol)",
)
TINY_RATINGS = ("general", "sensitive")
TINY_CHARACTERS = ("aya_(example)",)

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
    """A transformers multi-label image classifier (a ViT of one layer, 16 x 16 input) over `TINY_TAGS`."""
    from transformers import ViTConfig, ViTForImageClassification

    folder = tmp_path_factory.mktemp("tagger") / "vit"
    config = ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        id2label=dict(enumerate(TINY_TAGS)),
        label2id={tag: index for index, tag in enumerate(TINY_TAGS)},
        problem_type="multi_label_classification",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(30)
        model = ViTForImageClassification(config)
        torch.nn.init.normal_(model.classifier.weight, std=1.0)  # spread the probabilities over 0..1
    model.save_pretrained(folder)
    preprocessing = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 16, "width": 16},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.6],
        "image_std": [0.5, 0.6, 0.4],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


@pytest.fixture(scope="session")
def tiny_wd_tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model.onnx` (NHWC float32, BGR, 0..255, 16 x 16; sigmoid of one linear map) with `selected_tags.csv`."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder = tmp_path_factory.mktemp("wd")
    rows = [(name, 9) for name in TINY_RATINGS] + [(name, 0) for name in TINY_TAGS] + [(n, 4) for n in TINY_CHARACTERS]
    weights = np.random.default_rng(40).normal(0, 0.001, (16 * 16 * 3, len(rows))).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny_wd",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch_size", 16, 16, 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch_size", len(rows)])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    with (folder / "selected_tags.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("tag_id", "name", "category", "count"))
        writer.writerows((number, name, kind, 1000 - number) for number, (name, kind) in enumerate(rows))
    return folder


@pytest.fixture(scope="session")
def tiny_ml_danbooru(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny.onnx` (any size of NCHW RGB 0..1; logits linear in the three mean colours) with `classes.json`."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder = tmp_path_factory.mktemp("mld")
    tags = ["smile", "hat", "glasses", "blue_hair"]
    weights = np.random.default_rng(70).normal(0, 8, (3, len(tags))).astype(np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny_ml_danbooru",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", len(tags)])],
        [numpy_helper.from_array(weights, "weights")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "tiny.onnx")
    (folder / "classes.json").write_text(json.dumps(tags))
    return folder


@pytest.fixture(scope="session")
def tiny_timm_tagger(tiny_wd_tagger: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_wd_tagger` with its weights beside it as timm keeps them; `timm`, below, opens them."""
    import onnx
    from onnx import numpy_helper
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("timm") / "wd"
    shutil.copytree(tiny_wd_tagger, folder)
    weights = numpy_helper.to_array(onnx.load(folder / "model.onnx").graph.initializer[0])
    save_file({"linear.weight": torch.from_numpy(weights.T.copy())}, folder / "model.safetensors")
    normal = {"mean": [0.5] * 3, "std": [0.5] * 3}
    config = {
        "architecture": "tiny_linear",
        "num_classes": weights.shape[1],
        "pretrained_cfg": {"input_size": [3, 16, 16], "interpolation": "bicubic", "crop_pct": 1.0, **normal},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class TinyLinear(torch.nn.Module):
    """What `tiny_wd_tagger` computes, from pixels [B, 3, H, W], BGR in -1..1, to logits."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.pretrained_cfg, self.num_classes = config["pretrained_cfg"], config["num_classes"]
        self.linear = torch.nn.Linear(16 * 16 * 3, self.num_classes, bias=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """NHWC in 0..255, flat, as the ONNX form takes it."""
        return self.linear((pixels.permute(0, 2, 3, 1).flatten(1) + 1) * 127.5)


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """timm, which needs torchvision, played by a module that makes the tiny model of `tiny_timm_tagger` alone."""

    def create_model(name: str) -> TinyLinear:
        config = json.loads(Path(name.removeprefix("local-dir:"), "config.json").read_text())
        if config["architecture"] != "tiny_linear":
            raise RuntimeError(f"Unknown model ({config['architecture']})")
        return TinyLinear(config)

    module = ModuleType("timm")
    module.create_model = create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", module)
    return module
