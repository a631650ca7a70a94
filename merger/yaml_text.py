"""YAML as people mean it: what plain YAML reads differently from how it looks is an error that names its line.

A key that is given twice, numbers with a leading zero (octal: `012` is 10) or colons (base 60: `1:30` is 90), a file
that refers to itself or is larger than any configuration: each is a `ConfigError`. Dates stay texts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from merger.errors import ConfigError

Place = tuple[str | int, ...]
"""Where a value stands: the keys, and the numbers of list entries, that lead to it."""

MOST_BYTES = 500_000
DEEPEST = 30
MOST_VALUES = 50_000
LONGEST_NUMBER = 60

_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
_HINTS = {
    "unknown escape character": r"in double quotes a \ must be written twice; use single quotes for Windows paths",
    r"'\t'": "indent with spaces, not with tabs",
    "mapping values are not allowed": "put a text that holds ': ' in quotes",
    "expected alphabetic or numeric character": "put a text that begins with * or & in quotes",
}
"""{part of the YAML library's words: what to do}."""


@dataclass(frozen=True)
class Document:
    """What a YAML text holds. lines: the line of every value, by its place."""

    value: Any
    lines: Mapping[Place, int] = field(default_factory=dict)


def read_document(path: Path, kind: str) -> Document:
    """The document in a file. kind: what it should be, for the message if it is not there. Raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        text = data.decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such {kind}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: it is not UTF-8 text ({error.reason})") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{path}: is larger than {MOST_BYTES} bytes, so it is no {kind}")
    return document(text, str(path))


def document(text: str, where: str, *, numbered: bool = True) -> Document:
    """The document that `text` is. where: what a message names. numbered: whether it also names the line."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return Document(None)
        return Document(loader.construct_document(node), _lines(node))
    except yaml.MarkedYAMLError as error:
        problem = " ".join((error.problem or str(error)).split())
        hint = next((f" ({hint})" for words, hint in _HINTS.items() if words in problem), "")
        line = f":{error.problem_mark.line + 1}" if error.problem_mark and numbered else ""
        said = problem if isinstance(error, _Refused) else f"is not YAML: {problem}{hint}"
        raise ConfigError(f"{where}{line}: {said}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: is not YAML: {' '.join(str(error).split())[:200]}") from None
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):  # of a value with a tag that does not fit
        raise ConfigError(f"{where}: is not YAML: a value is not what its tag (!!...) says") from None


def _lines(node: yaml.Node) -> dict[Place, int]:
    """The line of every value within a few levels, by its place; counted from 1."""
    lines: dict[Place, int] = {}
    waiting: list[tuple[Place, yaml.Node, int]] = [((), node, node.start_mark.line)]
    while waiting and len(lines) < MOST_VALUES:
        place, here, line = waiting.pop()
        lines[place] = line + 1
        if len(place) >= 4:
            continue
        if isinstance(here, yaml.MappingNode):
            waiting += [((*place, key.value), value, key.start_mark.line) for key, value in here.value if _plain(key)]
        elif isinstance(here, yaml.SequenceNode):
            waiting += [((*place, number), value, value.start_mark.line) for number, value in enumerate(here.value)]
    return lines


def _plain(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode)


class _Refused(yaml.MarkedYAMLError):
    """What is YAML, but not taken. The problem says it whole."""


class _Loader(yaml.SafeLoader):
    """Composes and constructs with limits. Every node's depth and size are known when it is composed, aliases too."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._extents: dict[int, tuple[int, int]] = {}  # id of a node -> (levels, values) in it

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node. Raises `_Refused` beyond the limits."""
        alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark
        self._depth += 1
        if self._depth > DEEPEST:
            raise _Refused(problem=f"is nested deeper than {DEEPEST} levels", problem_mark=mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if alias and id(node) not in self._extents:
            raise _Refused(problem="refers to itself", problem_mark=mark)
        if not alias:
            self._extents[id(node)] = self._extent(node)
        levels, values = self._extents[id(node)]
        if levels > DEEPEST or values > MOST_VALUES:
            raise _Refused(problem=f"holds more than {MOST_VALUES} values or {DEEPEST} levels", problem_mark=mark)
        return node

    def _extent(self, node: yaml.Node) -> tuple[int, int]:
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        else:
            inner = node.value if isinstance(node, yaml.SequenceNode) else []
        extents = [self._extents[id(part)] for part in inner]
        return 1 + max((levels for levels, _ in extents), default=0), 1 + sum(values for _, values in extents)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A table. Raises `_Refused` for a key that is there twice; plain YAML keeps the last one without a word."""
        seen: dict[tuple[str, str], int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not _plain(key):
                continue
            name, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if name in seen:
                problem = f"'{name[1][:80]}' is there twice (first in line {seen[name]})"
                raise _Refused(problem=problem, problem_mark=key.start_mark)
            seen[name] = line
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """A number, if it is the one that it looks like."""
        text = str(node.value)
        if len(text) > LONGEST_NUMBER:
            raise _Refused(problem=f"{text[:20]}... has too many digits for a number", problem_mark=node.start_mark)
        whole = node.tag.endswith(":int")
        if ":" in text or (whole and _LEADING_ZERO.fullmatch(text)):
            base = "base 60" if ":" in text else "octal"
            value = self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)
            raise _Refused(
                problem=f"{text} is {value:g} in YAML ({base}): write {value:g}, or put it in quotes if it is a text",
                problem_mark=node.start_mark,
            )
        return self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        """A text that can be written to a file or be part of a path."""
        text = str(node.value)
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise _Refused(problem="a text holds a character that no file can", problem_mark=node.start_mark)
        return text


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)
