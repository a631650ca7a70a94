"""A disk that takes no more, by a limit on files in a process of its own: every form of an export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

resource = pytest.importorskip("resource", reason="limits of this kind are Unix's")

LIMIT = 150_000  # bytes; a tiny denoiser has more, a tiny text encoder and the configuration have less
CHILD = """
import json, resource, sys
from merger.app.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
for command in json.loads(sys.argv[1]):
    print("status", main(command), flush=True)
    print("---", file=sys.stderr, flush=True)
"""


def test_every_form_of_an_export_ends_in_one_line_and_leaves_nothing(
    tiny_family: dict[str, Path], tiny_diffusers_folder: Path, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    for base, name in ((tiny_family["base"], "file"), (tiny_diffusers_folder, "folder")):
        recipe = {"base": str(base), "donors": [str(tiny_family["warm"])], "weights": {"*": {"warm": 0.5}}}
        (tmp_path / f"{name}.json").write_text(json.dumps(recipe))
    torch.save({"state_dict": load_file(tiny_family["base"])}, tmp_path / "old.ckpt")
    out = tmp_path / "out"
    commands = [
        ["merge", str(tmp_path / "file.json"), "--output", str(out / "a.safetensors")],
        ["merge", str(tmp_path / "file.json"), "--output", str(out / "b.safetensors"), "--mecha", str(out / "b.mecha")],
        ["merge", str(tmp_path / "file.json"), "--output", str(out / "c.safetensors"), "--denoiser-only"],
        [
            *("merge", str(tmp_path / "file.json"), "--output", str(out / "d")),
            *("--format", "diffusers", "--dtype", "fp32", "--pipeline", str(tiny_pipeline_folder)),
        ],
        ["merge", str(tmp_path / "folder.json"), "--output", str(out / "e")],
        ["convert", str(tmp_path / "old.ckpt"), "--output", str(out / "f.safetensors")],
    ]
    before = sorted(tmp_path.iterdir())
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(limit=LIMIT), json.dumps(commands)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert done.stdout.splitlines() == ["status 2"] * len(commands), done.stderr
    for command, said in zip(commands, done.stderr.split("---\n"), strict=False):
        (line,) = (line for line in said.splitlines() if line.startswith("error: "))
        output = command[command.index("--output") + 1]
        assert line.startswith(f"error: {output}: cannot be written ("), line
        assert "File too large" in line
        assert line.endswith("). Nothing was left behind.")
        assert "Traceback" not in said
    assert sorted(tmp_path.iterdir()) == before
