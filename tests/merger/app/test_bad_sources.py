"""Sources that a search refuses before it generates an image, or that change while it runs."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from merger.app.cli import main

TAGS = ("blonde_hair", "blue_hair", "red_hair", "blue_eyes", "green_eyes", "smile", "open_mouth", "glasses", "hat")
MIDDLE = "model.diffusion_model.middle_block.0.in_layers.2.weight"


@pytest.fixture
def settings(
    tiny_family: dict[str, Path], tiny_pipeline_folder: Path, tiny_tagger_folder: Path, tmp_path: Path
) -> dict[str, Any]:
    (tmp_path / "words.csv").write_text("\n".join(["tag,category,group", *(f"{tag},," for tag in TAGS)]) + "\n")
    return {
        "base": str(tiny_family["base"]),
        "donors": [str(tiny_family["warm"])],
        "pipeline": str(tiny_pipeline_folder),
        "granularity": "stage",
        "tagger": str(tiny_tagger_folder),
        "threshold": 0.5,
        "vocabulary": str(tmp_path / "words.csv"),
        "tags_per_prompt": 2,
        "prompts": 2,
        "validation_prompts": 2,
        "test_prompts": 2,
        "steps": 1,
        "size": 32,
        "trials": 5,
        "baselines": [],
        "method": "random",
        "device": "cpu",
        "threads": 1,
    }


def search(folder: Path, settings: dict[str, Any], *more: str) -> int:
    (folder / "search.yaml").write_text(yaml.safe_dump(settings))
    return main(["search", str(folder / "search.yaml"), "--name", "run", *more])


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize(
    ("which", "key"),
    [
        ("base", MIDDLE),
        ("base", "first_stage_model.decoder.conv_in.weight"),
        ("base", "cond_stage_model.transformer.text_model.final_layer_norm.bias"),
        ("donor", MIDDLE),
        ("donor", "model.diffusion_model.out.2.bias"),
    ],
)
def test_a_source_that_is_not_finite_is_refused(
    which: str,
    key: str,
    value: float,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    source = settings["base"] if which == "base" else settings["donors"][0]
    tensors = {name: tensor.clone() for name, tensor in load_file(source).items()}
    tensors[key].flatten()[0] = value
    save_file(tensors, tmp_path / "bad.safetensors")
    changed = {"base": "bad.safetensors"} if which == "base" else {"donors": ["bad.safetensors"]}
    assert search(tmp_path, settings | changed) == 2
    words = "NaN" if math.isnan(value) else "infinite values"
    assert f"bad.safetensors: '{key}' holds {words}" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_donor_beyond_the_bases_type_is_refused(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its pictures would all be black, and so would those of most blends."""
    monkeypatch.chdir(tmp_path)
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(settings["donors"][0]).items()}
    tensors[MIDDLE].flatten()[0] = 1e6
    save_file(tensors, tmp_path / "big.safetensors")
    assert search(tmp_path, settings | {"donors": ["big.safetensors"]}) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"big.safetensors: '{MIDDLE}' holds values up to" in error
    assert "use a base in bf16 or fp32" in error
    assert not (tmp_path / "runs").exists()


