"""The whole way at full size: build, inspect, blend in place, one denoiser call, export, reload, verify.

    python -m scripts.check_full_size                                both families; 42 GB of disk, one after the other
    python -m scripts.check_full_size --family sd1 --folder /data --keep
    python -m scripts.check_full_size --tiny                         whether it runs at all, in a minute or two

Random weights of the true shapes, three donors. Each step runs in a process of its own. Of each part are shown:

    seconds    by the clock
    own        the most memory of its own (anonymous pages), looked at every 10 ms: what a machine must have
    with files the most memory in all (VmHWM): with the pages of mapped files, which the system takes back when it must

It fails (exit status 1) where a step goes wrong, an export takes more than 1.5 GB of its own, or any step more than 24.
The last line is JSON. Linux only, as it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark.pipelines.loading import load_pipeline
from benchmark.pipelines.quiet import quiet_diffusers
from merger.blend.live import LiveDenoiser
from merger.checkpoints.checkpoint import Checkpoint, open_checkpoint
from merger.checkpoints.inspect import inspect_files
from merger.errors import CheckpointError, InputError
from merger.export.recipe import Recipe
from merger.export.write import export, verify
from merger.layers.grouping import group
from scripts.full_size_models import FAMILIES, TINY, Family, layout_of, write_model, write_pipeline

ROOT = Path(__file__).resolve().parent.parent
DONORS = ("one", "two", "three")
EXPORT_LIMIT = 1.5e9
LIMIT = 24e9  # bytes
_STATUS = Path("/proc/self/status")


@dataclass
class Meter:
    """Times parts of a step and notes the memory they take; each is a row for the table."""

    say: Callable[[dict[str, Any]], None]
    rows: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def part(self, name: str) -> Iterator[dict[str, Any]]:
        """One row; what the block puts into it is kept."""
        row: dict[str, Any] = {"step": name}
        with suppress(OSError):  # else the peak is that of the process so far
            Path("/proc/self/clear_refs").write_text("5")
        done, seen = threading.Event(), [own_memory()]

        def watch() -> None:
            while not done.wait(0.01):
                seen.append(max(seen.pop(), own_memory()))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        began = time.perf_counter()
        try:
            yield row
        finally:
            done.set()
            watcher.join()
        row["seconds"] = round(time.perf_counter() - began, 2)
        row |= {"own": max(seen[0], own_memory()), "with_files": _memory("VmHWM")}
        self.rows.append(row)
        self.say(row)


@dataclass(frozen=True)
class Case:
    """A family's files in a folder."""

    family: Family
    folder: Path
    side: int  # of the latents in the denoiser call

    @property
    def pipeline(self) -> Path:
        """The configuration folder."""
        return self.folder / "pipeline"

    @property
    def output(self) -> Path:
        """The exported blend."""
        return self.folder / "blend.safetensors"

    @property
    def drawn(self) -> Path:
        """What the live denoiser answered."""
        return self.folder / "live.pt"

    @property
    def files(self) -> list[Path]:
        """Base and donors."""
        return [self.folder / f"{name}.safetensors" for name in ("base", *DONORS)]

    def opened(self) -> tuple[Checkpoint, list[Checkpoint]]:
        """Base and donors, opened."""
        base, *donors = map(open_checkpoint, self.files)
        return base, donors

    def weights(self, base: Checkpoint) -> dict[str, dict[str, float]]:
        """Some blend, another in every block, of all donors."""
        blocks = list(group(base.denoiser, "block"))
        return {block: {"one": 0.5 - 0.02 * i, "two": 0.25, "three": 0.01 * i} for i, block in enumerate(blocks)}


def build(case: Case, meter: Meter) -> None:
    """The configuration, the base and the donors."""
    with meter.part(f"build {len(case.files)} files") as row:
        write_pipeline(case.family, case.pipeline)
        for file in case.files:
            write_model(case.family, file)
        row["file_bytes"] = case.files[0].stat().st_size


def inspect(case: Case, meter: Meter) -> None:
    """What the files are, hashes included; that they fit together and with the configuration."""
    with meter.part("inspect") as row:
        found = inspect_files(case.files, case.pipeline)
        row["parameters"] = found["files"][0]["parameters"]
    if not found["fit"]["ok"] or {file["family"] for file in found["files"]} != {case.family.name}:
        raise CheckpointError(f"inspect says of these files: {found['fit']}")


def blend(case: Case, meter: Meter) -> None:
    """The pipeline as a search loads it, its denoiser live, two blends, one call."""
    with meter.part("load the pipeline"), quiet_diffusers():
        pipeline = load_pipeline(case.files[0], config=case.pipeline, dtype=torch.float16)
    with meter.part("make it live") as row:
        base, donors = case.opened()
        live = LiveDenoiser(pipeline.unet, base, donors, group(base.denoiser, "block"))
        row["hold"] = live.hold
    if live.remark:
        print(live.remark, file=sys.stderr)
    weights = case.weights(base)
    with meter.part("blend in place"):
        first = live.apply(weights)
    with meter.part("blend again"):
        again = live.apply({layer: {donor: -w for donor, w in row.items()} for layer, row in weights.items()})
    if live.apply(weights) != first or again == first:
        raise CheckpointError("the same blend did not give the same checksum, or another one did")
    with meter.part("one denoiser call"):
        drawn = call(pipeline.unet, case.side)
    torch.save(drawn, case.drawn)


def write(case: Case, meter: Meter) -> None:
    """The blend as a file."""
    base, donors = case.opened()
    with meter.part("hash the sources"):
        recipe = Recipe.of(base, donors, "block", case.weights(base))
    with meter.part("export"):
        export(recipe, case.output, base=base, donors=donors)


