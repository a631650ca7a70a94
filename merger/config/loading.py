"""Reading a configuration from YAML, and writing it.

`--set key=value` on the command line overrides the file. Relative paths start at the file's folder, so that a search
can be started from anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from benchmark.errors import did_you_mean
from merger.config.config import Config
from merger.config.parts import (
    BRANCHES,
    DonorSettings,
    GradientSettings,
    KeepSettings,
    Settings,
    TaggerSettings,
    VocabularySettings,
)
from merger.config.renamed import new_names
from merger.errors import ConfigError, ConfigProblems
from merger.search.urls import masked
from merger.yaml_text import DEEPEST, Place, document, read_document

_NUMBER = re.compile(r"[0-9]{1,9}")
_CHECK = re.compile(r"(function-|literal\[|dict\[|tuple\[|list\[|constrained-|is-instance\[|lax-or-strict\[|json-or-)")

_WANTED = {  # what pydantic words as a programmer's types
    "model_type": "should be a table of settings: {name: value}",
    "dict_type": "should be a table: {name: value}",
    "tuple_type": "should be a list: [value, value]",
    "list_type": "should be a list: [value, value]",
}

PARTS: dict[str, type[Settings]] = {
    "donors": DonorSettings,
    "tagger": TaggerSettings,
    "judge": TaggerSettings,
    "vocabulary": VocabularySettings,
    "gradient": GradientSettings,
    "keep": KeepSettings,
}
"""The keys of the configuration that have parts."""


MOST_LINES = 40
"""Problems of one configuration that are listed; of more, only their number is given."""


class Written(dict[str, Any]):
    """The keys and values of a configuration as they are written, not yet checked.

    places: what a message names for a value, by the keys that lead to it: its file and line, or the `--set` that gave
    it.
    """

    def __init__(self, values: Mapping[str, Any], places: Mapping[Place, str] | None = None) -> None:
        super().__init__(values)
        self.places: dict[Place, str] = dict(places or {})


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads the configuration in the YAML file `path`.

    overrides: `key=value` texts that override the file (`steps=12`, `donors.0.bounds=[0, 1]`). Relative paths, also
    those in overrides, start at the file's folder. Raises `ConfigError` with a line for every problem.
    """
    raw = overridden(read_yaml(path), overrides)
    return parse_config(raw, folder=path.absolute().parent, where=str(path))


def read_yaml(path: Path) -> Written:
    """The keys and values of a configuration file, not yet checked. Raises `ConfigError` with one line."""
    found = read_document(path, "configuration file")
    if not isinstance(found.value, dict):
        raise ConfigError(f"{path}: should hold `key: value` lines, starting with `base:` and `donors:`")
    return Written(found.value, {place: f"{path}:{line}" for place, line in found.lines.items() if place})


def parse_config(raw: Mapping[str, Any], *, folder: Path, where: str) -> Config:
    """Checks `raw`. Its relative paths start at `folder`; `where` names it in the lines of the `ConfigError`."""
    places: Mapping[Place, str] = raw.places if isinstance(raw, Written) else {}
    old = new_names(raw)
    lines = [f"{_place(name, places, where)}: {phrase}" for name, phrase in old]
    known = {key: value for key, value in raw.items() if (key,) not in {name[:1] for name, _ in old}}
    try:
        config = Config.model_validate(known, context={"folder": folder})
    except ValidationError as error:
        needless = {(key,) for name, _ in old for key in name[:1]}
        lines += [f"{_place(name, places, where)}: {said}" for name, said in _problems(error) if name not in needless]
        config = None
    if config is not None and not lines:
        return config
    if len(lines) == 1:
        raise ConfigError(lines[0])
    more = [f"{where}: and {len(lines) - MOST_LINES} more problems"] if len(lines) > MOST_LINES else []
    raise ConfigProblems([*sorted(lines[:MOST_LINES], key=_by_line), *more])


