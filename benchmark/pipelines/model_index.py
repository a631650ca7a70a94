"""`model_index.json`, which names the classes of a pipeline's parts. A downloaded one must not choose what code runs.

Only classes of diffusers and transformers are used. Versions of diffusers before 0.42 import whatever module an entry
names, and run `LIBRARY.py` in a part's folder, so that every entry is checked before diffusers reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmark.errors import InputError, first_line, out_of_memory
from benchmark.reading import NOT_JSON, check_numbers, read_json

NAME = "model_index.json"
_LIBRARIES = ("diffusers", "transformers")
_PART = re.compile(r"vae|text_encoder(_\d+)?")  # always parts, never settings
_CONFIGS = ("config.json", "scheduler_config.json")


def read_index(folder: Path) -> dict[str, Any]:
    """What a pipeline folder's `model_index.json` holds, each entry checked. Raises InputError.

    An entry of a part is `[library, class]`, with None for a part that the pipeline does without. The library is
    diffusers, one of diffusers' pipelines (such as `stable_diffusion`), or transformers. The numbers in the parts' own
    configurations are checked, too.
    """
    file = folder / NAME
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except NOT_JSON as error:
        raise InputError(f"{folder}: is no pipeline configuration; its {NAME} cannot be read ({error}).") from None
    if not isinstance(index, dict):
        raise InputError(f"{file}: holds no table of a pipeline's parts.")
    if not isinstance(index.get("_class_name"), str):
        raise InputError(f"{file}: does not say which diffusers pipeline it is ('_class_name').")
    parts = dict(parts_of(index, file))
    for code in ("None.py", *(f"{name}/{library}.py" for name, (library, _) in parts.items())):
        if (folder / code).exists():
            raise InputError(f"{folder / code}: is Python code, which diffusers could run. Remove it to use the model.")
    for config in (folder / name / config for name in parts for config in _CONFIGS):
        if config.is_file():
            check_numbers(config, read_json(config))
    return index


def parts_of(index: dict[str, Any], file: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """(name, (library, class)) of every part that the pipeline has. Raises InputError, naming `file` and entry."""
    for name, entry in index.items():
        if name.startswith("_") or (not isinstance(entry, list) and not _PART.fullmatch(name)):
            continue  # a setting of the pipeline
        if isinstance(entry, list) and len(entry) == 2 and None in entry:
            continue
        if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(word, str) for word in entry):
            raise InputError(f"{file}: '{name}' is {json.dumps(entry)}, and must be [library, class].")
        library, kind = entry
        if library not in _LIBRARIES and not _is_pipeline_module(library):
            raise InputError(
                f"{file}: '{name}' is of '{library}'; only classes of diffusers and transformers are loaded."
            )
        yield name, (library, kind)


def component_class(folder: Path, name: str, library: str, kind: str) -> Any:
    """The class of a network that an entry names. Raises InputError for what is no such class."""
    import diffusers
    import transformers

    module = {"diffusers": diffusers, "transformers": transformers}.get(library)
    found = None if module is None else _found(module, kind, folder / NAME)
    networks = (diffusers.ModelMixin, transformers.PreTrainedModel)
    if not isinstance(found, type) or not issubclass(found, networks):
        raise InputError(f"{folder / NAME}: '{name}' is {library}'s '{kind}', which is no network of this version.")
    return found


def pipeline_class(folder: Path) -> Any:
    """The diffusers pipeline that a configuration folder names. Raises InputError if it reads no single files."""
    import diffusers

    name = read_index(folder)["_class_name"]
    found = _found(diffusers, name, folder / NAME)
    if (
        not isinstance(found, type)
        or not issubclass(found, diffusers.DiffusionPipeline)
        or not hasattr(found, "from_single_file")
    ):
        raise InputError(f"{folder / NAME}: '{name}' is no diffusers pipeline that reads single files.")
    return found


def _found(module: Any, name: str, file: Path) -> Any:
    """A public name of a library; None if it has none. Raises InputError if it cannot be imported."""
    try:
        return None if name.startswith("_") else getattr(module, name, None)
    except (ImportError, RuntimeError) as error:  # libraries import their classes only now, with what these need
        if out_of_memory(error):
            raise
        raise InputError(f"{file}: '{name}' of {module.__name__} cannot be imported ({first_line(error)}).") from error


def _is_pipeline_module(library: str) -> bool:
    """Whether diffusers has pipelines of this name, which have classes of their own."""
    from diffusers import pipelines

    module = None if library.startswith("_") else getattr(pipelines, library, None)
    return isinstance(module, ModuleType) and module.__name__.startswith("diffusers.pipelines.")
