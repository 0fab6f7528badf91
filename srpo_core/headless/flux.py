"""diffusers' FLUX with peft's LoRA as a flow model."""

import math
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Linear, Parameter

from ..algorithm import scaling as scaled
from ..algorithm.protocols import Pullback
from ..algorithm.trajectory import Trajectory, by_euler
from ..files import write_whole
from ..seeds import derived_seed

BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")


def pack(latents: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H/2 * W/2, 4C), each token a 2x2 patch in the order channel, row, column."""
    b, c, h, w = latents.shape
    return latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`: (B, H/2 * W/2, 4C) -> (B, C, H, W)."""
    b, _, c = tokens.shape
    patches = tokens.reshape(b, height // 2, width // 2, c // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, height, width)


def image_ids(height: int, width: int) -> Tensor:
    """(H/2 * W/2, 3): the row and the column of each token of an (H, W) latent, after a zero."""
    rows, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()


class FluxFlow:
    """A frozen FluxTransformer2DModel and the LoRA it is trained through (see `protocols.FlowModel`).

    The adapter sits on every Linear of the blocks, modulation included; its weights are fp32, drawn from `seed`.
    cond: {"context": (B, T, D), "pooled": (B, P)}. Latents are (B, C, H, W) with even H and W.
    guidance: that of the trained step; rollout_guidance: that of the `steps` Euler steps of a rollout.
    shift: the rollout's resolution shift; the default is ComfyUI's for FLUX.
    checkpointing: recompute the blocks in the backward pass: a third more time for a fraction of the memory.
    """

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        *,
        rank: int = 16,
        alpha: float = 16.0,
        seed: int = 0,
        steps: int = 25,
        guidance: float = 3.5,
        rollout_guidance: float = 3.5,
        shift: float = math.exp(1.15),
        checkpointing: bool = True,
    ):
        self.transformer = transformer.eval()  # peft freezes it
        self.dtype = transformer.dtype
        self.device = transformer.device
        self.rank = rank
        self.alpha = alpha
        self.steps = steps
        self.guidance = guidance
        self.rollout_guidance = rollout_guidance
        self.shift = shift
        self.parameters = add_lora(transformer, rank, alpha, seed)
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        else:
            transformer.disable_gradient_checkpointing()

    @property
    def samples_depend_on_batch(self) -> bool:
        return False

    def velocity(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor], *, through_x: bool = False) -> Pullback:
        """The estimate of `noise - x0`. `pull` works again after the first time, at the price of a forward pass."""
        x = x.detach().clone().requires_grad_(through_x)
        with torch.enable_grad():
            pending = [self._forward(x, sigma, cond, self.guidance)]
        value = pending[0].detach()

        def pull(gradient: Tensor) -> Tensor | None:
            with torch.enable_grad():
                output = pending.pop() if pending else self._forward(x, sigma, cond, self.guidance)
            return scaled.backward(output, gradient, self.parameters.values(), x if through_x else None)

        return Pullback(value, pull)

    @torch.no_grad()
    def sampled_velocity(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self._forward(x, sigma, cond, self.guidance)

    @property
    def exact(self) -> bool:
        return all(parameter.dtype == torch.float32 for parameter in self.transformer.parameters())

    def signature(self, cond: dict[str, Tensor]) -> Hashable:
        return id(self.transformer), *sorted(cond)

    @torch.no_grad()
    def frozen_velocity(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        with self.without_adapter():
            return self._forward(x, sigma, cond, self.guidance)

    @torch.no_grad()
    def rollout(self, noise: Tensor, cond: dict[str, Tensor], seed: int = 0) -> Tensor:
        """Euler steps from `noise` to x0, nothing random in them."""
        scheduler = self._scheduler()
        x = noise.to(self.device)
        for sigma, timestep in zip(scheduler.sigmas, scheduler.timesteps):
            velocity = self._forward(x, sigma.expand(len(x)), cond, self.rollout_guidance)
            x = scheduler.step(velocity, timestep, x).prev_sample
        return x.to(noise.device)

    @torch.no_grad()
    def trajectory(self, noise: Tensor, cond: dict[str, Tensor]) -> Trajectory:
        """The rollout's steps, at the guidance of the trained step."""
        sigmas = self._scheduler().sigmas.double().cpu()
        return by_euler(lambda x, sigma: self.sampled_velocity(x, sigma, cond), noise, sigmas)

    def _scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=self.shift)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / self.steps, self.steps), device=self.device)
        return scheduler

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Inside, the model is the base model."""
        self.transformer.disable_adapters()
        try:
            yield
        finally:
            self.transformer.enable_adapters()

    def save_lora(self, path: Path):
        """Write the adapter as a LoRA file that ComfyUI and diffusers load."""
        tensors = {f"transformer.{name}": p.detach().cpu() for name, p in self.parameters.items()}
        for name in self.parameters:
            tensors[f"transformer.{name.split('.lora_')[0]}.alpha"] = torch.tensor(float(self.alpha))
        write_whole(Path(path), lambda temporary: save_file(tensors, temporary))

    def _forward(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor], guidance: float) -> Tensor:
        """Velocity (B, C, H, W) of the type and on the device of `x`."""
        height, width = x.shape[-2:]
        context, pooled = (cond[name].to(self.device, self.dtype) for name in ("context", "pooled"))
        sigma = sigma.to(self.device, torch.float32)
        with exact_time(self.transformer, sigma):
            tokens = self.transformer(
                hidden_states=pack(x.to(self.device, self.dtype)),
                encoder_hidden_states=context,
                pooled_projections=pooled,
                timestep=sigma,
                guidance=torch.full_like(sigma, guidance) if self.transformer.config.guidance_embeds else None,
                img_ids=image_ids(height, width).to(self.device),
                txt_ids=torch.zeros(context.shape[1], 3, device=self.device),
            ).sample
        return unpack(tokens, height, width).to(x)


@contextmanager
def exact_time(transformer: FluxTransformer2DModel, sigma: Tensor) -> Iterator[None]:
    """Embed the time in fp32: diffusers casts it to the model's type first, off by up to 4e-3 in bf16."""
    hook = transformer.time_text_embed.register_forward_pre_hook(lambda _, args: (1000 * sigma, *args[1:]))
    try:
        yield
    finally:
        hook.remove()


def add_lora(transformer: FluxTransformer2DModel, rank: int, alpha: float, seed: int) -> dict[str, Parameter]:
    """Put a LoRA that starts at zero on every Linear of the blocks; the global random state stays as it is."""
    targets = [n for n, m in transformer.named_modules() if isinstance(m, Linear) and n.startswith(BLOCKS)]
    with torch.random.fork_rng(devices=[]):
        transformer.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets))
    generator = torch.Generator().manual_seed(derived_seed("adapter", seed))
    parameters = {}
    for name, p in transformer.named_parameters():
        if p.requires_grad:
            p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))
            if ".lora_A." in name:
                bound = p.shape[1] ** -0.5  # of kaiming_uniform_(a=sqrt(5)), peft's own
                p.data.copy_(torch.empty(p.shape).uniform_(-bound, bound, generator=generator))
            parameters[name.replace(".default.", ".")] = p
    return parameters
