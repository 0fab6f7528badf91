"""Gradients by differences of the host's own samples, and small random models of the host's own classes."""

import families
import torch
from in_process import new_adapter, new_flow


def velocity(model, x, sigma, cond):
    """(x - denoised) / sigma as the host itself samples, without the pack's code."""
    import comfy.samplers

    found = []
    for hook in (hook for _, more in cond if "hooks" in more for hook in more["hooks"].hooks):
        hook.hook_keyframe._curr_t = -1.0  # else the host begins a second sampling where it ended the first

    class Once(comfy.samplers.Sampler):
        def sample(self, ask, sigmas, extra_args, callback, noise, *_, **__):
            found.append((noise - ask(noise, sigmas[:1].expand(len(noise)).to(noise), **extra_args)) / sigmas[0])
            return noise

    with torch.inference_mode():
        guider = comfy.samplers.CFGGuider(model)
        guider.inner_set_conds({"positive": cond})
        guider.sample(x, torch.zeros_like(x), Once(), torch.tensor([sigma, 0.0]))
    return found[0].double().clone()


def adapted(model, kind="LoRA", target="all", scale=0.05):
    """The MODEL with an adapter of random weights, and the adapter."""
    adapter = new_adapter(model, kind=kind, rank=4, alpha=4.0, target=target)
    _step(adapter, _direction(adapter, 1), scale)
    return adapter.attach(model), adapter


def compare(model, adapter, cond, x, sigma=0.85, step=0.003, **flow):
    """Along one direction of the adapter: our derivative, and the one by five points of the host's own samples."""
    weights = torch.cos(9 * torch.arange(x.numel()).double()).view(x.shape)
    for parameter in adapter.parameters.values():
        parameter.grad = None
    ours = new_flow(model, **flow)
    pullback = ours.velocity(x, torch.full((len(x),), sigma), cond)
    torch.testing.assert_close(pullback.value.double(), velocity(model, x, sigma, cond), rtol=1e-4, atol=1e-4)
    pullback.pull(weights.float())
    along = _direction(adapter, 7)
    grads = {n: p.grad for n, p in adapter.parameters.items() if p.grad is not None}
    derivative = sum((grad.double() * along[name]).sum().item() for name, grad in grads.items())

    def at(steps):
        before = {name: parameter.detach().clone() for name, parameter in adapter.parameters.items()}
        _step(adapter, along, steps * step)
        value = (velocity(model, x, sigma, cond) * weights).sum().item()
        for name, parameter in adapter.parameters.items():
            parameter.data.copy_(before[name])
        return value

    return derivative, (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)


def _direction(adapter, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator) for name, p in adapter.parameters.items()}


def _step(adapter, along, length):
    with torch.no_grad():
        for name, parameter in adapter.parameters.items():
            parameter.add_(length * along[name])


def small_model(kind, config):
    """One of the host's supported models, with random weights, as a loader node makes it."""
    import comfy.model_patcher

    with torch.inference_mode():
        chosen = kind(dict(config, dtype=torch.float32))
        chosen.set_inference_dtype(torch.float32, None)
        model = chosen.get_model({}, "", device="cpu")
        generator = torch.Generator().manual_seed(0)
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = parameter.ndim == 1 and "norm" in name and name.endswith(("weight", "scale"))
            parameter.data = 1 + 0.1 * noise if scale else 0.06 * noise
        return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def _sizes(name: str) -> dict:
    """A family's configuration."""
    return next(family.config for family in families.FAMILIES if family.name == name)


# As wide as what the host's loaders of ControlNets and other parts take.
WIDE = {"hidden_size": 128, "num_heads": 1, "axes_dim": [16, 56, 56]}
FLUX = _sizes("FLUX.1 dev") | WIDE | {"depth_single_blocks": 1}
CHROMA = _sizes("Chroma") | WIDE | {"out_dim": 128, "mlp_ratio": 4.0}
FLUX2 = _sizes("FLUX.2 dev") | WIDE | {"axes_dim": [32] * 4}
QWEN = _sizes("Qwen-Image") | {
    "num_layers": 1,
    "num_attention_heads": 1,
    "attention_head_dim": 128,
    "axes_dims_rope": (16, 56, 56),
}
