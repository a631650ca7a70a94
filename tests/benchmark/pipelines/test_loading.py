"""Opening pipelines: what loads, what is refused in one line, and that no model chooses which code runs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from benchmark.errors import InputError
from benchmark.pipelines import hub
from benchmark.pipelines.diffusers_generator import DiffusersGenerator
from benchmark.pipelines.generation import GenerationSettings
from benchmark.pipelines.loading import load_pipeline
from benchmark.pipelines.model_index import _found
from benchmark.pipelines.single_files import components_beside
from benchmark.prompts.prompt_set import Prompt

PROMPTS = (Prompt(0, "smile, hat", ("smile", "hat"), 3), Prompt(1, "red dress", ("red_dress",), 4))


@pytest.fixture(scope="module")
def pipeline(tiny_diffusers_folder: Path) -> Any:
    return load_pipeline(tiny_diffusers_folder)


def draw(pipeline: Any, prompts: tuple[Prompt, ...]) -> np.ndarray:
    generator = DiffusersGenerator(pipeline, GenerationSettings(width=32, height=32, steps=3, batch_size=2))
    return np.concatenate(list(generator.generate(prompts)))


def refused(message: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_pipeline(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_a_single_file_with_its_configuration_folder_draws_what_the_folder_draws(
    tiny_family: dict[str, Path],
    tiny_pipeline_folder: Path,
    pipeline: Any,
    capfd: pytest.CaptureFixture[str],
) -> None:
    single = load_pipeline(tiny_family["base"], config=tiny_pipeline_folder, dtype=torch.float32)
    assert capfd.readouterr() == ("", "")
    assert single.unet.dtype == torch.float32
    images = draw(single, PROMPTS)
    assert np.abs(images.astype(int) - draw(pipeline, PROMPTS)).max() <= 10  # the file is fp16, the folder fp32
    donor = load_pipeline(tiny_family["warm"], config=tiny_pipeline_folder)
    assert np.abs(images.astype(int) - draw(donor, PROMPTS)).mean() > 5


def test_bad_files_are_one_line(tiny_family: dict[str, Path], tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    refused("no such file", tmp_path / "none.safetensors")
    whole = tiny_family["base"].read_bytes()
    for name, content in (("cut", whole[:5000]), ("empty", b""), ("text", b"hello, this is text" * 9)):
        file = tmp_path / f"{name}.safetensors"
        file.write_bytes(content)
        refused(f"{name}.safetensors: is no safetensors file", file, config=tiny_pipeline_folder)
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02")
    refused("is a pickle", tmp_path / "model.ckpt")
    refused("model_index.json", tmp_path)
    refused("is no pipeline configuration", tiny_family["base"], config=tmp_path)


def test_a_file_that_lacks_a_tensor_is_refused(
    tiny_family: dict[str, Path], tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(tiny_family["base"])
    del tensors["model.diffusion_model.middle_block.0.in_layers.2.weight"]
    save_file(tensors, tmp_path / "lacking.safetensors")
    refused("lacking.safetensors: ", tmp_path / "lacking.safetensors", config=tiny_pipeline_folder)


def test_a_configuration_without_an_index(
    tiny_family: dict[str, Path], tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_pipeline_folder, tmp_path / "config")
    (folder / "model_index.json").write_text('{"_class_name": "Nonsense"}')
    refused("'Nonsense' is no diffusers pipeline", tiny_family["base"], config=folder)


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """A module `trap` that could be imported; tells whether it was."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "trap.py").write_text("class Network: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.delitem(sys.modules, "trap", raising=False)
    return lambda: "trap" in sys.modules


def with_index(folder: Path, source: Path, **changes: object) -> Path:
    """A copy of a pipeline's folder whose index says something else."""
    shutil.copytree(source, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | changes))
    return folder


