"""What checkpoint files are and whether they can be blended, as a table of plain values and as text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark.adapters.peft_config import adapter_file
from merger.checkpoints.adapter import is_adapter, open_lora
from merger.checkpoints.checkpoint import Checkpoint, open_checkpoint, read_unet_config
from merger.checkpoints.compatibility import check_compatible, in_words, mixed_prediction, predicts
from merger.checkpoints.families import family_named
from merger.checkpoints.hash_cache import known_contents
from merger.checkpoints.hub import on_this_disk
from merger.checkpoints.recipe_metadata import origin_of
from merger.checkpoints.text_encoders import text_tensors
from merger.checkpoints.weight_files import PICKLES, open_weights
from merger.errors import CheckpointError, ConfigError, NoDenoiser
from merger.layers.grouping import group, sizes
from merger.layers.text import group_text


def inspect_files(
    paths: Sequence[Path], pipeline: Path | None = None, *, allow_pickle: bool = False, hashes: bool = False
) -> dict[str, Any]:
    """Describe checkpoints by their headers; the first is the base that the others must be compatible with.

    hashes: whether the files are read too, so that `sha256` is there (else None) and `nonfinite` ({key: `NaN` or
    `infinite values`}, of tensors that are no finite numbers) is not empty where it should not be.

    Returns {"files": [...], "fit": {"ok", "problem", "left_out", "remarks"}}. Each file is one of three:
    - a checkpoint: {name, path, family, layout, prediction, zero_snr, bytes, tensors, parameters, dtypes,
      other_tensors, sha256, nonfinite, layers, text_encoders, recipe}, with `layers` {block: parameters} and
      `text_encoders` {text encoder: parameters};
    - weights of another kind: {name, path, kind, words, bytes, tensors, dtypes, sha256, nonfinite};
    - a file that cannot be opened: {name, path, problem}.

    Raises CheckpointError if the only file cannot be opened. Files that cannot be blended are no error; "fit" says why.
    """
    config = read_unet_config(pipeline) if pipeline is not None else None
    opened: list[Checkpoint] = []
    files: list[dict[str, Any]] = []
    refused: list[str] = []
    for path, name in zip(paths, unique_names(paths), strict=True):
        try:
            path = adapter_file(on_this_disk(Path(path), "denoiser"))
            checkpoint = open_checkpoint(path, name=name, unet_config=config, allow_pickle=allow_pickle)
            files.append(_describe(checkpoint, pipeline, hashes))
            opened.append(checkpoint)
        except NoDenoiser as error:
            files.append(_describe_other(Path(path), name, error, allow_pickle, hashes))
            try:
                if not opened or (error.kind != "lora" and not is_adapter(Path(path), allow_pickle)):
                    refused.append(str(error))
                    continue
                lora = open_lora(Path(path), opened[0], name=name, allow_pickle=allow_pickle)
                opened.append(lora)
                files[-1] |= {"changes": len(lora.changes), "text_tensors": len(lora.text_keys)}
            except CheckpointError as unfit:
                refused.append(str(unfit))
        except CheckpointError as error:
            if len(paths) == 1:
                raise
            refused.append(str(error))
            files.append({"name": name, "path": str(path), "problem": str(error)})
    fit: dict[str, Any] = {"ok": True, "problem": None, "left_out": {}, "remarks": []}
    try:
        if refused and len(paths) > 1:
            raise CheckpointError(refused[0])
        if opened:
            fit["left_out"] = {name: list(extra) for name, extra in check_compatible(opened[0], opened[1:]).items()}
            notes = [f"{each.name}: {note}" for each in opened for note in each.notes]
            fit["remarks"] = notes + mixed_prediction(opened[0], opened[1:], pipeline)
    except CheckpointError as error:
        fit |= {"ok": False, "problem": str(error)}
    return {"files": files, "fit": fit}


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Names for checkpoints: the files', with the folder's name in front, or a number behind, if two are alike."""
    stems = [Path(path).name.removesuffix(".safetensors") for path in paths]
    doubled = {stem for stem, count in Counter(stems).items() if count > 1}
    names: list[str] = []
    for path, stem in zip(paths, stems, strict=True):
        name = f"{Path(path).absolute().parent.name}-{stem}" if stem in doubled else stem
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return names


def format_inspection(found: dict[str, Any]) -> str:
    """The table of `inspect_files` as text."""
    lines = []
    known = [file for file in found["files"] if "family" in file]
    for file in found["files"]:
        lines += _lines(file)
    shapes = {tuple(file["layers"].items()) for file in known}
    for file in known if len(shapes) > 1 else known[:1]:
        lines.append(f"layers of {file['name']} (parameters):" if len(shapes) > 1 else "layers (parameters):")
        cells = [f"{layer} {count:>11,}" for layer, count in file["layers"].items()]
        lines += ["  " + "   ".join(cells[i : i + 4]) for i in range(0, len(cells), 4)]
    if len(found["files"]) > 1:
        lines.append("they fit together" if found["fit"]["ok"] else f"they do not fit: {found['fit']['problem']}")
    for name, extra in found["fit"]["left_out"].items():
        lines.append(f"a blend leaves out {len(extra)} tensors of {name}, first '{extra[0]}'")
    lines += [f"note: {remark}" for remark in found["fit"]["remarks"]]
    return "\n".join(lines)


