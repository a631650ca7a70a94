"""Which rooms of the house import which, computed from the code, and the drawing of it in docs/architecture.md.

    python -m scripts.rooms            # prints the graph, one room a line
    python -m scripts.rooms --write    # puts the drawing into docs/architecture.md

A room is a sub-package of `merger` or `benchmark`, or a module that lies beside them (`merger.errors`). Every import
counts: those inside functions and those for type checkers alone as well.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("merger", "benchmark")
DOORS = ("__init__", "__main__", "cli", "keys", "text", "transformer_keys")
"""Modules beside the rooms that only lead into them: public names, and addresses of modules that have moved."""

START, END = "<!-- rooms: written by scripts/rooms.py -->", "<!-- /rooms -->"

Graph = dict[str, set[str]]


def module_imports(root: Path = ROOT) -> Graph:
    """{module: the modules of both packages that it imports}; a package's `__init__` goes by the package's name."""
    files = {_named(file.relative_to(root)): file for package in PACKAGES for file in (root / package).rglob("*.py")}
    return {name: set(_imported(file, files)) - {name} for name, file in sorted(files.items())}


def room_imports(modules: Mapping[str, set[str]]) -> Graph:
    """{room: the rooms that it imports}. Doors are no rooms; nothing imports them."""
    rooms: Graph = {}
    for module, imported in modules.items():
        if (room := room_of(module)) is not None:
            found = {other for name in imported if (other := room_of(name)) is not None}
            rooms.setdefault(room, set()).update(found - {room})
    return rooms


def room_of(module: str) -> str | None:
    """`merger.search` of `merger.search.space`; None for a door."""
    parts = module.split(".")
    return None if len(parts) == 1 or parts[1] in DOORS else ".".join(parts[:2])


def circle_in(graph: Mapping[str, set[str]]) -> list[str]:
    """The names along one circle of imports, the first again at the end; nothing where all point one way."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def floors_of(rooms: Mapping[str, set[str]], package: str) -> list[list[str]]:
    """The rooms of one package, floor by floor: each imports only from floors below its own."""
    own = {room: {other for other in below if other.startswith(f"{package}.")} for room, below in rooms.items()}
    sorter = TopologicalSorter({room: below for room, below in own.items() if room.startswith(f"{package}.")})
    sorter.prepare()
    floors = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        floors.append(ready)
        sorter.done(*ready)
    return floors


def drawing(rooms: Mapping[str, set[str]]) -> str:
    """The graph as Mermaid. An arrow points from a room to one that it imports; those that follow from others are
    left out, and so are those to `errors` and the other single modules, which all rooms may import.
    """
    lines = ["```mermaid", "flowchart TD"]
    inner = {room: {other for other in below if not _is_leaf(other)} for room, below in rooms.items()}
    for package in PACKAGES:
        lines.append(f"    subgraph {package}")
        for floor in reversed(floors_of(rooms, package)):
            lines += [f"        {room}[{_short(room)}/]" for room in floor if not _is_leaf(room)]
        lines.append("    end")
    for room in sorted(inner):
        if not _is_leaf(room):
            direct = inner[room] - {far for near in inner[room] for far in _reached(inner, near)}
            lines += [f"    {room} --> {other}" for other in sorted(direct)]
    return "\n".join([*lines, "```"])


def table(rooms: Mapping[str, set[str]]) -> str:
    """The same in words: one room a line, the top of the house first."""
    lines = []
    for package in PACKAGES:
        for floor in reversed(floors_of(rooms, package)):
            for room in floor:
                below = ", ".join(
                    sorted(_short(o) if o.startswith(package) else o for o in rooms[room] if not _is_leaf(o))
                )
                lines.append(f"{room:22} -> {below or '(leaves only)'}")
    return "\n".join(lines)


def page_part(rooms: Mapping[str, set[str]]) -> str:
    """What stands in docs/architecture.md from `START` to `END`."""
    return f"{START}\n{drawing(rooms)}\n\n```\n{table(rooms)}\n```\n{END}"


def _named(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(file: Path, known: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in known:
                    yield whole
                elif node.module in known:
                    yield node.module


def _is_leaf(room: str) -> bool:
    return not (ROOT / room.replace(".", "/")).is_dir()


def _short(room: str) -> str:
    return room.partition(".")[2]


def _reached(rooms: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(rooms[start])
    while waiting:
        if (room := waiting.pop()) not in found:
            found.add(room)
            waiting += rooms[room]
    return found


def main() -> int:
    """Prints the graph, or writes the drawing."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Shows which rooms import which.")
    parser.add_argument("--write", action="store_true", help="put the drawing into docs/architecture.md")
    args = parser.parse_args()
    rooms = room_imports(module_imports())
    if circle := circle_in(rooms):
        print(f"a circle: {' -> '.join(circle)}", file=sys.stderr)
        return 1
    if args.write:
        page = ROOT / "docs" / "architecture.md"
        text = page.read_text(encoding="utf-8")
        before, _, rest = text.partition(START)
        page.write_text(before + page_part(rooms) + rest.partition(END)[2], encoding="utf-8")
    print(table(rooms))
    return 0


if __name__ == "__main__":
    sys.exit(main())