def test_a_run_of_the_previous_version_keeps_its_blocks(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder does not say whose names its blocks have; then they are those of version 0.1, however it goes on."""
    monkeypatch.chdir(tmp_path)
    old = settings | {"granularity": "block", "frozen": ["OUT11"], "bounds": [0.5, 1]}
    assert search(tmp_path, old, "--set", "block_names=layermerge-0.1", "--trials", "4") == 0
    config = tmp_path / "runs" / "run" / "config.yaml"
    kept = yaml.safe_load(config.read_text())
    del kept["block_names"]
    config.write_text(yaml.safe_dump(kept))
    assert search(tmp_path, old, "--trials", "5") == 0  # the same file, which says nothing of it
    assert main(["resume", "run", "--trials", "6"]) == 0
    assert main(["export", "run", "--trial", "2", "--output", "two.safetensors"]) == 0
    last = "model.diffusion_model.out.2.weight"
    assert not load_file("two.safetensors")[last].equal(load_file(settings["base"])[last])  # in BASE, not in OUT11
    assert search(tmp_path, old, "--set", "block_names=community") == 2


@pytest.mark.parametrize("allowed", [False, True])
def test_what_images_are_not_generated_with_may_be_anything(
    allowed: bool, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A donor's text encoder counts only if it is blended."""
    monkeypatch.chdir(tmp_path)
    tensors = {name: tensor.clone() for name, tensor in load_file(settings["donors"][0]).items()}
    tensors["cond_stage_model.transformer.text_model.final_layer_norm.bias"][0] = math.nan
    save_file(tensors, tmp_path / "bad.safetensors")
    components = ["denoiser"] if allowed else ["denoiser", "text_encoder"]
    assert search(tmp_path, settings | {"donors": ["bad.safetensors"], "components": components}) == 2 * (not allowed)


@pytest.mark.parametrize(
    ("base", "donor", "said"),
    [
        ((), ("v_pred",), "donor predicts v, but the base base predicts noise"),
        (("v_pred",), (), "donor predicts noise, but the base base predicts v"),
        (("v_pred",), ("v_pred", "ztsnr"), "donor predicts v, zero terminal SNR, but the base base predicts v:"),
        (("v_pred", "ztsnr"), ("v_pred",), "donor predicts v, but the base base predicts v, zero terminal SNR"),
        ((), ("ztsnr",), "donor predicts noise, zero terminal SNR, but the base base predicts noise"),
        ((), ("edm_vpred.sigma_max",), "donor predicts v under EDM's noise levels, but the base base predicts noise"),
    ],
)
def test_both_directions_and_schedules_are_refused(
    base: tuple[str, ...],
    donor: tuple[str, ...],
    said: str,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, source, marks in (("base", settings["base"], base), ("donor", settings["donors"][0], donor)):
        save_file(load_file(source) | {mark: torch.zeros(0) for mark in marks}, tmp_path / f"{name}.safetensors")
    assert search(tmp_path, settings | {"base": "base.safetensors", "donors": ["donor.safetensors"]}) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_a_donor_that_predicts_something_else_is_refused_unless_allowed(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(load_file(settings["donors"][0]) | {"v_pred": torch.zeros(0)}, tmp_path / "v.safetensors")
    mixed = settings | {"donors": ["v.safetensors"], "trials": 4}
    assert search(tmp_path, mixed) == 2
    said = capsys.readouterr().err
    assert "v predicts v, but the base base predicts noise" in said
    assert "allow_mixed_prediction: true" in said
    assert not (tmp_path / "runs").exists()
    assert search(tmp_path, mixed | {"allow_mixed_prediction": True}) == 0
    assert "v predicts v, but the base base predicts noise" in capsys.readouterr().err


@pytest.mark.parametrize("when", ["trial", "validation"])
@pytest.mark.parametrize("how", ["replaced", "overwritten"])
def test_a_source_that_changes_while_the_search_runs_ends_it(
    when: str,
    how: str,
    settings: dict[str, Any],
    tiny_family: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from merger.app import final_evaluation
    from merger.scoring.objective import BlendObjective, evaluate_blend

    monkeypatch.chdir(tmp_path)
    donor = tmp_path / "donor.safetensors"
    shutil.copy(tiny_family["warm"], donor)
    trials = 0

    def change() -> None:
        if how == "overwritten":
            donor.write_bytes(tiny_family["cool"].read_bytes())
        else:
            shutil.copy(tiny_family["cool"], tmp_path / "other.safetensors")
            (tmp_path / "other.safetensors").replace(donor)

    def score(self: BlendObjective, *args: Any) -> Any:
        nonlocal trials
        trials += 1
        if trials == 3 and when == "trial":
            change()
        return original(self, *args)

    def evaluate(*args: Any, **kwargs: Any) -> Any:
        if when == "validation":
            change()
        return evaluate_blend(*args, **kwargs)

    original = BlendObjective.__call__
    monkeypatch.setattr(BlendObjective, "__call__", score)
    monkeypatch.setattr(final_evaluation, "evaluate_blend", evaluate)
    assert search(tmp_path, settings | {"donors": [str(donor)]}) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {donor}: changed since the search began")
    run = tmp_path / "runs" / "run"
    assert f"merger resume {run}" in error
    assert not (run / "best.safetensors").exists()
    assert not (run / "result.json").exists()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(["resume", "run"]) == 2, "another donor is another search"
    assert "begun differently" in capsys.readouterr().err
    shutil.copy(tiny_family["warm"], donor)
    capsys.readouterr()
    assert main(["resume", "run", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["trials"] == settings["trials"], "what was finished is kept, the trial of the change is not"
    assert main(["verify", str(run / "best.safetensors"), "--score"]) == 0
