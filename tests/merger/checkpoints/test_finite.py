"""NaN and infinite values in sources: found in the pass that hashes them, named by file and tensor."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merger.checkpoints import hashing
from merger.checkpoints.adapter import open_donor
from merger.checkpoints.checkpoint import open_checkpoint
from merger.checkpoints.finite import check_finite, check_range
from merger.checkpoints.hashing import file_contents, file_sha256, nonfinite_in
from merger.checkpoints.headers import FLOATING
from merger.errors import CheckpointError

MIDDLE = "model.diffusion_model.middle_block.0.in_layers.2.weight"
VAE = "first_stage_model.decoder.conv_in.weight"


def spoiled(source: Path, target: Path, **values: float) -> Path:
    """A copy of a file in which one element of each tensor has another value."""
    tensors = {key: tensor.clone() for key, tensor in load_file(source).items()}
    for key, value in values.items():
        tensors[key].flatten()[-1] = value
    save_file(tensors, target)
    return target


@pytest.mark.parametrize("dtype", sorted(FLOATING, key=str))
def test_every_type_is_understood(dtype: torch.dtype) -> None:
    """Compared with torch's own answer, for every pattern of bits of an 8- or 16-bit type."""
    if dtype.itemsize <= 2:
        kind = torch.uint8 if dtype.itemsize == 1 else torch.int16
        patterns = torch.arange(1 << (8 * dtype.itemsize)).to(kind).view(dtype)
    else:
        extremes = torch.finfo(dtype)
        patterns = torch.tensor([0.0, -0.0, extremes.max, extremes.min, extremes.tiny], dtype=dtype)
        patterns = torch.cat([patterns, torch.tensor([math.nan, -math.nan, math.inf, -math.inf], dtype=dtype)])
    for one in patterns.split(1):
        wide = one.to(torch.float64)
        assert nonfinite_in(one) == ("NaN" if wide.isnan().any() else "infinite values" if wide.isinf().any() else "")
    assert nonfinite_in(patterns) == "NaN"
    assert nonfinite_in(torch.zeros(0, dtype=dtype)) == ""
    assert nonfinite_in(torch.full((3,), 0x7F80, dtype=torch.int16)) == ""


