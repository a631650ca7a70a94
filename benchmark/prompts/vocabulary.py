"""Vocabularies: the tags that prompts are made of, and which tags are never used.

A vocabulary is a CSV file, the shipped one (`categories.csv`), or the most common tags of a tagger.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from benchmark.errors import InputError, first_line

NO_CATEGORY = "general"
_COLUMNS = ("tag", "category", "group")

# `_REFUSED` never appears in a prompt; `_MINOR` and `_SEXUAL` never appear in one vocabulary.
_REFUSED = re.compile(
    r"(?:^|_)(?:loli|shota|lolicon|shotacon|toddlercon|lolidom|pedophilia|child_(?:porn|sex)\w*)(?:_|$)"
)
_MINOR = re.compile(
    r"(?:^|_)(?:child|children|kid|kids|toddler|baby|infant|preteen|underage|teenager?|aged_down|kindergarten|"
    r"elementary_school|randoseru|young|younger|little_(?:girl|boy))(?:_|$)"
)
_SEXUAL = re.compile(
    r"(?:^|_)(?:sex|sexual|nude|nudity|naked|nipples?|areolae?|pussy|vagina|penis|penises|testicles|anus|anal|clitoris|cum|"
    r"semen|ejaculation|orgasm|masturbation|fellatio|cunnilingus|handjob|paizuri|rape|bdsm|bondage|erection|topless|"
    r"bottomless|cameltoe|uncensored|censored|hentai|porn|nsfw|upskirt|panties|underwear|lingerie|ass|breasts?|cleavage|"
    r"groin|crotch|pubic_hair|ahegao|futanari|dildo|vibrator|fingering|groping|penetration|vaginal|condom|underboob|"
    r"sideboob|bra|thong|spread_legs|suggestive|seductive)(?:_|$)"
)


def normal_tag(tag: str) -> str:
    """The spelling that tags are compared by: lower case, underscores for spaces, no escapes.

    A backslash is an escape only if the whole tag is escaped, as in `star_\\(symbol\\)`. The tags `\\m/` and `\\(^o^)/`
    have one of their own and keep it.
    """
    tag = tag.strip()
    return re.sub(r"\s+", "_", (_unescaped(tag) if "\\" in tag else tag).lower())


def _unescaped(tag: str) -> str:
    """The tag that `tag` is the escaped form of; `tag` itself if it is no escaped form.

    All brackets and backslashes may be escaped, as this project does, or parentheses alone, as lists of tags for web
    UIs have them.
    """
    for special in (r"()\[\]\\", "()"):
        plain = re.sub(rf"\\([{special}])", r"\1", tag)
        if plain != tag and re.sub(rf"([{special}])", r"\\\1", plain) == tag:
            return plain
    return tag


def _bare(tag: str) -> str:
    """The tag without any backslash, so that none can hide a word that is refused."""
    return normal_tag(tag.replace("\\", ""))


def spoken(tag: str) -> str:
    """The words of one tag: `blue_hair` -> `blue hair`; faces such as `^_^` and `o_o` stay as they are."""
    return tag.replace("_", " ") if re.search(r"[^\W\d_]{2}", tag) else tag


def is_sexual(tag: str) -> bool:
    """Whether a word of the tag is sexual: such tags are left out of every list that the user did not write."""
    return bool(_SEXUAL.search(_bare(tag)))


def check_allowed(tags: Iterable[str]) -> None:
    """Raise InputError for a tag that sexualises minors, or sexual tags beside tags of minors in one vocabulary."""
    names = [_bare(tag) for tag in tags]
    refused = next((name for name in names if _REFUSED.search(name)), None)
    if refused:
        raise InputError(f"'{refused}' is refused: tags that sexualise minors are never used. Remove it.")
    minor = next((name for name in names if _MINOR.search(name)), None)
    sexual = next((name for name in names if _SEXUAL.search(name)), None)
    if minor and sexual:
        raise InputError(f"'{minor}' and '{sexual}' are refused in one vocabulary. Remove one of them.")


@dataclass(frozen=True)
class Vocabulary:
    """The tags that prompts are made of.

    `categories`: each tag's category, for the tables. `groups`: each tag's group; a prompt has at most one tag of a
    group. Both may leave tags out. Raises InputError for no tags, a tag that is there twice, and refused tags.
    """

    tags: tuple[str, ...]
    categories: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tags:
            raise InputError("The vocabulary holds no tags.")
        twice = [tag for tag, times in Counter(self.tags).items() if times > 1]
        if twice:
            raise InputError(f"The vocabulary has '{twice[0]}' twice. Remove one.")
        check_allowed(self.tags)

    def category(self, tag: str) -> str:
        """The tag's category, or `general` if it has none."""
        return self.categories.get(tag) or NO_CATEGORY

    def most_per_prompt(self) -> int:
        """The largest number of tags of one prompt, given the groups."""
        grouped = [self.groups[tag] for tag in self.tags if self.groups.get(tag)]
        return len(self.tags) - len(grouped) + len(set(grouped))


