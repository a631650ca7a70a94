"""Where studies are kept: the database behind a URL, and what its libraries' complaints become. Optuna's side.

A storage is a database URL or an Optuna storage object. An object is used as it is: `InMemoryStorage` keeps a study
that needs no disk.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import optuna
from optuna.storages import BaseStorage, RDBStorage

from benchmark.errors import first_line
from merger.errors import StudyError

if TYPE_CHECKING:
    import sqlalchemy

Storage: TypeAlias = str | BaseStorage


@contextmanager
def stored(storage: Storage, *, create: bool = True) -> Iterator[BaseStorage]:
    """The storage, opened. What its libraries refuse, here or in the block, becomes a `StudyError`.

    With `create` off nothing is written: neither a file nor tables. Raises KeyError if there is no database to read.
    """
    if isinstance(storage, BaseStorage):
        yield storage
        return
    with complaints(storage):
        if not create and not _has_studies(storage):
            raise KeyError(storage)
        yield _database(storage)


@contextmanager
def complaints(storage: Storage) -> Iterator[None]:
    """Makes a `StudyError` of a URL that the database's libraries refuse, and hides their warnings."""
    import sqlalchemy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
            cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
            reason = " ".join(str(cause or error).split())[:200]
            raise StudyError(f"storage {shown(storage)}: cannot be opened ({reason})") from None


@contextmanager
def refusals_said(storage: str, kept: str) -> Iterator[None]:
    """Makes a `StudyError` of what a database in use refuses, as on a full disk. kept: the last sentence of it."""
    import sqlalchemy

    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        reason = first_line(getattr(cause, "orig", None) or cause or error)
        raise StudyError(f"storage {shown(storage)}: takes no more ({reason}). {kept}") from error


def shown(storage: Storage) -> str:
    """The storage as a message may name it: a URL without its password."""
    import sqlalchemy

    if isinstance(storage, BaseStorage):
        return type(storage).__name__
    try:
        return sqlalchemy.make_url(storage).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return storage


def url_of(storage: Storage) -> sqlalchemy.URL | None:
    """The URL of a database; None for a study in memory. Raises `StudyError` for what is no URL."""
    import sqlalchemy

    if isinstance(storage, BaseStorage):
        return storage.engine.url if isinstance(storage, RDBStorage) else None
    with complaints(storage):
        url = sqlalchemy.make_url(storage)
    in_memory = url.get_backend_name() == "sqlite" and sqlite_file(url) is None
    return None if in_memory else url


def sqlite_file(url: sqlalchemy.URL) -> Path | None:
    """The file of an SQLite database; None for another database, and for one in memory."""
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return Path(str(url.database).removeprefix("file:")).resolve()


def _has_studies(storage: str) -> bool:
    """Whether the database is there and holds Optuna's tables. Connecting to an SQLite file would create it."""
    import sqlalchemy

    url = sqlalchemy.make_url(storage)
    file = sqlite_file(url)
    if file is not None and not file.is_file():
        return False
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    return sqlalchemy.inspect(engine).has_table("studies")


def _database(storage: str) -> BaseStorage:
    """The database at a URL; SQLite with a write-ahead log, so that no row waits for the disk.

    Waiting cost 0.2 s a row on a busy disk, and a trial writes dozens. A crash of the program loses nothing; a power
    cut may lose the last rows, never the file.
    """
    import sqlalchemy

    is_sqlite = sqlalchemy.make_url(storage).get_backend_name() == "sqlite"
    # only SQLite knows this option: it is how long a writer waits for another one
    engine_kwargs = {"connect_args": {"timeout": 30}} if is_sqlite else {}
    database = RDBStorage(storage, engine_kwargs=engine_kwargs)
    if is_sqlite:

        def prepare(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")

        sqlalchemy.event.listen(database.engine, "connect", prepare)
        database.engine.dispose()  # the connection that made the tables was not prepared
    return database
