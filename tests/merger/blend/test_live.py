"""The live denoiser: exactly the blend asked for, and never another in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import merger.blend.live
import merger.blend.sources
from merger.blend.arithmetic import blend
from merger.blend.differences import Difference
from merger.blend.live import LiveDenoiser, checksum_of
from merger.blend.sources import Hold
from merger.checkpoints.checkpoint import Checkpoint, open_checkpoint
from merger.checkpoints.source import Source, TensorInfo
from merger.errors import BlendNotApplied, CheckpointError, ConfigError
from merger.layers.grouping import group
from merger.weights import Channels


class Shelf(Checkpoint):
    """A checkpoint of tensors in memory, under the same face."""

    def __init__(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        infos = {key: TensorInfo(key, Path(), tuple(t.shape), t.dtype) for key, t in tensors.items()}
        super().__init__(name, Path(name), "unet", "original", (), infos, (), {})
        object.__setattr__(self, "tensors", tensors)

    def read(self, name: str) -> torch.Tensor:
        return self.tensors[name]  # type: ignore[attr-defined]


class Net(nn.Module):
    """Three tensors of awkward sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.last = nn.Linear(7, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x)))


SHAPES = {"first.weight": (7, 5), "first.bias": (7,), "last.weight": (3, 7)}
LAYERS = {"A": ("first.weight", "first.bias"), "B": ("last.weight",)}


def shelf(name: str, seed: int, dtype: torch.dtype = torch.float16, **kept: torch.Tensor) -> Shelf:
    draw = torch.Generator().manual_seed(seed)
    return Shelf(name, {key: torch.randn(shape, generator=draw).to(dtype) for key, shape in SHAPES.items()} | kept)


@pytest.fixture
def small() -> Callable[..., tuple[Net, LiveDenoiser, Shelf, list[Shelf]]]:
    def make(base: Shelf | None = None, donors: list[Shelf] | None = None, dtype: torch.dtype = torch.float32) -> Any:
        net = Net().to(dtype)
        base, donors = base or shelf("base", 0), donors or [shelf("warm", 1), shelf("cool", 2)]
        return net, LiveDenoiser(net, base, donors, LAYERS), base, donors

    return make


def expected(
    base: Shelf, donors: list[Shelf], weights: dict[str, dict[str, float]], live: torch.dtype
) -> dict[str, torch.Tensor]:
    """What loading an exported file would give."""
    out = {}
    for layer, names in LAYERS.items():
        row = [weights.get(layer, {}).get(donor.name, 0.0) for donor in donors]
        for name in names:
            differences = [Difference(donor.read(name).reshape(-1)) for donor in donors]
            flat = blend(base.read(name).reshape(-1), differences, row)
            out[name] = flat.reshape(SHAPES[name]).to(live)
    return out


