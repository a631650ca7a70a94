from __future__ import annotations

from merger.layers.grouping import group
from merger.layers.reading import rows_for_reading
from merger.layers.unet import EARLIER

UNET = [
    "conv_in.weight",
    *(f"down_blocks.{block}.resnets.{unit}.conv{n}.weight" for block in range(2) for unit in range(2) for n in (1, 2)),
    *(f"down_blocks.{block}.downsamplers.0.conv.weight" for block in range(1)),
    *(f"mid_block.resnets.{unit}.conv1.weight" for unit in range(2)),
    *(f"up_blocks.{block}.resnets.{unit}.conv1.weight" for block in range(2) for unit in range(3)),
    "conv_out.weight",
]


def test_few_layers_are_rows_and_many_are_put_together() -> None:
    layers = group(UNET, "tensor")
    assert rows_for_reading(layers) == {name: name for name in UNET}
    blocks = rows_for_reading(layers, most=15)
    assert list(dict.fromkeys(blocks.values())) == list(group(UNET, "block"))
    assert all(name in group(UNET, "block")[row] for name, row in blocks.items())
    stages = rows_for_reading(layers, most=8)
    assert list(dict.fromkeys(stages.values())) == list(group(UNET, "stage"))
    named = rows_for_reading(layers, EARLIER, most=15)
    assert set(named.values()) == set(group(UNET, "block", EARLIER))


def test_a_layer_across_rows_stays_one_behind_all_others() -> None:
    layers = {"odd": (UNET[0], UNET[-1]), **{name: (name,) for name in UNET[1:-1]}}
    found = rows_for_reading(layers, most=15)
    assert found["odd"] == "odd" and list(found)[-1] == "odd"


def test_an_unknown_network_is_put_together_by_the_beginning_of_names() -> None:
    layers = {name: (name,) for name in [f"net.{part}.{place}.weight" for part in "ab" for place in range(30)]}
    found = rows_for_reading(layers)
    assert set(found) == set(layers) and list(dict.fromkeys(found.values())) == ["net.a", "net.b"]
    flat = {f"w{place}": (f"w{place}",) for place in range(50)}
    assert set(rows_for_reading(flat).values()) == {"all"}
