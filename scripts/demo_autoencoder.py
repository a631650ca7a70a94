"""The demo family's autoencoder: trained, whitened, and the latents of every picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scripts import demo_models, demo_world
from scripts.demo_training import (
    FACE,
    Context,
    area_of,
    as_signal,
    load_pictures,
    save_arrays,
    save_state,
    step_generator,
    train,
)

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


def vae(context: Context) -> None:
    """Train the autoencoder, then whiten its latents inside the file.

    A denoiser learns fastest when the latent channels are uncorrelated and of one spread. The 1x1 convolutions on both
    sides of the latent can hold any linear map, so the whitening and its inverse are folded into them and every loader
    gets it for free.
    """
    images, _ = load_pictures(context)
    torch.manual_seed(context.seed)
    model = demo_models.new_vae().to(context.device)
    loss_of = autoencoder_loss(model, images, context)
    train(context.work / "vae.pt", model, loss_of, steps=5000, rate=1.5e-3)
    file = context.work / "vae-white.pt"
    if not file.exists():
        _whiten(model, as_signal(images[:2000]).to(context.device))
        save_state(file, model.state_dict())


def autoencoder_loss(model: AutoencoderKL, images: Tensor, context: Context) -> Callable[[int], Tensor]:
    """The loss of each step: errors of pixels, six times as heavy in the face, and the latents' divergence.

    Decoding is from latents with noise, as a denoiser's are never exact: what matters then gets a larger share of them.
    """
    device = context.device
    area = area_of(demo_world.SIZE, FACE, 6.0).to(device)
    lowest = 0.2 / demo_models.LATENT_SCALE  # the noise's spread where that of the latents is 1

    def loss_of(step: int) -> Tensor:
        generator = step_generator(context.seed, step)
        signal = as_signal(images[torch.randint(len(images), (16,), generator=generator)]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            posterior = model.encode(signal).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
            output = model.decode(posterior.mean + posterior.std.clamp(min=lowest) * noise).sample
        error = output.float() - signal
        spread = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float())
        return ((error.abs() + error.square()) * area).mean() + 2e-4 * spread.mean()

    return loss_of


@torch.no_grad()
def _whiten(model: AutoencoderKL, signal: Tensor) -> None:
    means = torch.cat([model.encode(part).latent_dist.mean for part in signal.split(100)])
    flat = means.permute(0, 2, 3, 1).reshape(-1, means.shape[1]).double()
    centre = flat.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((flat - centre).T))
    forward = (vectors @ torch.diag(values.rsqrt()) @ vectors.T / demo_models.LATENT_SCALE).float()  # symmetric: ZCA
    back, centre = torch.linalg.inv(forward.double()).float(), centre.float()
    channels = len(centre)
    before, after = model.quant_conv, model.post_quant_conv
    # Only the mean half is mapped: the variance half keeps its meaning up to scale, and is not drawn from at inference.
    before.weight[:channels] = torch.einsum("ij,jkhw->ikhw", forward, before.weight[:channels])
    before.bias[:channels] = forward @ (before.bias[:channels] - centre)
    after.bias += after.weight[:, :, 0, 0] @ centre
    after.weight.copy_(torch.einsum("ijhw,jk->ikhw", after.weight, back))


def load_vae(context: Context) -> AutoencoderKL:
    """The whitened autoencoder."""
    model = demo_models.new_vae()
    model.load_state_dict(torch.load(context.work / "vae-white.pt", weights_only=True))
    return model.to(context.device).eval()


@torch.no_grad()
def latents(context: Context) -> None:
    """Encode every training picture once: float32 [picture, 8, 8, 8] of unit spread."""
    file = context.work / "latents.npz"
    if file.exists():
        return
    images, _ = load_pictures(context)
    model = load_vae(context)
    parts = [model.encode(as_signal(part).to(context.device)).latent_dist.mean.cpu() for part in images.split(200)]
    save_arrays(file, latents=(torch.cat(parts) * demo_models.LATENT_SCALE).numpy())
