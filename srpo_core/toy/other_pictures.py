"""Drawings for the judge alone: the same scenes in the same two looks, by other means and with other numbers.

Textures come from filtered Fourier noise and strokes instead of smoothed cells, objects are lit and shaped by other
formulas, and saturation says nothing about the look: photos may be saturated and renders muted.
"""

import numpy as np
import torch
from torch import Tensor

from .pictures import (
    PHOTO_COLOURS,
    PHOTO_GROUNDS,
    RENDER_COLOURS,
    RENDER_GROUNDS,
    SIZE,
    Colours,
    Scene,
    blend,
    cover,
    grid,
    random_pose,
    to_tensor,
)

LUMA = np.array((0.299, 0.587, 0.114), np.float32)


def fourier_noise(rng: np.random.Generator, slope: float, squeeze: float = 1.0):
    """(64, 64) noise of unit variance, amplitude falling as frequency**-slope, stretched `squeeze` times across."""
    fy = np.fft.fftfreq(SIZE)[:, None] * SIZE
    fx = np.fft.rfftfreq(SIZE)[None] * SIZE
    frequency = np.hypot(fy, fx * squeeze) + 2.0
    spectrum = np.fft.rfft2(rng.standard_normal((SIZE, SIZE))) * frequency**-slope
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=(SIZE, SIZE))
    return (noise / noise.std()).astype(np.float32)


def resaturate(picture: np.ndarray, amount: float):
    """Scale the distance from grey: 0 is grey, 1 leaves the picture as it is."""
    grey = (picture @ LUMA)[..., None]
    return grey + amount * (picture - grey)


def between(rng: np.random.Generator, name: str, first: Colours, second: Colours, low: float, high: float):
    """A colour on the way from `first[name]` to `second[name]`, jittered a little."""
    mix = rng.uniform(low, high)
    colour = (1 - mix) * np.array(first[name]) + mix * np.array(second[name])
    return (colour * rng.uniform(0.88, 1.1) + rng.uniform(-0.03, 0.03, 3)).clip(0.02, 1).astype(np.float32)


def _other_ground(rng: np.random.Generator, name: str):
    x, y = grid()
    colour = between(rng, name, first=PHOTO_GROUNDS, second=RENDER_GROUNDS, low=0.0, high=0.5)
    if name == "grass":
        texture = 0.11 * fourier_noise(rng, rng.uniform(0.6, 1.2), rng.uniform(0.25, 0.6))
    elif name == "sand":
        turn = rng.uniform(-0.3, 0.3)
        waves = np.sin(rng.uniform(10, 20) * (y + turn * x + 0.08 * fourier_noise(rng, 2.5)) + rng.uniform(0, 6.28))
        texture = 0.05 * waves * rng.uniform(0, 1.4) + 0.05 * fourier_noise(rng, 0.7)
    elif name == "snow":
        texture = 0.06 * fourier_noise(rng, rng.uniform(0.9, 1.6))
    else:
        texture = 0.08 * fourier_noise(rng, rng.uniform(0.9, 1.4), rng.uniform(2.5, 5))
        planks = np.abs((y * rng.uniform(1.5, 2.6) + rng.uniform(0, 1)) % 1 - 0.5)
        texture = texture - rng.uniform(0.05, 0.2) * np.exp(-((planks / 0.05) ** 2))
    return colour * (1 + rng.uniform(0.7, 1.2) * texture[..., None] / colour.mean())


