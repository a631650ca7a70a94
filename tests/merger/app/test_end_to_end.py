"""Whole tiny searches through the command line: real files, real pipelines, random weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from merger.app.cli import main

TAGS = ("blonde_hair", "blue_hair", "red_hair", "blue_eyes", "green_eyes", "smile", "open_mouth", "glasses", "hat")


@pytest.fixture(scope="module")
def settings(
    tiny_family: dict[str, Path],
    tiny_pipeline_folder: Path,
    tiny_tagger_folder: Path,
    tiny_wd_tagger: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, object]:
    vocabulary = tmp_path_factory.mktemp("words") / "vocabulary.csv"
    rows = [f"{tag},{tag.rsplit('_', 1)[-1]}," for tag in TAGS]
    vocabulary.write_text("\n".join(["tag,category,group", *rows]) + "\n")
    return {
        "base": str(tiny_family["base"]),
        "donors": [str(tiny_family["warm"]), {"path": str(tiny_family["cool"]), "bounds": [0, 0.5]}],
        "pipeline": str(tiny_pipeline_folder),
        "granularity": "stage",
        "tagger": str(tiny_tagger_folder),
        "judge": {"path": str(tiny_wd_tagger), "kind": "wd"},
        "threshold": 0.5,
        "vocabulary": str(vocabulary),
        "tags_per_prompt": [2, 3],
        "prompts": 6,
        "validation_prompts": 4,
        "test_prompts": 8,
        "steps": 1,
        "size": 32,
        "trials": 8,
        "baselines": ["uniform"],
        "method": "cmaes",
        "pruning": True,
        "batch_size": 6,
        "device": "cpu",
        "threads": 1,
    }


def written(folder: Path, settings: dict[str, object], **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump({**settings, **changes}))
    return file


@pytest.fixture(scope="module")
def finished(settings: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A finished search: (its folder, what it printed as JSON)."""
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        printed = run_json(["search", str(written(place, settings)), "--name", "tiny", "--json"])
    return place / "runs" / "tiny", printed


def run_json(arguments: list[str]) -> dict:
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(arguments) == 0
    return json.loads(out.getvalue())


def test_a_search_leaves_all_its_files(finished: tuple[Path, dict]) -> None:
    folder, result = finished
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["study"] == "tiny"
    assert result["trials"] == 8
    assert result["stopped_because"] == "trials: the limit of 8 is reached"
    assert [model["role"] for model in result["models"]].count("winner") == 1
    assert {model["role"] for model in result["models"]} == {"base", "donor", "uniform", "winner"}
    assert set(result["paired_difference_to_best_parent"]) == {"tagger", "judge"}
    for model in result["models"]:
        low, high = model["interval"]
        assert 0 <= low <= model["accuracy"] <= high <= 1
        assert model["judge_accuracy"] is not None
        assert set(model["categories"]) == {"hair", "eyes", "smile", "mouth", "glasses", "hat"}
    assert {path.name for path in (folder / "samples").iterdir()} == {"base.png", "best_donor.png", "winner.png"}
    page = (folder / "report.html").read_text()
    assert page.count("data:image/webp;base64,") == 3 * 8
    assert "http" not in page.replace("http://www.w3.org", "")


def test_the_study_keeps_everything_of_every_trial(finished: tuple[Path, dict]) -> None:
    import optuna

    folder, _ = finished
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{folder / 'study.db'}")
    assert [trial.user_attrs["role"] for trial in study.trials] == ["base", "donor", "donor", "uniform"] + [
        "search"
    ] * 4
    result = json.loads((folder / "result.json").read_text())
    assert study.user_attrs["winner"] == result["winner"]["trial"]
    assert study.user_attrs["finalists"] == [finalist["trial"] for finalist in result["finalists"]]
    assert study.user_attrs["recommended"] == result["recommended"]
    base = study.trials[0]
    assert base.user_attrs["images"] == 6
    assert len(base.user_attrs["per_prompt"]) == 6
    assert base.value == pytest.approx(base.user_attrs["probability"])
    assert np.mean(list(base.user_attrs["categories"].values())) <= 1
    checksums = [trial.user_attrs["checksum"] for trial in study.trials]
    assert len(set(checksums)) == len(checksums)
    assert all(
        0 <= value <= 0.5 for trial in study.trials[4:] for name, value in trial.params.items() if "cool" in name
    )


