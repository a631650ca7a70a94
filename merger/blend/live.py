"""The live denoiser: donors held ready, blends written in place, and a checksum that proves it.

    P   elements of a layer's buffer: its tensors end to end, each starting on a multiple of 64 elements, zeros between
    D   donors

A layer's parameters become views into one flat buffer [P] of the module's dtype; base and donors are held in flat
buffers of the same layout in the dtype of their files, on the device or in the host's memory, or stay in their files
(`merger.blend.sources`). A blend is one pass over each layer.

What is scored is what is exported: blended values are rounded to the dtype of the base file's tensors first, to the
module's afterwards, exactly as if the exported file had been loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from merger.blend.arithmetic import CPU_CHUNK, GPU_CHUNK, blend_into
from merger.blend.differences import Difference
from merger.blend.fetching import PIECE, Piece, ahead, fetched_nbytes
from merger.blend.sources import Copies, Hold, Mapped, Span, choose_hold, copies_nbytes
from merger.checkpoints.checkpoint import Checkpoint
from merger.checkpoints.names.text import bare_name
from merger.checkpoints.source import Source
from merger.checkpoints.text_encoders import component_of
from merger.errors import BlendNotApplied, CheckpointError, ConfigError, did_you_mean
from merger.weights import Channels, Weight, Weights, matters

Read = Callable[[], tuple[Tensor, tuple[Difference, ...]]]
"""Gives a parameter's values in the base [P], and what each of the D donors adds to them."""

_ALIGN = 64  # elements; kernels want tensors on at least 64 bytes
_ROW = 4096  # bytes; a buffer is a whole number of rows, so that its checksum needs no special ends


@dataclass(frozen=True)
class _Layer:
    """One layer: the live buffer [P], what it is blended from, and the parameters that view into `live`."""

    live: Tensor
    held: Copies | Mapped
    parameters: Mapping[str, Tensor]
    places: Mapping[str, Span]  # where each tensor lies in the buffer


