"""Whose names of blocks a recipe has: files of version 0.1 are rebuilt with the names of their time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from merger.app.cli import main
from merger.checkpoints.checkpoint import open_checkpoint
from merger.checkpoints.names.unet import DENOISER_PREFIX
from merger.export.recipe import Recipe
from merger.export.write import export, verify
from merger.layers.unet import COMMUNITY, EARLIER, BlockNames

LAST = DENOISER_PREFIX + "out.2.weight"
TIME = DENOISER_PREFIX + "time_embed.0.weight"


def made(tiny_family: dict[str, Path], block_names: BlockNames) -> Recipe:
    base, donor = (open_checkpoint(tiny_family[name]) for name in ("base", "warm"))
    return Recipe.of(base, [donor], "block", {"BASE": {"warm": 1.0}}, block_names=block_names)


def test_a_recipe_of_the_previous_version_has_that_versions_names(tiny_family: dict[str, Path]) -> None:
    table = json.loads(made(tiny_family, COMMUNITY).to_json())
    assert table.pop("block_names") == COMMUNITY
    earlier = Recipe.from_json(json.dumps(table | {"version": "0.1.0"}))
    assert earlier == Recipe.from_json(earlier.to_json())
    assert earlier.block_names == EARLIER
    assert "block_names" not in json.loads(earlier.to_json())
    other = Recipe.from_json(json.dumps(table | {"granularity": "stage"}))
    assert "block_names" not in json.loads(other.to_json())
    assert Recipe.from_json(other.to_json()) == other


@pytest.mark.parametrize("block_names", [COMMUNITY, EARLIER])
def test_the_last_convolution_follows_the_names(
    block_names: BlockNames, tiny_family: dict[str, Path], tmp_path: Path
) -> None:
    base, donor = (load_file(tiny_family[name]) for name in ("base", "warm"))
    sources = [open_checkpoint(tiny_family[name]) for name in ("base", "warm")]
    output = export(made(tiny_family, block_names), tmp_path / "out.safetensors", base=sources[0], donors=sources[1:])
    written = load_file(output)
    assert written[TIME].equal(donor[TIME])
    assert written[LAST].equal((base if block_names == COMMUNITY else donor)[LAST])
    assert verify(output).ok
    assert verify(output).recipe.block_names == block_names


@pytest.mark.parametrize(
    ("more", "donors_own"),
    [
        ({}, False),
        ({"version": "0.1.0", "granularity": "block"}, True),
        ({"version": "0.2.0", "granularity": "block", "block_names": "community"}, False),
        ({"block_names": "layermerge-0.1"}, True),
    ],
)
def test_a_recipe_file_says_whose_names_it_has(
    more: dict[str, str], donors_own: bool, tiny_family: dict[str, Path], tmp_path: Path
) -> None:
    table = {"base": str(tiny_family["base"]), "donors": [str(tiny_family["warm"])], "weights": {"BASE": {"warm": 1}}}
    (tmp_path / "recipe.json").write_text(json.dumps(table | more))
    assert main(["merge", str(tmp_path / "recipe.json"), "--output", str(tmp_path / "out.safetensors")]) == 0
    theirs = load_file(tiny_family["warm" if donors_own else "base"])
    assert load_file(tmp_path / "out.safetensors")[LAST].equal(theirs[LAST])


def test_unknown_names_are_one_line(
    tiny_family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = {"base": str(tiny_family["base"]), "donors": [], "weights": {}, "block_names": "comunity"}
    (tmp_path / "recipe.json").write_text(json.dumps(table))
    assert main(["merge", str(tmp_path / "recipe.json"), "--output", str(tmp_path / "out.safetensors")]) == 2
    assert "Did you mean 'community'" in capsys.readouterr().err
