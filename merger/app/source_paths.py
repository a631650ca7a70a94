"""A configuration's sources as paths on this disk: hub ids become folders of the hub's cache."""

from __future__ import annotations

from pathlib import Path

from benchmark.pipelines.hub import Portion
from merger.checkpoints.hub import fetched
from merger.config.config import Config
from merger.errors import CheckpointError


def local(config: Config) -> Config:
    """`config` with a folder on this disk for every hub id. Names stay; the folder is that of one revision.

    A search that is continued therefore reads what it began with, even if the model has changed on the hub since.
    Raises CheckpointError, naming the setting, for an id that is not in the cache and cannot be fetched.
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
        donor.model_copy(
            update={
                "path": found(donor.path, f"donors.{place}"),
                "minus": found(donor.minus, f"donors.{place}.minus"),
                "name": name,
            }
        )
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
