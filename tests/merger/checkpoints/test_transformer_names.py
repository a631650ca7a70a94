"""Names of transformer denoisers: what diffusers' converters give, cut and turned as they do it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from merger.checkpoints.checkpoint import open_checkpoint
from merger.checkpoints.families import transformer_family
from merger.checkpoints.names.pieces import Piece, pieces_of
from merger.checkpoints.names.transformer import network_shapes, transformer_names_in
from merger.errors import CheckpointError

Config = Callable[[str], dict[str, Any]]
SHRUNK = {1536: 16, 4608: 48, 9216: 96, 6144: 64, 3072: 32, 4096: 12, 2048: 10, 36864: 16}  # SD 3's sizes
FLUX = {"_class_name": "FluxTransformer2DModel", "guidance_embeds": True}


def numbered(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(1)
    return {key: torch.randn(shape, generator=source) for key, shape in shapes.items()}


def z_image_original(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The original file's keys for diffusers' names: fused attention, other names for the ends."""
    found = {}
    for name, shape in shapes.items():
        if ".attention.to_k." in name or ".attention.to_v." in name:
            continue
        size = (3 * shape[0], *shape[1:]) if ".attention.to_q." in name else shape
        for theirs, ours in (
            ("all_final_layer.2-1.", "final_layer."),
            ("all_x_embedder.2-1.", "x_embedder."),
            (".to_q.", ".qkv."),
            (".to_out.0.", ".out."),
            (".norm_q.", ".q_norm."),
            (".norm_k.", ".k_norm."),
        ):
            name = name.replace(theirs, ours)
        found[f"model.diffusion_model.{name}"] = size
    return found


def test_a_diffusers_file_is_its_own_translation(transformer: str, denoiser_config: Config) -> None:
    shapes = network_shapes(denoiser_config(transformer), transformer)
    for prefix in ("", "model.diffusion_model.", "transformer."):
        stem, names = transformer_names_in({prefix + name: shape for name, shape in shapes.items()}, "x")
        assert (stem, transformer_family(names)) == ("", transformer)
        assert {name: piece.key for name, (piece,) in names.items()} == {name: prefix + name for name in shapes}


def test_an_original_sd3_file_reads_as_diffusers_converts_it(
    tmp_path: Path, published_keys: Callable[[str], dict[str, tuple[int, ...]]]
) -> None:
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    keys = {key: tuple(SHRUNK.get(n, n) for n in shape) for key, shape in published_keys("sd3-comfyui").items()}
    check_against(convert_sd3_transformer_checkpoint_to_diffusers, numbered(keys), tmp_path, "sd3")


def test_an_original_z_image_file_reads_as_diffusers_converts_it(tmp_path: Path, denoiser_config: Config) -> None:
    from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers

    config = denoiser_config("zimage")
    keys = z_image_original(network_shapes(config, "zimage"))
    file = check_against(convert_z_image_transformer_checkpoint_to_diffusers, numbered(keys), tmp_path, "zimage")
    assert len(open_checkpoint(file, unet_config=config).denoiser) == len(network_shapes(config, "zimage"))
    with pytest.raises(CheckpointError, match=r"not the transformer of the pipeline's transformer/config.json"):
        open_checkpoint(file, unet_config=config | {"n_layers": 5})


def check_against(convert: Any, tensors: dict[str, torch.Tensor], folder: Path, family: str) -> Path:
    """What is opened from a file of `tensors` is, tensor by tensor, what diffusers' converter makes of them."""
    save_file(tensors, folder / "x.safetensors")
    checkpoint = open_checkpoint(folder / "x.safetensors")
    assert (checkpoint.family, checkpoint.layout, checkpoint.prediction) == (family, "original", "flow")
    wanted = convert(dict(tensors))
    assert wanted.keys() == checkpoint.denoiser.keys()
    for name, tensor in wanted.items():
        assert checkpoint.denoiser[name].shape == tuple(tensor.shape)
        assert torch.equal(checkpoint.read(name), tensor), name
    return folder / "x.safetensors"


def test_published_flux_keys_have_the_shapes_of_the_network(
    published_keys: Callable[[str], dict[str, tuple[int, ...]]],
) -> None:
    keys = published_keys("flux-flux")
    _, names = transformer_names_in(keys, "flux")
    shapes = {
        name: (sum(piece.stop - piece.start for piece in pieces), *keys[pieces[0].key][1:])
        for name, pieces in names.items()
    }
    assert shapes == network_shapes(FLUX, "flux")
    prefix = "model.diffusion_model."
    assert names["norm_out.linear.weight"] == (  # shift and scale change places
        Piece(f"{prefix}final_layer.adaLN_modulation.1.weight", 3072, 6144),
        Piece(f"{prefix}final_layer.adaLN_modulation.1.weight", 0, 3072),
    )
    assert names["single_transformer_blocks.37.proj_mlp.bias"] == (
        Piece(f"{prefix}single_blocks.37.linear1.bias", 9216, 21504),
    )


def test_a_damaged_file_is_one_line(published_keys: Callable[[str], dict[str, tuple[int, ...]]]) -> None:
    keys = published_keys("sd3-comfyui")
    del keys["model.diffusion_model.t_embedder.mlp.0.weight"]
    with pytest.raises(CheckpointError, match=r"seems to be a sd3 model, but .*KeyError.*t_embedder.*Is it whole"):
        transformer_names_in(keys, "x.safetensors")
    assert transformer_names_in({"something.else": (1,)}, "x") == ("", {})


def test_a_network_that_diffusers_does_not_know_is_said() -> None:
    with pytest.raises(CheckpointError, match=r"'NoSuchModel' is no network"):
        network_shapes({"_class_name": "NoSuchModel"}, "x")


def test_a_tensor_without_rows_is_one_line() -> None:
    with pytest.raises(CheckpointError, match=r"x\.safetensors: 'fc1.weight' has no elements"):
        pieces_of(torch.zeros(0, 1, dtype=torch.int64), [], "fc1.weight", "x.safetensors")
