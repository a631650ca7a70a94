"""Parameters of a fine search fall into the layers of coarser ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from merger.config.loading import load_config
from merger.errors import ConfigError
from merger.layers.grouping import group
from merger.search.coarse import levels_of
from merger.search.space import make_space

NAMES = [
    "conv_in.weight",
    "conv_in.bias",
    "down_blocks.0.resnets.0.conv1.weight",
    "down_blocks.0.resnets.0.conv2.weight",
    "down_blocks.0.attentions.0.norm.weight",
    "down_blocks.1.resnets.0.conv1.weight",
    "mid_block.resnets.0.conv1.weight",
    "up_blocks.0.resnets.0.conv1.weight",
]


def test_a_level_groups_the_parameters_of_a_coarser_layer_by_donor() -> None:
    layers = group(NAMES, "tensor")
    space = make_space(tuple(layers), ("warm", "cool"), bounds=(0, 1))
    stage, module = levels_of(space, layers, [("stage", 30), ("module", 10)])
    assert (stage.trials, module.trials) == (30, 10)
    for level, granularity in ((stage, "stage"), (module, "module")):
        assert sorted(set(level.groups)) == list(range(2 * len(group(NAMES, granularity))))
        together: dict[int, set[tuple[str, str]]] = {}
        for parameter, number in zip(space.parameters, level.groups, strict=True):
            tensor = layers[parameter.layers[0]][0]
            coarse = next(layer for layer, tensors in group(NAMES, granularity).items() if tensor in tensors)
            together.setdefault(number, set()).add((coarse, parameter.donor))
        assert all(len(found) == 1 for found in together.values())


@pytest.mark.parametrize(
    ("granularity", "plan", "error"),
    [
        ("tensor", {"stage": 10, "module": 20}, None),
        ("block", {"stage": 10}, None),
        ("block", {"module": 10}, "coarser than the search's granularity is stage"),
        ("stage", {"stage": 10}, "is nothing"),
        ("tensor", {"module": 10, "stage": 20}, "stage, block, module, in this order"),
        ("tensor", {"stage": 0}, "greater than or equal to 1"),
    ],
)
def test_the_plan_is_checked(granularity: str, plan: Any, error: str | None) -> None:
    demo = Path(__file__).parents[3] / "demo" / "search.yaml"
    changes = [f"granularity={granularity}", f"coarse_to_fine={plan}", "method=cmaes"]
    if error is None:
        assert load_config(demo, changes).coarse_to_fine == plan
    else:
        with pytest.raises(ConfigError, match=error):
            load_config(demo, changes)
