"""A transformer of every family: opened from a folder, blended in place, exported, loaded again by diffusers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from merger.blend.live import LiveDenoiser
from merger.checkpoints.checkpoint import open_checkpoint, read_unet_config
from merger.checkpoints.names.transformer import network_shapes
from merger.export.forms import export_as
from merger.export.recipe import Recipe
from merger.export.write import verify
from merger.layers.grouping import group


def write_folder(config: dict[str, Any], folder: Path, seed: int) -> Path:
    source = torch.Generator().manual_seed(seed)
    shapes = network_shapes(config, folder.name)
    (folder / "transformer").mkdir(parents=True)
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    tensors = {name: torch.randn(shape, generator=source) / 8 for name, shape in shapes.items()}
    save_file(tensors, folder / "transformer" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return folder


def test_what_is_live_is_what_is_exported_and_what_diffusers_loads(
    transformer: str, denoiser_config: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    import diffusers

    config = denoiser_config(transformer)
    network = getattr(diffusers, config["_class_name"])
    base = open_checkpoint(write_folder(config, tmp_path / "base", 1), unet_config=config)
    donor = open_checkpoint(write_folder(config, tmp_path / "donor", 2))
    assert (base.family, base.layout, base.prediction) == (transformer, "folder", "flow")
    assert read_unet_config(base.path)["_class_name"] == config["_class_name"]
    layers = group(base.denoiser, "block")
    weights = {layer: {"donor": 0.1 * number} for number, layer in enumerate(layers)}
    module = network.from_pretrained(base.path / "transformer", local_files_only=True)
    live = LiveDenoiser(module, base, [donor], layers)
    live.apply(weights)
    folder = export_as(Recipe.of(base, [donor], "block", weights), tmp_path / "blend", base=base, donors=[donor])
    assert verify(folder).ok
    loaded = network.from_pretrained(folder / "transformer", local_files_only=True).state_dict()
    held = module.state_dict()
    assert loaded.keys() == held.keys() == base.denoiser.keys()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, held[name]), name
    changed = {name for name in loaded if not torch.equal(loaded[name], base.read(name))}
    assert changed == set(base.denoiser) - set(layers[next(iter(layers))])  # the first weight is 0
