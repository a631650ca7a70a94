"""PEFT's settings beside an adapter: read as PEFT reads them, or refused in one line."""

from __future__ import annotations

import copy
import json
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmark.adapters.lora import Lora, add_lora
from benchmark.adapters.peft_config import PeftSettings, adapter_file, config_beside, read_config, settings_in
from benchmark.adapters.peft_patterns import Patterns
from benchmark.errors import InputError


def written(folder: Path, **settings: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8} | settings))
    return file


@pytest.mark.parametrize(
    ("settings", "module", "rank", "scale"),
    [
        ({"lora_alpha": 16}, "a.to_q", 4, 4.0),
        ({"lora_alpha": 1}, "a.to_q", 4, 0.25),
        ({"use_rslora": True}, "a.to_q", 4, 4.0),
        ({"alpha_pattern": {"to_q": 1}}, "a.to_q", 4, 0.25),
        ({"alpha_pattern": {"to_q": 1}}, "a.not_to_q", 4, 2.0),  # a pattern follows a dot, or begins the path
        ({"alpha_pattern": {"to_q": 1}}, "a.to_q.b", 4, 2.0),  # and ends it
        ({"alpha_pattern": {r"up.*\.to_(q|k)": 1}}, "up.0.attn.to_k", 4, 0.25),
        ({"alpha_pattern": {"^to_q": 1}}, "a.to_q", 4, 2.0),
        ({"alpha_pattern": {"to_q": 1, "a.to_q": 2}}, "a.to_q", 4, 0.25),  # the first that matches
        ({"rank_pattern": {"to_q": 2}}, "a.to_q", 2, 4.0),
        ({"fan_in_fan_out": True}, "a.to_q", 4, 2.0),
        ({"peft_type": "LOKR", "alpha": 12}, "a.to_q", None, 3.0),
        ({"peft_type": "LOHA"}, "a.to_q", 4, 2.0),
    ],
)
def test_the_factor_of_a_module(
    settings: dict[str, Any], module: str, rank: int | None, scale: float, tmp_path: Path
) -> None:
    assert read_config(written(tmp_path, **settings)).scale(module, rank) == pytest.approx(scale)


def test_patterns_match_as_in_peft() -> None:
    other = pytest.importorskip("peft.utils.other")
    patterns = {"to_q": 1.0, r"down.*\.to_k": 2.0, "^mid.to_v": 3.0, "0": 4.0, "to_out.0": 5.0}
    settings = PeftSettings("x", 9.0, 1, alphas=Patterns(patterns))
    for module in ("to_q", "a.to_q", "ato_q", "down.1.to_k", "mid.to_v", "x.mid.to_v", "a.to_out.0", "to_out10", "b"):
        wanted = patterns.get(other.get_pattern_key(patterns.keys(), module), 9.0)
        assert settings.scale(module, 1) == wanted, module


MODULES = [f"up_blocks.{n}.attentions.1.transformer_blocks.0.attn{n % 2}.to_{x}" for n in range(200) for x in "qkvo"]


def test_a_pattern_for_each_module_takes_no_time() -> None:
    began = time.process_time()
    patterns = Patterns({module: number for number, module in enumerate(MODULES)})
    assert [patterns.of(module, None) for module in MODULES] == [*range(len(MODULES))]
    people = Patterns(
        {r"(down|up)_blocks\.\d+\.attentions\.\d+\.transformer_blocks\.\d+\.attn\d+\.to_q": 1, ".*attn.*": 2}
    )
    assert [people.of(module, None) for module in MODULES[:2]] == [1, 2]
    assert time.process_time() - began < 2


