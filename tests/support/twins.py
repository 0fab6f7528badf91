"""The same small model twice: in the host's class and in diffusers', whose way of using it is written out here.

Weights are drawn in diffusers' layout and come to the host's by the host's own conversion; gradients likewise.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import diffusers
import families
import torch
from in_process import new_flow
from model_checks import adapted, in_double, relative
from torch import Tensor

from srpo_core.algorithm.noise_levels import Branch, Window
from srpo_core.algorithm.step import Noised, one_step_recover

GUIDANCE = 3.5
POSITION = 700  # in the window, where both branches differ


@dataclass(frozen=True, kw_only=True)
class Twin:
    """kind: diffusers' class, made with `sizes`. family: the host's, with these numbers of its own.

    ask(model, x, sigma, context, pooled): the velocity at x (B, C, ...), as diffusers' pipeline has it.
    renamed: names that the host's conversion does not know, with those that it does.
    fit: makes parts of it as small as the host's, which `sizes` don't reach.
    """

    kind: str
    sizes: dict
    family: str
    config: dict = field(default_factory=dict)
    ask: Callable[..., Tensor]
    renamed: dict[str, str] = field(default_factory=dict)
    fit: Callable[[torch.nn.Module], None] = lambda model: None

    def model(self) -> torch.nn.Module:
        made = getattr(diffusers, self.kind)(**self.sizes)
        self.fit(made)
        made = made.double().eval()
        families.draw_weights(made, 5, torch.float64)
        return made

    def host_layout(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of weights, or of what has their shapes, by diffusers' names: by the names of the host's network."""
        from comfy.model_detection import convert_diffusers_mmdit

        left = {}
        for name, tensor in tensors.items():
            for theirs, known in self.renamed.items():
                name = name.replace(theirs, known)
            left[name] = tensor.clone()
        if self.kind == "Flux2Transformer2DModel":  # of which the host reads the width, and FLUX.2 has none
            left["x_embedder.bias"] = torch.zeros(len(left["x_embedder.weight"]))
        found = convert_diffusers_mmdit(left) or {}
        found.pop("img_in.bias", None)
        return found | left

    def host(self, weights: dict[str, Tensor]) -> tuple:
        """The host's MODEL, of which these are all the weights, and its family as it is then."""
        whole = next(family for family in families.FAMILIES if family.name == self.family)
        family = replace(whole, config=whole.config | self.config)
        patcher = families.patcher(family, dtype=torch.float64)
        network = patcher.model.diffusion_model
        with torch.inference_mode():
            network.load_state_dict(weights)
        return patcher, family


@dataclass(frozen=True, kw_only=True)
class Off:
    """How far ours is off diffusers', relatively: recovered latents, the gradient, and its worst LoRA tensor alone."""

    recovered: float
    gradient: float
    worst: float


def compared(twin: Twin) -> Off:
    """The worse of both branches, in fp64. diffusers' weights are the host's with a LoRA on all blocks in them."""
    with in_double():
        model = twin.model()
        patcher, family = twin.host(twin.host_layout(model.state_dict()))
        attached, adapter = adapted(patcher)
        _take_out(adapter, patcher)
        cond = families.prompt(family)
        context, pooled = (None if t is None else t.double() for t in (cond[0][0], cond[0][1].get("pooled_output")))
        x0, noise = (families.latent(family, seed).double() for seed in range(2))
        weights = torch.cos(9 * torch.arange(x0.numel()).double()).view(x0.shape)
        flow = new_flow(attached, guidance=GUIDANCE)
        found = []
        for branch in map(_in_double, Window().branches([POSITION])):
            ask = lambda x, sigma: twin.ask(model, x, sigma, context, pooled)  # noqa: E731
            theirs = recovered(ask, x0, noise, branch)
            model.zero_grad()
            (theirs * weights).sum().backward()
            for parameter in adapter.parameters.values():
                parameter.grad = None
            ours = one_step_recover(flow, cond, Noised(x0, noise, (branch, branch)), branch)
            ours.pull(weights, 1.0)
            expected = twin.host_layout({name: _gradient(p) for name, p in model.named_parameters()})
            pairs = _gradients(adapter, expected)
            each = [relative(a, b) for a, b in pairs if b.any()]
            together = relative(*(torch.cat([part.flatten() for part in parts]) for parts in zip(*pairs)))
            found.append((relative(ours.value, theirs.detach()), together, max(each)))
    recovered_off, gradient, worst = map(max, zip(*found))
    return Off(recovered=recovered_off, gradient=gradient, worst=worst)


def recovered(ask: Callable[[Tensor, Tensor], Tensor], x0: Tensor, noise: Tensor, branch: Branch) -> Tensor:
    """Direct-Align, of one sample: inject, step, and take the noise out that is known."""
    x = (1 - branch.sigma_in) * x0 + branch.sigma_in * noise
    stepped = x + (branch.sigma_out - branch.sigma_in) * ask(x, branch.sigma_in)
    return (stepped - branch.sigma_out * noise) / (1 - branch.sigma_out)


def _in_double(branch: Branch) -> Branch:
    return replace(branch, sigma_in=branch.sigma_in.double(), sigma_out=branch.sigma_out.double())


