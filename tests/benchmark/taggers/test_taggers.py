"""One contract for every tagger, and what each format demands beside it."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark.app.cli import add_arguments
from benchmark.errors import InputError
from benchmark.taggers import registry
from benchmark.taggers.ml_danbooru import ml_danbooru_input
from benchmark.taggers.preprocessing import Preprocessing, read_preprocessing
from benchmark.taggers.registry import TaggerFormat, open_tagger, register_tagger, tagger_kinds
from benchmark.taggers.tagger import FakeTagger, Tagger, columns_of
from benchmark.taggers.transformers_tagger import TransformersTagger
from benchmark.taggers.wd import WDTagger, read_selected_tags, wd_input
from benchmark.taggers.wd_timm import TimmTagger


def pictures(count: int, height: int, width: int) -> np.ndarray:
    """Smooth random colours, as pictures are."""
    draw = np.random.default_rng(count * height * width)
    coarse = draw.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    resized = [Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC) for image in coarse]
    return np.stack([np.asarray(image) for image in resized])


@pytest.fixture(params=[*tagger_kinds(), "fake"])
def tagger(
    request: pytest.FixtureRequest,
    tiny_wd_tagger: Path,
    tiny_timm_tagger: Path,
    tiny_tagger_folder: Path,
    tiny_ml_danbooru: Path,
    timm: ModuleType,
) -> Tagger:
    if request.param == "fake":
        return FakeTagger(("a", "b", "c"), noise=0.1)
    folders = {
        "wd": tiny_wd_tagger,
        "wd-timm": tiny_timm_tagger,
        "transformers": tiny_tagger_folder,
        "ml-danbooru": tiny_ml_danbooru,
    }
    return open_tagger(folders[request.param], kind=request.param, threads=1)


class TestTaggerContract:
    """What every implementation promises. A new tagger is added to the fixture above."""

    @pytest.mark.parametrize(("height", "width"), [(16, 16), (33, 20), (1, 1), (7, 50)])
    def test_probabilities(self, tagger: Tagger, height: int, width: int) -> None:
        said = tagger.probabilities(pictures(3, height, width))
        assert said.dtype == np.float32
        assert said.shape == (3, len(tagger.tags))
        assert np.all((said >= 0) & (said <= 1))

    def test_an_image_is_judged_alone(self, tagger: Tagger) -> None:
        images = pictures(70, 16, 16)
        together = tagger.probabilities(images)
        alone = np.concatenate([tagger.probabilities(images[i : i + 1]) for i in (0, 40, 69)])
        assert together[[0, 40, 69]] == pytest.approx(alone, abs=1e-5)
        assert np.array_equal(together, tagger.probabilities(images))
        assert together.std(axis=0).max() > 0.01  # images differ, so must the answers

    def test_no_images(self, tagger: Tagger) -> None:
        assert tagger.probabilities(np.empty((0, 16, 16, 3), np.uint8)).shape == (0, len(tagger.tags))

    def test_names(self, tagger: Tagger) -> None:
        assert tagger.name
        assert len(set(tagger.tags)) == len(tagger.tags)
        assert set(tagger.general) <= set(tagger.tags)
        assert len(tagger.fingerprint) == 64

    def test_what_is_no_image_batch_is_refused(self, tagger: Tagger) -> None:
        with pytest.raises(ValueError, match="uint8"):
            tagger.probabilities(pictures(1, 16, 16)[0])
        with pytest.raises(ValueError, match="uint8"):
            tagger.probabilities(pictures(1, 16, 16).astype(np.float32))


class OutsideTagger(FakeTagger):
    """A format from outside: its tags are the lines of a file."""

    def __init__(self, folder: Path, *, device: str, threads: int | None) -> None:
        super().__init__((folder / "tags.txt").read_text().split(), name=folder.name)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the format `outside`, which is registered for one test."""
    monkeypatch.setattr(registry, "_FORMATS", dict(registry._FORMATS))
    known = {3: (0.25, "outside: its own page")}
    register_tagger(TaggerFormat("outside", ("tags.txt",), f"{OutsideTagger.__module__}:OutsideTagger", known))
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "tags.txt").write_text("smile\nhat\nglasses\n")
    return folder


