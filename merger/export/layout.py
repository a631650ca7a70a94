"""What goes into an exported file, tensor by tensor: the same for writing it and for verifying it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from benchmark.pipelines.loading import dtypes
from merger.blend.arithmetic import blend, rounded
from merger.blend.differences import Difference
from merger.checkpoints.checkpoint import Checkpoint
from merger.checkpoints.compatibility import check_compatible
from merger.checkpoints.hashing import nonfinite_in
from merger.checkpoints.headers import FLOATING, aligned, check_codes
from merger.checkpoints.names.unet import DENOISER_PREFIX
from merger.checkpoints.source import TensorInfo
from merger.checkpoints.text_encoders import component_of, components_of, encoder_file
from merger.checkpoints.weight_files import PICKLES
from merger.errors import RecipeError, did_you_mean
from merger.export.recipe import Recipe, RecipeSource
from merger.layers.components import TEXT
from merger.layers.grouping import group
from merger.weights import Channels, Weight, matters

DTYPES = dtypes()
# base: every tensor of the base's files, under its keys. denoiser: those of the denoiser, and the markers that say how
# it is to be used. marked-denoiser: the same, with the markers under the denoiser's prefix as well. diffusers: the
# denoiser alone, under diffusers names and in diffusers' shapes. text_encoder...: that one alone, under the names it
# has in a diffusers folder.
Form = Literal["base", "denoiser", "marked-denoiser", "diffusers", "text_encoder", "text_encoder_2", "text_encoder_3"]
DENOISER_FORMS = ("denoiser", "marked-denoiser")
FORM_KEY = "layermerge.form"
_MARKERS = ("v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")


@dataclass(frozen=True)
class KeyRows:
    """Rows `start` to `stop` of a key, which are the rows from `at` on of the tensor `name`. whole: all of both.

    turned: the key has the tensor's two dimensions exchanged.
    """

    name: str
    start: int
    stop: int
    at: int
    whole: bool
    turned: bool = False


class Layout:
    """The tensors of one exported file, in its order. Raises RecipeError if recipe and checkpoints do not match.

    donors: the recipe's donors that have a weight. weights: {blended tensor: its weight per donor}. key_rows: {key: the
    rows of its tensor that are blended}. clamped: keys of the tensors yielded so far that had values beyond the range
    of their type, if the recipe clamps such values.
    """

    def __init__(self, recipe: Recipe, base: Checkpoint, donors: Sequence[Checkpoint], form: Form = "base") -> None:
        self.base = base
        named = {donor.name: donor for donor in donors}
        if missing := [donor.name for donor in recipe.used if donor.name not in named]:
            raise RecipeError(
                f"the recipe needs '{missing[0]}', which was not opened.{did_you_mean(missing[0], named)}"
            )
        self.donors = [named[donor.name] for donor in recipe.used]
        self._sources = list(zip((recipe.base, *recipe.used), (base, *self.donors), strict=True))
        self.check_sources()
        if bool(base.text) != (TEXT in recipe.components):
            raise RecipeError(f"the recipe blends {', '.join(recipe.components)}: {base.name} was opened for another.")
        check_compatible(base, self.donors)
        layers = group(base.blended, recipe.granularity, recipe.block_names)
        if unknown := [layer for layer in recipe.weights if layer not in layers]:
            raise RecipeError(f"the recipe weighs '{unknown[0]}', not a layer here.{did_you_mean(unknown[0], layers)}")
        rows = {layer: [recipe.weights.get(layer, {}).get(d.name, 0.0) for d in self.donors] for layer in layers}
        self.weights = {name: rows[layer] for layer, names in layers.items() for name in names}
        for name, row in self.weights.items():
            counts = {len(weight) for weight in row if isinstance(weight, Channels)}
            if counts - {base.blended[name].shape[0] if base.blended[name].shape else 1}:
                raise RecipeError(
                    f"the recipe has {sorted(counts)} weights by channel for '{name}', which is "
                    f"{list(base.blended[name].shape)}."
                )
        self.dtype = DTYPES.get(recipe.dtype)
        self.key_rows = key_rows_of(base)
        self.form = form
        self.clamp = recipe.clamp
        self.clamped: list[str] = []
        if form in DENOISER_FORMS and (lost := [name for name in base.text if any(map(matters, self.weights[name]))]):
            raise RecipeError(
                f"the blend changes text encoders as well ('{lost[0]}'), which a file of the denoiser alone would lose."
            )
        self._marks = marked_twice(base) if form == "marked-denoiser" else {}
        # A diffusers folder's forms: {key: (the blended tensor that it is, if any, what the base has)}
        self._renamed: dict[str, tuple[str, TensorInfo]] = {}
        if form == "diffusers":
            self._renamed = {name: (name, info) for name, info in base.denoiser.items()}
        elif form in components_of(base.text):
            self._renamed = encoder_file(base, form)
        elif form not in ("base", *DENOISER_FORMS):
            raise RecipeError(f"{base.name}: has no {form} that is blended.")

    def check_sources(self) -> None:
        """Raise RecipeError for a source whose bytes are not the recipe's; a file that is unchanged is hashed once."""
        for source, opened in self._sources:
            if opened.sha256 != source.sha256:
                raise RecipeError(changed_source(opened, source))

    def entries(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """{key: (dtype, shape)} in the order of the file.

        Raises CheckpointError for a tensor of the base that a `.safetensors` file cannot hold.
        """
        if self._renamed:
            infos = {key: info for key, (_, info) in self._renamed.items()}
        else:
            infos = dict(self.base.tensors)
            if self.form in DENOISER_FORMS:
                own = {key for key, rows in self.key_rows.items() if not component_of(rows[0].name)}
                infos = {key: info for key, info in infos.items() if key in own or key.endswith(_MARKERS)}
                infos |= {key: infos[mark] for key, mark in self._marks.items()}
        check_codes(self.base.path, {key: info.dtype for key, info in infos.items()})
        entries = {key: (self._dtype_of(info.dtype), info.shape) for key, info in infos.items()}
        # tensors of other widths or order than in the base's file must still begin on a multiple of their own width
        as_it_was = self.dtype is None and not self._renamed and self.base.path.suffix not in PICKLES
        return entries if as_it_was else aligned(entries)

    def as_it_was(self, key: str, dtype: torch.dtype) -> bool:
        """Whether the file's tensor of this dtype is the base's own, neither blended nor converted."""
        if self._renamed:
            name, info = self._renamed[key]
            return not name and info.dtype == dtype
        return key not in self.key_rows and self.base.tensors[self._marks.get(key, key)].dtype == dtype

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(key, tensor) one at a time, in the order of `entries`."""
        for key, (dtype, shape) in self.entries().items():
            tensor = self._tensor(key, dtype, clamp=False)
            if self.clamp and not self.as_it_was(key, dtype) and nonfinite_in(tensor):
                self.clamped.append(key)
                tensor = self._tensor(key, dtype, clamp=True)
            yield key, tensor.reshape(shape)

    def _tensor(self, key: str, dtype: torch.dtype, *, clamp: bool) -> Tensor:
        if self._renamed:
            name, info = self._renamed[key]
            if name:
                return self._blend(name, self.base.read(name), slice(None), dtype, clamp=clamp)
            return self._kept(self.base.read_key(key, info.file), dtype, clamp=clamp)
        if key not in self.key_rows:
            return self._kept(self.base.read_key(self._marks.get(key, key)), dtype, clamp=clamp)
        return self._blend_key(key, dtype, clamp=clamp)

    def _kept(self, tensor: Tensor, dtype: torch.dtype, *, clamp: bool) -> Tensor:
        """A tensor that is not blended."""
        return tensor if tensor.dtype == dtype else rounded(tensor, dtype, clamp=clamp)

    def _blend_key(self, key: str, dtype: torch.dtype, *, clamp: bool) -> Tensor:
        kept = self.base.read_key(key)
        parts = self.key_rows[key]
        if len(parts) == 1 and parts[0].whole:
            return self._blend(parts[0].name, kept, slice(None), dtype, turned=parts[0].turned, clamp=clamp)
        made = self._kept(kept, dtype, clamp=clamp).clone()
        for part in parts:
            here = kept[part.start : part.stop]
            rows = slice(part.at, part.at + part.stop - part.start)
            made[part.start : part.stop] = self._blend(part.name, here, rows, dtype, clamp=clamp).reshape(here.shape)
        return made

    def _blend(
        self, name: str, kept: Tensor, rows: slice, dtype: torch.dtype, *, turned: bool = False, clamp: bool
    ) -> Tensor:
        """Rows of one tensor, blended, flat. kept: the base's. turned: with its dimensions exchanged, as `kept` is."""
        given = zip(self.donors, self.weights[name], strict=True)
        used = [(donor, _of_rows(weight, rows)) for donor, weight in given if matters(weight)]
        weights = [weight for _, weight in used]
        read = [_rows(donor.read(name), rows) for donor, _ in used]
        if turned and any(isinstance(weight, Channels) for weight in weights):  # as the network has it, then back
            own = [Difference(tensor.reshape(-1)) for tensor in read]
            made = blend(kept.T.reshape(-1), own, weights, dtype=dtype, clamp=clamp)
            return made.reshape(kept.T.shape).T.reshape(-1)
        differences = [Difference((tensor.T if turned else tensor).reshape(-1)) for tensor in read]
        return blend(kept.reshape(-1), differences, weights, dtype=dtype, clamp=clamp)

    def _dtype_of(self, stored: torch.dtype) -> torch.dtype:
        return self.dtype if self.dtype is not None and stored in FLOATING else stored


def marked_twice(base: Checkpoint) -> dict[str, str]:
    """{marker key under the denoiser's prefix: the base's own key of that marker}, of those that it lacks there.

    ComfyUI's loader of a denoiser alone keeps only the keys under the prefix if it finds more than five of them
    (`unet_prefix_from_state_dict` in comfy/model_detection.py, `load_diffusion_model_state_dict` in comfy/sd.py, as of
    2025), and then asks for `v_pred` without a prefix (`SDXL.model_type` in comfy/supported_models.py). Its loader of
    whole checkpoints, Forge and diffusers ask for the marker beside the prefix, so the markers are in both places.
    """
    if not any(key.startswith(DENOISER_PREFIX) for key in base.tensors):
        return {}
    marks = [key for key in base.tensors if key in _MARKERS]
    return {DENOISER_PREFIX + key: key for key in marks if DENOISER_PREFIX + key not in base.tensors}


def key_rows_of(base: Checkpoint) -> dict[str, list[KeyRows]]:
    """{key: the rows of its tensor that are blended}."""
    rows: dict[str, list[KeyRows]] = {}
    for name, info in base.blended.items():
        at = 0
        for piece in info.pieces:
            rows.setdefault(piece.key, []).append(KeyRows(name, piece.start, piece.stop, at, False))
            at += piece.stop - piece.start
        if not info.pieces:
            rows[info.key] = [KeyRows(name, 0, 0, 0, True, info.turned)]
    return rows


def changed_source(found: Checkpoint, source: RecipeSource) -> str:
    """The message for a source that is not the recipe's."""
    return (
        f"{found.path}: not the '{source.name}' of the recipe: its SHA-256 begins {found.sha256[:12]}, "
        f"the recipe's {source.sha256[:12]}."
    )


def _of_rows(weight: Weight, rows: slice) -> Weight:
    return weight if rows == slice(None) or not isinstance(weight, Channels) else Channels(weight.values[rows])


def _rows(tensor: Tensor, rows: slice) -> Tensor:
    return tensor if rows == slice(None) else tensor[rows]
