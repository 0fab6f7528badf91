"""Every family of flow and diffusion models that the host loads and that makes pictures, tiny and with random weights.

A family is a `Family` below: the host's class in `comfy.supported_models`, the sizes that its detection would read off
a file (the host's own names), and what a conditioning holds. `patcher` gives the MODEL as a loader node makes it.
"""

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

Draw = Callable[..., Tensor]  # of a shape, with the values of a normal distribution


@dataclass(frozen=True, kw_only=True)
class Family:
    """name: what people call it. kind: the name in comfy.supported_models. config: the tiny network's.

    latent: the shape of one picture's latent, without the batch. text: tokens and width of the prompt's embedding;
    pooled: the width of its pooled one, if there is any. extras: what else a conditioning holds. state: what the
    host's class reads off the file's tensors beside shapes. vae: its VAE in `tests/support/vaes.py`, if one is there.
    parts: classes of the host, by their dotted names, whose sizes no configuration sets, with smaller ones.
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
    parts: dict[str, dict] = field(default_factory=dict)


def patcher(family: Family, seed: int = 0, dtype: torch.dtype = torch.float32):
    """A ModelPatcher of the host around the family's model; its weights are inference tensors, as a loader's."""
    import comfy.model_patcher
    import comfy.supported_models

    with torch.inference_mode():
        chosen = getattr(comfy.supported_models, family.kind)(dict(family.config))
        chosen.unet_config.update(family.config)  # before what the class sets for each of its models
        chosen.set_inference_dtype(dtype, None)
        with smaller(family.parts):
            model = chosen.get_model(family.state(), "", device="cpu")
        draw_weights(model.diffusion_model, seed, dtype)
        return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


@contextlib.contextmanager
def smaller(parts: dict[str, dict]) -> Iterator[None]:
    """These classes of the host are made with these arguments."""
    before = {}
    for place, sizes in parts.items():
        module, name = place.rsplit(".", 1)
        module = importlib.import_module(module)
        before[module, name] = getattr(module, name)
        setattr(module, name, partial(getattr(module, name), **sizes))
    try:
        yield
    finally:
        for (module, name), whole in before.items():
            setattr(module, name, whole)


def draw_weights(network: torch.nn.Module, seed: int, dtype: torch.dtype):
    """Fill all that a file would, none of it zero: matrices keep the size of what goes through, norms are about 1.

    dtype: what a model always keeps in fp32 is of this type, too, where it is wider.
    """
    generator = torch.Generator().manual_seed(seed)
    stored = network.state_dict(keep_vars=True)
    for name, tensor in stored.items():
        if not tensor.is_floating_point() or not isinstance(tensor, torch.nn.Parameter) and not _is_loaded(name):
            continue
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        is_norm = tensor.ndim == 1 and "norm" in name and name.endswith(("weight", "scale"))
        fan = math.prod(tensor.shape[1:]) if tensor.ndim > 1 and name.endswith("weight") else 10
        wider = torch.promote_types(tensor.dtype, dtype)
        tensor.data = (1 + 0.1 * noise if is_norm else noise / math.sqrt(fan)).to(wider)


def _is_loaded(name: str) -> bool:
    """Whether this buffer is one that files hold: the others are computed."""
    return name.endswith(
        ("pos_embed", "pos_embedding", "positional_encoding", "-of-means", "running_mean", "running_var")
    )


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

_WAN_I2V = _WAN | {"model_type": "i2v", "in_dim": 36}
_HUNYUAN_VIDEO = {
    "image_model": "hunyuan_video",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "vec_in_dim": 24,
    "axes_dim": [4, 6, 6],
    "context_in_dim": 32,
    "hidden_size": 32,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 2,
    "theta": 256,
    "qkv_bias": True,
    "guidance_embed": True,
    "byt5": False,
    "meanflow": False,
    "meanflow_sum": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
}
_HUNYUAN_IMAGE = _HUNYUAN_VIDEO | {
    "in_channels": 64,
    "out_channels": 64,
    "patch_size": [1, 1],
    "axes_dim": [8, 8],
    "vec_in_dim": None,
    "guidance_embed": False,
    "byt5": True,
}
_HUNYUAN_VIDEO_15 = _HUNYUAN_IMAGE | {
    "in_channels": 65,
    "out_channels": 32,
    "patch_size": [1, 1, 1],
    "axes_dim": [4, 6, 6],
    "use_cond_type_embedding": True,
    "vision_in_dim": 24,
    "meanflow_sum": True,
}
_KANDINSKY = {
    "image_model": "kandinsky5",
    "in_text_dim": 32,
    "in_text_dim2": 24,
    "time_dim": 16,
    "model_dim": 32,
    "ff_dim": 64,
    "visual_embed_dim": 132,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "axes_dims": (4, 6, 6),
}
_OMNIGEN = {
    "image_model": "omnigen2",
    "hidden_size": 48,
    "num_layers": 1,
    "num_refiner_layers": 1,
    "num_attention_heads": 2,
    "num_kv_heads": 1,
    "multiple_of": 8,
    "axes_dim_rope": (8, 8, 8),
    "axes_lens": (64, 64, 64),
    "text_feat_dim": 32,
    "timestep_scale": 1000.0,
}
_BOOGU = {name: value for name, value in _OMNIGEN.items() if name != "text_feat_dim"} | {
    "image_model": "boogu",
    "num_double_stream_layers": 1,
    "instruction_feat_dim": 32,
}
_RADIANCE = _CHROMA | {
    "image_model": "chroma_radiance",
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": 4,
    "nerf_hidden_size": 16,
    "nerf_mlp_ratio": 2,
    "nerf_depth": 2,
    "nerf_max_freqs": 4,
    "nerf_tile_size": 512,
    "nerf_final_head_type": "conv",
    "nerf_embedder_dtype": None,
    "use_x0": True,
    "use_sequential_txt_ids": False,
}
_HIDREAM = {
    "image_model": "hidream",
    "attention_head_dim": 16,
    "axes_dims_rope": [8, 4, 4],
    "caption_channels": [32, 32],
    "max_resolution": [16, 16],
    "in_channels": 16,
    "llama_layers": [0, 1, 1],
    "num_attention_heads": 2,
    "num_layers": 1,
    "num_single_layers": 2,
    "out_channels": 16,
    "patch_size": 2,
    "text_emb_dim": 24,
}
_HIDREAM_O1 = {
    "image_model": "hidream_o1",
    "text_config_overrides": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rope_dims": [4, 2, 2],
    },
    "vision_config_overrides": {"hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "depth": 1},
}
_COSMOS = {
    "image_model": "cosmos",
    "max_img_h": 16,
    "max_img_w": 16,
    "max_frames": 8,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 32,
    "num_blocks": 2,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "crossattn_emb_channels": 32,
    "pos_emb_cls": "rope3d",
    "use_adaln_lora": True,
    "adaln_lora_dim": 8,
}
_COSMOS_1 = _COSMOS | {
    "block_x_format": "THWBD",
    "affline_emb_norm": True,
    "extra_per_block_abs_pos_emb": True,
    "extra_per_block_abs_pos_emb_type": "learnable",
}
_COSMOS_2 = _COSMOS | {
    "image_model": "cosmos_predict2",
    "pos_emb_learnable": True,
    "rope_h_extrapolation_ratio": 4.0,
    "rope_w_extrapolation_ratio": 4.0,
    "rope_enable_fps_modulation": False,
}
_COGVIDEO = {
    "image_model": "cogvideox",
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "time_embed_dim": 24,
    "num_layers": 2,
    "in_channels": 16,
    "text_embed_dim": 32,
    "use_rotary_positional_embeddings": True,
}
_UNET = {
    "image_size": 32,
    "use_spatial_transformer": True,
    "legacy": False,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "context_dim": 32,
    "adm_in_channels": None,
    "use_linear_in_transformer": False,
    "use_temporal_attention": False,
    "num_heads": 8,
    "num_head_channels": -1,
}
_UNET_2 = _UNET | {"use_linear_in_transformer": True, "num_heads": -1, "num_head_channels": 16}
_UNET_XL = _UNET_2 | {
    "num_classes": "sequential",
    "adm_in_channels": 24 + 6 * 256,
    "transformer_depth": [0, 1],
    "transformer_depth_output": [0, 0, 1, 1],
}
_PIXART = {
    "image_model": "pixart_alpha",
    "num_heads": 2,
    "patch_size": 2,
    "hidden_size": 48,
    "in_channels": 4,
    "depth": 2,
    "mlp_ratio": 2.0,
    "caption_channels": 32,
    "model_max_length": 8,
    "input_size": 8,
    "pe_interpolation": 1,
    "micro_condition": True,
}
_HUNYUAN_DIT = {
    "image_model": "hydit",
    "hidden_size": 32,
    "depth": 4,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "text_states_dim": 32,
    "text_states_dim_t5": 32,
    "text_len": 6,
    "text_len_t5": 6,
}
_MOCHI = {
    "image_model": "mochi_preview",
    "depth": 2,
    "patch_size": 2,
    "num_heads": 2,
    "hidden_size_x": 32,
    "hidden_size_y": 24,
    "mlp_ratio_x": 384.0,  # the host asserts the width that this gives
    "mlp_ratio_y": 2.0,
    "learn_sigma": False,
    "in_channels": 12,
    "qk_norm": True,
    "qkv_bias": False,
    "out_bias": True,
    "attn_drop": 0.0,
    "posenc_preserve_area": True,
    "timestep_scale": 1000.0,
    "use_t5": True,
    "t5_feat_dim": 32,
    "t5_token_length": 6,
}
_STAGE_C = {
    "stable_cascade_stage": "c",
    "c_cond": 32,
    "c_hidden": [32, 32],
    "nhead": [2, 2],
    "blocks": [[1, 1], [1, 1]],
    "c_clip_text": 32,
    "c_clip_text_pooled": 24,
}
_STAGE_B = {
    "stable_cascade_stage": "b",
    "c_cond": 32,
    "c_hidden": [32, 32],
    "nhead": [-1, 2],
    "blocks": [[1, 1], [1, 1]],
    "block_repeat": [[1, 1], [1, 1]],
    "level_config": ["CT", "CTA"],
    "dropout": [0.0, 0.0],
    "c_clip": 24,
}

FLUX_LATENT = (16, 8, 8)
FLUX2_LATENT = (128, 4, 4)
FRAME = (16, 1, 8, 8)
PIXELS = (3, 16, 16)
SD_LATENT = (4, 8, 8)
PIXART_LATENT = (4, 34, 34)  # its places are told by 64 of them, rounded: not by none


def _references(*shape: int) -> Callable[[Draw], dict]:
    return lambda draw: {"reference_latents": [draw(1, *shape)]}


def _masked(draw: Draw) -> dict:
    return {"attention_mask": torch.ones(1, 6, dtype=torch.long)}


def _glyphs(draw: Draw) -> dict:
    return {"conditioning_byt5small": draw(1, 4, 1472)}


def _two_texts(draw: Draw) -> dict:
    ones = torch.ones(1, 6, dtype=torch.long)
    return {"attention_mask": ones, "conditioning_mt5xl": draw(1, 6, 32), "attention_mask_mt5xl": ones}


def _tokens(draw: Draw) -> dict:
    return {"text_input_ids": torch.tensor([[11, 12, 13, 14, 151673]])}  # ends with the token of the time step


FAMILIES = [
    Family(name="FLUX.1 dev", kind="Flux", config=_FLUX, latent=FLUX_LATENT, vae="FLUX", pooled=24),
    Family(
        name="FLUX.1 schnell",
        kind="FluxSchnell",
        config=_FLUX | {"guidance_embed": False},
        latent=FLUX_LATENT,
        vae="FLUX",
        pooled=24,
    ),
    Family(
        name="FLUX.1 Kontext",
        kind="Flux",
        config=_FLUX,
        latent=FLUX_LATENT,
        vae="FLUX",
        pooled=24,
        extras=_references(16, 4, 8),
    ),
    Family(
        name="FLUX.1 Fill",
        kind="FluxInpaint",
        config=_FLUX | {"in_channels": 96},
        latent=FLUX_LATENT,
        vae="FLUX",
        pooled=24,
    ),
    Family(
        name="FLUX.1 Canny", kind="Flux", config=_FLUX | {"in_channels": 32}, latent=FLUX_LATENT, vae="FLUX", pooled=24
    ),
    Family(
        name="FLUX.2 dev",
        kind="Flux2",
        config=_FLUX2,
        latent=FLUX2_LATENT,
        vae="FLUX.2",
    ),
    Family(
        name="FLUX.2 dev, reference",
        kind="Flux2",
        config=_FLUX2,
        latent=FLUX2_LATENT,
        vae="FLUX.2",
        extras=_references(*FLUX2_LATENT),
    ),
    Family(
        name="FLUX.2 klein",
        kind="Flux2",
        config=_FLUX2 | {"guidance_embed": False},
        latent=FLUX2_LATENT,
        vae="FLUX.2",
    ),
    Family(name="SD3", kind="SD3", config=_SD3, latent=FLUX_LATENT, vae="FLUX", pooled=24),
    Family(
        name="SD3.5",
        kind="SD3",
        config=_SD3 | {"qk_norm": "rms", "x_block_self_attn_layers": [0]},
        latent=FLUX_LATENT,
        vae="FLUX",
        pooled=24,
    ),
    Family(name="Lumina 2", kind="Lumina2", config=_LUMINA, latent=FLUX_LATENT, vae="FLUX"),
    Family(
        name="Z-Image",
        kind="ZImage",
        config=_Z_IMAGE,
        latent=FLUX_LATENT,
        vae="FLUX",
    ),
    Family(name="AuraFlow", kind="AuraFlow", config=_AURA, latent=(4, 8, 8), vae="SD"),
    Family(name="Qwen-Image", kind="QwenImage", config=_QWEN, latent=FRAME, vae="Wan 2.1"),
    Family(
        name="Qwen-Image-Edit",
        kind="QwenImage",
        config=_QWEN,
        latent=FRAME,
        vae="Wan 2.1",
        extras=_references(*FRAME),
    ),
    Family(name="Chroma", kind="Chroma", config=_CHROMA, latent=FLUX_LATENT, vae="FLUX"),
    Family(name="Wan 2.1", kind="WAN21_T2V", config=_WAN, latent=FRAME, vae="Wan 2.1"),
    Family(name="Wan 2.1 I2V", kind="WAN21_I2V", config=_WAN_I2V, latent=FRAME, vae="Wan 2.1"),
    Family(
        name="Wan 2.2 5B",
        kind="WAN22_T2V",
        config=_WAN | {"in_dim": 48, "out_dim": 48},
        latent=(48, 1, 4, 4),
        vae="Wan 2.2",
    ),
    Family(name="Wan 2.2 I2V", kind="WAN21_T2V", config=_WAN | {"in_dim": 36}, latent=FRAME, vae="Wan 2.1"),
    Family(
        name="Wan 2.1 Fun Control",
        kind="WAN21_FunControl2V",
        config=_WAN_I2V | {"in_dim": 48},
        latent=FRAME,
        vae="Wan 2.1",
    ),
    Family(
        name="Wan 2.1 VACE",
        kind="WAN21_Vace",
        config=_WAN | {"model_type": "vace", "vace_layers": 1, "vace_in_dim": 96},
        latent=FRAME,
        vae="Wan 2.1",
    ),
    Family(
        name="Wan 2.1 Camera",
        kind="WAN21_Camera",
        config=_WAN | {"model_type": "camera", "in_dim": 32},
        latent=FRAME,
        vae="Wan 2.1",
    ),
    Family(
        name="Wan 2.2 Camera",
        kind="WAN22_Camera",
        config=_WAN | {"model_type": "camera_2.2", "in_dim": 36},
        latent=FRAME,
        vae="Wan 2.1",
    ),
    Family(
        name="Wan 2.1 causal",
        kind="WAN21_CausalAR_T2V",
        config=_WAN,
        latent=FRAME,
        vae="Wan 2.1",
    ),
    Family(
        name="HunyuanVideo", kind="HunyuanVideo", config=_HUNYUAN_VIDEO, latent=FRAME, vae="HunyuanVideo", pooled=24
    ),
    Family(
        name="HunyuanVideo I2V",
        kind="HunyuanVideoI2V",
        config=_HUNYUAN_VIDEO | {"in_channels": 33},
        latent=FRAME,
        vae="HunyuanVideo",
        pooled=24,
    ),
    Family(
        name="SkyReels I2V",
        kind="HunyuanVideoSkyreelsI2V",
        config=_HUNYUAN_VIDEO | {"in_channels": 32},
        latent=FRAME,
        vae="HunyuanVideo",
        pooled=24,
    ),
    Family(
        name="HunyuanVideo 1.5",
        kind="HunyuanVideo15",
        config=_HUNYUAN_VIDEO_15,
        vae="HunyuanVideo 1.5",
        latent=(32, 1, 4, 4),
        pooled=24,
        extras=_glyphs,
    ),
    Family(
        name="HunyuanImage 2.1",
        kind="HunyuanImage21",
        config=_HUNYUAN_IMAGE,
        vae="HunyuanImage 2.1",
        latent=(64, 4, 4),
        extras=_glyphs,
    ),
    Family(
        name="Ovis",
        kind="FluxSchnell",
        config=_FLUX | _NO_POOLED | {"yak_mlp": True, "txt_norm": True, "txt_ids_dims": [1, 2]},
        latent=FLUX_LATENT,
        vae="FLUX",
    ),
    Family(
        name="LongCat-Image",
        kind="LongCatImage",
        config=_FLUX | _NO_POOLED | {"txt_ids_dims": [1, 2]},
        latent=FLUX_LATENT,
        vae="FLUX",
    ),
    Family(
        name="Kandinsky 5 image",
        kind="Kandinsky5Image",
        config=_KANDINSKY | {"visual_embed_dim": 64, "rope_scale_factor": (1.0, 1.0, 1.0)},
        latent=FLUX_LATENT,
        vae="FLUX",
        pooled=24,
        extras=_masked,
    ),
    Family(
        name="Kandinsky 5 video",
        kind="Kandinsky5",
        config=_KANDINSKY,
        latent=FRAME,
        vae="HunyuanVideo",
        pooled=24,
        extras=_masked,
    ),
    Family(
        name="Lens",
        kind="Lens",
        config={
            "image_model": "lens",
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "enc_hidden_dim": 16,
            "axes_dims_rope": (4, 6, 6),
            "selected_layer_index": (0, 1),
        },
        latent=FLUX2_LATENT,
        vae="FLUX.2",
        extras=_masked,
    ),
    Family(
        name="Mage-Flow",
        kind="MageFlow",
        config=_QWEN | {"image_model": "mage_flow", "in_channels": 128},
        latent=FLUX2_LATENT,
    ),
    Family(
        name="Ideogram 4",
        kind="Ideogram4",
        config={
            "image_model": "ideogram4",
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "intermediate_size": 48,
            "adaln_dim": 24,
            "llm_features_dim": 32,
            "mrope_section": [4, 2, 2],
        },
        latent=FLUX2_LATENT,
        vae="FLUX.2",
    ),
    Family(name="OmniGen2", kind="Omnigen2", config=_OMNIGEN, latent=FLUX_LATENT, vae="FLUX", extras=_masked),
    Family(
        name="OmniGen2, reference",
        kind="Omnigen2",
        config=_OMNIGEN,
        latent=FLUX_LATENT,
        vae="FLUX",
        extras=lambda draw: _masked(draw) | _references(*FLUX_LATENT)(draw),
    ),
    Family(name="Boogu", kind="Boogu", config=_BOOGU, latent=FLUX_LATENT, vae="FLUX", extras=_masked),
    Family(name="Chroma Radiance", kind="ChromaRadiance", config=_RADIANCE, latent=PIXELS, vae="pixels"),
    Family(
        name="HiDream I1",
        kind="HiDream",
        config=_HIDREAM,
        latent=FLUX_LATENT,
        vae="FLUX",
        pooled=24,
        extras=lambda draw: {"conditioning_llama3": draw(1, 2, 6, 32)},
    ),
    Family(
        name="HiDream O1",
        kind="HiDreamO1",
        config=_HIDREAM_O1,
        latent=(3, 64, 64),
        vae="pixels",
        extras=_tokens,
    ),
    Family(
        name="Ernie-Image",
        kind="ErnieImage",
        config={
            "image_model": "ernie",
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_layers": 2,
            "ffn_hidden_size": 48,
            "text_in_dim": 24,
            "rope_axes_dim": (4, 6, 6),
        },
        latent=FLUX2_LATENT,
        vae="FLUX.2",
        text=(6, 24),
    ),
    Family(
        name="PixelDiT",
        kind="PixelDiTT2I",
        config={
            "image_model": "pixeldit_t2i",
            "num_groups": 2,
            "hidden_size": 32,
            "pixel_hidden_size": 16,
            "pixel_attn_hidden_size": 32,
            "pixel_num_groups": 2,
            "patch_depth": 1,
            "pixel_depth": 1,
            "patch_size": 4,
            "txt_embed_dim": 32,
            "txt_max_length": 8,
        },
        latent=PIXELS,
        vae="pixels",
    ),
    Family(
        name="Z-Image, pixels",
        kind="ZImagePixelSpace",
        config=_Z_IMAGE
        | {
            "image_model": "zimage_pixel",
            "patch_size": 4,
            "in_channels": 3,
            "decoder_hidden_size": 32,
            "decoder_num_res_blocks": 1,
            "decoder_max_freqs": 4,
            "decoder_in_channels": 48,
            "use_x0": True,
        },
        latent=PIXELS,
        vae="pixels",
    ),
    Family(
        name="NewBie",
        kind="Lumina2",
        config=_LUMINA | {"clip_text_dim": 24},
        latent=FLUX_LATENT,
        vae="FLUX",
        pooled=24,
    ),
    Family(
        name="Krea 2",
        kind="Krea2",
        config={
            "image_model": "krea2",
            "features": 32,
            "tdim": 16,
            "txtdim": 16,
            "heads": 2,
            "kvheads": 1,
            "multiplier": 2,
            "layers": 2,
            "txtlayers": 2,
            "txtheads": 2,
            "txtkvheads": 2,
        },
        latent=FRAME,
        vae="Wan 2.1",
    ),
    Family(name="Mochi", kind="GenmoMochi", config=_MOCHI, latent=(12, 1, 8, 8), extras=_masked),
    Family(
        name="LTXV",
        kind="LTXV",
        config={
            "image_model": "ltxv",
            "cross_attention_dim": 32,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "caption_channels": 32,
            "num_layers": 2,
        },
        latent=(128, 1, 4, 4),
        vae="LTXV",
        extras=_masked,
    ),
    Family(
        name="JoyImage",
        kind="JoyImage",
        config={
            "image_model": "joyimage",
            "hidden_size": 32,
            "num_attention_heads": 2,
            "text_dim": 32,
            "mlp_width_ratio": 2.0,
            "num_layers": 2,
            "rope_dim_list": [4, 6, 6],
        },
        latent=FRAME,
        vae="Wan 2.1",
    ),
    Family(name="Cosmos Predict 2", kind="CosmosT2IPredict2", config=_COSMOS_2, latent=FRAME, vae="Wan 2.1"),
    Family(
        name="Cosmos Predict 2 I2V",
        kind="CosmosI2VPredict2",
        config=_COSMOS_2 | {"in_channels": 17},
        latent=FRAME,
        vae="Wan 2.1",
    ),
    Family(
        name="Anima",
        kind="Anima",
        config=_COSMOS_2 | {"image_model": "anima"},
        latent=FRAME,
        vae="Wan 2.1",
        extras=lambda draw: {"t5xxl_ids": torch.tensor([5, 6, 7, 1]), "t5xxl_weights": torch.ones(4)},
        parts={
            "comfy.ldm.anima.model.LLMAdapter": {
                "source_dim": 32,
                "target_dim": 32,
                "model_dim": 32,
                "num_layers": 1,
                "num_heads": 2,
            }
        },
    ),
    Family(name="Cosmos 1", kind="CosmosT2V", config=_COSMOS_1, vae="Cosmos 1", latent=FRAME),
    Family(name="Cosmos 1 I2V", kind="CosmosI2V", config=_COSMOS_1 | {"in_channels": 17}, vae="Cosmos 1", latent=FRAME),
    Family(name="CogVideoX", kind="CogVideoX_T2V", config=_COGVIDEO, vae="CogVideoX", latent=FRAME),
    Family(
        name="CogVideoX I2V",
        kind="CogVideoX_I2V",
        config=_COGVIDEO | {"in_channels": 32},
        vae="CogVideoX",
        latent=FRAME,
    ),
    Family(
        name="CogVideoX inpaint",
        kind="CogVideoX_Inpaint",
        config=_COGVIDEO | {"in_channels": 48},
        vae="CogVideoX",
        latent=FRAME,
    ),
    Family(name="SD 1.5", kind="SD15", config=_UNET, latent=SD_LATENT, vae="SD"),
    Family(
        name="SD 1.5 InstructPix2Pix",
        kind="SD15_instructpix2pix",
        config=_UNET | {"in_channels": 8},
        latent=SD_LATENT,
        vae="SD",
    ),
    Family(
        name="SD 2.1 v",
        kind="SD20",
        config=_UNET_2,
        latent=SD_LATENT,
        vae="SD",
        state=lambda: {"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.tensor([0.0, 1.0])},
    ),
    Family(
        name="SD 2.1 unCLIP L",
        kind="SD21UnclipL",
        config=_UNET_2 | {"num_classes": "sequential", "adm_in_channels": 1536},
        latent=SD_LATENT,
        vae="SD",
    ),
    Family(
        name="SD 2.1 unCLIP H",
        kind="SD21UnclipH",
        config=_UNET_2 | {"num_classes": "sequential", "adm_in_channels": 2048},
        latent=SD_LATENT,
        vae="SD",
    ),
    Family(name="SDXL eps", kind="SDXL", config=_UNET_XL, latent=SD_LATENT, vae="SD", pooled=24),
    Family(
        name="SDXL v",
        kind="SDXL",
        config=_UNET_XL,
        latent=SD_LATENT,
        vae="SD",
        pooled=24,
        state=lambda: {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])},
    ),
    Family(
        name="Playground 2.5 (EDM)",
        kind="SDXL",
        config=_UNET_XL,
        latent=SD_LATENT,
        vae="SD",
        pooled=24,
        state=lambda: {"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)},
    ),
    Family(
        name="SDXL InstructPix2Pix",
        kind="SDXL_instructpix2pix",
        config=_UNET_XL | {"in_channels": 8},
        latent=SD_LATENT,
        vae="SD",
        pooled=24,
    ),
    Family(
        name="SDXL Refiner",
        kind="SDXLRefiner",
        config=_UNET_XL | {"adm_in_channels": 24 + 5 * 256},
        latent=SD_LATENT,
        vae="SD",
        pooled=24,
    ),
    Family(
        name="Stable Cascade C",
        kind="Stable_Cascade_C",
        config=_STAGE_C,
        latent=FLUX_LATENT,
        vae="Stable Cascade C",
        pooled=24,
    ),
    Family(
        name="Stable Cascade B",
        kind="Stable_Cascade_B",
        config=_STAGE_B,
        vae="Stable Cascade B",
        latent=SD_LATENT,
        pooled=24,
        extras=lambda draw: {"stable_cascade_prior": draw(1, 16, 2, 2)},
    ),
    Family(name="PixArt alpha", kind="PixArtAlpha", config=_PIXART, latent=PIXART_LATENT, vae="SD"),
    Family(
        name="PixArt sigma",
        kind="PixArtSigma",
        config=_PIXART | {"image_model": "pixart_sigma", "micro_condition": False},
        latent=PIXART_LATENT,
        vae="SD",
    ),
    Family(
        name="HunyuanDiT",
        kind="HunyuanDiT",
        config=_HUNYUAN_DIT,
        latent=SD_LATENT,
        vae="SD",
        extras=_two_texts,
    ),
    Family(
        name="HunyuanDiT 1.1",
        kind="HunyuanDiT1",
        config=_HUNYUAN_DIT | {"image_model": "hydit1", "size_cond": True, "use_style_cond": True},
        latent=SD_LATENT,
        vae="SD",
        extras=_two_texts,
    ),
]

# What the host can load and is no family, by its class, and why.
_SAME = "the network of SDXL with fewer blocks: the family SDXL stands for it"
_SOUND = "makes sound"
_SOLID = "makes solids, not pictures"
_LOOKS = "looks at pictures, and makes none"
_LARGER = "enlarges or refines a picture that is there"
_DRIVEN = "makes a video after a track of sound or poses, not a picture of a prompt"
LEFT_OUT = {
    "SSD1B": _SAME,
    "KOALA_700M": _SAME,
    "KOALA_1B": _SAME,
    "Segmind_Vega": _SAME,
    "StableAudio": _SOUND,
    "StableAudio3": _SOUND,
    "ACEStep": _SOUND,
    "ACEStep15": _SOUND,
    "MiniMaxMusic3": _SOUND,
    "LTXAV": "makes videos with sound, both in one latent",
    "MiniMaxH3": "makes videos with sound, both in one latent",
    "Hunyuan3Dv2": _SOLID,
    "Hunyuan3Dv2mini": _SOLID,
    "Hunyuan3Dv2_1": _SOLID,
    "TripoSplat": _SOLID,
    "Trellis2": _SOLID,
    "Stable_Zero123": "turns the object of a picture, without a prompt",
    "SV3D_u": "turns the object of a picture, without a prompt",
    "SV3D_p": "turns the object of a picture, without a prompt",
    "SVD_img2vid": "moves a picture, without a prompt; the frames are the batch",
    "RT_DETR_v4": _LOOKS,
    "DepthAnything3": _LOOKS,
    "SAM3": _LOOKS,
    "SAM31": _LOOKS,
    "LotusD": _LOOKS,
    "WAN21_FlowRVS": _LOOKS,
    "SD_X4Upscaler": _LARGER,
    "HunyuanImage21Refiner": _LARGER,
    "HunyuanVideo15_SR_Distilled": _LARGER,
    "SeedVR2": _LARGER,
    "PiD": "decodes another model's latents",
    "WAN22_S2V": _DRIVEN,
    "WAN21_HuMo": _DRIVEN,
    "WAN22_Animate": _DRIVEN,
    "WAN_Animate2": _DRIVEN,
    "WAN21_SCAIL": _DRIVEN,
    "WAN21_SCAIL2": _DRIVEN,
    "WAN22_WanDancer": _DRIVEN,
}
