"""Our differentiable preprocessing against the models' own, which goes through PIL: differences of pixels in [0, 1].

    python -m bench.pixels

The pictures are drawn, in common sizes: a gradient, grain on clouds, and a fine checkerboard, which is the worst
case: bicubic overshoots at its edges, and PIL clips that. The last line is one JSON object.
"""

import argparse
import json

import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessor, SiglipImageProcessor

from srpo_core.rewards import Pixels

SIZES = ((720, 720), (1024, 1024), (1344, 768), (512, 768), (224, 224))  # width, height
BARE = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
OURS = {
    "CLIP, HPS, PickScore (224)": Pixels(224, **BARE),
    "SigLIP so400m (384)": Pixels(384, "squash", **BARE),
}
THEIRS = {
    "CLIP, HPS, PickScore (224)": CLIPImageProcessor(do_normalize=False),
    "SigLIP so400m (384)": SiglipImageProcessor(size={"height": 384, "width": 384}, do_normalize=False, resample=3),
}


def pictures(width: int, height: int) -> dict[str, np.ndarray]:
    """Drawn pictures, (height, width, 3) uint8."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x / width, y / height, (x + y) / (width + height)], -1)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    clouds = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / 255
    grainy = (clouds + 0.1 * rng.standard_normal((height, width, 3))).clip(0, 1)
    checkers = np.repeat(((x // 2 + y // 2) % 2)[..., None], 3, -1)
    drawn = {"gradient": smooth, "grain": grainy, "checkerboard": checkers}
    return {name: (255 * picture).round().astype(np.uint8) for name, picture in drawn.items()}


def compare(model: str) -> dict[str, dict[str, float]]:
    """The largest and the mean difference over all sizes, by kind of picture."""
    differences: dict[str, list] = {}
    for size in SIZES:
        for name, picture in pictures(*size).items():
            theirs = THEIRS[model](Image.fromarray(picture), return_tensors="pt").pixel_values
            ours = OURS[model](torch.from_numpy(picture).movedim(-1, 0)[None].float() / 255)
            differences.setdefault(name, []).append((ours - theirs).abs())
    return {
        name: {
            "largest": round(max(d.max().item() for d in found), 4),
            "mean": round(sum(d.mean().item() for d in found) / len(found), 5),
        }
        for name, found in differences.items()
    }


def main():
    argparse.ArgumentParser(prog="python -m bench.pixels", description=__doc__.splitlines()[0]).parse_args()
    result = {model: compare(model) for model in OURS}
    print("| model | picture | largest | mean |\n|---|---|---|---|")
    for model, differences in result.items():
        for kind, difference in differences.items():
            print(f"| {model} | {kind} | {difference['largest']} | {difference['mean']} |")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
