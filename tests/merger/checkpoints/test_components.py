"""Another VAE, other text encoders, and a configuration that is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmark.pipelines.loading import load_pipeline
from merger.checkpoints.checkpoint import open_checkpoint
from merger.checkpoints.components import check_configuration, check_overrides, use_text_encoders, use_vae
from merger.errors import CheckpointError


def state(part: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in part.state_dict().items()}


@pytest.fixture
def pipeline(tiny_family: dict[str, Path], tiny_pipeline_folder: Path) -> Any:
    return load_pipeline(tiny_family["base"], config=tiny_pipeline_folder)


@pytest.mark.parametrize("form", ["within", "original", "folder", "file"])
def test_a_vae_from_anywhere(
    form: str, pipeline: Any, tiny_family: dict[str, Path], tiny_diffusers_folder: Path, tmp_path: Path
) -> None:
    file = tiny_diffusers_folder / "vae" / "diffusion_pytorch_model.safetensors"
    wanted = load_file(file)
    prefix = "first_stage_model."
    original = {key: tensor for key, tensor in load_file(tiny_family["base"]).items() if key.startswith(prefix)}
    save_file({key.removeprefix(prefix): tensor for key, tensor in original.items()}, tmp_path / "vae.safetensors")
    source = {
        "within": tiny_family["base"],
        "original": tmp_path / "vae.safetensors",
        "folder": tiny_diffusers_folder,
        "file": file,
    }[form]
    with torch.no_grad():
        for tensor in pipeline.vae.state_dict().values():
            tensor.zero_()
    use_vae(pipeline, source)
    for name, tensor in state(pipeline.vae).items():
        expected = wanted[name] if form in ("folder", "file") else wanted[name].half().float()
        assert torch.equal(tensor, expected), name


def test_a_vae_that_does_not_fit_is_named(pipeline: Any, tmp_path: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in pipeline.vae.state_dict().items()}
    save_file(tensors | {"decoder.conv_in.bias": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"'decoder.conv_in.bias' is \[3\], the pipeline's VAE has \[8\]"):
        use_vae(pipeline, tmp_path / "x.safetensors")
    del tensors["decoder.conv_in.bias"]
    save_file(tensors, tmp_path / "y.safetensors")
    with pytest.raises(CheckpointError, match=r"it has no 'decoder.conv_in.bias' \(1 such\)"):
        use_vae(pipeline, tmp_path / "y.safetensors")
    with pytest.raises(CheckpointError, match="no VAE weights here"):
        use_vae(pipeline, tmp_path)


def test_an_override_that_is_not_there_is_named(tmp_path: Path) -> None:
    check_overrides(vae=None, text_encoders_from=tmp_path)
    with pytest.raises(CheckpointError, match=r"^vae: .*x.safetensors: no such file"):
        check_overrides(vae=tmp_path / "x.safetensors", text_encoders_from=None)


def test_text_encoders_of_another_checkpoint(
    pipeline: Any, tiny_family: dict[str, Path], tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    tensors = load_file(tiny_family["base"])
    moved = {key: tensor + 1 if key.startswith("cond_stage_model.") else tensor for key, tensor in tensors.items()}
    save_file(moved, tmp_path / "other.safetensors")
    before = {part: state(getattr(pipeline, part)) for part in ("unet", "text_encoder")}
    use_text_encoders(pipeline, tmp_path / "other.safetensors", config=tiny_pipeline_folder)
    for name, tensor in state(pipeline.text_encoder).items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, (before["text_encoder"][name].half() + 1).float()), name
    assert all(torch.equal(tensor, before["unet"][name]) for name, tensor in state(pipeline.unet).items())


def test_a_configuration_that_is_not_there_says_how_to_fetch_it(
    tiny_family: dict[str, Path],
    tiny_pipeline_folder: Path,
    tiny_diffusers_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("merger.checkpoints.components._cached", lambda repository: False)
    base = open_checkpoint(tiny_family["base"])
    check_configuration(base, tiny_pipeline_folder)
    check_configuration(open_checkpoint(tiny_diffusers_folder), None)
    fetch = r"hf download \S+/\S+ --include '\*.json' .*--local-dir"
    with pytest.raises(CheckpointError, match=f"configuration of its pipeline is not here. .*{fetch} pipeline"):
        check_configuration(base, None)
    with pytest.raises(CheckpointError, match=f"there is no such folder.*{fetch} sd15"):
        check_configuration(base, tmp_path / "sd15")
    with pytest.raises(CheckpointError, match=r"it has no model_index.json"):
        check_configuration(base, tmp_path)
    monkeypatch.setattr("merger.checkpoints.components._cached", lambda repository: True)
    check_configuration(base, None)