@pytest.mark.parametrize("live_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_it_holds_exactly_what_an_exported_file_would(small: Any, live_dtype: torch.dtype, stored: torch.dtype) -> None:
    net, live, base, donors = small(shelf("base", 0, stored), dtype=live_dtype)
    weights = {"A": {"warm": 0.3, "cool": -0.2}, "B": {"cool": 1.0}}
    live.apply(weights)
    for name, tensor in expected(base, donors, weights, live_dtype).items():
        assert torch.equal(net.get_parameter(name), tensor), name


def test_tensors_of_a_layer_may_be_kept_in_several_dtypes(small: Any) -> None:
    base = shelf("base", 0, **{"first.bias": torch.randn(7, generator=torch.Generator().manual_seed(9))})
    donors = [
        shelf("warm", 1, **{"first.weight": torch.ones(7, 5, dtype=torch.bfloat16)}),
        shelf("cool", 2, torch.float64),
    ]
    net, live, *_ = small(base, donors)
    weights = {"A": {"warm": 0.4, "cool": 0.1}}
    live.apply(weights)
    for name, tensor in expected(base, donors, weights, torch.float32).items():
        assert torch.equal(net.get_parameter(name), tensor), name


class Plain:
    """The least that a donor must be: a `Source`."""

    def __init__(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        self.name, self._tensors = name, tensors
        self.blended = {key: TensorInfo(key, Path(), tuple(t.shape), t.dtype) for key, t in tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name]


@pytest.mark.parametrize("hold", ["device", "file"])
def test_a_donor_is_whatever_has_a_name_and_tensors(hold: Hold) -> None:
    base, warm = shelf("base", 0), shelf("warm", 1)
    plain: Source = Plain("warm", {name: warm.read(name) for name in SHAPES})
    one, other = (LiveDenoiser(Net(), base, [donor], LAYERS, hold=hold) for donor in (warm, plain))
    assert one.apply({"A": {"warm": 0.3}}) == other.apply({"A": {"warm": 0.3}}) != one.restore()


def test_it_begins_and_is_restored_as_the_base(small: Any) -> None:
    net, live, base, _ = small()
    first = live.checksum
    assert all(torch.equal(net.get_parameter(name), base.read(name).float()) for name in SHAPES)
    assert live.apply({"A": {"warm": 0.5}}) != first
    assert live.restore() == first
    assert all(torch.equal(net.get_parameter(name), base.read(name).float()) for name in SHAPES)


def test_it_computes_as_a_module_loaded_with_the_blend(small: Any) -> None:
    net, live, base, donors = small()
    weights = {"A": {"warm": 0.3}, "B": {"cool": 0.6}}
    live.apply(weights)
    plain = Net()
    plain.load_state_dict(expected(base, donors, weights, torch.float32))
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(net(x), plain(x))


def test_the_checksum_is_of_the_blend_and_not_of_the_way_there(small: Any) -> None:
    _, one, *_ = small()
    _, two, *_ = small()
    weights = {"A": {"warm": 0.25}, "B": {"warm": -0.5, "cool": 0.125}}
    two.apply({"A": {"cool": 0.9}})
    assert one.apply(weights) == two.apply(weights) == two.apply(weights)
    assert one.apply({**weights, "B": {"warm": -0.5, "cool": 0.126}}) != two.checksum


def test_the_checksum_sees_every_bit_and_every_place() -> None:
    buffer = torch.zeros(3 * 4096, dtype=torch.uint8)
    buffer[100] = 7
    plain = checksum_of({"a": buffer})
    for place in (0, 100, 4095, 4096, 3 * 4096 - 1):
        for bit in range(8):
            other = buffer.clone()
            other[place] ^= 1 << bit
            assert checksum_of({"a": other}) != plain
    for shift in (1, 8, 4096):
        assert checksum_of({"a": buffer.roll(shift)}) != plain
    assert checksum_of({"b": buffer}) != plain


def test_a_module_that_was_moved_is_noticed(small: Any) -> None:
    net, live, *_ = small()
    net.half()
    with pytest.raises(BlendNotApplied, match=r"no longer lies in the blended buffer"):
        live.apply({"A": {"warm": 0.5}})


def test_a_parameter_that_was_replaced_is_noticed(small: Any) -> None:
    net, live, *_ = small()
    net.last.weight = nn.Parameter(net.last.weight.detach().clone())
    with pytest.raises(BlendNotApplied, match=r"'last.weight'"):
        live.apply({"B": {"warm": 0.5}})


def test_a_blend_that_did_not_happen_is_noticed(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, live, *_ = small()
    real = merger.blend.live._blend_layer
    monkeypatch.setattr(
        merger.blend.live, "_blend_layer", lambda layer, row: None if layer.parameters else real(layer, row)
    )
    with pytest.raises(BlendNotApplied, match=r"the weights of A were changed"):
        live.apply({"A": {"warm": 0.5}})


def test_equal_bits_are_right_where_donors_agree_or_the_change_is_too_small(small: Any) -> None:
    base = shelf("base", 0)
    twin = Shelf("twin", {name: base.read(name).clone() for name in SHAPES})
    _, live, *_ = small(base, [twin, shelf("cool", 2)])
    assert live.apply({"A": {"twin": 0.7}}) == live.apply({"B": {"twin": -3.0}})
    before = live.apply({"A": {"cool": 0.5}})
    assert live.apply({"A": {"cool": 0.5 + 1e-12}}) == before


def test_unknown_layers_and_donors_change_nothing(small: Any) -> None:
    _, live, *_ = small()
    before = live.apply({"A": {"warm": 0.5}})
    with pytest.raises(ConfigError, match=r"layer 'C' does not exist"):
        live.apply({"C": {"warm": 0.5}})
    with pytest.raises(ConfigError, match=r"A: 'wram' is not a donor. Did you mean 'warm'"):
        live.apply({"A": {"wram": 0.5}})
    assert live.checksum == before == live.apply({"A": {"warm": 0.5}})


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"A": LAYERS["A"]}, "'last.weight' is in no layer"),
        (LAYERS | {"C": ("first.bias",)}, "two layers"),
        (LAYERS | {"C": ("middle.bias",)}, "not in the module"),
    ],
)
def test_layers_must_be_the_modules_tensors(layers: dict[str, tuple[str, ...]], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        LiveDenoiser(Net(), shelf("base", 0), [], layers)


def test_shapes_must_be_the_modules() -> None:
    with pytest.raises(CheckpointError, match=r"'last.weight' is \[3, 8\] in the file, in the pipeline it is \[3, 7\]"):
        LiveDenoiser(Net(), shelf("base", 0, **{"last.weight": torch.zeros(3, 8)}), [], LAYERS)


@pytest.mark.parametrize("granularity", ["stage", "block", "module", "tensor"])
def test_a_real_family_lives(tiny_family: dict[str, Path], tiny_diffusers_folder: Path, granularity: str) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tiny_diffusers_folder, subfolder="unet").eval()
    base, *donors = (open_checkpoint(tiny_family[name]) for name in ("base", "warm", "cool"))
    layers = group(base.denoiser, granularity)
    live = LiveDenoiser(unet, base, donors, layers)
    assert live.layers == tuple(layers)
    for donor in donors:
        live.apply({layer: {donor.name: 1.0} for layer in layers})
        assert all(torch.equal(unet.get_parameter(name), donor.read(name).float()) for name in donor.denoiser)
    with torch.no_grad():
        inputs = torch.ones(1, 8, 4, 4), 10, torch.ones(1, 4, 16)
        drawn = unet(*inputs).sample
        live.restore()
        assert not torch.equal(unet(*inputs).sample, drawn)


