"""The VAE that ComfyUI loaded, as the core's Decoder."""

import comfy.model_management
import torch
from torch import Tensor

from ...srpo_core.models import Pullback
from .differentiable import differentiable

SMALL = 64 * 64  # places of a latent batch, up to which the decoder's activations are kept: recomputing costs a third


class HostDecoder:
    """Decodes latents of `model`'s space with the host's VAE, differentiably.

    Raises ValueError when the VAE does not belong to the model.
    """

    def __init__(self, vae, model):
        self.vae = vae
        self.latent_format = model.get_model_object("latent_format")
        if vae.latent_dim != 2 or vae.latent_channels != self.latent_format.latent_channels:
            raise ValueError(
                f"This VAE has {vae.latent_channels} latent channels in {vae.latent_dim} dimensions, and "
                f"{type(model.model).__name__} {self.latent_format.latent_channels} in 2: load the VAE of this model."
            )

    def decode(self, latent: Tensor) -> Pullback:
        vae = self.vae
        model = vae.first_stage_model
        comfy.model_management.load_models_gpu(
            [vae.patcher], memory_required=vae.memory_used_decode(latent.shape, vae.vae_dtype)
        )
        checkpointing = latent.shape[0] * latent.shape[-2:].numel() > SMALL
        with differentiable(vae.patcher, model, checkpointing):
            leaf = latent.clone().requires_grad_()
            raw = self.latent_format.process_out(leaf).to(vae.device, vae.vae_dtype)
            image = model.decode(raw).float() / 2 + 0.5

        def pull(gradient: Tensor) -> Tensor:
            comfy.model_management.load_models_gpu([vae.patcher])
            with differentiable(vae.patcher, model, checkpointing):
                return torch.autograd.grad(image, leaf, gradient.to(image))[0]

        return Pullback(image.detach(), pull)
