"""The pages say what is true of the code: links lead somewhere, examples are valid, commands can be parsed."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from merger.app.cli import make_parser
from merger.config.config import Config
from merger.config.loading import parse_config

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])

_FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def _named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of every fenced block in a language; '' for those that name none."""
    return [
        (_named(page), text)
        for page in PAGES
        for found, text in _FENCED.findall(page.read_text(encoding="utf-8"))
        if found == language
    ]


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings as GitHub makes them."""
    seen: Counter[str] = Counter()
    anchors = set()
    for heading in re.findall(r"^#+ (.+)$", _FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip()
        anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        anchors.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return anchors


def _links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for target in _LINK.findall(_FENCED.sub("", page.read_text(encoding="utf-8"))):
            if not re.match(r"[a-z]+:", target):
                yield page, target


@pytest.mark.parametrize(("page", "target"), list(_links()), ids=lambda value: str(value).removeprefix(f"{ROOT}/"))
def test_a_link_leads_somewhere(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    assert file.exists(), f"{_named(page)}: {target}: there is no such file"
    if anchor:
        assert anchor in _anchors(file), f"{_named(page)}: {target}: there is no such heading"


def test_every_page_is_reached_from_the_first() -> None:
    start = ROOT / "docs" / "README.md"
    led_to = {
        (start.parent / target.partition("#")[0]).resolve()
        for target in _LINK.findall(start.read_text(encoding="utf-8"))
        if not re.match(r"[a-z]+:", target)
    }
    missing = {page for page in PAGES if page.is_relative_to(ROOT / "docs") and page != start} - led_to
    assert not missing


def test_pages_of_the_code_are_there() -> None:
    for folder in ("merger", "benchmark", "scripts", "demo"):
        for file in (file for file in (ROOT / folder).rglob("*") if file.suffix in (".py", ".yaml", ".html")):
            for named in re.findall(r"\bdocs/[\w/.-]+\.\w+", file.read_text(encoding="utf-8")):
                assert (ROOT / named).exists(), f"{_named(file)} names {named}"


def _over_a_minimum(raw: dict[str, object]) -> dict[str, object]:
    """A part of a configuration, put over the least that a search needs."""
    least = {"base": "base.safetensors", "donors": ["donor.safetensors"], "tagger": "tagger", "vocabulary": {"top": 5}}
    return {**least, **raw}


@pytest.mark.parametrize(("page", "text"), _blocks("yaml"))
def test_a_configuration_on_a_page_is_valid(page: str, text: str, tmp_path: Path) -> None:
    raw = yaml.safe_load(text)
    whole = {"base", "donors", "tagger"} <= raw.keys()
    config = parse_config(raw if whole else _over_a_minimum(raw), folder=tmp_path, where=page)
    assert isinstance(config, Config)


def test_there_are_whole_configurations_on_the_pages() -> None:
    whole = [page for page, text in _blocks("yaml") if "base:" in text and "donors:" in text]
    assert "README.md" in whole
    assert any(page.startswith("docs/how-to/") for page in whole)


def _command_lines() -> Iterator[tuple[str, str]]:
    """Commands of ours in blocks without a language, and in the first column of tables."""
    for page, text in _blocks(""):
        for line in text.replace("\\\n", " ").splitlines():
            command = line.strip().partition("    #")[0].removeprefix(".venv/bin/")
            if command.startswith(("merger ", "python -m benchmark ")):
                yield page, command
    for page in PAGES:
        for command in re.findall(r"^\| `(merger [^`]+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE):
            yield _named(page), command


@pytest.mark.parametrize(("page", "command"), list(_command_lines()))
def test_a_command_on_a_page_can_be_parsed(page: str, command: str) -> None:
    words = shlex.split(command.replace("...", ""))
    arguments = words[1:] if words[0] == "merger" else ["benchmark", *words[3:]]
    make_parser().parse_args(arguments)


def test_there_are_commands_of_both_programs_on_the_pages() -> None:
    commands = [command for _, command in _command_lines()]
    assert sum(command.startswith("merger") for command in commands) >= 10
    assert any(command.startswith("python -m benchmark") for command in commands)


@pytest.mark.parametrize(("page", "text"), _blocks("python"))
def test_what_a_python_example_imports_is_there(page: str, text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("merger", "benchmark"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"{page}: {node.module} has no {alias.name}"


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_no_page_names_a_key_of_the_gradient_search_that_is_not_there(page: Path) -> None:
    if page.name in ("CHANGELOG.md", "LOG.md"):
        return
    known = Config.model_fields["gradient"].default.model_dump().keys()
    assert set(re.findall(r"`gradient\.(\w+)", page.read_text(encoding="utf-8"))) <= known


def test_the_examples_of_extensions_run() -> None:
    """In a process of its own: they change what samplers, tagger formats and families there are."""
    page = ROOT / "docs" / "architecture.md"
    examples = [text for named, text in _blocks("python") if named == _named(page)]
    asked = """
from benchmark.taggers.registry import tagger_kinds
from merger.checkpoints.families import family_named
from merger.search.registry import sampler_named
print(sampler_named("mine").about, "mine" in tagger_kinds(), family_named("mine").architecture)
"""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*examples, asked])], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "the middle of the bounds True my-model-v1"


def test_strategies_named_on_the_page_of_results_can_be_measured() -> None:
    from scripts.strategies import STRATEGIES

    named = re.findall(r'--strategies "([^"]+)"', (ROOT / "docs" / "results.md").read_text(encoding="utf-8"))
    assert named
    assert {name.strip() for names in named for name in names.split(";")} <= set(STRATEGIES)


def test_the_page_of_results_has_the_measured_tables() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for folder in ("measurements", "measurements/new-seeds"):
        measured = (ROOT / "docs" / folder / "search.md").read_text(encoding="utf-8")
        assert all(table.strip() in page for table in measured.split("\n\n")), folder
