"""Hub ids, `owner/name` or `owner/name@revision`: what reads as one, and which one a path into the cache is of."""

from __future__ import annotations

import re
from pathlib import Path

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".json", ".yaml", ".yml")
_SNAPSHOT = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<revision>[^/]+)")


def is_hub_id(text: str) -> bool:
    """Whether `text` reads as a hub id. A path of two parts does, too: look for a local file or folder first."""
    return bool(_ID.fullmatch(text)) and not text.endswith(_WEIGHTS)


def id_of(path: Path) -> str | None:
    """`owner/name@revision` of a path into the hub's cache; None for any other."""
    found = _SNAPSHOT.search(path.as_posix())
    return f"{found['owner']}/{found['name']}@{found['revision']}" if found else None
