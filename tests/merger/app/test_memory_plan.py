"""The plan of a search's memory: it is chosen, printed and kept to, and nothing but rounding depends on it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import merger.app.memory_planner as planner
import merger.app.run_search as run_search
from merger.app.cli import main
from merger.app.memory_plan import MemoryPlan
from merger.scoring.gradients.followed import Followed
from merger.scoring.gradients.memory import StepMemory
from merger.scoring.gradients.sampling import NETWORKS, Differentiation
from merger.scoring.gradients.ways import Way
from merger.search.study import read_study
from merger.search.trials import TrialRecord
from tests.merger.app.test_end_to_end import run_json, settings  # noqa: F401

GB, MB = 10**9, 10**6
CHANGES = {
    "method": "gradient",
    "gradient": {"steps": 1},
    "baselines": [],
    "pruning": False,
    "prompts": 4,
    "validation_prompts": 2,
    "test_prompts": 2,
    "steps": 2,
    "trials": 5,
    "judge": None,
}


@pytest.fixture
def file(settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(settings | CHANGES))
    return str(tmp_path / "search.yaml")


def records(name: str) -> list[TrialRecord]:
    return read_study(f"sqlite:///{Path.cwd() / 'runs' / name / 'study.db'}", name).records()


@contextmanager
def followed(peaks: list[int]) -> Iterator[None]:
    """Within it, the most that a search's trials take is noted, besides what is there before them."""
    search = run_search.search

    def watched(*args: Any, **kwargs: Any) -> Any:
        with Followed(torch.device("cpu")) as seen:
            found = search(*args, **kwargs)
        peaks.append(max(seen.peaks.values()))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_search, "search", watched)
        yield


def test_a_tight_limit_is_kept_and_leads_to_the_same_winner(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The least that a refusal names is enough, and takes every saving there is."""
    assert main(["search", file, "--name", "none", "--set", "memory=1MB"]) == 2
    said = capsys.readouterr().err
    refused = re.fullmatch(
        r"error: memory: 1MB is too little for a gradient step: with every saving, all together takes at least "
        r"(\d+MB)\. Allow that much, make images smaller, or search without gradients \(method: bayes\)\.",
        said.strip().splitlines()[-1],
    )
    assert refused, said
    assert not Path("runs").exists()

    results, peaks = {}, []
    for name, limit in (("tight", refused[1]), ("ample", "2GB")):
        with followed(peaks):
            results[name] = run_json(["search", file, "--name", name, "--set", f"memory={limit}", "--json"])
        said = capsys.readouterr().err
        plan = results[name]["memory"]
        assert plan["planned"] <= plan["allowed"] == {"tight": int(refused[1][:-2]) * MB, "ample": 2 * GB}[name]
        assert peaks[-1] <= 1.02 * plan["computing"], name
        assert f"memory of a step: {plan['gradient_step']['images_at_once']} at once, sampling steps" in said
        assert "that may be taken: models " in said
    tight, ample = (results[name]["memory"] for name in ("tight", "ample"))
    assert ample["gradient_step"] | {"checkpointed": []} == ample["gradient_step"]
    assert (ample["gradient_step"]["sampling_steps"], ample["gradient_step"]["images_at_once"]) == ("kept", 4)
    assert ample["base_and_donors_lie"] == "device"
    assert tight["base_and_donors_lie"] == "file"
    assert tight["gradient_step"]["images_at_once"] < 4
    assert peaks[0] < peaks[1]

    assert results["tight"]["winner"]["trial"] == results["ample"]["winner"]["trial"]
    steps = [next(each for each in records(name) if each.role == "step") for name in ("tight", "ample")]
    one, other = (np.array(step.score.attributes["gradient"]) for step in steps)
    assert np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(other) > 0
    assert steps[0].value == pytest.approx(steps[1].value, rel=1e-5)


def test_auto_does_without_gradients_where_a_step_has_no_room(
    file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a search was begun by it goes on by."""
    begin = ["search", file, "--set", "gradient.steps=2", "--trials"]
    auto = ["--set", "method=auto"]
    with monkeypatch.context() as full:
        full.setattr(planner, "free_memory", lambda device: 1000)
        assert main([*begin, "6", "--name", "cramped", *auto]) == 0
        said = capsys.readouterr().err
        assert re.search(r"method: \w+, as a gradient step needs more memory than the 0 MB that it may take", said)
        assert "memory of a step" not in said
        assert main([*begin, "6", "--name", "asked"]) == 0, "who asks for gradients by name gets to try"
        assert "gradients streamed" in capsys.readouterr().err
    assert main(["resume", "cramped", "--trials", "7"]) == 0
    said = capsys.readouterr().err
    assert "as it began without gradients" in said
    assert "memory of a step" not in said
    monkeypatch.setattr(planner, "free_memory", lambda device: 1000)
    assert main(["resume", "asked", "--trials", "8", "--set", "memory=1MB"]) == 2
    assert "error: memory: 1MB is too little for a gradient step" in capsys.readouterr().err


def test_a_search_without_gradients_has_a_plan_too(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    begin = ["search", file, "--set", "method=random", "--set"]
    assert main([*begin, "memory=1MB", "--name", "none"]) == 2
    refused = re.search(
        r"is too little to draw one image: all together takes at least (\d+MB)", capsys.readouterr().err
    )
    assert refused
    peaks: list[int] = []
    with followed(peaks):
        plan = run_json([*begin, f"memory={refused[1]}", "--name", "some", "--json"])["memory"]
    assert peaks[0] <= 1.02 * plan["computing"]
    assert plan["planned"] <= plan["allowed"]
    assert "gradient_step" not in plan
    assert "memory: " in capsys.readouterr().err


@pytest.mark.parametrize("amount", [12, "12", "0GB", "12 gigabytes", "-1GB", "GB", [1], "1e3GB"])
def test_an_amount_of_memory_has_a_unit(amount: object, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    written = yaml.safe_load(Path(file).read_text()) | {"memory": amount}
    Path(file).write_text(yaml.safe_dump(written))
    assert main(["search", file]) == 2
    assert "is no amount of memory: write a number and its unit, for example 12GB or 900MB" in capsys.readouterr().err


def test_a_plan_in_words() -> None:
    step = StepMemory(0, 0, 0, 3 * GB, 0, 0, 0, 0, images=1, decoded=1)
    how = Differentiation(streamed=True, halves=True, checkpointed=frozenset(NETWORKS))
    plan = MemoryPlan(11 * GB, 400 * MB, 5 * GB, 15 * GB, 500 * MB, "host", 2, GB, 2 * GB, Way(how, "host", True), step)
    assert (plan.held, plan.computing, plan.total) == (5900 * MB, 3 * GB, 8900 * MB)
    assert plan.lines == [
        "memory: 8.9 GB of the 11.0 GB that may be taken: models 400 MB, blend 5.0 GB, base and donors none (15.0 GB "
        "of the host's memory), CUDA 500 MB, a gradient step 3.0 GB",
        "memory of a step: 1 at once, sampling steps computed again, activations computed again in decoder, denoiser "
        "and tagger, guided pairs one half at a time, gradients streamed, text encoders there only while they encode",
    ]
    assert math.isclose(plan.as_json["planned"], 8.9e9)
    kept = MemoryPlan(GB, 1, 2, 3, 0, "device", 2, 4)
    assert kept.lines[0].endswith("models 0 MB, blend 0 MB, base and donors 0 MB, a blend 0 MB")
    assert len(kept.lines) == 1
