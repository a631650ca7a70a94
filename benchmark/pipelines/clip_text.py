"""Text embeddings of prompts of any length, with emphasis, by CLIP's text encoders (SD 1.x, SD 2.x, SDXL).

A text longer than the encoder's room (75 tokens) is cut into chunks, after a comma where possible. Chunks are encoded
separately and joined along the sequence. Emphasis scales a token's embedding; each chunk is then scaled back to the
root mean square it had. (Some web UIs restore the mean instead, which fails for an encoder whose mean is near 0.)

K chunks of N tokens (77 with beginning and end), E the width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmark.prompts.text import parse_emphasis

if TYPE_CHECKING:
    from torch import Tensor

_BACK = 20  # tokens by which a chunk may end early, for it to end after a comma


def chunk_tokens(tokenizer: Any, prompt: str) -> tuple[list[list[int]], list[list[float]]]:
    """(token ids, weights), each K lists of N, with beginning, end and padding; an empty prompt is one chunk."""
    room = tokenizer.model_max_length - 2
    ids: list[int] = []
    weights: list[float] = []
    for part in parse_emphasis(prompt):
        tokens = tokenizer(part.text, add_special_tokens=False, verbose=False).input_ids
        ids += tokens
        weights += [part.weight] * len(tokens)
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    chunks: list[list[int]] = []
    scales: list[list[float]] = []
    start = 0
    while start < len(ids) or not chunks:
        end = _chunk_end(ids, start, room, comma)
        padding = room - (end - start)
        chunks.append(
            [tokenizer.bos_token_id, *ids[start:end], tokenizer.eos_token_id, *[tokenizer.pad_token_id] * padding]
        )
        scales.append([1.0, *weights[start:end], 1.0, *[1.0] * padding])
        start = end
    return chunks, scales


def _chunk_end(ids: Sequence[int], start: int, room: int, comma: int) -> int:
    """Where the chunk that begins at `start` ends: full, or a little earlier, after a comma."""
    full = start + room
    if full >= len(ids):
        return len(ids)
    if ids[full] == comma:  # the comma itself would open the next chunk
        return full
    early = range(full, max(start, full - _BACK), -1)
    return next((end for end in early if ids[end - 1] == comma), full)


def knows_clip(pipeline: Any) -> bool:
    """Whether `encode_clip` suits the pipeline: a U-Net, with one or two of CLIP's text encoders and no others."""
    others = [
        name for name in ("text_encoder_3", "tokenizer_3", "prior", "transformer") if getattr(pipeline, name, None)
    ]
    encoders = _encoders(pipeline)
    return (
        not others
        and getattr(pipeline, "unet", None) is not None
        and bool(encoders)
        and all(type(encoder).__name__ in ("CLIPTextModel", "CLIPTextModelWithProjection") for _, encoder in encoders)
        and not any(getattr(encoder.config, "use_attention_mask", False) for _, encoder in encoders)
    )


def encode_clip(pipeline: Any, prompt: str, clip_skip: int = 0, *, graph: bool = False) -> tuple[Tensor, Tensor | None]:
    """Embeddings [1, K * N, E] and, with SDXL, the pooled embedding [1, E] of the first chunk.

    `clip_skip` leaves out that many of the encoder's last layers (web UIs call 0 "clip skip 1"). A prompt of one chunk
    without emphasis gives what the pipeline's own `encode_prompt` gives. `graph` keeps the graph back to the encoder.
    """
    import torch

    parts: list[Tensor] = []
    pooled = None
    encoders = _encoders(pipeline)
    # not torch.inference_mode: the gradients of a search use these embeddings too
    with torch.set_grad_enabled(graph):
        for tokenizer, encoder in encoders:
            chunks, scales = chunk_tokens(tokenizer, prompt)
            ids = torch.tensor(chunks, device=encoder.device)
            output = encoder(ids, output_hidden_states=True)
            if (
                len(encoders) > 1 or getattr(pipeline, "tokenizer_2", None) is not None
            ):  # SDXL: the layer before the last
                states = output.hidden_states[-(clip_skip + 2)]
                pooled = output.text_embeds[:1] if "text_embeds" in output else pooled
            elif clip_skip:
                inner = getattr(encoder, "text_model", encoder)  # transformers wrapped it until 5.6
                states = inner.final_layer_norm(output.hidden_states[-(clip_skip + 1)])
            else:
                states = output.last_hidden_state
            parts.append(_emphasised(states, torch.tensor(scales, device=states.device, dtype=states.dtype)))
        rows = max(len(part) for part in parts)
        joined = torch.cat([part.repeat(rows // len(part), 1, 1) for part in parts], dim=-1)
        return joined.reshape(1, -1, joined.shape[-1]), pooled


def _encoders(pipeline: Any) -> list[tuple[Any, Any]]:
    """(tokenizer, text encoder) of the pipeline, in order."""
    pairs = [
        (getattr(pipeline, f"tokenizer{n}", None), getattr(pipeline, f"text_encoder{n}", None)) for n in ("", "_2")
    ]
    return [(tokenizer, encoder) for tokenizer, encoder in pairs if tokenizer is not None and encoder is not None]


def _emphasised(states: Tensor, scales: Tensor) -> Tensor:
    """states [K, N, E] scaled by scales [K, N], with each chunk scaled back to the root mean square it had."""
    import torch

    if bool((scales == 1).all()):
        return states
    scaled = states * scales[:, :, None]
    wide = torch.promote_types(states.dtype, torch.float32)
    before, after = (values.to(wide).square().mean(dim=(1, 2), keepdim=True) for values in (states, scaled))
    return scaled * (before / after).sqrt().to(states.dtype)
