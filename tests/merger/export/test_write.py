"""Export: the file is the blend that was scored, whole or absent, and it can prove it."""

from __future__ import annotations

import errno
import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import merger.checkpoints.weight_files
import merger.export.write
from merger.blend.arithmetic import CPU_CHUNK, blend
from merger.blend.differences import Difference
from merger.blend.live import LiveDenoiser
from merger.checkpoints.checkpoint import Checkpoint, open_checkpoint
from merger.checkpoints.headers import pack_header, read_header
from merger.checkpoints.names.unet import DENOISER_PREFIX
from merger.checkpoints.recipe_metadata import METADATA_KEY
from merger.errors import CheckpointError, RecipeError, WriteError
from merger.export.forms import ExportOptions, export_as
from merger.export.recipe import Recipe
from merger.export.write import export, verify
from merger.layers.grouping import group

CONV_IN = DENOISER_PREFIX + "input_blocks.0.0.weight"
BIAS = DENOISER_PREFIX + "input_blocks.0.0.bias"
VAE_KEY = "first_stage_model.decoder.conv_in.weight"


@pytest.fixture(scope="module")
def sources(tiny_family: dict[str, Path]) -> list[Checkpoint]:
    return [open_checkpoint(tiny_family[name]) for name in ("base", "warm", "cool")]


@pytest.fixture(scope="module")
def weights(sources: list[Checkpoint]) -> dict[str, dict[str, float]]:
    layers = list(group(sources[0].denoiser, "block"))
    made = {layer: {"warm": i / 20 - 0.2, "cool": 0.3} for i, layer in enumerate(layers)}
    return made | {"M00": {"warm": 1.0}, "OUT03": {}}


@pytest.fixture(scope="module")
def recipe(sources: list[Checkpoint], weights: dict[str, dict[str, float]]) -> Recipe:
    return Recipe.of(sources[0], sources[1:], "block", weights)


@pytest.fixture(scope="module")
def blended(sources: list[Checkpoint], recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("blend") / "new" / "blend.safetensors"
    return export(recipe, output, base=sources[0], donors=sources[1:], extra_metadata={"layermerge.score": "0.5"})


def altered(file: Path, target: Path, key: str, place: int = 0) -> Path:
    """A copy of the file with one bit of one tensor turned over."""
    content = bytearray(file.read_bytes())
    length = int.from_bytes(content[:8], "little")
    content[8 + length + read_header(file).tensors[key].start + place] ^= 1
    target.write_bytes(content)
    return target


def test_streamed_is_in_memory(sources: list[Checkpoint], recipe: Recipe, blended: Path) -> None:
    written = open_checkpoint(blended)
    for layer, names in group(sources[0].denoiser, "block").items():
        row = [recipe.weights[layer].get(source.name, 0.0) for source in sources[1:]]
        for name in names:
            base, *donors = (source.read(name) for source in sources)
            flat = blend(base.reshape(-1), [Difference(donor.reshape(-1)) for donor in donors], row)
            assert torch.equal(written.read(name), flat.reshape(base.shape)), name


def test_what_was_live_is_what_is_written(
    sources: list[Checkpoint], weights: dict[str, dict[str, float]], blended: Path, tiny_diffusers_folder: Path
) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tiny_diffusers_folder, subfolder="unet")
    LiveDenoiser(unet, sources[0], sources[1:], group(sources[0].denoiser, "block")).apply(weights)
    written = open_checkpoint(blended)
    assert all(torch.equal(unet.get_parameter(name), written.read(name).float()) for name in written.denoiser)


def test_it_has_the_bases_keys_order_and_types_and_the_rest_of_its_bytes(
    tiny_family: dict[str, Path], blended: Path
) -> None:
    before, after = read_header(tiny_family["base"]), read_header(blended)
    assert list(before.tensors.items()) == list(after.tensors.items())
    base, made = tiny_family["base"].read_bytes(), blended.read_bytes()
    offsets = [8 + int.from_bytes(content[:8], "little") for content in (base, made)]
    for key, entry in before.tensors.items():
        if not key.startswith(DENOISER_PREFIX):
            ours, theirs = (
                content[offset + entry.start : offset + entry.end]
                for content, offset in zip((base, made), offsets, strict=True)
            )
            assert ours == theirs, key


