"""MPS (arXiv 2405.14705): CLIP-H whose image tokens attend to the text tokens that a condition speaks of."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .mps_towers import MPSImage
from .pixels import Pixels
from .placement import OnText, Placement, unheard, where_it_is

AESTHETICS = "light, color, clarity, tone, style, ambiance, artistry"
QUALITY = "shape, face, hair, hands, limbs, structure, instance, texture"
CONDITIONS = {  # what of a picture is judged, in the words of its training
    "overall": f"{AESTHETICS}, {QUALITY}, quantity, attributes, position, number, location, word, things.",
    "aesthetics": AESTHETICS,
    "quality": QUALITY,
    "semantic": "quantity, attributes, position, number, location",
}
LEAST = 0.01  # a text token is read when its likeness to the condition is this part of the most alike token's


class Text(NamedTuple):
    """tokens: (L, D), as computed. end: the end token's, (D,) float32, normalised. read: (L,), those to read."""

    tokens: Tensor
    end: Tensor
    read: Tensor


class MPSReward:
    """`scale * cosine(text, image that has read the text)`.

    image_tower: frozen here. text_tower, tokenize, pixels and scale: as of DotProductReward, but text_tower's module
    gives all tokens (N, L, D). Texts are kept in memory alone: about 0.3 MB each in float32, half of it in bfloat16.
    condition: one of CONDITIONS. place, on_text: as of DotProductReward.
    """

    place: Placement = staticmethod(where_it_is)
    on_text: OnText = staticmethod(unheard)

    def __init__(
        self,
        image_tower: MPSImage,
        text_tower: Callable[[], nn.Module],
        tokenize: Callable[[list[str]], Tensor],
        pixels: Pixels,
        scale: float,
        condition: str = "overall",
    ):
        self.image_tower = image_tower.eval().requires_grad_(False)
        self.text_tower = text_tower
        self.tokenize = tokenize
        self.pixels = pixels
        self.scale = scale
        self._texts: dict[str, Text] = {}
        self.condition = CONDITIONS[condition]
        self._condition: Tensor | None = None  # its tokens

    def score(self, images: Tensor, texts: list[str]) -> Tensor:
        """See Reward."""
        return self.score_many(images, texts)[0]

    def score_many(self, images: Tensor, *texts: list[str]) -> Tensor:
        """(len(texts), B), with one pass of the images through CLIP, and one through the rest for each list."""
        self.prepare([text for row in texts for text in row])
        device = self.place(self.image_tower)
        dtype = next(self.image_tower.parameters()).dtype
        tokens = self.image_tower(self.pixels(images.to(device)).to(dtype))
        return torch.stack([self._score_tokens(tokens, [self._texts[text] for text in row]) for row in texts])

    def _score_tokens(self, tokens: Tensor, texts: list[Text]) -> Tensor:
        """(B,), of image tokens (B, N, D)."""
        context = torch.stack([text.tokens for text in texts]).to(tokens)
        mask = torch.stack([text.read for text in texts])[:, None, None].to(tokens.device)
        image = F.normalize(self.image_tower.cross_model(tokens, context, mask)[:, 0].float(), dim=-1)
        return self.scale * (image * torch.stack([text.end for text in texts]).to(image)).sum(-1)

    @torch.inference_mode(False)
    @torch.no_grad()
    def prepare(self, texts: list[str]):
        """See DotProductReward."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if not missing:
            return
        tower = self.text_tower().eval()
        device = self.place(tower)
        if self._condition is None:
            self._condition = tower(self.tokenize([self.condition]).to(device))[0].cpu()
        for done, text in enumerate(missing):
            self.on_text(done, len(missing))
            ids = self.tokenize([text])
            self._texts[text] = read_text(tower(ids.to(device))[0].cpu(), ids[0], self._condition)


def read_text(tokens: Tensor, ids: Tensor, condition: Tensor) -> Text:
    """The text of tokens (L, D) and ids (L,), and which of them speak of the condition, whose tokens are (M, D)."""
    likeness = (tokens.float() @ condition.float().T).amax(-1)  # (L,)
    end = tokens[ids.argmax()].float()  # the end token's id is the highest
    return Text(tokens, F.normalize(end, dim=-1), likeness / likeness.max() > LEAST)
