"""The page of configuration keys is what the code says, and every key is explained."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from pydantic import BaseModel, Field

from merger.config.config import Config
from scripts import write_reference


def test_the_page_of_keys_is_up_to_date() -> None:
    written = write_reference.PAGE.read_text(encoding="utf-8")
    assert written == write_reference.page(), "run: python -m scripts.write_reference"


def test_every_key_has_a_row_in_the_order_of_the_code() -> None:
    rows = [line.split("`")[1] for line in write_reference.page().splitlines() if line.startswith("| `")]
    assert [row for row in rows if "." not in row] == list(Config.model_fields)
    assert len(set(rows)) == len(rows)
    assert {"gradient.steps", "donors.N.bounds", "tagger.kind", "vocabulary.top"} <= set(rows)


@pytest.mark.parametrize("row", [row for row in write_reference.page().splitlines() if row.startswith("| `")])
def test_every_key_is_explained(row: str) -> None:
    key, meaning = row.split("`")[1], re.split(r"(?<!\\)\|", row)[-2]
    assert meaning.strip(), f"{key} has no description: give its Field one"


def test_every_section_begins_with_a_key_that_exists() -> None:
    assert set(write_reference.SECTIONS) <= set(Config.model_fields)
    assert next(iter(write_reference.SECTIONS)) == next(iter(Config.model_fields))


class _Part(BaseModel):
    rate: float = Field(default=0.5, gt=0, le=1, description="a share | of all")


class _Whole(BaseModel):
    needed: int
    part: _Part = _Part()
    parts: tuple[_Part, ...] = ()
    pair: tuple[int, int] | None = None


def _rows_of_the_example() -> Iterator[str]:
    schema = _Whole.model_json_schema()
    for key, of in schema["properties"].items():
        yield from write_reference._rows(key, of, key in schema["required"], schema["$defs"])


def test_rows_tell_type_default_and_parts() -> None:
    assert list(_rows_of_the_example()) == [
        "| `needed` | whole number | required | |",
        "| `part` | parts | see its parts | |",
        "| `part.rate` | number, above 0, at most 1 | `0.5` | a share \\| of all |",
        "| `parts` | list of parts | none | |",
        "| `parts.N.rate` | number, above 0, at most 1 | `0.5` | a share \\| of all |",
        "| `pair` | 2 whole numbers | none | |",
    ]
