"""Text encoders among what is blended: their keys, layers, the live blend, the files written, adapters, refusals."""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from benchmark.pipelines.diffusers_generator import DiffusersGenerator
from benchmark.pipelines.generation import GenerationSettings
from benchmark.pipelines.loading import load_pipeline
from benchmark.prompts.prompt_set import Prompt
from merger.app.cli import main
from merger.app.runtime import text_encoders_of
from merger.blend.arithmetic import blend
from merger.blend.differences import Difference
from merger.blend.live import LiveDenoiser
from merger.checkpoints.adapter import open_donor
from merger.checkpoints.checkpoint import Checkpoint, open_checkpoint
from merger.checkpoints.compatibility import check_compatible, remarks
from merger.checkpoints.headers import read_header
from merger.checkpoints.inspect import format_inspection, inspect_files
from merger.checkpoints.names.text import text_names_in
from merger.checkpoints.text_encoders import text_tensors, with_text_encoders
from merger.errors import CheckpointError, ConfigError, RecipeError
from merger.export.forms import ExportOptions, export_as
from merger.export.mecha import mecha_text
from merger.export.recipe import Recipe
from merger.export.recipe_files import open_recipe
from merger.export.write import verify
from merger.layers.components import COMPONENTS
from merger.layers.grouping import group
from merger.layers.text import group_text
from tests.merger.text_models import FAMILIES, TEXT, Family, make_family

SETTINGS = GenerationSettings(steps=2, sampler="ddim", guidance=3.0, width=32, height=32, batch_size=2)
PROMPTS = tuple(Prompt(i, text, (text,), 70 + i) for i, text in enumerate(("blue hair, smile", "hat")))


