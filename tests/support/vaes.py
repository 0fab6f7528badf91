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


@dataclass(frozen=True, kw_only=True)
class TinyVae:
    """place: the host's class, where its loader finds it. sizes: what the small one is made with."""

    place: str
    sizes: dict


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
    "pixels": TinyVae(place="comfy.pixel_space_convert.PixelspaceConversionVAE", sizes={}),
}


def vae(name: str, dtype: torch.dtype = torch.float32):
    """The VAE as a loader node makes it."""
    import comfy.sd

    tiny = VAES[name]
    module, kind = tiny.place.rsplit(".", 1)
    made = getattr(importlib.import_module(module), kind)(**tiny.sizes)
    draw_weights(made, 3, torch.float32)
    state = made.state_dict()
    for key in [key for key in state if key.endswith("running_var")]:
        state[key] = state[key].abs() + 0.5
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
