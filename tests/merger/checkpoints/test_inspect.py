"""Inspection: plain values for machines, readable lines for people."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merger.checkpoints import hashing
from merger.checkpoints.checkpoint import open_checkpoint
from merger.checkpoints.hash_cache import cache_file
from merger.checkpoints.inspect import format_inspection, inspect_files, unique_names
from merger.checkpoints.names.unet import DENOISER_PREFIX
from merger.checkpoints.recipe_metadata import METADATA_KEY
from merger.errors import CheckpointError
from merger.export.recipe import Recipe
from merger.export.write import export


def test_it_says_what_files_are_and_that_they_fit(tiny_family: dict[str, Path], tiny_pipeline_folder: Path) -> None:
    found = inspect_files(list(tiny_family.values()), tiny_pipeline_folder)
    assert json.loads(json.dumps(found)) == found
    assert found["fit"] == {"ok": True, "problem": None, "left_out": {}, "remarks": []}
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
    assert first["sha256"] is None
    assert "SHA" not in text


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


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_file()


def test_headers_are_enough_unless_hashes_are_asked_for(
    tiny_family: dict[str, Path], tiny_diffusers_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    once = hashing._read_through
    monkeypatch.setattr(hashing, "_read_through", lambda path, *more: read.append(path) or once(path, *more))
    hashing._computed.cache_clear()
    files = [tiny_family["base"], tiny_diffusers_folder]
    inspect_files(files)
    assert not read
    assert not cache.exists()
    for again in (False, True):
        hashing._computed.cache_clear()  # as another call of the program begins
        found = inspect_files(files, hashes=True)
        assert bool(read) is not again, "the second time they are known"
        for described, file in zip(found["files"], files, strict=True):
            assert described["sha256"] in format_inspection(found)
            read.clear()
            hashing._computed.cache_clear()
            assert described["sha256"] == open_checkpoint(file).sha256
        read.clear()


def test_a_file_that_changed_is_hashed_again(tiny_family: dict[str, Path], cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    for name in ("base", "warm"):
        tensors = {key: tensor.clone() for key, tensor in load_file(tiny_family[name]).items()}
        if name == "warm":
            tensors["model.diffusion_model.out.2.bias"][0] = torch.nan
        save_file(tensors, file)
        (described,) = inspect_files([file], hashes=True)["files"]
        assert described["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert described["nonfinite"] == ({} if name == "base" else {"model.diffusion_model.out.2.bias": "NaN"})
    assert "'model.diffusion_model.out.2.bias' holds NaN" in format_inspection(inspect_files([file], hashes=True))


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, '{"%s": 3}', '{"%s": {"state": 1}}'])
def test_a_damaged_or_read_only_cache_is_no_error(
    content: str, tiny_family: dict[str, Path], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(content.replace("%s", str(tiny_family["base"].resolve())))
    wanted = hashlib.sha256(tiny_family["base"].read_bytes()).hexdigest()
    assert inspect_files([tiny_family["base"]], hashes=True)["files"][0]["sha256"] == wanted
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    assert inspect_files([tiny_family["base"]], hashes=True)["files"][0]["sha256"] == wanted


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such file"):
        inspect_files([tmp_path / "x.safetensors"])


def test_every_odd_file_is_answered_with_one_line(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    def made(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    def headed(name: str, header: object, body: bytes = b"") -> Path:
        text = json.dumps(header).encode()
        return made(name, len(text).to_bytes(8, "little") + text + body)

    whole = tiny_family["base"].read_bytes()
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    (tmp_path / "loop.safetensors").symlink_to(tmp_path / "loop.safetensors")
    (tmp_path / "empty-folder").mkdir()
    save_file({"control_model.input_hint_block.0.weight": torch.zeros(1)}, tmp_path / "control.safetensors")
    save_file({"text_model.encoder.layers.0.mlp.fc1.bias": torch.zeros(1)}, tmp_path / "text.safetensors")
    save_file({"emb_params": torch.zeros(1, 8)}, tmp_path / "embedding.safetensors")
    odd = {
        made("empty.safetensors", b""): "only 0 bytes",
        made("short.safetensors", b"abc"): "only 3 bytes",
        made("note.safetensors", b"Dear reader, this is no model at all."): "not a safetensors file",
        made("cut.safetensors", whole[:-1]): "truncated",
        made("cut-head.safetensors", whole[:4000]): "truncated",
        made("long.safetensors", whole + b"\0"): "1 bytes follow",
        made("huge.safetensors", (100 * 10**9).to_bytes(8, "little") + b"{}"): "does not begin with a header",
        made("pickle.ckpt", b"PK\x03\x04" + bytes(60)): "a pickle checkpoint",
        made("pointer.safetensors", b"version https://git-lfs.github.com/spec/v1\n"): "Git LFS pointer",
        headed("overlap.safetensors", {"a": entry, "b": entry}, bytes(4)): "begins at byte 0, expected 4",
        headed("gap.safetensors", {"a": entry | {"data_offsets": [4, 8]}}, bytes(8)): "begins at byte 4, expected 0",
        headed(
            "dtype.safetensors", {"a": entry | {"dtype": "Q4"}}, bytes(4)
        ): "of type Q4, which this version cannot read",
        headed("negative.safetensors", {"a": entry | {"shape": [-1]}}, bytes(4)): "no shape",
        headed("list.safetensors", []): "damaged",
        headed("nothing.safetensors", {}): "holds no denoiser",
        tmp_path / "loop.safetensors": "link that leads nowhere",
        tmp_path / "missing.safetensors": "no such file",
        tmp_path / "empty-folder": "no denoiser weights here",
        tmp_path / "control.safetensors": "a ControlNet",
        tmp_path / "text.safetensors": "a text encoder alone",
        tmp_path / "embedding.safetensors": "a textual inversion",
    }
    found = inspect_files([tiny_family["base"], *odd])
    assert not found["fit"]["ok"]
    for file, said in zip(found["files"][1:], odd.values(), strict=True):
        line = file.get("problem") or file["words"]
        assert "\n" not in line
        assert said in line or (said == "holds no denoiser" and file["kind"] == "unknown"), file
    assert len(format_inspection(found).splitlines()) < 60


@pytest.mark.parametrize("recipe", ["{", "[]", "{}", '{"weights": {}, "donors": [], "base": {}, "version": "1"}'])
def test_a_recipe_that_cannot_be_read_is_one_line(recipe: str, tiny_family: dict[str, Path], tmp_path: Path) -> None:
    save_file(load_file(tiny_family["base"]), tmp_path / "x.safetensors", metadata={METADATA_KEY: recipe})
    with pytest.raises(CheckpointError, match=r"x.safetensors: its recipe cannot be read") as caught:
        inspect_files([tmp_path / "x.safetensors"])
    assert "\n" not in str(caught.value)
