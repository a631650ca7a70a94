"""Tiny CLIP, DINOv2, ViT, ResNet and SigLIP models: the encoders against transformers' own, and their figures."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark.app.cli import main
from benchmark.errors import InputError
from benchmark.evaluate.completing import complete_rows
from benchmark.evaluate.results import Rows, RowSpec
from benchmark.features import references
from benchmark.features.classifier import ClassifierFeatures
from benchmark.features.encoders import ClipEncoder, PooledEncoder, open_encoder
from benchmark.metrics.comparison import compare
from benchmark.metrics.secondary import References
from benchmark.pipelines.generation import FakeGenerator, GenerationSettings
from benchmark.prompts.prompt_set import make_prompts
from benchmark.prompts.vocabulary import vocabulary_from_tags
from benchmark.report.page import as_html
from benchmark.report.tables import as_markdown
from benchmark.taggers.tagger import FakeTagger


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_pipeline_folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPModel

    made = tmp_path_factory.mktemp("clip") / "clip"
    shutil.copytree(tiny_pipeline_folder / "tokenizer", made)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, "vocab_size": 400, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(text_config=text, vision_config={**size, "image_size": 16, "patch_size": 8}, projection_dim=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(60)
        CLIPModel(config).save_pretrained(made)
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 16},
        "crop_size": {"height": 16, "width": 16},
        "do_center_crop": True,
        "do_normalize": True,
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
        "resample": 3,
    }
    (made / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return made


def test_embeddings_are_those_of_the_whole_model(folder: Path) -> None:
    from transformers import CLIPModel

    encoder = ClipEncoder(folder)
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    texts = ["smile", "red dress, (hat:1.4)", "blonde hair, " * 60]
    model = CLIPModel.from_pretrained(folder).eval()
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.48, 0.46, 0.41]), torch.tensor([0.27, 0.26, 0.28])
    words = ["smile", "red dress, hat", "blonde hair, " * 60]
    ids = encoder._tokenizer(words, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    with torch.inference_mode():
        out = model(input_ids=ids, pixel_values=(pixels - mean[:, None, None]) / std[:, None, None])
    seen, read = encoder.images(images), encoder.texts(texts)
    assert seen.dtype == np.float32
    for ours, theirs in ((seen, out.image_embeds), (read, out.text_embeds)):
        assert ours / np.linalg.norm(ours, axis=1, keepdims=True) == pytest.approx(theirs.numpy(), abs=1e-5)
    assert encoder.images(images[:0]).shape == (0, 8)
    assert encoder.name == "clip"


def test_diversity_and_the_rest_come_with_the_tables_and_survive_the_disk(folder: Path, tmp_path: Path) -> None:
    tags = tuple("abcd")
    prompts = make_prompts(vocabulary_from_tags(tags, 4), 6, tags_per_prompt=2, seed=0, images=2)
    encoder, tagger = ClipEncoder(folder), FakeTagger(tags)
    spec = RowSpec("m", "0" * 64, GenerationSettings(), prompts, tags, {"tagger": tagger.fingerprint})
    spec = replace(spec, extractors={"clip": encoder.fingerprint})
    rows = Rows(tmp_path, spec)
    done = complete_rows(rows, lambda _: FakeGenerator(tags), {"tagger": tagger}, extractors={"clip": encoder})
    images = np.concatenate(list(FakeGenerator(tags).generate(prompts)))
    assert done.features["clip"] == pytest.approx(encoder.images(images), abs=1e-6)
    texts = encoder.texts([p.text for p in prompts[::2]])
    (model,) = compare({"m": done}, lambda _: "all", {"tagger": 0.5}, References(texts, {"clip": "clip"}))
    assert set(model.metrics) == {"diversity by clip", "CLIP score", "R-precision of 6"}
    assert 0 < model.metrics["diversity by clip"].value < 1
    assert "| model | diversity" in as_markdown([model])
    settings = dict.fromkeys(("images", "prompts", "width", "height", "steps", "sampler", "guidance"), 1)
    assert "<circle" in as_html([model], settings, [])
    assert compare({"m": done}, lambda _: "all", {"tagger": 0.5})[0].metrics == {}


def test_a_folder_that_is_no_clip_model_is_named(tmp_path: Path, tiny_tagger_folder: Path) -> None:
    with pytest.raises(InputError, match=r"is no CLIP folder; it has no config\.json"):
        ClipEncoder(tmp_path)
    with pytest.raises(InputError, match=r"it has no tokenizer_config\.json"):
        ClipEncoder(tiny_tagger_folder)


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ViTConfig, ViTForImageClassification

    made = tmp_path_factory.mktemp("classes") / "classes"
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(61)
        model = ViTForImageClassification(ViTConfig(**size, image_size=16, patch_size=8, num_labels=5))
        torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(made)
    (made / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 16, "width": 16}}))
    return made


def test_classes_are_those_of_the_model(classifier_folder: Path, tiny_tagger_folder: Path, tmp_path: Path) -> None:
    from transformers import ViTForImageClassification

    extractor = ClassifierFeatures(classifier_folder, batch_size=3)
    images = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        logits = ViTForImageClassification.from_pretrained(classifier_folder).eval()(pixels).logits
    said = extractor.images(images)
    assert said == pytest.approx(torch.softmax(logits, dim=1).numpy(), abs=1e-5)
    assert extractor.images(images[:0]).shape == (0, 5)
    with pytest.raises(InputError, match="is a tagger"):
        ClassifierFeatures(tiny_tagger_folder)
    with pytest.raises(InputError, match=r"is no image classifier's folder; it has no config\.json"):
        ClassifierFeatures(tmp_path)


def test_reference_images_are_read_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(1)
    (tmp_path / "pictures").mkdir()
    for number, size in enumerate(((20, 30), (16, 16))):
        pixels = draw.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    see_through = np.zeros((4, 4, 4), dtype=np.uint8)
    Image.fromarray(see_through, "RGBA").save(tmp_path / "clear.png")
    assert (references.read_picture(tmp_path / "clear.png") == 255).all()
    encoder = ClipEncoder(folder)
    seen = references.reference_features(tmp_path / "pictures", encoder, tmp_path / "cache")
    expected = np.concatenate([encoder.images(p[None]) for p in references.pictures(tmp_path / "pictures")])
    assert np.array_equal(seen, expected)
    monkeypatch.setattr(encoder, "images", None)
    assert np.array_equal(references.reference_features(tmp_path / "pictures", encoder, tmp_path / "cache"), expected)
    with pytest.raises(InputError, match="there is no such folder of reference images"):
        references.picture_files(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no images"):
        references.picture_files(tmp_path / "cache")
    (tmp_path / "pictures" / "cut.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"cut\.png: cannot be read as an image"):
        list(references.pictures(tmp_path / "pictures"))


def test_every_look_from_the_command_line_without_drawing_twice(
    folder: Path,
    classifier_folder: Path,
    tiny_family: dict[str, Path],
    tiny_pipeline_folder: Path,
    tiny_tagger_folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [str(tiny_family["base"]), str(tiny_family["warm"]), "--pipeline", str(tiny_pipeline_folder)]
    words += f"--tagger {tiny_tagger_folder} --tags top:6 --prompts 5 --images 2 --tags-per-prompt 2".split()
    words += f"--steps 1 --size 32x32 --device cpu --keep-images --output {tmp_path / 'out'}".split()
    assert main([*words, "--clip", str(folder)]) == 0
    assert "| model " in capfd.readouterr().out
    monkeypatch.setattr("benchmark.app.studio.load_pipeline", None)
    with Image.open(tmp_path / "out" / "scatter.png") as chart:
        assert chart.size == (1280, 760)
    pictures = next((tmp_path / "out" / "rows").glob("base-*")) / "images"
    more = [
        "--clip",
        str(folder),
        "--inception-classifier",
        str(classifier_folder),
        "--frechet",
        str(pictures),
        "--json",
    ]
    assert main([*words, *more]) == 0
    base, warm = json.loads(capfd.readouterr().out)["models"]
    assert set(base["metrics"]) == {
        "diversity by clip",
        "CLIP score",
        "R-precision of 5",
        "Inception Score",
        "Fréchet distance by clip",
    }
    assert base["metrics"]["Fréchet distance by clip"]["value"] == pytest.approx(0, abs=1e-5)  # its own images
    assert 1 <= base["metrics"]["Inception Score"]["value"] <= 5
    assert set(warm["metric_difference"]) == set(base["metrics"])
    assert main([*words, "--frechet", str(pictures)]) == 2
    assert "Name one with --encoder or --clip" in capfd.readouterr().err


def save_encoder(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    described = {
        "size": {"height": 16, "width": 16},
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.2] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    return folder


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(62)
        model = Dinov2Model(Dinov2Config(**SMALL))
    return save_encoder(model, tmp_path_factory.mktemp("encoder") / "dino")


def test_any_image_encoder_is_pooled_as_it_pools_itself(
    dino_folder: Path, tiny_tagger_folder: Path, tmp_path: Path
) -> None:
    import transformers

    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.2
    wide = {**SMALL, "intermediate_size": 32}
    narrow = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
    siglip = {"vision_config": wide, "text_config": {**SMALL, "intermediate_size": 32, "vocab_size": 99}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(63)
        folders = {
            "dino": (dino_folder, 16),
            "vit": (save_encoder(transformers.ViTModel(transformers.ViTConfig(**wide)), tmp_path / "vit"), 16),
            "resnet": (
                save_encoder(transformers.ResNetModel(transformers.ResNetConfig(**narrow)), tmp_path / "resnet"),
                12,
            ),
            "siglip": (
                save_encoder(transformers.SiglipModel(transformers.SiglipConfig(**siglip)), tmp_path / "siglip"),
                16,
            ),
        }
        masked = transformers.ViTMAEModel(
            transformers.ViTMAEConfig(**{**wide, "patch_size": 2})
        )  # 64, of which it sees 16
    for kind, (folder, width) in folders.items():
        encoder = open_encoder(folder)
        assert isinstance(encoder, PooledEncoder)
        model = transformers.AutoModel.from_pretrained(folder).eval()
        with torch.inference_mode():
            seen = getattr(model, "vision_model", model)(pixel_values=pixels).pooler_output.flatten(1)
        assert encoder.images(images) == pytest.approx(seen.numpy(), abs=1e-5), kind
        assert encoder.images(images[:0]).shape == (0, width)
    # a ViT that was trained as a classifier has no pooler: transformers would invent one
    tagger = transformers.ViTForImageClassification.from_pretrained(tiny_tagger_folder).eval()
    encoder = open_encoder(tiny_tagger_folder)
    with torch.inference_mode():
        inner = tagger.vit(encoder.preprocessing(torch.from_numpy(images).permute(0, 3, 1, 2) / 255))
    assert encoder.images(images) == pytest.approx(inner.last_hidden_state[:, 0].numpy(), abs=1e-5)
    with pytest.raises(InputError, match="embeds one image in two ways"):
        open_encoder(save_encoder(masked, tmp_path / "masked"))


def test_what_is_no_image_encoder_is_named(folder: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    assert isinstance(open_encoder(folder), ClipEncoder)
    with pytest.raises(InputError, match=r"is no image encoder's folder; it has no config\.json"):
        open_encoder(tmp_path)
    words = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    written = save_encoder(BertModel(BertConfig(**words, vocab_size=99)), tmp_path / "bert")
    with pytest.raises(InputError, match="is no image encoder; it does not take an image"):
        open_encoder(written)


def test_another_encoder_from_the_command_line_and_beside_clip(
    folder: Path,
    dino_folder: Path,
    tiny_family: dict[str, Path],
    tiny_pipeline_folder: Path,
    tiny_tagger_folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = [str(tiny_family["base"]), "--pipeline", str(tiny_pipeline_folder), "--json"]
    words += f"--tagger {tiny_tagger_folder} --tags top:6 --prompts 5 --images 2 --tags-per-prompt 2".split()
    words += f"--steps 1 --size 32x32 --device cpu --keep-images --output {tmp_path / 'out'}".split()
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, pixels in enumerate(np.random.default_rng(1).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    words += ["--frechet", str(pictures), "--encoder", str(dino_folder)]
    assert main(words) == 0
    told = capfd.readouterr()
    (base,) = json.loads(told.out)["models"]
    assert set(base["metrics"]) == {"diversity by dino", "Fréchet distance by dino"}
    assert base["metrics"]["Fréchet distance by dino"]["value"] > 0
    assert "encoder dino: reads no prompts, so there is no CLIP score and no R-precision" in told.err
    assert "diversity: cannot" not in told.err
    assert "diversity by dino" in (tmp_path / "out" / "report.html").read_text()
    alone = base["metrics"]
    assert main([*words, "--clip", str(folder)]) == 0
    told = capfd.readouterr()
    (base,) = json.loads(told.out)["models"]
    of_clip = {"diversity by clip", "Fréchet distance by clip", "CLIP score", "R-precision of 5"}
    assert set(base["metrics"]) == {*alone, *of_clip}
    assert {name: base["metrics"][name] for name in alone} == alone
    assert "reads no prompts" not in told.err
    assert main([*words, "--images", "1"]) == 0
    assert "diversity: cannot be told from one image of each prompt" in capfd.readouterr().err
