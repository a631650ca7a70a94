"""Writes docs/reference/configuration.md from the configuration's own models: every key with type, default, meaning.

    python -m scripts.write_reference            # writes the page
    python -m scripts.write_reference --check    # writes nothing; exit status 1 where the page is out of date

Types, limits, defaults and descriptions come from the JSON schema of `merger.config.config.Config`, so the page cannot
say anything else than the code does. Only the headings and the sentences above the tables stand here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmark.taggers.registry import tagger_kinds
from benchmark.writing import write_text
from merger.config.config import Config
from merger.search.registry import CHOOSERS, sampler_names

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "configuration.md"

Schema = Mapping[str, Any]

SECTIONS = {
    "name": "What is blended",
    "tagger": "Tags, prompts and taggers",
    "steps": "How images are generated",
    "baselines": "How the search runs",
    "batch_size": "The machine",
}
"""{the first key of a section: its heading}. The sections follow the order of the keys in the code."""

INTRODUCTION = """\
# Configuration

<!-- Written by scripts/write_reference.py from merger/config. Do not edit: change the descriptions there. -->

A search is described by one YAML file. [How to search](../how-to/search.md) has an example. This page lists every key.

- A relative path starts at the folder of the file.
- `--set key=value` on the command line overrides the file. It can be given several times. A dot leads to a part of a
  key: `--set steps=8 --set gradient.steps=100 --set donors.0.bounds=[0,1] --set tagger.threshold=0.4`. Donors are
  counted from 0.
- `--trials N` is short for `--set trials=N`. `--name`, `--storage` and `--allow-pickle` set the keys of those names.
- An unknown key, a key given twice, or a value of the wrong type is an error. Every problem has a line of its own,
  which names the line of the file, and for an unknown key the nearest known one.
- Wherever a layer is named, a pattern may stand for several, as in a recipe's weights: `*` (any characters), `?` (one)
  and `[ab]` (one of these). Put patterns in quotes: `'*'` and `'[ab]*'` mean something else in YAML.
- YAML reads `yes`, `no`, `on` and `off` as truth values, `012` as 10 and `1:30` as 90. Such values are refused where
  a text or a number belongs; put a text in quotes.
- Keys of version 0.1.0 that have another name now are answered with the new name
  ([the list](../../CHANGELOG.md#new-words)).
"""

REGISTERED = {"method": (*CHOOSERS, *sampler_names()), "tagger.kind": tagger_kinds()}
"""{a key whose values are names in a registry: those names}. The schema knows them as text only."""

_WORDS = {"string": "text", "boolean": "true or false", "integer": "whole number", "number": "number"}


def page() -> str:
    """The whole page."""
    schema = Config.model_json_schema()
    parts = [INTRODUCTION]
    for key, of in schema["properties"].items():
        if key in SECTIONS:
            parts.append(f"## {SECTIONS[key]}\n\n| key | type | default | meaning |\n| --- | --- | --- | --- |")
        parts.append("\n".join(_rows(key, of, key in schema["required"], schema["$defs"])))
        if _last_of_section(key, list(schema["properties"])):
            parts[-1] += "\n"
    return "\n".join(parts)


def _last_of_section(key: str, keys: list[str]) -> bool:
    after = keys.index(key) + 1
    return after < len(keys) and keys[after] in SECTIONS


def _rows(key: str, of: Schema, needed: bool, defined: Mapping[str, Schema]) -> Iterator[str]:
    """The row of a key, then one for each of its parts: `gradient.steps`, `donors.N.name`."""
    parts = _parts(of, defined)
    yield _row(
        key, _type_of(key, of, defined), _default(of, needed, folded=bool(parts)), str(of.get("description", ""))
    )
    if key == "judge":  # its parts are those of `tagger`, which stands above it
        return
    above = f"{key}.N" if of.get("type") == "array" else key
    for name, part in parts.get("properties", {}).items():
        default = _default(part, name in parts.get("required", ()))
        path = f"{above}.{name}"
        yield _row(path, _type_of(path, part, defined), default, str(part.get("description", "")))


def _row(*cells: str) -> str:
    key, kind, default, meaning = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return f"| `{key}` | {kind} | {default} | {meaning} |".replace("|  |", "| |")


def _parts(of: Schema, defined: Mapping[str, Schema]) -> Schema:
    """The model that a key is, or a list of, or may be; nothing where it has no parts."""
    choices = [of, of.get("items", {}), *of.get("anyOf", ())]
    return next((defined[each["$ref"].rpartition("/")[2]] for each in choices if "$ref" in each), {})


def _type_of(key: str, of: Schema, defined: Mapping[str, Schema]) -> str:
    """The type of a key: its names if it takes those of a registry."""
    if key in REGISTERED:
        names = ", ".join(f"`{name}`" for name in REGISTERED[key])
        return f"{names}, or one that [you add](../architecture.md#i-want-to-add-)"
    return _type(of, defined)


def _type(of: Schema, defined: Mapping[str, Schema]) -> str:
    """A type in words, with its limits."""
    if choices := of.get("anyOf", of.get("oneOf")):
        return " or ".join(_type(each, defined) for each in choices if each.get("type") != "null")
    if "$ref" in of:
        parts = _parts(of, defined)
        return "path or parts" if "path" in parts["properties"] else "parts"
    if "enum" in of:
        return ", ".join(f"`{each}`" for each in of["enum"])
    if "const" in of:
        return f"`{of['const']}`"
    if of.get("type") == "array":
        if "prefixItems" in of:
            inner = _type(of["prefixItems"][0], defined).partition(", ")
            return f"{len(of['prefixItems'])} {inner[0]}s{inner[1]}{inner[2]}"
        return f"list of {_plural(_type(of['items'], defined))}"
    if of.get("type") == "object":
        return f"table of {_plural(_type(of['additionalProperties'], defined))}"
    if of.get("format") == "path":
        return "path"
    return _WORDS[of["type"]] + _limits(of)


def _plural(kind: str) -> str:
    if kind.startswith(("list of", "table of")):
        return kind.replace("list of", "lists of").replace("table of", "tables of")
    if kind == "2 numbers":
        return "pairs of numbers"
    return {"path or parts": "paths or parts", "text": "names", "number": "numbers"}.get(kind, kind)


def _limits(of: Schema) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    said = [
        f"{word} {of[key]:,}" if of[key] > 1e5 else f"{word} {of[key]:g}" for key, word in words.items() if key in of
    ]
    return f", {', '.join(said)}" if said else ""


def _default(of: Schema, needed: bool, *, folded: bool = False) -> str:
    """A default as YAML reads it; `folded` where the parts' own rows say it."""
    if needed:
        return "required"
    default = of.get("default")
    if default is None or default in ({}, []):
        return "none"
    return "see its parts" if folded and isinstance(default, dict) else f"`{_yaml(default)}`"


def _yaml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, str) and value.replace("_", "").isalnum():
        return value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def main() -> int:
    """Writes the page, or says whether it is up to date."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Writes docs/reference/configuration.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is out of date")
    args = parser.parse_args()
    if args.check:
        current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page()
        if not current:
            print(f"{PAGE}: is out of date: python -m scripts.write_reference", file=sys.stderr)
        return 0 if current else 1
    write_text(PAGE, page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
