"""The kind of a search's tagger is one that is registered, wherever its format comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmark.taggers import registry
from benchmark.taggers.registry import TaggerFormat, register_tagger
from merger.config.loading import load_config
from merger.errors import ConfigError


def written(folder: Path, kind: str) -> Path:
    tagger = {"path": "tagger", "kind": kind}
    search = {"base": "base.safetensors", "donors": ["a.safetensors"], "tagger": tagger, "vocabulary": {"top": 50}}
    (folder / "search.yaml").write_text(yaml.safe_dump(search))
    return folder / "search.yaml"


def test_a_format_from_outside_can_be_a_searchs_tagger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FORMATS", dict(registry._FORMATS))
    with pytest.raises(
        ConfigError, match=r"tagger\.kind: Unknown kind of tagger 'outside'\. Available: transformers, wd"
    ):
        load_config(written(tmp_path, "outside"))
    register_tagger(TaggerFormat("outside", ("tags.txt",), "elsewhere:OutsideTagger"))
    assert load_config(written(tmp_path, "outside")).tagger.kind == "outside"
    with pytest.raises(ConfigError, match=r"Did you mean 'outside'\?"):
        load_config(written(tmp_path, "outsid"))
