"""Adapters on a loaded pipeline: every kind and spelling adds what its formula says, or nothing is changed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmark.adapters.keys import text_module
from benchmark.adapters.lora import Lora, add_lora
from benchmark.errors import InputError
from benchmark.pipelines.loading import load_pipeline

FLAT = "lora_unet_down_blocks_0_to_q"


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.conv = torch.nn.Linear(4, 6), torch.nn.Conv2d(3, 5, 3)


def pipeline() -> SimpleNamespace:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        unet, text = torch.nn.ModuleDict({"down_blocks": torch.nn.ModuleList([Block()])}), Block()
    return SimpleNamespace(unet=unet.requires_grad_(False), text_encoder=text.requires_grad_(False))


def written(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


def test_a_lora_in_either_spelling_adds_up_times_down(tmp_path: Path) -> None:
    noise = torch.Generator().manual_seed(2)
    down, up = torch.randn(2, 4, generator=noise), torch.randn(6, 2, generator=noise)
    conv_down, conv_up = torch.randn(2, 3, 3, 3, generator=noise), torch.randn(5, 2, 1, 1, generator=noise)
    kohya = {
        "lora_unet_down_blocks_0_to_q.lora_down.weight": down,
        "lora_unet_down_blocks_0_to_q.lora_up.weight": up,
        "lora_unet_down_blocks_0_to_q.alpha": torch.tensor(1.0),
        "lora_te_text_model_conv.lora_down.weight": conv_down,
        "lora_te_text_model_conv.lora_up.weight": conv_up,
    }
    plain, changed = pipeline(), pipeline()
    assert add_lora(changed, Lora(written(tmp_path, kohya), 0.5)) == 2
    before, after = plain.unet["down_blocks"][0], changed.unet["down_blocks"][0]
    for i in range(6):
        for j in range(4):  # alpha / rank = 1/2, scale 1/2
            add = 0.25 * sum(float(up[i, r] * down[r, j]) for r in range(2))
            assert float(after.to_q.weight[i, j]) == pytest.approx(float(before.to_q.weight[i, j]) + add, abs=1e-6)
    convolved = 0.5 * torch.einsum("or,rikl->oikl", conv_up[:, :, 0, 0], conv_down)
    assert torch.allclose(changed.text_encoder.conv.weight, plain.text_encoder.conv.weight + convolved, atol=1e-6)
    assert torch.equal(after.conv.weight, before.conv.weight)
    dotted = {"unet.down_blocks.0.to_q.lora_A.weight": down, "unet.down_blocks.0.to_q.lora_B.weight": up / 2}
    other = pipeline()
    add_lora(other, Lora(written(tmp_path, dotted), 0.5))
    assert torch.allclose(other.unet["down_blocks"][0].to_q.weight, after.to_q.weight, atol=1e-6)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"unet.up.0.lora_A.weight": (2, 4), "unet.up.0.lora_B.weight": (6, 2)},
            "'unet.up.0', which this model has not",
        ),
        ({"unet.down_blocks.0.to_q.lora_A.weight": (2, 4)}, "has only down"),
        ({"lora_unet_down_blocks_0_to_q.mystery": (2, 4)}, "is no key of a LoRA that is known here"),
        (
            {"unet.down_blocks.0.to_q.lora_A.weight": (2, 5), "unet.down_blocks.0.to_q.lora_B.weight": (6, 2)},
            r"gives \[6, 5\] for a weight of \[6, 4\]. Is it of this family",
        ),
        ({"lora_te2_to_q.lora_down.weight": (2, 4)}, "'lora_te2_to_q', which this model has not"),
        ({"lora_te_to_q.mystery": (2, 4)}, "is no key of a LoRA"),
    ],
)
def test_a_lora_that_does_not_fit_changes_nothing(
    tmp_path: Path, tensors: dict[str, tuple[int, ...]], message: str
) -> None:
    whole = {"text_encoder.to_q.lora_A.weight": torch.ones(1, 4), "text_encoder.to_q.lora_B.weight": torch.ones(6, 1)}
    changed, plain = pipeline(), pipeline()
    with pytest.raises(InputError, match=message):
        add_lora(changed, Lora(written(tmp_path, {**whole, **{k: torch.ones(s) for k, s in tensors.items()}})))
    assert torch.equal(changed.text_encoder.to_q.weight, plain.text_encoder.to_q.weight)


def test_other_kinds_and_biases(tmp_path: Path) -> None:
    noise = torch.Generator().manual_seed(4)
    a, b, c, d = (torch.randn(size, generator=noise) for size in ((6, 2), (2, 4), (6, 2), (2, 4)))
    before = pipeline().unet["down_blocks"][0]
    hadamard = (a @ b) * (c @ d) / 2
    first, second = a[:3].contiguous(), b[:, :2].contiguous()
    whole = before.to_q.weight + a @ b
    kinds: dict[str, tuple[dict[str, torch.Tensor], torch.Tensor]] = {
        "LoHa": (
            {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": torch.tensor(1.0)},
            hadamard,
        ),
        "LoKr": ({"lokr_w1": first, "lokr_w2": second}, torch.kron(first, second)),
        "DoRA": (
            {"lora_up.weight": a, "lora_down.weight": b, "dora_scale": torch.ones(6, 1)},
            whole / whole.norm(dim=1, keepdim=True) - before.to_q.weight,
        ),
    }
    for kind, (tensors, added) in kinds.items():
        changed = pipeline()
        file = written(tmp_path, {f"{FLAT}.{name}": tensor for name, tensor in tensors.items()})
        assert add_lora(changed, Lora(file, 0.5)) == 1
        now = changed.unet["down_blocks"][0].to_q.weight
        assert torch.allclose(now, before.to_q.weight + 0.5 * added, atol=1e-6), kind
    changed = pipeline()
    beside = {f"{FLAT}.diff": a @ b, f"{FLAT}.diff_b": torch.ones(6)}
    conv = FLAT.replace("to_q", "conv")
    factors = {f"{conv}.lora_up.weight": torch.zeros(5, 2, 1, 1), f"{conv}.lora_down.weight": torch.zeros(2, 3, 3, 3)}
    assert add_lora(changed, Lora(written(tmp_path, beside | factors))) == 3
    now = changed.unet["down_blocks"][0].to_q
    assert torch.allclose(now.weight, before.to_q.weight + a @ b, atol=1e-6)
    assert torch.equal(now.bias, before.to_q.bias + 1)
    with pytest.raises(InputError, match=r"lora\.safetensors: holds whole differences only"):  # as for a donor
        add_lora(pipeline(), Lora(written(tmp_path, beside)))


def test_alphas_in_the_metadata_are_each_networks_own(tmp_path: Path) -> None:
    up, down = torch.ones(6, 2), torch.ones(2, 4)
    tensors = {
        f"{network}to_q.lora_{part}.weight": tensor.clone()
        for network in ("unet.down_blocks.0.", "text_encoder.")
        for part, tensor in (("A", down), ("B", up))
    }
    said = {"unet.lora_alpha": 6, "text_encoder.lora_alpha": 1}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"lora_adapter_metadata": json.dumps(said)})
    changed, plain = pipeline(), pipeline()
    add_lora(changed, Lora(tmp_path / "x.safetensors"))
    drawn = changed.unet["down_blocks"][0].to_q.weight - plain.unet["down_blocks"][0].to_q.weight
    read = changed.text_encoder.to_q.weight - plain.text_encoder.to_q.weight
    assert torch.allclose(drawn, torch.full((6, 4), 6.0), atol=1e-5)
    assert torch.allclose(read, torch.full((6, 4), 1.0), atol=1e-5)


@pytest.mark.parametrize(
    ("module", "encoder", "path"),
    [
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", "text_encoder", "encoder_layers_0_mlp_fc1"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "text_encoder", "encoder_layers_0_mlp_fc1"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", "text_encoder_2", "encoder_layers_0_mlp_fc1"),
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", "text_encoder_2", "encoder_layers_0_mlp_fc1"),
        ("lycoris_text_model_encoder_layers_0_mlp_fc1", "text_encoder", "encoder_layers_0_mlp_fc1"),
        ("te2.encoder.layers.0.mlp.fc1", "text_encoder_2", "encoder_layers_0_mlp_fc1"),
        ("lora_prior_te_encoder", "", "lora_prior_te_encoder"),
    ],
)
def test_modules_of_text_encoders(module: str, encoder: str, path: str) -> None:
    assert text_module(module) == (encoder, path)


def test_original_names_and_text_encoders_of_a_whole_pipeline(
    tiny_family: dict[str, Path], tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    noise = torch.Generator().manual_seed(5)

    def load() -> Any:
        return load_pipeline(tiny_family["base"], config=tiny_pipeline_folder)

    plain, changed = load(), load()
    names = {  # as kohya writes them for SDXL -> the diffusers module
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q": (
            "unet",
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        "lora_unet_output_blocks_3_0_in_layers_2": ("unet", "up_blocks.1.resnets.0.conv1"),
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": ("text_encoder", "encoder.layers.0.self_attn.q_proj"),
    }

    def weight(owner: Any, part: str, path: str) -> torch.Tensor:
        network = getattr(owner, part)
        return next(value for name, value in network.named_parameters() if name.endswith(f"{path}.weight"))

    tensors, wanted = {}, {}
    for flat, place in names.items():
        before = weight(plain, *place)
        up = torch.randn(len(before), 2, *(1,) * (before.dim() - 2), generator=noise)
        down = torch.randn(2, *before.shape[1:], generator=noise)
        tensors |= {f"{flat}.lora_up.weight": up, f"{flat}.lora_down.weight": down}
        wanted[place] = before + (up.flatten(1) @ down.flatten(1)).reshape(before.shape)
    assert add_lora(changed, Lora(written(tmp_path, tensors))) == 3
    for place, tensor in wanted.items():
        assert torch.allclose(weight(changed, *place), tensor, atol=1e-5)
    same = [
        torch.equal(a, b)
        for part in ("unet", "text_encoder")
        for a, b in zip(getattr(plain, part).parameters(), getattr(changed, part).parameters(), strict=True)
    ]
    assert same.count(False) == 3