def test_a_format_from_outside_opens_like_the_others(outside: Path) -> None:
    assert tagger_kinds() == ("transformers", "wd", "wd-timm", "ml-danbooru", "outside")
    for kind in (None, "outside"):
        tagger = open_tagger(outside, kind=kind)
        assert isinstance(tagger, OutsideTagger)
        assert tagger.tags == ("smile", "hat", "glasses")
        assert registry.recommended_threshold(tagger) == (0.25, "outside: its own page")
    with pytest.raises(InputError, match=r"holds no tagger; it needs tags\.txt\.$"):
        open_tagger(outside.parent, kind="outside")
    with pytest.raises(ValueError, match="there is a tagger format 'outside' already"):
        register_tagger(TaggerFormat("outside", ("other.txt",), "elsewhere:Tagger"))


def test_a_format_from_outside_is_an_option_of_the_command_line(outside: Path) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["model", "--tagger", str(outside), "--tagger-kind", "outside", "--judge-kind", "outside"])
    assert (args.tagger_kind, args.judge_kind) == ("outside", "outside")


def test_naming_formats_loads_none() -> None:
    code = "import sys, benchmark.taggers.registry as r; r.tagger_kinds(); print({'numpy', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("named", "fetched"),
    [
        ("owner/name", ("owner/name", None)),
        ("owner/name@v2", ("owner/name", "v2")),
    ],
)
def test_a_hub_id_is_fetched(
    named: str, fetched: tuple[str, str | None], tiny_wd_tagger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision))
        assert not [pattern for pattern in allow_patterns if pattern.endswith((".bin", ".pt", "*"))]
        return str(tiny_wd_tagger)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert isinstance(open_tagger(named, threads=1), WDTagger)
    assert asked == [fetched]