@pytest.fixture(scope="module")
def family(
    request: pytest.FixtureRequest, tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Family:
    name = getattr(request, "param", "sd1")
    return make_family(name, tmp_path_factory.mktemp(name), tiny_pipeline_folder / "tokenizer")


every = pytest.mark.parametrize("family", list(FAMILIES), indirect=True)


def opened(family: Family) -> list[Checkpoint]:
    base = with_text_encoders(open_checkpoint(family.files["base"]))
    return [base, *(open_donor(family.files[name], base) for name in ("warm", "cool"))]


def uneven(layers: Any) -> dict[str, dict[str, float]]:
    draw = np.random.default_rng(3)
    return {layer: {donor: float(draw.uniform(-0.4, 0.8)) for donor in ("warm", "cool")} for layer in layers}


@every
def test_every_tensor_is_found_as_the_network_has_it(family: Family) -> None:
    pipeline = load_pipeline(family.files["warm"], config=family.pipeline)
    warm = opened(family)[1]
    assert warm.lent == ()
    live = {
        f"{component}.{name.removeprefix('text_model.')}": tensor
        for component in family.components
        for name, tensor in getattr(pipeline, component).state_dict().items()
    }
    assert warm.text.keys() == live.keys()
    for name, tensor in live.items():
        assert warm.text[name].shape == tuple(tensor.shape)
        assert torch.equal(warm.read(name).float(), tensor), name


@every
@pytest.mark.parametrize("granularity", ["stage", "block", "module", "tensor"])
def test_every_tensor_is_in_one_layer(family: Family, granularity: str) -> None:
    base = opened(family)[0]
    layers = group(base.blended, granularity)
    named = [name for names in layers.values() for name in names]
    assert sorted(named) == sorted(base.blended)
    assert all(layers.values())
    plain = group(base.denoiser, granularity)
    assert list(layers)[: len(plain)] == list(plain)
    assert {layer: layers[layer] for layer in plain} == plain
    own = list(layers)[len(plain) :]
    called = ["TE", "TE2"][: len(family.components)]
    if granularity in ("stage", "block"):
        assert own == called
    if granularity == "module":
        # of SDXL's first encoder the layer before the last is used: its end goes with it
        first = ["TE.embed", "TE.L00", "TE.L01", "TE.out"] if family.name != "sdxl" else ["TE.embed", "TE.L00"]
        second = ["TE2.embed", "TE2.L00", "TE2.L01", "TE2.out"]
        assert own == first + (second if family.name == "sdxl" else [])


@pytest.mark.parametrize(
    ("listed", "wanted"),
    [
        ("sd1-ldm", {"TE": 196}),
        ("sdxl-sgm", {"TE": 196, "TE2": 517}),
        ("sd3-comfyui", {"TE": 197, "TE2": 517, "TE3": 219}),
        ("flux-flux", {"TE": 196, "TE2": 219}),
    ],
)
def test_every_key_that_others_list_has_a_place(listed: str, wanted: dict[str, int]) -> None:
    """Those of real checkpoints, as sd-mecha ships them."""
    found = importlib.util.find_spec("sd_mecha")  # found, not imported: only its data is wanted
    if found is None or found.origin is None:
        pytest.skip("sd-mecha is not installed")
    file = Path(found.origin).parent / "extensions" / "builtin" / "model_configs" / f"{listed}.yaml"
    table = yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["components"]
    encoders = {name: keys for name, keys in table.items() if name in ("clip_l", "clip_g", "t5xxl")}
    shapes = {key: tuple(each["shape"]) for keys in encoders.values() for key, each in keys.items()}
    names = text_names_in(shapes, "x")
    rows = {name: sum(piece.stop - piece.start for piece in place.pieces) for name, place in names.items()}
    taken = {piece.key for place in names.values() for piece in place.pieces}
    assert {key.rpartition(".")[2] for key in shapes if key not in taken} <= {"position_ids", "logit_scale"}
    assert sum(rows.values()) == sum(shapes[key][0] for key in taken)  # and no row in two places
    assert {layer: len(own) for layer, own in group_text(names, "block").items()} == wanted
    by_module = group_text(names, "module")
    assert sorted(name for own in by_module.values() for name in own) == sorted(names)


def test_the_block_that_stable_diffusion_2_does_not_use_stays_the_bases() -> None:
    prefix = "cond_stage_model.model."
    shapes = {f"{prefix}transformer.resblocks.{n}.ln_1.weight": (4,) for n in (0, 22, 23)}
    shapes |= {f"{prefix}positional_embedding": (77, 4), f"{prefix}text_projection": (4, 4), f"{prefix}logit_scale": ()}
    assert list(text_names_in(shapes, "x")) == [
        "text_encoder.embeddings.position_embedding.weight",
        "text_encoder.encoder.layers.0.layer_norm1.weight",
        "text_encoder.encoder.layers.22.layer_norm1.weight",
    ]


@pytest.fixture(scope="module")
def images() -> Callable[[Any], np.ndarray]:
    def draw(pipeline: Any, **options: Any) -> np.ndarray:
        return np.concatenate(list(DiffusersGenerator(pipeline, SETTINGS, **options).generate(PROMPTS)))

    return draw


@every
def test_the_live_blend_draws_what_the_exported_file_does(
    family: Family, tmp_path: Path, images: Callable[..., np.ndarray]
) -> None:
    base, *donors = opened(family)
    layers = group(base.blended, "block")
    weights = uneven(layers)
    pipeline = load_pipeline(family.files["base"], config=family.pipeline)
    live = LiveDenoiser(pipeline.unet, base, donors, layers, text_encoders_of(pipeline, family.components, base))
    plain = images(pipeline)
    live.apply(weights)
    drawn = images(pipeline)
    recipe = Recipe.of(base, donors, "block", weights, components=COMPONENTS)
    file = export_as(recipe, tmp_path / "x.safetensors", base=base, donors=donors)
    found = verify(file)
    assert found.ok
    assert Recipe.from_metadata(read_header(file).metadata) == recipe == found.recipe
    mine, made = read_header(family.files["base"]), read_header(file)
    assert [*made.tensors] == [*mine.tensors]
    assert {k: (e.dtype, e.shape) for k, e in made.tensors.items()} == {
        k: (e.dtype, e.shape) for k, e in mine.tensors.items()
    }
    assert np.array_equal(images(load_pipeline(file, config=family.pipeline)), drawn)
    # both parts matter to the picture
    without = {layer: row for layer, row in weights.items() if not layer.startswith("TE")}
    live.apply(without)
    unmoved = images(pipeline)
    assert not np.array_equal(unmoved, drawn)
    assert not np.array_equal(unmoved, plain)
    live.restore()
    assert np.array_equal(images(pipeline), plain)

    how = ExportOptions(format="diffusers", pipeline=family.pipeline)
    folder = export_as(recipe, tmp_path / "folder", how, base=base, donors=donors)
    assert np.array_equal(images(load_pipeline(folder)), drawn)
    again = verify(folder)
    assert again.ok
    assert again.tensors_compared == len(base.blended)
    # and a folder as the base gives a folder, with all else that its files hold
    second = with_text_encoders(open_checkpoint(folder, name="base"))
    others = [open_donor(family.files[name], second) for name in ("warm", "cool")]
    assert second.text.keys() == base.text.keys()
    other = Recipe.of(
        second, others, "module", {"TE.L00": {"warm": 1.0}, "OUT00.resnet": {"cool": 0.5}}, components=COMPONENTS
    )
    third = export_as(other, tmp_path / "third", base=second, donors=others)
    assert verify(third).ok
    name = "text_encoder.encoder.layers.0.mlp.fc1.weight"
    loaded = load_pipeline(third).text_encoder.state_dict()
    bare = name.removeprefix("text_encoder.")
    assert torch.equal(loaded.get(bare, loaded.get(f"text_model.{bare}")), donors[0].read(name).float())
    spoilt = third / "text_encoder" / "model.safetensors"
    tensors = load_file(spoilt)
    odd = next(key for key in tensors if key.endswith("final_layer_norm.bias"))
    save_file(tensors | {odd: tensors[odd] + 1}, spoilt, metadata=read_header(spoilt).metadata)
    assert verify(third).differing == (f"text_encoder/{odd}",)


@pytest.mark.parametrize("family", ["sdxl"], indirect=True)
def test_sources_may_stay_in_their_files(family: Family) -> None:
    base, *donors = opened(family)
    layers = group(base.blended, "module")
    checksums = []
    for hold in ("device", "file"):
        pipeline = load_pipeline(family.files["base"], config=family.pipeline)
        encoders = text_encoders_of(pipeline, family.components, base)
        live = LiveDenoiser(pipeline.unet, base, donors, layers, encoders, hold=hold)
        checksums.append((live.text_checksum, live.apply(uneven(layers)), live.text_checksum))
    assert checksums[0] == checksums[1]
    assert len(set(checksums[0])) == 3


@every
def test_fused_and_turned_tensors_are_blended_in_their_places(family: Family, tmp_path: Path) -> None:
    base, warm, _ = opened(family)
    component = family.components[-1]
    query = f"{component}.encoder.layers.1.self_attn.q_proj.weight"
    weights = {query: {"warm": 1.0}}
    if family.name == "sdxl":
        weights[f"{component}.text_projection.weight"] = {"warm": 1.0}
    recipe = Recipe.of(base, [warm], "tensor", weights, components=COMPONENTS)
    made = load_file(export_as(recipe, tmp_path / "x.safetensors", base=base, donors=[warm]))
    mine, theirs = load_file(base.path), load_file(warm.path)
    changed = {key for key in made if not torch.equal(made[key], mine[key])}
    prefix = FAMILIES[family.name][2][component][2]
    if family.name == "sd1":
        assert changed == {f"{prefix}text_model.encoder.layers.1.self_attn.q_proj.weight"}
        return
    fused = f"{prefix}transformer.resblocks.1.attn.in_proj_weight"
    rows = mine[fused].shape[0] // 3
    assert torch.equal(made[fused], torch.cat([theirs[fused][:rows], mine[fused][rows:]]))
    if family.name == "sdxl":
        turned = f"{prefix}text_projection"
        assert changed == {fused, turned}
        assert torch.equal(made[turned], theirs[turned])


def test_embeddings_are_made_anew_only_where_the_text_encoder_changed(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    import benchmark.pipelines.kept_text

    encode, encoded = benchmark.pipelines.kept_text.encode_clip, []

    def counted(pipeline: Any, prompt: str, *args: Any, **kwargs: Any) -> Any:
        encoded.append(prompt)
        return encode(pipeline, prompt, *args, **kwargs)

    monkeypatch.setattr(benchmark.pipelines.kept_text, "encode_clip", counted)
    base, *donors = opened(family)
    pipeline = load_pipeline(family.files["base"], config=family.pipeline)
    layers = group(base.blended, "block")
    live = LiveDenoiser(pipeline.unet, base, donors, layers, {"text_encoder": pipeline.text_encoder})
    generator = DiffusersGenerator(pipeline, SETTINGS, lambda: live.text_checksum)

    def draw(weights: dict[str, dict[str, float]]) -> int:
        encoded.clear()
        live.apply(weights)
        list(generator.generate(PROMPTS))
        return len(encoded)

    assert [draw({}), draw({"IN04": {"warm": 0.5}}), draw({"IN04": {"warm": 0.2}})] == [3, 0, 0]
    assert [draw({"TE": {"warm": 0.5}}), draw({"TE": {"warm": 0.5}, "M00": {"cool": 1.0}}), draw({})] == [3, 0, 3]


@pytest.fixture(scope="module")
def sd3_folders(
    denoiser_config: Callable[[str], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Two folders of SD 3's networks: a transformer, two of CLIP's encoders that project, a T5 with a tied table."""
    import diffusers
    import transformers

    clip = TEXT | {"vocab_size": 30}
    t5 = transformers.T5Config(vocab_size=30, d_model=12, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    folders = tuple(tmp_path_factory.mktemp("sd3") / name for name in ("base", "warm"))
    for seed, folder in enumerate(folders):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            parts = {
                "transformer": diffusers.SD3Transformer2DModel.from_config(denoiser_config("sd3")),
                "text_encoder": transformers.CLIPTextModelWithProjection(
                    transformers.CLIPTextConfig(**clip, projection_dim=4)
                ),
                "text_encoder_2": transformers.CLIPTextModelWithProjection(
                    transformers.CLIPTextConfig(**clip, projection_dim=6)
                ),
                "text_encoder_3": transformers.T5EncoderModel(t5),
            }
        for name, part in parts.items():
            part.save_pretrained(folder / name)
    return folders[0], folders[1]


def test_a_third_text_encoder_is_blended_in_a_folder(sd3_folders: tuple[Path, Path], tmp_path: Path) -> None:
    import transformers

    base = with_text_encoders(open_checkpoint(sd3_folders[0]))
    warm = open_donor(sd3_folders[1], base)
    assert [layer for layer in group(base.blended, "block") if layer.startswith("TE")] == ["TE", "TE2", "TE3"]
    own = [layer for layer in group(base.blended, "module") if layer.startswith("TE3")]
    assert own == ["TE3.embed", "TE3.L00", "TE3.L01", "TE3.out"]
    first = [layer for layer in group(base.blended, "module") if layer.startswith("TE.")]
    assert first == ["TE.embed", "TE.L00", "TE.L01", "TE.out"]  # with a projection its end is in use
    weights = {"TE": {"warm": 0.2}, "TE3": {"warm": 0.6}}
    recipe = Recipe.of(base, [warm], "block", weights, components=COMPONENTS)
    folder = export_as(recipe, tmp_path / "blend", base=base, donors=[warm])
    assert verify(folder).ok
    network = transformers.T5EncoderModel.from_pretrained(sd3_folders[0] / "text_encoder_3")
    clips = [
        transformers.CLIPTextModelWithProjection.from_pretrained(sd3_folders[0] / name)
        for name in ("text_encoder", "text_encoder_2")
    ]
    encoders = dict(zip(("text_encoder", "text_encoder_2", "text_encoder_3"), (*clips, network), strict=True))
    transformer = diffusers_transformer(sd3_folders[0])
    LiveDenoiser(transformer, base, [warm], group(base.blended, "block"), encoders).apply(weights)
    again = transformers.T5EncoderModel.from_pretrained(folder / "text_encoder_3").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in network.state_dict().items())
    with pytest.raises(ConfigError, match=r"only if all are CLIP's \(SD 1, SD 2, SDXL\), and base has others"):
        text_encoders_of(SimpleNamespace(transformer=transformer, **encoders), tuple(encoders), base)


def diffusers_transformer(folder: Path) -> Any:
    import diffusers

    return diffusers.SD3Transformer2DModel.from_pretrained(folder / "transformer")


def test_donors_without_a_text_encoder_differ_in_nothing_there(family: Family, tmp_path: Path) -> None:
    tensors = load_file(family.files["warm"])
    alone = {key: tensor for key, tensor in tensors.items() if key.startswith("model.")}
    save_file(alone, tmp_path / "unet.safetensors")
    base, _, cool = opened(family)
    donor = open_donor(tmp_path / "unet.safetensors", base)
    assert check_compatible(base, [donor, cool]) == {}
    assert remarks([donor, cool], {}) == ["unet: holds no text encoder for TE, where its weights change nothing"]
    assert all(torch.equal(donor.read(name), base.read(name)) for name in base.text)
    recipe = Recipe.of(base, [donor], "block", {"TE": {"unet": 0.7}, "M00": {"unet": 1.0}}, components=COMPONENTS)
    file = export_as(recipe, tmp_path / "x.safetensors", base=base, donors=[donor])
    assert verify(file).ok
    made, mine = load_file(file), load_file(base.path)
    assert all(torch.equal(made[key], mine[key]) for key in made if key.startswith("cond_stage_model."))
    with pytest.raises(RecipeError, match="unet holds no text_encoder, and sd-mecha wants one"):
        mecha_text(recipe, base, [donor])


@every
def test_a_donor_may_be_kept_in_another_way_than_the_base(family: Family, tmp_path: Path) -> None:
    base, warm, _ = opened(family)
    load_pipeline(family.files["warm"], config=family.pipeline, dtype=torch.float16).save_pretrained(tmp_path / "warm")
    folder = open_donor(tmp_path / "warm", base)
    assert (folder.layout, folder.lent) == ("folder", ())
    assert all(torch.equal(folder.read(name), warm.read(name)) for name in base.text)


def lora(keys: dict[str, tuple[int, int]], **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """{up and down under each of these keys, which end in `{}`}."""
    draw = torch.Generator().manual_seed(4)
    tensors = dict(more)
    for key, (rows, columns) in keys.items():
        up, down = ("lora_B", "lora_A") if key.startswith("text_encoder") else ("lora_up", "lora_down")
        tensors[key.format(up)] = torch.randn(rows, 2, generator=draw)
        tensors[key.format(down)] = torch.randn(2, columns, generator=draw)
    return tensors


@pytest.mark.parametrize("family", ["sd1", "sdxl"], indirect=True)
@pytest.mark.parametrize("style", ["kohya", "peft", "old"])
def test_what_an_adapter_has_for_text_encoders_is_blended_too(family: Family, style: str, tmp_path: Path) -> None:
    base = opened(family)[0]
    module = "text_model.encoder.layers.0.self_attn.q_proj"
    alphas, keys = {}, {}
    for number, component in enumerate(family.components, 1):
        width = base.text[f"{component}.final_layer_norm.weight"].shape[0]
        if style == "kohya":
            te = "lora_te" if len(family.components) == 1 else f"lora_te{number}"
            flat = f"{te}_{module.replace('.', '_')}"
            keys[flat + ".{}.weight"] = (width, width)
            alphas[f"{flat}.alpha"] = torch.tensor(1.0)
        else:
            keys[f"{component}.{module}.{{}}.weight"] = (width, width)
    tensors = lora(keys, **alphas)
    if style == "old":
        tensors = {
            key.replace("q_proj.lora_B", "to_q_lora.up").replace("q_proj.lora_A", "to_q_lora.down"): tensor
            for key, tensor in tensors.items()
        }
    save_file(tensors, tmp_path / "style.safetensors")
    donor = open_donor(tmp_path / "style.safetensors", base)
    assert check_compatible(base, [donor]) == {}
    assert remarks([donor], {}) == []
    scale = 0.5 if style == "kohya" else 1.0
    pairs = iter(tensor for key, tensor in tensors.items() if not key.endswith("alpha"))
    changed = {f"{component}.encoder.layers.0.self_attn.q_proj.weight" for component in family.components}
    for component in family.components:
        name = f"{component}.encoder.layers.0.self_attn.q_proj.weight"
        up, down = next(pairs), next(pairs)
        torch.testing.assert_close(donor.read(name), base.read(name).float() + scale * up @ down)
        assert donor.text[name].dtype == torch.float32
    assert all(torch.equal(donor.read(name), base.read(name)) for name in base.blended if name not in changed)
    with pytest.raises(CheckpointError, match="changes text encoders only"):
        open_donor(tmp_path / "style.safetensors", open_checkpoint(base.path))


def test_an_adapter_that_does_not_fit_the_text_encoder_is_named(family: Family, tmp_path: Path) -> None:
    base = opened(family)[0]
    file = tmp_path / "style.safetensors"
    save_file(lora({"lora_te_text_model_encoder_layers_9_mlp_fc1.{}.weight": (4, 4)}), file)
    with pytest.raises(CheckpointError, match="no place for 'lora_te_text_model_encoder_layers_9_mlp_fc1'"):
        open_donor(file, base)
    save_file(lora({"text_encoder.text_model.x.{}.weight": (4, 4)}, **{"lora_te_what": torch.zeros(2, 2)}), file)
    with pytest.raises(CheckpointError, match="'lora_te_what' is no key of a LoRA's text encoder that is known"):
        open_donor(file, base)


def test_an_encoder_of_another_shape_is_one_line(family: Family, tmp_path: Path) -> None:
    base = opened(family)[0]
    key = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    tensors = load_file(family.files["warm"])
    save_file(tensors | {key: torch.zeros(9, 16)}, tmp_path / "wide.safetensors")
    with pytest.raises(CheckpointError, match=r"'text_encoder.embeddings.token_embedding.weight' is \[9, 16\]"):
        check_compatible(base, [open_donor(tmp_path / "wide.safetensors", base)])
    del tensors[key]
    save_file(tensors, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match=r"has no 'text_encoder\.embeddings"):
        check_compatible(base, [open_donor(tmp_path / "part.safetensors", base)])
    check_compatible(
        open_checkpoint(base.path), [open_checkpoint(tmp_path / "part.safetensors")]
    )  # the denoisers do fit
    alone = {key: tensor for key, tensor in tensors.items() if key.startswith("model.")}
    save_file(alone, tmp_path / "unet.safetensors")
    with pytest.raises(CheckpointError, match="holds no text encoder to blend"):
        with_text_encoders(open_checkpoint(tmp_path / "unet.safetensors"))


def test_the_denoiser_alone_would_lose_the_blended_text_encoder(family: Family, tmp_path: Path) -> None:
    base, warm, _ = opened(family)
    how = ExportOptions(denoiser_only=True)
    recipe = Recipe.of(base, [warm], "block", {"TE": {"warm": 0.5}}, components=COMPONENTS)
    with pytest.raises(RecipeError, match="the blend changes text encoders as well"):
        export_as(recipe, tmp_path / "x.safetensors", how, base=base, donors=[warm])
    recipe = Recipe.of(base, [warm], "block", {"M00": {"warm": 0.5}}, components=COMPONENTS)
    file = export_as(recipe, tmp_path / "x.safetensors", how, base=base, donors=[warm])
    assert set(read_header(file).tensors) == {info.key for info in base.denoiser.values()}
    assert verify(file).ok


def test_merge_from_a_hand_written_recipe(family: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table: dict[str, Any] = {
        "base": str(family.files["base"]),
        "donors": [str(family.files["warm"])],
        "weights": {"TE": {"warm": 0.5}},
        "components": ["denoiser", "text_encoder"],
    }
    file, output = tmp_path / "recipe.json", tmp_path / "blend.safetensors"
    file.write_text(json.dumps(table))
    assert main(["merge", str(file), "--output", str(output)]) == 0
    assert verify(output).ok
    base, warm, _ = opened(family)
    name = "text_encoder.encoder.layers.0.mlp.fc1.weight"
    wanted = blend(base.read(name).reshape(-1), [Difference(warm.read(name).reshape(-1))], [0.5])
    assert torch.equal(text_tensors_of(output)[name].reshape(-1), wanted)
    carried = Recipe.from_metadata(read_header(output).metadata)
    file.write_text(carried.to_json())
    assert open_recipe(file)[0] == carried
    for components, said in (
        ("denoiser", "must be a list"),
        (["text_encoder"], "the denoiser is always blended"),
        (["denoiser", "vae"], "there is no 'vae'"),
        ([["denoiser"]], "there is no"),
    ):
        file.write_text(json.dumps(table | {"components": components}))
        with pytest.raises(RecipeError, match=said):
            open_recipe(file)
    file.write_text(json.dumps({key: value for key, value in table.items() if key != "components"}))
    with pytest.raises(RecipeError, match="'TE' fits no layer"):
        open_recipe(file)
    capsys.readouterr()


def text_tensors_of(file: Path) -> dict[str, torch.Tensor]:
    checkpoint = with_text_encoders(open_checkpoint(file))
    return {name: checkpoint.read(name) for name in checkpoint.text}


def test_recipes_without_it_are_what_they_were(family: Family) -> None:
    base, warm, _ = opened(family)
    recipe = Recipe.of(base, [warm], "block", {"M00": {"warm": 0.5}})
    assert list(json.loads(recipe.to_json())) == [
        "base",
        "donors",
        "granularity",
        "weights",
        "dtype",
        "method",
        "version",
        "block_names",
    ]
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert recipe.components == ("denoiser",)
    both = Recipe.of(base, [warm], "block", {"TE": {"warm": 0.5}}, components=COMPONENTS)
    assert Recipe.from_json(both.to_json()) == both


@every
def test_inspect_says_which_text_encoders_are_inside(family: Family) -> None:
    found = inspect_files([family.files["base"]])
    base = with_text_encoders(open_checkpoint(family.files["base"]))
    counted = found["files"][0]["text_encoders"]
    assert list(counted) == ["TE", "TE2"][: len(family.components)]
    assert sum(counted.values()) == sum(torch.Size(info.shape).numel() for info in text_tensors(base).values())
    assert "text encoders (parameters): TE " in format_inspection(found)


@pytest.mark.parametrize("family", ["sd1", "sdxl"], indirect=True)
def test_sd_mecha_blends_text_encoders_alike(family: Family, tmp_path: Path) -> None:
    pytest.importorskip("sd_mecha")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a slower matcher of words
        import sd_mecha
    base, *donors = opened(family)
    weights = {"TE": {"warm": 0.7, "cool": -0.2}, "M00": {"cool": 1.0}}
    if family.name == "sdxl":
        weights["TE2"] = {"cool": 0.4}
    recipe = Recipe.of(base, donors, "block", weights, components=COMPONENTS)
    ours = load_file(export_as(recipe, tmp_path / "x.safetensors", base=base, donors=donors))
    (tmp_path / "x.mecha").write_text(mecha_text(recipe, base, donors))
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = sd_mecha.merge(
                sd_mecha.deserialize_path(tmp_path / "x.mecha"),
                output_dtype=torch.float16,
                threads=0,
                total_buffer_size=2**20,
                tqdm=functools.partial(tqdm, disable=True),
            )
    finally:
        logging.disable(logging.NOTSET)
    mine = {info.key for info in base.text.values()}
    assert mine <= theirs.keys()
    for key in mine:
        step = torch.nextafter(ours[key].abs(), torch.full_like(ours[key], torch.inf)) - ours[key].abs()
        assert ((theirs[key] - ours[key]).abs() <= step).all(), key
    assert sum(not torch.equal(theirs[key], base.read_key(key)) for key in mine) > 10
