"""The VAEs of the families, small and with random weights, by the host's own loader."""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from families import draw_weights

KL = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
IN_TIME = {"conv3d": True, "time_compress": 4}
WAN = {
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "dropout": 0.0,
}


def _hunyuan(module: str, regularizer: str, sizes: dict) -> dict:
    """Of the host's AutoencodingEngine."""
    return {
        "regularizer_config": {"target": f"comfy.ldm.models.autoencoder.{regularizer}"},
        "encoder_config": {"target": f"comfy.ldm.hunyuan_video.{module}.Encoder", "params": sizes},
        "decoder_config": {"target": f"comfy.ldm.hunyuan_video.{module}.Decoder", "params": sizes},
    }


HUNYUAN = {
    "in_channels": 3,
    "out_channels": 3,
    "num_res_blocks": 1,
    "downsample_match_channel": True,
    "upsample_match_channel": True,
}
COSMOS = {
    "z_channels": 16,
    "latent_channels": 16,
    "z_factor": 1,
    "resolution": 1024,
    "in_channels": 3,
    "out_channels": 3,
    "channels": 8,
    "channels_mult": [2, 4, 4],
    "num_res_blocks": 1,
    "attn_resolutions": [32],
    "dropout": 0.0,
    "patch_size": 4,
    "num_groups": 1,
    "temporal_compression": 8,
    "spacial_compression": 8,
}
LTX = {
    "dims": 3,
    "latent_channels": 128,
    "blocks": [["compress_all", 1], ["res_x_y", 1], ["compress_all", 1], ["compress_all", 1], ["res_x", 1]],
    "encoder_base_channels": 8,
    "decoder_base_channels": 8,
    "norm_layer": "pixel_norm",
    "patch_size": 4,
    "latent_log_var": "uniform",
}


@dataclass(frozen=True, kw_only=True)
class TinyVae:
    """place: the host's class, where its loader finds it. sizes: what the small one is made with.

    sign: a name that the loader knows it by in files, beside those of its own tensors.
    """

    place: str
    sizes: dict
    sign: str = ""


VAES = {
    "SD": TinyVae(place="comfy.sd.AutoencoderKL", sizes={"ddconfig": KL, "embed_dim": 4}),
    "FLUX": TinyVae(
        place="comfy.sd.AutoencoderKL",
        sizes={"ddconfig": KL | {"z_channels": 16}, "embed_dim": 16},
    ),
    "FLUX.2": TinyVae(
        place="comfy.sd.AutoencoderKL",
        sizes={"ddconfig": KL | {"z_channels": 32, "batch_norm_latent": True}, "embed_dim": 32},
    ),
    "HunyuanVideo": TinyVae(
        place="comfy.sd.AutoencoderKL",
        sizes={"ddconfig": KL | IN_TIME | {"z_channels": 16}, "embed_dim": 16},
    ),
    "Wan 2.1": TinyVae(place="comfy.ldm.wan.vae.WanVAE", sizes=WAN | {"dim": 8}),
    "Wan 2.2": TinyVae(place="comfy.ldm.wan.vae2_2.WanVAE", sizes=WAN | {"z_dim": 48, "dim": 8, "dec_dim": 8}),
    "HunyuanImage 2.1": TinyVae(
        place="comfy.sd.AutoencodingEngine",
        sizes=_hunyuan(
            "vae",
            "DiagonalGaussianRegularizer",
            HUNYUAN | {"z_channels": 64, "block_out_channels": [32] * 5 + [64], "ffactor_spatial": 32},
        ),
    ),
    "HunyuanVideo 1.5": TinyVae(
        place="comfy.sd.AutoencodingEngine",
        sizes=_hunyuan(
            "vae_refiner",
            "EmptyRegularizer",
            HUNYUAN | {"z_channels": 32, "block_out_channels": [32] * 5, "ffactor_spatial": 16, "ffactor_temporal": 4},
        ),
    ),
    "CogVideoX": TinyVae(
        place="comfy.ldm.cogvideo.vae.AutoencoderKLCogVideoX",
        sizes={"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
    ),
    "Cosmos 1": TinyVae(
        place="comfy.ldm.cosmos.vae.CausalContinuousVideoTokenizer",
        sizes=COSMOS,
        sign="decoder.unpatcher3d.wavelets",
    ),
    "LTXV": TinyVae(
        place="comfy.ldm.lightricks.vae.causal_video_autoencoder.VideoVAE",
        sizes={"config": LTX},
    ),
    "Stable Cascade C": TinyVae(place="comfy.ldm.cascade.stage_c_coder.Previewer", sizes={"c_hidden": 16}),
    "Stable Cascade B": TinyVae(place="comfy.sd.StageA", sizes={"c_hidden": 32, "bottleneck_blocks": 1}),
    "pixels": TinyVae(place="comfy.pixel_space_convert.PixelspaceConversionVAE", sizes={}),
}


# Of videos; they decode the latents of several families, and none is a family's own.
VAES_BESIDE = {
    "TAEHV": TinyVae(place="comfy.taesd.taehv.TAEHV", sizes={"latent_channels": 16}),
}


def vae(name: str, dtype: torch.dtype = torch.float32):
    """The VAE as a loader node makes it."""
    import comfy.sd

    tiny = (VAES | VAES_BESIDE)[name]
    module, kind = tiny.place.rsplit(".", 1)
    made = getattr(importlib.import_module(module), kind)(**tiny.sizes)
    draw_weights(made, 3, torch.float32)
    state = made.state_dict()
    for norm in [key.removesuffix("running_var") for key in state if key.endswith("running_var")]:
        for key in {norm + "weight", norm + "running_var"} & state.keys():
            state[key] = state[key].abs() + 0.5
    if tiny.sign:
        state[tiny.sign] = torch.zeros(1)
    with torch.inference_mode(), made_small(tiny):
        return comfy.sd.VAE(sd={key: value.clone() for key, value in state.items()}, dtype=dtype)


@contextlib.contextmanager
def made_small(tiny: TinyVae) -> Iterator[None]:
    """The host's loader, which reads only a part of the sizes off a file, makes this one."""
    place, name = tiny.place.rsplit(".", 1)
    module = importlib.import_module(place)
    kind: Callable = getattr(module, name)
    setattr(module, name, lambda **_: kind(**tiny.sizes))
    try:
        yield
    finally:
        setattr(module, name, kind)
