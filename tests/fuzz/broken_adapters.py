"""Small adapters in the spellings that trainers and programs write, and what breaks in them: keys, parts, settings."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from merger.checkpoints.checkpoint import open_checkpoint
from tests.fuzz.broken_json import broken

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
SECOND = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
CONV = "mid_block.resnets.0.conv1"
TEXT = "text_model.encoder.layers.0.mlp.fc1"
CONFIG = "adapter_config.json"
SETTINGS: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "use_rslora": False,
    "alpha_pattern": {"attn2.to_v": 1},
    "rank_pattern": {r"mid_block\.resnets.*conv\d": 2},
    "init_lora_weights": True,
    "target_modules": ["to_q", "to_v", "conv1"],
    "layer_replication": None,
}
PATTERNS = (
    *("(", "[", "*", "a{99999}", "(a+)+$", "(.*)*x", "([a-z_]*)*!", "(.*.*.*.*.*)*!", ".*" * 30 + "!", "(?R)", "\\"),
    *("(?P<a>.)(?P=b)", "(x" * 200, "(" * 3000, "x" * 5000, "|" * 5000, "", "^to_q", "(?i)TO_Q", "(a|a)*" * 30 + "!"),
)


@dataclass(frozen=True)
class Adapter:
    """A sound adapter. base: the name of the checkpoint that it is for. config: PEFT's settings beside it, or none."""

    file: Path
    base: str
    config: Path | None = None

    @property
    def source(self) -> Path:
        """What a user names: the folder if there are settings in it."""
        return self.file.parent if self.config else self.file


def sound_adapters(folder: Path, files: Mapping[str, Path]) -> dict[str, Adapter]:
    """Adapters of `base` (SD 1) as kohya, PEFT and diffusers write them, of other kinds, and one of `sd3`, fused."""
    shapes = {
        name.removesuffix(".weight"): info.shape for name, info in open_checkpoint(files["base"]).denoiser.items()
    }
    shapes[TEXT] = (24, 12)
    opened = {
        key.removeprefix("model.diffusion_model."): info for key, info in open_checkpoint(files["sd3"]).tensors.items()
    }
    encoder = open_checkpoint(files["base"]).tensors[f"cond_stage_model.transformer.{TEXT}.weight"]
    shapes[TEXT] = encoder.shape
    kohya = {
        **_pair(f"lora_unet_{CONV.replace('.', '_')}", shapes[CONV], "lora_up", "lora_down", alpha=2.0),
        **_pair(f"lora_te_{TEXT.replace('.', '_')}", shapes[TEXT], "lora_up", "lora_down", alpha=1.0),
    }
    peft: dict[str, torch.Tensor] = {}
    diffusers: dict[str, torch.Tensor] = {}
    for module in (LINEAR, SECOND, CONV):
        peft |= _pair(f"base_model.model.{module}", shapes[module], "lora_B", "lora_A")
        diffusers |= _pair(f"unet.{module}", shapes[module], "lora_B", "lora_A")
    said = {"unet.r": 2, "unet.lora_alpha": 4, "unet.rank_pattern": {}, "unet.alpha_pattern": {"to_v": 2}}
    fused: dict[str, torch.Tensor] = {}
    for key in ("joint_blocks.0.x_block.attn.qkv", "joint_blocks.1.x_block.mlp.fc1"):
        fused |= _pair(f"diffusion_model.{key}", opened[f"{key}.weight"].shape, "lora_B", "lora_A", alpha=1.0)
    (folder / "peft").mkdir()
    (folder / "peft" / CONFIG).write_text(json.dumps(SETTINGS))
    written: dict[str, tuple[Path, dict[str, Tensor], dict[str, str], str]] = {
        "kohya": (folder / "kohya.safetensors", kohya, {"ss_network_dim": "2"}, "base"),
        "peft": (folder / "peft" / "adapter_model.safetensors", peft, {}, "base"),
        "diffusers": (folder / "lora.safetensors", diffusers, {"lora_adapter_metadata": json.dumps(said)}, "base"),
        "lycoris": (folder / "lycoris.safetensors", _lycoris(shapes), {}, "base"),
        "fused": (folder / "fused.safetensors", fused, {}, "sd3"),
    }
    for file, tensors, metadata, _ in written.values():
        save_file(tensors, file, metadata={"format": "pt", **metadata})
    return {
        name: Adapter(file, base, folder / "peft" / CONFIG if name == "peft" else None)
        for name, (file, _, _, base) in written.items()
    }


def broken_settings(seed: int) -> bytes:
    """An `adapter_config.json` with something changed; the patterns in it are broken as often as all the rest."""
    draw = random.Random(seed)
    settings = json.loads(json.dumps(SETTINGS))
    if draw.random() < 0.5:
        return broken(json.dumps(settings), draw)
    table = settings[draw.choice(("alpha_pattern", "rank_pattern"))]
    for _ in range(draw.choice((1, 1, 2, 2000))):
        pattern = draw.choice(PATTERNS) if len(table) < 3 else f"{draw.choice(PATTERNS[:3])}{len(table)}"
        table[pattern] = draw.choice((1, 2, 2, 4, 0, -1, 1e300, None, "2", [2], True))
    return json.dumps(settings).encode()


def _pair(module: str, shape: tuple[int, ...], up: str, down: str, alpha: float | None = None) -> dict[str, Tensor]:
    """Factors of rank 2 for a matrix or a convolution of this shape."""
    draw = torch.Generator().manual_seed(len(module))
    ones = (1,) * (len(shape) - 2)
    pair = {
        f"{module}.{up}.weight": torch.randn((shape[0], 2, *ones), generator=draw),
        f"{module}.{down}.weight": torch.randn((2, *shape[1:]), generator=draw),
    }
    return pair if alpha is None else {**pair, f"{module}.alpha": torch.tensor(alpha)}


def _lycoris(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """LoHa, LoKr, DoRA and a whole difference, on a module each."""
    draw = torch.Generator().manual_seed(4)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    kinds: dict[str, Callable[[int, int], dict[str, Tensor]]] = {
        LINEAR: lambda o, i: (
            {"hada_w1_a": noise(o, 2), "hada_w1_b": noise(2, i), "hada_w2_a": noise(o, 2)}
            | {"hada_w2_b": noise(2, i), "alpha": torch.tensor(1.0)}
        ),
        SECOND: lambda o, i: {"lokr_w1": noise(2, 2), "lokr_w2_a": noise(o // 2, 2), "lokr_w2_b": noise(2, i // 2)},
        LINEAR.replace("to_q", "to_k"): lambda o, i: (
            {"lora_up.weight": noise(o, 2), "lora_down.weight": noise(2, i)}
            | {"dora_scale": torch.ones(o, 1), "alpha": torch.tensor(2.0)}
        ),
        LINEAR.replace("to_q", "to_v"): lambda o, i: {"diff": noise(o, i)},
        "mid_block.resnets.0.norm1": lambda o, _: {"w_norm": noise(o), "b_norm": noise(o)},
    }
    return {
        f"lycoris_{module.replace('.', '_')}.{part}": tensor
        for module, parts in kinds.items()
        for part, tensor in parts(shapes[module][0], shapes[module][-1]).items()
    }