class LiveDenoiser:
    """A module whose parameters are a blend that can be changed quickly and in place.

    module: the denoiser, already of its dtype and on its device; it must stay there. base, donors: opened and
    compatible (`merger.checkpoints.compatibility`). layers: {layer: tensor names}, together all of the module's
    parameters and persistent buffers. text_encoders: {component: its module}, if they are blended too; tensors that the
    base's file does not hold stay as they are. hold: where base and donors are held; None chooses by the free memory,
    and `remark` then tells the user of a choice that costs time.

    On its device it holds D + 2 copies of what is blended, or one. It starts as the base. Raises CheckpointError if
    module, base and layers do not agree on the tensors.
    """

    def __init__(
        self,
        module: nn.Module,
        base: Checkpoint,
        donors: Sequence[Source],
        layers: Mapping[str, Sequence[str]],
        text_encoders: Mapping[str, nn.Module] | None = None,
        *,
        hold: Hold | None = None,
    ) -> None:
        self.module, self.text_encoders = module, dict(text_encoders or {})
        self.donors = tuple(donor.name for donor in donors)
        self._text_names = base.text.keys() if self.text_encoders else frozenset()
        parameters = self._state()
        _check(parameters, base, layers)
        self._sources: tuple[Source, ...] = (base, *donors)
        self.hold, self.remark = (hold, "") if hold else choose_hold(self._sources, parameters)
        self._layers = {
            layer: _lay_out({name: parameters[name] for name in names}, self._sources, self.hold)
            for layer, names in layers.items()
        }
        self._text_layers = {layer for layer, names in layers.items() if any(component_of(name) for name in names)}
        self.weights: dict[str, tuple[Weight, ...]] = {}
        self._digests: dict[str, bytes] = {}
        self.checksum = self.restore()

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in order."""
        return tuple(self._layers)

    @property
    def nbytes(self) -> int:
        """Bytes on the device: live buffers, and base and donors if they are held there."""
        return self.live_nbytes + (self.held_nbytes if self.hold == "device" else 0)

    @property
    def parameters(self) -> list[Tensor]:
        """What is blended: the module's own parameters, and the text encoders' if they are blended too."""
        return [parameter for layer in self._layers.values() for parameter in layer.parameters.values()]

    @property
    def live_nbytes(self) -> int:
        """Bytes of the live buffers."""
        return sum(layer.live.nbytes for layer in self._layers.values())

    @property
    def held_nbytes(self) -> int:
        """Bytes of base and donors, on the device or in the host's memory; 0 if they stay in their files."""
        return sum(layer.held.nbytes for layer in self._layers.values())

    @property
    def copies_nbytes(self) -> int:
        """Bytes that base and donors take where they are copied, about."""
        return copies_nbytes(self._sources, [name for layer in self._layers.values() for name in layer.places])

    @property
    def blending_nbytes(self) -> int:
        """The most that a blend takes on the device while it is computed, besides what is held."""
        live = max((layer.live for layer in self._layers.values()), key=torch.Tensor.numel)
        return blending_nbytes(live.numel(), live.element_size(), len(self.donors), gpu=live.is_cuda)

    def hold_in(self, hold: Hold) -> None:
        """Hold base and donors elsewhere from now on. The live weights stay as they are."""
        if hold == self.hold:
            return
        self.hold = hold
        for layer, known in list(self._layers.items()):
            self._layers[layer] = replace(known, held=Mapped(self._sources, known.places))  # frees before it takes
        for layer, known in list(self._layers.items()):
            held = _hold(self._sources, known.places, known.live, hold)
            self._layers[layer] = replace(known, held=held)

    @property
    def text_checksum(self) -> str:
        """The checksum of the layers with text encoders' tensors: while it stays the same, so do text embeddings."""
        return _join({layer: digest for layer, digest in self._digests.items() if layer in self._text_layers})

    def differences(self, layer: str) -> Iterator[tuple[Tensor, Read]]:
        """Each parameter of `layer` with a call that gives what it is blended from: base and differences, see `Read`.

        P is the parameter's own number of elements; the values are on its device, in the dtype of their files.
        """
        everyone = range(len(self.donors))

        def reader(place: Span, device: torch.device) -> Read:
            def read() -> tuple[Tensor, tuple[Difference, ...]]:
                base, differences = self._layers[layer].held.read(place, everyone)  # wherever it is held by then
                return base.to(device, non_blocking=True), tuple(difference.to(device) for difference in differences)

            return read

        known = self._layers[layer]
        for name, parameter in known.parameters.items():
            yield parameter, reader(known.places[name], parameter.device)

    def apply(self, weights: Weights) -> str:
        """Make the module the blend of these weights: {layer: {donor: weight}}; weights that are missing are 0.

        A layer of one tensor may have weights by channel. Returns the checksum of the live weights, 32 hex digits: the
        same blend gives the same one on any device. Raises ConfigError for an unknown layer or donor and for channels
        that are not the tensor's, and BlendNotApplied if the module does not hold the blend
        afterwards; the module's state is then undefined until `restore`.
        """
        for layer in weights:
            if layer not in self._layers:
                raise ConfigError(f"layer '{layer}' does not exist.{did_you_mean(layer, self._layers)}")
        rows = {layer: self._row(layer, weights.get(layer, {})) for layer in self._layers}
        self._check_views()
        with torch.no_grad():
            for layer, row in rows.items():
                _blend_layer(self._layers[layer], row)
        digests = {layer: _digest(held.live) for layer, held in self._layers.items()}
        for layer, row in rows.items():
            # New weights may leave the bits as they were only if donors agree or rounding hides the change.
            if digests[layer] == self._digests.get(layer) and row != self.weights.get(layer):
                self._check_blend(layer, row)
        self.weights, self._digests = rows, digests
        self.checksum = _join(digests)
        return self.checksum

    def restore(self) -> str:
        """Make the module the base again, bit for bit. Returns its checksum."""
        return self.apply({})

    def _row(self, layer: str, row: Mapping[str, Weight]) -> tuple[Weight, ...]:
        shapes = [tuple(parameter.shape) for parameter in self._layers[layer].parameters.values()]
        for donor, weight in row.items():
            if donor not in self.donors:
                raise ConfigError(f"{layer}: '{donor}' is not a donor.{did_you_mean(donor, self.donors)}")
            if isinstance(weight, Channels) and (len(shapes) > 1 or shapes[0][:1] != (len(weight),)):
                raise ConfigError(f"{layer}: {len(weight)} weights by channel do not fit tensors of {shapes[:3]}")
        given = (row.get(donor, 0.0) for donor in self.donors)
        return tuple(weight if isinstance(weight, Channels) else float(weight) for weight in given)

    def _check_views(self) -> None:
        """Raise BlendNotApplied unless the module's parameters are still the views into our buffers."""
        current = self._state()
        for layer in self._layers.values():
            for name, parameter in layer.parameters.items():
                address = layer.live.data_ptr() + layer.places[name].start * layer.live.element_size()
                if current.get(name) is not parameter or parameter.data_ptr() != address:
                    raise BlendNotApplied(
                        f"'{name}' no longer lies in the blended buffer: the module was moved, cast or given new "
                        "parameters after it became live. Make it live again."
                    )

    def _state(self) -> dict[str, Tensor]:
        """Parameters and persistent buffers (such as SD 3's table of positions) by name; themselves, not copies."""
        state = self.module.state_dict(keep_vars=True)
        for component, encoder in self.text_encoders.items():
            named = {f"{component}.{bare_name(name)}": t for name, t in encoder.state_dict(keep_vars=True).items()}
            state |= {name: tensor for name, tensor in named.items() if name in self._text_names}
        return state

    def _check_blend(self, layer: str, row: tuple[Weight, ...]) -> None:
        held = self._layers[layer]
        afresh = replace(held, live=torch.zeros_like(held.live), parameters={})
        _blend_layer(afresh, row)
        if _digest(afresh.live) != _digest(held.live):
            raise BlendNotApplied(
                f"the weights of {layer} were changed to {list(row)}, but its tensors did not change."
            )


