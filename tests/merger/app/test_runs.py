"""Where a run stands is read without a lock and without a trace; two searches never share a study."""

from __future__ import annotations

import json
import os
from pathlib import Path

import filelock
import pytest
import yaml

from merger.app.cli import main
from merger.app.commands import describe
from merger.app.runs import Run
from merger.errors import StudyError
from merger.search.baselines import KINDS, baselines_of
from merger.search.locks import study_lock
from merger.search.loop import search
from merger.search.space import make_space
from merger.search.study import SearchSettings, open_study
from merger.search.trials import Score
from merger.weights import Weights

DONORS = ("barber", "optician", "actor", "tailor")
SPACE = make_space(("IN", "OUT"), DONORS, bounds=(0, 1))


def made(folder: Path, **settings: object) -> Run:
    """A run folder as a search leaves it before its first trial."""
    folder.mkdir(parents=True)
    config = {
        "base": "base.safetensors",
        "donors": [f"{name}.safetensors" for name in DONORS],
        "tagger": "tagger",
        "vocabulary": {"top": 50},
        "trials": 40,
        **settings,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return Run(folder)


def worse_with_every_donor(weights: Weights, report: object = None) -> Score:
    value = 0.5 - 0.1 * sum(SPACE.flatten(weights))
    return Score(value, 0.01, 0.5, 0.01, 0.5, images=8, seconds=1.0)


def searched(run: Run, trials: int) -> None:
    baselines = baselines_of(SPACE, "base", KINDS)
    study = open_study(run.storage(run.config()), run.name, SPACE, identity={}, baselines=baselines)
    search(worse_with_every_donor, study, SearchSettings("random", 3, trials, 99, baselines=KINDS))


def test_status_counts_the_baselines_that_there_were(tmp_path: Path) -> None:
    """Five parents, the average, five more uniform blends, and four soups, none of which is better than the base."""
    run = made(tmp_path / "demo")
    searched(run, 12)
    assert (describe(run)["trials"], describe(run)["since_improvement"]) == (12, 0), "all are baselines so far"
    searched(run, 18)
    found = describe(run)
    assert (found["trials"], found["since_improvement"]) == (18, 3)


def test_looking_takes_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that begins while somebody looks must not be refused."""
    run = made(tmp_path / "demo")
    searched(run, 2)
    with monkeypatch.context() as watched:
        watched.setattr(filelock.FileLock, "acquire", lambda *given, **named: pytest.fail("a look must not lock"))
        assert describe(run)["state"] == "stopped"
    assert not run.lock_file.exists()
    with run.lock():
        assert describe(run)["state"] == "running"
    assert describe(run)["state"] == "stopped"


def test_looking_at_a_run_without_a_study_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "runs" / "demo")
    made(tmp_path / "runs" / "other", storage=f"sqlite:///{tmp_path}/nowhere/study.db")
    before = sorted(tmp_path.rglob("*"))
    for name in ("demo", "other"):
        assert main(["status", name]) == 2
        assert "there is no study" in capsys.readouterr().err
    assert main(["list", "--json"]) == 0
    assert [row["state"] for row in json.loads(capsys.readouterr().out)] == ["damaged", "damaged"]
    assert sorted(tmp_path.rglob("*")) == before


def test_two_folders_that_share_a_study_are_not_searched_at_once(tmp_path: Path) -> None:
    """And a folder that was made for the second search does not stay: its name is free."""
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    one, two = made(tmp_path / "here" / "demo"), made(tmp_path / "there" / "demo")
    with one.held(storage, "demo", new=True):
        with (
            pytest.raises(StudyError, match="a search is at work on it already") as caught,
            two.held(storage, "demo", new=False),
        ):
            pass
        assert "\n" not in str(caught.value)
        assert two.folder.exists()
        with pytest.raises(StudyError, match="at work on it already"), two.held(storage, "demo", new=True):
            pass
        assert not two.folder.exists()
        with pytest.raises(StudyError, match="at work here already"), one.held("sqlite://", "demo", new=True):
            pass
        assert one.folder.exists(), "the folder belongs to the search that is at work in it"
    with study_lock(storage, "demo"):
        pass


@pytest.mark.parametrize(
    ("storage", "mode"),
    [
        (None, 0o666),
        ("postgresql://me@host/studies", 0o666),
        ("postgresql://me:secret@host/studies", 0o600),
        ("postgresql://host/studies?password=secret", 0o600),
    ],
)
def test_a_password_in_a_configuration_is_its_owners_alone(storage: str | None, mode: int, tmp_path: Path) -> None:
    """The run needs it to go on. A file of version 0.1.0, which everybody may read, is replaced."""
    run = made(tmp_path / "demo", **({"storage": storage} if storage else {}))
    run.config_file.chmod(0o644)
    run.create(run.config())
    assert run.config_file.stat().st_mode & 0o777 == mode & ~_umask()
    assert run.config().storage == storage


def test_a_password_is_not_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "runs" / "demo", storage="postgresql://me:secret@127.0.0.1:1/studies?password=secret")
    made(tmp_path / "runs" / "odd", storage="postgresql://me:se/secret@host:port/studies")
    for arguments in (
        ["list"],
        ["list", "--json"],
        ["status", "demo"],
        ["status", "odd", "--json"],
        ["resume", "demo"],
        ["resume", "demo", "--set", "storage=postgresql://me:secret@host:port/x"],
        ["search", "runs/demo/config.yaml", "--storage", "postgresql://me:secret@host:port/x"],
    ):
        main(arguments)
    said = capsys.readouterr()
    assert "me:***@" in said.out + said.err
    assert "secret" not in said.out + said.err


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
