"""Every family of flow and diffusion models that the host loads and that makes pictures, tiny and with random weights.

A family is a `Family` below: the host's class in `comfy.supported_models`, the sizes that its detection would read off
a file (the host's own names), and what a conditioning holds. `patcher` gives the MODEL as a loader node makes it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Draw = Callable[..., Tensor]  # of a shape, with the values of a normal distribution


@dataclass(frozen=True, kw_only=True)
class Family:
    """name: what people call it. kind: the name in comfy.supported_models. config: the tiny network's.

    latent: the shape of one picture's latent, without the batch. text: tokens and width of the prompt's embedding;
    pooled: the width of its pooled one, if there is any. extras: what else a conditioning holds. state: what the
    host's class reads off the file's tensors beside shapes. vae: the name of its VAE in `tests/support/vaes.py`.
    size: of random weights, beside the usual. cfg: what it is sampled with, where a negative prompt is usual.
    """

    name: str
    kind: str
    config: dict
    latent: tuple[int, ...]
    text: tuple[int, int] = (6, 32)
    pooled: int | None = None
    extras: Callable[[Draw], dict] = lambda draw: {}
    state: Callable[[], dict] = dict
    vae: str | None = None
    cfg: float = 1.0
    size: float = 1.0
    settings: dict = field(default_factory=dict)


def patcher(family: Family, seed: int = 0, dtype: torch.dtype = torch.float32):
    """A ModelPatcher of the host around the family's model; its weights are inference tensors, as a loader's."""
    import comfy.model_patcher
    import comfy.supported_models

    with torch.inference_mode():
        chosen = getattr(comfy.supported_models, family.kind)(dict(family.config, dtype=dtype))
        chosen.set_inference_dtype(dtype, None)
        model = chosen.get_model(family.state(), "", device="cpu")
        draw_weights(model.diffusion_model, seed, family.size)
        return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def draw_weights(network: torch.nn.Module, seed: int, size: float = 1.0):
    """Fill all that a file would, none of it zero: matrices keep the size of what goes through, norms are about 1."""
    generator = torch.Generator().manual_seed(seed)
    stored = network.state_dict(keep_vars=True)
    for name, tensor in stored.items():
        if not tensor.is_floating_point() or not isinstance(tensor, torch.nn.Parameter) and not _is_loaded(name):
            continue
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        is_norm = tensor.ndim == 1 and "norm" in name and name.endswith(("weight", "scale"))
        fan = math.prod(tensor.shape[1:]) if tensor.ndim > 1 and name.endswith("weight") else 10
        tensor.data.copy_(1 + 0.1 * noise if is_norm else size * noise / math.sqrt(fan))


def _is_loaded(name: str) -> bool:
    """Whether this buffer is one that files hold: the others are computed."""
    return name.endswith(("pos_embed", "pos_embedding", "positional_encoding"))


def prompt(family: Family, seed: int = 0, batch: int = 1) -> list:
    """A conditioning in the host's form."""
    generator = torch.Generator().manual_seed(1000 + seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    more = {"pooled_output": draw(batch, family.pooled)} if family.pooled else {}
    return [[draw(batch, *family.text), more | family.extras(draw)]]


def latent(family: Family, seed: int = 0, batch: int = 1) -> Tensor:
    """Normal numbers in the shape of `batch` latents of the family."""
    generator = torch.Generator().manual_seed(2000 + seed)
    return torch.randn(batch, *family.latent, generator=generator)


_FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 24,
    "context_in_dim": 32,
    "hidden_size": 32,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 2,
    "axes_dim": [4, 6, 6],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
    "yak_mlp": False,
    "txt_norm": False,
}
_NO_POOLED = {"vec_in_dim": None, "guidance_embed": False}
_FLUX2 = _FLUX | {
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "mlp_ratio": 3.0,
    "axes_dim": [4] * 4,
    "theta": 2000,
    "patch_size": 1,
    "qkv_bias": False,
    "ops_bias": False,
    "global_modulation": True,
    "mlp_silu_act": True,
    "vec_in_dim": None,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
    "txt_ids_dims": [3],
}
_CHROMA = {name: value for name, value in _FLUX.items() if name not in ("guidance_embed", "yak_mlp", "txt_norm")} | {
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": 32,
    "hidden_dim": 24,
    "n_layers": 2,
    "vec_in_dim": None,
}
_SD3 = {
    "in_channels": 16,
    "patch_size": 2,
    "out_channels": 16,
    "depth": 1,
    "input_size": None,
    "adm_in_channels": 24,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 64}},
    "num_patches": 64,
    "pos_embed_max_size": 8,
    "pos_embed_scaling_factor": None,
    "x_block_self_attn_layers": [],
    "mlp_ratio": 2.0,
    "num_blocks": 2,
}
_LUMINA = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 48,
    "cap_feat_dim": 32,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "qk_norm": True,
    "n_heads": 2,
    "n_kv_heads": 2,
    "multiple_of": 8,
    "axes_dims": [8, 8, 8],
    "axes_lens": [300, 512, 512],
    "rope_theta": 10000.0,
    "ffn_dim_multiplier": 1.0,
}
_Z_IMAGE = _LUMINA | {
    "dim": 256,  # its modulations are this wide, whatever the model
    "n_layers": 1,
    "axes_dims": [32, 48, 48],
    "rope_theta": 256.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
_AURA = {
    "max_seq": 64,
    "cond_seq_dim": 32,
    "n_double_layers": 1,
    "n_layers": 2,
    "dim": 32,
    "n_heads": 2,
    "global_conddim": 32,
}
_QWEN = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "axes_dims_rope": (4, 6, 6),
}
_WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 48,
    "out_dim": 16,
    "num_heads": 2,
    "ffn_dim": 64,
    "num_layers": 2,
    "patch_size": (1, 2, 2),
    "freq_dim": 16,
    "text_dim": 32,
    "text_len": 8,
    "in_dim": 16,
}

