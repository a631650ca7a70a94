"""A difference as a LoRA: the nearest of its rank, read back by our own readers and by diffusers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from merger.app.cli import main
from merger.checkpoints.adapter import open_donor
from merger.checkpoints.checkpoint import open_checkpoint
from merger.errors import CheckpointError
from merger.export.extract import extract


@pytest.mark.parametrize("rank", [1, 3])
def test_every_tensor_is_the_nearest_of_its_rank(rank: int, tiny_family: dict[str, Path], tmp_path: Path) -> None:
    base, donor = (open_checkpoint(tiny_family[name]) for name in ("base", "warm"))
    found = extract(base, donor, rank, tmp_path / "lora.safetensors", "fp32")
    lora = open_donor(found.file, base)
    layers = {each.name: each for each in found.layers}
    for name, info in base.denoiser.items():
        if len(info.shape) < 2:
            assert name not in layers
            assert torch.equal(lora.read(name), base.read(name))
            continue
        difference = (donor.read(name).double() - base.read(name).double()).flatten(1)
        left, values, right = torch.linalg.svd(difference, full_matrices=False)
        expected = (left[:, :rank] * values[:rank]) @ right[:rank]
        added = (lora.read(name).double() - base.read(name).double()).flatten(1)
        torch.testing.assert_close(added, expected, rtol=0, atol=1e-6)
        missing = float(values[rank:].norm() / values.norm())
        assert layers[name].error == pytest.approx(missing, abs=1e-6)
        assert layers[name].rank == min(rank, len(values))
    assert found.left_out.keys() == {
        name
        for name, info in base.denoiser.items()
        if len(info.shape) < 2 and not torch.equal(donor.read(name), base.read(name))
    }
    assert 0 < found.error < 1


def test_a_full_rank_leaves_out_vectors_alone(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    base, donor = (open_checkpoint(tiny_family[name]) for name in ("base", "warm"))
    found = extract(base, donor, 10_000, tmp_path / "lora.safetensors", "fp32")
    assert max(each.error for each in found.layers) < 1e-5
    whole = sum(each.norm**2 for each in found.layers) + sum(norm**2 for norm in found.left_out.values())
    assert found.error == pytest.approx((sum(n**2 for n in found.left_out.values()) / whole) ** 0.5, rel=1e-3)


def test_diffusers_reads_it(tiny_family: dict[str, Path], tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from benchmark.pipelines.loading import load_pipeline

    base, donor = (open_checkpoint(tiny_family[name]) for name in ("base", "warm"))
    found = extract(base, donor, 2, tmp_path / "lora.safetensors", "fp32")
    pipeline = load_pipeline(tiny_family["base"], config=tiny_pipeline_folder, dtype=torch.float32, device="cpu")
    pipeline.load_lora_weights(str(found.file))
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    lora = open_donor(found.file, base)
    for name, tensor in pipeline.unet.state_dict().items():
        torch.testing.assert_close(tensor, lora.read(name).float(), rtol=0, atol=1e-5)


def test_the_command_says_what_is_missing(
    tiny_family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["extract", str(tiny_family["warm"]), "--base", str(tiny_family["base"]), "--rank", "2"]
    assert main([*given, "--output", str(tmp_path / "lora.safetensors")]) == 0
    out, err = capsys.readouterr()
    assert "of the whole difference is missing, and" in out
    assert ": rank 2, " in err
    assert {tensor.dtype for key, tensor in load_file(tmp_path / "lora.safetensors").items() if "lora" in key[10:]} <= {
        torch.float16,
        torch.float32,
    }
    assert main([*given, "--output", str(tmp_path / "again.safetensors"), "--json"]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["error"] < 1


def test_bad_input_is_one_line(
    tiny_family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, warm = str(tiny_family["base"]), str(tiny_family["warm"])
    for given, said in (
        ([warm, "--base", base, "--rank", "0", "--output", "x.safetensors"], "--rank 0: use at least 1"),
        ([warm, "--base", base, "--output", str(tmp_path / "x.ckpt")], "the name must end in .safetensors"),
        ([warm, "--base", base, "--output", warm], "is what the difference is taken from"),
        ([base, "--base", base, "--output", str(tmp_path / "x.safetensors")], "there is nothing to extract"),
        (["gone.safetensors", "--base", base, "--output", str(tmp_path / "x.safetensors")], "no such file"),
    ):
        assert main(["extract", *given]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    assert not list(tmp_path.iterdir())


def test_a_transformer_is_refused(sd3_family: dict[str, Path], tmp_path: Path) -> None:
    base, donor = (open_checkpoint(path) for path in list(sd3_family.values())[:2])
    with pytest.raises(CheckpointError, match="has a transformer as its denoiser"):
        extract(base, donor, 2, tmp_path / "lora.safetensors")