def dump_config(config: Config) -> str:
    """`config` as YAML. `load_config` reads it back to an equal value, wherever the file lies."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)


def overridden(raw: Mapping[str, Any], overrides: Sequence[str]) -> Written:
    """`raw` with every override (`a.b=value`) put into it. Raises `ConfigError`: a line for each that has no place."""
    written = raw if isinstance(raw, Written) else Written(raw)
    lines: list[str] = []
    for override in overrides:
        try:
            _override(written, override)
        except ConfigError as error:
            lines += error.lines
    if lines:
        raise ConfigProblems(lines)
    return written


def _override(raw: Written, override: str) -> None:
    """Puts `a.b=value` into `raw`, in place. A number in the dotted key is a place in a list."""
    dotted, equals, text = override.partition("=")
    shown = _short(f"--set {masked(override)}")
    keys = dotted.strip().split(".")
    if not equals or not all(keys) or len(keys) > DEEPEST:
        raise ConfigError(f"{shown}: should be key=value, for example --set steps=12")
    value = document(text, shown, numbered=False).value
    here: Any = raw
    place: list[str | int] = []
    for depth, key in enumerate(keys):
        in_list = isinstance(here, list)
        step: Any = int(key) if in_list and _NUMBER.fullmatch(key) else key
        if in_list and not (isinstance(step, int) and step < len(here)):
            raise ConfigError(f"{shown}: '{'.'.join(keys[:depth])}' has {len(here)} entries, counted from 0")
        place.append(step)
        if depth == len(keys) - 1:
            here[step] = value
            break
        below = here[step] if in_list else here.get(step)
        if not isinstance(below, (dict, list)):  # the short form (`tagger: folder`) becomes the long one
            below = {} if below is None else {"path": below}
            here[step] = below
        here = below
    for known in [known for known in raw.places if known[: len(place)] == tuple(place)]:
        del raw.places[known]
    raw.places[tuple(place)] = shown


def _problems(error: ValidationError) -> list[tuple[Place, str]]:
    """(where, what) of every problem that pydantic found, in this program's words; one for each value."""
    found: dict[Place, str] = {}
    missing: dict[Place, str] = {}
    suggested: set[Place] = set()
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        place = tuple(part for part in problem["loc"] if not _is_pydantics(part))
        named = _short(".".join(map(str, place)))
        if problem["type"] == "extra_forbidden":
            hint = did_you_mean(_short(str(place[-1])), _known(place[:-1]))
            suggested |= {(*place[:-1], name) for name in _known(place[:-1]) if f"'{name}'" in hint}
            found[place] = f"'{named}' is not a setting.{hint}"
        elif problem["type"] == "missing":
            missing[place] = f"'{named}' is missing"
        else:
            said = _WANTED.get(problem["type"]) or " ".join(problem["msg"].removeprefix("Value error, ").split())
            found.setdefault(place, _short(f"{named}: {said}" if named else said, 400))
    # what is wrong with a part also makes a list too short; the part explains both
    deeper = {place[:length] for place in (*found, *missing) for length in range(len(place))}
    found = {place: said for place, said in found.items() if place not in deeper}
    # a misspelt key also leaves one missing: the misspelling explains both
    return [*found.items(), *((place, said) for place, said in missing.items() if place not in suggested)]


def _is_pydantics(part: str | int) -> bool:
    """Whether a part of a problem's place is pydantic's name of a check, and not a key or number of the file."""
    return isinstance(part, str) and (part in BRANCHES or part == "[key]" or bool(_CHECK.match(part)))


def _place(name: Place, places: Mapping[Place, str], where: str) -> str:
    """What to name for a value: the place of it, or of the nearest that it is a part of; else `where`."""
    for length in range(len(name), 0, -1):
        if name[:length] in places:
            return places[name[:length]]
    # an override of a part of it, which made a table of what should be none
    return next((shown for place, shown in places.items() if name and place[: len(name)] == name), where)


def _by_line(line: str) -> tuple[bool, int]:
    """The order of lines: those with a line of the file, then all others as they are."""
    number = line.partition(": ")[0].rpartition(":")[2]
    return (False, int(number)) if _NUMBER.fullmatch(number) else (True, 0)


def _short(text: str, most: int = 120) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _known(above: Place) -> tuple[str, ...]:
    """The settings that exist at the place `above`."""
    return tuple((PARTS.get(str(above[0]), Config) if above else Config).model_fields)