FLUX_LATENT = (16, 8, 8)
FLUX2_LATENT = (128, 4, 4)
FRAME = (16, 1, 8, 8)


def _references(*shape: int) -> Callable[[Draw], dict]:
    return lambda draw: {"reference_latents": [draw(1, *shape)]}


FAMILIES = [
    Family(name="FLUX.1 dev", kind="Flux", config=_FLUX, latent=FLUX_LATENT, pooled=24),
    Family(
        name="FLUX.1 schnell",
        kind="FluxSchnell",
        config=_FLUX | {"guidance_embed": False},
        latent=FLUX_LATENT,
        pooled=24,
    ),
    Family(
        name="FLUX.1 Kontext",
        kind="Flux",
        config=_FLUX,
        latent=FLUX_LATENT,
        pooled=24,
        extras=_references(16, 4, 8),
    ),
    Family(name="FLUX.1 Fill", kind="FluxInpaint", config=_FLUX | {"in_channels": 96}, latent=FLUX_LATENT, pooled=24),
    Family(name="FLUX.1 Canny", kind="Flux", config=_FLUX | {"in_channels": 32}, latent=FLUX_LATENT, pooled=24),
    Family(name="FLUX.2 dev", kind="Flux2", config=_FLUX2, latent=FLUX2_LATENT),
    Family(
        name="FLUX.2 dev, reference",
        kind="Flux2",
        config=_FLUX2,
        latent=FLUX2_LATENT,
        extras=_references(*FLUX2_LATENT),
    ),
    Family(name="FLUX.2 klein", kind="Flux2", config=_FLUX2 | {"guidance_embed": False}, latent=FLUX2_LATENT),
    Family(name="SD3", kind="SD3", config=_SD3, latent=FLUX_LATENT, pooled=24, cfg=5.0),
    Family(
        name="SD3.5",
        kind="SD3",
        config=_SD3 | {"qk_norm": "rms", "x_block_self_attn_layers": [0]},
        latent=FLUX_LATENT,
        pooled=24,
        cfg=4.0,
    ),
    Family(name="Lumina 2", kind="Lumina2", config=_LUMINA, latent=FLUX_LATENT, cfg=4.0),
    Family(name="Z-Image", kind="ZImage", config=_Z_IMAGE, latent=FLUX_LATENT),
    Family(name="AuraFlow", kind="AuraFlow", config=_AURA, latent=(4, 8, 8), cfg=3.5),
    Family(name="Qwen-Image", kind="QwenImage", config=_QWEN, latent=FRAME, cfg=4.0),
    Family(
        name="Qwen-Image-Edit",
        kind="QwenImage",
        config=_QWEN,
        latent=FRAME,
        extras=_references(*FRAME),
        cfg=4.0,
    ),
    Family(name="Chroma", kind="Chroma", config=_CHROMA, latent=FLUX_LATENT, cfg=4.0),
    Family(name="Wan 2.1", kind="WAN21_T2V", config=_WAN, latent=FRAME, cfg=5.0),
]
