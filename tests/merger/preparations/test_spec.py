"""How preparations are written, and what is refused."""

from __future__ import annotations

import pytest

from merger.preparations.spec import preparation, preparations


def test_short_and_long_forms_are_the_same() -> None:
    assert preparation({"rank": 64}) == preparation({"rank": {"rank": 64}})
    assert preparation({"trim": 0.2}) == preparation({"trim": {"density": 0.2}})
    assert preparation({"dare": 0.5}).to_json() == {"dare": {"density": 0.5, "seed": 0}}
    for written in ({"della": {"density": 0.5, "seed": 7}}, "perpendicular", {"breadcrumbs": 0.3}):
        found = preparation(written)
        assert preparation(found.to_json()) == found


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("trimm", "no preparation is called 'trimm'. Did you mean 'trim'?"),
        ("trim", "trim needs 'density'"),
        ({"trim": 0}, "trim: 'density' must be a number above 0 and at most 1, not 0"),
        ({"trim": 1.5}, "'density' must be a number above 0 and at most 1, not 1.5"),
        ({"trim": True}, "not True"),
        ({"trim": "half"}, "not 'half'"),
        ({"trim": float("nan")}, "not nan"),
        ({"rank": 2.5}, "rank: 'rank' must be a whole number at least 1, not 2.5"),
        ({"rank": 0}, "at least 1, not 0"),
        ({"dare": {"density": 0.5, "sead": 1}}, "dare has density, seed, and no 'sead'. Did you mean 'seed'?"),
        ({"perpendicular": 2}, "perpendicular takes no number"),
        ({"perpendicular": {"x": 2}}, "perpendicular takes no number, and no 'x'."),
        ({"breadcrumbs": {"density": 0.9, "outliers": 0.2}}, "add up to more than 1"),
        ({"trim": 0.5, "rank": 3}, "a word or a table of one line"),
        (3, "a word or a table of one line"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(written: object, said: str) -> None:
    with pytest.raises(ValueError) as error:
        preparation(written)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_some_need_what_the_donor_was_trained_from() -> None:
    assert preparations(["train_difference"], minus=True)
    with pytest.raises(ValueError, match="train_difference needs `minus`"):
        preparations([{"rank": 2}, "train_difference"], minus=False)
