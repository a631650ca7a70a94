"""Run folders that were renamed, copied, damaged or emptied: they are continued as what they are, or refused."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.storages import RDBStorage

from merger.app.cli import main
from merger.app.runs import Run
from merger.config.config import Config
from merger.search.baselines import baselines_of
from merger.search.loop import search
from merger.search.space import make_space
from merger.search.storage import stored
from merger.search.study import SearchSettings, open_study, read_study
from merger.search.trials import Score
from merger.search.urls import sqlite_url
from merger.weights import Weights

DATA = Path(__file__).parents[2] / "data" / "previous"
SPACE = make_space(("IN", "OUT"), ("one", "two"), bounds=(0, 1))


def made(folder: Path, *, trials: int = 5, **settings: object) -> Run:
    """A run as a search leaves it that was stopped after some trials."""
    folder.mkdir(parents=True)
    config = {
        "name": folder.name,
        "base": "/base.safetensors",
        "donors": ["/one.safetensors", "/two.safetensors"],
        "tagger": "/tagger",
        "vocabulary": {"top": 50},
        **settings,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    run = Run(folder)

    def value(weights: Weights, report: object = None) -> Score:
        return Score(0.5 - sum(SPACE.flatten(weights)) / 10, 0.01, 0.5, 0.01, 0.5, images=8, seconds=1.0)

    with stored(run.storage(run.config())) as storage:
        baselines = baselines_of(SPACE, "base")
        study = open_study(storage, folder.name, SPACE, identity={"seed": "1"}, baselines=baselines)
        search(value, study, SearchSettings("random", 3, trials, 99))
        assert isinstance(storage, RDBStorage)
        storage.engine.dispose()
    return run


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends in."""
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run to make copies of."""
    return made(tmp_path_factory.mktemp("stopped") / "demo")


def test_a_renamed_run_goes_on_with_its_own_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole search: the study keeps its name, its trials are kept, and no second study appears beside it."""
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(DATA, tmp_path / "previous")
    config = folder / "black_box" / "config.yaml"
    config.write_text(config.read_text().replace("/previous", str(folder)))
    (folder / "black_box").rename(tmp_path / "moved")
    url = sqlite_url(tmp_path / "moved" / "study.db")
    before = read_study(url, "black_box").records()
    assert main(["resume", "moved", "--trials", "9"]) == 0
    assert read_study(url, "black_box").records()[: len(before)] == before
    assert len(read_study(url, "black_box").records()) == 9
    assert optuna.get_all_study_names(url) == ["black_box"]
    assert json.loads((tmp_path / "moved" / "result.json").read_text())["study"] == "black_box"


