"""The checks of a GPU: all that can run on a CPU, with tiny models; and that they fail when something is wrong."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scripts import check_gpu
from scripts.check_gpu import CHECKS, main, table
from scripts.gpu_checks import blending, full_size, gradients
from scripts.gpu_checks.check import Bench, Check, Finding, Skipped, judged, run

CPU = torch.device("cpu")
ON_A_CPU = {"blend-bits": "PASS", "savings": "PASS", "out-of-memory": "PASS"}  # the others need a GPU to be judged


def bench(folder: Path, device: str = "cpu", *, tiny: bool = True, **more: Any) -> Bench:
    return Bench(torch.device(device), tiny, False, folder, **more)


def test_every_check_runs_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert main(["--device", "cpu", "--tiny", "--json"]) == 0
    assert torch.get_num_threads() == threads
    said = capsys.readouterr()
    report = json.loads(said.out)
    rows = {row["name"]: row for row in report["rows"]}
    assert report["ok"] and list(rows) == [check.name for check in CHECKS]
    assert {name: row["result"] for name, row in rows.items()} == {name: ON_A_CPU.get(name, "SKIPPED") for name in rows}
    assert all(row["measured"] for name, row in rows.items() if name != "pinned-copy"), "they were all measured"
    assert all(row["reason"] for row in rows.values() if row["result"] == "SKIPPED")
    assert rows["out-of-memory"]["figures"]["to"] == 1
    assert set(rows["step-sdxl"]["figures"]) == {"kept", "computed again", "streamed"}
    assert f"torch {torch.__version__}" in said.err
    assert said.err.count("\n| ") == len(CHECKS) + 2, "the table"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "error: no GPU is found here (torch"),
        (["--device", "mps"], "error: no GPU is found here (torch"),
        (["--device", "cpu"], "error: --device cpu: on a CPU, checks run with --tiny only. Add it."),
    ],
)
def test_without_a_gpu_there_is_one_line(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert not said.out and said.err.startswith(line) and said.err.count("\n") == 1


def test_other_devices_and_no_time_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert main(["--device", "meta"]) == 2
    assert capsys.readouterr().err == "error: --device meta: checks run on cuda, cuda:1 ..., or on cpu with --tiny.\n"
    for minutes in ("0", "-1", "nan", "inf", "five"):
        with pytest.raises(SystemExit) as ended:
            main(["--minutes", minutes])
        assert ended.value.code == 2


def test_what_fails_is_said_and_the_others_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(bench: Bench) -> Finding:
        raise torch.OutOfMemoryError("CUDA out of memory.\nMore of it")

    def skipping(bench: Bench) -> Finding:
        raise Skipped("the card is small")

    works: dict[str, Callable[[Bench], Finding]] = {
        "raises": failing,
        "skips": skipping,
        "wrong": lambda bench: Finding("2 differ", False),
        "right": lambda bench: Finding("0 differ", True, {"share": float("nan")}),
    }
    checks = [Check(name, f"what {name} measures", "0", work, (1, 1)) for name, work in works.items()]
    monkeypatch.setattr(check_gpu, "CHECKS", checks)
    assert main(["--device", "cpu", "--tiny"]) == 1
    said = capsys.readouterr()
    assert "| raises | what raises measures | 0 | FAIL | OutOfMemoryError: CUDA out of memory. |" in said.out
    assert "| skips | what skips measures | 0 | SKIPPED | the card is small |" in said.out
    assert "| wrong | what wrong measures | 0 | FAIL | 2 differ |" in said.out
    assert "| right | what right measures | 0 | PASS | 0 differ |" in said.out
    assert "Traceback" in said.err and "right: PASS" in said.err
    assert main(["--device", "cpu", "--tiny", "--only", "right", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["figures"] == {"share": "nan"}


def test_what_no_longer_fits_into_the_time_is_skipped(tmp_path: Path) -> None:
    said: list[str] = []
    short = bench(tmp_path, tiny=False, ends=0.0, say=said.append)
    (row,) = run([Check("long", "much", "0", lambda bench: Finding("", True), (100, 50))], short)
    assert (row.result, row.reason) == ("SKIPPED", "it may take 100 s, and 0 s of the time are left")
    assert row.reason in said[-1] and row.reason in table([row], {"device": "CPU"})


def test_another_bit_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = blending.blend_into

    def off_by_a_bit(out: Tensor, *args: Any, chunk: int | None = None, **more: Any) -> None:
        honest(out, *args, chunk=chunk, **more)
        if chunk is None and out.dtype == torch.bfloat16:
            out.view(torch.int16)[7] ^= 1

    monkeypatch.setattr(blending, "blend_into", off_by_a_bit)
    monkeypatch.setattr(blending, "_checksums", lambda bench: {})
    found = blending.blend_bits(bench(tmp_path))
    wrong = {name for name, count in found.figures.items() if count}
    assert not found.ok and wrong == {name for name in found.figures if "as bfloat16" in name}
    assert found.figures["bfloat16 as bfloat16, by layer"] == 3, "one for each of three blends"


def test_a_gradient_that_is_not_the_same_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        gradients = type("Gradients", (), {"how": None, "micro_batch": 0})()

        def step(self) -> np.ndarray:
            return np.ones((2, 2)) * (1 + 1e-3 * (getattr(self.gradients.how, "streamed", False)))

    monkeypatch.setattr(gradients, "demo", lambda *args: Fake())
    assert not gradients.savings(bench(tmp_path)).ok
    monkeypatch.setattr(gradients, "SAME", 1e-2)
    assert gradients.savings(bench(tmp_path)).ok


def test_the_agreement_of_gradients() -> None:
    expected = np.array([[3.0, 4.0], [0.0, 1.0]])
    same = gradients.agreement(expected, expected)
    assert (
        same["cosine"] == pytest.approx(1) and same["relative error"] == 0 and same["layers, 5 %"] == pytest.approx(1)
    )
    turned = gradients.agreement(expected, np.array([[3.0, 4.0], [0.0, -1.0]]))
    assert turned["layers, least"] == pytest.approx(-1) and turned["cosine"] == pytest.approx(24 / 26)
    assert gradients.agreement(expected, np.zeros((2, 2)))["cosine"] == 0


@pytest.mark.parametrize(
    ("changed", "ok"),
    [
        ({}, True),
        ({"peak of planned": 1.16}, False),
        ({"peak of planned": 0.84}, False),
        ({"plain trials": 3.1}, False),
        ({"at once in the end": 1}, False),
    ],
)
def test_the_limits_of_a_step(tmp_path: Path, changed: dict[str, float], ok: bool) -> None:
    figure = {"peak": 1e9, "planned": 1e9, "peak of planned": 1.1, "seconds": 1.0, "plain trials": 2.9, "images": 2}
    figure |= {"at once": 2, "at once in the end": 2, **changed}
    on_a_gpu = bench(tmp_path, "cuda", tiny=False)
    assert full_size._found(on_a_gpu, {"streamed": figure}, []).ok is ok
    assert full_size._found(bench(tmp_path), {"streamed": figure}, []).ok is None
    with pytest.raises(Skipped, match="too small"):
        full_size._found(on_a_gpu, {}, ["kept: too small"])


@pytest.mark.parametrize("work", [full_size.images, full_size.step_sdxl])
def test_a_card_that_is_too_small_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Bench], Finding]
) -> None:
    def too_large(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(full_size, "random_pipeline", too_large)
    with pytest.raises(Skipped, match="does not fit into the"):
        work(bench(tmp_path))


def test_speed_is_judged_on_a_gpu_at_full_size_only(tmp_path: Path) -> None:
    assert judged(bench(tmp_path, "cuda", tiny=False), True) == (True, "")
    assert judged(bench(tmp_path, "cuda"), True)[0] is None
    assert judged(bench(tmp_path), False)[0] is None


def test_the_starter_is_a_program() -> None:
    starter = Path(check_gpu.__file__).with_suffix("")
    assert starter.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(starter)], check=True)
