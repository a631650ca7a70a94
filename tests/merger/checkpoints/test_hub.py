"""Hub ids as sources: from a cache laid out as the hub's own, without a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

from benchmark.errors import InputError
from benchmark.hub_ids import id_of, is_hub_id
from benchmark.pipelines import hub
from benchmark.pipelines.loading import load_pipeline
from merger.app.cli import main
from merger.app.source_paths import local
from merger.checkpoints.checkpoint import open_checkpoint
from merger.checkpoints.hub import on_this_disk
from merger.config.config import Config
from merger.config.loading import load_config
from merger.errors import CheckpointError
from merger.export.recipe import Recipe
from merger.export.recipe_files import open_recipe
from merger.export.write import verify

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a folder into an empty cache, as files that are links to blobs: `cache("owner/name", folder, leave_out)`."""
    home = tmp_path / "home" / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def put(name: str, folder: Path, leave_out: str = "nothing") -> Path:
        place = home / f"models--{name.replace('/', '--')}"
        snapshot = place / "snapshots" / REVISION
        for file in folder.rglob("*"):
            if file.is_dir() or file.match(leave_out):
                continue
            blob = place / "blobs" / file.relative_to(folder).as_posix().replace("/", "+")
            blob.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, blob)
            link = snapshot / file.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(REVISION)
        return snapshot

    return put


def written(folder: Path, **changes: object) -> Path:
    least = {"base": "a/base", "donors": ["b/donor"], "tagger": "tagger", "vocabulary": {"top": 50}}
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump({**least, **changes}))
    return file


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("owner/name", True),
        ("stabilityai/stable-diffusion-xl-base-1.0", True),
        ("owner/name@refs/pr/3", True),
        ("name", False),
        ("a/b/c", False),
        ("./folder/name", False),
        ("../name", False),
        ("/owner/name", False),
        ("owner/name.safetensors", False),
        ("models/old.ckpt", False),
    ],
)
def test_what_reads_as_a_hub_id(text: str, named: bool) -> None:
    assert is_hub_id(text) is named


def test_a_configuration_keeps_ids_and_finds_paths_first(tmp_path: Path) -> None:
    (tmp_path / "b" / "donor").mkdir(parents=True)
    config = load_config(written(tmp_path, pipeline="c/pipeline@v2", donors=["b/donor", "d/other@main"]))
    assert (str(config.base), str(config.pipeline)) == ("a/base", "c/pipeline@v2")
    assert config.donors[0].path == tmp_path / "b" / "donor"
    assert str(config.donors[1].path) == "d/other@main"
    assert (config.named_base, config.donor_names) == ("base", ("donor", "other"))
    assert load_config(written(tmp_path, base="a/base.safetensors")).base == tmp_path / "a" / "base.safetensors"


def test_a_link_keeps_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("")
    (tmp_path / "x.safetensors").symlink_to(tmp_path / "blob")
    assert load_config(written(tmp_path, base="x.safetensors")).base == tmp_path / "x.safetensors"


