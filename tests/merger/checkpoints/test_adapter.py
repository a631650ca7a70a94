"""Adapters as donors: every style of keys finds its tensors, and the change is what diffusers itself would fuse."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merger.checkpoints.adapter import LoraDonor, open_donor, open_lora
from merger.checkpoints.checkpoint import Checkpoint, open_checkpoint
from merger.checkpoints.compatibility import check_compatible, remarks
from merger.checkpoints.inspect import format_inspection, inspect_files
from merger.checkpoints.names.transformer import network_shapes
from merger.checkpoints.names.unet import DENOISER_PREFIX
from merger.errors import CheckpointError
from merger.export.recipe import Recipe
from merger.export.write import export, verify

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
CONV = "up_blocks.1.resnets.0.conv1"
MODULES = (QUERY, OUT, CONV)
ORIGINAL = {
    QUERY: "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    OUT: "middle_block.1.transformer_blocks.0.attn2.to_out.0",
    CONV: "output_blocks.3.0.in_layers.2",
}
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
RANK = 2


@pytest.fixture(scope="module")
def base(tiny_family: dict[str, Path]) -> Checkpoint:
    return open_checkpoint(tiny_family["base"])


@pytest.fixture(scope="module")
def factors(base: Checkpoint) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """{module: (up, down)}."""
    source = torch.Generator().manual_seed(5)
    made = {}
    for module in MODULES:
        shape = base.denoiser[f"{module}.weight"].shape
        tail = (1,) * (len(shape) - 2)
        up = torch.randn(shape[0], RANK, *tail, generator=source)
        made[module] = (up, torch.randn(RANK, *shape[1:], generator=source) / 4)
    return made


Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


def wanted(base: Checkpoint, factors: Factors, scale: float) -> dict[str, torch.Tensor]:
    """The adapted weights, in float64."""
    return {
        f"{module}.weight": base.read(f"{module}.weight").double()
        + scale * (up.double().flatten(1) @ down.double().flatten(1)).reshape(base.denoiser[f"{module}.weight"].shape)
        for module, (up, down) in factors.items()
    }


def kohya(factors: Factors, alpha: float, rename: Callable[[str], str] = lambda module: module) -> dict[str, Any]:
    tensors = {}
    for module, (up, down) in factors.items():
        flat = "lora_unet_" + rename(module).replace(".", "_")
        tensors |= {
            f"{flat}.lora_up.weight": up,
            f"{flat}.lora_down.weight": down,
            f"{flat}.alpha": torch.tensor(alpha),
        }
    return tensors


def peft(factors: Factors, prefix: str, names: tuple[str, str] = ("lora_B.weight", "lora_A.weight")) -> dict[str, Any]:
    return {
        f"{prefix}{module}.{name}": tensor
        for module, pair in factors.items()
        for name, tensor in zip(names, pair, strict=True)
    }


STYLES: dict[str, tuple[Callable[[Factors], dict[str, Any]], float]] = {
    "kohya": (lambda factors: kohya(factors, 1.0), 1 / RANK),
    "kohya-original": (lambda factors: kohya(factors, 4.0, ORIGINAL.__getitem__), 4 / RANK),
    "peft": (lambda factors: peft(factors, "base_model.model."), 1.0),
    "diffusers": (lambda factors: peft(factors, "unet."), 1.0),
    "diffusers-bare": (lambda factors: peft(factors, ""), 1.0),
    "diffusers-old": (lambda factors: peft(factors, "unet.", ("lora.up.weight", "lora.down.weight")), 1.0),
}


@pytest.mark.parametrize("style", STYLES)
def test_every_style_of_keys_finds_its_tensors(style: str, base: Checkpoint, factors: Factors, tmp_path: Path) -> None:
    write, scale = STYLES[style]
    save_file(write(factors), tmp_path / "style.safetensors")
    donor = open_donor(tmp_path / "style.safetensors", base)
    assert (donor.name, donor.layout, donor.family) == ("style", "lora", "sd1")
    assert check_compatible(base, [donor]) == {}
    changed = wanted(base, factors, scale)
    for name in base.denoiser:
        found = donor.read(name)
        if name in changed:
            assert found.dtype == donor.denoiser[name].dtype == torch.float32
            torch.testing.assert_close(found.double(), changed[name], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(found, base.read(name))


def test_attention_processors_of_old_files(base: Checkpoint, factors: Factors, tmp_path: Path) -> None:
    tensors = {}
    for module in (QUERY, OUT):
        owner, _, part = module.removesuffix(".0").rpartition(".")
        for which, tensor in zip(("up", "down"), factors[module], strict=True):
            tensors[f"unet.{owner}.processor.{part}_lora.{which}.weight"] = tensor
    save_file(tensors, tmp_path / "x.safetensors")
    donor = open_lora(tmp_path / "x.safetensors", base)
    changed = wanted(base, {module: factors[module] for module in (QUERY, OUT)}, 1.0)
    assert set(donor.changes) == set(changed)
    for name, tensor in changed.items():
        torch.testing.assert_close(donor.read(name).double(), tensor, rtol=1e-5, atol=1e-6)


def test_alpha_may_stand_in_the_metadata(base: Checkpoint, factors: Factors, tmp_path: Path) -> None:
    said = {"unet.lora_alpha": 6, "unet.r": RANK, "unet.alpha_pattern": {"to_out.0": 1}}
    save_file(peft(factors, "unet."), tmp_path / "x.safetensors", metadata={"lora_adapter_metadata": json.dumps(said)})
    donor = open_lora(tmp_path / "x.safetensors", base)
    for module, scale in ((QUERY, 6 / RANK), (OUT, 1 / RANK)):
        name = f"{module}.weight"
        torch.testing.assert_close(donor.read(name).double(), wanted(base, factors, scale)[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("style", ["kohya", "diffusers"])
def test_the_change_is_what_diffusers_fuses(
    style: str,
    base: Checkpoint,
    factors: Factors,
    tiny_family: dict[str, Path],
    tiny_pipeline_folder: Path,
    tmp_path: Path,
) -> None:
    pytest.importorskip("peft")
    from benchmark.pipelines.loading import load_pipeline

    tensors = STYLES[style][0](factors)
    save_file(tensors, tmp_path / "lora.safetensors")
    donor = open_lora(tmp_path / "lora.safetensors", base)
    pipeline = load_pipeline(tiny_family["base"], config=tiny_pipeline_folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
        pipeline.fuse_lora(components=["unet"])
    fused = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in pipeline.unet.state_dict().items()
        if ".lora_" not in name
    }
    assert fused.keys() == base.denoiser.keys()
    for name, tensor in fused.items():
        torch.testing.assert_close(donor.read(name).float(), tensor, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(fused[name], base.read(name).float()) for name in donor.changes)


def test_other_kinds_and_biases_reach_their_tensors(base: Checkpoint, tmp_path: Path) -> None:
    shape = base.denoiser[f"{QUERY}.weight"].shape
    flat = "lora_unet_" + QUERY.replace(".", "_")
    conv = "lora_unet_" + CONV.replace(".", "_")
    weight = base.read(f"{QUERY}.weight").float()
    save_file(
        {
            f"{flat}.lokr_w1": torch.tensor([[2.0]]),
            f"{flat}.lokr_w2": torch.ones(shape),
            f"{flat}.dora_scale": torch.ones(shape[0], 1),
            f"{conv}.diff_b": torch.full(base.denoiser[f"{CONV}.bias"].shape, 0.5),
        },
        tmp_path / "x.safetensors",
    )
    donor = open_lora(tmp_path / "x.safetensors", base)
    assert set(donor.changes) == {f"{QUERY}.weight", f"{CONV}.bias"}
    whole = weight + 2
    torch.testing.assert_close(donor.read(f"{QUERY}.weight"), whole / whole.norm(dim=1, keepdim=True))
    torch.testing.assert_close(donor.read(f"{CONV}.bias"), base.read(f"{CONV}.bias").float() + 0.5)


def test_a_cut_tensor_is_changed_as_a_whole_and_cut(tmp_path: Path, denoiser_config: Any) -> None:
    """A LoRA on the original `qkv` of a file in the original layout."""
    shapes = network_shapes(denoiser_config("zimage"), "zimage")
    source = torch.Generator().manual_seed(2)
    tensors = {}
    for name, shape in shapes.items():
        for theirs, ours in ((".to_q.", ".qkv."), (".to_out.0.", ".out."), ("all_final_layer.2-1.", "final_layer.")):
            name = name.replace(theirs, ours)
        name = name.replace("all_x_embedder.2-1.", "x_embedder.")
        if ".to_k." not in name and ".to_v." not in name:
            size = (3 * shape[0], *shape[1:]) if ".qkv." in name else shape
            tensors[f"{DENOISER_PREFIX}{name}"] = torch.randn(size, generator=source)
    save_file(tensors, tmp_path / "base.safetensors")
    base = open_checkpoint(tmp_path / "base.safetensors")
    fused = tensors[f"{DENOISER_PREFIX}layers.0.attention.qkv.weight"]
    up, down = torch.randn(fused.shape[0], RANK), torch.randn(RANK, fused.shape[1])
    module = "diffusion_model.layers.0.attention.qkv"
    save_file({f"{module}.lora_B.weight": up, f"{module}.lora_A.weight": down}, tmp_path / "lora.safetensors")
    donor = open_lora(tmp_path / "lora.safetensors", base)
    parts = [f"layers.0.attention.to_{letter}.weight" for letter in "qkv"]
    assert set(donor.changes) == set(parts)
    torch.testing.assert_close(torch.cat([donor.read(part) for part in parts]), fused + up @ down)


def test_a_blend_with_a_lora_is_exported_and_verified(base: Checkpoint, factors: Factors, tmp_path: Path) -> None:
    save_file(kohya(factors, 1.0) | {f"{TEXT}.lora_up.weight": torch.zeros(1)}, tmp_path / "style.safetensors")
    donor = open_donor(tmp_path / "style.safetensors", base)
    recipe = Recipe.of(base, [donor], "block", {"IN01": {"style": 0.5}, "M00": {"style": 1.0}})
    file = export(recipe, tmp_path / "blend.safetensors", base=base, donors=[donor])
    assert verify(file).ok
    written = open_checkpoint(file)
    half, whole = (wanted(base, factors, scale) for scale in (0.25, 0.5))
    for name, tensor in ((f"{QUERY}.weight", half), (f"{OUT}.weight", whole)):
        torch.testing.assert_close(written.read(name).double(), tensor[name], rtol=1e-3, atol=1e-3)
    assert torch.equal(written.read(f"{CONV}.weight"), base.read(f"{CONV}.weight"))


def test_text_encoder_parts_are_said(base: Checkpoint, factors: Factors, tmp_path: Path) -> None:
    text = {f"{TEXT}.{part}": torch.zeros(1) for part in ("lora_up.weight", "lora_down.weight", "alpha")}
    save_file(kohya(factors, 1.0) | text, tmp_path / "style.safetensors")
    donor = open_lora(tmp_path / "style.safetensors", base)
    assert isinstance(donor, LoraDonor)
    (line,) = remarks([donor], check_compatible(base, [donor]))
    assert line == ("style: the blend leaves out what it has for text encoders (3 tensors), which stay the base's")
    found = inspect_files([base.path, tmp_path / "style.safetensors"])
    assert found["fit"]["ok"]
    assert "changes 3 tensors of the base's denoiser; 3 tensors for text encoders are left out" in format_inspection(
        found
    )
    save_file(text, tmp_path / "text.safetensors")
    with pytest.raises(CheckpointError, match="changes text encoders only"):
        open_lora(tmp_path / "text.safetensors", base)


def test_what_does_not_belong_is_named(base: Checkpoint, factors: Factors, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file(kohya(factors, 1.0) | {"lora_unet_x.mystery": torch.zeros(1)}, file)
    with pytest.raises(
        CheckpointError, match=r"'lora_unet_x.mystery' is no key of a LoRA that is known here \(1 such\)"
    ):
        open_lora(file, base)
    save_file(kohya(factors, 1.0) | {"lora_unet_joint_blocks_0_x.lora_up.weight": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match=r"no place for 'lora_unet_joint_blocks_0_x' \(1 of 4 modules\)"):
        open_lora(file, base)
    assert "no place for" in inspect_files([base.path, file])["fit"]["problem"]
    up, down = factors[QUERY]
    save_file(kohya({QUERY: (up, down[:, :-1].contiguous())}, 1.0), file)
    with pytest.raises(CheckpointError, match=rf"what it has for '{QUERY}.weight' gives"):
        open_lora(file, base).read(f"{QUERY}.weight")


def test_a_lora_is_no_base_and_a_vae_no_donor(base: Checkpoint, factors: Factors, tmp_path: Path) -> None:
    save_file(kohya(factors, 1.0), tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=r"is a LoRA \(it goes among the donors\). There is no denoiser in it."):
        open_checkpoint(tmp_path / "lora.safetensors")
    vae = {key: tensor for key, tensor in load_file(base.path).items() if key.startswith("first_stage_model.")}
    save_file(vae, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match=r"is a VAE alone. There is no denoiser in it. It cannot be a donor."):
        open_donor(tmp_path / "vae.safetensors", base)
    found = inspect_files([tmp_path / "vae.safetensors"])
    assert found["files"][0]["kind"] == "vae"
    assert "a VAE alone" in format_inspection(found)


def test_a_folder_of_an_adapter(base: Checkpoint, factors: Factors, tmp_path: Path) -> None:
    save_file(peft(factors, "unet."), tmp_path / "pytorch_lora_weights.safetensors")
    assert len(open_donor(tmp_path, base, name="x").denoiser) == len(base.denoiser)
