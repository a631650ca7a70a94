"""The check at full size, on networks of a few channels: the same builder, the same steps."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import yaml

from merger.checkpoints.headers import read_header
from merger.errors import CheckpointError
from scripts import check_full_size
from scripts.check_full_size import Case, main, run, too_much
from scripts.full_size_models import FAMILIES, TINY, layout_of


def published_tensors(name: str) -> dict[str, tuple[int, ...]]:
    """{key: shape} of a whole checkpoint, from the lists that sd-mecha ships; without EMA and noise schedule."""
    found = importlib.util.find_spec("sd_mecha")  # found, not imported: only its data is wanted
    if found is None or found.origin is None:
        pytest.skip("sd-mecha is not installed")
    file = Path(found.origin).parent / "extensions" / "builtin" / "model_configs" / f"{name}.yaml"
    parts = yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["components"]
    kept = [part for name, part in parts.items() if name not in ("ema", "scheduler")]
    return {key: tuple(each["shape"]) for part in kept for key, each in part.items()}


@pytest.mark.parametrize(("name", "listed", "size"), [("sd1", "sd1-ldm", 2.132e9), ("sdxl", "sdxl-sgm", 6.938e9)])
def test_the_big_files_are_those_that_are_published(name: str, listed: str, size: float) -> None:
    """Every key and shape of the lists that others wrote, and no more; but for markers, EMA and the noise schedule."""
    layout = layout_of(FAMILIES[name])
    published = published_tensors(listed)
    for marker in ("v_pred", "ztsnr", "edm_vpred.sigma_max", "edm_vpred.sigma_min"):
        published.pop(marker, None)
    assert {key: shape for key, (_, shape) in layout.items()} == published
    assert sum(dtype.itemsize * math.prod(shape) for dtype, shape in layout.values()) == pytest.approx(size, rel=1e-3)


@pytest.mark.parametrize("name", TINY)
def test_the_whole_way(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case(TINY[name], tmp_path, 8)
    rows = run(case, name, apart=False)
    assert [row["step"] for row in rows] == [
        "build 4 files",
        "inspect",
        "load the pipeline",
        "make it live",
        "blend in place",
        "blend again",
        "one denoiser call",
        "hash the sources",
        "export",
        "reload by diffusers",
        "verify",
    ]
    assert all(0 < row["own"] <= row["with_files"] * 1.1 and row["family"] == name for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == len(rows)
    layouts = [
        {key: (entry.dtype, entry.shape) for key, entry in read_header(file).tensors.items()}
        for file in (*case.files, case.output)
    ]
    assert all(layout == layout_of(TINY[name]) for layout in layouts)
    assert rows[-1]["tensors"] == len(layouts[0])
    other = check_full_size.call

    def another_answer(unet: object, side: int) -> object:
        return other(unet, side) + 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check_full_size, "call", another_answer)
        with pytest.raises(CheckpointError, match="does not answer as the live one did"):
            check_full_size.reload(case, check_full_size.Meter(lambda row: None))


def test_a_step_runs_in_a_process_of_its_own_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check_full_size, "STEPS", {"build": check_full_size.build})
    monkeypatch.chdir(tmp_path)
    tmp_path = tmp_path / "files"
    assert main(["--tiny", "--family", "sd1", "--folder", str(tmp_path)]) == 0
    report = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert [row["step"] for row in report["rows"]] == ["build 4 files"]
    assert not list(tmp_path.iterdir())


def test_too_little_room_and_too_much_memory_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"family": "sdxl", "step": step, "own": own}
        for step, own in (("export", 1.6e9), ("verify", 1.6e9), ("make it live", 25e9))
    ]
    assert too_much(rows) == ["sdxl: export took 1.6 GB of its own", "sdxl: make it live took 25.0 GB of its own"]
    monkeypatch.setattr(check_full_size.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10**6})())
    assert main(["--tiny", "--folder", str(tmp_path)]) == 1
    assert "GB are needed, 0 are free. Name another place with --folder." in capsys.readouterr().err
