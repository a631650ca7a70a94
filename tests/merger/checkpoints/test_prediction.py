"""Donors that predict something else than the base, or were trained for another noise schedule: said, never silent."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merger.app.cli import main
from merger.checkpoints.checkpoint import open_checkpoint
from merger.checkpoints.compatibility import mixed_prediction
from merger.checkpoints.inspect import format_inspection, inspect_files

MARKS = {"v": ("v_pred",), "v-zero": ("v_pred", "ztsnr"), "zero": ("ztsnr",), "plain": ()}


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
