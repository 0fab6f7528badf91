"""The towers of CLIP, PickScore and SigLIP as transformers names their parts, which is alike in both."""

from torch import Tensor, nn

from .dot_product import ImageTower, TextTower
from .towers import Tower, heads, image_heads, image_size, layers, prefixed, shape, text_sizes
from .weights import Weights


def encoder_sizes(weights: Weights, part: str, image: bool) -> dict:
    intermediate, width = shape(weights, f"{part}encoder.layers.0.mlp.fc1.weight", 2)
    return dict(
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=layers(weights, f"{part}encoder.layers."),
        num_attention_heads=image_heads(width) if image else heads(width),
    )


def text_size(weights: Weights) -> tuple[int, int]:
    """How many tokens there are, and how many of them a text may have."""
    embeddings = "text_model.embeddings"
    return text_sizes(weights, f"{embeddings}.token_embedding.weight", f"{embeddings}.position_embedding.weight")


def clip_image_size(weights: Weights) -> int:
    positions = shape(weights, "vision_model.embeddings.position_embedding.weight", 2)[0] - 1
    return image_size(weights, positions, shape(weights, "vision_model.embeddings.patch_embedding.weight", 4)[2])


def clip_image(weights: Weights, activation: str) -> Tower:
    """Pixels (B, 3, size, size) to features (B, D)."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        **encoder_sizes(weights, "vision_model.", image=True),
        image_size=clip_image_size(weights),
        patch_size=shape(weights, "vision_model.embeddings.patch_embedding.weight", 4)[2],
        projection_dim=shape(weights, "visual_projection.weight", 2)[0],
        hidden_act=activation,
    )
    return Tower(weights, lambda: CLIPVisionModelWithProjection(config), "vision_model.", str, wrap=ImageTower)


def clip_text(weights: Weights, activation: str) -> Tower:
    """Token ids (N, L) to features (N, D)."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    vocabulary, context = text_size(weights)
    config = CLIPTextConfig(
        **encoder_sizes(weights, "text_model.", image=False),
        vocab_size=vocabulary,
        max_position_embeddings=context,
        projection_dim=shape(weights, "text_projection.weight", 2)[0],
        hidden_act=activation,
        eos_token_id=2,  # their sign for "the highest id", which CLIP's end token is
    )
    return Tower(weights, lambda: CLIPTextModelWithProjection(config), "text_model.", str, wrap=TextTower)


class Pooled(nn.Module):
    """The pooled output of a transformers model."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs).pooler_output


def siglip_image_size(weights: Weights) -> int:
    """Raises ValueError for the kind of SigLIP2 that takes pictures of any shape."""
    name = "vision_model.embeddings.patch_embedding.weight"
    if name in weights.stored and len(weights.stored[name].shape) == 2:
        raise ValueError(
            f"{weights.path.name} is a NaFlex SigLIP2, for pictures of any shape, which is not supported. Use one of a "
            "fixed resolution, such as huggingface.co/google/siglip2-so400m-patch14-384."
        )
    positions = shape(weights, "vision_model.embeddings.position_embedding.weight", 2)[0]
    return image_size(weights, positions, shape(weights, name, 4)[2])


def siglip_image(weights: Weights, activation: str) -> Tower:
    """Pixels (B, 3, size, size) to features (B, D)."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        **encoder_sizes(weights, "vision_model.", image=True),
        image_size=siglip_image_size(weights),
        patch_size=shape(weights, "vision_model.embeddings.patch_embedding.weight", 4)[2],
        hidden_act=activation,
    )
    return Tower(weights, lambda: SiglipVisionModel(config), "vision_model.", prefixed("vision_model."), wrap=Pooled)


def siglip_text(weights: Weights, activation: str) -> Tower:
    """Token ids (N, L) to features (N, D)."""
    from transformers import SiglipTextConfig, SiglipTextModel

    vocabulary, context = text_size(weights)
    config = SiglipTextConfig(
        **encoder_sizes(weights, "text_model.", image=True),  # its text towers have the heads of an image tower
        vocab_size=vocabulary,
        max_position_embeddings=context,
        projection_size=shape(weights, "text_model.head.weight", 2)[0],
        hidden_act=activation,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return Tower(weights, lambda: SiglipTextModel(config), "text_model.", prefixed("text_model."), wrap=Pooled)