def test_the_winner_is_verified_and_scores_the_same_from_disk(finished: tuple[Path, dict]) -> None:
    folder, _ = finished
    verified = run_json(["verify", str(folder / "best.safetensors"), "--score", "--json"])
    assert verified["ok"]
    assert verified["score"]["difference"] == 0
    assert verified["score"]["probability"] == pytest.approx(verified["score"]["recorded_probability"], abs=1e-6)


def test_a_changed_file_is_not_verified(finished: tuple[Path, dict], tmp_path: Path) -> None:
    folder, _ = finished
    tensors = load_file(folder / "best.safetensors")
    with safe_open(folder / "best.safetensors", "np") as file:
        metadata = file.metadata()
    key = "model.diffusion_model.out.2.bias"
    tensors[key] = tensors[key] + np.float16(1)
    save_file(tensors, tmp_path / "changed.safetensors", metadata)
    assert main(["verify", str(tmp_path / "changed.safetensors")]) == 1


def test_export_writes_any_trial(finished: tuple[Path, dict], tmp_path: Path, tiny_family: dict[str, Path]) -> None:
    folder, _ = finished
    printed = run_json(["export", str(folder), "--trial", "1", "--output", str(tmp_path / "one.safetensors"), "--json"])
    assert printed["trial"] == 1
    donor, blend = load_file(tiny_family["warm"]), load_file(tmp_path / "one.safetensors")
    for key in donor:
        if key.startswith("model.diffusion_model."):
            assert np.array_equal(donor[key].view(np.uint16), blend[key].view(np.uint16)), key
    assert main(["export", str(folder), "--trial", "99"]) == 2


