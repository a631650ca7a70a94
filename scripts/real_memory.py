"""One real gradient step of a full-size model on this CPU, in a process of its own, beside its plan.

The plan comes from networks without weights (`scripts.weightless`). The step is the product's: files on disk, a live
denoiser that is blended from them, one image in two sampling steps, both with gradients. Its memory is what the process
has of its own (RssAnon, without the pages of mapped files), less what it has after such a step of a tiny model, with
all libraries loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmark.pipelines.generation import GenerationSettings
from benchmark.pipelines.loading import dtypes, load_pipeline
from benchmark.pipelines.quiet import quiet_diffusers
from benchmark.taggers.registry import open_tagger
from merger.blend.live import LiveDenoiser
from merger.checkpoints.checkpoint import open_checkpoint
from merger.layers.channels import CHANNEL, widths
from merger.layers.grouping import group
from merger.scoring.gradients.memory import image_memory, nbytes_of, size
from merger.scoring.gradients.sampling import NETWORKS, DifferentiableGenerator, Differentiation
from scripts.check_full_size import Meter, own_memory
from scripts.full_size_models import FAMILIES, TINY, write_model, write_pipeline
from scripts.gpu_checks.full_size import Model, check_step
from scripts.gpu_checks.models import DONORS, prompts_of, random_tagger
from scripts.weightless import META, modules_of, no_values, weightless_model

ROOT = Path(__file__).resolve().parent.parent
WAYS = {
    "plain": Differentiation(1.0),
    "checkpointed": Differentiation(1.0, checkpointed=frozenset(NETWORKS)),
    "every saving": Differentiation(1.0, streamed=True, halves=True, checkpointed=frozenset(NETWORKS)),
}
"""Ways of computing the step; in all of them sampling steps are computed again."""

TYPES = {"sd1": "fp32", "sdxl": "bf16"}
SIDE = 512
NEAR = 0.15
"""How far the measured memory may be from the plan."""

_WHOLE_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
"""The allocator hands larger blocks back when they are freed; what it keeps for later is not what a step takes."""


def measure_real(name: str, way: str, *, tiny: bool, folder: Path) -> dict[str, Any]:
    """Plan and measurement of a step, in bytes. folder: where the files are written, if they are not there."""
    plan = planned(name, way, tiny=tiny)
    write(name, folder / "tiny", tiny=True)
    if not tiny:
        write(name, folder, tiny=False)
    command = [sys.executable, "-m", "scripts.real_memory", name, way, str(folder), *(["--tiny"] if tiny else [])]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | _WHOLE_BLOCKS, stdout=subprocess.PIPE, text=True, check=True
    )
    return {"model": name, "way": way, "planned": plan, **json.loads(done.stdout.splitlines()[-1])}


def planned(name: str, way: str, *, tiny: bool) -> int:
    """Bytes of such a step: models, blend and what the step takes."""
    family, how = (TINY if tiny else FAMILIES)[name], WAYS[way]
    with tempfile.TemporaryDirectory() as folder, quiet_diffusers(), no_values():
        model = weightless_model(family, _settings(tiny=tiny), Path(folder), dtypes()[TYPES[name]])
        held = nbytes_of(modules_of(model), META, model.live.parameters) + model.live.live_nbytes
        image = image_memory(model.gradients(how, 1), prompts_of(model.tagger, 1)[0])
    return held + image.of_step(how, held, 1).needed(1)


def tell(found: dict[str, Any]) -> bool:
    """Print a row; whether the measured memory is near the plan."""
    ratio = found["measured"] / found["planned"]
    row = (found["model"], found["type"], found["way"], size(found["planned"]), size(found["measured"]))
    print(f"| {' | '.join(row)} | {ratio:.3f} | {found['seconds']:.0f} s |", flush=True)
    return abs(ratio - 1) <= NEAR


def _settings(*, tiny: bool) -> GenerationSettings:
    side = 64 if tiny else SIDE
    return GenerationSettings(steps=2, sampler="ddim", width=side, height=side, batch_size=1)


def write(name: str, folder: Path, *, tiny: bool) -> None:
    """Write base, donors, configuration and tagger, unless they are there."""
    family = (TINY if tiny else FAMILIES)[name]
    write_pipeline(family, folder / "pipeline")
    for each in ("base", *DONORS):
        if not (file := folder / f"{each}.safetensors").is_file():
            write_model(family, file)
    random_tagger(folder / "tagger", torch.device("cpu"), tiny=tiny)


def step(name: str, way: str, folder: Path, *, tiny: bool) -> dict[str, Any]:
    """Take the step in this process, which has loaded all libraries before."""

    before, rows = own_memory(), Meter(lambda _: None)
    with rows.part("load"), quiet_diffusers():
        base, *donors = (open_checkpoint(folder / f"{each}.safetensors") for each in ("base", *DONORS))
        pipeline = load_pipeline(base.path, config=folder / "pipeline", dtype=dtypes()[TYPES[name]])
        tagger: Any = open_tagger(folder / "tagger", kind="transformers")
        layers = group(list(base.blended), CHANNEL)
        wide = widths(layers, {each: info.shape for each, info in base.blended.items()})
        live = LiveDenoiser(pipeline.unet, base, donors, layers, hold="file")
    held = own_memory() - before
    model = Model(live, DifferentiableGenerator(pipeline, _settings(tiny=tiny)), tagger, wide)
    began = time.perf_counter()
    with rows.part("step") as row:
        measured = model.gradients(WAYS[way], 1).measure(model.weights, prompts_of(tagger, 1))
    seconds = time.perf_counter() - began
    check_step(measured)
    taken = {"measured": row["own"] - before, "held": held, "before": before, "seconds": seconds}
    return {"type": TYPES[name], **taken}


if __name__ == "__main__":
    _name, _way, _folder, *_tiny = sys.argv[1:]
    step(_name, _way, Path(_folder) / "tiny", tiny=True)
    _folder_of_it = Path(_folder) / "tiny" if _tiny else Path(_folder)
    print(json.dumps(step(_name, _way, _folder_of_it, tiny=bool(_tiny))))
