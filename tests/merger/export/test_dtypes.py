"""Types of tensors that are not blended: carried as they are, and refused in what is blended."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmark.pipelines.loading import load_pipeline
from merger.checkpoints.adapter import open_donor
from merger.checkpoints.checkpoint import open_checkpoint
from merger.checkpoints.components import use_vae
from merger.checkpoints.headers import CODES, bytes_of, read_header
from merger.checkpoints.names.unet import DENOISER_PREFIX
from merger.checkpoints.text_encoders import with_text_encoders
from merger.checkpoints.weight_files import reader
from merger.errors import CheckpointError
from merger.export.recipe import Recipe
from merger.export.write import export, verify

CONV_IN = DENOISER_PREFIX + "input_blocks.0.0.weight"
VAE_KEY = "first_stage_model.decoder.conv_in.bias"
TEXT_KEY = "cond_stage_model.transformer.text_model.final_layer_norm.bias"
BLENDED = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
OTHERS = {code: dtype for dtype, code in CODES.items() if code not in BLENDED}


def of_type(dtype: torch.dtype, count: int) -> torch.Tensor:
    """So many elements of any type, of bytes 0 and 1 only, as every type has them."""
    return (torch.arange(count * dtype.itemsize) % 2).to(torch.uint8).view(dtype)


@pytest.mark.parametrize("dtype", [None, "fp16", "fp32"])
def test_other_tensors_of_any_type_are_carried_byte_for_byte(
    dtype: str | None, tiny_family: dict[str, Path], tmp_path: Path
) -> None:
    extra = {f"extra.{code}": of_type(kind, 12) for code, kind in OTHERS.items()}
    save_file(load_file(tiny_family["base"]) | extra, tmp_path / "base.safetensors")
    base, warm = open_checkpoint(tmp_path / "base.safetensors"), open_checkpoint(tiny_family["warm"])
    recipe = Recipe.of(base, [warm], "block", {"M00": {"warm": 0.5}})
    output = export(recipe, tmp_path / "x.safetensors", base=base, donors=[warm], dtype=dtype)
    assert verify(output).ok
    before, after, made = read_header(base.path).tensors, read_header(output).tensors, reader(output)
    for key, tensor in extra.items():
        assert (after[key].dtype, after[key].shape) == (before[key].dtype, before[key].shape)
        assert bytes_of(made.get_tensor(key)) == bytes_of(tensor)


@pytest.mark.parametrize("code", sorted(OTHERS))
def test_a_denoiser_of_another_type_is_quantised(code: str, tiny_family: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(tiny_family["base"])
    save_file(tensors | {CONV_IN: of_type(OTHERS[code], 576).reshape(8, 8, 3, 3)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=rf"'{CONV_IN}' is {OTHERS[code]}: quantised models cannot be blended"):
        open_checkpoint(tmp_path / "x.safetensors")


def test_so_are_text_encoders_adapters_and_a_vae(
    tiny_family: dict[str, Path], tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    tensors = load_file(tiny_family["base"])
    for key in (TEXT_KEY, VAE_KEY):
        changed = tensors | {key: of_type(torch.float8_e8m0fnu, tensors[key].numel())}
        save_file(changed, tmp_path / f"{key}.safetensors")
    base = open_checkpoint(tmp_path / f"{TEXT_KEY}.safetensors")
    with pytest.raises(CheckpointError, match="float8_e8m0fnu: quantised text encoders cannot be blended"):
        with_text_encoders(base)
    pipeline = load_pipeline(tiny_family["base"], config=tiny_pipeline_folder)
    with pytest.raises(CheckpointError, match=f"'{VAE_KEY}' is torch.float8_e8m0fnu: a quantised VAE cannot be used"):
        use_vae(pipeline, tmp_path / f"{VAE_KEY}.safetensors")
    stem = "lora_unet_mid_block_resnets_0_conv1"
    lora = {f"{stem}.lora_down.weight": of_type(torch.uint32, 144).reshape(1, 16, 3, 3)}
    save_file(lora | {f"{stem}.lora_up.weight": torch.zeros(16, 1, 1, 1)}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=f"'{stem}.lora_down.weight' is torch.uint32: quantised adapters"):
        open_donor(tmp_path / "lora.safetensors", base)


def test_what_only_a_pickle_can_hold_is_one_line(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    torch.save(load_file(tiny_family["base"]) | {"wave": torch.zeros(2, dtype=torch.complex128)}, tmp_path / "x.ckpt")
    base = open_checkpoint(tmp_path / "x.ckpt", allow_pickle=True)
    with pytest.raises(CheckpointError, match=r"x.ckpt: 'wave' is torch.complex128, which a .safetensors file cannot"):
        export(Recipe.of(base, [], "block", {}), tmp_path / "x.safetensors", base=base, donors=[])
    assert [file.name for file in tmp_path.iterdir()] == ["x.ckpt"]
