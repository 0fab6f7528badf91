"""diffusers' VAEs as decoders."""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from ..algorithm.protocols import Pullback
from ..algorithm.scaling import pulled


class DiffusersDecoder:
    """A frozen AutoencoderKL or AutoencoderTiny (see `protocols.Decoder`).

    Takes latents as the flow model makes them, and scales and shifts them back by the VAE's own factors (FLUX:
    divided by 0.3611, plus 0.1159; AutoencoderTiny, which was trained on them as they are: by 1, plus 0).
    """

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny, checkpointing: bool = True):
        self.vae = vae.eval().requires_grad_(False)
        if checkpointing:
            vae.enable_gradient_checkpointing()
        else:
            vae.disable_gradient_checkpointing()

    def decode(self, latent: Tensor) -> Pullback:
        latent = latent.detach().clone().requires_grad_()
        with torch.enable_grad():
            image = self._image(latent)

        def pull(gradient: Tensor) -> Tensor:
            return torch.autograd.grad(image, latent, gradient.to(image))[0]

        return Pullback(image.detach(), lambda gradient: pulled(pull, gradient))

    def _image(self, latent: Tensor) -> Tensor:
        raw = latent / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0)
        decoded = self.vae.decode(raw.to(self.vae.device, self.vae.dtype)).sample
        return decoded.to(latent.dtype) / 2 + 0.5
