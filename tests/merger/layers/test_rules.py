"""A user's own table of layers: the first pattern decides, and nothing in it may be idle."""

from __future__ import annotations

from pathlib import Path

import pytest

from merger.config.loading import parse_config
from merger.errors import ConfigError
from merger.export.recipe import Recipe, RecipeSource
from merger.layers.grouping import group
from merger.layers.rules import check_rules, read_rules

NAMES = ["conv_in.weight", "up_blocks.0.resnets.0.conv1.weight", "up_blocks.1.attentions.0.norm.bias", "conv_out.bias"]
CONFIG = {"base": "a.safetensors", "donors": ["b.safetensors"], "tagger": "t", "vocabulary": {"top": 5}}


def test_the_first_pattern_that_fits_decides() -> None:
    rules = {"*.attentions.*": "LOOK", "up_blocks.?.*": "UP", "conv_[io]*": "ENDS"}
    assert group(NAMES, rules) == {"LOOK": (NAMES[2],), "UP": (NAMES[1],), "ENDS": (NAMES[0], NAMES[3])}
    joined = group(NAMES, {"up_blocks.*": "A", "conv_in.*": "B", "conv_out.*": "A"})
    assert joined == {"A": (NAMES[1], NAMES[2], NAMES[3]), "B": (NAMES[0],)}


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"down_blocks.*": "DOWN", "*": "REST"}, "'down_blocks.*' fits no tensor"),
        ({"Up_blocks.*": "UP", "*": "REST"}, "'Up_blocks.*' fits no tensor"),
        ({"up_blocks.*": "UP", "*.attentions.*": "LOOK", "*": "REST"}, r"earlier patterns take: move it up"),
        ({"up_blocks.*": "UP"}, r"no pattern fits 'conv_in.weight' \(2 such tensors\)"),
    ],
)
def test_what_is_idle_or_left_over_is_an_error(rules: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("*'", r"\*'")):
        group(NAMES, rules)


def test_a_table_is_read_in_its_order(tmp_path: Path) -> None:
    file = tmp_path / "layers.yaml"
    file.write_text("'*.attentions.*': LOOK\n'up_blocks.*': UP\n'*': REST\n")
    rules = read_rules(file)
    assert list(rules.items()) == [("*.attentions.*", "LOOK"), ("up_blocks.*", "UP"), ("*", "REST")]
    config = parse_config(CONFIG | {"granularity": "layers.yaml"}, folder=tmp_path, where="x")
    assert config.granularity == rules
    assert list(config.granularity) == list(rules)
    assert parse_config(CONFIG | {"granularity": rules}, folder=tmp_path, where="x") == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n", "pattern: layer"),
        ("{}\n", "pattern: layer"),
        ("'*': 3\n", "put numbers in quotes"),
        ("'*': [\n", "is not YAML"),
        ("a: X\na: Y\n", "'a' is there twice"),
    ],
)
def test_bad_tables_are_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "layers.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        read_rules(tmp_path / "layers.yaml")
    assert "\n" not in str(caught.value)


def test_a_missing_table_and_an_unknown_word_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such table of layers"):
        read_rules(tmp_path / "layers.yaml")
    with pytest.raises(ConfigError, match="granularity"):
        parse_config(CONFIG | {"granularity": "blocks"}, folder=tmp_path, where="x")
    with pytest.raises(ConfigError, match="pattern: layer"):
        check_rules({}, "here")


def test_a_recipe_carries_the_table() -> None:
    rules = {"up_blocks.*": "UP", "*": "REST"}
    recipe = Recipe(RecipeSource("a", "a", "0"), (RecipeSource("b", "b", "1"),), rules, {"UP": {"b": 0.5}})
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    assert list(again.granularity) == list(rules)
