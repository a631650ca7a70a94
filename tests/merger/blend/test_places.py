"""Where base and donors are held makes no difference to a single bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from merger.blend.arithmetic import blend
from merger.blend.differences import Difference
from merger.blend.fetching import Piece, ahead
from merger.blend.live import LiveDenoiser
from merger.blend.sources import Hold
from merger.weights import Channels
from tests.merger.blend.test_live import LAYERS, SHAPES, Net, Shelf, expected, shelf

HOLDS: tuple[Hold, ...] = ("device", "host", "file")
WEIGHTS: list[dict[str, dict[str, Any]]] = [
    {"A": {"warm": 0.3, "cool": -0.2}, "B": {"cool": 1.0}},
    {"A": {"warm": 1.0}},
    {},
]
EIGHT, OTHER_EIGHT = torch.float8_e4m3fn, torch.float8_e5m2


def family(stored: torch.dtype) -> tuple[Shelf, list[Shelf]]:
    return shelf("base", 0, stored), [shelf("warm", 1, stored), shelf("cool", 2, stored)]


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, EIGHT], ids=str)
def test_every_place_gives_the_same_blend(stored: torch.dtype) -> None:
    base, donors = family(stored)
    lives = [LiveDenoiser(Net(), base, donors, LAYERS, hold=hold) for hold in HOLDS]
    for weights in WEIGHTS:
        assert len({live.apply(weights) for live in lives}) == 1
        for name, tensor in expected(base, donors, weights, torch.float32).items():
            assert torch.equal(lives[1].module.get_parameter(name), tensor), name
    device, host, file = lives
    assert device.held_nbytes == host.held_nbytes > file.held_nbytes == 0
    assert device.nbytes - device.held_nbytes == host.nbytes == file.nbytes == file.live_nbytes


def test_sources_move_and_the_live_weights_stay() -> None:
    base, donors = family(torch.float16)
    net = Net()
    live = LiveDenoiser(net, base, donors, LAYERS, hold="file")
    checksum = live.apply(WEIGHTS[0])
    for hold in (*HOLDS, *HOLDS[::-1]):
        before = net.first.weight.detach().clone()
        live.hold_in(hold)
        assert live.hold == hold
        assert torch.equal(net.first.weight, before)
        assert live.apply(WEIGHTS[1]) != checksum == live.apply(WEIGHTS[0])


def test_8_bit_tensors_stay_8_bit_between_wider_ones() -> None:
    """The weights of 8 bits, the biases not: as files quantised for inference have them."""
    wide = torch.randn(7, generator=torch.Generator().manual_seed(5))
    base = shelf("base", 0, EIGHT, **{"first.bias": wide.half()})
    donors = [shelf("warm", 1, EIGHT, **{"first.bias": wide}), shelf("cool", 2, OTHER_EIGHT)]
    layers = {"all": ("first.weight", "first.bias", "last.weight")}
    held, mapped = (LiveDenoiser(Net(), base, donors, layers, hold=hold) for hold in ("device", "file"))
    rows = -(-7 * 5 // 64) * 64, -(-7 // 64) * 64
    end = held._layers["all"].live.numel()
    weights_alone = end - rows[1]
    assert held.held_nbytes == weights_alone + 2 * rows[1] + weights_alone + 4 * rows[1] + end
    assert held.copies_nbytes == 3 * (7 * 5 + 3 * 7) + (2 + 4 + 1) * 7
    for weights in ({"warm": 0.3, "cool": -0.2}, {"cool": 1.0}, {}):
        assert held.apply({"all": weights}) == mapped.apply({"all": weights})


@pytest.mark.parametrize("most", [1, 7, 16, 1000])
def test_pieces_are_the_whole(most: int) -> None:
    base, donors = family(torch.float16)
    values = [each.read("first.weight").reshape(-1) for each in (base, *donors)]
    whole = Piece(slice(64, 64 + 35), values[0], tuple(Difference(value) for value in values[1:]), torch.float16)
    out = torch.zeros(128)
    parts = list(ahead(whole.parts(most), torch.device("cpu")))
    assert [part.here.start for part in parts] == list(range(64, 64 + 35, most))
    for part in parts:
        assert part.here.stop - part.here.start == len(part.base) <= most
        out[part.here] = blend(part.base, part.differences, [0.3, -0.2]).float()
    assert torch.equal(out[64:99], blend(values[0], whole.differences, [0.3, -0.2]).float())
    assert not out[:64].any()
    assert not out[99:].any()


def test_a_difference_of_another_kind_stays_one_when_it_moves() -> None:
    class Halved(Difference):
        pass

    piece = Piece(slice(0, 4), torch.zeros(4), (Halved(torch.ones(4)),), torch.float32)
    assert isinstance(piece.to(torch.device("cpu")).differences[0], Halved)
    assert all(isinstance(part.differences[0], Halved) for part in piece.parts(2))


@pytest.mark.parametrize("hold", HOLDS)
def test_channels_of_every_place(hold: Hold) -> None:
    base, donors = family(torch.float16)
    layers = {name: (name,) for name in SHAPES}
    weights = {"first.weight": {"warm": Channels([0.1, 0.0, 1.0, -0.4, 0.3, 2.0, 0.2])}}
    live = LiveDenoiser(Net(), base, donors, layers, hold=hold)
    plain = LiveDenoiser(Net(), base, donors, layers, hold="device")
    assert live.apply(weights) == plain.apply(weights)