@pytest.mark.parametrize("name", ["vae", "text_encoder", "scheduler"])
def test_an_index_chooses_no_module_to_import(
    tiny_family: dict[str, Path],
    tiny_pipeline_folder: Path,
    tiny_diffusers_folder: Path,
    tmp_path: Path,
    trap: Callable[[], bool],
    name: str,
) -> None:
    changes = {name: ["trap", "Network"]}
    said = f"model_index.json: '{name}' is of 'trap'; only classes of diffusers and transformers are loaded"
    config = with_index(tmp_path / "config", tiny_pipeline_folder, **changes)
    refused(said, tiny_family["base"], config=config)
    refused(said, with_index(tmp_path / "whole", tiny_diffusers_folder, **changes))
    assert not trap()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vae": 3}, r"model_index.json: 'vae' is 3, and must be \[library, class\]"),
        ({"vae": ["diffusers"]}, r"'vae' is \[\"diffusers\"\], and must be"),
        ({"text_encoder": ["transformers", 5]}, r"'text_encoder' is \[\"transformers\", 5\]"),
        ({"scheduler": ["a", "b", "c"]}, "'scheduler' is .*, and must be"),
        ({"vae": ["diffusers", "NoSuchNetwork"]}, "'vae' is diffusers's 'NoSuchNetwork', which is no network"),
        ({"vae": ["diffusers", "DDIMScheduler"]}, "'DDIMScheduler', which is no network"),
        ({"text_encoder": ["transformers", "models"]}, "'models', which is no network"),
        ({"text_encoder": ["transformers", "__spec__"]}, "'__spec__', which is no network"),
        ({"vae": ["stable_diffusion", "StableDiffusionPipeline"]}, "which is no network"),
        ({"_class_name": "AutoencoderKL"}, "'AutoencoderKL' is no diffusers pipeline that reads single files"),
        ({"_class_name": ["trap", "Network"]}, "does not say which diffusers pipeline it is"),
        ({"_class_name": None}, "does not say which diffusers pipeline it is"),
    ],
)
def test_a_bad_entry_of_an_index_is_one_line(
    tiny_family: dict[str, Path], tiny_pipeline_folder: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    refused(said, tiny_family["base"], config=with_index(tmp_path / "config", tiny_pipeline_folder, **changes))


def test_an_index_that_is_no_table(tiny_diffusers_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_diffusers_folder, tmp_path / "list")
    (folder / "model_index.json").write_text('["vae", "unet"]')
    refused("holds no table of a pipeline's parts", folder)
    assert hub.lacking(folder) == ["*.json", "*.txt", "*.model", "*/*.safetensors"]


@pytest.mark.parametrize("file", ["unet/diffusers.py", "text_encoder/transformers.py", "None.py"])
def test_code_beside_a_model_is_refused(tiny_diffusers_folder: Path, tmp_path: Path, file: str) -> None:
    """diffusers before 0.42 runs these files of a local folder."""
    folder = shutil.copytree(tiny_diffusers_folder, tmp_path / "whole")
    (folder / file).write_text("raise SystemExit('this was run')")
    refused(f"{file}: is Python code, which diffusers could run", folder)


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**10),
        ("unet/config.json", "layers_per_block", 10**6),
    ],
)
def test_numbers_that_would_take_all_memory_are_refused_at_once(
    tiny_diffusers_folder: Path, tmp_path: Path, file: str, name: str, value: int
) -> None:
    folder = shutil.copytree(tiny_diffusers_folder, tmp_path / "whole")
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | {name: value}))
    refused(f"{file}: {name} {value} is beyond", folder)


@pytest.mark.parametrize(
    "file", ["model_index.json", "unet/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"]
)
def test_files_nested_beyond_reading_are_one_line(tiny_diffusers_folder: Path, tmp_path: Path, file: str) -> None:
    folder = shutil.copytree(tiny_diffusers_folder, tmp_path / "whole")
    (folder / file).write_text("[" * 100_000)
    refused("cannot be read", folder)


def test_a_tensor_that_the_configuration_wants_and_no_file_has(tiny_diffusers_folder: Path, tmp_path: Path) -> None:
    """diffusers leaves it without a value, and torch then cannot move it."""
    folder = shutil.copytree(tiny_diffusers_folder, tmp_path / "whole")
    config = json.loads((folder / "unet/config.json").read_text())
    more = {"encoder_hid_dim": 8, "encoder_hid_dim_type": "text_proj"}
    (folder / "unet/config.json").write_text(json.dumps(config | more))
    refused("its unet lacks 'encoder_hid_proj.weight'", folder)


def test_a_list_of_blocks_that_is_too_short_is_one_line(tiny_diffusers_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_diffusers_folder, tmp_path / "whole")
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps(config | {"block_out_channels": []}))
    refused("diffusers cannot load it", folder)


def test_parts_that_a_pipeline_does_without_and_its_settings_are_no_entries(
    tiny_diffusers_folder: Path, tmp_path: Path
) -> None:
    changes = {"image_encoder": [None, None], "requires_safety_checker": False, "safety_checker": [None, None]}
    assert load_pipeline(with_index(tmp_path / "whole", tiny_diffusers_folder, **changes)).unet is not None


def test_a_class_that_cannot_be_imported_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Library(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise ModuleNotFoundError("No module named 'flash_attn'")

    with pytest.raises(InputError, match=r"'Net' of transformers cannot be imported \(No module named 'flash_attn'\)"):
        _found(Library("transformers"), "Net", tmp_path / "model_index.json")


def test_parts_beside_a_single_file_are_networks_of_the_libraries(
    tiny_family: dict[str, Path], tiny_diffusers_folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    unet = {key: value for key, value in load_file(tiny_family["base"]).items() if key.startswith("model.")}
    save_file(unet, tmp_path / "unet.safetensors")
    found = components_beside(tmp_path / "unet.safetensors", tiny_diffusers_folder, torch.float32)
    assert {name: type(part).__name__ for name, part in found.items()} == {
        "text_encoder": "CLIPTextModel",
        "vae": "AutoencoderKL",
    }
