"""Draws the pack's icon and banner for the Comfy Registry: `.venv/bin/python harness/make_pictures.py`.

A scene under noise, (1 - sigma) x0 + sigma noise, whose sigma falls from 1 at the left to 0 at the right.
"""

import matplotlib
import numpy as np
from find_host import ROOT
from PIL import Image, ImageDraw, ImageFont

ICON = (400, 400)  # the largest that the Registry takes
BANNER = (1260, 540)  # 21:9, as it asks for
GRAIN = 4  # pixels of a latent's cell
SKY = np.array(((0.10, 0.16, 0.30), (0.98, 0.62, 0.36)))  # at the top and at the horizon
GROUND = np.array(((0.16, 0.27, 0.22), (0.05, 0.10, 0.10)))
SUN = np.array((1.0, 0.93, 0.72))


def scene(width: int, height: int, sun: tuple[float, float, float]) -> np.ndarray:
    """(height, width, 3) in [0, 1]: hills under a sky. sun: its centre and radius, in heights."""
    y, x = np.mgrid[0:height, 0:width] / height
    light = np.clip(y / 0.72, 0, 1)[..., None] ** 1.5
    picture = SKY[0] + (SKY[1] - SKY[0]) * light
    distance = np.hypot(x - sun[0], y - sun[1])
    picture += 0.35 * SUN * np.exp(-((distance / sun[2] / 1.6) ** 2))[..., None]
    picture = np.where((distance < sun[2])[..., None], SUN, picture)
    for i, (level, height_of) in enumerate(((0.66, 0.06), (0.74, 0.05), (0.84, 0.04))):
        hill = level + height_of * (np.sin(3.1 * x + 2 * i) + 0.5 * np.sin(7.3 * x + i))
        shade = GROUND[0] + (GROUND[1] - GROUND[0]) * (i / 2)
        picture = np.where((y > hill)[..., None], shade, picture)
    return np.clip(picture, 0, 1)


def under_noise(picture: np.ndarray, first: float, last: float) -> np.ndarray:
    """The picture under noise that goes away between two shares of its width."""
    height, width, _ = picture.shape
    cells = np.random.default_rng(0).normal(0.5, 0.35, (height // GRAIN, width // GRAIN, 3))
    noise = cells.repeat(GRAIN, 0).repeat(GRAIN, 1)
    sigma = np.clip((last - np.linspace(0, 1, width)) / (last - first), 0, 1)[None, :, None]
    return (1 - sigma) * picture + sigma * noise


def to_image(picture: np.ndarray) -> Image.Image:
    return Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))


def icon() -> Image.Image:
    return to_image(under_noise(scene(*ICON, sun=(0.64, 0.4, 0.17)), 0.1, 0.75))


def banner() -> Image.Image:
    picture = to_image(under_noise(scene(*BANNER, sun=(1.72, 0.4, 0.17)), 0.0, 0.75))
    draw = ImageDraw.Draw(picture, "RGBA")
    fonts = f"{matplotlib.get_data_path()}/fonts/ttf"
    title = ImageFont.truetype(f"{fonts}/DejaVuSans-Bold.ttf", 132)
    line = ImageFont.truetype(f"{fonts}/DejaVuSans.ttf", 34)
    draw.rounded_rectangle((60, 130, 760, 410), 24, fill=(10, 14, 24, 190))
    draw.text((96, 140), "SRPO", font=title, fill="white")
    draw.text((100, 296), "Fine-tune the FLUX in your ComfyUI", font=line, fill="white")
    draw.text((100, 344), "towards what a few words say", font=line, fill=(255, 214, 160))
    return picture


if __name__ == "__main__":
    icon().save(ROOT / "docs/icon.png")
    banner().save(ROOT / "docs/banner.jpg", quality=88)
