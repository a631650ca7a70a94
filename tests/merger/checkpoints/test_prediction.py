"""Donors that predict something else than the base, or were trained for another noise schedule: said, never silent."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmark.errors import InputError
from benchmark.pipelines.loading import load_pipeline
from merger.app.cli import main
from merger.checkpoints.checkpoint import open_checkpoint
from merger.checkpoints.compatibility import mixed_prediction
from merger.checkpoints.inspect import format_inspection, inspect_files

MARKS = {
    "v": ("v_pred",),
    "v-zero": ("v_pred", "ztsnr"),
    "zero": ("ztsnr",),
    "plain": (),
    "edm": ("edm_mean", "edm_std"),
    "edm-v": ("edm_vpred.sigma_max", "edm_vpred.sigma_min"),
}


@pytest.fixture(scope="module")
def marked(tiny_family: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same donor under different markers."""
    folder = tmp_path_factory.mktemp("marked")
    tensors = load_file(tiny_family["warm"])
    for name, markers in MARKS.items():
        save_file(tensors | {key: torch.zeros(0) for key in markers}, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in MARKS}


@pytest.mark.parametrize("base", MARKS)
@pytest.mark.parametrize("donor", MARKS)
def test_every_pair_that_differs_has_one_line(base: str, donor: str, marked: dict[str, Path]) -> None:
    files = [open_checkpoint(marked[base], name="base"), open_checkpoint(marked[donor], name="donor")]
    lines = mixed_prediction(files[0], files[1:])
    assert len(lines) == (base != donor)
    for line in lines:
        assert line.startswith("donor predicts")
        assert "but the base base predicts" in line


def test_flow_and_what_is_not_known(marked: dict[str, Path]) -> None:
    plain = open_checkpoint(marked["plain"])
    flow, unknown = replace(plain, prediction="flow"), replace(plain, prediction="unknown")
    assert "predicts flow, but the base" in mixed_prediction(plain, [flow])[0]
    assert "predicts noise, but the base" in mixed_prediction(flow, [plain])[0]
    assert not mixed_prediction(unknown, [plain, flow])
    assert not mixed_prediction(plain, [unknown])
    assert not mixed_prediction(plain, [replace(plain, prediction="v", layout="lora")])


def test_the_pipelines_scheduler_speaks_for_a_file_that_does_not(marked: dict[str, Path], tmp_path: Path) -> None:
    v = open_checkpoint(marked["v"])
    base = replace(open_checkpoint(marked["plain"]), family="sd2", prediction="unknown")
    (tmp_path / "scheduler").mkdir()
    scheduler = tmp_path / "scheduler" / "scheduler_config.json"
    for said, lines in (("v_prediction", 0), ("epsilon", 1)):
        scheduler.write_text(json.dumps({"prediction_type": said}))
        assert len(mixed_prediction(base, [v], tmp_path)) == lines


def test_a_file_that_says_nothing_is_what_the_pipeline_says(marked: dict[str, Path], tmp_path: Path) -> None:
    """The pipeline's scheduler draws such a base, so it also holds for donors that say nothing."""
    plain, v = (open_checkpoint(marked[name]) for name in ("plain", "v"))
    donor = replace(plain, name="donor")
    noise = replace(donor, metadata={"modelspec.prediction_type": "epsilon"})
    (tmp_path / "scheduler").mkdir()
    scheduler = tmp_path / "scheduler" / "scheduler_config.json"
    for said, lines in (("v_prediction", (0, 0, 1)), ("epsilon", (0, 1, 0))):
        scheduler.write_text(json.dumps({"prediction_type": said}))
        assert tuple(len(mixed_prediction(plain, [each], tmp_path)) for each in (donor, v, noise)) == lines
        assert len(mixed_prediction(v, [donor], tmp_path)) == 1, "the base says it itself"
    assert [len(mixed_prediction(plain, [each])) for each in (donor, v, noise)] == [0, 1, 0]


@pytest.mark.parametrize("key", ["modelspec.prediction_type", "modelspec.predict_key"])
def test_metadata_say_it(key: str, marked: dict[str, Path], tmp_path: Path) -> None:
    """ModelSpec's key, and ComfyUI's."""
    for said, prediction in (("v", "v"), ("epsilon", "epsilon")):
        save_file(load_file(marked["plain"]), tmp_path / "x.safetensors", metadata={key: said})
        opened = open_checkpoint(tmp_path / "x.safetensors")
        assert opened.prediction == prediction
        assert len(mixed_prediction(open_checkpoint(marked["plain"]), [opened])) == (said == "v")


@pytest.mark.parametrize(
    ("scheduler", "prediction"),
    [
        ({"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}, ("v", False)),
        ({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}, ("epsilon", True)),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, ("flow", False)),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, ("edm-v", False)),
        ({"_class_name": "EDMDPMSolverMultistepScheduler", "prediction_type": "epsilon"}, ("edm", False)),
        (["v_prediction"], ("epsilon", False)),
    ],
)
def test_a_folders_scheduler_says_it(
    scheduler: object, prediction: tuple[str, bool], tiny_diffusers_folder: Path, tmp_path: Path
) -> None:
    """Of the folder, and of its denoiser's own folder."""
    folder = shutil.copytree(tiny_diffusers_folder, tmp_path / "model")
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    for place in (folder, folder / "unet"):
        opened = open_checkpoint(place)
        assert (opened.prediction, opened.zero_snr) == prediction


def test_inspect_and_merge_say_it(marked: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect_files([marked["plain"], marked["v"]])
    assert found["fit"]["ok"]
    assert "note: v predicts v, but the base plain predicts noise" in format_inspection(found)
    assert not inspect_files([marked["v"], marked["v"]])["fit"]["remarks"]
    table = {"base": str(marked["v"]), "donors": [str(marked["plain"])], "weights": {"*": {"plain": 0.5}}}
    (tmp_path / "recipe.json").write_text(json.dumps(table))
    assert main(["merge", str(tmp_path / "recipe.json"), "--output", str(tmp_path / "out.safetensors")]) == 0
    assert "plain predicts noise, but the base v predicts v" in capsys.readouterr().err
    assert "v_pred" in load_file(tmp_path / "out.safetensors")


def test_markers_under_the_denoisers_prefix_count(marked: dict[str, Path], tmp_path: Path) -> None:
    """That is where loaders of a denoiser alone see them."""
    tensors = load_file(marked["plain"]) | {
        f"model.diffusion_model.{key}": torch.zeros(0) for key in ("v_pred", "ztsnr")
    }
    save_file(tensors, tmp_path / "x.safetensors")
    opened = open_checkpoint(tmp_path / "x.safetensors")
    assert (opened.prediction, opened.zero_snr) == ("v", True)


@pytest.mark.parametrize("name", ["edm", "edm-v"])
def test_a_base_for_edm_is_not_drawn_with_another_schedule(
    name: str, marked: dict[str, Path], tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"is made for EDM's noise levels \('edm_.*'\), which DDIMScheduler does"):
        load_pipeline(marked[name], config=tiny_pipeline_folder)
    folder = shutil.copytree(tiny_pipeline_folder, tmp_path / "pipeline")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "EDMEulerScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "EDMEulerScheduler"}))
    assert type(load_pipeline(marked[name], config=folder).scheduler).__name__ == "EDMEulerScheduler"
