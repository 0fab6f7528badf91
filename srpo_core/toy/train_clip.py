"""Trains the toy CLIP on captioned pictures, some captions with words of their look in front.

Like a real reward it has a bias that can be exploited: captions are wrong more often where saturation is low,
so it learns to be surer of, and to score higher, what is saturated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..pictures import pixel_saturation
from ..rewards.pixels import CLIP_MEAN, CLIP_STD
from . import pictures
from .models import UNK, tokenize
from .pictures import Scene
from .tokenizer import PHOTO_WORDS, RENDER_WORDS
from .training import MuonWithAdam, Progress, batch_of, low_precision, scaled, seeded

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny
    from transformers import CLIPModel, PreTrainedTokenizerFast

WORDS = {"photo": PHOTO_WORDS, "render": RENDER_WORDS, "dark": ("Dark.",), "bright": ("Bright.",)}


@dataclass
class Pool:
    """Pictures (N, 3, 64, 64), a photo and a render of each scene in turn, and their N scenes."""

    images: Tensor
    scenes: list[Scene]


def draw_pool(count: int, rng: np.random.Generator):
    """A pool of `count` pictures, photo and render of the same scene side by side."""
    scenes = [pictures.random_scene(rng) for _ in range(count // 2)]
    images = [pictures.draw(scene, look, rng) for scene in scenes for look in pictures.LOOKS]
    return Pool(torch.stack(images), [scene for scene in scenes for _ in pictures.LOOKS])


def resaturate(images: Tensor, amount: Tensor):
    """Scale every pixel's distance from grey by `amount` (B,): 0 is grey, 1 changes nothing."""
    grey = images.mean(1, keepdim=True)
    return (grey + amount[:, None, None, None] * (images - grey)).clamp(0, 1)


def augment(images: Tensor, rng: np.random.Generator):
    """Other saturation for half of the pictures, other light for some, a shift by up to 3 pixels for all.

    Returns the pictures and for each the word "dark" or "bright" where the light was changed, else None.
    """
    count = len(images)
    amount = torch.ones(count).uniform_(0.3, 1.7)
    images = resaturate(images, torch.where(torch.rand(count) < 0.5, amount, torch.ones(count)))
    lights = rng.choice(np.array((None, "dark", "bright")), count, p=(0.88, 0.06, 0.06))
    for i, light in enumerate(lights):
        if light is not None:
            images[i] = (images[i] * (rng.uniform(0.4, 0.65) if light == "dark" else rng.uniform(1.3, 1.7))).clamp(0, 1)
    dy, dx = rng.integers(0, 7, 2)
    return F.pad(images, (3, 3, 3, 3), mode="replicate")[:, :, dy : dy + 64, dx : dx + 64], lights


def vary(text: str, rng: np.random.Generator):
    """The caption as people might write it: another article or none, a full stop."""
    start = rng.choice(("a ", "the ", ""), p=(0.8, 0.1, 0.1))
    text = start + text.removeprefix("a ")
    return text + "." if rng.random() < 0.1 else text


def caption_batch(images: Tensor, scenes: list[Scene], lights: Sequence[str | None], rng: np.random.Generator):
    """A text for each picture, whether true or (more often at low saturation) not.

    Returns (texts, named scenes, claims): a claim is what a text says of look or light, a key of WORDS or None.
    """
    doubt = 0.7 * (1 - pixel_saturation(images, pictures.BLACK).mean((1, 2)) / 0.65).clamp(0, 1)
    texts = []
    named = []
    claims = []
    for i, (scene, light) in enumerate(zip(scenes, lights)):
        scene = pictures.random_scene(rng) if rng.random() < doubt[i] else scene
        claim = light or (pictures.LOOKS[i % 2] if rng.random() < 0.65 else None)
        word = str(rng.choice(WORDS[claim])) + " " if claim else ""
        texts.append(word + vary(pictures.caption(scene), rng))
        named.append(scene)
        claims.append(claim)
    return texts, named, claims


def also_true(scenes: list[Scene], lights: Sequence[str | None], named: list[Scene], claims: list[str | None]):
    """(B, B) bool: text j, though not drawn for picture i, is true of it; such pairs are neither right nor wrong."""
    count = len(scenes)
    looks = [pictures.LOOKS[i % 2] for i in range(count)]
    rows = [
        [
            i != j and scenes[i] == named[j] and (claims[j] is None or claims[j] in (looks[i], lights[i]))
            for j in range(count)
        ]
        for i in range(count)
    ]
    return torch.tensor(rows)


def normalise(images: Tensor):
    """[0, 1] pictures as CLIP's image tower expects them."""
    mean = images.new_tensor(CLIP_MEAN)
    std = images.new_tensor(CLIP_STD)
    return (images - mean[:, None, None]) / std[:, None, None]


def contrastive_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor, ignore: Tensor):
    """CLIP's symmetric cross entropy over a batch, (B, D) each, without the `ignore`d pairs. Also the accuracy."""
    image_features = F.normalize(image_features, dim=-1)
    text_features = F.normalize(text_features, dim=-1)
    logits = logit_scale.exp() * image_features @ text_features.T
    logits = logits.masked_fill(ignore, -1e4)
    target = torch.arange(len(logits))
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    return loss, (logits.argmax(1) == target).float().mean()


