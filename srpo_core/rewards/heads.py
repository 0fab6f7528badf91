"""Aesthetic predictors: a few linear layers on the image feature of CLIP or SigLIP. They see no text."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pixels import Pixels
from .placement import Placement, where_it_is
from .towers import Tower, layers, shape
from .weights import Weights

OUT_OF = 10  # what the predictors call the best


class Scorer(nn.Module):
    """Normalised pixels to scores (B,). The head computes in float32."""

    def __init__(self, image_tower: nn.Module, head: nn.Module):
        super().__init__()
        self.image_tower = image_tower
        self.head = head

    def forward(self, pixels: Tensor) -> Tensor:
        dtype = next(self.image_tower.parameters()).dtype
        features = F.normalize(self.image_tower(pixels.to(dtype)).float(), dim=-1)
        return self.head(features).squeeze(-1)


class AestheticReward:
    """An aesthetic score from 1 to 10, divided by 10: as large as the other rewards are, about 0.4 to 0.7.

    image_tower: a Scorer. place: as of DotProductReward.
    """

    reads_text = False

    place: Placement = staticmethod(where_it_is)

    def __init__(self, image_tower: Scorer, pixels: Pixels):
        self.image_tower = image_tower
        self.pixels = pixels

    def score(self, images: Tensor, texts: list[str]) -> Tensor:
        """See Reward. The texts are not read."""
        device = self.place(self.image_tower)
        return self.image_tower(self.pixels(images.to(device))) / OUT_OF


def linear_head(weights: Weights, prefix: str) -> nn.Module:
    """The linear layers after this prefix, one after the other: nothing but dropout was between them in training.

    Raises ValueError unless they lead to one number.
    """
    layers(weights, prefix)
    indices = {name[len(prefix) :].split(".")[0] for name in weights.stored if name.startswith(prefix)}
    if odd := [index for index in indices if not (index.isascii() and index.isdigit())]:
        raise ValueError(f"{weights.path.name} is of another model than those known here, with {prefix}{odd[0]} more.")
    sizes = OrderedDict((i, shape(weights, f"{prefix}{i}.weight", 2)) for i in sorted(indices, key=int))
    widths = list(sizes.values())
    for (out, _), (_, into) in zip(widths, [*widths[1:], (0, 1)]):  # what comes after the last takes one number
        if out != into:
            raise ValueError(
                f"{weights.path.name} is not of a known model: a layer under {prefix} gives {out} numbers, "
                f"where {into} would fit."
            )

    def build() -> nn.Module:
        return nn.Sequential(OrderedDict((index, nn.Linear(size[1], size[0])) for index, size in sizes.items()))

    return Tower(weights, build, prefix, lambda name: prefix + name).load(torch.float32)
