"""The earlier address of `merger.checkpoints.names.unet`, kept for the programs that import from here."""

from merger.checkpoints.names.unet import denoiser_names, denoiser_names_in, text_encoder_names, vae_names

__all__ = ["denoiser_names", "denoiser_names_in", "text_encoder_names", "vae_names"]