def blending_nbytes(largest: int, itemsize: int, donors: int, *, gpu: bool) -> int:
    """The most that a blend takes while it is computed, if the largest layer has so many elements of so many bytes."""
    scratch = 3 * 4 * min(GPU_CHUNK if gpu else CPU_CHUNK, largest)
    # A layer that did not change is blended afresh once more, beside the live one.
    return largest * itemsize + scratch + (fetched_nbytes(donors) if gpu else 0)


def checksum_of(buffers: Mapping[str, Tensor]) -> str:
    """The checksum that `LiveDenoiser.apply` returns, of buffers [P] of a whole number of 4096 bytes."""
    return _join({layer: _digest(buffer) for layer, buffer in buffers.items()})


def _check(parameters: Mapping[str, Tensor], base: Checkpoint, layers: Mapping[str, Sequence[str]]) -> None:
    """Raise CheckpointError unless module, base and layers have the same tensors, once each, in one dtype and place."""
    named = [name for names in layers.values() for name in names]
    if len(named) != len(set(named)):
        raise CheckpointError("a tensor is in two layers: every tensor must be in exactly one")
    if odd := sorted(set(named) ^ set(parameters)):
        where = "no layer" if odd[0] in parameters else "the layers, but not in the module"
        raise CheckpointError(f"'{odd[0]}' is in {where} ({len(odd)} such): is it the denoiser of this pipeline?")
    for name, parameter in parameters.items():
        info = base.blended.get(name)
        if info is None or info.shape != tuple(parameter.shape):
            found = "nothing" if info is None else list(info.shape)
            raise CheckpointError(
                f"{base.path.name}: '{name}' is {found} in the file, in the pipeline it is {list(parameter.shape)}."
            )
    if len({(parameter.dtype, parameter.device) for parameter in parameters.values()}) != 1:
        raise CheckpointError("the parameters that are blended must all have one dtype and be on one device")


def _lay_out(parameters: Mapping[str, Tensor], sources: Sequence[Source], hold: Hold) -> _Layer:
    """Lay a layer's tensors end to end, make the parameters views of them, and hold base and donors alike."""
    first = next(iter(parameters.values()))
    places: dict[str, Span] = {}
    at = 0
    for name, parameter in parameters.items():
        places[name] = Span(name, at, at + parameter.numel(), sources[0].blended[name].dtype)
        at += -(-parameter.numel() // _ALIGN) * _ALIGN
    total = -(-at // _ROW) * _ROW  # elements, so bytes as well
    live = torch.zeros(total, dtype=first.dtype, device=first.device)
    held = _hold(sources, places, live, hold)
    for name, parameter in parameters.items():
        parameter.data = live[places[name].start : places[name].end].view(parameter.shape)
    return _Layer(live, held, dict(parameters), places)


def _hold(sources: Sequence[Source], places: Mapping[str, Span], live: Tensor, hold: Hold) -> Copies | Mapped:
    """A layer's base and donors, held where `hold` says."""
    if hold == "file":
        return Mapped(sources, places)
    if hold == "host":
        return Copies(sources, places, len(live), torch.device("cpu"), pinned=live.device.type == "cuda")
    return Copies(sources, places, len(live), live.device)


def _blend_layer(layer: _Layer, row: Sequence[Weight]) -> None:
    used = [column for column, weight in enumerate(row) if matters(weight)]
    weights = [row[column] for column in used]
    pieces = _pieces(layer, used, whole=any(isinstance(weight, Channels) for weight in weights))
    for piece in ahead(pieces, layer.live.device):
        blend_into(layer.live[piece.here], piece.base, piece.differences, weights, stored=piece.stored)


def _pieces(layer: _Layer, used: Sequence[int], *, whole: bool) -> Iterator[Piece]:
    """What a layer is blended from: a piece for each span, or several where it must be fetched. whole: one for each."""
    for span in layer.held.spans:
        base, differences = layer.held.read(span, used)
        piece = Piece(slice(span.start, span.end), base, tuple(differences), span.stored)
        yield from (piece,) if whole or base.device == layer.live.device else piece.parts(PIECE)


def _digest(buffer: Tensor) -> bytes:
    """The sums of a buffer's rows and columns, its bytes seen as 64-bit integers [rows, 512], modulo 2**64.

    Any single bit that changes changes a sum, and moved or exchanged values change sums of their rows or columns.
    Integer sums are the same in any order, so on any device. Costs two reads of the buffer; 1/512 of it is copied to
    the CPU.
    """
    words = buffer.view(torch.int64).view(-1, _ROW // 8)
    return b"".join(words.sum(dim).cpu().numpy().tobytes() for dim in (0, 1))


def _join(digests: Mapping[str, bytes]) -> str:
    hashed = hashlib.blake2b(digest_size=16)
    for layer, digest in digests.items():
        hashed.update(layer.encode() + b"\0" + digest)
    return hashed.hexdigest()