@pytest.mark.parametrize("block", [16, 64, 1 << 22])
def test_the_hash_is_of_all_bytes_whatever_the_blocks(
    block: int, tiny_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_BLOCK", block)
    hashing._computed.cache_clear()
    file = spoiled(tiny_family["warm"], tmp_path / "nan.safetensors", **{MIDDLE: math.nan, VAE: math.inf})
    contents = file_contents(file)
    assert contents.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert contents.nonfinite == {MIDDLE: "NaN", VAE: "infinite values"}
    (tmp_path / "other.ckpt").write_bytes(b"no tensors" * 9)
    assert file_sha256(tmp_path / "other.ckpt") == hashlib.sha256(b"no tensors" * 9).hexdigest()
    hashing._computed.cache_clear()


def test_a_file_is_read_once(tiny_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = open_checkpoint(spoiled(tiny_family["base"], tmp_path / "base.safetensors"))
    donor = open_donor(spoiled(tiny_family["warm"], tmp_path / "donor.safetensors"), base)
    read: list[Path] = []
    once = hashing._read_through
    monkeypatch.setattr(hashing, "_read_through", lambda path, *more: read.append(path) or once(path, *more))
    assert {base.sha256, donor.sha256}
    check_finite(base, [donor], drawn=True)
    assert sorted(read) == [base.path, donor.path]


@pytest.mark.parametrize(("value", "words"), [(math.nan, "NaN"), (-math.inf, "infinite values")])
def test_a_donor_is_named_with_its_tensor(
    value: float, words: str, tiny_family: dict[str, Path], tmp_path: Path
) -> None:
    base = open_checkpoint(tiny_family["base"])
    good = open_donor(tiny_family["cool"], base)
    bad = open_donor(spoiled(tiny_family["warm"], tmp_path / "bad.safetensors", **{MIDDLE: value}), base)
    check_finite(base, [good], drawn=True)
    with pytest.raises(CheckpointError, match=rf"bad\.safetensors: '{MIDDLE}' holds {words}"):
        check_finite(base, [good, bad])


def test_only_what_a_blend_reads_of_a_donor_counts(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    base = open_checkpoint(tiny_family["base"])
    check_finite(base, [open_donor(spoiled(tiny_family["warm"], tmp_path / "a.safetensors", **{VAE: math.nan}), base)])


def test_of_a_base_that_images_are_generated_with_everything_counts(
    tiny_family: dict[str, Path], tmp_path: Path
) -> None:
    base = open_checkpoint(spoiled(tiny_family["base"], tmp_path / "b.safetensors", **{VAE: math.nan}))
    check_finite(base, [])
    with pytest.raises(CheckpointError, match=f"'{VAE}' holds NaN"):
        check_finite(base, [], drawn=True)


@pytest.mark.parametrize("where", ["up", "alpha"])
def test_an_adapters_factors_and_alpha_count(where: str, tiny_family: dict[str, Path], tmp_path: Path) -> None:
    base = open_checkpoint(tiny_family["base"])
    shape = base.denoiser["mid_block.resnets.0.conv1.weight"].shape
    module = "lora_unet_mid_block_resnets_0_conv1"
    tensors = {
        f"{module}.lora_up.weight": torch.ones(shape[0], 2, 1, 1),
        f"{module}.lora_down.weight": torch.ones(2, *shape[1:]),
        f"{module}.alpha": torch.tensor(2.0),
    }
    key = f"{module}.alpha" if where == "alpha" else f"{module}.lora_up.weight"
    tensors[key].flatten()[0] = math.nan
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=r"lora\.safetensors"):
        check_finite(base, [open_donor(tmp_path / "lora.safetensors", base)])


def test_a_pickle_is_checked_as_well(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    base = open_checkpoint(tiny_family["base"])
    tensors = load_file(spoiled(tiny_family["warm"], tmp_path / "a.safetensors", **{MIDDLE: math.nan}))
    torch.save(tensors, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=rf"a\.ckpt: '{MIDDLE}' holds NaN"):
        check_finite(base, [open_donor(tmp_path / "a.ckpt", base, allow_pickle=True)])


def test_a_file_that_shrinks_while_it_is_read_is_one_line(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    file = spoiled(tiny_family["warm"], tmp_path / "a.safetensors")
    header = hashing.read_header(file)
    file.write_bytes(file.read_bytes()[:-100])
    with file.open("rb") as stream, pytest.raises(CheckpointError, match="became shorter"):
        hashing._read_through(file, stream, header)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_donor_that_the_bases_type_cannot_hold_is_named(
    dtype: torch.dtype, suffix: str, tiny_family: dict[str, Path], tmp_path: Path
) -> None:
    """The base is fp16, whose largest number is 65,504; up to 65,519 is rounded to that."""
    base = open_checkpoint(tiny_family["base"])
    for value, fits in ((6e4, True), (-1e5, False), (65_519.0, dtype != torch.bfloat16)):
        tensors = {key: tensor.to(dtype) for key, tensor in load_file(tiny_family["warm"]).items()}
        tensors[MIDDLE].flatten()[3] = value
        file = tmp_path / f"{value}{suffix}"
        save_file(tensors, file) if suffix == ".safetensors" else torch.save(tensors, file)
        donor = open_donor(file, base, allow_pickle=True)
        check_finite(base, [donor])
        if fits:
            check_range(base, [donor])
            continue
        with pytest.raises(CheckpointError, match=rf"'{MIDDLE}' holds values up to .* \(float16 ends at 65504\)"):
            check_range(base, [donor])
        save_file({k: v.float() for k, v in load_file(tiny_family["base"]).items()}, tmp_path / "wide.safetensors")
        check_range(open_checkpoint(tmp_path / "wide.safetensors"), [donor])


def test_so_is_an_adapter_with_what_it_adds(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    base = open_checkpoint(tiny_family["base"])
    shape = base.denoiser["mid_block.resnets.0.conv1.weight"].shape
    module = "lora_unet_mid_block_resnets_0_conv1"
    for strength, fits in ((1.0, True), (400.0, False)):
        tensors = {
            f"{module}.lora_up.weight": torch.full((shape[0], 2, 1, 1), strength),
            f"{module}.lora_down.weight": torch.full((2, *shape[1:]), strength),
        }
        save_file(tensors, tmp_path / f"{strength}.safetensors")
        donor = open_donor(tmp_path / f"{strength}.safetensors", base)
        if fits:
            check_range(base, [donor])
            continue
        with pytest.raises(CheckpointError, match=r"400\.0\.safetensors: with what it adds, 'mid_block"):
            check_range(base, [donor])
