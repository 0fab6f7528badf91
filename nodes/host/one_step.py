"""Samplers that ask the model once: the host sets everything up for them as for any sampler."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...srpo_core.algorithm.direct_align import per_sample
from ...srpo_core.algorithm.process import Process
from .gradients.attention import with_backward
from .gradients.differentiable import Differentiable
from .gradients.guests import Guests, make_constant
from .patcher.loading import own
from .patcher.training_mode import training_mode


class OneStep(comfy.samplers.Sampler):
    """Leaves the velocity of the flow that the model is, at the `noise` it is given as a state of it, in `velocity`.

    Raises ValueError where the host does not ask the model, and where it would ask for one picture of a batch alone.
    """

    share: Tensor  # (B,), of noise
    process: Process
    velocity: Tensor

    @property
    def sigma(self) -> Tensor:
        """(B,): where the host's model is at this share of noise."""
        return self.process.sigma(self.share)

    def sample(
        self,
        guider: CFGGuider,
        sigmas: Tensor,
        extra_args: dict,
        callback: Callable | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ):
        options = comfy.model_patcher.create_model_options_clone(extra_args["model_options"])
        model = guider.model_patcher.model.diffusion_model
        options["transformer_options"] = with_backward(options["transformer_options"], model)
        # As the differentiable step is asked, with the kernels that have a backward, so that the two compare.
        with training_mode(), torch.inference_mode(False), torch.no_grad():
            conds = all_conds(guider)
            _begin_keyframes(conds)
            _check_levels(conds, self.sigma)
            make_constant(conds)
            self.velocity = self.ask_model(guider, own(noise), options, extra_args["seed"])
        return noise

    def ask_model(self, guider: CFGGuider, noise: Tensor, options: dict, seed: int) -> Tensor:
        share = own(self.share).to(noise)
        sigma = self.process.sigma(share)
        denoised = guider(self.process.state(noise, sigma), sigma, model_options=options, seed=seed)
        if not denoised.detach().flatten(1).any(1).all():
            raise ValueError(_why_not_asked(guider.conds["positive"], sigma))
        return (noise - denoised) / per_sample(share, noise)


class AsSampled(OneStep):
    """The same as any sampler of the host asks the model, with nothing of ours in it but the adapter."""

    def sample(
        self,
        guider: CFGGuider,
        sigmas: Tensor,
        extra_args: dict,
        callback: Callable | None,
        noise: Tensor,
        *_: Any,
        **__: Any,
    ):
        _begin_keyframes(all_conds(guider))
        self.velocity = self.ask_model(guider, noise, extra_args["model_options"], extra_args["seed"])
        return noise


class OneDifferentiableStep(OneStep):
    """The same with gradient, for the `trained` parameters.

    pull: what is done with this step at once, while the model is as the host changed it for this sampling.
    through_x: a gradient reaches x, too: the state that the model is asked at, a leaf of its own.
    """

    x: Tensor

    def __init__(
        self,
        model: Differentiable,
        trained: Iterable[Tensor],
        *,
        guests: bool = False,
        pull: Callable[["OneDifferentiableStep"], None] | None = None,
        through_x: bool = False,
    ):
        self.model = model
        self.trained = trained
        self.guests = guests
        self.pull = pull
        self.through_x = through_x

    def ask_model(self, guider: CFGGuider, noise: Tensor, options: dict, seed: int) -> Tensor:
        patcher = guider.model_patcher
        guests = None
        if self.guests:
            beside = [options, guider.conds, patcher.object_patches, patcher.injections, patcher.additional_models]
            guests = Guests(patcher.model, beside, self.trained)
        if comfy.samplers.get_total_hook_groups_in_conds(guider.conds) > 1:
            options["model_function_wrapper"] = _under_hooks(patcher, options.get("model_function_wrapper"))
        self.x = noise.requires_grad_(self.through_x)
        with self.model.open(patcher, guests):
            self.velocity = super().ask_model(guider, noise, options, seed)
            if self.pull:
                self.pull(self)
            return self.velocity


