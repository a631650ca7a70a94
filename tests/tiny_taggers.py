"""Tiny taggers of every format, over the same few tags, each written into a folder. Weights are random, by seed."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

TINY_TAGS = (
    "blonde_hair",
    "blue_hair",
    "red_hair",
    "blue_eyes",
    "green_eyes",
    "smile",
    "open_mouth",
    "glasses",
    "hat",
    "red_dress",
    "star_(symbol)",
)
TINY_RATINGS = ("general", "sensitive")
TINY_CHARACTERS = ("aya_(example)",)


def write_transformers(folder: Path) -> Path:
    """A transformers multi-label image classifier (a ViT of one layer, 16 x 16 input) over `TINY_TAGS`."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        id2label=dict(enumerate(TINY_TAGS)),
        label2id={tag: index for index, tag in enumerate(TINY_TAGS)},
        problem_type="multi_label_classification",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(30)
        model = ViTForImageClassification(config)
        torch.nn.init.normal_(model.classifier.weight, std=1.0)  # spread the probabilities over 0..1
    model.save_pretrained(folder)
    preprocessing = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 16, "width": 16},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.6],
        "image_std": [0.5, 0.6, 0.4],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


def write_wd(folder: Path) -> Path:
    """`model.onnx` (NHWC float32, BGR, 0..255, 16 x 16; sigmoid of one linear map) with `selected_tags.csv`."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(exist_ok=True)
    rows = [(name, 9) for name in TINY_RATINGS] + [(name, 0) for name in TINY_TAGS] + [(n, 4) for n in TINY_CHARACTERS]
    weights = np.random.default_rng(40).normal(0, 0.001, (16 * 16 * 3, len(rows))).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny_wd",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch_size", 16, 16, 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch_size", len(rows)])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    with (folder / "selected_tags.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("tag_id", "name", "category", "count"))
        writer.writerows((number, name, kind, 1000 - number) for number, (name, kind) in enumerate(rows))
    return folder


def write_ml_danbooru(folder: Path) -> Path:
    """`tiny.onnx` (any size of NCHW RGB 0..1; logits linear in the three mean colours) with `classes.json`."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(exist_ok=True)
    tags = ["smile", "hat", "glasses", "blue_hair"]
    weights = np.random.default_rng(70).normal(0, 8, (3, len(tags))).astype(np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny_ml_danbooru",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", len(tags)])],
        [numpy_helper.from_array(weights, "weights")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "tiny.onnx")
    (folder / "classes.json").write_text(json.dumps(tags))
    return folder


def write_timm(folder: Path, wd: Path) -> Path:
    """The WD tagger in `wd` with its weights beside it as timm keeps them; `timm_module`, below, opens them."""
    import onnx
    from onnx import numpy_helper
    from safetensors.torch import save_file

    shutil.copytree(wd, folder)
    weights = numpy_helper.to_array(onnx.load(folder / "model.onnx").graph.initializer[0])
    save_file({"linear.weight": torch.from_numpy(weights.T.copy())}, folder / "model.safetensors")
    normal = {"mean": [0.5] * 3, "std": [0.5] * 3}
    config = {
        "architecture": "tiny_linear",
        "num_classes": weights.shape[1],
        "pretrained_cfg": {"input_size": [3, 16, 16], "interpolation": "bicubic", "crop_pct": 1.0, **normal},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class TinyLinear(torch.nn.Module):
    """What the WD tagger computes, from pixels [B, 3, H, W], BGR in -1..1, to logits."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.pretrained_cfg, self.num_classes = config["pretrained_cfg"], config["num_classes"]
        self.linear = torch.nn.Linear(16 * 16 * 3, self.num_classes, bias=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """NHWC in 0..255, flat, as the ONNX form takes it."""
        return self.linear((pixels.permute(0, 2, 3, 1).flatten(1) + 1) * 127.5)


def timm_module() -> ModuleType:
    """timm, which needs torchvision, played by a module that makes the tiny model of `write_timm` alone."""

    def create_model(name: str) -> TinyLinear:
        config = json.loads(Path(name.removeprefix("local-dir:"), "config.json").read_text())
        if config["architecture"] != "tiny_linear":
            raise RuntimeError(f"Unknown model ({config['architecture']})")
        return TinyLinear(config)

    module = ModuleType("timm")
    module.create_model = create_model  # type: ignore[attr-defined]
    return module
