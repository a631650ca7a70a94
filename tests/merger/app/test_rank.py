"""`merger rank`: the order of donors of known worth, the arithmetic of one gradient for all of them, and bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from merger.app.cli import main
from merger.app.memory_planner import plan_memory
from merger.app.rank import pool, pool_config, rank
from merger.app.runtime import load_runtime
from merger.app.session import open_session
from merger.scoring.gradients.gradients import BlendGradients
from merger.scoring.gradients.kept import KeptGradients
from tests.merger.app.test_end_to_end import settings  # noqa: F401

CHANGES = {"prompts": 3, "validation_prompts": 2, "test_prompts": 2, "steps": 2, "judge": None}


@pytest.fixture
def file(settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(settings | CHANGES))
    return tmp_path / "search.yaml"


@pytest.fixture
def gradients(file: Path) -> tuple[BlendGradients, KeptGradients]:
    """What takes gradient steps of the configuration, and the same that keeps them."""
    session = open_session(pool_config(file, [], [], allow_pickle=False))
    runtime = load_runtime(session, gradients=True, hold="file")
    steps = plan_memory(session, runtime, gradients=True).steps
    assert steps is not None and isinstance(steps.gradients, BlendGradients)
    own = steps.gradients
    return own, KeptGradients(own.live, own.generator, own.tagger, own.metric, own.how, micro_batch=2)


def test_the_table_is_that_of_gradient_steps_at_the_base(file: Path) -> None:
    config = pool_config(file, [], ["granularity=block"], allow_pickle=False)
    ranking, said = rank(config, 2)
    session = open_session(config)
    runtime = load_runtime(session, gradients=True)
    steps = plan_memory(session, runtime, gradients=True).steps
    assert steps is not None
    for chunk in range(2):
        _, found = steps({}, chunk)
        expected = [[found[layer][donor] for donor in ranking.donors] for layer in ranking.layers]
        np.testing.assert_allclose(ranking.gradients[chunk], expected, rtol=1e-4, atol=1e-8)
    assert (said["prompts"], said["chunks"]) == (6, 2)
    assert float(np.abs(ranking.gradients).max()) > 0


@pytest.mark.parametrize("scale", [2.0**12, 2.0**140])
def test_a_scale_changes_nothing_and_falls_where_gradients_overflow(
    scale: float, gradients: tuple[BlendGradients, KeptGradients], file: Path
) -> None:
    """At the larger scale every gradient is infinite in float32: such passes must leave nothing behind."""
    _, kept = gradients
    prompts = open_session(pool_config(file, [], [], allow_pickle=False)).exam.step_prompts(0)
    _, plain = kept.of_base(prompts)
    kept._scale = scale
    _, scaled = kept.of_base(prompts)
    assert kept._scale < 2.0**130
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_donors_of_known_worth_are_in_their_order(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Donors made of the base and steps along its own gradient, and against it, and the base itself."""
    config = pool_config(file, [], [], allow_pickle=False)
    session = open_session(config)
    runtime = load_runtime(session, gradients=True)
    steps = plan_memory(session, runtime, gradients=True).steps
    assert steps is not None and isinstance(steps.gradients, BlendGradients)
    own = steps.gradients
    kept = KeptGradients(own.live, own.generator, own.tagger, own.metric, own.how)
    names = [name for layer in own.live.layers for name in session.sources.layers[layer]]
    totals = [torch.zeros(parameter.numel()) for parameter in kept.parameters]
    for chunk in range(4):
        for total, gradient in zip(totals, kept.of_base(steps.prompts(chunk))[1], strict=True):
            total += gradient
    keys = {name: session.sources.base.blended[name].key for name in names}
    tensors = load_file(config.base)
    norm = float(torch.cat(totals).norm())
    folder = file.parent / "pool"
    folder.mkdir()
    for name, step in (("better", 1.0), ("best", 2.0), ("worse", -1.0), ("same", 0.0)):
        moved = dict(tensors)
        for place, total in enumerate(totals):
            key = keys[names[place]]
            moved[key] = (tensors[key] + step * total.view(tensors[key].shape) / norm).to(tensors[key].dtype)
        save_file(moved, folder / f"{name}.safetensors")
    (folder / "notes.txt").write_text("no checkpoint")
    capsys.readouterr()
    assert main(["rank", str(file), str(folder), "--chunks", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [donor["donor"] for donor in found["donors"]] == ["best", "better", "same", "worse"]
    assert found["donors"][2]["gradient"] == 0
    assert found["donors"][0]["gradient"] > found["donors"][1]["gradient"] > 0


def test_a_table_and_a_page_for_people(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", str(file), "--chunks", "2", "--page", "ranking.html", "--set", "granularity=stage"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("on 6 prompts.")
    donors = len(yaml.safe_load(file.read_text())["donors"])
    assert len([line for line in lines if "±" in line]) == donors
    layers = [line.split()[0] for line in lines[lines.index("") + 3 :]]
    assert len(layers) > 2
    page = Path("ranking.html").read_text()
    assert page.count("<rect") == donors * len(layers)
    assert all(f"<title>{layer} " in page for layer in layers)


def test_a_pool_is_files_and_models_of_folders(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    (folder / "model" / "unet").mkdir(parents=True)
    (folder / "lora").mkdir()
    (folder / "lora" / "adapter_model.safetensors").touch()
    (folder / "empty").mkdir()
    for name in ("b.safetensors", "a.safetensors", "a.recipe.safetensors", "old.ckpt", "notes.txt"):
        (folder / name).touch()
    names = ["a.safetensors", "b.safetensors", "lora", "model"]
    assert [path.name for path in pool([folder], allow_pickle=False)] == names
    assert [path.name for path in pool([folder, folder / "a.safetensors"], allow_pickle=True)] == [*names, "old.ckpt"]


def test_bad_input_is_one_line_and_leaves_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = file.parent / "pool"
    folder.mkdir()

    def refused(*arguments: str) -> str:
        assert main(["rank", str(file), *arguments, "--page", "ranking.html"]) == 2
        assert not Path("ranking.html").exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert refused("gone.safetensors") == "error: gone.safetensors: there is no such file or folder"
    assert "holds no checkpoint and no adapter (pickles only with --allow-pickle)" in refused(str(folder))
    assert "--chunks 1:" in refused("--chunks", "1")
    donor = yaml.safe_load(file.read_text())["donors"][0]
    source = Path(donor if isinstance(donor, str) else donor["path"])
    shutil.copy(source if source.is_absolute() else file.parent / source, folder / "whole.safetensors")
    (folder / "torn.safetensors").write_bytes(b"torn")
    assert "torn.safetensors" in refused(str(folder))
