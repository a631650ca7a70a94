"""Opening checkpoints: what they are, what is refused, and why they do not fit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merger.checkpoints.checkpoint import open_checkpoint, read_unet_config
from merger.checkpoints.compatibility import check_compatible
from merger.checkpoints.names.unet import DENOISER_PREFIX
from merger.errors import CheckpointError

CONV_IN = DENOISER_PREFIX + "input_blocks.0.0.weight"
CROSS = DENOISER_PREFIX + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def changed(source: Path, target: Path, **tensors: torch.Tensor | None) -> Path:
    """A copy of a file with some tensors replaced, or left out where None."""
    kept = load_file(source) | tensors
    save_file({key: value for key, value in kept.items() if value is not None}, target)
    return target


def line(caught: pytest.ExceptionInfo[CheckpointError]) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_original_file_is_seen_under_diffusers_names(
    tiny_family: dict[str, Path], tiny_pipeline_folder: Path
) -> None:
    checkpoint = open_checkpoint(tiny_family["warm"], unet_config=read_unet_config(tiny_pipeline_folder))
    raw = load_file(tiny_family["warm"])
    assert (checkpoint.name, checkpoint.family, checkpoint.layout) == ("warm", "sd1", "original")
    assert len(checkpoint.denoiser) == 684
    assert len(checkpoint.other_keys) == len(raw) - 684
    info = checkpoint.denoiser["conv_in.weight"]
    assert (info.key, info.shape, info.dtype) == (CONV_IN, (8, 8, 3, 3), torch.float16)
    assert torch.equal(checkpoint.read("conv_in.weight"), raw[CONV_IN])
    assert checkpoint.parameters == sum(t.numel() for key, t in raw.items() if key.startswith(DENOISER_PREFIX))


def test_a_diffusers_folder_and_its_weight_file_are_the_same_model(tiny_diffusers_folder: Path) -> None:
    file = tiny_diffusers_folder / "unet" / "diffusion_pytorch_model.safetensors"
    for path, layout in ((tiny_diffusers_folder, "folder"), (file, "diffusers")):
        checkpoint = open_checkpoint(path)
        assert (checkpoint.layout, len(checkpoint.denoiser), checkpoint.other_keys) == (layout, 684, ())
        assert checkpoint.read("conv_in.bias").dtype == torch.float32


def test_the_hash_is_of_the_bytes_and_notices_a_change(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    file = shutil.copy(tiny_family["base"], tmp_path / "x.safetensors")
    first = open_checkpoint(file).sha256
    assert first == hashlib.sha256(file.read_bytes()).hexdigest()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))
    assert open_checkpoint(file).sha256 == hashlib.sha256(content).hexdigest() != first


def test_the_hash_of_a_folder_covers_all_its_weights(tiny_diffusers_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_diffusers_folder, tmp_path / "copy")
    assert open_checkpoint(copy).sha256 == open_checkpoint(tiny_diffusers_folder).sha256
    vae = copy / "vae" / "diffusion_pytorch_model.safetensors"
    vae.write_bytes(vae.read_bytes()[:-1] + b"\x55")
    assert open_checkpoint(copy).sha256 != open_checkpoint(tiny_diffusers_folder).sha256


def test_bad_files_are_one_line(tiny_family: dict[str, Path], tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such file. Did you mean 'base.safetensors'") as caught:
        open_checkpoint(tiny_family["base"].with_name("bas.safetensors"))
    line(caught)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(tiny_family["base"].read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"cut.safetensors: truncated"):
        open_checkpoint(cut)
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"is a LoRA.*no denoiser in it"):
        open_checkpoint(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"belongs under 'pipeline'"):
        open_checkpoint(tiny_pipeline_folder)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"pickle weights only"):
        open_checkpoint(tmp_path)


def test_quantised_models_are_refused(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    file = changed(
        tiny_family["base"], tmp_path / "x.safetensors", **{CONV_IN: torch.zeros(8, 8, 3, 3, dtype=torch.int8)}
    )
    with pytest.raises(CheckpointError, match=r"quantised"):
        open_checkpoint(file)


def test_a_u_net_that_is_not_the_pipelines_is_refused(
    tiny_family: dict[str, Path], tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    config = read_unet_config(tiny_pipeline_folder)
    short = changed(tiny_family["base"], tmp_path / "x.safetensors", **{CROSS: None})
    with pytest.raises(CheckpointError, match=r"lacks 'down_blocks.*attn2.to_k.weight'.*1 tensors missing, 0 too many"):
        open_checkpoint(short, unet_config=config)
    with pytest.raises(CheckpointError, match=r"has 'down_blocks.*besides"):
        open_checkpoint(tiny_family["base"], unet_config=config | {"down_block_types": ["DownBlock2D"] * 4})


def test_the_pipelines_configuration_is_read_or_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no unet/config.json"):
        read_unet_config(tmp_path)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"not JSON"):
        read_unet_config(tmp_path)
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"layers_per_block": 2}))
    assert read_unet_config(tmp_path) == {"layers_per_block": 2}


def test_an_unknown_tensor_names_the_nearest(tiny_family: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"Did you mean 'conv_in.weight'"):
        open_checkpoint(tiny_family["base"]).read("conv_in.wieght")


def test_a_family_fits_and_other_shapes_do_not(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    base, warm, cool = (open_checkpoint(tiny_family[name]) for name in ("base", "warm", "cool"))
    assert check_compatible(base, [warm, cool]) == {}

    inpainting = changed(
        tiny_family["warm"], tmp_path / "hole.safetensors", **{CONV_IN: torch.zeros(8, 9, 3, 3).half()}
    )
    with pytest.raises(CheckpointError) as caught:
        check_compatible(base, [open_checkpoint(inpainting)])
    assert line(caught).startswith(
        "hole.safetensors: 'conv_in.weight' is [8, 9, 3, 3], the base has [8, 8, 3, 3] (an inpainting model?)"
    )

    other_text = changed(tiny_family["warm"], tmp_path / "text.safetensors", **{CROSS: torch.zeros(8, 24).half()})
    with pytest.raises(CheckpointError, match=r"another text encoder"):
        check_compatible(base, [warm, open_checkpoint(other_text)])


def test_missing_tensors_are_refused_and_extra_ones_reported(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    base = open_checkpoint(tiny_family["base"])
    short = open_checkpoint(changed(tiny_family["warm"], tmp_path / "short.safetensors", **{CROSS: None}))
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    with pytest.raises(CheckpointError, match=f"short.safetensors: has no '{name}'"):
        check_compatible(base, [short])
    assert check_compatible(short, [base]) == {"base": (name,)}


def test_two_checkpoints_of_one_name_are_refused(tiny_family: dict[str, Path]) -> None:
    base = open_checkpoint(tiny_family["base"])
    with pytest.raises(CheckpointError, match=r"both called 'warm'"):
        check_compatible(
            base, [open_checkpoint(tiny_family["warm"]), open_checkpoint(tiny_family["cool"], name="warm")]
        )
    with pytest.raises(CheckpointError, match=r"both called 'base'"):
        check_compatible(base, [open_checkpoint(tiny_family["warm"], name="base")])


def test_a_configuration_nested_beyond_reading_is_one_line(tiny_diffusers_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_diffusers_folder, tmp_path / "whole")
    (folder / "unet" / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"unet/config\.json: not JSON"):
        read_unet_config(folder)
