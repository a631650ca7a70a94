"""A U-Net's tensor names in diffusers, and in the original (LDM) layout: `input_blocks.1.0.in_layers.2.weight`.

The translation is *derived*, not listed: every key the original layout could have goes through diffusers' own
converter as a tensor that holds nothing but its own number, and the place where the number comes out is the name.
`merger.checkpoints.names.unet` does the same for whole checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

DENOISER_PREFIX = "model.diffusion_model."

_RESNET = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")
_LABELS = ("label_emb.0.0", "label_emb.0.2")


def original_keys(names: Iterable[str]) -> dict[str, str]:
    """{diffusers name: original key, without a prefix} of a U-Net's tensors; nothing where they are no U-Net's."""
    known = list(names)
    blocks = {name.split(".")[3] for name in known if name.startswith("down_blocks.0.resnets.")}
    if not blocks:
        return {}
    found = keys_of(known, len(blocks))
    return {name: found[name] for name in known if name in found}


def keys_of(names: list[str], layers_per_block: int) -> dict[str, str]:
    """{diffusers name: original key} of a U-Net with these tensors; names of no U-Net may be among them."""
    conditioning: dict[str, object] = {"num_class_embeds": 1000}
    if "add_embedding.linear_1.weight" in names:
        conditioning["addition_embed_type"] = "text_time"
    if "class_embedding.linear_1.weight" in names:
        conditioning["class_embed_type"] = "projection"
    return land(_unet_candidates(names, layers_per_block), unet_converter(layers_per_block, conditioning))


def land(keys: Iterable[str], convert: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> dict[str, str]:
    """Send each key through `convert` as a tensor holding its own number: {name it came out under: key}."""
    import torch

    numbered = list(dict.fromkeys(keys))
    landed = convert({key: torch.tensor(i) for i, key in enumerate(numbered)})
    return {name: numbered[int(marker)] for name, marker in landed.items() if marker is not None}


def unet_converter(
    layers_per_block: int, conditioning: Mapping[str, object]
) -> Callable[[dict[str, Tensor]], Mapping[str, Tensor]]:
    """diffusers' converter, asked about keys that have lost their prefix."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    config: dict[str, object] = {"layers_per_block": layers_per_block, **conditioning}

    def convert(marked: dict[str, Tensor]) -> Mapping[str, Tensor]:
        return convert_ldm_unet_checkpoint({DENOISER_PREFIX + key: marker for key, marker in marked.items()}, config)

    return convert


def _unet_candidates(names: list[str], layers_per_block: int) -> list[str]:
    """Every key an original U-Net of this size might have; more than it has, for the names decide afterwards."""
    levels = len({name.split(".")[1] for name in names if name.startswith("down_blocks.")})
    per_level = layers_per_block + 1
    # What follows a transformer block's own number is called the same on both sides, so the network's names supply it.
    attention = sorted({name.split(".attentions.", 1)[1].split(".", 1)[1] for name in names if ".attentions." in name})
    stems = ["time_embed.0", "time_embed.2", "input_blocks.0.0", "out.0", "out.2", *_LABELS]
    for i in range(1, levels * per_level):
        stems += [f"input_blocks.{i}.0.{part}" for part in (*_RESNET, "op")]
    for i in range(levels * per_level):
        stems += [f"output_blocks.{i}.0.{part}" for part in _RESNET]
        level, j = divmod(i, per_level)
        # The upsampler follows whatever else the block holds: third after an attention, second without one.
        place = 2 if f"up_blocks.{level}.attentions.{j}.norm.weight" in names else 1
        stems.append(f"output_blocks.{i}.{place}.conv")
    stems += [f"middle_block.{i}.{part}" for i in (0, 2) for part in _RESNET]
    keys = [f"{stem}.{kind}" for stem in stems for kind in ("weight", "bias")] + ["label_emb.weight"]
    places = [f"{side}.{i}.1" for side in ("input_blocks", "output_blocks") for i in range(levels * per_level)]
    return keys + [f"{place}.{rest}" for place in (*places, "middle_block.1") for rest in attention]
