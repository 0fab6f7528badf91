"""Trains the toy VAE: the 16-channel tiny autoencoder (8x), on crops of drawn pictures."""

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import pictures
from .training import MuonWithAdam, Progress, batch_of, low_precision, scaled, seeded

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

CROP = 32


def draw_pool(count: int, rng: np.random.Generator):
    """`count` pictures, three in four photos, which are the harder ones: (count, 3, 64, 64)."""
    looks = ["render" if i % 4 == 3 else "photo" for i in range(count)]
    return torch.stack([pictures.draw(pictures.random_scene(rng), look, rng) for look in looks])


def random_crops(images: Tensor):
    """(B, 3, H, W) -> (B, 3, 32, 32): a crop of each image, at any place."""
    high = images.shape[2] - CROP + 1
    wide = images.shape[3] - CROP + 1
    tops = torch.randint(high, (len(images),)).tolist()
    lefts = torch.randint(wide, (len(images),)).tolist()
    crops = [im[:, top : top + CROP, left : left + CROP] for im, top, left in zip(images, tops, lefts)]
    return torch.stack(crops)


def high_pass(images: Tensor):
    """What a 3x3 mean leaves: edges, texture, grain. (B, 3, H, W) -> (B, 3, H-2, W-2)."""
    return images[:, :, 1:-1, 1:-1] - F.avg_pool2d(images, 3, 1)


def roughness(images: Tensor):
    """Local strength of the fine detail, (B, 3, h, w): equal roughness looks equally sharp even where pixels differ."""
    return F.avg_pool2d(high_pass(images).square(), 5, 2).add(1e-5).sqrt()


def picture_loss(output: Tensor, target: Tensor):
    """Pixels (L1 and L2), edges (L1 of the high pass) and sharpness (L1 of the roughness), all in [0, 1] units."""
    error = output - target
    pixels = error.abs().mean() + 4 * error.square().mean()
    edges = high_pass(error).abs().mean()
    sharpness = (roughness(output) - roughness(target)).abs().mean()
    return pixels + edges + 0.5 * sharpness, error


def unit_loss(latents: Tensor):
    """Keeps every latent channel at mean 0 and variance 1 over batch and places."""
    mean = latents.mean((0, 2, 3))
    std = latents.std((0, 2, 3))
    return mean.square().mean() + (std - 1).square().mean()


def train_vae(
    vae: "AutoencoderTiny",
    scale: float = 1.0,
    seed: int = 1,
    steps: int = 2600,
    batch: int = 16,
    muon_lr: float = 0.02,
    decoder_only: bool = False,
):
    """Trains `vae` (AutoencoderTiny) in place. With `decoder_only` the latent space stays as it is."""
    rng = seeded(seed)
    vae.requires_grad_(True).train()
    vae.encoder.requires_grad_(not decoder_only)
    vae.to(memory_format=torch.channels_last)
    steps = scaled(steps, scale)
    batch = batch_of(batch, scale)
    pool = draw_pool(scaled(3000, min(scale, 1.0)), rng)
    optimiser = MuonWithAdam(
        vae, steps, muon_lr=muon_lr, adam_lr=2e-3, adam_only=("encoder.layers.0.", "decoder.layers.18.")
    )
    progress = Progress("vae", steps)
    for step in range(steps):
        crops = random_crops(pool[torch.randint(len(pool), (batch,))]).contiguous(memory_format=torch.channels_last)
        with low_precision():
            latents = vae.encode(crops * 2 - 1).latents
            noisy = latents + 0.05 * torch.randn_like(latents)  # samples will never be exact either
            output = vae.decode(noisy).sample.float() / 2 + 0.5
        loss, error = picture_loss(output, crops)
        optimiser.update(loss + 0.05 * unit_loss(latents.float()))
        progress(step, loss=loss, psnr=-10 * error.square().mean().log10(), std=latents.float().std())
    vae.to(memory_format=torch.contiguous_format).requires_grad_(False).eval()


@torch.no_grad()
def psnr(vae: "AutoencoderTiny", images: Tensor):
    """Peak signal-to-noise ratio in dB of clamped reconstructions: (B, 3, H, W) in [0, 1] -> (B,)."""
    output = (vae.decode(vae.encode(images * 2 - 1).latents).sample / 2 + 0.5).clamp(0, 1)
    return -10 * (output - images).square().mean((1, 2, 3)).log10()
