"""Files of weights: shards with an index, pickles only where allowed and only plain tensors."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merger.app.cli import main
from merger.checkpoints.checkpoint import open_checkpoint
from merger.checkpoints.headers import read_header
from merger.checkpoints.inspect import inspect_files
from merger.errors import CheckpointError
from merger.export.recipe import Recipe
from merger.export.write import export, verify


class Trap:
    """What an evil pickle does when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def split(tensors: dict[str, torch.Tensor], folder: Path, stem: str) -> Path:
    """Three shards and their index."""
    folder.mkdir(exist_ok=True)
    where = {}
    for number in range(3):
        name = f"{stem}-{number + 1:05d}-of-00003.safetensors"
        part = {key: tensor for i, (key, tensor) in enumerate(tensors.items()) if i % 3 == number}
        save_file(part, folder / name)
        where |= dict.fromkeys(part, name)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder / f"{stem}.safetensors.index.json"


def test_shards_are_one_checkpoint(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(tiny_family["base"])
    index = split(tensors, tmp_path / "parts", "model")
    sharded, whole = open_checkpoint(index), open_checkpoint(tiny_family["base"])
    assert (sharded.name, sharded.family, len(sharded.files)) == ("model", "sd1", 3)
    assert all(torch.equal(sharded.read(name), whole.read(name)) for name in whole.denoiser)
    assert sharded.sha256 == open_checkpoint(index).sha256 != whole.sha256
    warm = open_checkpoint(tiny_family["warm"])
    recipe = Recipe.of(sharded, [warm], "block", {"M00": {"warm": 0.5}})
    file = export(recipe, tmp_path / "x.safetensors", base=sharded, donors=[warm])
    assert verify(file).ok
    same = Recipe.of(whole, [warm], "block", {"M00": {"warm": 0.5}})
    other = load_file(export(same, tmp_path / "y.safetensors", base=whole, donors=[warm]))
    assert all(torch.equal(tensor, other[key]) for key, tensor in load_file(file).items())


def test_a_folders_index_is_followed(tiny_diffusers_folder: Path, tmp_path: Path) -> None:
    source = tiny_diffusers_folder / "unet" / "diffusion_pytorch_model.safetensors"
    split(load_file(source), tmp_path / "unet", "diffusion_pytorch_model")
    assert len(open_checkpoint(tmp_path).files) == 3
    (tmp_path / "unet" / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shard diffusion_pytorch_model-00002.* is missing \(1 of 3\)"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../x.safetensors"}}', "[]"])
