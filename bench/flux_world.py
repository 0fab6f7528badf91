"""FLUX.1-dev, its VAE and HPS v2.1's CLIP with random weights, made in place; and the same differentiated plainly.

ComfyUI is imported by the functions, as it must have been found before.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from in_process import new_adapter, pack_module
from torch import Tensor, nn

from srpo_core.algorithm.direct_align import euler_step, inject, recover
from srpo_core.algorithm.noise_levels import Branch
from srpo_core.algorithm.objective import Objective
from srpo_core.algorithm.step import Noised
from srpo_core.algorithm.terms import Term
from srpo_core.rewards import score_words
from srpo_core.rewards.load import load_reward
from srpo_core.toy.models import TEXT_LENGTH

from .flux_bases import FLUX_DEV, TOY, draw_weights, random_flux
from .reward import write_random

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

TOKENS = 512  # of FLUX.1-dev's text
RANK = 16
ALPHA = 16.0


@dataclass
class Prompts:
    """A dataset of the core with random conditioning."""

    prompts: list[str]
    context: Tensor
    pooled: Tensor

    def content(self) -> list[str]:
        return self.prompts

    def prepare(self, indices: list[int]):
        """All are there."""

    def cond(self, indices: list[int]) -> list:
        return [[self.context[indices], {"pooled_output": self.pooled[indices]}]]

    def cond_shape(self, index: int) -> tuple[int, ...]:
        return tuple(self.context[index].shape)


@dataclass
class Photos(Prompts):
    x0: Tensor

    def shape(self, index: int) -> tuple[int, ...]:
        return tuple(self.x0.shape[1:])

    def latents(self, indices: list[int]) -> Tensor:
        return self.x0[indices]


@dataclass(kw_only=True)
class World:
    """Ours: the host's models as the core trains through them."""

    base: Any
    vae: Any
    adapter: Any
    flow: Any
    decoder: Any
    term: Term
    prompts: Prompts

    @property
    def device(self) -> torch.device:
        return self.base.load_device

    def forward(self, x: Tensor, sigma: Tensor, cond: list) -> Tensor:
        """The velocity, as in a step of a rollout: without gradient, with the adapter."""
        return self.flow.ask(one_step(torch.no_grad), x, sigma, cond)


def make_world(base: str, *, toy: bool, batch: int, steps: int, compute: torch.dtype | None = None) -> World:
    host_flow = pack_module("nodes.host.flow_model")
    sizes = TOY if toy else FLUX_DEV
    with torch.inference_mode():  # as loader nodes do it
        model = random_flux(sizes, base)
        vae = pack_module("nodes.host.toy").load_vae() if toy else random_vae(compute)
    if compute:
        model.model.manual_cast_dtype = compute
    reward = pack_module("nodes.host.toy").load_reward() if toy else random_reward()
    adapter = random_adapter(model)
    sampling = host_flow.Sampling(steps=steps, guidance=3.5)
    flow = host_flow.HostFlow(adapter.attach(model), sampling, 3.5)
    context = torch.randn(batch, TEXT_LENGTH if toy else TOKENS, sizes["context_in_dim"])
    texts = [f"a picture of number {i}" for i in range(batch)]
    prompts = Prompts(texts, context, torch.randn(batch, sizes["vec_in_dim"]))
    decoder = pack_module("nodes.host.decoder").HostDecoder(vae, model)
    # No reward is so high that its loss is nothing.
    term = Term(reward=reward, objective=Objective(threshold=100.0))
    return World(base=model, vae=vae, adapter=adapter, flow=flow, decoder=decoder, term=term, prompts=prompts)


def random_vae(dtype: torch.dtype | None = None):
    """VAE of FLUX, by the host's loader."""
    import comfy.sd
    from diffusers import AutoencoderKL

    sides = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    sizes = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16}
    with torch.device("meta"):
        shapes = AutoencoderKL(**sides, **sizes, use_quant_conv=False, use_post_quant_conv=False).state_dict()
    state = {name: torch.empty(tensor.shape) for name, tensor in shapes.items()}
    draw_weights(state.items(), torch.device("cpu"))
    return comfy.sd.VAE(sd=state, dtype=dtype)


def random_reward():
    """A ViT-H-14 in the size of HPS v2.1, bf16, by our own loader."""
    import comfy.model_management
    import open_clip

    with tempfile.TemporaryDirectory(prefix="srpo-bench-") as folder:
        file = Path(folder) / "hps_random.safetensors"
        config = open_clip.get_model_config("ViT-H-14")
        write_random(config, torch.bfloat16, file, comfy.model_management.get_torch_device())
        reward = load_reward(file, dtype=torch.bfloat16)
        text = reward.text_tower()
    reward.text_tower = lambda: text
    return pack_module("nodes.host.reward").managed(reward)


