"""Public names of a package that are imported when they are first used (PEP 562), so that importing it is quick."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package that exports `names`: {public name: the module that defines it}.

        __getattr__, __dir__ = lazily(__name__, {"open_tagger": "benchmark.taggers.registry"})

    A type checker does not follow this: the package also imports the same names under `if TYPE_CHECKING`.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(names[name]), name)
        setattr(sys.modules[package], name, value)  # the next access finds it without asking here
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names})

    return get, listed