def test_bad_indices_are_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index.json: (no index of shards|names no files)") as caught:
        open_checkpoint(tmp_path / "model.safetensors.index.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("old", [False, True], ids=["archive", "before-1.6"])
def test_pickles_are_read_only_where_allowed(
    old: bool, tiny_family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "warm.ckpt"
    content = {"state_dict": load_file(tiny_family["warm"]), "global_step": 3}
    torch.save(content, file, _use_new_zipfile_serialization=not old)
    with pytest.raises(CheckpointError, match=r"a pickle.*Convert it to .safetensors first, or say --allow-pickle"):
        open_checkpoint(file)
    opened, warm = open_checkpoint(file, allow_pickle=True), open_checkpoint(tiny_family["warm"])
    assert opened.denoiser.keys() == warm.denoiser.keys()
    assert all(torch.equal(opened.read(name), warm.read(name)) for name in warm.denoiser)
    assert inspect_files([tiny_family["base"], file], allow_pickle=True)["fit"]["ok"]
    recipe = {"base": str(tiny_family["base"]), "donors": [str(file)], "weights": {"M00": {"warm": 0.5}}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    arguments = ["merge", str(tmp_path / "recipe.json"), "--output", str(tmp_path / "x.safetensors")]
    assert main(arguments) == 2
    assert "--allow-pickle" in capsys.readouterr().err
    assert main([*arguments, "--allow-pickle"]) == 0
    assert main(["verify", str(tmp_path / "x.safetensors"), "--allow-pickle"]) == 0


def test_a_pickle_that_would_run_something_runs_nothing(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "more": Trap(tmp_path / "sprung")}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="cannot be read as a pickle of plain tensors") as caught:
        open_checkpoint(tmp_path / "evil.ckpt", allow_pickle=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()
    (tmp_path / "text.ckpt").write_text("no pickle")
    torch.save([1, 2], tmp_path / "list.ckpt")
    for name, said in (("text.ckpt", "cannot be read"), ("list.ckpt", "holds no tensors by name")):
        with pytest.raises(CheckpointError, match=said):
            open_checkpoint(tmp_path / name, allow_pickle=True)


def test_a_pickle_with_another_class_for_its_storage_is_refused(tmp_path: Path) -> None:
    """torch's own reader asks that class for a dtype, which is an AttributeError."""
    torch.save({"a": torch.zeros(1)}, tmp_path / "whole.ckpt")
    whole, broken = zipfile.ZipFile(tmp_path / "whole.ckpt"), zipfile.ZipFile(tmp_path / "broken.ckpt", "w")
    with whole, broken:
        for entry in whole.infolist():
            content = whole.read(entry).replace(b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n")
            broken.writestr(entry.filename, content)
    with pytest.raises(CheckpointError, match="cannot be read as a pickle of plain tensors"):
        open_checkpoint(tmp_path / "broken.ckpt", allow_pickle=True)


def test_a_pickle_is_converted(
    tiny_family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that it holds, also what stands where another type must begin; and the refusal names the very command."""
    odd = {"model_ema.decay": torch.tensor(0.5), "half": torch.ones(3, dtype=torch.float16), "steps": torch.arange(3)}
    tensors = odd | load_file(tiny_family["base"])
    strange = tensors["half"].reshape(3, 1).expand(3, 2)  # not in a row in memory
    torch.save({"state_dict": tensors | {"strange": strange}}, tmp_path / "old.ckpt")
    assert main(["inspect", str(tmp_path / "old.ckpt")]) == 2
    command = capsys.readouterr().err.strip().split("To convert: merger ")[1].split()
    assert main(command) == 0
    made = tmp_path / "old.safetensors"
    assert str(made).endswith(capsys.readouterr().out.strip().rsplit("/", 1)[-1])
    found = load_file(made)
    assert found.keys() == tensors.keys() | {"strange"}
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())
    assert torch.equal(found["strange"], strange)
    assert inspect_files([made, tiny_family["warm"]])["fit"]["ok"]
    for arguments, said in (
        ([str(tmp_path / "old.ckpt"), "--output", str(tmp_path / "x.ckpt")], "must end in .safetensors"),
        ([str(made), "--output", str(made)], "nothing to convert"),
        ([str(tmp_path / "lost.ckpt"), "--output", str(tmp_path / "x.safetensors")], "no such file"),
    ):
        assert main(["convert", *arguments]) == 2
        assert said in capsys.readouterr().err
    torch.save({"wave": torch.zeros(2, dtype=torch.complex128)}, tmp_path / "wave.ckpt")
    assert main(["convert", str(tmp_path / "wave.ckpt"), "--output", str(tmp_path / "x.safetensors")]) == 2
    assert "'wave' is torch.complex128" in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()


def test_a_pickle_as_base_gives_a_file_that_can_be_read(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    """Its tensors lie in any order; in the file each begins where its type may."""
    odd = {"flag": torch.tensor([True]), "steps": torch.arange(3), "decay": torch.tensor(0.5)}
    torch.save(odd | load_file(tiny_family["base"]), tmp_path / "old.ckpt")
    base = open_checkpoint(tmp_path / "old.ckpt", allow_pickle=True)
    warm = open_checkpoint(tiny_family["warm"])
    recipe = Recipe.of(base, [warm], "block", {"M00": {"warm": 0.5}})
    file = export(recipe, tmp_path / "x.safetensors", base=base, donors=[warm])
    assert all(entry.start % entry.dtype.itemsize == 0 for entry in read_header(file).tensors.values())
    assert torch.equal(load_file(file)["steps"], odd["steps"])
    assert verify(file, allow_pickle=True).ok