def random_adapter(model: "ModelPatcher", like: Any = None):
    """A LoRA on all Linears of the blocks; zero, as at its start, it would hide half of the gradient."""
    adapter = new_adapter(model, rank=RANK, alpha=ALPHA)
    with torch.no_grad():
        for name, parameter in adapter.parameters.items():
            parameter.copy_(like.parameters[name] if like else 0.02 * torch.randn_like(parameter))
    return adapter


class Naive:
    """The same models, weights (shared) and adapter, differentiated by autograd alone.

    The host's own forwards and adapter on ordinary, frozen tensors, everything kept: one graph from there to the loss.
    What the host's forwards need for that they get, and no more: no fused kernels without a backward, and a copy of
    what LayerNorms save before blocks write into it.
    """

    def __init__(self, world: World):
        loading = pack_module("nodes.host.patcher.loading")
        self.world = world
        for patcher in (world.flow.patcher, world.vae.patcher):
            loading.load(patcher)
        with world.flow.patcher.use_ejected():
            base = patcher_of(plain(world.base.model), world.base)
        for norm in (module for module in base.model.modules() if isinstance(module, nn.LayerNorm)):
            norm.register_forward_pre_hook(lambda _, args: (args[0].clone(),) if torch.is_grad_enabled() else None)
        adapter = random_adapter(base, like=world.adapter)
        as_the_host_has_it(adapter)
        self.flow = copy.copy(world.flow)
        self.flow.patcher = adapter.attach(base)
        loading.load_ordinary(self.flow.patcher)
        self.first_stage_model = plain(world.vae.first_stage_model)
        self.parameters = list(adapter.parameters.values())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=1e-4)

    def velocity(self, x: Tensor, sigma: Tensor, cond: list) -> Tensor:
        """The velocity with its graph."""
        return self.flow.ask(one_step(training), x, sigma, cond)

    def decode(self, latent: Tensor) -> Tensor:
        vae = self.world.vae
        decoder = self.world.decoder
        with training():
            raw = decoder.latent_format.process_out(latent).to(vae.device, vae.vae_dtype)
            return self.first_stage_model.decode(raw).float() / 2 + 0.5

    def branch(self, noised: Noised, branch: Branch, prompts: list[str], cond: list):
        """One branch, all the way and back."""
        with torch.inference_mode(False), torch.enable_grad():
            x = inject(noised.x0, noised.noise, branch.sigma_in)
            stepped = euler_step(x, self.velocity(x, branch.sigma_in, cond).to(x), branch.sigma_in, branch.sigma_out)
            image = self.decode(recover(stepped, noised.noise, branch.sigma_out)).clamp(0, 1)
            term = self.world.term
            scores = score_words(term.reward, image, *term.objective.texts(prompts, 1), update=1)
            term.objective.loss(branch, *scores).sum().backward()

    def step(self):
        torch.nn.utils.clip_grad_norm_(self.parameters, 0.1)
        self.optimizer.step()
        self.optimizer.zero_grad()


def as_the_host_has_it(adapter: Any):
    """Its LoRA computed by the host's own class, in place of ours (see nodes/host/adapters/layers.py)."""
    from comfy.weight_adapter.lora import LoraDiff

    layers = pack_module("nodes.host.adapters.layers")
    for module in adapter.modules.values():
        module.__class__ = LoraDiff
        module.h = layers.in_the_type_of_its_input(module.h, torch.float32)


def plain(module: nn.Module) -> nn.Module:
    """A second module of the same weights, which are no inference tensors there; they take no memory of their own."""
    ordinary = pack_module("nodes.host.gradients.ordinary").ordinary
    shared = {id(p): nn.Parameter(ordinary(p), requires_grad=False) for p in module.parameters()}
    shared |= {id(b): ordinary(b) for b in module.buffers()}
    same = (getattr(module, "model_config", None), getattr(module, "current_patcher", None))
    return copy.deepcopy(module, shared | {id(value): value for value in same})


def patcher_of(model: nn.Module, like: Any):
    return type(like)(model, load_device=like.load_device, offload_device=like.offload_device)


def one_step(inside: Callable):
    """One evaluation of the model through the host's sampling, like ours, inside of this context."""

    class OneStep(pack_module("nodes.host.one_step").OneStep):
        def ask_model(self, guider: Any, noise: Tensor, options: dict, seed: int) -> Tensor:
            options["transformer_options"].pop("patches", None)  # FLUX's positions by the host's own operations
            with inside():
                return super().ask_model(guider, noise, options, seed)

    return OneStep()


def training():
    """With gradients, and the host leaves out its kernels that have no backward."""
    return pack_module("nodes.host.gradients.differentiable").in_training()