def other_photo(scene: Scene, rng: np.random.Generator):
    """(64, 64, 3): a photo by other means, of any saturation."""
    x, y = grid()
    pose = random_pose(rng, radius=(0.40, 0.68), shift=0.2, turn=0.3)
    picture = _other_ground(rng, scene.background)
    reach = rng.uniform(0.05, 0.25)
    shadow = cover(pose.distance(scene.shape, -reach * pose.light_x, -reach * pose.light_y), rng.uniform(5, 16))
    picture = picture * (1 - rng.uniform(0.2, 0.6) * shadow[..., None])
    colour = between(rng, scene.colour, first=PHOTO_COLOURS, second=RENDER_COLOURS, low=0.0, high=0.7)
    shade = 1 + 0.2 * np.tanh(1.5 * pose.across_light()) + rng.uniform(0.05, 0.12) * fourier_noise(rng, 1.0)
    picture = blend(picture, colour * shade[..., None], cover(pose.distance(scene.shape), rng.uniform(1, 2.5)))
    tone = rng.uniform(0.85, 1.15) * (1 + rng.uniform(-0.12, 0.12) * x + rng.uniform(-0.12, 0.12) * y)
    picture = resaturate(picture * tone[..., None], rng.uniform(0.7, 1.4))
    return picture + rng.uniform(0.005, 0.03) * fourier_noise(rng, 0.3)[..., None]


def other_render(scene: Scene, rng: np.random.Generator):
    """(64, 64, 3): a render by other means, of any saturation."""
    x, y = grid()
    pose = random_pose(rng, radius=(0.40, 0.68), shift=0.2, turn=0.3)
    ground = between(rng, scene.background, first=PHOTO_GROUNDS, second=RENDER_GROUNDS, low=0.3, high=1.1)
    picture = ground * (1 + rng.uniform(-0.15, 0.15) * y + rng.uniform(-0.1, 0.1) * x)[..., None]
    dist = pose.distance(scene.shape)
    if rng.random() < 0.6:
        shadow = cover(pose.distance(scene.shape, -0.1 * pose.light_x, 0.1), rng.uniform(1, 4))
        picture = picture * (1 - rng.uniform(0.1, 0.4) * shadow[..., None])
    colour = between(rng, scene.colour, first=PHOTO_COLOURS, second=RENDER_COLOURS, low=0.3, high=1.1)
    rim = np.clip(1 + dist / (rng.uniform(0.2, 0.5) * pose.radius), 0, 1)
    body = colour * (1.05 - rng.uniform(0.1, 0.35) * rim + 0.1 * pose.across_light())[..., None]
    if rng.random() < 0.8:
        side = rng.uniform(-0.3, 0.3)
        wide = rng.uniform(0.08, 0.2)
        high = rng.uniform(0.06, 0.14)
        spot = np.exp(-(((x - pose.x - side * pose.radius) / wide) ** 2))
        spot = spot * np.exp(-(((y - pose.y + 0.25 * pose.radius) / high) ** 2))
        body = blend(body, np.ones(3, np.float32), rng.uniform(0.4, 0.95) * spot)
    return resaturate(blend(picture, body, cover(dist)), rng.uniform(0.5, 1.2))


def draw_other(scene: Scene, look: str, rng: np.random.Generator):
    """The scene in this look, as `pictures.draw`, by other means: (3, 64, 64) in [0, 1]."""
    return to_tensor(other_photo(scene, rng) if look == "photo" else other_render(scene, rng))


def mush(images: Tensor, rng: np.random.Generator):
    """Broken pictures that are neither look, from whole ones: (B, 3, 64, 64) -> the same shape.

    Blends of two pictures, pictures drowned in noise, smears, and shuffled patches.
    """
    noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32))
    strength = torch.from_numpy(rng.uniform(0.3, 1.0, (len(images), 1, 1, 1)).astype(np.float32))
    coarse = torch.nn.functional.interpolate(noise[:, :, ::8, ::8], scale_factor=8.0, mode="bilinear")
    blended = 0.5 * images + 0.5 * images.roll(1, 0)
    noisy = images * (1 - strength) + strength * (0.5 + 0.35 * noise)
    smeared = images * (1 - strength) + strength * (0.5 + 0.35 * coarse)
    patches = images.unflatten(3, (4, 16)).unflatten(2, (4, 16))[:, :, torch.randperm(4)][:, :, :, :, torch.randperm(4)]
    spoilt = torch.stack([blended, noisy, smeared, patches.flatten(4, 5).flatten(2, 3)])
    choice = torch.from_numpy(rng.choice(4, len(images), p=(0.15, 0.25, 0.4, 0.2)))
    return spoilt[choice, torch.arange(len(images))].clamp(0, 1)
