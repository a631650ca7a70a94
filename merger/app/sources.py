"""What a blend needs: its checkpoints, opened, and how their tensors share weights. No model, no tagger, no prompts."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from merger.blend.prepared import prepare
from merger.checkpoints.adapter import open_donor
from merger.checkpoints.checkpoint import Checkpoint, open_checkpoint, read_unet_config
from merger.checkpoints.compatibility import check_compatible, mixed_prediction, remarks
from merger.checkpoints.components import check_configuration
from merger.checkpoints.text_encoders import components_of, with_text_encoders
from merger.checkpoints.weight_files import refuse_pickled_base
from merger.config.config import Config
from merger.config.parts import DonorSettings
from merger.errors import ConfigError
from merger.export.recipe import Recipe
from merger.layers.channels import CHANNEL, widths
from merger.layers.grouping import group
from merger.layers.unet import COMMUNITY, BlockNames
from merger.preparations.spec import preparations
from merger.search.space import Space, make_space
from merger.weights import Weights


@dataclass(frozen=True)
class BlendSources:
    """The base and its donors, opened. layers: {layer: names of its tensors}. space: which weights may be searched."""

    base: Checkpoint
    donors: tuple[Checkpoint, ...]
    layers: Mapping[str, tuple[str, ...]]
    space: Space
    granularity: str | Mapping[str, str]
    components: tuple[str, ...]
    block_names: BlockNames = COMMUNITY

    def recipe(self, weights: Weights) -> Recipe:
        """How to rebuild the blend of these weights. Hashes every source once."""
        return Recipe.of(
            self.base,
            self.donors,
            self.granularity,
            weights,
            components=self.components,
            block_names=self.block_names,
        )


def open_sources(config: Config) -> BlendSources:
    """Opens the checkpoints that `config` names and checks that they are compatible, by their headers alone.

    config: without hub ids (`merger.app.source_paths.local`). Prints a line for every remark about a donor. Raises
    `InputError` in one line.
    """
    unet_config = read_unet_config(config.pipeline) if config.pipeline is not None else None
    refuse_pickled_base(config.base)
    base = open_checkpoint(
        config.base, name=config.named_base, unet_config=unet_config, allow_pickle=config.allow_pickle
    )
    if config.blends_text:
        base = with_text_encoders(base)
    check_configuration(base, config.pipeline)
    donors = tuple(
        _donor(donor, base, name, allow_pickle=config.allow_pickle)
        for donor, name in zip(config.donors, config.donor_names, strict=True)
    )
    left_out = check_compatible(base, donors)
    mixed = mixed_prediction(base, donors, config.pipeline)
    if mixed and not config.allow_mixed_prediction:
        raise ConfigError(f"{mixed[0]}. Leave it out, or set allow_mixed_prediction: true")
    for remark in (*remarks((base, *donors), left_out), *mixed):
        print(remark, file=sys.stderr)
    if base.text and all(len(donor.lent) == len(components_of(base.text)) for donor in donors):
        raise ConfigError(
            "components: no donor has a text encoder, so there is none to blend: leave out 'text_encoder'"
        )
    layers = group(base.blended, config.granularity, config.block_names)
    shapes = {name: info.shape for name, info in base.blended.items()}
    own_bounds = zip(config.donor_names, config.donors, strict=True)
    space = make_space(
        tuple(layers),
        config.donor_names,
        bounds=config.bounds,
        donor_bounds={name: donor.bounds for name, donor in own_bounds if donor.bounds is not None},
        frozen=config.frozen,
        tied=config.tied,
        widths=widths(layers, shapes) if config.granularity == CHANNEL else None,
    )
    return BlendSources(base, donors, layers, space, config.granularity, config.components, config.block_names)


def _donor(settings: DonorSettings, base: Checkpoint, name: str, *, allow_pickle: bool) -> Checkpoint:
    opened = open_donor(settings.path, base, name=name, allow_pickle=allow_pickle)
    minus = None if settings.minus is None else open_donor(settings.minus, base, allow_pickle=allow_pickle)
    return prepare(opened, base, minus, preparations(settings.prepare, minus=minus is not None))
