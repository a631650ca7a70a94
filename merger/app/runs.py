"""Run folders: where a search keeps what it is, what it found, and which process works on it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.errors import did_you_mean, first_line
from benchmark.reading import NOT_JSON
from benchmark.writing import sweep, there, write_text
from merger.app import previous_version
from merger.config.config import Config
from merger.config.loading import dump_config, overridden, parse_config, read_yaml
from merger.errors import StudyError
from merger.search.locks import file_lock, owner_of, study_lock
from merger.search.urls import located, parsed, password_of, sqlite_file, sqlite_url

_NOTHING_BEGUN = re.compile(
    r"\.lock|\.lock-owner\.json|study\.db(-wal|-shm|-journal)?|\.study\.db-.*\.lock(-owner\.json)?|"
    r"\..*\.(partial|before)",
    re.DOTALL,
)
"""Names of files that a search may leave in a new folder if it is killed before its configuration is written."""

_NOT_A_RESULT = (*NOT_JSON, AttributeError, IndexError, KeyError, TypeError)
"""What reading a final table raises that is cut off, not JSON, or of another shape."""

ROOT = Path("runs")
"""Where runs lie, from where the command is called."""


@dataclass(frozen=True)
class Run:
    """The folder of one search. It may be renamed or copied: the study keeps the name that it began with."""

    folder: Path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.name

    def study_name(self, config: Config) -> str:
        """The name of the study in its database: the one that the run began with."""
        return config.name or self.name

    @property
    def config_file(self) -> Path:
        """The configuration as resolved."""
        return self.folder / "config.yaml"

    @property
    def database(self) -> Path:
        """The study, unless another storage was named."""
        return self.folder / "study.db"

    @property
    def artifacts(self) -> Path:
        """Weights by channel of the study's trials, and what its sampler remembers."""
        return self.folder / "artifacts"

    @property
    def samples(self) -> Path:
        """Images of base, best donor and winner."""
        return self.folder / "samples"

    @property
    def scores(self) -> Path:
        """Evaluations already made after the search, so that no image is made twice."""
        return self.folder / "scores"

    @property
    def best(self) -> Path:
        """The winner as a checkpoint: one file, or a folder `best` where the base is a folder."""
        file, folder = self.folder / "best.safetensors", self.folder / "best"
        return folder if folder.is_dir() and not file.exists() else file

    @property
    def report(self) -> Path:
        """The page that shows the search."""
        return self.folder / "report.html"

    @property
    def result_file(self) -> Path:
        """The final table."""
        return self.folder / "result.json"

    def exists(self) -> bool:
        """Whether a search was begun here."""
        return there(self.config_file) and self.config_file.is_file()

    def check_free(self) -> None:
        """Raises `StudyError` for a folder in which no search was begun, but something else lies.

        What a search leaves that was killed before its first trial is nothing.
        """
        if self.exists():
            return
        try:
            names = [path.name for path in self.folder.iterdir()]
        except FileNotFoundError:
            return
        except OSError as error:
            raise StudyError(f"{self.folder}: cannot be used ({error.strerror})") from None
        if any(not _NOTHING_BEGUN.fullmatch(name) for name in names):
            raise StudyError(f"{self.folder}: exists already and is not a run; choose another --name")

    def holds_results(self) -> bool:
        """Whether a search came as far as its final evaluation here."""
        return any(path.exists() for path in (self.result_file, self.scores, self.best))

    def config(self, overrides: Sequence[str] = ()) -> Config:
        """The configuration this run was begun with, with `key=value` overrides. Raises `ConfigError` if unreadable."""
        raw = previous_version.translated_config(read_yaml(self.config_file))
        if isinstance(raw.get("storage"), str):
            raw["storage"] = self._located_storage(raw["storage"])
        return parse_config(overridden(raw, overrides), folder=self.folder.resolve(), where=str(self.config_file))

    def _located_storage(self, storage: str) -> str:
        """A storage's URL without a relative path, which version 0.1.0 kept as it was given.

        Its database lay in the folder that the search was called from, which is this one or the one above `runs`.
        """
        places = [Path.cwd(), self.folder.resolve().parent.parent]
        here = [located(storage, place) for place in places]
        found = (url for url in here if (file := sqlite_file(parsed(url))) is not None and file.is_file())
        return storage if here[0] == storage else next(found, here[0])

    def config_to_continue(self, overrides: Sequence[str] = ()) -> Config:
        """The same. Raises `StudyError` if a search that began with it cannot be continued any more."""
        previous_version.check_can_continue(read_yaml(self.config_file), self.name)
        return self.config(overrides)

    def storage(self, config: Config) -> str:
        """The URL of the study's database."""
        return config.storage or sqlite_url(self.database.resolve())

    def result(self) -> dict[str, Any] | None:
        """The final table, or None while there is none."""
        if not self.result_file.is_file():
            return None
        with self.result_read():
            return previous_version.translated_result(json.loads(self.result_file.read_text(encoding="utf-8")))

    @contextmanager
    def result_read(self) -> Iterator[None]:
        """Makes a `StudyError` of what goes wrong in the block while the final table is read, which may be damaged."""
        try:
            yield
        except _NOT_A_RESULT as error:
            reason = f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else first_line(error)
            again = f"`merger resume {self.folder}` writes it again"
            raise StudyError(f"{self.result_file}: is damaged ({reason}); {again}") from None

    def write_result(self, result: dict[str, Any]) -> None:
        """Keeps the final table."""
        text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
        write_text(self.result_file, text + "\n")

    def make_folder(self) -> None:
        """Makes the folder itself. Raises `StudyError` where none can be made."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudyError(f"{self.folder}: cannot be made ({error.strerror})") from None

    def create(self, config: Config) -> None:
        """Makes the folder, or brings its configuration up to date. A file with a password is its owner's alone."""
        self.make_folder()
        private = config.storage is not None and password_of(config.storage) is not None
        write_text(self.config_file, dump_config(config), private=private)

    @property
    def lock_file(self) -> Path:
        """What a search holds while it works here."""
        return self.folder / ".lock"

    def busy(self) -> bool:
        """Whether a search works here now. Takes no lock, so that a search that begins just then is not refused."""
        return owner_of(self.lock_file) is not None

    @contextmanager
    def held(self, storage: str, study: str, new: bool) -> Iterator[None]:
        """Holds this folder and its `study` in `storage` for one search. Sweeps what a killed one left half-written.

        new: whether the folder was made for it; then it does not stay if the study cannot be had. Raises `StudyError`
        if another search works here, or on the study from another folder.
        """
        with ExitStack() as locks:
            locks.enter_context(self.lock())
            for folder in (self.folder, self.samples, self.scores, self.artifacts):
                sweep(folder)
            try:
                locks.enter_context(study_lock(storage, study))
            except StudyError:
                if new:
                    shutil.rmtree(self.folder, ignore_errors=True)  # Windows keeps the lock file, which is open
                raise
            yield

    def lock(self) -> AbstractContextManager[None]:
        """Held while a search works here. Raises `StudyError` if another one does."""
        return file_lock(self.lock_file, f"{self.folder}: a search is at work here already")


def find_run(given: str) -> Run:
    """The run at a path or of a name under `runs/`. Raises `StudyError` naming the nearest there is."""
    for folder in (Path(given), ROOT / given):
        if Run(folder).exists():
            try:
                return Run(folder.resolve())
            except OSError as error:  # the folder that the command is called from is gone
                raise StudyError(f"{folder}: cannot be reached ({error.strerror})") from None
    names = [run.name for run in list_runs()]
    raise StudyError(f"there is no run '{given}'.{did_you_mean(Path(given).name, names)}")


def list_runs(root: Path | None = None) -> list[Run]:
    """All runs in a folder, by name."""
    root = root or ROOT
    return [Run(folder) for folder in sorted(root.iterdir()) if Run(folder).exists()] if root.is_dir() else []
