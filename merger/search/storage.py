"""Where studies are kept: the database behind a URL, and what its libraries' complaints become. Optuna's side.

A storage is a database URL or an Optuna storage object. An object is used as it is: `InMemoryStorage` keeps a study
that needs no disk.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import optuna
from optuna.storages import BaseStorage, RDBStorage

from benchmark.errors import first_line
from merger.errors import StudyError
from merger.search.urls import masked, parsed, sqlite_file, sqlite_url, without_password

if TYPE_CHECKING:
    import sqlalchemy

Storage: TypeAlias = str | BaseStorage


@contextmanager
def stored(storage: Storage, *, create: bool = True, read_only: bool = False) -> Iterator[BaseStorage]:
    """The storage, opened. What its libraries refuse, here or in the block, becomes a `StudyError`.

    With `create` off nothing is written: neither a file nor tables. Raises KeyError if there is no database to read.
    read_only: an SQLite file that cannot be written to is read from a copy.
    """
    if isinstance(storage, BaseStorage):
        yield storage
        return
    with complaints(storage):
        if not create and not _has_studies(storage, read_only=read_only):
            raise KeyError(storage)
        yield _database(storage, create=create, read_only=read_only)


@contextmanager
def complaints(storage: Storage) -> Iterator[None]:
    """Makes a `StudyError` of a URL that the database's libraries refuse, and hides their warnings."""
    refusals: tuple[type[Exception], ...] = (*_refusals(), ImportError, OSError)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except refusals as error:
            cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
            reason = _without_password(" ".join(str(cause or error).split()), storage)[:200]
            raise StudyError(f"storage {shown(storage)}: cannot be opened ({reason})") from None


def _refusals() -> tuple[type[Exception], ...]:
    """What a database's libraries raise. SQLite's own errors come through where a connection is being prepared."""
    import sqlalchemy

    return (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, sqlite3.Error)


DAMAGED = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    TypeError,
    ValueError,
)
"""What Optuna, or we, raise over rows that are not what was written: text that is not JSON, a missing attribute."""


@contextmanager
def damage_said(storage: Storage) -> Iterator[None]:
    """Makes a `StudyError` of what goes wrong while stored rows are read. For blocks that only read."""
    damages: tuple[type[Exception], ...] = (*_refusals(), *DAMAGED)
    try:
        yield
    except damages as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        reason = _without_password(first_line(getattr(cause, "orig", None) or cause or error), storage)[:120]
        kind = f"{type(error).__name__}: " if isinstance(error, (KeyError, IndexError, AttributeError)) else ""
        raise StudyError(
            f"storage {shown(storage)}: is damaged ({kind}{reason}). Put back a copy of it, if there is one."
        ) from error


@contextmanager
def refusals_said(storage: str, kept: str) -> Iterator[None]:
    """Makes a `StudyError` of what a database in use refuses, as on a full disk. kept: the last sentence of it."""
    try:
        yield
    except _refusals() as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        reason = _without_password(first_line(getattr(cause, "orig", None) or cause or error), storage)
        raise StudyError(f"storage {shown(storage)}: takes no more ({reason}). {kept}") from error


def shown(storage: Storage) -> str:
    """The storage as a message may name it: a URL without its password."""
    if not isinstance(storage, BaseStorage):
        return masked(storage)
    if not isinstance(storage, RDBStorage):
        return type(storage).__name__
    return masked(str(storage.engine.url.render_as_string(hide_password=True)))


def url_of(storage: Storage) -> sqlalchemy.URL | None:
    """The URL of a database; None for a study in memory. Raises `StudyError` for what is no URL."""
    if isinstance(storage, BaseStorage):
        return storage.engine.url if isinstance(storage, RDBStorage) else None
    url = parsed(storage)
    in_memory = url.get_backend_name() == "sqlite" and sqlite_file(url) is None
    return None if in_memory else url


def _without_password(text: str, storage: Storage) -> str:
    return text if isinstance(storage, BaseStorage) else without_password(text, storage)


def _has_studies(storage: str, *, read_only: bool) -> bool:
    """Whether the database is there and holds Optuna's tables. Connecting to an SQLite file would create it."""
    import sqlalchemy

    url = parsed(storage)
    file = sqlite_file(url)
    if file is not None and not file.is_file():
        return False
    if read_only and file is not None and not _writable(file):
        return True  # it is opened from a copy, and then it shows
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    return sqlalchemy.inspect(engine).has_table("studies")


def _writable(file: Path) -> bool:
    """Whether SQLite can read a file where it lies: it makes files of its own beside it."""
    beside = [path for ending in ("-wal", "-shm") if (path := file.with_name(f"{file.name}{ending}")).exists()]
    return all(os.access(path, os.W_OK) for path in (file, file.parent, *beside))


def _copied(file: Path) -> tuple[str, Path]:
    """(the URL of a copy of an SQLite file and of what is not yet merged into it, the folder that holds the copy)."""
    folder = Path(tempfile.mkdtemp(prefix="layermerge-"))
    for part in (file, file.with_name(f"{file.name}-wal")):
        if part.is_file():
            shutil.copyfile(part, folder / part.name)
    return sqlite_url(folder / file.name), folder


def _database(storage: str, *, create: bool, read_only: bool) -> BaseStorage:
    """The database at a URL; SQLite with a write-ahead log, so that no row waits for the disk.

    Waiting cost 0.2 s a row on a busy disk, and a trial writes dozens. A crash of the program loses nothing; a power
    cut may lose the last rows, never the file.
    """
    import sqlalchemy

    url = parsed(storage)
    file = sqlite_file(url)
    copy: Path | None = None
    if read_only and file is not None and not _writable(file):
        storage, copy = _copied(file)
    is_sqlite = url.get_backend_name() == "sqlite"
    # only SQLite knows this option: it is how long a writer waits for another one
    engine_kwargs = {"connect_args": {"timeout": 30}} if is_sqlite else {}
    try:
        # Tables that are missing from a study that is there are damage, and must not be made anew. The braces: Optuna
        # would take a URL for a template.
        template = storage.replace("{", "{{").replace("}", "}}")
        database = RDBStorage(template, engine_kwargs=engine_kwargs, skip_table_creation=not create)
    except RuntimeError as error:  # Optuna's word for tables of another version of its own
        raise StudyError(f"storage {shown(storage)}: {first_line(error)}") from None
    if copy is not None:
        weakref.finalize(database, shutil.rmtree, copy, True)
    weakref.finalize(database, database.engine.dispose)  # a server's connections are not left to be collected
    if is_sqlite:

        def prepare(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")

        sqlalchemy.event.listen(database.engine, "connect", prepare)
        database.engine.dispose()  # the connection that made the tables was not prepared
    return database
