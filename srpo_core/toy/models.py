"""Configurations and loaders of the toy models: a real FLUX, tiny autoencoder, two-tower CLIP and word tokenizer.

The weights lie in `weights/` as bf16 safetensors with the keys of diffusers and transformers; the loaders return
fp32 models in eval mode without gradients. diffusers (an optional extra) and transformers are imported only by the
functions that need them.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from safetensors.torch import load_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny, FluxTransformer2DModel
    from transformers import CLIPModel, PreTrainedTokenizerFast

Model = TypeVar("Model", bound=nn.Module)

WEIGHTS = Path(__file__).parent / "weights"
NAMES = ("flux", "vae", "clip", "judge")

TEXT_WIDTH = 128  # of the CLIP text tower, and so of FLUX's context and pooled text
TEXT_LENGTH = 16  # tokens, padded on the right with PAD
PAD = 0
BOS = 1
UNK = 2
EOS = 3

FLUX_CONFIG = dict(
    patch_size=1,
    in_channels=64,
    num_layers=2,
    num_single_layers=4,
    attention_head_dim=128,
    num_attention_heads=1,
    joint_attention_dim=TEXT_WIDTH,
    pooled_projection_dim=TEXT_WIDTH,
    guidance_embeds=True,
    axes_dims_rope=(16, 56, 56),
)
VAE_CONFIG = dict(latent_channels=16, scaling_factor=1.0, shift_factor=0.0)
CLIP_TEXT_CONFIG = dict(
    vocab_size=128,
    hidden_size=TEXT_WIDTH,
    intermediate_size=384,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=TEXT_LENGTH,
    hidden_act="gelu",
    pad_token_id=PAD,
    bos_token_id=BOS,
    eos_token_id=EOS,
)
CLIP_VISION_CONFIG = dict(
    hidden_size=160,
    intermediate_size=480,
    num_hidden_layers=4,
    num_attention_heads=5,
    image_size=64,
    patch_size=8,
    hidden_act="gelu",
)
CLIP_CONFIG = dict(text_config=CLIP_TEXT_CONFIG, vision_config=CLIP_VISION_CONFIG, projection_dim=TEXT_WIDTH)


def weights_path(name: str):
    """Path of a shipped file: "flux", "vae", "clip", "judge" (safetensors), or "tokenizer" (a folder)."""
    if name == "tokenizer":
        return WEIGHTS / name
    if name not in NAMES:
        raise ValueError(f"no toy weights called {name!r}; there are: {', '.join(NAMES)}, tokenizer")
    return WEIGHTS / f"{name}.safetensors"


def new_flux() -> "FluxTransformer2DModel":
    """An untrained toy `FluxTransformer2DModel` of diffusers, 2.4 M parameters."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(**FLUX_CONFIG)


def new_vae() -> "AutoencoderTiny":
    """An untrained `AutoencoderTiny` of diffusers: 16 latent channels, 8x; layer by layer ComfyUI's TAESD."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(**VAE_CONFIG)


def new_clip() -> "CLIPModel":
    """An untrained two-tower `CLIPModel` of transformers."""
    from transformers import CLIPConfig, CLIPModel

    # transformers' eager attention: its backward is 2 to 3 times faster than SDPA's for heads this small on a CPU.
    return CLIPModel(CLIPConfig(**CLIP_CONFIG, attn_implementation="eager"))


def load(model: Model, path: Path) -> Model:
    """The model with the weights of a file, in fp32, in eval mode, without gradients."""
    state = {name: value.float() for name, value in load_file(path).items()}
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def load_flux(path: Path | None = None) -> "FluxTransformer2DModel":
    """The toy FLUX. Latents (B, 16, 8, 8) packed 2x2 as FLUX packs them; context (B, 16, 128), pooled (B, 128)."""
    return load(new_flux(), path or weights_path("flux"))


def load_vae(path: Path | None = None) -> "AutoencoderTiny":
    """The toy VAE: `encode((B, 3, H, W) in [-1, 1]).latents` is (B, 16, H/8, W/8) of unit variance, and back."""
    return load(new_vae(), path or weights_path("vae"))


def load_clip(path: Path | None = None) -> "CLIPModel":
    """The toy CLIP: images (B, 3, 64, 64) normalised by CLIP_MEAN and CLIP_STD, tokens (B, 16)."""
    return load(new_clip(), path or weights_path("clip"))


def load_tokenizer(path: Path | None = None) -> "PreTrainedTokenizerFast":
    """The toy tokenizer, a `PreTrainedTokenizerFast`. See `tokenize`."""
    from transformers import PreTrainedTokenizerFast

    folder = str(path or weights_path("tokenizer"))
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)  # never a name of the hub


def tokenize(tokenizer: "PreTrainedTokenizerFast", texts: Iterable[str]):
    """List of B texts -> token ids (B, 16), longer texts cut, shorter ones padded on the right."""
    options = dict(padding="max_length", truncation=True, max_length=TEXT_LENGTH, return_tensors="pt")
    return tokenizer(list(texts), **options).input_ids


def text_conditioning(clip: "CLIPModel", tokens: Tensor):
    """Token ids (B, 16) -> FLUX's context (B, 16, 128) and pooled text (B, 128).

    The context is the text tower's last hidden state after its final layer norm, padding included and unmasked;
    the pooled text is that state at the first <eos>, not projected.
    """
    output = clip.text_model(input_ids=tokens)
    return output.last_hidden_state, output.pooler_output
