"""Names that a package exports: each leads to its module, and importing the package loads nothing."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.lazy import lazily

ROOT = Path(__file__).parents[2]
PACKAGES = ["benchmark", *(f"benchmark.{file.parent.name}" for file in sorted(ROOT.glob("benchmark/*/__init__.py")))]
HEAVY = {"torch", "diffusers", "transformers", "onnxruntime", "optuna", "scipy", "timm", "numpy", "PIL", "jinja2"}


def for_type_checkers(package: str) -> dict[str, str]:
    """{name: module} of what the package imports for type checkers alone."""
    file = ROOT / package.replace(".", "/") / "__init__.py"
    found = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                assert isinstance(line, ast.ImportFrom)
                found |= {alias.name: str(line.module) for alias in line.names}
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_of_a_room_is_what_its_module_defines(package: str) -> None:
    room = importlib.import_module(package)
    names = for_type_checkers(package)
    assert names
    assert room.__doc__
    assert set(names) <= set(dir(room))
    for name, module in names.items():
        value = getattr(room, name)
        assert value is getattr(importlib.import_module(module), name)
        assert getattr(value, "__module__", module) == module  # it is not imported there from elsewhere
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        room.nothing  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES)
def test_all_lazy_names_are_known_to_type_checkers(package: str) -> None:
    file = ROOT / package.replace(".", "/") / "__init__.py"
    (table,) = (node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Dict))
    assert ast.literal_eval(table) == for_type_checkers(package)


def test_importing_the_rooms_loads_nothing() -> None:
    code = f"import sys, {', '.join(PACKAGES)}; print({HEAVY} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "set()"


def test_the_names_that_programs_use() -> None:
    code = """
from benchmark.evaluate import Evaluation, evaluate
from benchmark.pipelines import load_pipeline, quiet_diffusers
from benchmark.prompts import Prompt, Vocabulary, make_prompts, read_vocabulary
from benchmark.taggers import open_tagger
from benchmark.text import escaped, parse_emphasis, plain_text
import benchmark
print(benchmark.open_tagger is open_tagger, callable(evaluate), callable(benchmark.compare))
"""
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "True True True"


def test_a_name_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    get, listed = lazily("benchmark.lazy", {"sqrt": "math"})
    assert "sqrt" in listed()
    assert get("sqrt")(4) == 2
    assert importlib.import_module("benchmark.lazy").sqrt(9) == 3
    monkeypatch.delattr("benchmark.lazy.sqrt")
