"""Trains the judge on other drawings, raw and as the VAE decodes them, and on mush."""

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import pictures
from .judge import HEADS, LOOK_CLASSES, Judge
from .other_pictures import draw_other, mush
from .train_clip import decode, decoded, encode, resaturate
from .training import MuonWithAdam, Progress, batch_of, low_precision, scaled, seeded

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

GARBAGE = LOOK_CLASSES.index("garbage")


def draw_pool(count: int, rng: np.random.Generator):
    """`count` other drawings (count, 3, 64, 64), looks in turn, and their labels (count, 4) in HEADS order."""
    images = []
    labels = []
    for i in range(count):
        scene = pictures.random_scene(rng)
        look = pictures.LOOKS[i % 2]
        images.append(draw_other(scene, look, rng))
        words = (look, scene.shape, scene.colour, scene.background)
        labels.append([names.index(word) for names, word in zip(HEADS.values(), words)])
    return torch.stack(images), torch.tensor(labels)


@torch.no_grad()
def latent_mush(vae: "AutoencoderTiny", images: Tensor):
    """Half-denoised pictures: decoded from latents with 30 to 100% noise, or from blends of two: as `images`."""
    parts = []
    for part in images.split(100):
        latents = encode(vae, part)
        noisy = torch.rand(len(part), 1, 1, 1) < 0.7
        other = torch.where(noisy, torch.randn_like(latents), latents.roll(1, 0))
        low = torch.where(noisy, 0.3, 0.4)
        high = torch.where(noisy, 1.0, 0.6)
        amount = low + (high - low) * torch.rand(len(part), 1, 1, 1)
        parts.append(decode(vae, torch.lerp(latents, other, amount)))
    return torch.cat(parts)


def augment(images: Tensor):
    """Any saturation, brightness and contrast, mirrored or not: nothing of that tells a photo from a render."""
    count = len(images)
    images = resaturate(images, torch.empty(count).uniform_(0.25, 1.8))
    gain = torch.empty(count, 1, 1, 1).uniform_(0.85, 1.15)
    mirrored = torch.rand(count, 1, 1, 1) < 0.5
    images = torch.where(mirrored, images.flip(3), images)
    return (images * gain + torch.empty(count, 1, 1, 1).uniform_(-0.06, 0.06)).clamp(0, 1)


def build_pool(vae: "AutoencoderTiny", count: int, rng: np.random.Generator):
    """Raw drawings, decoded ones and mush, 2 : 3 : 2 of `count`; the labels of mush are (GARBAGE, -1, -1, -1)."""
    seventh = max(count // 7, 4)
    images, labels = draw_pool(5 * seventh, rng)
    images[2 * seventh :] = decoded(vae, images[2 * seventh :], strength=0.15)
    broken = torch.cat([mush(images[:seventh], rng), latent_mush(vae, images[seventh : 2 * seventh])])
    nothing = torch.tensor([[GARBAGE, -1, -1, -1]]).expand(len(broken), -1)
    return torch.cat([images, broken]), torch.cat([labels, nothing])


def train_judge(
    judge: Judge, vae: "AutoencoderTiny", scale: float = 1.0, seed: int = 4, steps: int = 500, batch: int = 96
):
    """Trains `judge` in place."""
    rng = seeded(seed)
    steps = scaled(steps, scale)
    batch = batch_of(batch, scale)
    images, labels = build_pool(vae, scaled(7000, min(scale, 1.0)), rng)
    judge.train().to(memory_format=torch.channels_last)
    optimiser = MuonWithAdam(judge, steps, muon_lr=0.02, adam_lr=2e-3, adam_only=("stem", "heads"), weight_decay=0.05)
    progress = Progress("judge", steps)
    for step in range(steps):
        index = torch.randint(len(images), (batch,))
        with low_precision():
            logits = judge(augment(images[index]).contiguous(memory_format=torch.channels_last))
        truth = labels[index]
        losses = [
            F.cross_entropy(row.float(), truth[:, i], ignore_index=-1, label_smoothing=0.02)
            for i, row in enumerate(logits.values())
        ]
        optimiser.update(sum(losses, torch.zeros(())))
        progress(step, **{name: loss for name, loss in zip(HEADS, losses)})
    judge.requires_grad_(False).eval().to(memory_format=torch.contiguous_format)
