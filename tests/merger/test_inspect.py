"""Inspection: plain values for machines, readable lines for people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merger.checkpoints import open_checkpoint
from merger.errors import CheckpointError
from merger.export import export
from merger.inspect import format_inspection, inspect_files, unique_names
from merger.keys import DENOISER_PREFIX
from merger.recipe import Recipe


def test_it_says_what_files_are_and_that_they_fit(tiny_family: dict[str, Path], tiny_pipeline_folder: Path) -> None:
    found = inspect_files(list(tiny_family.values()), tiny_pipeline_folder)
    assert json.loads(json.dumps(found)) == found
    assert found["fit"] == {"ok": True, "problem": None, "left_out": {}}
    first = found["files"][0]
    assert (first["name"], first["family"], first["layout"]) == ("base", "sd1", "original")
    assert first["dtypes"] == {"float16": 684}
    assert first["tensors"] == 684
    assert first["bytes"] == tiny_family["base"].stat().st_size
    assert len(first["layers"]) == 26
    assert sum(first["layers"].values()) == first["parameters"]
    text = format_inspection(found)
    assert "they fit together" in text
    assert "IN00" in text
    assert first["sha256"] in text


def test_files_that_do_not_fit_are_described_all_the_same(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    other = load_file(tiny_family["warm"])
    other[DENOISER_PREFIX + "input_blocks.0.0.weight"] = torch.zeros(8, 9, 3, 3).half()
    save_file(other, tmp_path / "hole.safetensors")
    found = inspect_files([tiny_family["base"], tmp_path / "hole.safetensors"])
    assert not found["fit"]["ok"]
    assert found["files"][1]["family"] == "sd1-inpainting"
    assert "they do not fit: hole.safetensors: 'conv_in.weight'" in format_inspection(found)


def test_it_knows_a_blend(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    base, warm = (open_checkpoint(tiny_family[name]) for name in ("base", "warm"))
    recipe = Recipe.of(base, [warm], "block", {"M00": {"warm": 0.5}})
    file = export(recipe, tmp_path / "blend.safetensors", base=base, donors=[warm])
    found = inspect_files([file])
    assert found["files"][0]["recipe"] == {"version": recipe.version, "of": ["base", "warm"]}
    assert f"a blend made by layermerge {recipe.version} from base, warm" in format_inspection(found)


def test_names_tell_files_apart() -> None:
    paths = [Path("a/model.safetensors"), Path("b/model.safetensors"), Path("c/v1.5.safetensors"), Path("d/folder")]
    assert unique_names(paths) == ["a-model", "b-model", "v1.5", "folder"]
    assert unique_names([Path("x.safetensors")] * 2)[0] != unique_names([Path("x.safetensors")] * 2)[1]


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such file"):
        inspect_files([tmp_path / "x.safetensors"])