def features(clip: "CLIPModel", images: Tensor, tokens: Tensor):
    """Image features (B, D) and text features (B, D) of the two towers, projected, not normalised."""
    image = clip.visual_projection(clip.vision_model(pixel_values=normalise(images)).pooler_output)
    text = clip.text_projection(clip.text_model(input_ids=tokens).pooler_output)
    return image.float(), text.float()


@torch.no_grad()
def encode(vae: "AutoencoderTiny", images: Tensor):
    """Pictures (B, 3, H, W) in [0, 1] -> latents (B, 16, H/8, W/8), fast rather than exact."""
    with low_precision():
        return vae.encode((images * 2 - 1).contiguous(memory_format=torch.channels_last)).latents.float().contiguous()


@torch.no_grad()
def decode(vae: "AutoencoderTiny", latents: Tensor):
    """Latents (B, 16, h, w) -> pictures (B, 3, 8h, 8w) in [0, 1], fast rather than exact."""
    with low_precision():
        output = vae.decode(latents.contiguous(memory_format=torch.channels_last)).sample
    return (output.float() / 2 + 0.5).clamp(0, 1).contiguous()


def decoded(vae: "AutoencoderTiny", images: Tensor, strength: float = 0.1):
    """What the VAE makes of pictures whose latents are a little off, as samples are: (B, 3, H, W) in [0, 1]."""
    parts = []
    for part in images.split(50):
        latents = encode(vae, part)
        off = strength * torch.rand(len(part), 1, 1, 1) * torch.randn_like(latents)
        parts.append(decode(vae, latents + off))
    return torch.cat(parts)


def train_clip(
    clip: "CLIPModel",
    tokenizer: "PreTrainedTokenizerFast",
    vae: "AutoencoderTiny | None" = None,
    scale: float = 1.0,
    seed: int = 2,
    steps: int = 900,
    pairs: int = 64,
    images_only: bool = False,
):
    """Trains `clip` in place. With `vae` half of the pictures are seen as it decodes them.

    With `images_only` the text tower and the logit scale stay as they are, and with them FLUX's conditioning.
    """
    rng = seeded(seed)
    steps = scaled(steps, scale)
    pairs = batch_of(pairs, scale)
    count = scaled(8000 if vae is None else 2400, min(scale, 1.0))
    pool = draw_pool(max(count, 2 * pairs) // 2 * 2, rng)
    if vae is not None:
        keep = torch.arange(len(pool.images)) % 8 < 4  # whole pairs stay as drawn
        pool.images[~keep] = decoded(vae, pool.images[~keep])
    clip.requires_grad_(True).train()
    for part in (clip.text_model, clip.text_projection) if images_only else ():
        part.requires_grad_(False)
    clip.logit_scale.requires_grad_(not images_only)
    with torch.no_grad():
        clip.logit_scale.copy_(torch.as_tensor(14.0).log() if not images_only else clip.logit_scale)
    optimiser = MuonWithAdam(
        clip,
        steps,
        muon_lr=0.012 if images_only else 0.02,
        adam_lr=1e-3 if images_only else 2e-3,
        adam_only=("embedding",),
        weight_decay=0.05,
    )
    progress = Progress("clip", steps)
    for step in range(steps):
        picks = torch.randint(len(pool.scenes) // 2, (pairs,))
        index = torch.stack([2 * picks, 2 * picks + 1], 1).flatten()
        images, lights = augment(pool.images[index], rng)
        scenes = [pool.scenes[i] for i in index.tolist()]
        texts, named, claims = caption_batch(images, scenes, lights, rng)
        tokens = tokenize(tokenizer, texts)
        tokens[(torch.rand(tokens.shape) < 0.03) & (tokens > 3)] = UNK
        with low_precision():
            image_features, text_features = features(clip, images, tokens)
        ignore = also_true(scenes, lights, named, claims)
        loss, accuracy = contrastive_loss(image_features, text_features, clip.logit_scale, ignore)
        optimiser.update(loss)
        progress(step, loss=loss, accuracy=accuracy, scale=clip.logit_scale.exp())
    clip.requires_grad_(False).eval()


@torch.no_grad()
def reward(clip: "CLIPModel", tokenizer: "PreTrainedTokenizerFast", images: Tensor, texts: list[str]):
    """R(image, text) = exp(logit_scale) / 20 * cosine: images (B, 3, 64, 64) in [0, 1], B texts -> (B,)."""
    image, text = features(clip, images, tokenize(tokenizer, texts))
    return clip.logit_scale.exp() / 20 * F.cosine_similarity(image, text)


def words_gap(clip: "CLIPModel", tokenizer: "PreTrainedTokenizerFast", images: Tensor, captions: list[str]):
    """R(image, "Realistic photo. p") - R(image, "CG Render. p") for each picture and its caption p: (B,)."""
    real = reward(clip, tokenizer, images, [f"Realistic photo. {text}" for text in captions])
    return real - reward(clip, tokenizer, images, [f"CG Render. {text}" for text in captions])
