"""The architectures of the demo family: Stable Diffusion 1.x in topology and key names, a hundredth of its size.

Everything that is fixed before training stands here as one table a component, so that the training script, the
configuration folder the family is read with and the tests agree. Nothing is trained and nothing is read on import.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedModel

IMAGE = 64  # pixels a side
LATENT = IMAGE // 8
LATENT_CHANNELS = 8
TEXT_WIDTH = 96
TEXT_LENGTH = 77
# The files keep SD 1.x's latent scale, so that a loader which assumes it draws the same pictures.
LATENT_SCALE = 0.18215

UNET: dict[str, Any] = {
    "sample_size": LATENT,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "layers_per_block": 2,
    "block_out_channels": (40, 56, 56, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 4,  # SD 1.x's name for the number of heads
    "norm_num_groups": 8,
}
VAE: dict[str, Any] = {
    "sample_size": IMAGE,
    "latent_channels": LATENT_CHANNELS,
    "layers_per_block": 1,
    "block_out_channels": (16, 32, 32, 48),  # narrow where the picture is large: those levels cost most
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 4,
    "scaling_factor": LATENT_SCALE,
}
TEXT: dict[str, Any] = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 4 * TEXT_WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": TEXT_LENGTH,
    "projection_dim": TEXT_WIDTH,
    "hidden_act": "quick_gelu",
}
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def new_unet() -> UNet2DConditionModel:
    """Return an untrained denoiser: 12 input blocks, a middle and 12 output blocks, as SD 1.x has them."""
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    unet = UNet2DConditionModel(**UNET)
    unet.set_attn_processor(AttnProcessor())  # at this size plain attention trains faster than the fused kernel
    return unet


def new_vae() -> AutoencoderKL:
    """Return an untrained autoencoder, [3, 64, 64] in -1..1 to [8, 8, 8]."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(**VAE)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained CLIP text encoder for the tokenizer's vocabulary."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        **TEXT,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def train_tokenizer(texts: Iterable[str], folder: Path, size: int = 512) -> CLIPTokenizer:
    """Learn a byte-pair vocabulary of at most ``size`` entries from ``texts`` and save it as a CLIP tokenizer."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    start, end = "<|startoftext|>", "<|endoftext|>"
    learner = Tokenizer(models.BPE(unk_token=end, end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[start, end],
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    tokenizer = CLIPTokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        unk_token=end,
        bos_token=start,
        eos_token=end,
        pad_token=end,
        model_max_length=TEXT_LENGTH,
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_pipeline_folder(folder: Path, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
    """Write the diffusers configuration folder the family is read with: everything but weights."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=new_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=new_unet(),
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    for part in ("unet", "vae", "text_encoder"):
        config = getattr(pipeline, part).config
        (folder / part).mkdir(exist_ok=True)
        text = (
            config.to_json_string() if hasattr(config, "to_json_string") else getattr(pipeline, part).to_json_string()
        )
        (folder / part / "config.json").write_text(text)
    pipeline.save_config(folder)


def new_tagger(tags: Sequence[str]) -> PreTrainedModel:
    """Return the search's tagger, untrained: a small residual network, one logit a tag."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=24,
        hidden_sizes=[24, 48, 64, 96],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        downsample_in_first_stage=False,
        **_labels(tags),
    )
    return ResNetForImageClassification(config)


def new_judge(tags: Sequence[str]) -> PreTrainedModel:
    """Return the judge, untrained: RegNet Y, grouped convolutions with channel attention, unlike the tagger's."""
    from transformers import RegNetConfig, RegNetForImageClassification

    config = RegNetConfig(
        embedding_size=24,
        hidden_sizes=[48, 80, 128, 160],
        depths=[1, 2, 2, 1],
        groups_width=16,
        layer_type="y",
        **_labels(tags),
    )
    return RegNetForImageClassification(config)


def write_classifier(folder: Path, model: PreTrainedModel) -> None:
    """Write a classifier as a transformers folder: weights, configuration and preprocessing."""
    model.save_pretrained(folder)
    preprocessing = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": IMAGE, "width": IMAGE},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n")


def write_wd_tagger(folder: Path, model: PreTrainedModel, counts: Mapping[str, int]) -> None:
    """Write the same classifier in the contract of the WD v3 taggers.

    `model.onnx` takes float32 [B, 64, 64, 3], BGR, 0..255, and gives probabilities [B, tag]; `selected_tags.csv` has
    the columns tag_id, name, category (0 is general) and count.
    """
    import torch

    class Contract(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = model

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            signal = pixels.flip(-1).permute(0, 3, 1, 2) / 127.5 - 1
            return torch.sigmoid(self.classifier(signal).logits)

    example = torch.zeros(2, IMAGE, IMAGE, 3)
    batch = torch.export.Dim("batch", min=1, max=4096)
    torch.onnx.export(
        Contract().eval(),
        (example,),
        folder / "model.onnx",
        input_names=["input"],
        output_names=["output"],
        dynamic_shapes={"pixels": {0: batch}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    _forget_origin(folder / "model.onnx")
    rows = [f"{number},{tag},0,{count}" for number, (tag, count) in enumerate(counts.items())]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *rows]) + "\n")


def _forget_origin(file: Path) -> None:
    """Take out of an ONNX file what the exporter notes of the code and the machine it ran on."""
    import onnx

    model = onnx.load(file)
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output,
                 *model.graph.initializer):  # fmt: skip
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.save(model, file)


def _labels(tags: Sequence[str]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(tags)),
        "label2id": {tag: index for index, tag in enumerate(tags)},
        "problem_type": "multi_label_classification",
    }
