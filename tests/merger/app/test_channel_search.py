"""A whole search with a weight for each channel: found, stopped, continued, exported, verified, merged again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from merger.app.cli import main
from merger.app.runs import Run
from merger.search.artifacts import Artifacts
from merger.search.study import Study, read_study
from merger.search.trials import STEP
from merger.weights import Channels, by_channel, key_of

TAGS = ("blonde_hair", "blue_hair", "red_hair", "blue_eyes", "green_eyes", "smile")
GRADIENT = {"steps": 3, "eval_every": 2, "learning_rate": 0.1}


@pytest.fixture(scope="module")
def written(
    tiny_family: dict[str, Path], tiny_pipeline_folder: Path, tiny_tagger_folder: Path, tmp_path_factory: Any
) -> Path:
    folder: Path = tmp_path_factory.mktemp("channels")
    vocabulary = folder / "vocabulary.csv"
    vocabulary.write_text("\n".join(["tag,category,group", *(f"{t},{t.rsplit('_', 1)[-1]}," for t in TAGS)]) + "\n")
    settings = {
        "base": str(tiny_family["base"]),
        "donors": [str(tiny_family["warm"]), {"path": str(tiny_family["cool"]), "bounds": [0, 0.5]}],
        "pipeline": str(tiny_pipeline_folder),
        "granularity": "channel",
        "tagger": str(tiny_tagger_folder),
        "threshold": 0.5,
        "vocabulary": str(vocabulary),
        "tags_per_prompt": [2, 3],
        "prompts": 4,
        "validation_prompts": 2,
        "test_prompts": 2,
        "steps": 2,
        "size": 32,
        "trials": 12,
        "baselines": ["uniform"],
        "method": "gradient",
        "gradient": GRADIENT,
        "batch_size": 4,
        "device": "cpu",
        "threads": 1,
    }
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.fixture(scope="module")
def finished(written: Path) -> tuple[Run, dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(written.parent)
        assert main(["search", str(written), "--name", "whole"]) == 0
    run = Run(written.parent / "runs" / "whole")
    return run, json.loads(run.result_file.read_text())


def study_of(run: Run) -> Study:
    return read_study(run.storage(run.config()), run.name, artifacts=Artifacts(run.artifacts))


def test_the_steps_move_channels_apart(finished: tuple[Run, dict[str, Any]]) -> None:
    run, result = finished
    records = study_of(run).records()
    steps = [record for record in records if record.role == STEP]
    assert len(steps) == 3 and all(by_channel(step.weights) for step in steps)
    last = steps[-1].weights["conv_in.weight"]["warm"]
    assert isinstance(last, Channels) and len(np.unique(last.values)) > 1
    assert isinstance(steps[-1].weights["conv_in.bias"]["warm"], float)
    assert result["stopped_because"] == "gradients: all 3 steps are taken"
    shown = result["winner"]["weights"]["conv_in.weight"]["warm"]
    assert isinstance(shown, float)
    assert run.result_file.stat().st_size < 200_000 and "<svg" in run.report.read_text()


def test_the_winner_is_a_file_that_can_be_verified_and_made_again(
    finished: tuple[Run, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished
    number = next(record.number for record in study_of(run).records() if by_channel(record.weights))
    out = tmp_path / "trial.safetensors"
    assert main(["export", str(run.folder), "--trial", str(number), "--output", str(out)]) == 0
    assert main(["verify", str(out)]) == 0
    assert "verified" in capsys.readouterr().out
    weights, copy = out.with_name("trial.recipe.safetensors"), tmp_path / "again.safetensors"
    assert main(["merge", str(weights), "--output", str(copy)]) == 0
    mine, again = load_file(out), load_file(copy)
    assert all(torch.equal(mine[key], again[key]) for key in mine)
    assert main(["verify", str(run.best)]) == 0
    assert main(["status", str(run.folder)]) == 0
    result = json.loads(run.result_file.read_text())
    named = result["winner"].get("weights_file")
    assert (run.folder / named).is_file() if named else result["winner"]["role"] != "search"


def test_a_search_that_is_stopped_anywhere_gives_the_same_trials(
    finished: tuple[Run, dict[str, Any]], written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, result = finished
    monkeypatch.chdir(written.parent)
    finish, left = Study.finish, 0

    def stopped(study: Study, *arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return finish(study, *arguments)

    monkeypatch.setattr(Study, "finish", stopped)
    command = ["search", str(written), "--name", "stopped"]
    for stop_after in (4, 2, 3):
        left = stop_after
        assert main(command) == 130
        command = ["resume", "stopped"]
    left = -1
    assert main(command) == 0
    again = Run(written.parent / "runs" / "stopped")
    alike = [study_of(each).records() for each in (run, again)]
    assert [(r.role, r.value, r.score.checksum, key_of(r.weights)) for r in alike[0]] == [
        (r.role, r.value, r.score.checksum, key_of(r.weights)) for r in alike[1]
    ]
    assert {path.name for path in run.artifacts.iterdir()} == {path.name for path in again.artifacts.iterdir()}
    found = json.loads(again.result_file.read_text())
    assert found["winner"] == result["winner"] and found["models"] == result["models"]


def test_the_result_and_the_report_say_where_the_gain_came_from(
    written: Path,
    finished: tuple[Run, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert finished[1]["importance"] is None, "three steps are too few"
    assert "Where the gain came from" not in finished[0].report.read_text()
    monkeypatch.chdir(written.parent)
    changes = ["gradient.steps=9", "gradient.eval_every=9", "trials=40"]
    assert main(["search", str(written), "--name", "map", *(arg for each in changes for arg in ("--set", each))]) == 0
    run = Run(written.parent / "runs" / "map")
    result = json.loads(run.result_file.read_text())
    found = result["importance"]
    assert found["steps"] == 9 and list(found["donors"]) == ["warm", "cool"]
    assert len(result["winner"]["weights"]) > 40 >= len(found["rows"]) > 1 and "IN01" in found["rows"], "by block"
    cells = [cell for row in found["rows"].values() for cell in row.values()]
    assert sum(gain for gain, _ in cells) == pytest.approx(found["gain"], rel=0.01, abs=1e-6) and found["gain"] != 0
    assert all(stderr >= 0 for _, stderr in cells) and found["stderr"] > 0
    (gains,) = study_of(run).gains_until(result["winner"]["trial"]) or [np.zeros((0, 2, 0))]
    assert gains[:, 0].sum() == pytest.approx(found["gain"], rel=1e-3)
    assert "Where the gain came from" in run.report.read_text()
    assert "gain along the gradient steps, in mean log probability: " in capsys.readouterr().out


def test_methods_without_gradients_are_refused_before_anything_is_loaded(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("merger.app.run_search.load_runtime", lambda *_, **__: pytest.fail("nothing is loaded"))
    assert main(["search", str(written), "--name", "tpe", "--set", "method=tpe"]) == 2
    assert "'tpe' cannot propose the" in (said := capsys.readouterr().err) and "granularity 'tensor'" in said
    assert not (tmp_path / "runs").exists()


def test_arrays_that_are_gone_are_said_in_one_line(
    finished: tuple[Run, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished
    copy = Run(shutil.copytree(run.folder, tmp_path / "whole"))
    shutil.rmtree(copy.artifacts)
    number = next(record.number for record in study_of(run).records() if by_channel(record.weights))
    assert main(["export", str(copy.folder), "--trial", str(number)]) == 2
    assert "an array of this study is missing" in capsys.readouterr().err


def test_several_searches_end_in_an_average_and_blends_of_blends_are_blends(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And files of blends, averaged by a recipe written by hand, are the file of their average."""
    monkeypatch.chdir(written.parent)
    several = ["--set", "trials=30", "--set", "gradient.searches=2"]
    assert main(["search", str(written), "--name", "several", *several]) == 0
    shown = capsys.readouterr()
    run = Run(written.parent / "runs" / "several")
    result = json.loads(run.result_file.read_text())
    assert result["stopped_because"] == "gradients: all 3 steps of 2 searches are taken"
    found = result["searches"]
    assert (found["planned"], [each["steps"] for each in found["members"]]) == (2, [3, 3])
    average, strengths = found["average"]["trial"], found["strengths"]
    assert 2 <= len(strengths) <= 3 and strengths[0]["strength"] == 1.15
    tried = {average, *(each["trial"] for each in strengths)}
    records = study_of(run).records()
    finalists = {finalist["trial"] for finalist in result["finalists"]}
    kept = [records[number].weights for number in finalists]
    assert all(number in finalists or records[number].weights in kept for number in tried)
    assert "weights by gradient in 2 searches" in shown.err and "step of search 2, own prompts" in shown.err
    assert "2 of 2 searches are averaged" in shown.err
    assert "average of 2 searches x 1.15" in shown.out and "search 2 of 2" in shown.out
    assert "The searches and their average" in run.report.read_text()
    assert main(["verify", str(run.best)]) == 0
    assert main(["resume", str(run.folder)]) == 0
    assert json.loads(run.result_file.read_text())["searches"] == found

    numbers = [each["trial"] for each in found["members"]]
    for number in (*numbers, average):
        out = ["--output", str(tmp_path / f"{number}.safetensors")]
        assert main(["export", str(run.folder), "--trial", str(number), *out]) == 0
    recipe = {
        "base": str(written.parent / yaml.safe_load(written.read_text())["base"]),
        "donors": [f"{number}.safetensors" for number in numbers],
        "weights": {"*": {str(number): 0.5 for number in numbers}},
    }
    (tmp_path / "average.json").write_text(json.dumps(recipe))
    assert main(["merge", str(tmp_path / "average.json"), "--output", str(tmp_path / "by_hand.safetensors")]) == 0
    mine, again = (load_file(tmp_path / name) for name in (f"{average}.safetensors", "by_hand.safetensors"))
    for key in mine:
        torch.testing.assert_close(mine[key], again[key], rtol=2e-3, atol=2e-5)
