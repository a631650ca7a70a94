"""The formats of taggers, one entry each, and the tagger in a folder opened by them. Importing this loads no format.

To add a format, write a class as `TaggerFormat` describes it, and register an entry that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.errors import InputError, did_you_mean, first_line
from benchmark.hub_ids import is_hub_id
from benchmark.reading import read_json

if TYPE_CHECKING:
    from benchmark.taggers.tagger import Tagger

_FETCHED = ("*.json", "*.csv", "*.onnx", "model.safetensors")  # of a hub id: what taggers need, and no pickles


def _always(folder: Path) -> bool:
    return True


@dataclass(frozen=True)
class TaggerFormat:
    """A kind of tagger. A folder holds one if it has all of `files` and `recognised(folder)` is true.

    `opener`: `"module:Class"`. It is called as `Class(folder, device=device, threads=threads)` (`threads` None means
    all cores), and returns a `Tagger` or raises InputError. `thresholds`: number of tags -> (threshold, whose tagger
    that is and who recommends it), for taggers whose makers or users have settled on one. The number tells them from
    taggers that others trained in the same format.
    """

    kind: str
    files: tuple[str, ...]
    opener: str
    thresholds: Mapping[int, tuple[float, str]] = field(default_factory=dict)
    recognised: Callable[[Path], bool] = _always

    def holds(self, folder: Path) -> bool:
        """Whether a folder holds a tagger of this format."""
        return all((folder / file).is_file() for file in self.files) and self.recognised(folder)


def _is_timm(folder: Path) -> bool | None:
    """Whether `config.json` is timm's: timm's and transformers' models have the same file names.

    None if it cannot be read; what opens the folder then reports it.
    """
    try:
        config = read_json(folder / "config.json")
    except InputError:
        return None
    return isinstance(config, dict) and "architecture" in config


_WD_V3 = {10861: (0.35, "WD v3: the default for general tags of its demo page, SmilingWolf/wd-tagger")}
_WD_V2 = {9083: (0.35, "WD v2: the default for general tags of its demo page, SmilingWolf/wd-tagger")}
_ML_DANBOORU = {12547: (0.7, "ML-Danbooru: the default of get_mldanbooru_tags in dghs-imgutils")}

_BUILT_IN = (
    TaggerFormat(
        "transformers",
        ("config.json", "model.safetensors"),
        "benchmark.taggers.transformers_tagger:TransformersTagger",
        recognised=lambda folder: _is_timm(folder) is not True,
    ),
    TaggerFormat("wd", ("selected_tags.csv", "model.onnx"), "benchmark.taggers.wd:WDTagger", _WD_V3 | _WD_V2),
    TaggerFormat(
        "wd-timm",
        ("selected_tags.csv", "config.json", "model.safetensors"),
        "benchmark.taggers.wd_timm:TimmTagger",
        _WD_V3,
        recognised=lambda folder: _is_timm(folder) is not False,
    ),
    TaggerFormat("ml-danbooru", ("classes.json",), "benchmark.taggers.ml_danbooru:MLDanbooruTagger", _ML_DANBOORU),
)
_FORMATS = {known.kind: known for known in _BUILT_IN}  # a folder that holds several opens as the first of them


def register_tagger(added: TaggerFormat) -> None:
    """Add a format after the known ones. Raises ValueError if its kind is taken by another format."""
    if _FORMATS.setdefault(added.kind, added) != added:
        raise ValueError(f"there is a tagger format '{added.kind}' already")


def tagger_kinds() -> tuple[str, ...]:
    """The kinds of taggers that are known."""
    return tuple(_FORMATS)


def check_tagger_kind(kind: str) -> str:
    """The kind, if it is known. Raises InputError, naming those that are, if it is not."""
    if kind not in _FORMATS:
        raise InputError(f"Unknown kind of tagger '{kind}'.{did_you_mean(kind, _FORMATS)}")
    return kind


def open_tagger(
    path: Path | str, *, kind: str | None = None, device: str = "cpu", threads: int | None = None
) -> Tagger:
    """Open the tagger in a folder, or of a hub id (`owner/name`, `owner/name@revision`), which is downloaded.

    A folder that holds several opens as `kind`, or as the first of `tagger_kinds()` that it holds. `threads` is for
    ONNX; None takes all cores. Raises InputError for what is missing or unreadable.
    """
    wanted = [_FORMATS[check_tagger_kind(kind)]] if kind is not None else list(_FORMATS.values())
    folder = _local_folder(path, wanted)
    chosen = next((known for known in wanted if known.holds(folder)), None)
    if chosen is None:
        raise InputError(f"{folder}: holds no tagger; it needs {_needed(wanted)}.")
    module, _, name = chosen.opener.partition(":")
    from benchmark.taggers.asking import foreign  # needs NumPy, and naming the formats does not

    with foreign(f"{folder}: the tagger cannot be opened"):
        opened: Tagger = getattr(import_module(module), name)(folder, device=device, threads=threads)
    return opened


def recommended_threshold(tagger: Tagger) -> tuple[float, str] | None:
    """(threshold, whose tagger it is and who recommends it); None for a tagger that is not known."""
    opener = f"{type(tagger).__module__}:{type(tagger).__qualname__}"
    known = next((known for known in _FORMATS.values() if known.opener == opener), None)
    return None if known is None else known.thresholds.get(len(tagger.tags))


def _local_folder(path: Path | str, formats: Sequence[TaggerFormat]) -> Path:
    """The folder on this disk; a hub id is downloaded. Raises InputError for what is neither."""
    folder, text = Path(path), str(path)
    if folder.is_dir():
        return folder
    needed = f"(a tagger is a folder with {_needed(formats)})"
    if folder.is_file():
        raise InputError(f"{folder}: is a file; name the folder it is in {needed}.")
    if not is_hub_id(text):
        raise InputError(f"{folder}: there is no such folder {needed}.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = text.partition("@")
    patterns = list(dict.fromkeys([*_FETCHED, *(file for wanted in formats for file in wanted.files)]))
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = first_line(error)
        raise InputError(f"{text}: is no folder here, and cannot be fetched from the hub ({reason}).") from None


def _needed(formats: Sequence[TaggerFormat]) -> str:
    return " or ".join(" and ".join(known.files) for known in formats)