def _take_out(adapter, patcher):
    """What the adapter adds to a layer's output, off the layer's weight."""
    with torch.inference_mode():
        for name, module in adapter.modules.items():
            patcher.model.get_submodule(name).weight -= module.lora_up.weight @ module.lora_down.weight


def _gradients(adapter, expected: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Ours and theirs of each of the adapter's tensors, given those at the weights that it is a change of."""
    pairs = []
    for name, module in adapter.modules.items():
        at_weight = expected[f"{name.removeprefix('diffusion_model.')}.weight"]
        up = module.lora_up.weight
        down = module.lora_down.weight
        pairs.append((_gradient(up), at_weight @ down.detach().t()))
        pairs.append((_gradient(down), up.detach().t() @ at_weight))
    return pairs


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _packed(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H/2 * W/2, 4C)"""
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def _unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    b, _, c = tokens.shape
    patches = tokens.reshape(b, height // 2, width // 2, c // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, height, width)


def _flux2(model, x: Tensor, sigma: Tensor, context: Tensor, _: None) -> Tensor:
    """Prompts are filled up to 512 tokens, from the left, as the host does."""
    context = torch.nn.functional.pad(context, (0, 0, 512 - context.shape[1], 0))
    height, width = x.shape[-2:]
    image = torch.cartesian_prod(torch.arange(1), torch.arange(height), torch.arange(width), torch.arange(1))
    text = torch.cartesian_prod(torch.arange(1), torch.arange(1), torch.arange(1), torch.arange(context.shape[1]))
    tokens = model(
        hidden_states=x.flatten(2).transpose(1, 2),
        encoder_hidden_states=context,
        timestep=sigma,
        guidance=torch.full_like(sigma, GUIDANCE),
        img_ids=image[None],
        txt_ids=text[None],
    ).sample
    return tokens.transpose(1, 2).reshape(x.shape)


def _qwen(model, x: Tensor, sigma: Tensor, context: Tensor, _: None) -> Tensor:
    height, width = x.shape[-2:]
    tokens = model(
        hidden_states=_packed(x[:, :, 0]),
        encoder_hidden_states=context,
        encoder_hidden_states_mask=torch.ones(context.shape[:2], dtype=torch.bool),
        timestep=sigma,
        img_shapes=[[(1, height // 2, width // 2)]] * len(x),
    ).sample
    return _unpacked(tokens, height, width)[:, :, None]


def _sd3(model, x: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
    return model(
        hidden_states=x, encoder_hidden_states=context, pooled_projections=pooled, timestep=1000 * sigma
    ).sample


def _z_image(model, x: Tensor, sigma: Tensor, context: Tensor, _: None) -> Tensor:
    pictures = model(list(x[:, :, None].unbind()), 1 - sigma, list(context.unbind())).sample
    return -torch.stack(list(pictures))[:, :, 0]


def _narrow_time(model):
    """As wide as the model, as the host's is up to 1024, which diffusers' always is."""
    model.t_embedder = type(model.t_embedder)(256, mid_size=model.dim)


_SMALL = {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32}
_SD3 = {
    "sample_size": 8,
    "num_layers": 2,
    "attention_head_dim": 64,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "caption_projection_dim": 128,
    "pooled_projection_dim": 24,
    "pos_embed_max_size": 8,
}
_SD3_HOST = {
    "depth": 2,
    "num_blocks": 2,
    "mlp_ratio": 4.0,
    "num_patches": 64,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 128}},
}
TWINS = {
    "FLUX.2": Twin(
        kind="Flux2Transformer2DModel",
        sizes=_SMALL | {"num_layers": 1, "num_single_layers": 2, "axes_dims_rope": (4, 4, 4, 4)},
        family="FLUX.2 dev",
        ask=_flux2,
        renamed={
            "time_guidance_embed.": "time_text_embed.",
            "stream_modulation_img.linear.": "stream_modulation_img.lin.",
            "stream_modulation_txt.linear.": "stream_modulation_txt.lin.",
            "stream_modulation.linear.": "stream_modulation.lin.",
        },
    ),
    "Qwen-Image": Twin(
        kind="QwenImageTransformer2DModel",
        sizes=_SMALL | {"num_layers": 2, "axes_dims_rope": (4, 6, 6)},
        family="Qwen-Image",
        ask=_qwen,
    ),
    "SD3": Twin(kind="SD3Transformer2DModel", sizes=_SD3, family="SD3", config=_SD3_HOST, ask=_sd3),
    "SD3.5": Twin(
        kind="SD3Transformer2DModel",
        sizes=_SD3 | {"qk_norm": "rms_norm", "dual_attention_layers": (0,)},
        family="SD3.5",
        config=_SD3_HOST,
        ask=_sd3,
    ),
    "Z-Image": Twin(
        kind="ZImageTransformer2DModel",
        sizes={
            "dim": 256,
            "n_layers": 1,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 32,
        },
        family="Z-Image",
        config={"multiple_of": 2, "ffn_dim_multiplier": 8 / 3},
        ask=_z_image,
        fit=_narrow_time,
    ),
}
