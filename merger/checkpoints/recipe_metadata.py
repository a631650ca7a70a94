"""What a blend's own file says of where it came from: the key of its recipe, and the little that an inspection shows.

Recipes themselves are written and read by `merger.export.recipe`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from merger.errors import CheckpointError

METADATA_KEY = "layermerge.recipe"
"""The key of a file's metadata under which its recipe is."""


class Origin(NamedTuple):
    """The version that made a blend, and the names of its base and of the donors with a weight other than 0."""

    version: str
    sources: tuple[str, ...]


def origin_of(metadata: Mapping[str, str], where: str) -> Origin | None:
    """Where the blend with this metadata came from; None if it is no blend of this program.

    where: the file, for messages. Raises CheckpointError if its recipe cannot be read.
    """
    if METADATA_KEY not in metadata:
        return None
    try:
        recipe = json.loads(metadata[METADATA_KEY])
        weighed = {donor for row in recipe["weights"].values() for donor, weight in row.items() if weight != 0}
        weighed |= set(recipe.get("channels", {}).get("donors", ()))  # whose weights are in a file of their own
        donors = [str(donor["name"]) for donor in recipe["donors"] if donor["name"] in weighed]
        return Origin(str(recipe["version"]), (str(recipe["base"]["name"]), *donors))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"{where}: its recipe cannot be read ({type(error).__name__}: {reason}).") from None
