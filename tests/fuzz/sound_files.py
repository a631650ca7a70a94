"""Small sound checkpoints of several layouts, of random weights, for the tests that break them."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from merger.checkpoints.checkpoint import open_checkpoint
from tests.merger.conftest import small_sd3_keys, unet_config
from tests.merger.tiny_models import Kind, make


def make_sound_files(folder: Path) -> dict[str, Path]:
    """`base` and `donor` (SD 1), `sdxl`, `sd3` under original keys, `unet` and `transformer` under diffusers names."""
    xl = unet_config("sdxl") | {"projection_class_embeddings_input_dim": 36, "transformer_layers_per_block": (1, 1, 2)}
    ddim = ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1})
    one = make(Kind("sd1", unet_config("sd1"), scheduler=ddim), _new(folder / "sd1"))
    kind = Kind("sdxl", xl, "StableDiffusionXLPipeline", "two clips", scheduler=ddim, markers=("v_pred",))
    two = make(kind, _new(folder / "xl"))
    files = {"base": one.files["base"], "donor": one.files["one"], "sdxl": two.files["base"]}
    source = torch.Generator().manual_seed(0)
    files["sd3"] = folder / "sd3.safetensors"
    tensors = {key: torch.randn(shape, generator=source).half() for key, shape in small_sd3_keys().items()}
    save_file(tensors, files["sd3"])
    for name, original in (("unet", "base"), ("transformer", "sd3")):
        opened = open_checkpoint(files[original])
        files[name] = folder / f"{name}.safetensors"
        save_file({key: opened.read(key).contiguous().clone() for key in opened.denoiser}, files[name])
    assert load_file(files["unet"])
    for left in ("sd1", "xl"):
        shutil.rmtree(folder / left / "pipeline")
    return files


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder
