"""Adapters as trainers and user interfaces leave them: read, or refused in one line when they are opened."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmark.adapters.lora import Lora, add_lora
from benchmark.errors import InputError
from benchmark.pipelines.loading import load_pipeline
from merger.checkpoints.adapter import LoraDonor, open_donor, open_lora
from merger.checkpoints.checkpoint import Checkpoint, open_checkpoint
from merger.checkpoints.compatibility import check_compatible, remarks
from merger.checkpoints.inspect import inspect_files
from merger.checkpoints.text_encoders import with_text_encoders
from merger.errors import CheckpointError

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT = "lora_unet_" + QUERY.replace(".", "_")
ORIGINAL = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
UP, DOWN = (torch.randn(shape, generator=torch.Generator().manual_seed(7)) for shape in ((8, 2), (2, 8)))
TEXT_UP, TEXT_DOWN = (torch.randn(shape, generator=torch.Generator().manual_seed(8)) for shape in ((16, 2), (2, 16)))
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tiny_family: dict[str, Path]) -> Checkpoint:
    return open_checkpoint(tiny_family["base"])


@pytest.fixture(scope="module")
def whole(base: Checkpoint) -> Checkpoint:
    """The base with its text encoder among what is blended."""
    return with_text_encoders(base)


def pair(module: str, up: torch.Tensor = UP, down: torch.Tensor = DOWN) -> Tensors:
    return {f"{module}.lora_up.weight": up.clone(), f"{module}.lora_down.weight": down.clone()}


def written(folder: Path, tensors: Tensors, name: str = "x.safetensors", **metadata: str) -> Path:
    save_file(tensors, folder / name, metadata=metadata)
    return folder / name


def added(donor: Checkpoint, name: str) -> torch.Tensor:
    assert isinstance(donor, LoraDonor) and donor.base is not None
    return donor.read(name) - donor.base.read(name).float()


PREFIXES = {  # what stands before the denoiser's and the text encoder's modules
    "ComfyUI": (f"diffusion_model.{ORIGINAL}", f"text_encoders.clip_l.transformer.{TEXT}"),
    "OneTrainer": (f"unet.{ORIGINAL}", f"clip_l.{TEXT}"),
    "compiled": (f"unet._orig_mod.{QUERY}", f"text_encoder._orig_mod.{TEXT}"),
    "compiled, kohya's": (
        FLAT.replace("unet_", "unet__orig_mod_"),
        "lora_te__orig_mod_" + TEXT.replace(".", "_"),
    ),
    "data-parallel": (f"module.{QUERY}", f"text_encoder.module.{TEXT}"),
    "without text_model": (f"unet.{QUERY}", f"text_encoder.{TEXT.removeprefix('text_model.')}"),
}


@pytest.mark.parametrize("style", PREFIXES)
def test_both_networks_are_found(style: str, base: Checkpoint, whole: Checkpoint, tmp_path: Path) -> None:
    module, text = PREFIXES[style]
    file = written(tmp_path, pair(module) | pair(text, TEXT_UP, TEXT_DOWN))
    torch.testing.assert_close(added(open_donor(file, base), f"{QUERY}.weight"), UP @ DOWN)
    donor = open_donor(file, whole)
    name = f"text_encoder.{TEXT.removeprefix('text_model.')}.weight"
    assert isinstance(donor, LoraDonor)
    assert set(donor.changes) == {f"{QUERY}.weight", name}
    torch.testing.assert_close(added(donor, name), TEXT_UP @ TEXT_DOWN)


def test_what_is_set_aside_is_said(base: Checkpoint, whole: Checkpoint, tmp_path: Path) -> None:
    embeddings = {"bundle_emb.mine.string_to_param.*": torch.ones(2, 16), "bundle_emb.mine.clip_l": torch.ones(2, 16)}
    projection = pair("text_encoders.clip_l.transformer.text_projection", TEXT_UP, TEXT_DOWN)
    text = pair(f"text_encoders.clip_l.transformer.{TEXT}", TEXT_UP, TEXT_DOWN)
    file = written(tmp_path, pair(FLAT) | text | embeddings | projection)
    lines = remarks([donor := open_donor(file, base)], check_compatible(base, [donor]))
    assert lines == [
        "x: the blend leaves out its embeddings (2 tensors, 'bundle_emb')",
        "x: the blend leaves out what it has for text encoders (4 tensors), which stay the base's",
    ]
    lines = remarks([donor := open_donor(file, whole)], check_compatible(whole, [donor]))
    assert lines == [
        "x: the blend leaves out its embeddings (2 tensors, 'bundle_emb')",
        "x: the blend leaves out 'text_encoders.clip_l.transformer.text_projection', which the base's network does not "
        "use",
    ]


def test_a_folder_of_peft(base: Checkpoint, tmp_path: Path) -> None:
    module = f"base_model.model.{QUERY}"
    tensors = {f"{module}.lora_A.weight": DOWN.clone(), f"{module}.lora_B.weight": UP.clone()}
    file = written(tmp_path, tensors, "adapter_model.safetensors")
    (line,) = remarks([donor := open_donor(tmp_path, base, name="x")], check_compatible(base, [donor]))
    assert line.startswith("x: was written by PEFT, but its adapter_config.json")
    plain = donor.sha256
    settings: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"to_k": 1}}
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(settings))
    for source in (tmp_path, file):  # a folder, or the file in it
        donor = open_donor(source, base)
        assert remarks([donor], {}) == []
        torch.testing.assert_close(added(donor, f"{QUERY}.weight"), 2 * (UP @ DOWN))
    assert open_donor(tmp_path, base).name == tmp_path.name
    assert donor.sha256 != plain  # the settings decide what the adapter adds
    config.write_text(json.dumps(settings | {"alpha_pattern": {r".*attn1\.to_q": 1}}))
    torch.testing.assert_close(added(open_donor(file, base), f"{QUERY}.weight"), UP @ DOWN / 2)
    config.write_text(json.dumps(settings | {"r": 4}))
    with pytest.raises(CheckpointError, match="rank 4, but its weights have rank 2"):
        open_donor(file, base)
    config.write_text(json.dumps(settings | {"peft_type": "IA3"}))
    with pytest.raises(CheckpointError, match="is of PEFT's type 'IA3', which is not read here"):
        open_donor(tmp_path, base)


REFUSED: dict[str, tuple[Tensors, str]] = {
    "two spellings": (pair(FLAT) | pair(f"unet.{QUERY}"), f"'{FLAT}' and 'unet.{QUERY}' change the same tensor"),
    "original and diffusers": (pair(FLAT) | pair(f"diffusion_model.{ORIGINAL}"), "change the same tensor"),
    "two factors": (
        pair(f"unet.{QUERY}") | {f"unet.{QUERY}.lora_A.weight": DOWN.clone()},
        f"'unet.{QUERY}.lora_(A|down).weight' and 'unet.{QUERY}.lora_(A|down).weight' change the same tensor",
    ),
    "two kinds": (pair(FLAT) | {f"{FLAT}.diff": torch.ones(8, 8)}, "has 'down' beside 'diff'"),
    "whole differences": ({f"{FLAT}.diff": torch.ones(8, 8)}, "holds whole differences only"),
    "two text spellings": (
        pair(FLAT)
        | pair(f"text_encoder.{TEXT}", TEXT_UP, TEXT_DOWN)
        | pair("lora_te_" + TEXT.replace(".", "_"), TEXT_UP, TEXT_DOWN),
        "change the same tensor",
    ),
    "NaN factor": (
        pair(FLAT, UP.clone().index_fill(0, torch.tensor([1]), float("nan"))),
        f"'{FLAT}.lora_up.weight' .*",
    ),
    "infinite alpha": (
        pair(FLAT) | {f"{FLAT}.alpha": torch.tensor(float("inf"))},
        f"'{FLAT}.alpha' holds 1 values of 1",
    ),
    "alpha of two": (pair(FLAT) | {f"{FLAT}.alpha": torch.ones(2)}, "and alpha is one number"),
    "no alpha": (pair(FLAT) | {f"{FLAT}.alpha": torch.ones(0)}, "and alpha is one number"),
    "rank 0": (pair(FLAT, torch.zeros(8, 0), torch.zeros(0, 8)), "has rank 0"),
    "scalars": (pair(FLAT, torch.tensor(1.0), torch.tensor(1.0)), "that make no change of a weight"),
    "another width": (pair(FLAT, UP, torch.ones(2, 20)), r"gives \[8, 20\] for a weight of \[8, 8\]"),
    "turned": (pair(FLAT, torch.ones(16, 2), torch.ones(2, 4)), r"gives \[16, 4\] for a weight of \[8, 8\]"),
    "vector": ({f"{FLAT}.hada_w1_a": UP.clone(), f"{FLAT}.hada_w1_b": torch.ones(2)}, "is incomplete"),
    "OFT": ({f"{FLAT}.oft_blocks": torch.ones(2, 4, 4)}, "not read here: OFT"),
    "BOFT": ({f"{FLAT}.boft_R": torch.ones(2, 4, 4)}, "not read here: BOFT"),
    "IA3": ({f"{FLAT}.weight": torch.ones(8), f"{FLAT}.on_input": torch.tensor(False)}, "not read here: IA3"),
    "GLoRA": ({f"{FLAT}.a1.weight": DOWN.clone(), f"{FLAT}.b1.weight": UP.clone()}, "not read here: GLoRA"),
    "first format": ({"unet:0:up": UP.clone(), "unet:0:down": DOWN.clone()}, "not read here: LoRA in the first format"),
    "int8": (pair(FLAT, UP.to(torch.int8)), "quantised adapters cannot be"),
    "embeddings alone": ({"bundle_emb.mine.clip_l": torch.ones(2, 16)}, "It cannot be a donor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_come_when_it_is_opened_and_everywhere(
    case: str, whole: Checkpoint, tmp_path: Path, tiny_family: dict[str, Path], tiny_pipeline_folder: Path
) -> None:
    tensors, message = REFUSED[case]
    file = written(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_donor(file, whole)
    assert "x.safetensors" in str(caught.value) and "\n" not in str(caught.value)
    if "text" not in case:
        assert not inspect_files([tiny_family["base"], file])["fit"]["ok"]
    pipeline = load_pipeline(tiny_family["base"], config=tiny_pipeline_folder)
    with pytest.raises(InputError, match=r"x\.safetensors") as refused:
        add_lora(pipeline, Lora(file))
    assert "\n" not in str(refused.value)


SPELLINGS = {
    "kohya": FLAT,
    "kohya, original": "lora_unet_" + ORIGINAL.replace(".", "_"),
    "diffusers": f"unet.{QUERY}",
    "PEFT": f"base_model.model.{QUERY}",
    "ComfyUI": f"diffusion_model.{ORIGINAL}",
    "LyCORIS": "lycoris_" + QUERY.replace(".", "_"),
    "compiled": f"unet._orig_mod.{QUERY}",
}


@pytest.mark.parametrize(("one", "other"), [*itertools.combinations(SPELLINGS, 2)])
def test_no_two_spellings_count_together(one: str, other: str, base: Checkpoint, tmp_path: Path) -> None:
    """Each alone is read."""
    for spelling in (one, other):
        donor = open_donor(written(tmp_path, pair(SPELLINGS[spelling])), base)
        torch.testing.assert_close(added(donor, f"{QUERY}.weight"), UP @ DOWN, rtol=1e-4, atol=1e-5)
    file = written(tmp_path, pair(SPELLINGS[one]) | pair(SPELLINGS[other], UP * 2))
    with pytest.raises(CheckpointError, match=r"change the same tensor|are one tensor under two keys"):
        open_donor(file, base)


def test_a_change_beyond_float32_is_refused(base: Checkpoint, tmp_path: Path) -> None:
    donor = open_lora(written(tmp_path, pair(FLAT, UP * 1e30, DOWN * 1e30)), base)
    with pytest.raises(CheckpointError, match=f"what it adds to '{QUERY}.weight' is beyond what float32 can hold"):
        donor.read(f"{QUERY}.weight")


def test_factors_of_flux_by_original_names_on_a_folder(tmp_path: Path, denoiser_config: Any) -> None:
    """kohya's and XLabs' Flux adapters change `qkv` and `linear1`, which diffusers keeps in three and four parts."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        config = {key: value for key, value in denoiser_config("flux").items() if not key.startswith("_")}
        network: Any = diffusers.FluxTransformer2DModel(**config)
    network.save_pretrained(tmp_path / "model" / "transformer")
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    base = open_checkpoint(tmp_path / "model")
    width = base.denoiser["transformer_blocks.0.attn.to_q.weight"].shape[0]
    mlp = base.denoiser["single_transformer_blocks.0.proj_mlp.weight"].shape[0]
    noise = torch.Generator().manual_seed(5)
    up, one_up, half_up = (torch.randn(rows, 2, generator=noise) for rows in (3 * width, 3 * width + mlp, 2 * width))
    down = torch.randn(2, width, generator=noise)
    stems = ("lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_1_linear1")
    last = "lora_unet_final_layer_adaLN_modulation_1"
    file = written(tmp_path, pair(stems[0], up, down) | pair(stems[1], one_up, down) | pair(last, half_up, down))
    donor = open_donor(file, base)
    names = [f"transformer_blocks.0.attn.to_{letter}.weight" for letter in "qkv"]
    torch.testing.assert_close(torch.cat([added(donor, name) for name in names]), up @ down)
    names = [f"single_transformer_blocks.1.attn.to_{letter}.weight" for letter in "qkv"]
    names.append("single_transformer_blocks.1.proj_mlp.weight")
    torch.testing.assert_close(torch.cat([added(donor, name) for name in names]), one_up @ down)
    shift, scale = (half_up @ down).chunk(2)
    torch.testing.assert_close(added(donor, "norm_out.linear.weight"), torch.cat([scale, shift]))
    xlabs = {
        f"double_blocks.0.processor.qkv_lora1.{part}.weight": tensor for part, tensor in (("up", up), ("down", down))
    } | {
        f"single_blocks.1.processor.qkv_lora.{part}.weight": tensor.clone()
        for part, tensor in (("up", one_up[: 3 * width]), ("down", down))
    }
    donor = open_donor(written(tmp_path, xlabs), base)
    torch.testing.assert_close(torch.cat([added(donor, name) for name in names[:3]]), one_up[: 3 * width] @ down)
    separate = pair("transformer.double_blocks.0.img_attn.qkv.1", up[:width].contiguous(), down)  # OneTrainer's
    donor = open_donor(written(tmp_path, separate), base)
    torch.testing.assert_close(added(donor, "transformer_blocks.0.attn.to_k.weight"), up[:width] @ down)
    doubled = pair(stems[0], up, down) | pair(
        "transformer.transformer_blocks.0.attn.to_k", up[:width].contiguous(), down
    )
    with pytest.raises(CheckpointError, match="change the same tensor"):
        open_donor(written(tmp_path, doubled), base)
    pipeline = type("Pipeline", (), {"transformer": network.requires_grad_(False)})()
    before = base.read("transformer_blocks.0.attn.to_v.weight").clone()
    assert add_lora(pipeline, Lora(written(tmp_path, pair(stems[0], up, down)))) == 3
    torch.testing.assert_close(
        network.transformer_blocks[0].attn.to_v.weight - before, (up @ down)[2 * width :], atol=1e-5, rtol=1e-4
    )