@pytest.mark.parametrize("path", ["owner/name.safetensors", "./owner/name", "a/b/c", "name", "../name"])
def test_what_is_no_hub_id_is_not_fetched(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    with pytest.raises(InputError, match="there is no such folder"):
        open_tagger(path)


def test_code_that_comes_with_a_tagger_is_not_run(
    tiny_tagger_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would ask at the terminal whether to run it."""
    folder = shutil.copytree(tiny_tagger_folder, tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "code.Own", "AutoModelForImageClassification": "code.Own"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": classes}))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\nclass Own: ...\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(InputError, match="transformers cannot load it") as caught:
        open_tagger(folder)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_columns_are_found_however_the_tag_is_spelled() -> None:
    tagger = FakeTagger(("blue_hair", "star_(symbol)", "smile"))
    assert columns_of(tagger, ["smile", "Blue Hair", "star \\(symbol\\)"]).tolist() == [2, 0, 1]
    with pytest.raises(InputError, match=r"fake does not know the tag 'smille'.*Did you mean 'smile'"):
        columns_of(tagger, ["smille"])


def test_wd_takes_bgr_0_to_255_in_the_order_of_the_csv(tiny_wd_tagger: Path) -> None:
    import onnx
    from onnx import numpy_helper

    images = pictures(2, 16, 16)
    weights = numpy_helper.to_array(onnx.load(tiny_wd_tagger / "model.onnx").graph.initializer[0])
    logits = images[:, :, :, ::-1].reshape(2, -1).astype(np.float64) @ weights
    tagger = open_tagger(tiny_wd_tagger, threads=1)
    assert tagger.probabilities(images) == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-5)
    rows = read_selected_tags(tiny_wd_tagger / "selected_tags.csv")
    assert tagger.tags == tuple(row.name for row in rows)
    assert set(tagger.tags) - set(tagger.general) == {"general", "sensitive", "aya_(example)"}


def test_wd_input_follows_the_published_description() -> None:
    """Pad with white to a square around the middle, resize bicubically, flip the channels: with Pillow, one by one."""
    for height, width in ((20, 20), (31, 16), (5, 40), (1, 1)):
        images = pictures(2, height, width)
        for image, made in zip(images, wd_input(images, 24), strict=True):
            side = max(height, width)
            canvas = Image.new("RGB", (side, side), (255, 255, 255))
            canvas.paste(Image.fromarray(image), ((side - width) // 2, (side - height) // 2))
            expected = np.asarray(canvas.resize((24, 24), Image.Resampling.BICUBIC), dtype=np.float32)[:, :, ::-1]
            assert np.array_equal(made, expected)
            assert made.dtype == np.float32


def test_ml_danbooru_takes_rgb_0_to_1_and_gives_logits(tiny_ml_danbooru: Path) -> None:
    import onnx
    from onnx import numpy_helper

    images = pictures(3, 40, 40)
    weights = numpy_helper.to_array(onnx.load(tiny_ml_danbooru / "tiny.onnx").graph.initializer[0])
    tagger = open_tagger(tiny_ml_danbooru, threads=1)
    logits = images.reshape(3, -1, 3).mean(axis=1) / 255 @ weights
    assert tagger.probabilities(images) == pytest.approx(1 / (1 + np.exp(-logits)), abs=0.02)  # resizing moves the mean
    assert tagger.tags == tagger.general == ("smile", "hat", "glasses", "blue_hair")


def test_ml_danbooru_input_follows_the_published_description() -> None:
    """Shorter side to 512, ratio kept, sides down to multiples of 4, bilinear: with Pillow, one by one."""
    for (height, width), size in {(64, 64): (512, 512), (30, 50): (512, 852), (50, 31): (824, 512)}.items():
        images = pictures(2, height, width)
        for image, made in zip(images, ml_danbooru_input(images), strict=True):
            expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
            assert np.array_equal(np.round(made * 255), expected.transpose(2, 0, 1))
            assert made.dtype == np.float32


def test_the_most_common_tags_come_first(tiny_wd_tagger: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_wd_tagger, tmp_path / "wd")
    lines = (folder / "selected_tags.csv").read_text().splitlines()
    lines[5] = lines[5].rsplit(",", 1)[0] + ",99999"
    (folder / "selected_tags.csv").write_text("\n".join(lines))
    assert open_tagger(folder).general[0] == lines[5].split(",")[1]
    assert open_tagger(folder).fingerprint != open_tagger(tiny_wd_tagger).fingerprint


@pytest.mark.parametrize("options", [{}, {"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": 16}])
@pytest.mark.parametrize("resample", [2, 3])
def test_preprocessing_is_that_of_transformers(
    tiny_tagger_folder: Path, tmp_path: Path, options: dict, resample: int
) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    config = (
        json.loads((tiny_tagger_folder / "preprocessor_config.json").read_text()) | options | {"resample": resample}
    )
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    ours = read_preprocessing(tmp_path / "preprocessor_config.json")
    theirs = (CLIPImageProcessorPil if options else ViTImageProcessorPil)(**{**config, "image_processor_type": None})
    for height, width in ((16, 16), (40, 40), (40, 64), (64, 33), (9, 12)):
        images = pictures(2, height, width)
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        expected = torch.stack([torch.as_tensor(theirs(image)["pixel_values"][0]) for image in images])
        exact = (height, width) == (16, 16) and not options
        # Pillow rounds to whole bytes after each direction, and cuts bicubic's overshoot there where it enlarges.
        rounding = 0 if exact else (4 if height < 16 else 1.6) / 255 / 0.4
        assert torch.allclose(ours(pixels), expected, atol=1e-5 + rounding), (height, width)
        assert (ours(pixels) - expected).abs().mean() < 1e-3 + rounding / 3


def test_convnext_preprocessing_resizes_then_crops_small_sizes(tmp_path: Path) -> None:
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    for edge, ratio in ((32, 0.875), (384, None)):
        theirs = ConvNextImageProcessorPil(size={"shortest_edge": edge}, **({"crop_pct": ratio} if ratio else {}))
        (tmp_path / "p.json").write_text(
            json.dumps(theirs.to_dict() | {"image_processor_type": "ConvNextImageProcessor"})
        )
        images = pictures(1, 48, 60)
        ours = read_preprocessing(tmp_path / "p.json")(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
        expected = torch.as_tensor(theirs(images[0])["pixel_values"][0])[None]
        assert ours.shape == expected.shape
        assert (ours - expected).abs().max() < 0.05


@pytest.mark.parametrize("tagger", ["transformers", "wd-timm"], indirect=True)
def test_logits_are_those_of_the_probabilities_and_can_be_differentiated(tagger: Tagger) -> None:
    assert isinstance(tagger, TransformersTagger | TimmTagger)
    images = pictures(2, 40, 40)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255).requires_grad_()
    logits = tagger.logits(pixels)
    assert torch.sigmoid(logits).detach().numpy() == pytest.approx(tagger.probabilities(images), abs=1e-6)
    logits[:, 0].sum().backward()
    assert pixels.grad is not None
    step = 1e-3 * pixels.grad / pixels.grad.norm()
    with torch.no_grad():
        risen = tagger.logits(pixels + step)[:, 0].sum() - tagger.logits(pixels - step)[:, 0].sum()
    assert risen.item() == pytest.approx(2e-3 * pixels.grad.norm().item(), rel=0.05)
    assert not any(weight.requires_grad for weight in tagger.model.parameters())


def test_a_folder_of_both_opens_as_asked(tiny_wd_tagger: Path, tiny_tagger_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_wd_tagger, tmp_path / "both")
    shutil.copytree(tiny_tagger_folder, folder, dirs_exist_ok=True)
    assert isinstance(open_tagger(folder), TransformersTagger)
    assert type(open_tagger(folder, kind="wd")).__name__ == "WDTagger"
    with pytest.raises(InputError, match="Available: transformers, wd, wd-timm, ml-danbooru"):
        open_tagger(folder, kind="clip9")


@pytest.mark.parametrize(("height", "width"), [(16, 16), (40, 40), (32, 48), (50, 20)])
def test_a_wd_tagger_says_the_same_in_both_forms(
    tiny_timm_tagger: Path, timm: ModuleType, height: int, width: int
) -> None:
    images = pictures(3, height, width)
    by_onnx = open_tagger(tiny_timm_tagger, threads=1)
    by_timm = open_tagger(tiny_timm_tagger, kind="wd-timm")
    assert (type(by_onnx), type(by_timm)) == (WDTagger, TimmTagger)  # the form that needs no extra, unless asked
    assert (by_timm.tags, by_timm.general, by_timm.name) == (by_onnx.tags, by_onnx.general, by_onnx.name)
    rounding = 0.01 if (height, width) != (16, 16) else 1e-5  # Pillow rounds resized pictures to bytes
    assert by_timm.probabilities(images) == pytest.approx(by_onnx.probabilities(images), abs=rounding)


def test_timms_weights_are_no_transformers_model(tiny_timm_tagger: Path, timm: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no tagger; it needs config\.json and model\.safetensors"):
        open_tagger(tiny_timm_tagger, kind="transformers")
    folder = shutil.copytree(tiny_timm_tagger, tmp_path / "wd")
    (folder / "model.onnx").unlink()
    assert isinstance(open_tagger(folder), TimmTagger)


def test_without_timm_its_extra_is_named(tiny_timm_tagger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"need timm\. Install the extra \(pip install 'layermerge\[timm\]'\)"):
        open_tagger(tiny_timm_tagger, kind="wd-timm")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "gpt_7"}, r"config.json: timm cannot make this model \(Unknown model \(gpt_7\)\)"),
        ({"num_classes": 3}, r"model.safetensors: does not fit config.json"),
        ({"crop_pct": 0.9}, r"sees all of a square, resized bicubically, not .* crop_pct 0.9"),
        ({"input_size": [3, 16, 24]}, r"not input_size \[3, 16, 24\]"),
        ({"rows": 5}, r"the model has 14 outputs, selected_tags.csv 5 rows; mixed files\?"),
        ({"weights": b"PK"}, r"model.safetensors: is no safetensors file"),
    ],
)
def test_a_bad_folder_for_timm_is_one_line(
    tiny_timm_tagger: Path, timm: ModuleType, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    folder = shutil.copytree(tiny_timm_tagger, tmp_path / "wd")
    config = json.loads((folder / "config.json").read_text())
    if "rows" in change:
        lines = (folder / "selected_tags.csv").read_text().splitlines()
        (folder / "selected_tags.csv").write_text("\n".join(lines[: change["rows"] + 1]))
    elif "weights" in change:
        (folder / "model.safetensors").write_bytes(change["weights"])
    else:
        (key, value) = next(iter(change.items()))
        (config if key in config else config["pretrained_cfg"])[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=said) as caught:
        open_tagger(folder, kind="wd-timm")
    assert "\n" not in str(caught.value)


def test_opening_prints_nothing(tiny_tagger_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    open_tagger(tiny_tagger_folder)
    assert capfd.readouterr() == ("", "")


class TestBadFolders:
    """Each is one line that names the file."""

    def copy(self, folder: Path, to: Path) -> Path:
        return shutil.copytree(folder, to / "tagger")

    def refused(self, folder: Path, message: str, **options: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            open_tagger(folder, **options)
        assert "\n" not in str(caught.value)

    def test_nothing_there(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "none", "no such folder")
        self.refused(tmp_path, "holds no tagger.*selected_tags.csv and model.onnx")
        (tmp_path / "file").touch()
        self.refused(tmp_path / "file", "is a file; name the folder")

    def test_the_kind_asked_for_is_not_there(self, tiny_wd_tagger: Path) -> None:
        self.refused(tiny_wd_tagger, "config.json and model.safetensors", kind="transformers")

    def test_wd(self, tiny_wd_tagger: Path, tmp_path: Path) -> None:
        folder = self.copy(tiny_wd_tagger, tmp_path)
        table = (folder / "selected_tags.csv").read_text()
        (folder / "selected_tags.csv").write_text(table.rsplit("\n", 2)[0])
        self.refused(folder, "14 outputs, selected_tags.csv 13 rows")
        (folder / "selected_tags.csv").write_text("tag_id,name,category,count\n1,smile,x,3\n")
        self.refused(folder, "line 2: needs name, category and count")
        (folder / "selected_tags.csv").write_text(table)
        (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:2000])
        self.refused(folder, "model.onnx: is no ONNX model, or was cut short|cannot load it")

    def test_ml_danbooru(self, tiny_ml_danbooru: Path, tmp_path: Path) -> None:
        folder = self.copy(tiny_ml_danbooru, tmp_path)
        (folder / "classes.json").write_text('["a", "b"]')
        self.refused(folder, "4 outputs, classes.json 2 tags")
        (folder / "classes.json").write_text('{"a": 1}')
        self.refused(folder, "must be a list of tags")
        (folder / "tiny.onnx").unlink()
        self.refused(folder, r"needs one \.onnx beside classes\.json, and has 0")

    def test_a_hub_id_that_cannot_be_fetched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub

        def offline(*_: object, **__: object) -> str:
            raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
        self.refused(Path("owner/name"), r"cannot be fetched from the hub \(no network\)")

    def test_transformers(self, tiny_tagger_folder: Path, tmp_path: Path) -> None:
        from safetensors.numpy import load_file, save_file

        folder = self.copy(tiny_tagger_folder, tmp_path)
        weights = load_file(folder / "model.safetensors")
        without = {name: value for name, value in weights.items() if name != "classifier.weight"}
        save_file(without, folder / "model.safetensors", {"format": "pt"})
        self.refused(folder, "lacks 'classifier.weight'")
        whole = (tiny_tagger_folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
        self.refused(folder, "is no safetensors file, or was cut short")
        (folder / "model.safetensors").write_bytes(whole)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"problem_type": "regression"}))
        self.refused(folder, "problem_type is 'regression'")
        (folder / "preprocessor_config.json").write_text(json.dumps({"do_pad": True}))
        self.refused(folder, "'do_pad' is not supported")


def test_without_a_preprocessor_the_pixels_pass_unchanged() -> None:
    pixels = torch.rand(1, 3, 5, 4)
    assert Preprocessing(None, None, None, "bilinear", None, None)(pixels) is pixels


def with_batch(source: Path, model: str, place: Path, batch: int) -> Path:
    """A copy of an ONNX tagger that takes just `batch` images at once, as some exports do."""
    import onnx

    folder = shutil.copytree(source, place)
    found = onnx.load(folder / model)
    for value in (found.graph.input[0], found.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(found, folder / model)
    return folder


@pytest.mark.parametrize("batch", [1, 4])
def test_an_onnx_model_with_a_fixed_batch_is_fed_as_it_wants(
    batch: int, tiny_wd_tagger: Path, tiny_ml_danbooru: Path, tmp_path: Path
) -> None:
    for source, model, kind in ((tiny_wd_tagger, "model.onnx", "wd"), (tiny_ml_danbooru, "tiny.onnx", "ml-danbooru")):
        fixed = open_tagger(with_batch(source, model, tmp_path / kind, batch), kind=kind, threads=1)
        for count in (1, 3, 5, 40):
            images = pictures(count, 24, 24)
            expected = open_tagger(source, kind=kind, threads=1).probabilities(images)
            assert fixed.probabilities(images) == pytest.approx(expected, abs=1e-6)
        assert fixed.probabilities(np.empty((0, 16, 16, 3), np.uint8)).shape == (0, len(fixed.tags))


def test_an_onnx_model_that_gives_logits_is_no_wd_tagger(tiny_wd_tagger: Path, tmp_path: Path) -> None:
    import onnx

    folder = shutil.copytree(tiny_wd_tagger, tmp_path / "logits")
    model = onnx.load(folder / "model.onnx")
    model.graph.node[-1].op_type = "Identity"
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(InputError, match="which are no probabilities"):
        open_tagger(folder, kind="wd")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": {"height": 3000, "width": 16}}, "give 1 to 2048 pixels"),
        ({"size": {"height": "16", "width": 16}}, "give 1 to 2048 pixels"),
        ({"size": {"shortest_edge": 0}}, "give 1 to 2048 pixels"),
        ({"size": None}, "the size None: give 1 to 2048 pixels"),
        ({"size": {"longest_edge": 9}}, "give height and width, or shortest_edge"),
        ({"do_center_crop": True}, "the size None"),
        ({"resample": [2]}, "resample .2. is not supported"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std 0.0: give a number from 1e-06"),
        ({"image_mean": [0.5, 0.5]}, "image_mean .0.5, 0.5.: give three numbers"),
        ({"image_mean": None}, "image_mean None"),
        ({"rescale_factor": float("nan")}, "rescale_factor nan"),
        ({"do_resize": "yes"}, "do_resize yes: give true or false"),
    ],
)
def test_a_preprocessor_that_cannot_be_is_refused(
    change: dict[str, Any], message: str, tiny_tagger_folder: Path, tmp_path: Path
) -> None:
    config = json.loads((tiny_tagger_folder / "preprocessor_config.json").read_text()) | change
    (tmp_path / "p.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        read_preprocessing(tmp_path / "p.json")


def test_a_key_that_a_taggers_file_has_twice_is_refused(tiny_tagger_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_tagger_folder, tmp_path / "tagger")
    for name, more, twice in (
        ("preprocessor_config.json", '"image_mean": [0, 0, 0]', "image_mean"),
        ("config.json", '"more": {"0": "smile", "0": "hat"}', "0"),
    ):
        before = (folder / name).read_text()
        (folder / name).write_text(f"{before.rstrip()[:-1]}, {more}}}")
        with pytest.raises(InputError, match=rf"{name}: cannot be read as JSON \('{twice}' is there twice\)"):
            open_tagger(folder)
        (folder / name).write_text(before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers 1000000 is beyond 512"),
        ({"hidden_size": 10**9}, "hidden_size 1000000000 is beyond"),
        ({"hidden_size": 8192, "intermediate_size": 8192}, "describes a model of .* numbers"),
        ({"id2label": None, "num_labels": 10**7}, "num_labels 10000000 is beyond"),
        ({"id2label": {"a": "smile"}}, "id2label must be a table"),
        ({"id2label": {"0": "smile", "5": "hat"}}, "id2label must name every output|cannot load it"),
        ({"image_size": 0}, "image_size|cannot load it"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_before_anything_is_made(
    change: dict[str, Any], message: str, tiny_tagger_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_tagger_folder, tmp_path / "tagger")
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        open_tagger(folder)


def test_a_tagger_whose_weights_are_not_numbers_is_refused(tiny_tagger_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_tagger_folder, tmp_path / "nan")
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.weight"][0] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match="which are no probabilities"):
        open_tagger(folder)


def test_images_of_a_size_that_is_not_taken_are_one_line(tiny_tagger_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_tagger_folder, tmp_path / "tagger")
    config = json.loads((folder / "preprocessor_config.json").read_text()) | {"do_resize": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    tagger = open_tagger(folder)
    assert tagger.probabilities(pictures(1, 16, 16)).shape == (1, len(tagger.tags))
    with pytest.raises(InputError, match=r"tagger: does not take images of 24 x 16 \("):
        tagger.probabilities(pictures(1, 16, 24))
