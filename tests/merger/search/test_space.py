from __future__ import annotations

import random

import pytest

from merger.errors import ConfigError, StudyError
from merger.search.space import make_space, weight_of

LAYERS = ("IN00", "IN01", "M00", "OUT00", "BASE")
DONORS = ("warm", "cool")


def test_one_parameter_for_each_layer_and_donor_in_their_bounds() -> None:
    space = make_space(LAYERS, DONORS, bounds=(0, 1), donor_bounds={"cool": (-1, 2)})
    assert [parameter.name for parameter in space.parameters[:3]] == ["IN00/warm", "IN00/cool", "IN01/warm"]
    assert len(space.parameters) == 10
    assert {(p.low, p.high) for p in space.parameters if p.donor == "warm"} == {(0, 1)}
    assert {(p.low, p.high) for p in space.parameters if p.donor == "cool"} == {(-1, 2)}


def test_values_become_weights_and_back() -> None:
    space = make_space(LAYERS, DONORS, bounds=(0, 1), frozen={"M00": 0.25}, tied=[("IN00", "OUT00")])
    assert len(space.parameters) == 6
    draw = random.Random(1)
    values = {parameter.name: draw.random() for parameter in space.parameters}
    weights = space.to_weights(values)
    assert weights["M00"] == {"warm": 0.25, "cool": 0.25}
    assert weights["OUT00"] == weights["IN00"]
    assert space.to_values(weights) == values
    assert space.unflatten(space.flatten(weights)) == weights


def test_weights_outside_the_space_have_no_values() -> None:
    space = make_space(LAYERS, DONORS, bounds=(0, 0.5), frozen={"M00": 0.0}, tied=[("IN00", "OUT00")])
    inside = space.everywhere({})
    assert space.to_values(inside) is not None
    assert space.to_values(space.everywhere({"warm": 1.0})) is None, "beyond the bounds"
    assert space.to_values({**inside, "M00": {"warm": 0.1}}) is None, "frozen elsewhere"
    assert space.to_values({**inside, "OUT00": {"warm": 0.1}}) is None, "tied layers differ"


def test_a_blend_with_one_weight_everywhere_reaches_frozen_layers() -> None:
    space = make_space(LAYERS, DONORS, bounds=(0, 1), frozen={"M00": 0.0})
    weights = space.everywhere({"warm": 1.0})
    assert all(weight_of(weights, layer, "warm") == 1.0 for layer in LAYERS)
    assert all(weight_of(weights, layer, "cool") == 0.0 for layer in LAYERS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"frozen": {"IN1": 0.0}}, "no layer 'IN1'. Did you mean 'IN01'?"),
        ({"tied": [("IN00", "OUT9")]}, "no layer 'OUT9'"),
        ({"tied": [("IN00", "M00"), ("M00", "BASE")]}, "'M00' is in two groups"),
        ({"tied": [("IN00", "M00")], "frozen": {"M00": 0.0}}, "'M00' is frozen"),
        ({"frozen": dict.fromkeys(LAYERS, 0.0)}, "nothing to search"),
    ],
)
def test_what_cannot_be_a_space_is_refused(options: dict, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_space(LAYERS, DONORS, bounds=(0, 1), **options)
    assert said in str(caught.value)


def test_values_and_numbers_that_do_not_belong_are_refused() -> None:
    space = make_space(LAYERS, DONORS, bounds=(0, 1))
    with pytest.raises(StudyError, match="IN00/warm"):
        space.to_weights({parameter.name: 0.0 for parameter in space.parameters[1:]})
    with pytest.raises(StudyError, match="3 weights"):
        space.unflatten([1, 2, 3])


def test_many_blends_are_read_as_one_by_one() -> None:
    space = make_space(LAYERS, DONORS, bounds=(0, 1), frozen={"M00": 0.25}, tied=[("IN00", "OUT00")])
    draw = random.Random(2)
    names = [parameter.name for parameter in space.parameters]
    blends = []
    for _ in range(60):
        weights = space.to_weights({name: draw.uniform(-0.02, 1.02) for name in names})
        if draw.random() < 0.3:
            weights[draw.choice(["M00", "OUT00"])]["warm"] = draw.random()
        blends.append(weights)
    values, inside = space.points([space.flatten(weights) for weights in blends])
    assert 10 < inside.sum() < 50
    for weights, row, fits in zip(blends, values, inside, strict=True):
        alike = weights["IN00"] == weights["OUT00"] and set(weights["M00"].values()) == {0.25}
        bounded = all(0 <= weights[layer][donor] <= 1 for layer in LAYERS for donor in DONORS)
        assert fits == (alike and bounded)
        assert space.to_values(weights) == (dict(zip(names, row.tolist(), strict=True)) if fits else None)
    none, nothing = space.points([])
    assert none.shape == (0, len(names)) and len(nothing) == 0


NAMED = ("BASE", "IN00", "IN01", "OUT00", "OUT01", "OUT[2]")


def test_layers_are_named_by_patterns_as_in_recipes() -> None:
    space = make_space(
        NAMED,
        ("one", "two"),
        bounds={"*": (0, 1), "OUT*": (-1, 2), "OUT01": (0, 3)},
        donor_bounds={"two": {"BASE": (0, 0.5)}},
        frozen={"IN*": 0.0, "IN01": 0.2},
        tied=[["OUT[2]", "OUT00"]],
    )
    assert space.fixed == {"IN00": 0.0, "IN01": 0.2}
    assert [(each.name, each.layers, each.low, each.high) for each in space.parameters] == [
        ("BASE/one", ("BASE",), 0, 1),
        ("BASE/two", ("BASE",), 0, 0.5),
        ("OUT01/one", ("OUT01",), 0, 3),
        ("OUT01/two", ("OUT01",), 0, 3),
        ("OUT[2]/one", ("OUT00", "OUT[2]"), -1, 2),
        ("OUT[2]/two", ("OUT00", "OUT[2]"), -1, 2),
    ]


def test_a_tied_pattern_leaves_out_frozen_layers() -> None:
    space = make_space(NAMED, ("one",), bounds=(0, 1), frozen={"IN00": 0.0}, tied=[["IN*", "BASE"]])
    assert [each.layers for each in space.parameters][:1] == [("BASE", "IN01")]


def test_a_table_of_bounds_leaves_the_default_to_others() -> None:
    space = make_space(NAMED, ("one",), bounds={"IN00": (0, 1)})
    assert [(each.low, each.high) for each in space.parameters][:2] == [(-0.5, 1.5), (0, 1)]


def test_every_name_that_fits_no_layer_is_a_line() -> None:
    with pytest.raises(ConfigError) as caught:
        make_space(
            NAMED,
            ("one",),
            bounds={"MID*": (0, 1)},
            donor_bounds={"one": {"M": (0, 1)}},
            frozen={"IN9": 0.0, "X*": 0.0},
            tied=[["IN00", "OUT9"], ["IN00", "OUT01"]],
        )
    assert [line.partition(".")[0] for line in caught.value.lines] == [
        "frozen: there is no layer 'IN9'",
        "frozen: 'X*' fits no layer",
        "tied: there is no layer 'OUT9'",
        "bounds: 'MID*' fits no layer",
        "bounds of 'one': there is no layer 'M'",
        "tied: layer 'IN00' is in two groups; put them together in one",
    ]


def test_tied_layers_share_their_bounds() -> None:
    with pytest.raises(ConfigError, match="tied: 'IN00' and 'IN01' have different bounds for one"):
        make_space(NAMED, ("one",), bounds={"IN00": (0, 1)}, tied=[["IN00", "IN01"]])