def test_a_cached_model_is_used_without_a_network(
    cache: Callable[..., Path], tiny_diffusers_folder: Path, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    base, configuration = cache("a/base", tiny_diffusers_folder), cache("c/pipeline", tiny_pipeline_folder)
    cache("b/donor", tiny_diffusers_folder)
    config = local(load_config(written(tmp_path, pipeline="c/pipeline", base=f"a/base@{REVISION}")))
    assert (config.base, config.pipeline) == (base, configuration)
    assert (config.named_base, config.donor_names) == ("base", ("donor",))
    assert Config.model_validate(config.model_dump(), context={"folder": tmp_path}) == config
    assert open_checkpoint(config.base).family == "sd1"
    assert load_pipeline("a/base").unet is not None
    with pytest.raises(CheckpointError, match=r"^pipeline: a/none: is not here, .*--include '\*.json'"):
        local(load_config(written(tmp_path, pipeline="a/none")))


def test_nothing_of_it_here_says_what_to_fetch(cache: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        local(load_config(written(tmp_path)))
    assert "\n" not in str(caught.value)
    said = "base: a/base: is not here, neither as a folder nor in the hub's cache, and cannot be fetched "
    assert str(caught.value).startswith(f"{said}(HF_HUB_OFFLINE is set). ")
    fetch = "hf download a/base --include '*.json' --include '*.txt' --include '*.model' --include '*/*.safetensors'"
    assert str(caught.value).endswith(f"Fetch it where there is a network: {fetch}")
    with pytest.raises(InputError, match="hf download a/base --revision v2 --include"):
        load_pipeline("a/base@v2")


@pytest.mark.parametrize(
    ("part", "leave_out", "patterns"),
    [
        ("whole", "unet/*.safetensors", "--include 'unet/*.safetensors'"),
        ("whole", "tokenizer/*", "--include 'tokenizer/*'"),
        ("denoiser", "unet/*.safetensors", "--include '*.json' --include 'unet/*.safetensors' "),
        ("configuration", "scheduler/*", "--include 'scheduler/*'"),
    ],
)
def test_what_is_lacking_is_named(
    part: Any, leave_out: str, patterns: str, cache: Callable[..., Path], tiny_diffusers_folder: Path
) -> None:
    cache("a/base", tiny_diffusers_folder, leave_out)
    with pytest.raises(CheckpointError, match=r"^a/base: is not whole in the cache[.,] ") as caught:
        on_this_disk(Path("a/base"), part)
    assert f"hf download a/base {patterns}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_part_is_enough_where_no_more_is_asked(cache: Callable[..., Path], tiny_diffusers_folder: Path) -> None:
    snapshot = cache("a/base", tiny_diffusers_folder, "unet/*.safetensors")
    assert on_this_disk(Path("a/base"), "configuration") == snapshot
    snapshot = cache("b/base", tiny_diffusers_folder, "vae/*")
    assert on_this_disk(Path("b/base"), "denoiser") == snapshot
    snapshot = cache("c/vae", tiny_diffusers_folder / "vae")  # as some are uploaded, without a pipeline around them
    assert on_this_disk(Path("c/vae"), "vae") == snapshot


def test_a_shard_that_is_missing_is_noticed(tmp_path: Path, tiny_diffusers_folder: Path) -> None:
    folder = shutil.copytree(tiny_diffusers_folder, tmp_path / "model")
    index = {"weight_map": {"a": "x-1-of-2.safetensors", "b": "x-2-of-2.safetensors"}}
    (folder / "unet" / "x.safetensors.index.json").write_text(json.dumps(index))
    assert hub.lacking(folder) == ["unet/*.safetensors"]
    for name in index["weight_map"].values():
        (folder / "unet" / name).write_text("")
    assert hub.lacking(folder) == []


def test_what_is_not_here_is_fetched(
    cache: Callable[..., Path], tiny_diffusers_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    known = huggingface_hub.snapshot_download

    def download(repository: str, **options: Any) -> str:
        if options.get("local_files_only"):
            return known(repository, **options)
        asked.append((repository, options))
        return str(cache(repository, tiny_diffusers_folder, "vae/*"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    folder = on_this_disk(Path("a/base@v3"), "denoiser")
    assert id_of(folder) == f"a/base@{REVISION}"
    patterns = ["*.json", "unet/*.safetensors", "transformer/*.safetensors"]
    assert asked == [("a/base", {"revision": "v3", "allow_patterns": patterns})]


def test_a_search_says_it_in_one_line_and_leaves_nothing(
    cache: Callable[..., Path],
    tiny_tagger_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path, tagger=str(tiny_tagger_folder))
    assert main(["search", str(file), "--name", "none"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: base: a/base: is not here")
    assert "\n" not in error
    assert not (tmp_path / "runs").exists()


def test_a_search_from_the_cache_goes_on_with_the_revision_it_began_with(
    cache: Callable[..., Path],
    tiny_diffusers_folder: Path,
    tiny_family: dict[str, Path],
    tiny_tagger_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    snapshot = cache("a/base", tiny_diffusers_folder)
    sources = {"donors": [str(tiny_family["warm"])], "tagger": str(tiny_tagger_folder), "vocabulary": {"top": 8}}
    few = {"prompts": 2, "validation_prompts": 2, "test_prompts": 2, "trials": 4, "method": "tpe", "baselines": []}
    small = {"size": 32, "steps": 1, "tags_per_prompt": 2, "granularity": "stage", "device": "cpu", "threads": 1}
    written(tmp_path, **sources, **few, **small, clip_skip=2)
    assert main(["search", "search.yaml", "--name", "x"]) == 0
    assert verify(tmp_path / "runs" / "x" / "best").recipe.base.hub == f"a/base@{REVISION}"
    (snapshot.parent.parent / "refs" / "main").write_text("another")
    assert load_config(tmp_path / "runs" / "x" / "config.yaml").base == snapshot
    assert main(["resume", "x"]) == 0


def test_inspect_and_merge_take_ids_and_a_recipe_notes_them(
    cache: Callable[..., Path],
    tiny_diffusers_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache("a/base", tiny_diffusers_folder)
    place = cache("b/donor", tiny_diffusers_folder)
    assert main(["inspect", "a/base", "b/donor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(file["name"], file["family"]) for file in found["files"]] == [("base", "sd1"), ("donor", "sd1")]
    assert main(["inspect", "a/none"]) == 2
    assert "hf download a/none --include '*.json' --include 'unet/*.safetensors'" in capsys.readouterr().err

    table = {"base": "a/base", "donors": ["b/donor"], "weights": {"M00": {"donor": 0.5}}}
    (tmp_path / "recipe.json").write_text(json.dumps(table))
    assert main(["merge", str(tmp_path / "recipe.json"), "--output", str(tmp_path / "blend"), "--json"]) == 0
    recipe = verify(tmp_path / "blend").recipe
    assert (recipe.base.hub, recipe.donors[0].hub) == (f"a/base@{REVISION}", f"b/donor@{REVISION}")
    assert recipe.base.sha256 == open_checkpoint(tiny_diffusers_folder).sha256
    assert Recipe.from_json(recipe.to_json()) == recipe

    # elsewhere the cache may lie in another place: the id finds it
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "home" / "hub", moved)
    for link in moved.rglob("snapshots/**/*"):
        if link.is_symlink():
            blob = moved / link.relative_to(moved).parts[0] / "blobs" / link.readlink().name
            link.unlink()
            link.symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(moved))
    assert verify(tmp_path / "blend").ok
    (tmp_path / "again.json").write_text(recipe.to_json())
    assert open_recipe(tmp_path / "again.json")[0].donors[0].hub == recipe.donors[0].hub
    shutil.rmtree(moved / "models--b--donor")
    with pytest.raises(InputError, match=f"'donor' of the recipe is not at {place}.*hf download b/donor --revision 01"):
        verify(tmp_path / "blend")


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str | None]]:
    """`repository(put, folder, variants)`: a hub that has only these variants of the weights; returns what is asked."""

    def make(put: Callable[..., Path], folder: Path, variants: set[str | None]) -> list[str | None]:
        import diffusers

        asked: list[str | None] = []

        def download(repository: str, *, variant: str | None, **options: Any) -> str:
            asked.append(variant)
            if variant not in variants:  # diffusers' own words
                raise OSError(f"Could not find the necessary `safetensors` weights in [] (variant={variant})")
            return str(put(repository, folder))

        monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
        return asked

    return make


@pytest.mark.parametrize(
    ("variants", "asked"),
    [({None, "fp16"}, [None]), ({"fp16", "bf16"}, [None, "fp16"]), ({"bf16"}, [None, "fp16", "bf16"])],
)
def test_a_repository_with_variants_only_is_fetched(
    variants: set[str | None],
    asked: list[str | None],
    cache: Callable[..., Path],
    repository: Callable[..., list[str | None]],
    tiny_diffusers_folder: Path,
) -> None:
    said = repository(cache, tiny_diffusers_folder, variants)
    assert id_of(hub.fetch("a/base")) == f"a/base@{REVISION}"
    assert said == asked


def test_a_repository_without_weights_or_network_is_one_line(
    cache: Callable[..., Path],
    repository: Callable[..., list[str | None]],
    tiny_diffusers_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import diffusers

    asked = repository(cache, tiny_diffusers_folder, set())
    with pytest.raises(InputError, match=r"cannot be fetched \(Could not find the necessary"):
        hub.fetch("a/base")
    assert asked[0] is None

    def unreachable(repository: str, *, variant: str | None, **options: Any) -> str:
        asked.append(variant)
        raise ConnectionError("no route")

    asked.clear()
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", unreachable)
    with pytest.raises(InputError, match="the hub cannot be reached"):
        hub.fetch("a/base")
    assert asked == [None]  # it is not asked again and again
