"""Files of a v-prediction denoiser alone: every loader must see that it predicts v."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merger.checkpoints.checkpoint import Checkpoint, open_checkpoint
from merger.checkpoints.headers import read_header
from merger.export import write
from merger.export.forms import ExportOptions, export_as
from merger.export.layout import FORM_KEY, marked_twice
from merger.export.recipe import Recipe
from merger.export.write import export, verify

MARKERS = ("v_pred", "ztsnr")
PREFIX = "model.diffusion_model."


def comfyui_prefix(state: Mapping[str, object]) -> str:
    """ComfyUI's `model_detection.unet_prefix_from_state_dict`, as of 2025."""
    candidates = {"model.diffusion_model.": 0, "model.model.": 0, "net.": 0}
    for key in state:
        for candidate in candidates:
            if key.startswith(candidate):
                candidates[candidate] += 1
                break
    top = max(candidates, key=lambda each: candidates[each])
    return top if candidates[top] > 5 else "model."


def seen_by_comfyui(state: Mapping[str, object], *, whole: bool) -> set[str]:
    """The markers that `SDXL.model_type` sees: of a whole checkpoint, or of a denoiser alone.

    Of the latter `load_diffusion_model_state_dict` keeps the keys under the prefix alone, if there are any.
    """
    if not whole:
        prefix = comfyui_prefix(state)
        kept = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        state = kept or state
    return {marker for marker in MARKERS if marker in state}


@pytest.fixture(scope="module")
def sources(tiny_family: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    folder = tmp_path_factory.mktemp("v")
    for name in ("base", "warm"):
        marks = {marker: torch.zeros(0) for marker in MARKERS}
        save_file(load_file(tiny_family[name]) | marks, folder / f"{name}.safetensors", metadata={"format": "pt"})
    return [open_checkpoint(folder / f"{name}.safetensors") for name in ("base", "warm")]


def made(sources: list[Checkpoint], output: Path, form: str = "denoiser") -> Path:
    recipe = Recipe.of(sources[0], sources[1:], "stage", {"MID": {sources[1].name: 0.5}})
    return export(recipe, output, base=sources[0], donors=sources[1:], form=form)  # type: ignore[arg-type]


def test_comfyui_sees_the_markers_of_a_denoiser_alone(sources: list[Checkpoint], tmp_path: Path) -> None:
    whole = made(sources, tmp_path / "whole.safetensors", "base")
    assert seen_by_comfyui(load_file(whole), whole=True) == set(MARKERS)
    alone = made(sources, tmp_path / "alone.safetensors")
    kept = load_file(alone)
    assert comfyui_prefix(kept) == PREFIX
    assert seen_by_comfyui(kept, whole=False) == seen_by_comfyui(kept, whole=True) == set(MARKERS)
    plain = {
        key: tensor for key, tensor in kept.items() if not key.startswith(tuple(PREFIX + each for each in MARKERS))
    }
    assert not seen_by_comfyui(plain, whole=False), "else the test tests nothing"


def test_this_program_reads_and_verifies_it(sources: list[Checkpoint], tmp_path: Path) -> None:
    alone = made(sources, tmp_path / "alone.safetensors")
    opened = open_checkpoint(alone)
    assert (opened.prediction, opened.zero_snr) == ("v", True)
    assert list(opened.denoiser) == list(sources[0].denoiser)
    assert verify(alone).ok
    assert verify(alone).tensors_compared == len(load_file(alone))
    again = made([opened, sources[1]], tmp_path / "again.safetensors")
    assert load_file(again).keys() == load_file(alone).keys()
    assert verify(again).ok
    assert not marked_twice(opened)


def test_keys_without_a_prefix_need_no_second_marker(sources: list[Checkpoint], tmp_path: Path) -> None:
    for number, source in enumerate(sources):
        tensors = {key.removeprefix(PREFIX): tensor for key, tensor in load_file(source.path).items()}
        tensors = {key: tensor for key, tensor in tensors.items() if "stage_model" not in key}
        save_file(tensors, tmp_path / f"bare{number}.safetensors")
    bare = [open_checkpoint(tmp_path / f"bare{number}.safetensors") for number in (0, 1)]
    kept = load_file(made(bare, tmp_path / "alone.safetensors"))
    assert not any(key.startswith(PREFIX) for key in kept)
    assert seen_by_comfyui(kept, whole=False) == set(MARKERS)


def test_a_denoiser_of_a_folder_cannot_say_it_to_comfyui(
    tiny_diffusers_folder: Path, tiny_family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It keeps only what it has names for, so this is said when the file is written; its metadata say v to others."""
    folder = shutil.copytree(tiny_diffusers_folder, tmp_path / "v")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    for prediction, said in (("v_prediction", True), ("epsilon", False)):
        scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"prediction_type": prediction}))
        base, donor = open_checkpoint(folder), open_checkpoint(tiny_family["warm"])
        recipe = Recipe.of(base, [donor], "stage", {"MID": {donor.name: 0.5}})
        how = ExportOptions(denoiser_only=True)
        alone = export_as(recipe, tmp_path / f"{prediction}.safetensors", how, base=base, donors=[donor])
        assert ("ComfyUI samples it as noise prediction" in capsys.readouterr().err) == said
        assert open_checkpoint(alone).prediction == ("v" if said else "epsilon")


def test_a_file_of_the_previous_version_is_still_verified(
    sources: list[Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "marked_twice", lambda base: {})  # as that version wrote it
    old = made(sources, tmp_path / "old.safetensors")
    assert read_header(old).metadata[FORM_KEY] == "denoiser"
    assert PREFIX + "v_pred" not in load_file(old)
    monkeypatch.undo()
    assert verify(old).ok


def test_without_markers_a_file_is_as_before(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    plain = [open_checkpoint(tiny_family[name]) for name in ("base", "warm")]
    assert read_header(made(plain, tmp_path / "x.safetensors")).metadata[FORM_KEY] == "denoiser"


def test_diffusers_reads_it(sources: list[Checkpoint], tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    alone = made(sources, tmp_path / "alone.safetensors")
    unet = UNet2DConditionModel.from_single_file(
        str(alone), config=str(tiny_pipeline_folder), subfolder="unet", local_files_only=True
    )
    name = "mid_block.resnets.0.conv1.weight"
    assert torch.equal(unet.state_dict()[name], open_checkpoint(alone).read(name).float())
