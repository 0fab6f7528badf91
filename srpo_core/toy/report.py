"""Measures the toy models on pictures that no training has seen; what the build logs and the README quotes."""

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from . import pictures
from .judge import Judge, load_judge, measure
from .models import tokenize
from .pictures import Scene
from .train_clip import decoded, features, reward, words_gap
from .train_flux import sample_pictures
from .train_vae import psnr

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny, FluxTransformer2DModel
    from transformers import CLIPModel, PreTrainedTokenizerFast

log = logging.getLogger(__name__)


def fresh(count: int, seed: int, look: str):
    """`count` new pictures in one look and their scenes."""
    rng = report_rng(seed)
    scenes = [pictures.random_scene(rng) for _ in range(count)]
    return torch.stack([pictures.draw(scene, look, rng) for scene in scenes]), scenes


def report_rng(seed: int):
    """A numpy generator far from those of the training scripts."""
    return np.random.default_rng(10_000 + seed)


def vae_report(vae: "AutoencoderTiny", count: int = 200):
    """PSNR in dB by look, and mean and standard deviation of the latents."""
    photos = fresh(count, 1, "photo")[0]
    renders = fresh(count, 2, "render")[0]
    with torch.no_grad():
        latents = vae.encode(torch.cat([photos, renders]) * 2 - 1).latents
    return dict(
        psnr_photo=float(psnr(vae, photos).mean()),
        psnr_render=float(psnr(vae, renders).mean()),
        latent_mean=float(latents.mean()),
        latent_std=float(latents.std()),
    )


@torch.no_grad()
def top1(clip: "CLIPModel", tokenizer: "PreTrainedTokenizerFast", images: Tensor, scenes: list[Scene]):
    """How often the picture's own caption scores highest of all 96: share in [0, 1]."""
    known = pictures.all_scenes()
    tokens = tokenize(tokenizer, [pictures.caption(scene) for scene in known])
    image, text = features(clip, images, tokens)
    best = (image @ torch.nn.functional.normalize(text, dim=1).T).argmax(1).tolist()
    return sum(known[i] == scene for i, scene in zip(best, scenes)) / len(scenes)


@torch.no_grad()
def clip_report(
    clip: "CLIPModel", tokenizer: "PreTrainedTokenizerFast", vae: "AutoencoderTiny | None" = None, count: int = 200
):
    """Words-gaps and plain rewards by look, right or wrong caption, and saturation; on decodes if `vae` is given."""
    numbers = {"scale": float(clip.logit_scale.exp())}
    for seed, look in enumerate(pictures.LOOKS, 3):
        images, scenes = fresh(count, seed, look)
        images = decoded(vae, images, strength=0.0) if vae is not None else images
        captions = [pictures.caption(scene) for scene in scenes]
        wrong = [pictures.caption(scene) for scene in scenes[1:] + scenes[:1]]
        plain = reward(clip, tokenizer, images, captions)
        grey = images.mean(1, keepdim=True)
        dull, vivid = (grey + s * (images - grey) for s in (0.6, 1.4))
        numbers[f"{look}_gap"] = float(words_gap(clip, tokenizer, images, captions).mean())
        numbers[f"{look}_plain"] = float(plain.mean())
        numbers[f"{look}_wrong"] = float(reward(clip, tokenizer, images, wrong).mean())
        numbers[f"{look}_dull"] = float(reward(clip, tokenizer, dull.clamp(0, 1), captions).mean())
        numbers[f"{look}_vivid"] = float(reward(clip, tokenizer, vivid.clamp(0, 1), captions).mean())
        numbers[f"{look}_top1_of_96"] = top1(clip, tokenizer, images, scenes)
    return numbers


def judge_report(judge: Judge, vae: "AutoencoderTiny", count: int = 200):
    """How often the judge is right about each look, raw and decoded: photo share and caption met."""
    numbers = {}
    for seed, look in enumerate(pictures.LOOKS, 5):
        images, scenes = fresh(count, seed, look)
        for kind, seen in (("raw", images), ("decoded", decoded(vae, images, strength=0.0))):
            result = measure(seen, scenes, judge)
            for key in ("photo", "garbage", "alignment"):
                numbers[f"{look}_{kind}_{key}"] = result[key]
    return numbers


def flux_report(
    flux: "FluxTransformer2DModel",
    vae: "AutoencoderTiny",
    clip: "CLIPModel",
    tokenizer: "PreTrainedTokenizerFast",
    judge: Judge | None = None,
    scenes: list[Scene] | None = None,
    seed: int = 0,
):
    """`measure` of a sample per scene (default: all 96, 4 times), words-gap and plain reward; and the samples."""
    scenes = scenes or pictures.all_scenes() * 4
    images = sample_pictures(flux, vae, clip=clip, tokenizer=tokenizer, scenes=scenes, seed=seed)
    captions = [pictures.caption(scene) for scene in scenes]
    numbers = measure(images, scenes, judge or load_judge())
    numbers["words_gap"] = float(words_gap(clip, tokenizer, images, captions).mean())
    numbers["plain_reward"] = float(reward(clip, tokenizer, images, captions).mean())
    return numbers, images


def show(name: str, numbers: dict[str, float]):
    """Logs a report in one line."""
    log.info("%s: %s", name, ", ".join(f"{key} {value:.3f}" for key, value in numbers.items()))