def test_patterns_that_take_long_are_given_up() -> None:
    patterns = Patterns({f".*.*.*.*{number}!": 1 for number in range(1000)}, "x")
    began = time.process_time()
    with pytest.raises(InputError, match="x has patterns that take too long to match"):
        for module in MODULES:
            patterns.of(module, None)
    assert time.process_time() - began < 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "is of PEFT's type 'IA3', which is not read here"),
        ({"peft_type": ["LORA"]}, "which is not read here"),
        ({"init_lora_weights": "pissa_niter_4"}, "which changes the base's weights too"),
        ({"layer_replication": [[0, 2]]}, "sets 'layer_replication'"),
        ({"lora_alpha": "8"}, "an alpha must be a number"),
        ({"lora_alpha": float("nan")}, "an alpha must be a number"),
        ({"r": 0}, "a rank must be a whole number above 0"),
        ({"alpha_pattern": ["to_q"]}, "must be a table of patterns"),
        ({"alpha_pattern": {"(": 1}}, "which is no pattern"),
        ({"alpha_pattern": {"(?i)to_q": 1}}, "which is no pattern"),  # PEFT puts it behind something else
        ({"alpha_pattern": {"(?P<a>x)(?P=b)": 1}}, "which is no pattern"),
        ({"alpha_pattern": {"(.*)*x": 1}}, "could take very long to match: no group may be repeated"),
        ({"alpha_pattern": {"x?" * 40 + "x" * 40: 1}}, "at most 4 of"),
        ({"rank_pattern": {".*" * 30 + "!": 4}}, "at most 4 of"),
        ({"rank_pattern": {"x" * 5000: 4}}, "a pattern of 5000 characters"),
        ({"rank_pattern": {f"to_{number}": 4 for number in range(20_000)}}, "has 20000 patterns"),
        ({"rank_pattern": {"to_q": 1.5}}, "a rank must be a whole number"),
    ],
)
def test_settings_that_cannot_be_followed(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_config(written(tmp_path, **settings))
    assert "\n" not in str(caught.value)


def test_damaged_files_and_other_ranks(tmp_path: Path) -> None:
    file = tmp_path / "adapter_config.json"
    for text in ("[" * 100_000, "[]", "{", '{"r": ' + "9" * 5000 + "}", ""):
        file.write_text(text)
        with pytest.raises(InputError, match=r"adapter_config.json: (cannot be read|holds no settings)"):
            read_config(file)
    with pytest.raises(InputError, match="gives 'to_q' rank 4, but its weights have rank 8"):
        read_config(written(tmp_path)).scale("to_q", 8)


def test_whose_settings_they_are(tmp_path: Path) -> None:
    config = written(tmp_path)
    peft = ["base_model.model.a.lora_A.weight"]
    assert config_beside(tmp_path / "adapter_model.safetensors", ["a.lora_A.weight"]) == config
    assert config_beside(tmp_path / "style.safetensors", peft) == config
    assert config_beside(tmp_path / "style.safetensors", ["lora_unet_a.lora_up.weight"]) is None
    assert adapter_file(tmp_path) == tmp_path
    (tmp_path / "adapter_model.safetensors").touch()
    assert adapter_file(tmp_path) == tmp_path / "adapter_model.safetensors"
    assert settings_in({"lora_adapter_metadata": "[" * 100_000}, ("",), "x") is None


class Small(torch.nn.Module):
    """Shaped as PEFT meets a U-Net: linear layers and a convolution by dotted names."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = torch.nn.ModuleDict({"to_q": torch.nn.Linear(6, 8), "to_k": torch.nn.Linear(6, 8, bias=False)})
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attn["to_q"](x) + self.attn["to_k"](x)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("LoraConfig", {"lora_alpha": 3}),
        ("LoraConfig", {"lora_alpha": 3, "use_rslora": True}),
        ("LoraConfig", {"lora_alpha": 3, "alpha_pattern": {"to_k": 7}, "rank_pattern": {"conv": 1, ".*to_q": 3}}),
        ("LoraConfig", {"lora_alpha": 3, "use_dora": True}),
        ("LoraConfig", {"lora_alpha": 3, "lora_bias": True, "target_modules": ["to_q", "conv"]}),
        ("LoHaConfig", {"alpha": 3, "alpha_pattern": {"conv": 1}}),
        ("LoKrConfig", {"alpha": 3}),
        ("LoKrConfig", {"alpha": 3, "r": 8}),  # whole matrices, which PEFT scales too
    ],
)
def test_a_saved_adapter_adds_what_peft_merges(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    targets = {"r": 2, "target_modules": ["to_q", "to_k", "conv"]}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        plain = Small().requires_grad_(False)
        adapted = peft.get_peft_model(copy.deepcopy(plain), getattr(peft, kind)(**targets | settings))
        with torch.no_grad():
            for name, tensor in adapted.named_parameters():
                if tensor.requires_grad and "magnitude" not in name:
                    tensor.copy_(torch.randn(tensor.shape) / 2)
        adapted.save_pretrained(str(tmp_path))
        merged = adapted.merge_and_unload().state_dict()
    pipeline = type("Pipeline", (), {"unet": plain})()
    assert "lora_bias" in settings or len(load_file(tmp_path / "adapter_model.safetensors")) > 5
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    add_lora(pipeline, Lora(tmp_path))
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(tensor, merged[name], rtol=1e-4, atol=1e-5, msg=name)
    assert any(not torch.equal(before[name], tensor) for name, tensor in plain.state_dict().items())


def test_an_adapter_of_peft_without_its_settings_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stem = "base_model.model.attn.to_q"
    tensors = {f"{stem}.lora_A.weight": torch.ones(2, 6), f"{stem}.lora_B.weight": torch.ones(8, 2)}
    save_file(tensors, tmp_path / "silent.safetensors")
    pipeline = type("Pipeline", (), {"unet": Small().requires_grad_(False)})()
    assert add_lora(pipeline, Lora(tmp_path / "silent.safetensors")) == 1
    assert "silent.safetensors: was written by PEFT, but its adapter_config.json" in capsys.readouterr().err
