"""The rooms of the house: imports point one way, and the drawing in the docs is of the code as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts import rooms

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def modules() -> dict[str, set[str]]:
    return rooms.module_imports()


def test_imports_between_rooms_point_one_way(modules: dict[str, set[str]]) -> None:
    assert rooms.circle_in(rooms.room_imports(modules)) == []


def test_no_modules_import_each_other_in_a_circle(modules: dict[str, set[str]]) -> None:
    assert rooms.circle_in(modules) == []


def test_the_benchmark_knows_nothing_of_the_merger(modules: dict[str, set[str]]) -> None:
    assert [
        (name, other)
        for name, found in modules.items()
        if name.startswith("benchmark")
        for other in found
        if other.startswith("merger")
    ] == []


def test_rooms_import_modules_and_not_the_names_that_rooms_export(modules: dict[str, set[str]]) -> None:
    """A room's `__init__` is for programs outside: it leads to modules, which must not lead back to it."""
    packages = {name for name in modules if (ROOT / name.replace(".", "/")).is_dir()}
    assert {(name, other) for name, found in modules.items() for other in found & packages} == set()


def test_every_module_lies_in_a_room(modules: dict[str, set[str]]) -> None:
    beside = {name for name in modules if name.count(".") == 1 and not (ROOT / name.replace(".", "/")).is_dir()}
    leaves = {f"merger.{name}" for name in ("errors", "version", "yaml_text", "weights")}
    names = ("errors", "hashing", "hub_ids", "images", "lazy", "notices", "reading", "writing")
    leaves |= {f"benchmark.{name}" for name in names}
    doors = {name for name in beside if rooms.room_of(name) is None}
    assert beside - doors <= leaves
    assert all(not modules[name] - leaves for name in beside & leaves)


def test_the_drawing_in_the_docs_is_of_the_code(modules: dict[str, set[str]]) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert rooms.page_part(rooms.room_imports(modules)) in page, "run `python -m scripts.rooms --write`"


def test_a_circle_is_found_wherever_the_import_stands(tmp_path: Path) -> None:
    """Imports inside a function and for type checkers alone count as well."""
    for file, text in {
        "merger/__init__.py": "",
        "merger/one/__init__.py": "",
        "merger/one/a.py": "def later():\n    from merger.two import b\n    return b\n",
        "merger/two/__init__.py": "",
        "merger/two/b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from merger.one.a import later\n",
        "benchmark/__init__.py": "",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    found = rooms.room_imports(rooms.module_imports(tmp_path))
    assert found == {"merger.one": {"merger.two"}, "merger.two": {"merger.one"}}
    assert set(rooms.circle_in(found)) == {"merger.one", "merger.two"}


def test_the_graph_is_printed() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "scripts.rooms"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "merger.app" in shown and "benchmark.prompts" in shown
