"""Configurations of every family's denoiser: small ones, and the real ones of diffusers' own defaults."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

UNET_BLOCKS: dict[str, dict[str, Any]] = {
    "sd1": {
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "block_out_channels": (8, 16, 16, 16),
        "attention_head_dim": 2,
    },
    "sdxl": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16, 16),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (1, 2, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 40,
    },
}
UNET_BLOCKS["sd2"] = UNET_BLOCKS["sd1"] | {"use_linear_projection": True, "cross_attention_dim": 1024}
_COMMON: dict[str, Any] = {"sample_size": 4, "cross_attention_dim": 16, "norm_num_groups": 4, "layers_per_block": 2}
# family -> what its tiny U-Net differs in
UNETS: dict[str, dict[str, Any]] = {
    "sd1": UNET_BLOCKS["sd1"],
    "sd1-inpainting": UNET_BLOCKS["sd1"] | {"in_channels": 9},
    "sd1-instruct-pix2pix": UNET_BLOCKS["sd1"] | {"in_channels": 8},
    "sd2": UNET_BLOCKS["sd2"],
    "sd2-inpainting": UNET_BLOCKS["sd2"] | {"in_channels": 9},
    "sd2-depth": UNET_BLOCKS["sd2"] | {"in_channels": 5},
    "sd2-upscaler": UNET_BLOCKS["sd2"]
    | {
        "in_channels": 7,
        "num_class_embeds": 1000,
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
        "up_block_types": ("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
        "only_cross_attention": (True, True, True, False),
    },
    "sd2-unclip": UNET_BLOCKS["sd2"] | {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 12},
    "sdxl": UNET_BLOCKS["sdxl"],
    "sdxl-inpainting": UNET_BLOCKS["sdxl"] | {"in_channels": 9},
}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "sd3": {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": 4,
        "num_layers": 4,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 10,
        "pos_embed_max_size": 4,
        "dual_attention_layers": (0,),
        "qk_norm": "rms_norm",
    },
    "flux": {
        "_class_name": "FluxTransformer2DModel",
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "pooled_projection_dim": 10,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 6, 6),
    },
    "lumina2": {
        "_class_name": "Lumina2Transformer2DModel",
        "sample_size": 4,
        "in_channels": 4,
        "hidden_size": 24,
        "num_layers": 3,
        "num_refiner_layers": 2,
        "num_attention_heads": 3,
        "num_kv_heads": 1,
        "cap_feat_dim": 12,
        "axes_dim_rope": (4, 2, 2),
    },
    "sana": {
        "_class_name": "SanaTransformer2DModel",
        "sample_size": 4,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": 12,
    },
    "zimage": {
        "_class_name": "ZImageTransformer2DModel",
        "in_channels": 4,
        "dim": 16,
        "n_layers": 4,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 12,
        "axes_dims": (4, 2, 2),
    },
    "qwenimage": {
        "_class_name": "QwenImageTransformer2DModel",
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "axes_dims_rope": (4, 2, 2),
    },
}


def unet_config(family: str) -> dict[str, Any]:
    return {"_class_name": "UNet2DConditionModel"} | _COMMON | UNETS[family]


@pytest.fixture(scope="session")
def denoiser_config() -> Callable[[str], dict[str, Any]]:
    """The tiny configuration of a family's denoiser, as its `config.json` would have it."""
    return lambda family: unet_config(family) if family in UNETS else dict(TRANSFORMERS[family])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that take `unet`, `transformer` or `any_family` run once for each of them."""
    for name, families in (
        ("unet", [*UNETS]),
        ("transformer", [*TRANSFORMERS]),
        ("any_family", [*UNETS, *TRANSFORMERS]),
    ):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, families)


def read_published(name: str) -> dict[str, tuple[int, ...]]:
    """{key: shape} of a real checkpoint's denoiser, from the lists that sd-mecha ships."""
    found = importlib.util.find_spec("sd_mecha")  # found, not imported: only its data is wanted
    if found is None or found.origin is None:
        pytest.skip("sd-mecha is not installed")
    file = Path(found.origin).parent / "extensions" / "builtin" / "model_configs" / f"{name}.yaml"
    table = yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    listed = table["components"]["diffuser"].items()
    # markers (`v_pred`, `model.model_sampling.sigmas`) are listed among the denoiser's tensors as well
    return {key: tuple(each["shape"]) for key, each in listed if key.startswith("model.diffusion_model.")}


@pytest.fixture(scope="session")
def published_keys() -> Callable[[str], dict[str, tuple[int, ...]]]:
    return read_published


def small_sd3_keys() -> dict[str, tuple[int, ...]]:
    """SD 3's original keys with tiny shapes, of two blocks: the first, and the last, which is of another kind."""
    sizes = {1536: 16, 4608: 48, 9216: 96, 6144: 64, 3072: 32, 4096: 12, 2048: 10, 36864: 16}
    blocks = ("joint_blocks.0.", "joint_blocks.23.")
    return {
        key.replace("joint_blocks.23.", "joint_blocks.1."): tuple(sizes.get(size, size) for size in shape)
        for key, shape in read_published("sd3-comfyui").items()
        if "joint_blocks." not in key or any(block in key for block in blocks)
    }


@pytest.fixture(scope="session")
def sd3_family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`base`, `one` and `two`: SD 3's original keys (with fused `qkv`), two blocks, tiny, fp16."""
    import torch
    from safetensors.torch import save_file

    shapes = small_sd3_keys()
    folder = tmp_path_factory.mktemp("sd3")
    family = {}
    for number, name in enumerate(("base", "one", "two")):
        source = torch.Generator().manual_seed(number)
        tensors = {key: torch.randn(shape, generator=source).half() for key, shape in shapes.items()}
        family[name] = folder / f"{name}.safetensors"
        save_file(tensors, family[name])
    return family