def test_its_metadata_tell_what_it_is(blended: Path, recipe: Recipe) -> None:
    with safe_open(blended, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert metadata["layermerge.score"] == "0.5"
    assert Recipe.from_metadata(metadata) == recipe


def test_a_blend_of_blends_keeps_only_its_own_story(sources: list[Checkpoint], blended: Path, tmp_path: Path) -> None:
    second = open_checkpoint(blended, name="blend")
    recipe = Recipe.of(second, [sources[1]], "stage", {"MID": {"warm": 0.5}})
    output = export(recipe, tmp_path / "second.safetensors", base=second, donors=[sources[1]])
    metadata = read_header(output).metadata
    own = {"format", METADATA_KEY, "sd_merge_recipe", "sd_merge_models"}
    assert {key for key in metadata if not key.startswith("modelspec.")} == own
    assert verify(output).ok


def test_plain_diffusers_draws_with_it_what_was_drawn_live(
    sources: list[Checkpoint],
    weights: dict[str, dict[str, float]],
    blended: Path,
    tiny_pipeline_folder: Path,
    tiny_family: dict[str, Path],
) -> None:
    from diffusers import StableDiffusionPipeline

    def load(file: Path):  # type: ignore[no-untyped-def]
        pipeline = StableDiffusionPipeline.from_single_file(
            file, config=str(tiny_pipeline_folder), local_files_only=True, safety_checker=None
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def draw(pipeline):  # type: ignore[no-untyped-def]
        seed = torch.Generator().manual_seed(5)
        return pipeline("red hair", num_inference_steps=3, generator=seed, output_type="np", height=32, width=32).images

    live = load(tiny_family["base"])
    plain = draw(live)
    LiveDenoiser(live.unet, sources[0], sources[1:], group(sources[0].denoiser, "block")).apply(weights)
    drawn = draw(live)
    assert not np.array_equal(plain, drawn)
    assert np.array_equal(drawn, draw(load(blended)))


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_another_dtype_is_for_every_floating_tensor(
    sources: list[Checkpoint], recipe: Recipe, name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    output = export(recipe, tmp_path / "x.safetensors", base=sources[0], donors=sources[1:], dtype=name)
    made = load_file(output)
    assert {tensor.dtype for tensor in made.values()} == {dtype}
    assert torch.equal(made[VAE_KEY], sources[0].read_key(VAE_KEY).to(dtype))
    found = verify(output)
    assert (found.ok, found.recipe.dtype) == (True, name)


def test_integers_stay_integers_and_wider_types_come_first(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    """The base is of another writer, in an order of its own: one byte of truth first, then whatever follows."""
    extra = {"a.flag": torch.tensor([True]), "a.position_ids": torch.arange(3), CONV_IN: torch.ones(8, 8, 3, 3)}
    tensors = extra | {key: tensor for key, tensor in load_file(tiny_family["base"]).items() if key not in extra}
    layout = {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()}
    body = b"".join(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors.values())
    (tmp_path / "mixed.safetensors").write_bytes(pack_header(layout, {}) + body)
    base, warm = open_checkpoint(tmp_path / "mixed.safetensors"), open_checkpoint(tiny_family["warm"])
    recipe = Recipe.of(base, [warm], "block", {"IN00": {"warm": 0.5}})
    for dtype in (None, "fp16", "fp32"):
        output = export(recipe, tmp_path / f"{dtype}.safetensors", base=base, donors=[warm], dtype=dtype)
        made = load_file(output)
        assert torch.equal(made["a.position_ids"], extra["a.position_ids"])
        assert torch.equal(made["a.flag"], extra["a.flag"])
        assert made[CONV_IN].dtype == (torch.float16 if dtype == "fp16" else torch.float32)
        assert verify(output).ok
        entries = read_header(output).tensors
        if dtype is None:
            assert list(entries) == list(tensors)
        else:
            assert all(entry.start % entry.dtype.itemsize == 0 for entry in entries.values())


def test_verify_compares_every_tensor(blended: Path, recipe: Recipe, tiny_family: dict[str, Path]) -> None:
    found = verify(blended)
    assert (found.ok, found.differing, found.recipe) == (True, (), recipe)
    assert found.tensors_compared == len(load_file(tiny_family["base"]))


@pytest.mark.parametrize("key", [CONV_IN, VAE_KEY])
def test_one_bit_is_found(blended: Path, tmp_path: Path, key: str) -> None:
    found = verify(altered(blended, tmp_path / "x.safetensors", key, 1))
    assert (found.ok, found.differing) == (False, (key,))


def test_tensors_missing_added_or_of_another_type_are_found(blended: Path, tmp_path: Path) -> None:
    tensors = load_file(blended)
    del tensors[VAE_KEY]
    tensors["added"] = torch.zeros(2)
    tensors[CONV_IN] = tensors[CONV_IN].float()
    tensors[BIAS] = tensors[BIAS].view(torch.bfloat16)  # the same bytes
    save_file(tensors, tmp_path / "x.safetensors", metadata=dict(read_header(blended).metadata))
    found = verify(tmp_path / "x.safetensors")
    assert not found.ok
    assert set(found.differing) == {VAE_KEY, "added", CONV_IN, BIAS}


def test_sources_may_have_moved_but_not_changed(tiny_family: dict[str, Path], tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    for name in ("base", "warm"):
        shutil.copy(tiny_family[name], old / f"{name}.safetensors")
    base, warm = (open_checkpoint(old / f"{name}.safetensors") for name in ("base", "warm"))
    recipe = Recipe.of(base, [warm], "block", {"IN00": {"warm": 0.5}})
    made = export(recipe, tmp_path / "made.safetensors", base=base, donors=[warm])
    old.rename(new)
    with pytest.raises(RecipeError, match=r"'base' of the recipe is not at .*: say where it is now"):
        verify(made)
    assert verify(made, [new]).ok
    assert verify(made, [new / "base.safetensors", new / "warm.safetensors"]).ok
    altered(new / "warm.safetensors", new / "warm.safetensors", CONV_IN)
    with pytest.raises(RecipeError, match=r"not the 'warm' of the recipe: its SHA-256 begins"):
        verify(made, [new])


def test_a_donor_without_weight_is_not_needed(sources: list[Checkpoint], tmp_path: Path) -> None:
    recipe = Recipe.of(sources[0], sources[1:], "block", {"IN00": {"warm": 0.5, "cool": 0.0}})
    lost = json.loads(recipe.to_json())
    lost["donors"][1]["path"] = str(tmp_path / "lost.safetensors")
    output = export(
        Recipe.from_json(json.dumps(lost)), tmp_path / "x.safetensors", base=sources[0], donors=sources[1:2]
    )
    assert verify(output).ok


def test_a_failure_leaves_nothing_behind_and_what_was_there_untouched(
    sources: list[Checkpoint], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "x.safetensors"
    output.write_bytes(b"what was there")
    real = merger.export.layout.Layout.tensors

    def break_off(layout: merger.export.layout.Layout) -> Iterator[tuple[str, torch.Tensor]]:
        for i, item in enumerate(real(layout)):
            if i == 100:
                raise OSError(28, "No space left on device")
            yield item

    monkeypatch.setattr(merger.export.layout.Layout, "tensors", break_off)
    with pytest.raises(WriteError, match=r"cannot be written.*No space left"):
        export(recipe, output, base=sources[0], donors=sources[1:])
    assert output.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [output]


class Ledger(TorchDispatchMode):
    """Counts the bytes of all tensors that are made while it watches, as long as they live; views count as what they
    look at."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, list[int]] = {}  # storage: [its bytes, tensors that look at it]
        self.peak = 0
        self.off = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not self.off:
                self._note(tensor, given)
        return result

    def _note(self, tensor: torch.Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()._cdata
        if storage in given and storage not in self.held:
            return  # a view of what was there before
        self.held.setdefault(storage, [tensor.untyped_storage().nbytes(), 0])[1] += 1
        self.peak = max(self.peak, sum(size for size, _ in self.held.values()))
        weakref.finalize(tensor, self._release, storage)

    def _release(self, storage: int) -> None:
        self.held[storage][1] -= 1
        if not self.held[storage][1]:
            del self.held[storage]


def test_no_more_is_in_memory_than_a_tensor_of_each_source(
    tiny_family: dict[str, Path], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, *donors = (open_checkpoint(tiny_family[name]) for name in ("base", "warm", "cool"))
    ledger = Ledger()
    real = merger.checkpoints.weight_files.WeightFile.get

    def unwatched(file: merger.checkpoints.weight_files.WeightFile, key: str) -> torch.Tensor:
        ledger.off = True  # what is mapped from a file takes no memory
        try:
            return real(file, key)
        finally:
            ledger.off = False

    monkeypatch.setattr(merger.checkpoints.weight_files.WeightFile, "get", unwatched)
    with ledger:
        export(recipe, tmp_path / "x.safetensors", base=base, donors=donors)
    elements = max(torch.Size(info.shape).numel() for info in base.denoiser.values())
    allowed = 2 * elements * (len(donors) + 1) + 3 * 4 * min(elements, CPU_CHUNK)  # and float32 to work in
    assert allowed / 8 < ledger.peak <= allowed < tiny_family["base"].stat().st_size / 3


class _Disk:
    """A file whose writes go through another function."""

    def __init__(self, file: Any, write: Callable[[Any], int]) -> None:
        self.file, self.write = file, write

    def __enter__(self) -> _Disk:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


@pytest.mark.parametrize("room", [0, 10_000, 300_000])
def test_a_full_disk_leaves_nothing_behind_and_says_so(
    room: int, sources: list[Checkpoint], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def small(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        opened = real(path, mode, *args, **kwargs)
        if mode != "wb":
            return opened
        left, write = room, opened.write

        def refuse(content: Any) -> int:
            nonlocal left
            left -= memoryview(content).nbytes
            if left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(content)

        return _Disk(opened, refuse)

    monkeypatch.setattr(Path, "open", small)
    output = tmp_path / "new" / "deeper" / "x.safetensors"
    how = ExportOptions(mecha=tmp_path / "recipes" / "x.mecha")
    with pytest.raises(WriteError) as caught:
        export_as(recipe, output, how, base=sources[0], donors=sources[1:])
    said = f"{output}: cannot be written (No space left on device). Nothing was left behind. Make room and try again."
    assert str(caught.value) == said
    assert not list(tmp_path.iterdir())


def test_bad_input_is_refused_before_anything_is_written(
    sources: list[Checkpoint], recipe: Recipe, tiny_diffusers_folder: Path, tiny_family: dict[str, Path], tmp_path: Path
) -> None:
    base, *donors = sources
    output = tmp_path / "x.safetensors"
    with pytest.raises(RecipeError, match=r"needs 'cool', which was not opened"):
        export(recipe, output, base=base, donors=donors[:1])
    with pytest.raises(RecipeError, match=r"not the 'base' of the recipe"):
        export(recipe, output, base=open_checkpoint(tiny_family["warm"], name="other"), donors=donors)
    with pytest.raises(RecipeError, match=r"weighs 'IN99', not a layer here"):
        export(Recipe.of(base, donors, "block", {"IN99": {"warm": 1.0}}), output, base=base, donors=donors)
    with pytest.raises(RecipeError, match=r"dtype 'fp17' is unknown"):
        export(recipe, output, base=base, donors=donors, dtype="fp17")
    with pytest.raises(CheckpointError, match=r"one of the blend's own sources"):
        export(recipe, tiny_family["base"], base=base, donors=donors)
    with pytest.raises(CheckpointError, match=r"must end in .safetensors"):
        export(recipe, tmp_path / "x.ckpt", base=base, donors=donors)
    with pytest.raises(CheckpointError, match=r"a diffusers folder cannot be the base"):
        folder = open_checkpoint(tiny_diffusers_folder)
        export(Recipe.of(folder, [], "block", {}), output, base=folder, donors=[])
    assert not list(tmp_path.iterdir())


def test_a_folder_may_be_a_donor(sources: list[Checkpoint], tiny_diffusers_folder: Path, tmp_path: Path) -> None:
    folder = open_checkpoint(tiny_diffusers_folder, name="folder")
    recipe = Recipe.of(sources[1], [folder], "block", {"M00": {"folder": 1.0}})
    output = export(recipe, tmp_path / "x.safetensors", base=sources[1], donors=[folder])
    name = "mid_block.resnets.0.conv1.weight"
    assert torch.equal(open_checkpoint(output).read(name), folder.read(name).half())
    assert verify(output).ok


def test_a_file_without_a_recipe_cannot_be_verified(tiny_family: dict[str, Path]) -> None:
    with pytest.raises(RecipeError, match=r"not written by merger export"):
        verify(tiny_family["base"])