def read_vocabulary(path: Path) -> Vocabulary:
    """Read a CSV with the columns `tag`, and optionally `category` and `group`, in any case and order.

    Raises InputError, with the line, for a column that is not known, a line with more fields than columns, an empty
    tag, a tag that is there twice, and refused tags.
    """
    rows = read_csv(path, "Name a CSV with the columns tag,category,group.")
    columns = list(rows[0][1]) if rows else []
    if "tag" not in columns:
        raise InputError(f"{path}: needs a first line 'tag,category,group' and at least one tag below it.")
    unknown = [column for column in columns if column not in _COLUMNS]
    if unknown:
        raise InputError(
            f"{path}, line 1: unknown column{'s' * (len(unknown) > 1)} {', '.join(map(repr, unknown))}. "
            "The columns are tag, category and group."
        )
    categories: dict[str, str] = {}
    groups: dict[str, str] = {}
    for number, row in rows:
        tag = normal_tag(row["tag"])
        if not tag:
            raise InputError(f"{path}, line {number}: the tag is empty.")
        if tag in categories:
            raise InputError(f"{path}, line {number}: '{tag}' is there twice. Remove one.")
        categories[tag] = row.get("category", "").strip() or NO_CATEGORY
        group = row.get("group", "").strip()
        if group:
            groups[tag] = group
    try:
        return Vocabulary(tuple(categories), categories, groups)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_csv(path: Path, wanted: str = "") -> list[tuple[int, dict[str, str]]]:
    """The lines of a CSV file below its first: number of the line, and its fields by column.

    Names of columns are in lower case, without spaces around them. A field that a line lacks is ''. Raises InputError
    for a file that cannot be read (`wanted` says what to name instead), a column without a name or there twice, and a
    line with more fields than columns.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, skipinitialspace=True)
            columns = [name.strip().lower() for name in _without_empty_end(next(lines, []))]
            rows = [(lines.line_num, _without_empty_end(line)) for line in lines if line]
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file. {wanted}".rstrip()) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV ({first_line(error)}).") from None
    for column, times in Counter(columns).items():
        if times > 1 or not column:
            problem = f"the column '{column}' is there twice" if column else "a column has no name"
            raise InputError(f"{path}, line 1: {problem}.")
    for number, line in rows:
        if len(line) > len(columns):
            raise InputError(
                f"{path}, line {number}: has {len(line)} fields for {len(columns)} columns. "
                "Put a field that contains a comma in double quotes."
            )
    return [
        (number, dict(zip(columns, line + [""] * (len(columns) - len(line)), strict=True))) for number, line in rows
    ]


def _without_empty_end(fields: list[str]) -> list[str]:
    """The fields up to the last that is not empty: spreadsheets end lines with commas."""
    count = max((place for place, field in enumerate(fields, start=1) if field.strip()), default=0)
    return fields[:count]


@lru_cache(maxsize=1)
def shipped_vocabulary() -> Vocabulary:
    """About 600 ordinary tags with categories and groups, for a general audience; written by hand for this project."""
    return read_vocabulary(Path(__file__).with_name("categories.csv"))


def vocabulary_from_tags(tags: Sequence[str], top: int, known: Vocabulary | None = None) -> Vocabulary:
    """The first `top` of a tagger's list (most common first), with the categories and groups that `known` gives them.

    `known` None is the shipped vocabulary. Sexual and refused tags are left out. Raises InputError for `top` below 1.
    """
    if top < 1:
        raise InputError(f"top: {top} tags make no vocabulary. Use 1 or more.")
    known = known or shipped_vocabulary()
    chosen = []
    for tag in dict.fromkeys(normal_tag(tag) for tag in tags):
        if not is_sexual(tag) and not _REFUSED.search(_bare(tag)):
            chosen.append(tag)
        if len(chosen) == top:
            break
    categories = {tag: known.categories[tag] for tag in chosen if tag in known.categories}
    groups = {tag: known.groups[tag] for tag in chosen if tag in known.groups}
    return Vocabulary(tuple(chosen), categories, groups)
