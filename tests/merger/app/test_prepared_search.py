"""A search with donors that are differences: run, exported, verified, merged from its recipe, continued."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from merger.app.cli import main
from merger.checkpoints.headers import read_header
from merger.checkpoints.recipe_metadata import METADATA_KEY
from tests.merger.app.test_end_to_end import settings  # noqa: F401

CHANGES = {
    "prompts": 2,
    "validation_prompts": 2,
    "test_prompts": 2,
    "steps": 1,
    "judge": None,
    "method": "random",
    "trials": 4,
    "baselines": [],
    "granularity": "stage",
}


@pytest.fixture
def file(
    settings: dict[str, object],  # noqa: F811
    tiny_family: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    monkeypatch.chdir(tmp_path)
    donors = [
        {"path": str(tiny_family["warm"]), "minus": str(tiny_family["cool"]), "prepare": [{"trim": {"density": 0.5}}]},
        {"path": str(tiny_family["cool"]), "prepare": [{"dare": {"density": 0.5, "seed": 4}}, {"rank": 2}]},
    ]
    text = yaml.safe_dump(settings | CHANGES | {"donors": donors})
    (tmp_path / "search.yaml").write_text(text)
    return tmp_path / "search.yaml"


def test_what_is_searched_is_exported_verified_and_rebuilt(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(file), "--name", "sums", "--json"]) == 0
    assert main(["export", "sums", "--trial", "3", "--output", "own.safetensors", "--json"]) == 0
    assert main(["verify", "own.safetensors"]) == 0
    capsys.readouterr()
    own = Path("own.safetensors")
    recipe = json.loads(read_header(own).metadata[METADATA_KEY])
    one, two = recipe["donors"]
    assert Path(one["minus"]["path"]).name == "cool.safetensors"
    assert one["prepare"] == [{"trim": {"density": 0.5}}]
    assert two["prepare"] == [{"dare": {"density": 0.5, "seed": 4}}, {"rank": {"rank": 2}}]
    Path("recipe.json").write_text(json.dumps(recipe))
    assert main(["merge", "recipe.json", "--output", "again.safetensors"]) == 0
    theirs, ours = load_file("again.safetensors"), load_file(own)
    assert all(torch.equal(theirs[key], tensor) for key, tensor in ours.items())
    del one["minus"]
    Path("recipe.json").write_text(json.dumps(recipe))
    assert main(["merge", "recipe.json", "--output", "other.safetensors"]) == 0
    theirs = load_file("other.safetensors")
    assert not all(torch.equal(theirs[key], tensor) for key, tensor in ours.items()), "minus counts"


@pytest.mark.parametrize(
    ("place", "change"),
    [(0, {"minus": None}), (0, {"prepare": []}), (1, {"prepare": [{"dare": 0.5}, {"rank": 2}]})],
)
def test_another_difference_is_another_search(
    place: int, change: dict[str, object], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(file), "--name", "sums"]) == 0
    capsys.readouterr()
    changed = yaml.safe_load(file.read_text())
    changed["donors"][place] |= change
    file.write_text(yaml.safe_dump(changed))
    assert main(["search", str(file), "--name", "sums", "--trials", "5"]) == 2
    assert "source" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"minus": "gone.safetensors"}, "gone.safetensors"),
        ({"prepare": [{"trim": {"density": 2}}]}, "trim: 'density' must be a number above 0 and at most 1, not 2"),
        ({"prepare": "trim"}, "give a list of preparations"),
        ({"minus": None, "prepare": ["train_difference"]}, "train_difference needs `minus`"),
    ],
)
def test_bad_input_is_one_line(
    change: dict[str, object], said: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = yaml.safe_load(file.read_text())
    changed["donors"][0] |= change
    file.write_text(yaml.safe_dump(changed))
    assert main(["search", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not Path("runs").exists()


def test_a_recipe_says_what_is_wrong_with_it(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = yaml.safe_load(file.read_text())["base"]
    donor = {"path": yaml.safe_load(file.read_text())["donors"][0]["path"], "name": "warm"}
    for more, said in (
        ({"prepare": [{"trim": 7}]}, "donor 1: prepare: trim: 'density'"),
        ({"prepare": "trim"}, "'prepare' must be a list"),
        ({"minus": {"path": "gone.safetensors"}}, "gone.safetensors"),
        ({"minus": {"path": donor["path"], "minus": "x"}}, "unknown key 'minus'"),
        ({"prepare": ["add_opposite"]}, "add_opposite needs `minus`"),
    ):
        recipe = {"base": str(base), "donors": [donor | more], "weights": {"*": {"warm": 0.5}}}
        Path("recipe.json").write_text(json.dumps(recipe))
        assert main(["merge", "recipe.json", "--output", "x.safetensors"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
        assert not Path("x.safetensors").exists()
