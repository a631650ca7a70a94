"""Sources named by hub id: what a configuration, a recipe or a command line calls them -> folders on this disk."""

from __future__ import annotations

from pathlib import Path

from benchmark.errors import InputError
from benchmark.hub_ids import is_hub_id
from benchmark.pipelines import hub
from benchmark.pipelines.hub import Portion
from merger.config.config import Config
from merger.errors import CheckpointError


def on_this_disk(source: Path, part: Portion = "whole") -> Path:
    """The source where it is a path; of a hub id (`owner/name`), its folder in the hub's cache, fetched if need be.

    Paths go first: an id is looked for only where nothing is at that path, from where the command is called. Raises
    CheckpointError, in one line with the command that fetches what is lacking.
    """
    return source if source.exists() or not is_hub_id(str(source)) else fetched(str(source), part)


def fetched(hub_id: str, part: Portion = "whole") -> Path:
    """The folder of a hub id. Raises CheckpointError as `on_this_disk`."""
    try:
        return hub.fetch(hub_id, part)
    except InputError as error:
        raise CheckpointError(str(error)) from error


def local(config: Config) -> Config:
    """`config` with a folder on this disk for every hub id. Names stay; the folder is that of one revision.

    So a search that is continued reads what it began with, even if the model has changed on the hub since.
    """

    def found(source: Path | None, key: str, part: Portion = "whole") -> Path | None:
        if source is None or source.is_absolute():
            return source
        try:
            return fetched(str(source), part)
        except CheckpointError as error:
            raise CheckpointError(f"{key}: {error}") from error

    base = found(config.base, "base")
    donors = tuple(
        donor.model_copy(update={"path": found(donor.path, f"donors.{place}"), "name": name})
        for place, (donor, name) in enumerate(zip(config.donors, config.donor_names, strict=True))
    )
    changed = {
        "base": base,
        "base_name": config.named_base,
        "donors": donors,
        "pipeline": found(config.pipeline, "pipeline", "configuration"),
        "vae": found(config.vae, "vae", "vae"),
        "text_encoders_from": found(config.text_encoders_from, "text_encoders_from"),
    }
    return config.model_copy(update=changed)