def test_sources_left_in_their_files_give_the_same_bits(
    tiny_family: dict[str, Path], tiny_diffusers_folder: Path
) -> None:
    """Held or mapped: same checksums, same values behind every parameter; an adapter is computed when it is read."""
    from diffusers import UNet2DConditionModel

    base, *donors = (open_checkpoint(tiny_family[name]) for name in ("base", "warm", "cool"))
    layers = group(base.denoiser, "block")
    made = {}
    for hold in ("device", "file"):
        unet = UNet2DConditionModel.from_pretrained(tiny_diffusers_folder, subfolder="unet")
        made[hold] = LiveDenoiser(unet, base, donors, layers, hold=hold)
    held, mapped = made["device"], made["file"]
    assert held.checksum == mapped.checksum
    for weights in ({"IN04": {"warm": 0.3, "cool": -0.2}}, {"M00": {"warm": 1.0}, "BASE": {"cool": 1.5}}, {}):
        assert held.apply(weights) == mapped.apply(weights)
    assert held.nbytes == mapped.nbytes * (1 + 3 / 2), "three sources in half the width beside the live one"
    for (_, one), (_, other) in zip(held.differences("IN04"), mapped.differences("IN04"), strict=True):
        (base_held, those_held), (base_mapped, those_mapped) = one(), other()
        assert torch.equal(base_held, base_mapped)
        assert len(those_held) == 2
        assert all(torch.equal(a.donor, b.donor) for a, b in zip(those_held, those_mapped, strict=True))


def test_copies_are_made_only_where_they_fit(
    tiny_family: dict[str, Path], tiny_diffusers_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import UNet2DConditionModel

    base, warm = (open_checkpoint(tiny_family[name]) for name in ("base", "warm"))
    needed = 2 * sum(base.read(name).nbytes for name in base.denoiser)
    layers = group(base.denoiser, "stage")
    unet = UNet2DConditionModel.from_pretrained(tiny_diffusers_folder, subfolder="unet")
    live = sum(parameter.nbytes for parameter in unet.parameters())
    for free, hold in ((live + needed * 4 // 3 + 4, "device"), (live + needed * 4 // 3 - 4, "file")):
        monkeypatch.setattr(merger.blend.sources, "free_memory", lambda device, free=free: free)
        made = LiveDenoiser(unet, base, [warm], layers)
        assert made.hold == hold
        assert ("read from their files at every blend" in made.remark) == (hold == "file")


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    assert merger.blend.sources._free_in_group(tmp_path) > 2**60
    for name, text in (("max", "1000\n"), ("current", "700\n"), ("stat", "anon 300\nfile 400\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert merger.blend.sources._free_in_group(tmp_path) == 700
    (tmp_path / "memory.max").write_text("max\n")
    assert merger.blend.sources._free_in_group(tmp_path) > 2**60
    assert 0 < merger.blend.sources.free_memory(torch.device("cpu")) < 2**60


@pytest.mark.parametrize("hold", ["device", "file"])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_a_layer_of_one_tensor_may_have_weights_by_channel(hold: Hold, stored: torch.dtype) -> None:
    base, donors = shelf("base", 0, stored), [shelf("warm", 1, stored), shelf("cool", 2, stored)]
    layers = {name: (name,) for name in SHAPES}
    net = Net()
    live = LiveDenoiser(net, base, donors, layers, hold=hold)
    warm, cool = Channels([0.1, 0.0, 1.0, -0.4, 0.3, 2.0, 0.2]), Channels([0.0, 0.0, 0.0, 0.5, 0.1, 1.0, 0.0])
    checksum = live.apply({"first.weight": {"warm": warm, "cool": cool}, "first.bias": {"warm": 0.3}})
    found = net.first.weight.detach().clone()
    for row in range(7):
        live.apply({"first.weight": {"warm": float(warm.values[row]), "cool": float(cool.values[row])}})
        assert torch.equal(net.first.weight[row], found[row]), row
    assert live.apply({"first.weight": {"warm": Channels([0.5] * 7)}}) == live.apply({"first.weight": {"warm": 0.5}})
    again = live.apply({"first.weight": {"warm": Channels(warm.values), "cool": cool}, "first.bias": {"warm": 0.3}})
    assert again == checksum


def test_channels_must_be_the_tensors(small: Any) -> None:
    _, live, *_ = small()
    for layer, weight in (("A", Channels([0.5] * 7)), ("B", Channels([0.5] * 7))):
        with pytest.raises(ConfigError, match=f"{layer}: 7 weights by channel do not fit"):
            live.apply({layer: {"warm": weight}})
