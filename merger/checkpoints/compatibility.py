"""Whether donors can be blended into a base, and if not, why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmark.pipelines.key_names import usual
from merger.checkpoints.checkpoint import Checkpoint, read_scheduler_config
from merger.checkpoints.families import prediction_of, said_prediction
from merger.errors import CheckpointError
from merger.layers.components import TEXT_ENCODERS

_INPUT = "conv_in.weight"


def check_compatible(base: Checkpoint, donors: Sequence[Checkpoint]) -> dict[str, tuple[str, ...]]:
    """Make sure that the donors can be blended into the base, tensor for tensor.

    Returns {donor name: its tensors that the base does not have}, which a blend leaves out; donors without such tensors
    are not in it. Text encoders count if the base blends its own. Raises CheckpointError naming file, tensor and both
    shapes, or a name that is used twice.
    """
    left_out: dict[str, tuple[str, ...]] = {}
    seen = {base.name: base.path}
    for donor in donors:
        if donor.name in seen:
            raise CheckpointError(
                f"{donor.path} and {seen[donor.name]} are both called '{donor.name}': give one of them another name."
            )
        seen[donor.name] = donor.path
        for name, info in base.blended.items():
            theirs = donor.blended.get(name)
            if theirs is None:
                raise CheckpointError(
                    f"{donor.path.name}: has no '{name}', which the base {base.path.name} has"
                    f"{_other_family(base, donor)}. Leave it out or use a base of its kind."
                )
            if theirs.shape != info.shape:
                raise CheckpointError(
                    f"{donor.path.name}: '{name}' is {list(theirs.shape)}, the base has {list(info.shape)}"
                    f"{_other_shape(name, info.shape, theirs.shape) or _other_family(base, donor)}. "
                    "Leave it out or use a base of its kind."
                )
        if extra := tuple(name for name in donor.blended if name not in base.blended):
            left_out[donor.name] = extra
    return left_out


def remarks(donors: Sequence[Checkpoint], left_out: Mapping[str, Sequence[str]]) -> list[str]:
    """What a user should know of a blend of these donors: lines on what it leaves out and on how they are read.

    donors: the base may be among them, for what there is to say of it. left_out: as `check_compatible` returns it.
    """
    lines = [
        f"{name}: the blend leaves out {len(extra)} tensors, first '{extra[0]}'" for name, extra in left_out.items()
    ]
    for donor in donors:
        lines += [f"{donor.name}: {note}" for note in donor.notes]
        if donor.layout == "lora" and donor.other_keys:
            lines.append(
                f"{donor.name}: the blend leaves out what it has for text encoders ({len(donor.other_keys)} tensors), "
                "which stay the base's"
            )
        if donor.lent:
            layers = ", ".join(TEXT_ENCODERS[component] for component in donor.lent)
            has = "changes" if donor.layout == "lora" else "holds"
            lines.append(f"{donor.name}: {has} no text encoder for {layers}, where its weights change nothing")
    return lines


def predicts(checkpoint: Checkpoint, pipeline: Path | None = None) -> tuple[str, bool]:
    """What a checkpoint's denoiser predicts, and whether its noise schedule ends at pure noise.

    pipeline: the configuration folder that a single file is read with; its scheduler decides if the file does not say.
    """
    if pipeline is None or says(checkpoint):
        return checkpoint.prediction, checkpoint.zero_snr
    scheduler = read_scheduler_config(pipeline)
    return prediction_of(checkpoint.family, map(usual, checkpoint.tensors), checkpoint.metadata, scheduler)


def says(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint itself says what it predicts: by markers, its own scheduler or metadata."""
    scheduler = read_scheduler_config(checkpoint.path)
    return said_prediction(map(usual, checkpoint.tensors), checkpoint.metadata, scheduler)[0] is not None


def in_words(prediction: str, zero_snr: bool) -> str:
    """What a denoiser predicts, as a phrase: `predicts v, zero terminal SNR`."""
    words = {
        "v": "predicts v",
        "epsilon": "predicts noise",
        "flow": "predicts flow",
        "edm": "predicts noise under EDM's noise levels",
        "edm-v": "predicts v under EDM's noise levels",
    }
    unknown = "predicts noise (512) or v (768-v): the file does not say, the pipeline's scheduler must"
    return words.get(prediction, unknown) + (", zero terminal SNR" if zero_snr else "")


def mixed_prediction(base: Checkpoint, donors: Sequence[Checkpoint], pipeline: Path | None = None) -> list[str]:
    """A line for each donor that was trained to predict something else than the base, or for another noise schedule.

    A blend is used as the base is, so such a donor alone would be drawn wrongly, and a blend pulls towards that.
    Adapters predict nothing by themselves, and what nobody knows is not compared. pipeline: see `predicts`; if neither
    the base nor a donor says anything, its scheduler holds for both.
    """
    wanted = predicts(base, pipeline)
    silent = not says(base)
    lines = []
    for donor in donors:
        given = predicts(donor, pipeline if silent and donor.prediction == base.prediction else None)
        if donor.layout == "lora" or "unknown" in (given[0], wanted[0]) or given == wanted:
            continue
        lines.append(
            f"{donor.name} {in_words(*given)}, but the base {base.name} {in_words(*wanted)}: "
            "a blend is used as the base is, which is wrong for this donor"
        )
    return lines


def _other_shape(name: str, base: tuple[int, ...], donor: tuple[int, ...]) -> str:
    """The likely reason why two shapes differ, in brackets; empty if none is known."""
    if len(base) < 2 or len(donor) < 2:
        return ""
    if name == _INPUT and 9 in (base[1], donor[1]):
        return f" ({'an inpainting model' if donor[1] == 9 else 'the base is an inpainting model'}?)"
    if name == _INPUT and 8 in (base[1], donor[1]) and 4 in (base[1], donor[1]):
        return " (an image-editing model, or another VAE?)"
    if "attn2" in name and base[-1] != donor[-1]:
        return " (made for another text encoder?)"
    return ""


def _other_family(base: Checkpoint, donor: Checkpoint) -> str:
    return f" (a {donor.family} model; the base is {base.family})" if base.family != donor.family else ""
