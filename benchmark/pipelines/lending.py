"""An attribute of somebody else's object, replaced for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def lent(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within it, `owner.name` is `value`: a scheduler for one call, say, while the pipeline keeps its own by default.

    An attribute of the class, such as a method, is not set on the object afterwards.
    """
    nothing = object()
    before = vars(owner).get(name, nothing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is nothing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
