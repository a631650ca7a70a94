"""A study belongs to one process at a time; whoever looks takes no lock."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import pytest
import sqlalchemy
from optuna.storages import InMemoryStorage, RDBStorage

from merger.errors import StudyError
from merger.search.locks import Owner, file_lock, owner_of, study_lock, take_server_lock

HOLDER = """
import sys
from pathlib import Path
from merger.search.locks import file_lock, study_lock
with file_lock(Path(sys.argv[1]), "busy"), study_lock(sys.argv[2], sys.argv[3]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(file: Path, storage: str, name: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the file and the study until its input ends."""
    arguments = [sys.executable, "-c", HOLDER, str(file), storage, name]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_one_process_at_a_time_until_it_is_killed(tmp_path: Path) -> None:
    file, storage = tmp_path / ".lock", f"sqlite:///{tmp_path / 'study.db'}"
    assert owner_of(file) is None
    with another_process(file, storage, "demo") as process:
        owner = owner_of(file)
        assert owner is not None
        assert (owner.pid, owner.host) == (process.pid, socket.gethostname())
        with pytest.raises(StudyError) as caught, file_lock(file, "here: busy"):
            pass
        assert str(caught.value) == f"here: busy (process {process.pid} on {owner.host}); wait for it or stop it"
        said = r"study 'demo' in sqlite:.*: a search is at work on it already \(process"
        with pytest.raises(StudyError, match=said), study_lock(storage, "demo"):
            pass
        with study_lock(storage, "other"):
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert owner_of(file) is None, "its record is still there, and counts for nothing"
        with file_lock(file, "busy"), study_lock(storage, "demo"):
            owner = owner_of(file)
            assert owner is not None and owner.pid == os.getpid()
    assert owner_of(file) is None


def test_however_the_database_is_named_it_is_the_same_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two run folders that share a database: one path is relative, the other leads through a link."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with study_lock("sqlite:///there/study.db", "demo"):
        for same in (f"sqlite:///{tmp_path}/link/study.db", "sqlite:///file:there/study.db?uri=true"):
            with pytest.raises(StudyError, match="at work on it already"), study_lock(same, "demo"):
                pass
        with study_lock("sqlite:///there/other.db", "demo"):
            pass


def test_looking_takes_no_lock_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".lock"

    def acquire(*given: Any, **named: Any) -> None:
        raise AssertionError("a look must not lock")

    with monkeypatch.context() as watched:
        watched.setattr(filelock.FileLock, "acquire", acquire)
        assert owner_of(file) is None
        assert list(tmp_path.iterdir()) == []
    with file_lock(file, "busy"):
        before = sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir())
        with monkeypatch.context() as watched:
            watched.setattr(filelock.FileLock, "acquire", acquire)
            assert owner_of(file) is not None
        assert sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (lambda owner: owner, True),
        (lambda owner: {**owner, "started": owner["started"] + 1}, True),
        (lambda owner: {**owner, "started": owner["started"] - 3600}, False),
        (lambda owner: {**owner, "pid": 2**22 + 1}, False),
        (lambda owner: {**owner, "host": "another-machine", "pid": 2**22 + 1}, True),
        (lambda owner: {"pid": 3}, False),
        (lambda owner: "", False),
    ],
    ids=["mine", "clock corrected", "its number is another's now", "gone", "cannot be looked at", "part", "damaged"],
)
def test_a_record_counts_while_its_process_is_there(
    change: Callable[[dict[str, Any]], object], counts: bool, tmp_path: Path
) -> None:
    file = tmp_path / ".lock"
    with file_lock(file, "busy"):
        record = tmp_path / ".lock-owner.json"
        record.write_text(json.dumps(change(json.loads(record.read_text()))))
        assert (owner_of(file) is not None) == counts


def test_an_owner_is_named_by_process_and_machine() -> None:
    assert str(Owner("tower", 12, 0.0)) == "process 12 on tower"


def test_in_memory_there_is_nothing_to_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    memory = InMemoryStorage()
    for storage in (memory, "sqlite://", "sqlite:///:memory:"):
        with study_lock(storage, "demo"), study_lock(storage, "demo"):
            pass
    assert list(tmp_path.iterdir()) == []
    storage = RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    said = "at work on it already"
    with study_lock(storage, "demo"), pytest.raises(StudyError, match=said), study_lock(storage, "demo"):
        pass
    storage.engine.dispose()


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("nonsense://x", "cannot be opened"),
        ("not a url", "is no URL of a database"),
        ("sqlite:////nowhere/at/all/study.db", "/nowhere/at/all: there is no such folder"),
    ],
)
def test_what_cannot_be_locked_is_one_line(storage: str, said: str) -> None:
    with pytest.raises(StudyError, match=said), study_lock(storage, "demo"):
        pass


def test_a_file_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(StudyError, match=r"\.lock: cannot be made or locked \(.+\)"), file_lock(tmp_path / ".lock", ""):
        pass


class Server:
    """A database server that knows locks by key; a connection of it answers as PostgreSQL or MySQL would."""

    def __init__(self, kind: str) -> None:
        self.kind, self.held, self.said = kind, {}, list[str]()

    def connection(self, database: str = "studies") -> Any:
        connection = SimpleNamespace(dialect=SimpleNamespace(name=self.kind))
        connection.engine = SimpleNamespace(url=sqlalchemy.URL.create(self.kind, database=database))
        connection.execute = lambda statement: self.said.append(str(statement))

        def scalar(statement: object, parameters: dict[str, Any]) -> int:
            self.said.append(str(statement))
            return int(self.held.setdefault(parameters["key"], connection) is connection)

        connection.scalar = scalar
        return connection


@pytest.mark.parametrize(
    ("kind", "asked"), [("postgresql", "pg_try_advisory_lock"), ("mysql", "GET_LOCK"), ("mariadb", "GET_LOCK")]
)
def test_a_server_is_asked_for_its_own_kind_of_lock(kind: str, asked: str) -> None:
    server = Server(kind)
    first, second = server.connection(), server.connection()
    assert take_server_lock(first, "demo")
    assert not take_server_lock(second, "demo")
    assert take_server_lock(second, "other")
    assert take_server_lock(server.connection("elsewhere"), "demo")
    assert any(asked in statement for statement in server.said)
    for key in server.held:
        assert -(2**63) <= key < 2**63 if kind == "postgresql" else len(key) <= 64


def test_a_database_without_such_locks_is_refused() -> None:
    with pytest.raises(StudyError, match="oracle cannot be locked; use SQLite, PostgreSQL"):
        take_server_lock(Server("oracle").connection(), "demo")
