"""Diffusers folders whose weights lie under a variant's name only: found, said, and drawn with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark import notices
from benchmark.pipelines import hub
from benchmark.pipelines.loading import load_pipeline
from benchmark.pipelines.variants import variant_in, variants_in, weights_of_variant
from merger.checkpoints.checkpoint import open_checkpoint
from merger.checkpoints.components import use_vae
from merger.checkpoints.text_encoders import with_text_encoders


def renamed(source: Path, target: Path, variants: dict[str, str]) -> Path:
    """A copy of a folder in which these parts have a variant of their weights only."""
    shutil.copytree(source, target)
    for part, variant in variants.items():
        for file in (target / part).glob("*.safetensors"):
            file.rename(file.with_name(file.name.replace(".safetensors", f".{variant}.safetensors")))
    return target


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    parts = ("unet", "vae", "text_encoder")
    return {f"{part}.{name}": value for part in parts for name, value in getattr(pipeline, part).state_dict().items()}


@pytest.mark.parametrize(
    "variants",
    [
        {"unet": "fp16", "vae": "fp16", "text_encoder": "fp16"},
        {"vae": "fp16"},
        {"unet": "non_ema", "text_encoder": "bf16"},
    ],
)
def test_a_folder_of_variants_is_drawn_with_and_blended(
    variants: dict[str, str],
    tiny_diffusers_folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notices, "_said", set())
    folder = renamed(tiny_diffusers_folder, tmp_path / "model", variants)
    assert variants_in(folder) == variants
    wanted = load_pipeline(tiny_diffusers_folder)
    capfd.readouterr()
    found = weights(load_pipeline(folder))
    named = ", ".join(f"{part} '{variants[part]}'" for part in sorted(variants))
    line = f"model: has some weights as a variant only, which is read ({named})\n"
    assert capfd.readouterr().err == line
    assert all(torch.equal(found[name], tensor) for name, tensor in weights(wanted).items())
    assert hub.lacking(folder) == []
    base, plain = (with_text_encoders(open_checkpoint(each)) for each in (folder, tiny_diffusers_folder))
    assert all(torch.equal(base.read(name), plain.read(name)) for name in plain.blended)
    variant = variants.get("unet")
    note = () if variant is None else (f"has its denoiser as the variant '{variant}' only, which is read",)
    assert base.notes == note
    use_vae(wanted, folder)


def test_plain_weights_come_first_and_fp16_before_others(tmp_path: Path) -> None:
    for name in ("bf16", "ema", "fp16"):
        (tmp_path / f"diffusion_pytorch_model.{name}.safetensors").touch()
    assert variant_in(tmp_path) == "fp16"
    assert weights_of_variant(tmp_path, "fp16").name == "diffusion_pytorch_model.fp16.safetensors"
    (tmp_path / "diffusion_pytorch_model.safetensors").touch()
    assert variant_in(tmp_path) is None
    assert variant_in(tmp_path / "nowhere") is None


def test_shards_of_a_variant(tiny_diffusers_folder: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    folder = tmp_path / "model"
    shutil.copytree(tiny_diffusers_folder, folder)
    shutil.rmtree(folder / "unet")
    unet = UNet2DConditionModel.from_pretrained(tiny_diffusers_folder / "unet")
    unet.save_pretrained(folder / "unet", variant="fp16", max_shard_size="200KB")
    assert json.loads((folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json").read_text())
    assert variants_in(folder) == {"unet": "fp16"}
    found = load_pipeline(folder).unet.state_dict()
    base = open_checkpoint(folder)
    assert len(base.files) > 1
    assert all(
        torch.equal(found[name], tensor) and torch.equal(base.read(name), tensor)
        for name, tensor in unet.state_dict().items()
    )
    assert hub.lacking(folder) == []
    base.files[0].unlink()
    assert hub.lacking(folder) == ["unet/*.safetensors"]


def test_a_configuration_folder_may_have_a_variant(
    tiny_family: dict[str, Path], tiny_diffusers_folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = renamed(tiny_diffusers_folder, tmp_path / "model", {"vae": "fp16", "text_encoder": "fp16"})
    tensors = {key: value for key, value in load_file(tiny_family["base"]).items() if key.startswith("model.")}
    save_file(tensors, tmp_path / "unet.safetensors")
    found = weights(load_pipeline(tmp_path / "unet.safetensors", config=folder))
    wanted = weights(load_pipeline(tiny_diffusers_folder))
    assert all(torch.equal(found[name], wanted[name]) for name in found if not name.startswith("unet."))