def _under_hooks(patcher: ModelPatcher, wrapper: Callable | None) -> Callable:
    """The host's model function wrapper (around another one), for conditionings with several groups of hooks.

    The host asks the model for one group after the other, and changes its weights in between.
    """

    def wrapped(apply_model: Callable, arguments: dict) -> Tensor:
        def ask() -> Tensor:
            c = dict(arguments["c"])
            c["transformer_options"] = dict(c["transformer_options"])
            if wrapper:
                return wrapper(apply_model, arguments | {"c": c})
            return apply_model(arguments["input"], arguments["timestep"], **c)

        return _UnderHooks.apply(torch.ones((), requires_grad=True), ask, patcher)

    return wrapped


class _UnderHooks(torch.autograd.Function):
    """What the model says under the hooks that are in its weights now; asked again, under them, for the gradient."""

    @staticmethod
    def forward(ctx: Any, one: Tensor, ask: Callable[[], Tensor], patcher: ModelPatcher):
        ctx.ask = ask
        ctx.patcher = patcher
        ctx.hooks = patcher.current_hooks
        return ask()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):
        ctx.patcher.apply_hooks(ctx.hooks)
        with torch.enable_grad():
            output = ctx.ask()
        if output.requires_grad:
            torch.autograd.backward(output, gradient)
        return None, None, None


def all_conds(guider: CFGGuider) -> list[dict]:
    """The positive ones, and those of classifier-free guidance."""
    return [cond for conds in guider.conds.values() for cond in conds]


def _begin_keyframes(conds: list[dict]):
    """The host forgets to, and asked twice at one noise level, it takes the first keyframe the second time."""
    for cond in conds:
        for hook in cond["hooks"].hooks if cond.get("hooks") else ():
            hook.hook_keyframe._curr_t = -1.0


def _check_levels(conds: list[dict], sigma: Tensor):
    """The host takes a batch's first noise level for all."""
    low = sigma.min().item()
    high = sigma.max().item()
    if low < high and any(low <= limit <= high for limit in _limits(conds)):
        raise ValueError(
            f"The conditioning changes between the noise levels of these pictures (sigma {low:.3f} to {high:.3f}), and "
            "ComfyUI would treat all as the first: let one picture at a time through the model (at_once 1)."
        )


def _limits(conds: list[dict]) -> Iterator[float]:
    """The noise levels at which something in the conditionings begins or ends."""
    for cond in conds:
        yield from (float(cond[key]) for key in ("timestep_start", "timestep_end") if key in cond)
        hooks = cond.get("hooks")
        yield from (float(k.start_t) for hook in (hooks.hooks if hooks else ()) for k in hook.hook_keyframe.keyframes)
        control = cond.get("control")
        while control is not None:
            yield from map(float, control.timestep_range or ())
            control = control.previous_controlnet


def _why_not_asked(conds: list[dict], sigma: Tensor) -> str:
    level = sigma[0].item()
    if not conds:
        return "The conditioning is empty, so that the model is not asked: connect a prompt (CLIP Text Encode)."
    ranges = [(float(c.get("timestep_start", level)), float(c.get("timestep_end", 0.0))) for c in conds]
    if not any(end <= level <= start for start, end in ranges):
        named = ", ".join(f"sigma {min(start, 1.0):.3f} to {end:.3f}" for start, end in ranges)
        return (
            f"The conditioning is not in use at sigma {level:.3f}: its timestep range is {named}, and outside of it "
            "ComfyUI does not ask the model. Give it a range that covers the noise levels of the window, or none."
        )
    return (
        f"ComfyUI left the model out at sigma {level:.3f}: the strength, mask or area of the conditioning leaves "
        "nothing of it, or another node on the MODEL skips this step. Take that away for training."
    )