@pytest.mark.parametrize("arguments", [["resume", "copy"], ["search", "runs/copy/config.yaml", "--name", "copy"]])
def test_a_copied_run_is_taken_for_what_it_is(
    arguments: list[str], stopped: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from merger.app import commands

    monkeypatch.chdir(tmp_path)
    shutil.copytree(stopped.folder, tmp_path / "runs" / "copy")
    assert main(["status", "copy"]) == 0
    begun = []

    def begin(config: Config, run: Run, args: object, *, create: bool) -> int:
        begun.append((config.name, run.study_name(config), run.folder, create))
        return 0

    monkeypatch.setattr(commands, "_search", begin)
    assert main(arguments) == 0
    assert begun == [("demo", "demo", tmp_path / "runs" / "copy", False)]


def test_resume_never_creates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = made(tmp_path / "runs" / "demo")
    for left in run.folder.glob("*study.db*"):
        left.unlink()
    before = sorted(tmp_path.rglob("*"))
    for command in ("resume", "status", "export"):
        if command != "export":  # which opens the checkpoints first
            assert "there is no study 'demo'" in refused([command, "demo"], capsys)
    assert sorted(tmp_path.rglob("*")) == before
    # nor does a search over its results
    (run.folder / "result.json").write_text("{}")
    line = refused(["search", str(run.config_file), "--name", "demo"], capsys)
    assert "its study 'demo' is gone, but results of it are there" in line


def test_a_study_of_another_name_in_the_same_database_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = made(tmp_path / "runs" / "demo")
    config = yaml.safe_load(run.config_file.read_text())
    run.config_file.write_text(yaml.safe_dump(config | {"name": "another"}))
    assert "there is no study 'another'" in refused(["resume", "demo"], capsys)
    assert optuna.get_all_study_names(run.storage(run.config())) == ["demo"]


def test_an_old_run_without_a_name_has_its_folders(tmp_path: Path) -> None:
    run = made(tmp_path / "demo")
    config = yaml.safe_load(run.config_file.read_text())
    del config["name"]
    run.config_file.write_text(yaml.safe_dump(config))
    assert run.study_name(run.config()) == "demo"


def test_a_relative_storage_is_kept_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a configuration it starts at the file's folder, on the command line at the folder the command is called from,
    and an old run has it where the search was called."""
    from merger.app import commands
    from merger.config.loading import dump_config, load_config

    plain = {"base": "b", "donors": ["one"], "tagger": "t", "vocabulary": {"top": 5}, "storage": "sqlite:///my.db"}
    (tmp_path / "here").mkdir()
    file = tmp_path / "here" / "search.yaml"
    file.write_text(yaml.safe_dump(plain))
    monkeypatch.chdir(tmp_path)
    config = load_config(file)
    assert config.storage == f"sqlite:///{tmp_path}/here/my.db"
    assert yaml.safe_load(dump_config(config))["storage"] == config.storage
    caught = []
    monkeypatch.setattr(commands, "_search", lambda config, *rest, **more: caught.append(config.storage) or 0)
    assert main(["search", str(file), "--storage", "sqlite:///mine.db"]) == 0
    assert caught == [f"sqlite:///{tmp_path}/mine.db"]
    old = made(tmp_path / "runs" / "old", storage="sqlite:///shared.db")
    assert (tmp_path / "shared.db").is_file()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["status", str(old.folder)]) == 0
    assert Run(old.folder).storage(old.config()) == f"sqlite:///{tmp_path}/shared.db"


def edited(statement: str) -> Callable[[Run], None]:
    def damage(run: Run) -> None:
        with sqlite3.connect(run.database) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.execute(statement)
        connection.close()

    return damage


def rewritten(change: Callable[[bytearray], object]) -> Callable[[Run], None]:
    def damage(run: Run) -> None:
        edited("DELETE FROM version_info WHERE 0")(run)
        data = bytearray(run.database.read_bytes())
        change(data)
        run.database.write_bytes(data)

    return damage


def scrambled(data: bytearray) -> None:
    data[8192:] = bytes(byte ^ 0x5A for byte in data[8192:])


def beheaded(data: bytearray) -> None:
    data[:64] = b"x" * 64


def cut(data: bytearray) -> None:
    del data[len(data) // 2 // 4096 * 4096 :]


OF_A_TRIAL = "UPDATE trial_user_attributes SET value_json = '{}' WHERE key = '{}'"
DAMAGES: dict[str, Callable[[Run], None]] = {
    "no JSON": edited(OF_A_TRIAL.format("not json", "weights")),
    "another shape": edited(OF_A_TRIAL.format('{"a": 1}', "weights")),
    "texts for numbers": edited(OF_A_TRIAL.format('["a", "b", "c", "d"]', "weights")),
    "a text for a number": edited(OF_A_TRIAL.format('"much"', "accuracy")),
    "no role": edited("DELETE FROM trial_user_attributes WHERE key = 'role'"),
    "a role that is a list": edited(OF_A_TRIAL.format("[1]", "role")),
    "no score": edited("DELETE FROM trial_user_attributes WHERE key = 'accuracy'"),
    "no space": edited("UPDATE study_user_attributes SET value_json = '[]' WHERE key = 'space'"),
    "a dropped table": edited("DROP TABLE trial_user_attributes"),
    "no trials": edited("DROP TABLE trials"),
    "no tables": edited("DROP TABLE studies"),
    "damaged pages": rewritten(scrambled),
    "a damaged head": rewritten(beheaded),
    "cut off": rewritten(cut),
    "emptied": rewritten(bytearray.clear),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_study_is_one_line_and_hides_no_other(
    damage: Callable[[Run], None],
    stopped: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("good", "bad"):
        shutil.copytree(stopped.folder, tmp_path / "runs" / name)
    damage(Run(tmp_path / "runs" / "bad"))
    refused(["status", "bad"], capsys)
    refused(["resume", "bad"], capsys)
    assert main(["list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["good"]["state"], rows["bad"]["state"]) == ("stopped", "damaged")
    assert "study" in rows["bad"]["problem"]
    assert main(["list"]) == 0
    assert capsys.readouterr().out.count("\n") == 2


@pytest.mark.parametrize(
    "text", ["[]", "null", "3", "{", "{}", '{"winner": [], "stopped_because": 1, "models": {}}', ""]
)
def test_a_damaged_result_is_one_line(
    text: str, stopped: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run(shutil.copytree(stopped.folder, tmp_path / "runs" / "demo"))
    run.result_file.write_text(text)
    capsys.readouterr()
    assert main(["status", "demo"]) == 2
    found = capsys.readouterr()
    assert found.err.startswith("error: ") and found.err.count("\n") == 1
    assert "result.json: is damaged" in found.err
    assert "merger resume" in found.err
    assert main(["list"]) == 0


def test_a_missing_table_is_not_made_anew(tmp_path: Path) -> None:
    """It would be a study without trials, and the next search would begin it again."""
    run = made(tmp_path / "demo")
    edited("DROP TABLE trial_user_attributes")(run)
    with stored(run.storage(run.config()), create=False):
        pass
    with sqlite3.connect(run.database) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    connection.close()
    assert "trial_user_attributes" not in tables


@pytest.mark.parametrize("name", ["what?", "50%", "a{b}c", "#1", "naïve und schön", "a%3Fb", "file:x"])
def test_a_study_lies_in_its_run_whatever_the_paths_characters(name: str, tmp_path: Path) -> None:
    run = made(tmp_path / name / "runs" / "demo")
    assert run.database.is_file()
    assert len(read_study(run.storage(run.config()), "demo").records()) == 5
    assert [path.name for path in tmp_path.iterdir()] == [name]
