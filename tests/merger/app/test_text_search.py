"""Searches that blend text encoders as well, through the command line; and what is refused before they begin."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from merger.app.cli import main
from merger.app.identity import identity_of_sources
from merger.app.session import open_session
from merger.config.loading import load_config
from merger.errors import ConfigError, InputError
from tests.merger.text_models import Family, make_family

TAGS = ("blonde_hair", "blue_hair", "red_hair", "blue_eyes", "green_eyes", "smile", "open_mouth", "glasses", "hat")
BOTH = ["denoiser", "text_encoder"]


@pytest.fixture(scope="module")
def family(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return make_family("sd1", tmp_path_factory.mktemp("sd1"), tiny_pipeline_folder / "tokenizer")


@pytest.fixture(scope="module")
def settings(family: Family, tiny_tagger_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    vocabulary = tmp_path_factory.mktemp("words") / "vocabulary.csv"
    vocabulary.write_text("\n".join(["tag,category,group", *(f"{tag},," for tag in TAGS)]) + "\n")
    return {
        "base": str(family.files["base"]),
        "donors": [str(family.files["warm"]), str(family.files["cool"])],
        "pipeline": str(family.pipeline),
        "components": BOTH,
        "granularity": "stage",
        "tagger": str(tiny_tagger_folder),
        "threshold": 0.5,
        "vocabulary": str(vocabulary),
        "tags_per_prompt": 2,
        "prompts": 3,
        "validation_prompts": 3,
        "test_prompts": 3,
        "steps": 2,
        "size": 32,
        "trials": 6,
        "baselines": ["uniform"],
        "method": "cmaes",
        "gradient": {"steps": 2},
        "batch_size": 3,
        "device": "cpu",
        "threads": 1,
    }


def written(folder: Path, settings: dict[str, Any], **changes: Any) -> Path:
    table = {key: value for key, value in {**settings, **changes}.items() if value is not None}
    (folder / "search.yaml").write_text(yaml.safe_dump(table))
    return folder / "search.yaml"


def run_json(arguments: list[str], exit_status: int = 0) -> dict[str, Any]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(arguments) == exit_status
    return json.loads(out.getvalue())


@pytest.mark.parametrize("method", ["cmaes", "gradient"])
def test_a_search_over_text_encoders_from_first_trial_to_file(
    method: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path, settings, method=method)
    result = run_json(["search", str(file), "--name", "tiny", "--json"])
    assert set(result["winner"]["weights"]["TE"]) == {"warm", "cool"}
    folder = tmp_path / "runs" / "tiny"
    assert yaml.safe_load((folder / "config.yaml").read_text())["components"] == BOTH
    verified = run_json(["verify", str(folder / "best.safetensors"), "--score", "--json"])
    assert verified["ok"]
    assert verified["score"]["difference"] == 0
    assert verified["score"]["probability"] == pytest.approx(verified["score"]["recorded_probability"], abs=1e-6)
    page = (folder / "report.html").read_text()
    assert "denoiser and text encoders" in page
    assert ">TE<" in page
    # a donor alone, from the study: its own text encoder is in the file
    run_json(["export", str(folder), "--trial", "1", "--output", str(tmp_path / "warm.safetensors"), "--json"])
    made, warm = load_file(tmp_path / "warm.safetensors"), load_file(settings["donors"][0])
    blended = [key for key in made if key.startswith(("model.", "cond_stage_model."))]
    assert all(torch.equal(made[key], warm[key]) for key in blended)
    assert run_json(["inspect", str(folder / "best.safetensors"), "--json"])["files"][0]["text_encoders"]["TE"] > 0
    # neither may become the other
    written(tmp_path, settings, method=method, components=None)
    assert main(["search", str(file), "--name", "tiny"]) == 2


def test_the_identity_of_a_search_without_it_has_not_changed(settings: dict[str, Any], tmp_path: Path) -> None:
    plain = open_session(load_config(written(tmp_path, settings, components=None))).sources
    assert "components" not in identity_of_sources(plain)
    assert list(plain.layers)[-1] == "BASE"
    assert plain.base.text == {}
    said = open_session(load_config(written(tmp_path, settings, components=["denoiser"]))).sources
    assert identity_of_sources(said) == identity_of_sources(plain)
    turned = open_session(load_config(written(tmp_path, settings, components=[*reversed(BOTH)]))).sources
    assert identity_of_sources(turned)["components"] == json.dumps(BOTH)
    assert turned.recipe({}).components == tuple(BOTH)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"components": ["text_encoder"]}, "components: give .denoiser. or .denoiser, text_encoder."),
        ({"components": ["denoiser", "vae"]}, "components: there is no 'vae'"),
        ({"components": ["denoiser", "text_encodr"]}, "Did you mean 'text_encoder'"),
        ({"text_encoders_from": "x.safetensors"}, "text_encoders_from: another checkpoint's text encoders cannot"),
    ],
)
def test_components_that_mean_nothing_are_one_line(
    changes: dict[str, Any], said: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(written(tmp_path, settings, **changes))
    assert "\n" not in str(caught.value)


def test_without_a_text_encoder_among_the_donors_there_is_nothing_to_search(
    settings: dict[str, Any], family: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("warm", "base"):
        tensors = load_file(family.files[name])
        alone = {key: tensor for key, tensor in tensors.items() if key.startswith("model.")}
        save_file(alone, tmp_path / f"{name}-unet.safetensors")
    only = [str(tmp_path / "warm-unet.safetensors")]
    with pytest.raises(InputError, match="components: no donor has a text encoder, so there is none"):
        open_session(load_config(written(tmp_path, settings, donors=only)))
    capsys.readouterr()
    session = open_session(load_config(written(tmp_path, settings, donors=only + settings["donors"][1:])))
    assert session.sources.donors[0].lent == ("text_encoder",)
    line = "warm-unet: holds no text encoder for TE, where its weights change nothing"
    assert capsys.readouterr().err.splitlines() == [line]
    with pytest.raises(InputError, match=r"base-unet\.safetensors: holds no text encoder to blend"):
        open_session(load_config(written(tmp_path, settings, base=str(tmp_path / "base-unet.safetensors"))))
