"""The towers of MPS, and the cross attention of its image tokens to its text tokens."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .towers import Tower, layers, shape
from .transformers_towers import clip_image, clip_text
from .weights import Weights


class SwiGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * x


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, N, heads * d), of queries (B, heads, N, d) that share one head of keys and values (B, M, d)."""
    k, v = (x[:, None].expand(-1, q.shape[1], -1, -1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def rotate(x: Tensor) -> Tensor:
    """Rotary position embedding of x (..., N, d): the pairs are (i, i + d / 2)."""
    positions = torch.arange(x.shape[-2], device=x.device)
    d = x.shape[-1]
    frequency = 10000.0 ** (-torch.arange(0, d, 2, device=x.device) / d)
    angle = (positions[:, None] * frequency).repeat(1, 2)  # (N, d)
    first, second = x.chunk(2, dim=-1)
    return x * angle.cos().to(x) + torch.cat([-second, first], dim=-1) * angle.sin().to(x)


class CrossAttention(nn.Module):
    """Image tokens x (B, N, dim) attend to text tokens (B, M, dim), beside a feed-forward of x."""

    def __init__(self, dim: int, heads: int, head_width: int, inner: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim, bias=False)
        self.to_q = nn.Linear(dim, heads * head_width, bias=False)
        self.to_kv = nn.Linear(dim, 2 * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, dim, bias=False)
        self.ff = nn.Sequential(nn.Linear(dim, 2 * inner, bias=False), SwiGLU(), nn.Linear(inner, dim, bias=False))

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(x)
        q = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(text).chunk(2, dim=-1)
        return self.to_out(attend(q, k, v, mask)) + self.ff(x)


class SelfAttention(nn.Module):
    """Image tokens attend to each other, beside a feed-forward; one projection feeds both."""

    def __init__(self, dim: int, heads: int, head_width: int, inner: int):
        super().__init__()
        self.heads = heads
        self.widths = (heads * head_width, head_width, head_width, 2 * inner)
        self.norm = nn.LayerNorm(dim, bias=False)
        self.fused_attn_ff_proj = nn.Linear(dim, sum(self.widths), bias=False)
        self.attn_out = nn.Linear(heads * head_width, dim, bias=False)
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(inner, dim, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, ff = self.fused_attn_ff_proj(self.norm(x)).split(self.widths, dim=-1)
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.attn_out(attend(rotate(q), rotate(k), v)) + self.ff_out(ff)


class Residual(nn.Module):
    def __init__(self, fn: nn.Module):
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, *inputs: Tensor) -> Tensor:
        return x + self.fn(x, *inputs)


class CrossModel(nn.Module):
    """Image tokens (B, N, dim) that have read text tokens (B, M, dim). mask: (B, 1, 1, M), True where to read."""

    def __init__(self, depth: int, *sizes: int):
        super().__init__()
        pairs = [[Residual(CrossAttention(*sizes)), Residual(SelfAttention(*sizes))] for _ in range(depth)]
        self.layers = nn.ModuleList(nn.ModuleList(pair) for pair in pairs)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        for cross, alone in cast(Iterable[tuple[Residual, Residual]], self.layers):
            x = alone(cross(x, text, mask))
        return x


class ImageTokens(nn.Module):
    """Pixels to all image tokens, projected (B, N, D), from a transformers CLIPVisionModelWithProjection."""

    def __init__(self, model: Any):
        super().__init__()
        self.vision_model = model.vision_model
        self.visual_projection = model.visual_projection

    def forward(self, pixels: Tensor) -> Tensor:
        return self.visual_projection(self.vision_model(pixel_values=pixels).last_hidden_state)


class TextTokens(nn.Module):
    """Token ids (N, L) to all text tokens, projected (N, L, D), from a transformers CLIPTextModelWithProjection."""

    def __init__(self, model: Any):
        super().__init__()
        self.text_model = model.text_model
        self.text_projection = model.text_projection

    def forward(self, ids: Tensor) -> Tensor:
        return self.text_projection(self.text_model(input_ids=ids).last_hidden_state)


class MPSImage(nn.Module):
    """All of MPS that a score needs once the texts are encoded. cross_model: a CrossModel."""

    def __init__(self, tokens: nn.Module, cross_model: nn.Module):
        super().__init__()
        self.tokens = tokens
        self.cross_model = cross_model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.tokens(pixels)


def cross_model(weights: Weights) -> Tower:
    first = "cross_model.layers.0.0.fn."
    dim, inner = shape(weights, f"{first}ff.2.weight", 2)
    head_width = max(1, shape(weights, f"{first}to_kv.weight", 2)[0] // 2)
    heads = max(1, shape(weights, f"{first}to_q.weight", 2)[0] // head_width)
    depth = layers(weights, "cross_model.layers.")
    sizes = (dim, heads, head_width, inner)
    return Tower(weights, lambda: CrossModel(depth, *sizes), "cross_model.", lambda name: f"cross_model.{name}")


def cross_width(weights: Weights) -> int:
    return shape(weights, "cross_model.layers.0.0.fn.norm.weight", 1)[0]


def mps_image(weights: Weights, activation: str, dtype: torch.dtype) -> MPSImage:
    tokens = replace(clip_image(weights.within("model."), activation), wrap=ImageTokens).load(dtype)
    return MPSImage(tokens, cross_model(weights).load(dtype))


def mps_text(weights: Weights, activation: str) -> Tower:
    return replace(clip_text(weights.within("model."), activation), wrap=TextTokens)
