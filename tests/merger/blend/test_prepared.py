"""Donors whose difference is taken from another checkpoint, or prepared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merger.blend.prepared import prepare
from merger.checkpoints.adapter import open_donor
from merger.checkpoints.checkpoint import open_checkpoint
from merger.checkpoints.compatibility import check_compatible, remarks
from merger.checkpoints.finite import check_finite
from merger.errors import CheckpointError
from merger.preparations.spec import preparations

_INPUT = "model.diffusion_model.input_blocks.0.0.weight"


def changed(path: Path, file: Path, **tensors: torch.Tensor) -> Path:
    save_file(load_file(path) | tensors, file)
    return file


def test_the_difference_is_taken_from_minus(tiny_family: dict[str, Path]) -> None:
    base, donor, minus = (open_checkpoint(tiny_family[name]) for name in ("base", "warm", "cool"))
    found = prepare(donor, base, minus, ())
    for name in base.blended:
        expected = base.read(name).float() + (donor.read(name).float() - minus.read(name).float())
        assert torch.equal(found.read(name), expected), name
    assert found.sha256 == donor.sha256
    assert set(found.weight_files) == {tiny_family["warm"], tiny_family["cool"]}
    assert check_compatible(base, [found]) == {}


def test_without_either_the_donor_stays_itself(tiny_family: dict[str, Path]) -> None:
    base, donor = (open_checkpoint(tiny_family[name]) for name in ("base", "warm"))
    assert prepare(donor, base, None, ()) is donor


def test_a_difference_is_prepared(tiny_family: dict[str, Path]) -> None:
    base, donor = (open_checkpoint(tiny_family[name]) for name in ("base", "warm"))
    found = prepare(donor, base, None, preparations([{"trim": 0.25}, {"rank": 1}], minus=False))
    name = next(name for name, info in base.blended.items() if len(info.shape) == 2)
    added = found.read(name) - base.read(name).float()
    assert torch.linalg.matrix_rank(added.double(), atol=1e-4) == 1


def wide(path: Path, file: Path) -> Path:
    """The same model as if made for inpainting: five input channels more."""
    weight = load_file(path)[_INPUT]
    more = torch.randn(weight.shape[0], 5, *weight.shape[2:], generator=torch.Generator().manual_seed(5))
    return changed(path, file, **{_INPUT: torch.cat([weight, more.to(weight.dtype)], 1)})


def test_an_inpainting_version_of_a_model(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    base = open_checkpoint(wide(tiny_family["base"], tmp_path / "inpainting.safetensors"))
    custom, plain = (open_checkpoint(tiny_family[name]) for name in ("warm", "base"))
    found = prepare(custom, base, plain, ())
    assert check_compatible(base, [found]) == {}
    said = "'conv_in.weight' takes 8 channels and the base's 13: its difference goes to the first 8"
    assert f"warm: {said}" in remarks([found], {})
    weight, own = found.read("conv_in.weight"), base.read("conv_in.weight").float()
    expected = own[:, :8] + (custom.read("conv_in.weight").float() - plain.read("conv_in.weight").float())
    assert torch.equal(weight[:, :8], expected)
    assert torch.equal(weight[:, 8:], own[:, 8:])


def test_an_inpainting_difference_on_another_base_is_refused(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    base = open_checkpoint(tiny_family["base"])
    one, other = (
        open_checkpoint(wide(tiny_family[name], tmp_path / f"{name}.safetensors")) for name in ("warm", "cool")
    )
    with pytest.raises(CheckpointError, match="takes 13 channels and the base's 8: the difference of an inpainting"):
        prepare(one, base, other, ())


def test_a_minus_that_does_not_fit_is_named(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    base, donor = (open_checkpoint(tiny_family[name]) for name in ("base", "warm"))
    minus = open_checkpoint(wide(tiny_family["cool"], tmp_path / "wide.safetensors"))
    with pytest.raises(CheckpointError) as error:
        prepare(donor, base, minus, ())
    assert "wide.safetensors" in str(error.value)
    assert "'conv_in.weight'" in str(error.value)
    assert "Use the checkpoint that the donor was trained from." in str(error.value)


def test_a_minus_that_is_not_finite_is_named(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    weight = load_file(tiny_family["cool"])[_INPUT].clone()
    weight[0] = float("nan")
    base, donor = (open_checkpoint(tiny_family[name]) for name in ("base", "warm"))
    minus = open_checkpoint(changed(tiny_family["cool"], tmp_path / "torn.safetensors", **{_INPUT: weight}))
    with pytest.raises(CheckpointError, match=r"torn\.safetensors: .* holds .*NaN"):
        check_finite(base, [prepare(donor, base, minus, ())])


def test_an_adapter_can_be_prepared_too(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    base = open_checkpoint(tiny_family["base"])
    name = next(name for name, info in base.blended.items() if name.endswith("to_q.weight"))
    shape = base.blended[name].shape
    module = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
    noise = torch.Generator().manual_seed(1)
    tensors = {
        f"{module}.lora_down.weight": torch.randn(4, shape[1], generator=noise),
        f"{module}.lora_up.weight": torch.randn(shape[0], 4, generator=noise),
    }
    save_file(tensors, tmp_path / "style.safetensors")
    donor = open_donor(tmp_path / "style.safetensors", base)
    found = prepare(donor, base, None, preparations([{"rank": 2}], minus=False))
    added = (found.read(name) - base.read(name).float()).double()
    assert torch.linalg.matrix_rank(added, atol=1e-3) == 2
    other = next(each for each in base.blended if each != name)
    assert torch.equal(found.read(other), base.read(other).float())
