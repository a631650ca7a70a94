"""The kinds of taggers, by name. By itself, so that naming them loads nothing."""

from __future__ import annotations

from typing import Literal, get_args

TaggerKind = Literal["transformers", "wd", "wd-timm", "ml-danbooru"]
KINDS: tuple[str, ...] = get_args(TaggerKind)