def reload(case: Case, meter: Meter) -> None:
    """The file in plain diffusers, without a network: the denoiser must answer as the live one did."""
    import diffusers

    kind = getattr(diffusers, json.loads((case.pipeline / "model_index.json").read_text())["_class_name"])
    with meter.part("reload by diffusers"), quiet_diffusers():
        pipeline = kind.from_single_file(
            str(case.output), config=str(case.pipeline), local_files_only=True, torch_dtype=torch.float16
        )
    drawn = call(pipeline.unet.eval(), case.side)
    if not torch.isfinite(drawn).all() or not torch.equal(drawn, torch.load(case.drawn)):
        raise CheckpointError(f"{case.output}: its denoiser does not answer as the live one did")


def check(case: Case, meter: Meter) -> None:
    """The file against its own recipe, tensor by tensor."""
    with meter.part("verify") as row:
        found = verify(case.output)
        row["tensors"] = found.tensors_compared
    if not found.ok:
        raise CheckpointError(f"{case.output}: {len(found.differing)} tensors differ, first '{found.differing[0]}'")


STEPS = {step.__name__: step for step in (build, inspect, blend, write, reload, check)}


def call(unet: Any, side: int) -> Tensor:
    """One call of a denoiser on fixed noise: [1, 4, side, side], in its dtype."""
    draw = torch.Generator().manual_seed(0)
    config = unet.config

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(unet.dtype)

    more = {}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        sizes = torch.tensor([[8.0 * side, 8.0 * side, 0, 0, 8.0 * side, 8.0 * side]]).to(unet.dtype)
        more["added_cond_kwargs"] = {"text_embeds": noise(1, pooled), "time_ids": sizes}
    with torch.no_grad():
        return unet(noise(1, 4, side, side), 500, noise(1, 77, config.cross_attention_dim), **more).sample


def run(case: Case, name: str, *, apart: bool = True) -> list[dict[str, Any]]:
    """All steps, each in its own process or, where not apart, here. Returns the rows; raises InputError."""
    rows: list[dict[str, Any]] = []

    def keep(row: dict[str, Any]) -> None:
        rows.append({"family": name, **row})
        print(_line(rows[-1]), flush=True)

    for step, work in STEPS.items():
        if not apart:
            work(case, Meter(keep))
            continue
        tiny = ["--tiny"] if case.family in TINY.values() else []
        command = [
            sys.executable,
            "-m",
            "scripts.check_full_size",
            "--family",
            name,
            "--folder",
            str(case.folder.resolve()),
        ]
        command += ["--step", step, *tiny]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                keep(json.loads(line))
        if process.returncode:
            raise CheckpointError(f"{name}: the step '{step}' ended with status {process.returncode}")
    return rows


def too_much(rows: list[dict[str, Any]]) -> list[str]:
    """What took more memory of its own than it may."""
    limits = {"export": EXPORT_LIMIT}
    return [
        f"{row['family']}: {row['step']} took {row['own'] / 1e9:.1f} GB of its own"
        for row in rows
        if row["own"] > limits.get(row["step"], LIMIT)
    ]


def own_memory() -> int:
    """Bytes that this process has of its own: anonymous pages."""
    return _memory("RssAnon")


def _memory(which: str) -> int:
    """A line of this process's status, in bytes."""
    found = re.search(rf"^{which}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _line(row: dict[str, Any]) -> str:
    more = "  ".join(f"{key} {row[key]}" for key in row.keys() - {"family", "step", "seconds", "own", "with_files"})
    sizes = f"{row['own'] / 1e9:8.2f} {row['with_files'] / 1e9:11.2f}"
    return f"{row['family']:6} {row['step']:20} {row['seconds']:8.1f} {sizes}   {more}".rstrip()


def _check_room(folder: Path, families: list[Family]) -> None:
    """The files of one family at a time, and its blend. Raises CheckpointError."""
    sizes = [
        sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in layout_of(f).values()) for f in families
    ]
    needed, free = (len(DONORS) + 2) * max(sizes), shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError(
            f"{folder}: {needed / 1e9:.0f} GB are needed, {free / 1e9:.0f} are free. Name another place with --folder."
        )


def main(argv: list[str] | None = None) -> int:
    """Parse, run, print the table and the JSON."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", choices=FAMILIES, help="one of them only")
    parser.add_argument("--folder", type=Path, help="where the files go (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="leave the files there")
    parser.add_argument("--tiny", action="store_true", help="networks of a few channels")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    kinds, side = (TINY, 8) if given.tiny else (FAMILIES, 16)
    names = [given.family] if given.family else list(kinds)
    try:
        if not _STATUS.exists():
            raise CheckpointError("there is no /proc here: memory can be measured on Linux only")
        if given.step:
            STEPS[given.step](Case(kinds[given.family], given.folder, side), Meter(lambda row: print(json.dumps(row))))
            return 0
        return _all(kinds, names, given.folder, given.keep, side)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _all(kinds: dict[str, Family], names: list[str], given: Path | None, keep: bool, side: int) -> int:
    folder = given or Path(tempfile.mkdtemp(prefix="full-size-"))
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    try:
        _check_room(folder, [kinds[name] for name in names])
        print(f"{'':6} {'':20} {'seconds':>8} {'own GB':>8} {'with files':>11}")
        for name in names:
            try:
                rows += run(Case(kinds[name], folder / name, side), name)
            finally:
                if not keep:
                    shutil.rmtree(folder / name, ignore_errors=True)
    finally:
        if given is None and not keep:
            shutil.rmtree(folder, ignore_errors=True)
    for line in (said := too_much(rows)):
        print(line, file=sys.stderr)
    print(json.dumps({"ok": not said, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "rows": rows}))
    return 1 if said else 0


if __name__ == "__main__":
    raise SystemExit(main())
