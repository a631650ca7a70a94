"""Old keys in a user's own file, or on the command line, are answered with the new ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from merger.config.config import Config
from merger.config.loading import load_config
from merger.config.renamed import REMOVED, RENAMED, RENAMED_VALUES
from merger.errors import ConfigError

LEAST = {"base": "a.safetensors", "donors": ["b.safetensors"], "tagger": "tagger", "vocabulary": {"top": 50}}


def refused(folder: Path, changes: dict[str, Any], *overrides: str) -> str:
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump({**LEAST, **changes}))
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    places = re.compile(rf"({re.escape(str(file))}:\d+|--set [^:]+): ")
    assert all(places.match(line) for line in caught.value.lines)
    return "\n".join(places.sub("", line) for line in caught.value.lines)


@pytest.mark.parametrize("old", [key for key in RENAMED if "." in key])
def test_an_old_part_of_a_key_is_answered_with_its_new_name(old: str, tmp_path: Path) -> None:
    above, _, part = old.partition(".")
    expected = f"'{old}' is now '{RENAMED[old]}'"
    assert refused(tmp_path, {above: {part: 1}}) == expected
    assert refused(tmp_path, {}, f"{old}=1") == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"slopes": None}, "'slopes' is now 'gradient'"),
        ({"slopes": {"unheard_of": 1}}, "'slopes' is now 'gradient'"),
        ({"method": "slopes"}, "'method: slopes' is now 'method: gradient'"),
        ({"racing": True}, "'racing' is now 'pruning'"),
        ({"polish": 20}, "'polish' was removed: it gained nothing in measurements"),
        ({"coarse_to_fine": {"stage": 40}}, "'coarse_to_fine' was removed: it gained nothing in measurements"),
    ],
)
def test_old_keys_and_values(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert refused(tmp_path, changes) == said


def test_every_old_key_is_named_on_a_line_of_its_own(tmp_path: Path) -> None:
    said = refused(tmp_path, {"method": "slopes", "slopes": {"steps": 3, "rate": 0.1}, "polish": 0})
    assert sorted(said.splitlines()) == [
        "'method: slopes' is now 'method: gradient'",
        "'polish' was removed: it gained nothing in measurements",
        "'slopes.rate' is now 'gradient.learning_rate'",
        "'slopes.steps' is now 'gradient.steps'",
    ]


def test_new_names_exist_and_old_ones_do_not() -> None:
    def exists(key: str) -> bool:
        above, _, part = key.partition(".")
        if above not in Config.model_fields:
            return False
        return not part or part in Config.model_fields[above].default.__class__.model_fields

    assert all(map(exists, RENAMED.values()))
    assert not any(map(exists, [*RENAMED, *REMOVED]))
    assert RENAMED_VALUES.keys() <= Config.model_fields.keys()