def test_export_needs_neither_tagger_nor_judge_nor_vocabulary(
    finished: tuple[Path, dict],
    settings: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They have moved, and what is exported still records the tagger that it was scored by."""
    from benchmark.taggers.registry import open_tagger
    from merger.app.scored_files import SCORE_KEY

    folder = tmp_path / "runs" / "tiny"
    shutil.copytree(finished[0], folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for key in ("tagger", "judge", "vocabulary"):
        config[key]["path"] = f"/moved/{key}"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    assert main(["resume", "tiny"]) == 2, "a search needs them"
    printed = run_json(["export", "tiny", "--json"])
    assert printed["file"] == str(folder / "best.safetensors")
    with safe_open(folder / "best.safetensors", "np") as new, safe_open(finished[0] / "best.safetensors", "np") as old:
        later, before = ({**file.metadata(), "modelspec.date": ""} for file in (new, old))
        assert later == before
        score = json.loads(later[SCORE_KEY])
    assert score["tagger"] == open_tagger(Path(str(settings["tagger"]))).fingerprint
    assert run_json(["verify", str(folder / "best.safetensors"), "--json"])["ok"]
    capsys.readouterr()
    config["donors"].reverse()
    config["granularity"] = "block"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["export", "tiny"]) == 2
    assert "'tiny' began differently, so its weights mean another blend: granularity was" in capsys.readouterr().err


def test_status_list_and_inspect(finished: tuple[Path, dict], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = finished
    found = run_json(["status", str(folder), "--json"])
    assert (found["state"], found["trials"], found["limit"]) == ("finished", 8, 8)
    result = json.loads((folder / "result.json").read_text())
    evaluations = [path.name.partition("-")[0] for path in (folder / "scores").iterdir()]
    drawn = 8 * 6 + 4 * evaluations.count("validation") + 8 * evaluations.count("test")
    assert found["images"] == result["images_drawn"] == drawn
    assert found["seconds"] == result["seconds"]
    assert f"8 trials, {drawn} images" in (folder / "report.html").read_text()
    assert main(["status", str(folder)]) == 0
    assert "best parent" in capsys.readouterr().out
    assert [row["name"] for row in run_json(["list", str(folder.parent), "--json"])] == ["tiny"]
    assert run_json(["inspect", str(folder / "best.safetensors"), "--json"])["fit"]["ok"]


def test_continuing_is_the_same_as_not_having_stopped(
    finished: tuple[Path, dict], settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three searches of one kind: one whole, one in two sittings, the second begun by `resume`."""
    monkeypatch.chdir(tmp_path)
    file = str(written(tmp_path, settings))
    assert main(["search", file, "--name", "tiny", "--set", "patience=1"]) == 0
    assert 4 < len(trials_of(tmp_path / "runs" / "tiny")) < 8
    result = run_json(["resume", "tiny", "--set", "patience=60", "--json"])
    assert trials_of(tmp_path / "runs" / "tiny") == trials_of(finished[0])
    for key in ("models", "winner", "paired_difference_to_best_parent"):
        assert result[key] == finished[1][key]


def test_a_changed_setting_or_source_is_refused_by_name(
    finished: tuple[Path, dict],
    settings: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(finished[0].parent.parent)
    before = (finished[0] / "config.yaml").read_text()
    assert main(["search", str(written(tmp_path, settings, steps=3)), "--name", "tiny"]) == 2
    assert "steps was 1, is 3" in capsys.readouterr().err
    assert main(["resume", "tiny", "--set", "prompts=8"]) == 2
    assert "prompts was" in capsys.readouterr().err
    assert (finished[0] / "config.yaml").read_text() == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": "missing.safetensors"}, "missing.safetensors"),
        ({"donors": ["missing.safetensors"]}, "missing.safetensors"),
        ({"donors": ["cut.safetensors"]}, "cut.safetensors"),
        ({"donors": ["text.safetensors"]}, "text.safetensors"),
        ({"donors": ["other.safetensors"]}, "'conv_in.weight' is [8, 9, 3, 3]"),
        ({"donors": ["pickle.ckpt"]}, "pickle"),
        ({"base": "pickle.ckpt", "allow_pickle": True}, "To convert: merger convert "),
        ({"bounds": [1, 0]}, "wrong way round"),
        ({"promts": 4}, "Did you mean 'prompts'?"),
        ({"vocabulary": "words.csv"}, "'blond_hair'"),
        ({"frozen": ["IN9"]}, "no layer 'IN9'"),
        ({"sampler": "dimm"}, "Did you mean 'ddim'?"),
        ({"tagger": "nowhere"}, "nowhere"),
        ({"pipeline": "nowhere"}, "nowhere"),
        ({"tags_per_prompt": 40}, "40 tags per prompt"),
        ({"storage": "nonsense://"}, "storage nonsense://"),
        ({"donors": [{"path": "pickle.ckpt", "name": "uniform"}]}, "'uniform'"),
    ],
)
def test_bad_input_is_one_line_status_2_and_no_run(
    changes: dict[str, object],
    said: str,
    settings: dict[str, object],
    tiny_family: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = tiny_family["warm"].read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.safetensors").write_text("this is no model")
    (tmp_path / "pickle.ckpt").write_bytes(b"\x80\x02}q\x00.")
    (tmp_path / "words.csv").write_text("tag,category,group\nblond_hair,hair,\nsmile,face,\nhat,head,\n")
    tensors = load_file(tiny_family["warm"])
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = np.zeros((8, 9, 3, 3), np.float16)
    save_file(tensors, tmp_path / "other.safetensors")
    assert main(["search", str(written(tmp_path, settings, **changes)), "--name", "bad"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    assert said in error
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_the_winner_of_a_folder_is_a_folder(
    settings: dict[str, object], tiny_diffusers_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written at the end, written again where the search goes on or `merger export` is asked, and scored from disk."""
    monkeypatch.chdir(tmp_path)
    changes = {"donors": settings["donors"][:1], "trials": 6, "validation_prompts": 2, "test_prompts": 2}  # type: ignore[index]
    file = written(tmp_path, {key: value for key, value in settings.items() if key != "pipeline"}, **changes)
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"base": str(tiny_diffusers_folder)}))
    run_json(["search", str(file), "--name", "folder", "--json"])
    best = tmp_path / "runs" / "folder" / "best"
    assert {"model_index.json", "unet", "vae", "tokenizer"} <= {path.name for path in best.iterdir()}
    assert run_json(["verify", str(best), "--score", "--json"])["ok"]
    (best / "stale").touch()
    assert main(["resume", "folder", "--trials", "7"]) == 0
    assert not (best / "stale").exists()
    (best / "stale").touch()
    assert run_json(["export", "folder", "--json"])["file"] == str(best)
    assert not (best / "stale").exists()
    assert main(["export", "folder", "--output", str(best)]) == 2, "a folder that a user names is left alone"
    assert run_json(["verify", str(best), "--json"])["ok"]
    assert not [path.name for path in best.parent.iterdir() if path.name.startswith(".best")]


def trials_of(folder: Path) -> list[tuple]:
    from merger.search.study import read_study

    records = read_study(f"sqlite:///{folder / 'study.db'}", folder.name).records()
    return [(record.number, record.weights, record.value, record.score.checksum) for record in records]


def test_ctrl_c_keeps_what_is_done_and_a_second_run_goes_on(
    finished: tuple[Path, dict],
    settings: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The signal is real; it comes as soon as the third trial begins."""
    from merger.report.progress import SearchProgress

    def start(progress: SearchProgress, title: str) -> None:
        if title == "trial 2":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as pressed:
        pressed.setattr(SearchProgress, "start", start)
        assert main(["search", str(written(tmp_path, settings)), "--name", "tiny"]) == 130
    said = capfd.readouterr().err
    assert "stopping after trial 2; Ctrl-C again stops at once" in said
    assert "continue with: merger resume runs/tiny" in said
    folder = tmp_path / "runs" / "tiny"
    assert trials_of(folder) == trials_of(finished[0])[:3]
    assert main(["resume", str(folder)]) == 0
    assert trials_of(folder) == trials_of(finished[0])


def test_a_second_ctrl_c_stops_at_once(
    settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from merger.report.progress import SearchProgress

    def start(progress: SearchProgress, title: str) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SearchProgress, "start", start)
    assert main(["search", str(written(tmp_path, settings)), "--name", "tiny"]) == 130
    assert "nothing finished is lost" in capsys.readouterr().err
    assert trials_of(tmp_path / "runs" / "tiny") == []


FULL_DISK = """
import resource, sys
from merger.app.cli import main
for limit in (100_000, 800_000):  # bytes a file may have: too few to begin, too few for all trials
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    print("---", file=sys.stderr, flush=True)
    print("status", main([*sys.argv[1:], f"tiny{limit}"]), flush=True)
"""


def test_a_full_disk_keeps_what_is_done_and_a_second_run_goes_on(
    finished: tuple[Path, dict], settings: dict[str, object], tmp_path: Path
) -> None:
    pytest.importorskip("resource", reason="limits of this kind are Unix's")
    command = [sys.executable, "-c", FULL_DISK, "search", str(written(tmp_path, settings)), "--name"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["status 2"] * 2, done.stderr
    assert "Traceback" not in done.stderr
    to_begin, for_all_trials = (said.splitlines()[-1] for said in done.stderr.split("---\n")[1:])
    assert to_begin.startswith("error: ")
    assert "cannot be opened" in to_begin
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny800000"]
    folder = tmp_path / "runs" / "tiny800000"
    assert for_all_trials.startswith("error: ")
    assert for_all_trials.endswith(
        f"takes no more (disk I/O error). What is finished is kept: fix that, then `merger resume {folder}`."
    )
    assert 1 <= len(trials_of(folder)) < 8
    assert main(["resume", str(folder)]) == 0
    assert trials_of(folder) == trials_of(finished[0])


def test_a_search_by_gradients_and_its_continuation(
    settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step, an evaluation, a step, an evaluation: whole, and stopped after the first trial."""
    from merger.search.study import read_study

    monkeypatch.chdir(tmp_path)
    changes = {
        "method": "auto",
        "trials": 30,
        "baselines": ["uniform", "best_uniform", "greedy_soup"],
        "validation_prompts": 2,
        "test_prompts": 2,
        "steps": 2,
    }
    file = str(written(tmp_path, settings, gradient={"steps": 2, "eval_every": 1}, **changes))
    result = run_json(["search", file, "--name", "whole", "--json"])
    assert result["stopped_because"] == "gradients: all 2 steps are taken"
    said = capsys.readouterr().err
    assert "method: gradient, as the tagger" in said
    assert "baselines take at most 11 trials, 66 images" in said
    assert "memory of a step: " in said
    assert main(["search", file, "--name", "two", "--set", "time_limit=0.001"]) == 0
    assert run_json(["resume", "two", "--set", "time_limit=null", "--json"])["models"] == result["models"]
    records = {
        name: read_study(f"sqlite:///{tmp_path / 'runs' / name / 'study.db'}", name).records()
        for name in ("whole", "two")
    }
    searched = [record for record in records["whole"] if record.role in ("step", "search")]
    assert [record.role for record in searched] == ["step", "search"] * 2
    assert {record.role for record in records["whole"]} >= {"best_uniform", "greedy_soup"}
    kept = {
        name: [(r.weights, r.value, r.score.checksum, r.score.attributes.get("gradient")) for r in records[name]]
        for name in records
    }
    assert kept["two"] == kept["whole"]
    step = searched[0]
    assert np.abs(step.score.attributes["gradient"]).max() > 0
    assert step.score.images == 6
    moved = np.array(step.score.attributes["gradient"]) != 0
    weights = [np.array([w for row in searched[n].weights.values() for w in row.values()]) for n in (0, 2)]
    assert (weights[0] != weights[1])[moved].all()
    assert (tmp_path / "runs" / "whole" / "report.html").is_file()


def test_a_wd_taggers_weights_have_gradients(
    settings: dict[str, object],
    tiny_timm_tagger: Path,
    timm: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from merger.search.study import read_study

    monkeypatch.chdir(tmp_path)
    changes = {"method": "gradient", "gradient": {"steps": 1}, "baselines": [], "judge": settings["tagger"]}
    file = written(tmp_path, settings, tagger={"path": str(tiny_timm_tagger), "kind": "wd-timm"}, **changes)
    assert run_json(["search", str(file), "--name", "wd", "--json"])["trials"] == 5
    records = read_study(f"sqlite:///{tmp_path / 'runs' / 'wd' / 'study.db'}", "wd").records()
    (step,) = (record for record in records if record.role == "step")
    assert np.abs(step.score.attributes["gradient"]).max() > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tagger": "judge"}, "cannot be differentiated"),
        ({"gradient": {"rates": 1}}, "'gradient.rates' is not a setting"),
        ({"gradient": {"backprop_fraction": 0}}, "gradient.backprop_fraction"),
    ],
)
def test_what_has_no_gradients_is_refused(
    changes: dict[str, object],
    said: str,
    settings: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if changes.get("tagger"):
        changes = {"tagger": settings["judge"]}
    assert main(["search", str(written(tmp_path, settings, method="gradient", **changes)), "--name", "bad"]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert said in error
    assert not (tmp_path / "runs").exists()


def test_baselines_leave_room_for_the_search(
    settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The limit would end the search before the sampler proposes anything. What is said later counts as it is."""
    monkeypatch.chdir(tmp_path)
    changes = {"donors": settings["donors"][:1], "trials": 2, "validation_prompts": 2, "test_prompts": 2}  # type: ignore[index]
    result = run_json(["search", str(written(tmp_path, settings, **changes)), "--name", "demo", "--json"])
    said = capsys.readouterr().err
    assert "trials: the baselines alone take up to 3, so the limit of 2 is raised to 6" in said
    assert said.index("is raised to 6") < said.index("trial 0 (1 of 6)")
    assert result["trials"] == 6
    folder = tmp_path / "runs" / "demo"
    assert yaml.safe_load((folder / "config.yaml").read_text())["trials"] == 6
    assert run_json(["resume", "demo", "--trials", "2", "--json"])["trials"] == 6
    assert "is raised" not in capsys.readouterr().err


def test_every_line_names_its_model_and_trials_have_one_numbering(
    finished: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evaluations that were made before have their lines too, so the numbers of a resumed selection add up."""
    import re

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "tiny"
    shutil.copytree(finished[0], folder)
    assert main(["resume", "tiny"]) == 0
    assert "(made before)" in capsys.readouterr().err
    shutil.rmtree(folder / "scores")
    assert main(["resume", "tiny", "--trials", "9"]) == 0
    said = capsys.readouterr().err
    assert re.search(
        r"^trial 8 \(9 of 9\): 0\.\d+ \| best 0\.\d+ ± 0\.\d+ \((trial \d|uniform|warm|cool|base)\)", said, re.M
    )
    winner = json.loads((folder / "result.json").read_text())["winner"]["trial"]
    for which, last in (("validation", "base|warm|cool"), ("test", rf"trial {winner}|base|warm|cool|uniform")):
        lines = re.findall(rf"^{which} (\d+) of (\d+): (.+) 0\.\d{{4}} ± 0\.\d{{4}}$", said, re.MULTILINE)
        assert [int(number) for number, _, _ in lines] == list(range(1, int(lines[0][1]) + 1))
        assert all(re.fullmatch(rf"trial \d( \(.+\))?|{last}", name) for _, _, name in lines), lines