def _lines(file: dict[str, Any]) -> list[str]:
    """The lines on one file."""
    if "problem" in file:
        return [f"error: {file['problem']}"]
    dtypes = ", ".join(f"{count} x {dtype}" for dtype, count in file["dtypes"].items())
    if "kind" in file:
        lines = [f"{file['path']}", f"  {file['words']}; {_size(file['bytes'])}, {file['tensors']} tensors ({dtypes})"]
        if "changes" in file:
            text = file["text_tensors"]
            left = f"; {text} tensors for text encoders are left out unless those are blended" if text else ""
            lines.append(f"  changes {file['changes']} tensors of the base's denoiser{left}")
        return lines + _of_contents(file)
    network = family_named(file["family"]).network_in_words
    predicted = in_words(file["prediction"], file["zero_snr"])
    lines = [
        f"{file['path']}",
        f"  {file['family']} {network}, {file['layout']} layout, {_size(file['bytes'])}; {predicted}",
        f"  denoiser: {file['parameters']:,} parameters in {file['tensors']} tensors ({dtypes}); "
        f"{file['other_tensors']} other tensors",
    ]
    if file["text_encoders"]:
        encoders = ", ".join(f"{layer} {count:,}" for layer, count in file["text_encoders"].items())
        lines.append(f"  text encoders (parameters): {encoders}")
    lines += _of_contents(file)
    if file["recipe"]:
        lines.append(f"  a blend made by layermerge {file['recipe']['version']} from {', '.join(file['recipe']['of'])}")
    return lines


def _of_contents(file: dict[str, Any]) -> list[str]:
    """The lines on what the file's bytes say, if they were read."""
    lines = [f"  SHA-256 {file['sha256']}"] if file["sha256"] else []
    if bad := list(file["nonfinite"].items()):
        lines.append(f"  '{bad[0][0]}' holds {bad[0][1]}, which are not finite numbers ({len(bad)} such tensors)")
    return lines


def _describe_other(path: Path, name: str, found: NoDenoiser, allow_pickle: bool, hashes: bool) -> dict[str, Any]:
    contents = known_contents(path) if hashes and path.is_file() else None
    tensors = open_weights(path, allow_pickle=allow_pickle).header.tensors if path.is_file() else {}
    return {
        "name": name,
        "path": str(path),
        "kind": found.kind,
        "words": found.words,
        "bytes": path.stat().st_size if path.is_file() else 0,
        "tensors": len(tensors),
        "dtypes": dict(Counter(str(entry.dtype).removeprefix("torch.") for entry in tensors.values())),
        "sha256": contents.sha256 if contents else None,
        "nonfinite": dict(contents.nonfinite) if contents else {},
    }


def _describe(checkpoint: Checkpoint, pipeline: Path | None, hashes: bool) -> dict[str, Any]:
    prediction, zero_snr = predicts(checkpoint, pipeline)
    elements = {name: math.prod(info.shape) for name, info in checkpoint.denoiser.items()}
    text = {name: math.prod(info.shape) for name, info in text_tensors(checkpoint).items()}
    return {
        "name": checkpoint.name,
        "path": str(checkpoint.path),
        "family": checkpoint.family,
        "layout": checkpoint.layout,
        "prediction": prediction,
        "zero_snr": zero_snr,
        "bytes": sum(file.stat().st_size for file in checkpoint.files),
        "tensors": len(elements),
        "parameters": checkpoint.parameters,
        "dtypes": dict(Counter(str(info.dtype).removeprefix("torch.") for info in checkpoint.denoiser.values())),
        "other_tensors": len(checkpoint.other_keys),
        "sha256": checkpoint.combined(lambda file: known_contents(file).sha256) if hashes else None,
        "nonfinite": _nonfinite(checkpoint) if hashes else {},
        "layers": sizes(_blocks(checkpoint), elements),
        "text_encoders": sizes(group_text(text, "block"), text),
        "recipe": _recipe_of(checkpoint),
    }


def _blocks(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    try:
        return group(checkpoint.denoiser, "block")
    except ConfigError as error:  # a network with gaps
        raise CheckpointError(f"{checkpoint.path}: {error}") from None


def _nonfinite(checkpoint: Checkpoint) -> dict[str, str]:
    files = [file for file in checkpoint.weight_files if file.suffix not in PICKLES]
    return {key: what for file in files for key, what in known_contents(file).nonfinite.items()}


def _recipe_of(checkpoint: Checkpoint) -> dict[str, Any] | None:
    origin = origin_of(checkpoint.metadata, str(checkpoint.path))
    return None if origin is None else {"version": origin.version, "of": list(origin.sources)}


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
