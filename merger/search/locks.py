"""Who searches: a study and a run folder belong to one process at a time, for as long as its search lasts.

Two processes on one study would each take the other's trial under way for one that was left over by a stop. The lock
lies where the study lies, so it also holds between two run folders that share a database:

    SQLite             a lock file beside the database
    PostgreSQL         an advisory lock of the server, on a connection that stays open
    MySQL, MariaDB     a named lock of the server, in the same way
    in memory          none is needed

The operating system or the server frees the lock of a process that ends, however it ends. Whoever only wants to know
whether a search is at work reads the owner's record (`owner_of`) and takes no lock: a search that begins at that moment
must not be refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from benchmark.reading import NOT_JSON
from benchmark.writing import LONGEST_NAME
from merger.errors import StudyError

if TYPE_CHECKING:
    import sqlalchemy

    from merger.search.storage import Storage

_FOREVER = 2_147_483
"""Seconds that a MySQL connection may stay silent before the server closes it: the most that every platform allows."""


_CLOCK = 5.0
"""Seconds by which a process's start may seem to have moved: it is reckoned from a clock that is corrected."""


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock file: its machine, its number, and when it started (seconds since 1970)."""

    host: str
    pid: int
    started: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextmanager
def file_lock(path: Path, refusal: str) -> Iterator[None]:
    """Holds the lock file `path`, which stays, and beside it the owner's record, which goes at the end.

    Raises `StudyError` with `refusal` and the owner if another process holds it, and one if no file can be made there.
    """
    from filelock import FileLock, Timeout

    if not path.parent.is_dir():  # which FileLock would make
        raise StudyError(f"{path.parent}: there is no such folder")
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        owner = owner_of(path)
        raise StudyError(f"{refusal}{f' ({owner})' if owner else ''}; wait for it or stop it") from None
    except OSError as error:
        raise StudyError(f"{path}: cannot be made or locked ({error.strerror})") from None
    record = _record_of(path)
    try:
        with suppress(OSError):  # on a full disk: the lock holds all the same
            record.write_text(json.dumps(asdict(_this_process())), encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            record.unlink(missing_ok=True)
        lock.release()


def owner_of(path: Path) -> Owner | None:
    """Who holds the lock file `path`; None if nobody does. Takes no lock and writes nothing.

    A record whose process is gone, or whose number another process has by now, counts for nothing. A process on another
    machine cannot be looked at: its record counts for as long as it is there.
    """
    try:
        owner = Owner(**json.loads(_record_of(path).read_text(encoding="utf-8")))
    except (*NOT_JSON, TypeError):  # none, or not whole yet
        return None
    if owner.host != socket.gethostname():
        return owner
    started = _started(owner.pid)
    return owner if started is not None and abs(started - owner.started) < _CLOCK else None


@contextmanager
def study_lock(storage: Storage, name: str) -> Iterator[None]:
    """Holds the study `name` in `storage` for this process alone.

    Raises `StudyError` if another process searches it, if the database cannot be reached, and for a kind of database
    that knows no such lock.
    """
    from merger.search.storage import shown, url_of
    from merger.search.urls import sqlite_file

    url = url_of(storage)
    refusal = f"study '{name}' in {shown(storage)}: a search is at work on it already"
    if url is None:
        yield
    elif (file := sqlite_file(url)) is not None:
        with file_lock(file.with_name(_lock_name(file.name, name)), refusal):
            yield
    else:
        with _server_lock(storage, url, name, refusal):
            yield


@contextmanager
def _server_lock(storage: Storage, url: sqlalchemy.URL, name: str, refusal: str) -> Iterator[None]:
    """Holds a lock of a database server by a connection of its own, without a transaction that would stay open."""
    import sqlalchemy

    from merger.search.storage import complaints

    with ExitStack() as held:
        with complaints(storage):
            engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT")
            taken = take_server_lock(held.enter_context(engine.connect()), name)
        if not taken:
            raise StudyError(f"{refusal}; wait for it or stop it")
        yield


def take_server_lock(connection: sqlalchemy.Connection, name: str) -> bool:
    """Whether the lock of the study `name` is now this connection's; False if another one has it. Does not wait.

    Raises `StudyError` for a kind of database that knows no such lock.
    """
    import sqlalchemy

    kind = connection.dialect.name
    # MySQL's names are the whole server's, so the database is part of the key
    key = hashlib.sha256(f"layermerge {connection.engine.url.database} {name}".encode()).digest()
    if kind == "postgresql":
        number = int.from_bytes(key[:8], "big", signed=True)
        return bool(connection.scalar(sqlalchemy.text("SELECT pg_try_advisory_lock(:key)"), {"key": number}))
    if kind in ("mysql", "mariadb"):
        connection.execute(sqlalchemy.text(f"SET SESSION wait_timeout = {_FOREVER}"))
        return bool(connection.scalar(sqlalchemy.text("SELECT GET_LOCK(:key, 0)"), {"key": key.hex()[:48]}))
    raise StudyError(f"storage: a study in {kind} cannot be locked; use SQLite, PostgreSQL, MySQL or MariaDB")


def _lock_name(file: str, study: str) -> str:
    """The name of a study's lock file; a hash stands for what would be too long with the owner's record's ending."""
    named = quote(study, safe="")
    if len(os.fsencode(f".{file}-{named}.lock-owner.json")) > LONGEST_NAME:
        named = hashlib.sha256(f"{file} {study}".encode()).hexdigest()[:32]
        file = file[:32]
    return f".{file}-{named}.lock"


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-owner.json")


def _this_process() -> Owner:
    return Owner(socket.gethostname(), os.getpid(), _started(os.getpid()) or 0.0)


def _started(pid: int) -> float | None:
    """When a process of this machine started, in seconds since 1970; None if there is none."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None
