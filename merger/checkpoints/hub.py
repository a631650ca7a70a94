"""Sources named by hub id: from what a configuration, recipe or command line calls them to folders on this disk."""

from __future__ import annotations

from pathlib import Path

from benchmark.errors import InputError
from benchmark.hub_ids import is_hub_id
from benchmark.pipelines import hub
from benchmark.pipelines.hub import Portion
from merger.checkpoints.weight_files import is_there
from merger.errors import CheckpointError


def on_this_disk(source: Path, part: Portion = "whole") -> Path:
    """The source itself if it is a path; for a hub id (`owner/name`), its folder in the hub's cache, fetched if needed.

    A path that exists wins over a hub id that reads the same; paths are relative to the working directory. Raises
    CheckpointError, in one line with the command that fetches what is missing.
    """
    return source if is_there(source) or not is_hub_id(str(source)) else fetched(str(source), part)


def fetched(hub_id: str, part: Portion = "whole") -> Path:
    """The folder of a hub id. Raises CheckpointError as `on_this_disk` does."""
    try:
        return hub.fetch(hub_id, part)
    except InputError as error:
        raise CheckpointError(str(error)) from error
