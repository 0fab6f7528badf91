"""The towers of CLIP and HPS as open_clip names their parts."""

from torch import nn

from .towers import Tower, heads, image_heads, image_size, layers, prefixed, shape, text_sizes
from .weights import Weights


def open_clip_image_size(weights: Weights) -> int:
    positions = shape(weights, "visual.positional_embedding", 2)[0] - 1
    return image_size(weights, positions, shape(weights, "visual.conv1.weight", 4)[2])


def open_clip_activation(name: str) -> type[nn.Module]:
    from open_clip.transformer import QuickGELU

    return QuickGELU if name == "quick_gelu" else nn.GELU


def open_clip_block(weights: Weights, prefix: str, activation: str) -> dict:
    """What both towers are told of their blocks, but for the heads."""
    mlp, width = shape(weights, f"{prefix}resblocks.0.mlp.c_fc.weight", 2)
    return dict(
        width=width,
        layers=layers(weights, f"{prefix}resblocks."),
        mlp_ratio=(mlp + 0.5) / width,  # they round the product down
        act_layer=open_clip_activation(activation),
    )


def open_clip_image(weights: Weights, activation: str) -> Tower:
    """Pixels (B, 3, size, size) to features (B, D)."""
    from open_clip.transformer import VisionTransformer

    block = open_clip_block(weights, "visual.transformer.", activation)
    sizes = dict(
        image_size=open_clip_image_size(weights),
        patch_size=shape(weights, "visual.conv1.weight", 4)[2],
        heads=image_heads(block["width"]),
        output_dim=shape(weights, "visual.proj", 2)[1],
    )
    return Tower(weights, lambda: VisionTransformer(**block, **sizes), "visual.", prefixed("visual."))


def open_clip_text(weights: Weights, activation: str) -> Tower:
    """Token ids (N, L) to features (N, D)."""
    from open_clip.transformer import TextTransformer

    prefix = open_clip_text_prefix(weights)
    block = open_clip_block(weights, f"{prefix}transformer.", activation)
    vocabulary, context = open_clip_text_size(weights)
    sizes = dict(
        context_length=context,
        vocab_size=vocabulary,
        heads=heads(block["width"]),
        output_dim=shape(weights, f"{prefix}text_projection", 2)[1],
    )
    part = prefix or "transformer."
    return Tower(weights, lambda: TextTransformer(**block, **sizes), part, lambda name: prefix + name)


def open_clip_text_prefix(weights: Weights) -> str:
    """open_clip has two layouts for the text tower."""
    return "text." if any(name.startswith("text.") for name in weights.shapes) else ""


def open_clip_text_size(weights: Weights) -> tuple[int, int]:
    """How many tokens there are, and how many of them a text may have."""
    prefix = open_clip_text_prefix(weights)
    return text_sizes(weights, f"{prefix}token_embedding.weight", f"{prefix}positional_embedding")
