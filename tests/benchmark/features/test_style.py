"""Style loss against the published formula in loops, LoRAs against sums written out, both from a command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmark.app.cli import main
from benchmark.errors import InputError
from benchmark.features.style import StyleFeatures, read_vgg

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28)
DRAW = np.random.default_rng(0)


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGG-19's layout at a thirty-second of its widths, random."""
    noise, before, tensors = torch.Generator().manual_seed(0), 3, {}
    for number in CONVOLUTIONS:
        after = 2 if number < 5 else 4 if number < 10 else 8 if number < 19 else 16
        tensors[f"features.{number}.weight"] = torch.randn(after, before, 3, 3, generator=noise) / before**0.5
        tensors[f"features.{number}.bias"] = torch.randn(after, generator=noise)
        before = after
    tensors["classifier.0.weight"] = torch.zeros(2)
    file = tmp_path_factory.mktemp("vgg") / "vgg19.safetensors"
    save_file(tensors, file)
    return file


@pytest.fixture
def references(tmp_path: Path) -> Path:
    folder = tmp_path / "style"
    folder.mkdir()
    for number in range(2):
        pixels = DRAW.integers(0, 256, (32, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def features(file: Path, image: np.ndarray) -> list[torch.Tensor]:
    """torchvision's own sequence of modules, outputs of the rectifiers after conv1_1 ... conv5_1, [C, h, w]."""
    tensors = load_file(file)
    modules: dict[int, torch.nn.Module] = {}
    for number in CONVOLUTIONS:
        weight = tensors[f"features.{number}.weight"]
        modules[number] = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        modules[number].load_state_dict({"weight": weight, "bias": tensors[f"features.{number}.bias"]})
        modules[number + 1] = torch.nn.ReLU()
    modules |= {number: torch.nn.MaxPool2d(2, 2) for number in (4, 9, 18, 27)}
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((torch.from_numpy(image) / 255 - mean) / std).permute(2, 0, 1)[None]
    seen = []
    with torch.no_grad():
        for number in range(30):
            x = modules[number](x)
            if number in (1, 6, 11, 20, 29):
                seen.append(x[0])
    return seen


def test_the_loss_is_the_published_one(vgg: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    reference, image = (DRAW.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(2))
    Image.fromarray(reference).save(tmp_path / "one" / "a.png")
    extractor = StyleFeatures(vgg, tmp_path / "one", 32)
    expected = []
    for a, b in zip(features(vgg, image), features(vgg, reference), strict=True):
        n, m = a.shape[0], a.shape[1] * a.shape[2]
        apart = 0.0
        for i in range(n):
            for j in range(n):
                apart += float((a[i] * a[j]).sum() - (b[i] * b[j]).sum()) ** 2
        expected.append(apart / (4 * n**2 * m**2))
    found = extractor.images(np.stack([image, reference]))
    assert found.shape == (2, 5)
    assert found[0] == pytest.approx(expected, rel=1e-3)
    assert found[1] == pytest.approx([0] * 5, abs=1e-9)


def test_several_references_are_one_mean_and_large_ones_are_made_smaller(vgg: Path, references: Path) -> None:
    extractor, small = StyleFeatures(vgg, references, 32), StyleFeatures(vgg, references, 16)
    with Image.open(references / "0.png") as first, Image.open(references / "1.png") as second:
        grams = [extractor.grams(np.array(picture)) for picture in (first, second)]
    for mean, a, b in zip(extractor._reference, *grams, strict=True):
        assert torch.allclose(mean, (a + b) / 2, rtol=1e-4)
    assert extractor.fingerprint != small.fingerprint
    assert not torch.allclose(extractor._reference[0], small._reference[0], rtol=1e-3)
    assert extractor.images(np.empty((0, 32, 32, 3), np.uint8)).shape == (0, 5)
    with pytest.raises(InputError, match="too small"):
        StyleFeatures(vgg, references, 8)


def test_files_that_are_no_vgg(vgg: Path, tmp_path: Path) -> None:
    tensors = load_file(vgg)
    save_file({k: v for k, v in tensors.items() if k != "features.7.bias"}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"it has no 'features\.7\.bias'"):
        read_vgg(tmp_path / "a.safetensors")
    save_file({**tensors, "features.10.weight": torch.zeros(8)}, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match=r"'features\.10\.weight' is \[8\]"):
        read_vgg(tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="no safetensors file"):
        read_vgg(tmp_path / "c.safetensors")


def written(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


def test_lora_and_style_from_the_command_line(
    vgg: Path,
    references: Path,
    tiny_family: dict[str, Path],
    tiny_pipeline_folder: Path,
    tiny_tagger_folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    noise = torch.Generator().manual_seed(3)
    file = written(
        tmp_path,
        {
            f"{name}.lora_down.weight": 9 * torch.randn(2, 8, generator=noise),
            f"{name}.lora_up.weight": torch.randn(8, 2, generator=noise),
        },
    )
    words = (
        f"{tiny_family['base']} --pipeline {tiny_pipeline_folder} --tagger {tiny_tagger_folder} --tags top:6".split()
    )
    words += f"--prompts 4 --tags-per-prompt 2 --steps 1 --size 32x32 --device cpu --output {tmp_path / 'out'}".split()
    words += f"--lora {file} --style-vgg {vgg} --style-reference {references}".split()
    assert main([*words, "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert [model["name"] for model in told["models"]] == ["base", "base + lora"]
    base, added = (model["metrics"]["style loss"]["value"] for model in told["models"])
    assert base != added
    (table,) = told["tables"]
    assert table["head"][:4] == ["model", "accuracy by tagger", "with the LoRA", "difference"]
    assert table["rows"][0][4]["score"]["value"] == base
    assert table["rows"][0][6]["score"]["value"] == pytest.approx(added - base, rel=1e-5)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "never choose by it alone" in page
    assert "With the LoRA" in page
    assert main([*words[:-2]]) == 2
    assert "needs both --style-vgg FILE and --style-reference FOLDER" in capfd.readouterr().err
