"""Reading a configuration from YAML, and writing it.

`--set key=value` on the command line overrides the file. Relative paths start at the file's folder, so that a search
can be started from anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from benchmark.errors import did_you_mean
from merger.config.config import Config
from merger.config.parts import DonorSettings, GradientSettings, Settings, TaggerSettings, VocabularySettings
from merger.config.renamed import new_names
from merger.errors import ConfigError

PARTS: dict[str, type[Settings]] = {
    "donors": DonorSettings,
    "tagger": TaggerSettings,
    "judge": TaggerSettings,
    "vocabulary": VocabularySettings,
    "gradient": GradientSettings,
}
"""The keys of the configuration that have parts."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads the configuration in the YAML file `path`.

    overrides: `key=value` texts that override the file (`steps=12`, `donors.0.bounds=[0, 1]`). Relative paths, also
    those in overrides, start at the file's folder. Raises `ConfigError` with one line.
    """
    return parse_config(overridden(read_yaml(path), overrides), folder=path.resolve().parent, where=str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a configuration file, not yet checked. Raises `ConfigError` with one line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: should hold `key: value` lines, starting with `base:` and `donors:`")
    return raw


def parse_config(raw: Mapping[str, Any], *, folder: Path, where: str) -> Config:
    """Checks `raw`. Its relative paths start at `folder`; `where` names it in the `ConfigError`'s line."""
    if phrases := new_names(raw):
        raise ConfigError(f"{where}: {'; '.join(phrases)}")
    try:
        return Config.model_validate(dict(raw), context={"folder": folder})
    except ValidationError as error:
        raise ConfigError(f"{where}: {_one_line(error)}") from None


def dump_config(config: Config) -> str:
    """`config` as YAML. `load_config` reads it back to an equal value, wherever the file lies."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)


def overridden(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`raw` with every override (`a.b=value`) put into it, in place. Raises `ConfigError` for one that has no place."""
    for override in overrides:
        _override(raw, override)
    return raw


def _override(raw: dict[str, Any], override: str) -> None:
    """Puts `a.b=value` into `raw`, in place. A number in the dotted key is a place in a list."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: should be key=value, for example --set steps=12")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: '{text}' is not a YAML value") from None
    here: Any = raw
    for depth, key in enumerate(keys):
        place: Any = int(key) if isinstance(here, list) and key.isdigit() else key
        if isinstance(here, list) and not (isinstance(place, int) and place < len(here)):
            raise ConfigError(f"--set {override}: '{'.'.join(keys[:depth])}' has {len(here)} entries, counted from 0")
        if depth == len(keys) - 1:
            here[place] = value
            return
        below = here[place] if isinstance(here, list) else here.get(place)
        if not isinstance(below, (dict, list)):  # the short form (`tagger: folder`) becomes the long one
            below = {} if below is None else {"path": below}
            here[place] = below
        here = below


def _one_line(error: ValidationError) -> str:
    """The first of pydantic's complaints in this program's words, and how many more there are."""
    problems = error.errors(include_url=False, include_context=True)
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    first = (unknown or problems)[0]  # a misspelt key also leaves one missing; the misspelling explains both
    *above, last = [str(part) for part in first["loc"]] or [""]
    where = ".".join([*above, last])
    if first["type"] == "extra_forbidden":
        line = f"'{where}' is not a setting.{did_you_mean(last, _known(above))}"
    elif first["type"] == "missing":
        line = f"'{where}' is missing"
    else:
        message = first["msg"].removeprefix("Value error, ")
        line = f"{where}: {message}" if where else message
    more = len(problems) - 1
    return f"{line} (and {more} more problem{'s' if more > 1 else ''})" if more and not unknown else line


def _known(above: Sequence[str]) -> tuple[str, ...]:
    """The settings that exist at the place `above`."""
    return tuple((PARTS.get(above[0], Config) if above else Config).model_fields)
