"""Runs and a file that version 0.1.0 wrote (tests/data/previous): they are continued, looked at, exported, verified."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from merger.app.cli import main
from merger.app.previous_version import translated_result
from merger.app.runs import Run
from merger.app.scored_files import SCORE_KEY
from merger.checkpoints.checkpoint import open_checkpoint
from merger.config.loading import load_config
from merger.search.study import read_study
from merger.search.trials import TrialRecord

DATA = Path(__file__).parents[2] / "data" / "previous"
WRITTEN_IN = "/previous"  # the folder in which the previous version worked
RUNS = ("gradient", "black_box")


@pytest.fixture
def previous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the previous version left it, wherever it lies now."""
    folder = shutil.copytree(DATA, tmp_path / "previous")
    for file in folder.glob("*/config.yaml"):
        file.write_text(file.read_text().replace(WRITTEN_IN, str(folder)))
    monkeypatch.chdir(tmp_path)
    return folder


def run_json(*arguments: str) -> Any:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([*arguments, "--json"]) == 0
    return json.loads(out.getvalue())


def records(folder: Path) -> list[TrialRecord]:
    return read_study(Run(folder).storage(Run(folder).config()), folder.name).records()


def test_the_fixtures_speak_the_old_language() -> None:
    """Else the tests below would test nothing."""
    gradient, black_box = (yaml.safe_load((DATA / name / "config.yaml").read_text()) for name in RUNS)
    assert gradient["method"] == "slopes"
    assert gradient["slopes"]["check_every"] == 2
    assert black_box["racing"] is True
    assert {"polish", "coarse_to_fine"} <= gradient.keys() & black_box.keys()
    assert "luck" in json.loads((DATA / "gradient" / "result.json").read_text())


def test_old_keys_of_a_run_are_read(previous: Path) -> None:
    config = Run(previous / "gradient").config()
    assert config.method == "gradient"
    assert config.gradient.model_dump() == {
        "steps": 3,
        "backprop_steps": "last",
        "chain": 1.0,
        "decay": 1.0,
        "eps": 1e-3,
        "searches": 1,
        "learning_rate": 0.05,
        "start": 0.2,
        "backprop_fraction": 0.5,
        "eval_every": 2,
        "weight_decay": 0.01,
        "negative_penalty": 0.0,
    }
    assert Run(previous / "black_box").config().pruning


def test_a_gradient_search_goes_on_with_more_steps(previous: Path) -> None:
    before = records(previous / "gradient")
    result = run_json("resume", str(previous / "gradient"), "--set", "gradient.steps=5", "--trials", "20")
    after = records(previous / "gradient")
    assert after[: len(before)] == before
    assert [record.role for record in before].count("step") == 3
    assert [record.role for record in after].count("step") == 5
    assert result["trials"] == len(after) > len(before)
    assert all(len(record.score.attributes["gradient"]) == 10 for record in after if record.role == "step")
    # from now on it is a run of this version, and the same
    written = yaml.safe_load((previous / "gradient" / "config.yaml").read_text())
    assert written["gradient"]["steps"] == 5
    assert "slopes" not in written
    assert load_config(previous / "gradient" / "config.yaml").trials == 20
    assert run_json("verify", str(previous / "gradient" / "best.safetensors"), "--score")["ok"]


def test_a_black_box_search_goes_on_where_it_was_stopped(previous: Path) -> None:
    before = records(previous / "black_box")
    assert len(before) == 8
    assert not before[6].whole, "one of its trials was given up"
    result = run_json("resume", str(previous / "black_box"))
    after = records(previous / "black_box")
    assert after[:8] == before
    assert [record.number for record in after] == list(range(12))
    assert result["stopped_because"] == "trials: the limit of 12 is reached"
    assert 6 not in [finalist["trial"] for finalist in result["finalists"]]


@pytest.mark.parametrize(("name", "state", "trials"), [("gradient", "finished", 8), ("black_box", "stopped", 8)])
def test_it_is_looked_at_and_exported(
    name: str, state: str, trials: int, previous: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_json("status", str(previous / name))
    assert (found["state"], found["trials"]) == (state, trials)
    assert main(["status", str(previous / name)]) == 0
    said = capsys.readouterr().out
    assert ("its optimism is" in said) == (name == "gradient")
    rows = {row["name"]: row["state"] for row in run_json("list", str(previous))}
    assert rows == {"gradient": "finished", "black_box": "stopped"}
    written = run_json("export", str(previous / name), "--output", str(previous / "new.safetensors"))
    assert run_json("verify", written["file"], "--run", str(previous / name), "--score")["ok"]


def test_its_file_is_verified_and_written_again_the_same(previous: Path) -> None:
    file, again = previous / "blend.safetensors", previous / "again.safetensors"
    assert run_json("verify", str(file))["ok"], "its sources lie beside it now"
    run_json("export", str(previous / "gradient"), "--denoiser-only", "--output", str(again))
    old, new = load_file(file), load_file(again)
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    scores = [json.loads(open_checkpoint(each).metadata[SCORE_KEY]) for each in (file, again)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(("key", "value"), [("polish", 3), ("coarse_to_fine", {"stage": 40})])
def test_what_needs_a_removed_setting_is_not_continued(
    key: str, value: Any, previous: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = previous / "black_box" / "config.yaml"
    text = yaml.safe_dump(yaml.safe_load(file.read_text()) | {key: value})
    file.write_text(text)
    assert main(["resume", str(previous / "black_box")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: 'black_box' cannot be continued: it began with '{key}', which was removed")
    assert said.count("\n") == 1
    assert file.read_text() == text
    assert run_json("status", str(previous / "black_box"))["state"] == "stopped"
    assert run_json("export", str(previous / "black_box"), "--trial", "7")["trial"] == 7


def test_other_settings_than_it_began_with_are_refused_as_ever(
    previous: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["resume", str(previous / "gradient"), "--set", "gradient.learning_rate=0.1"]) == 2
    assert "gradient was" in capsys.readouterr().err
    assert main(["resume", str(previous / "gradient"), "--set", "slopes.steps=9"]) == 2
    assert "'slopes.steps' is now 'gradient.steps'" in capsys.readouterr().err


def test_a_result_is_read_under_todays_names() -> None:
    old = json.loads((DATA / "gradient" / "result.json").read_text())
    now = translated_result(old)
    assert now["optimism"]["optimism"] == old["luck"]["luck"]
    assert "luck" not in now and "luck" not in now["optimism"]
    for before, after in zip(old["finalists"], now["finalists"], strict=True):
        assert after["thumbnail_spread"] == before["diversity"]
    assert translated_result(now) == now
    assert translated_result({**old, "luck": None})["optimism"] is None
