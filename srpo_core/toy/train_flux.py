"""Trains the toy FLUX by flow matching on the VAE's latents, and samples from it.

Three quarters of the pictures it sees are renders: a photo is what it makes rarely, as FLUX.1-dev does.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..algorithm.noise_levels import shift
from ..headless.flux import image_ids, pack, unpack
from . import pictures
from .models import text_conditioning, tokenize
from .train_clip import encode, vary
from .training import MuonWithAdam, Progress, batch_of, low_precision, scaled, seeded

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny, FluxTransformer2DModel
    from transformers import CLIPModel, PreTrainedTokenizerFast

PHOTO_SHARE = 0.27  # of the training pictures
FEW_PHOTOS = 0.135  # in the last part: a well-trained sampler makes photos as often as it saw them
GUIDANCE = 3.5  # what half of the steps are trained at; the others see 1 to 5, so that it has no effect
STEPS = 25  # Euler steps of a sample
SIDE = 8  # of a latent
VARIANTS = 6  # ways in which each caption is written
# Small, first or last layers, embeddings and modulations: Adam's. The matrices of the blocks are Muon's.
ADAM_ONLY = ("embed", "/proj_out", "norm")


def velocity(
    flux: "FluxTransformer2DModel", x: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor, guidance: Tensor
):
    """FLUX's velocity at packed x (B, N, 64), sigma (B,) in [0, 1], guidance (B,): (B, N, 64)."""
    return flux(
        hidden_states=x,
        timestep=sigma,
        guidance=guidance,
        encoder_hidden_states=context,
        pooled_projections=pooled,
        img_ids=image_ids(SIDE, SIDE),
        txt_ids=torch.zeros(context.shape[1], 3),
        return_dict=False,
    )[0]


def initialise(flux: "FluxTransformer2DModel"):
    """Start from the identity: modulations and the last layer at zero, so that blocks switch on one by one."""
    for name, p in flux.named_parameters():
        if (".norm" in name and "linear" in name) or name.startswith("proj_out") or "norm_out.linear" in name:
            torch.nn.init.zeros_(p)


@torch.no_grad()
def latent_pool(vae: "AutoencoderTiny", count: int, rng: np.random.Generator, photo_share: float = PHOTO_SHARE):
    """`count` drawings as packed latents (count, 16, 64), their scenes' numbers (count,), and is-photo (count,)."""
    scenes = pictures.all_scenes()
    numbers = rng.integers(0, len(scenes), count)
    photos = rng.random(count) < photo_share
    latents = []
    for start in range(0, count, 100):
        part = range(start, min(start + 100, count))
        drawn = torch.stack([pictures.draw(scenes[numbers[i]], "photo" if photos[i] else "render", rng) for i in part])
        latents.append(pack(encode(vae, drawn)))
    return torch.cat(latents), torch.from_numpy(numbers), torch.from_numpy(photos)


@torch.no_grad()
def caption_pool(clip: "CLIPModel", tokenizer: "PreTrainedTokenizerFast", rng: np.random.Generator):
    """Context (96, VARIANTS, 16, 128) and pooled text (96, VARIANTS, 128) of every scene's captions."""
    texts = [
        pictures.caption(s) if i == 0 else vary(pictures.caption(s), rng)
        for s in pictures.all_scenes()
        for i in range(VARIANTS)
    ]
    context, pooled = text_conditioning(clip, tokenize(tokenizer, texts))
    return context.unflatten(0, (-1, VARIANTS)), pooled.unflatten(0, (-1, VARIANTS))


def train_flux(
    flux: "FluxTransformer2DModel",
    vae: "AutoencoderTiny",
    clip: "CLIPModel",
    tokenizer: "PreTrainedTokenizerFast",
    *,
    scale: float = 1.0,
    seed: int = 3,
    steps: int = 8000,
    batch: int = 64,
    muon_lr: float = 0.02,
    photo_share: float = PHOTO_SHARE,
):
    """Trains `flux` in place. Captions say what is to be seen and never in which look."""
    rng = seeded(seed)
    steps = scaled(steps, scale)
    batch = batch_of(batch, scale)
    # Many drawings: with 4,500 the loss went on falling while captions were met no more often.
    latents, numbers, _ = latent_pool(vae, max(scaled(12000, min(scale, 1.0)), batch), rng, photo_share)
    context, pooled = caption_pool(clip, tokenizer, rng)
    flux.requires_grad_(True).train()
    optimiser = MuonWithAdam(flux, steps, muon_lr=muon_lr, adam_lr=2e-3, adam_only=ADAM_ONLY)
    progress = Progress("flux", steps)
    for step in range(steps):
        index = torch.randint(len(latents), (batch,))
        variant = torch.randint(VARIANTS, (batch,))
        x0 = latents[index]
        scenes = numbers[index]
        noise = torch.randn_like(x0)
        sigma = shift(torch.rand(batch))
        guidance = torch.where(torch.rand(batch) < 0.5, torch.tensor(GUIDANCE), torch.empty(batch).uniform_(1, 5))
        x = torch.lerp(x0, noise, sigma[:, None, None])
        # Plain attention: the fused one is several times slower backwards for 32 tokens on a CPU.
        with low_precision(), sdpa_kernel(SDPBackend.MATH):
            v = velocity(
                flux,
                x,
                sigma=sigma,
                context=context[scenes, variant],
                pooled=pooled[scenes, variant],
                guidance=guidance,
            )
        loss = (v.float() - (noise - x0)).square().mean()
        optimiser.update(loss)
        progress(step, loss=loss)
    flux.requires_grad_(False).eval()


@torch.no_grad()
def sample(
    flux: "FluxTransformer2DModel",
    context: Tensor,
    pooled: Tensor,
    noise: Tensor,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
):
    """Euler sampling from packed noise (B, 16, 64) to packed latents, shift 3."""
    sigmas = shift(torch.linspace(1, 0, steps + 1))
    x = noise
    strength = torch.full((len(noise),), guidance)
    for now, after in zip(sigmas[:-1], sigmas[1:]):
        x = x + (after - now) * velocity(
            flux, x, sigma=now.expand(len(x)), context=context, pooled=pooled, guidance=strength
        )
    return x


@torch.no_grad()
def sample_pictures(
    flux: "FluxTransformer2DModel",
    vae: "AutoencoderTiny",
    clip: "CLIPModel",
    tokenizer: "PreTrainedTokenizerFast",
    scenes: list[pictures.Scene],
    seed: int = 0,
    batch: int = 96,
):
    """One picture for each scene, noise from a seeded generator: (len(scenes), 3, 64, 64) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(scenes), 16, 64, generator=generator)
    images = []
    for start in range(0, len(scenes), batch):
        texts = [pictures.caption(scene) for scene in scenes[start : start + batch]]
        context, pooled = text_conditioning(clip, tokenize(tokenizer, texts))
        latents = unpack(sample(flux, context, pooled, noise[start : start + batch]), SIDE, SIDE)
        images.append((vae.decode(latents).sample / 2 + 0.5).clamp(0, 1))
    return torch.cat(images)
