"""`merger rank`: which of a folder's checkpoints and LoRAs a base would gain from, by one gradient at the base.

The score's gradient in the base's parameters is computed on fresh prompts, chunk by chunk, and kept in files of a
temporary folder. Then each donor is read once, where it lies, and none is held: twenty donors need the memory of one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmark.adapters.peft_config import adapter_file
from merger.app.memory_planner import plan_memory
from merger.app.runtime import load_runtime
from merger.app.session import open_session
from merger.checkpoints.weight_files import is_there
from merger.config.config import Config
from merger.config.loading import load_config
from merger.errors import ConfigError
from merger.layers.channels import CHANNEL
from merger.scoring.gradients.gradients import BlendGradients
from merger.scoring.gradients.kept import KeptGradients
from merger.scoring.gradients.reduction import searched_parameters
from merger.scoring.ranking import Ranking, keep, products

LEAST_CHUNKS = 2
_MODEL_FOLDERS = ("model_index.json", "unet", "transformer")
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def pool_config(file: Path, paths: Sequence[Path], overrides: Sequence[str], *, allow_pickle: bool) -> Config:
    """The configuration in `file` with everything in `paths` as its donors, and no setting that names its own.

    paths: checkpoints, adapters, and folders that hold them; without any the configuration's own donors stay. Raises
    `ConfigError` for a path without any.
    """
    donors = [f"donors={json.dumps([str(path) for path in pool(paths, allow_pickle=allow_pickle)])}"] if paths else []
    config = load_config(file, [*overrides, *donors, "frozen={}", "tied=[]", "method=gradient"])
    if config.granularity == CHANNEL:  # a table of channels could not be read
        config = config.model_copy(update={"granularity": "block"})
    return config


def pool(paths: Sequence[Path], *, allow_pickle: bool) -> list[Path]:
    """The checkpoints and adapters in `paths`, in order, each once. Raises `ConfigError` for a path that holds none."""
    found: dict[Path, None] = {}
    for path in paths:
        if not is_there(path):
            raise ConfigError(f"{path}: there is no such file or folder")
        members = list(_members(path.absolute(), allow_pickle))
        if not members:
            pickles = "" if allow_pickle else " (pickles only with --allow-pickle)"
            raise ConfigError(f"{path}: holds no checkpoint and no adapter{pickles}")
        found |= dict.fromkeys(members)
    return list(found)


def _members(path: Path, allow_pickle: bool) -> Iterator[Path]:
    if not path.is_dir() or _is_model(path):
        yield path
        return
    endings = (".safetensors", *(_PICKLES if allow_pickle else ()))
    for each in sorted(path.iterdir()):
        weights = each.suffix in endings and not each.name.endswith(".recipe.safetensors")
        if _is_model(each) if each.is_dir() else weights:
            yield each


def _is_model(folder: Path) -> bool:
    return adapter_file(folder) != folder or any((folder / name).exists() for name in _MODEL_FOLDERS)


def rank(config: Config, chunks: int) -> tuple[Ranking, dict[str, Any]]:
    """What each donor of `config` would gain, and {figure: value} of the base and the prompts that say so.

    chunks: of prompts, each as many as a trial of the search has. Raises `InputError` in one line.
    """
    if chunks < LEAST_CHUNKS:
        raise ConfigError(
            f"--chunks {chunks}: the spread between chunks gives the error, so use at least {LEAST_CHUNKS}"
        )
    session = open_session(config)
    runtime = load_runtime(session, gradients=True, hold="file")
    planned = plan_memory(session, runtime, gradients=True)
    for line in planned.plan.lines:
        print(line, file=sys.stderr)
    assert planned.steps is not None and isinstance(planned.steps.gradients, BlendGradients)
    steps, live = planned.steps.gradients, runtime.live
    live.hold_in("file")  # each donor is read once
    gradients = KeptGradients(
        live, steps.generator, steps.tagger, steps.metric, steps.how, micro_batch=steps.micro_batch
    )
    half = gradients.parameters[0].dtype.itemsize < 4
    values = []
    with TemporaryDirectory(prefix="layermerge-rank-") as folder:
        files = [Path(folder) / f"{chunk}.safetensors" for chunk in range(chunks)]
        for chunk, file in enumerate(files):
            score, found = gradients.of_base(planned.steps.prompts(chunk))
            keep(found, torch.bfloat16 if half else torch.float32, file)
            values.append(score.value)
            print(f"chunk {chunk + 1} of {chunks}: the base scores {score.value:.4f}", file=sys.stderr)
        numbered = searched_parameters(live, gradients.layers)
        table = products(list(numbered), files, len(gradients.layers), len(live.donors))
    ranking = Ranking(gradients.layers, live.donors, table)
    said = {
        "base": session.sources.base.name,
        "granularity": config.granularity if isinstance(config.granularity, str) else dict(config.granularity),
        "prompts": chunks * len(session.exam.prompts["search"]),
        "chunks": chunks,
        "score": sum(values) / chunks,
        "objective": steps.metric.kind,
    }
    return ranking, said
