"""The same small FLUX twice: in the host's classes, and in diffusers with peft; same weights, same adapter."""

import copy
from functools import lru_cache

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, FluxTransformer2DModel
from in_process import new_adapter, pack_module
from transformers import CLIPConfig, CLIPModel

from srpo_core.headless.flux import FluxFlow

CONFIG = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 128,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 24,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
RANK = 16
ALPHA = 16.0


def random_flux(dtype=torch.float32, **config) -> FluxTransformer2DModel:
    """A FLUX with weights of a size that makes every part of it count."""
    return copy.deepcopy(drawn_flux(**config)).to(dtype)


@lru_cache(maxsize=2)
def drawn_flux(**config) -> FluxTransformer2DModel:
    """What random_flux copies: to draw it takes many times as long."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flux = FluxTransformer2DModel(**CONFIG | config)
        for parameter in flux.parameters():
            parameter.data.add_(0.02 * torch.randn_like(parameter))
    return flux.eval().requires_grad_(False)


def host_model(flux: FluxTransformer2DModel, dtype=torch.float32):
    """MODEL as a loader node makes it: by the host's loader, under inference mode."""
    import comfy.sd

    with torch.inference_mode():
        state = {key: value.clone() for key, value in flux.state_dict().items()}
        return comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": dtype})


def with_adapter(model):
    """The MODEL with an adapter of random weights (zero would hide half of the gradient), and the adapter."""
    adapter = new_adapter(model, rank=RANK, alpha=ALPHA)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return adapter.attach(model), adapter


class Oracle:
    """diffusers + peft with the weights of `flux` and of the host's `adapter`."""

    def __init__(self, flux: FluxTransformer2DModel, adapter, dtype=torch.float32):
        import comfy.utils

        self.flow = FluxFlow(flux.to(dtype), rank=RANK, alpha=ALPHA, checkpointing=False)
        sizes = {"depth": 2, "depth_single_blocks": 2, "hidden_size": 256}
        self.places = comfy.utils.flux_to_diffusers(sizes, output_prefix="diffusion_model.")
        with torch.no_grad():
            for name, parameter in self.flow.parameters.items():
                host, rows = self._host_name(name)
                parameter.copy_(adapter.parameters[host][rows])

    def _host_name(self, name: str) -> tuple[str, slice]:
        """Our name of a peft tensor, and the rows of it: the host fuses q, k and v, which share their down matrix."""
        layer, side = name.removesuffix(".weight").rsplit(".", 1)
        place = self.places[f"{layer}.weight"]
        whole = isinstance(place, str)
        module = (place if whole else place[0]).removesuffix(".weight")
        rows = slice(None) if whole else slice(place[1][1], sum(place[1][1:]))
        return (f"{module}.lora_down.weight", slice(None)) if side == "lora_A" else (f"{module}.lora_up.weight", rows)

    def gradients(self, adapter) -> dict[str, torch.Tensor]:
        """The gradients of the host's adapter, put together from peft's."""
        total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in adapter.parameters.items()}
        for name, parameter in self.flow.parameters.items():
            host, rows = self._host_name(name)
            total[host][rows] += parameter.grad
        return total


def random_vae(widths=(32, 32, 32, 32)) -> AutoencoderKL:
    """FLUX's VAE with these widths of its blocks. It has no ReLU, whose slope turns with the rounding."""
    return copy.deepcopy(drawn_vae(widths))


@lru_cache(maxsize=1)
def drawn_vae(widths: tuple[int, ...]) -> AutoencoderKL:
    """What random_vae copies: to draw it takes many times as long."""
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    latents = {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159}
    narrow = widths[0] != 128  # such a VAE goes into the host's older class, which has these two layers
    latents |= {"use_quant_conv": narrow, "use_post_quant_conv": narrow}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        vae = AutoencoderKL(**blocks, block_out_channels=widths, layers_per_block=2, **latents)
        for parameter in vae.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    return vae.eval().requires_grad_(False)


def host_vae(vae: AutoencoderKL, dtype=torch.float32):
    """VAE as a loader node makes it; the narrow one by the host's configuration for such, since it knows 128 alone."""
    import comfy.sd

    width = vae.config.block_out_channels[0]
    multiples = [w // width for w in vae.config.block_out_channels]
    sizes = {"z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3, "double_z": True}
    sizes |= {"ch": width, "ch_mult": multiples, "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    narrow = {"params": {"ddconfig": sizes, "embed_dim": 16}} if width != 128 else None
    with torch.inference_mode():
        state = {k: v.to(dtype, copy=True) for k, v in vae.state_dict().items()}
        loaded = comfy.sd.VAE(sd=state, config=narrow, dtype=dtype)
    loaded.latent_channels = 16  # read from the weights unless there is a configuration
    return loaded


def random_tiny_vae() -> AutoencoderTiny:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return AutoencoderTiny(latent_channels=16, scaling_factor=1.0).eval().requires_grad_(False)


def host_tiny_vae(vae: AutoencoderTiny):
    import comfy.sd

    state = {pack_module("nodes.host.toy")._taesd_key(k): v.clone() for k, v in vae.state_dict().items()}
    state |= {"vae_scale": torch.tensor(0.3611), "vae_shift": torch.tensor(0.1159)}
    with torch.inference_mode():
        return comfy.sd.VAE(sd=state, dtype=torch.float32)


def random_clip() -> CLIPModel:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 128, "max_position_embeddings": 16, "eos_token_id": 3},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return CLIPModel(config)
