"""Whether donors can be blended into a base, and if not, why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from merger.checkpoints.checkpoint import Checkpoint
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
    """What a user should know of a blend of these donors: lines on what it leaves out.

    left_out: as `check_compatible` returns it.
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


def _other_shape(name: str, base: tuple[int, ...], donor: tuple[int, ...]) -> str:
    """The likely reason why two shapes differ, in brackets; empty if none is known."""
    if name == _INPUT and 9 in (base[1], donor[1]):
        return f" ({'an inpainting model' if donor[1] == 9 else 'the base is an inpainting model'}?)"
    if name == _INPUT and 8 in (base[1], donor[1]) and 4 in (base[1], donor[1]):
        return " (an image-editing model, or another VAE?)"
    if "attn2" in name and base[-1] != donor[-1]:
        return " (made for another text encoder?)"
    return ""


def _other_family(base: Checkpoint, donor: Checkpoint) -> str:
    return f" (a {donor.family} model; the base is {base.family})" if base.family != donor.family else ""
