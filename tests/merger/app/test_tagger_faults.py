"""A tagger or a judge that fails in the middle of a search: one line, nothing lost, and the same command goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from torch import Tensor

from benchmark.taggers.transformers_tagger import TransformersTagger
from merger.app.cli import main
from merger.app.runs import Run
from merger.search.study import read_study
from merger.search.trials import TrialRecord

DATA = Path(__file__).parents[2] / "data" / "previous"


def written(folder: Path, method: str) -> Path:
    """The configuration of a tiny search with a judge."""
    config = {
        "base": str(DATA / "base.safetensors"),
        "donors": [str(DATA / "warm.safetensors")],
        "pipeline": str(DATA / "pipeline"),
        "granularity": "stage",
        "tagger": {"path": str(DATA / "tagger")},
        "judge": {"path": str(DATA / "tagger")},
        "threshold": 0.5,
        "vocabulary": {"path": str(DATA / "vocabulary.csv")},
        "tags_per_prompt": 2,
        "prompts": 4,
        "validation_prompts": 3,
        "test_prompts": 3,
        "steps": 2,
        "size": 32,
        "seed": 1,
        "baselines": ["uniform"],
        "method": method,
        "gradient": {"steps": 3},
        "trials": 6,
        "batch_size": 4,
        "device": "cpu",
        "threads": 1,
    }
    (folder / "search.yaml").write_text(yaml.safe_dump(config))
    return folder / "search.yaml"


def records(name: str) -> list[TrialRecord]:
    run = Run(Path("runs") / name)
    config = run.config()
    return read_study(run.storage(config), run.study_name(config)).records()


@pytest.mark.parametrize("method", ["cmaes", "gradient"])
def test_a_tagger_that_fails_in_a_search(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = str(written(tmp_path, method))
    asked, fails, plain = 0, 0, TransformersTagger.logits

    def logits(tagger: TransformersTagger, images: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        if asked == fails:
            raise RuntimeError("a kernel failed\n  somewhere")
        return plain(tagger, images)

    monkeypatch.setattr(TransformersTagger, "logits", logits)
    assert main(["search", file, "--name", "whole"]) == 0
    most, whole = asked, records("whole")
    capsys.readouterr()
    for after in (5, most // 3, most // 4):
        fails = asked + after
        assert main(["search", file, "--name", "stopped"]) == 2
        assert (
            capsys.readouterr()
            .err.splitlines()[-1]
            .endswith(
                " images (RuntimeError: a kernel failed). "
                "Nothing finished is lost; continue with: merger resume runs/stopped"
            )
        )
    fails = 0
    assert main(["search", file, "--name", "stopped"]) == 0
    assert [(record.weights, record.score.value) for record in records("stopped")] == [
        (record.weights, record.score.value) for record in whole
    ]
