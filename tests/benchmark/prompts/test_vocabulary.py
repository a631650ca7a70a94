from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.errors import InputError
from benchmark.prompts.prompt_set import make_prompts
from benchmark.prompts.vocabulary import (
    Vocabulary,
    is_sexual,
    normal_tag,
    read_vocabulary,
    shipped_vocabulary,
    vocabulary_from_tags,
)


def test_a_vocabulary_file(tmp_path: Path) -> None:
    file = tmp_path / "v.csv"
    file.write_text("tag,category,group\nblue hair,hair,h\nred_hair,hair,h\nsmile,face,\nhat,,\n", encoding="utf-8-sig")
    vocabulary = read_vocabulary(file)
    assert vocabulary.tags == ("blue_hair", "red_hair", "smile", "hat")
    assert vocabulary.category("blue_hair") == "hair"
    assert vocabulary.category("hat") == "general"
    assert vocabulary.most_per_prompt() == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tag,category\nsmile,face\nsmile,face\n", "line 3.*twice"),
        ("name\nsmile\n", "first line"),
        ("tag,categry,x\nsmile,face,1\n", "line 1: unknown columns 'categry', 'x'"),
        ("tag,Tag\nsmile,hat\n", "line 1: the column 'tag' is there twice"),
        ("tag,,group\nsmile,,a\n", "line 1: a column has no name"),
        ("tag,category\n\nsmile, wide,face\n", "line 3: has 3 fields for 2 columns"),
        ("tag\n\n", "first line"),
        ("tag,category\n,face\n", "line 2.*empty"),
        ("tag\nloli\n", "v.csv.*refused"),
    ],
)
def test_a_bad_vocabulary_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "v.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_vocabulary(file)
    with pytest.raises(InputError, match="no such file"):
        read_vocabulary(tmp_path / "none.csv")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(
    "header", [" Group ,tag, category,,", '"Group", "TAG" , "category"', "group,\u00a0tag,Category\t"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_header_may_have_spaces_capitals_quotes_and_an_empty_end(
    encoding: str, header: str, end: str, tmp_path: Path
) -> None:
    file = tmp_path / "v.csv"
    file.write_bytes(f"{header}\nh, blue hair,hair,,\n,smile\n".replace("\n", end).encode(encoding))
    vocabulary = read_vocabulary(file)
    assert vocabulary.tags == ("blue_hair", "smile")
    assert (vocabulary.category("blue_hair"), vocabulary.groups) == ("hair", {"blue_hair": "h"})


@pytest.mark.parametrize(
    ("written", "tag"),
    [
        ("star_\\(symbol\\)", "star_(symbol)"),
        ("Star \\(symbol\\) \\[x\\]", "star_(symbol)_[x]"),
        ("star_\\(symbol\\)_[x]", "star_(symbol)_[x]"),
        ("\\m/", "\\m/"),
        ("\\\\m/", "\\m/"),
        ("\\(^o^)/", "\\(^o^)/"),
        ("\\\\\\(^o^\\)/", "\\(^o^)/"),
        ("\\||/", "\\||/"),
        (":3", ":3"),
    ],
)
def test_a_backslash_is_an_escape_only_where_the_whole_tag_is_escaped(written: str, tag: str) -> None:
    assert normal_tag(written) == normal_tag(tag) == tag


def test_a_backslash_hides_no_word() -> None:
    with pytest.raises(InputError, match="'loli' is refused"):
        Vocabulary(("lo\\li",))
    assert is_sexual("nu\\de")
    assert vocabulary_from_tags(["lo\\li", "smile"], 2).tags == ("smile",)


def test_tags_that_sexualise_minors_are_refused_alone_and_together() -> None:
    with pytest.raises(InputError, match="refused"):
        Vocabulary(("smile", "Loli"))
    with pytest.raises(InputError, match="refused in one vocabulary"):
        Vocabulary(("child", "nude"))
    Vocabulary(("child", "playing"))  # ordinary
    Vocabulary(("lollipop", "glass", "assembly", "class"))  # the words are matched whole


def test_a_list_from_a_tagger_leaves_out_what_is_not_for_everyone() -> None:
    tags = ["1girl", "nude", "long hair", "loli", "smile", "hat"]
    known = Vocabulary(("smile", "sun"), {"smile": "face", "sun": "sky"}, {"smile": "mood"})
    expected = Vocabulary(("1girl", "long_hair", "smile"), {"smile": "face"}, {"smile": "mood"})
    assert vocabulary_from_tags(tags, 3, known) == expected
    assert vocabulary_from_tags(tags, 3).categories == {"1girl": "people", "long_hair": "hair length", "smile": "face"}
    with pytest.raises(InputError, match="top"):
        vocabulary_from_tags(tags, 0)


def test_the_shipped_vocabulary_is_for_everyone_and_fills_long_prompts() -> None:
    shipped = shipped_vocabulary()
    assert len(shipped.tags) > 500
    assert not [tag for tag in shipped.tags if is_sexual(tag)]
    assert all(tag == normal_tag(tag) and shipped.category(tag) != "general" for tag in shipped.tags)
    assert shipped.most_per_prompt() >= 128
    (prompt,) = make_prompts(shipped, 1, tags_per_prompt=128, seed=0)
    assert len({shipped.groups[tag] for tag in prompt.tags if tag in shipped.groups}) == sum(
        tag in shipped.groups for tag in prompt.tags
    )
