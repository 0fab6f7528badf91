"""What each stage of a run will need of the device, before anything is loaded there.

The host's own code runs on tensors without content (torch's fake tensors), and the bytes of those that are alive are
counted.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import NamedTuple

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import torch
from comfy.taesd.taesd import TAESD
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ...srpo_core.run.memory import (
    BY_HAND,
    CARDS,
    Block,
    LiveBytes,
    Need,
    Use,
    advice,
    fastest,
    most_missing,
    over_blocks,
    sampled_together,
)
from ...srpo_core.run.undo import MOST_IN_PLACE
from .adapters.adapter import Adapter, adapter_of
from .decoder import HostDecoder
from .gradients.attention import with_backward
from .gradients.differentiable import Differentiable, blocks
from .patcher.carried import as_carried
from .patcher.forwards import replaced_forwards
from .reward import device_of
from .without_content import without_content

SMALLER = (0.85, 0.7, 0.5)  # of each side: sizes to try where the chosen one is too much


class Plan(NamedTuple):
    """working: bytes for the branch that the host should leave free of weights. text: what does not fit, or empty."""

    use: Use
    working: int
    text: str


def plan(
    memory: str, by_hand: Use, model, vae, rewards: list, cond: list, shape: tuple[int, int, int], batch: int
) -> Plan:
    """How a run uses the device: as set, or as is fastest in the memory that is free, or that a card of a size has.

    memory: BY_HAND, AUTO, or a key of CARDS. by_hand: what is set; the others take its at_once as the most, and
    choose it where it is 0. batch: pictures of an update.
    The rest: see `estimate`.
    """
    free = _free(model)
    budget = min(free, CARDS.get(memory, free))

    @cache  # each takes seconds
    def needs_with(use: Use, vae=vae, shape=shape) -> dict[str, Need]:
        return estimate(model, vae, rewards, cond, shape, use.at_once, kept_blocks=use.kept_blocks, offload=use.offload)

    use = by_hand
    if memory != BY_HAND:
        count = sum(1 for _ in blocks(model.model.diffusion_model))
        use = fastest(needs_with, by_hand.at_once, batch, count, budget)
    needs = needs_with(use)
    there = 3 * _size(adapter_of(model))  # parameters and moments, which the host sees are taken
    if memory != BY_HAND:
        together = sampled_together(needs["rollout"], there, use.at_once, batch, budget)
        use = use._replace(sampled_at_once=together)
    text = advice(needs, budget, _remedies(needs_with, use, budget, vae, shape, adapter_of(model)))
    return Plan(use, needs["branch"].working - there + free - budget, text)


def _free(model) -> int:
    """Bytes of the device that a run of this model can have: the host makes room, and the adapter is there already."""
    device = model.load_device
    loaded = [held for held in comfy.model_management.current_loaded_models if held.device == device]
    free = comfy.model_management.get_free_memory(device) - comfy.model_management.extra_reserved_memory()
    return free + sum(held.model_loaded_memory() for held in loaded) + _size(adapter_of(model))


def _remedies(needs_with: Callable, use: Use, budget: int, vae, shape: tuple[int, int, int], adapter: Adapter):
    """See `advice`."""
    if use.kept_blocks:
        use = use._replace(kept_blocks=0)
        yield "no kept_blocks", needs_with(use)
    if not use.offload:
        use = use._replace(offload=True)
        yield "park_inputs", needs_with(use)
    if use.at_once > 1:
        use = use._replace(at_once=1)
        yield "at_once 1", needs_with(use)
    for share in SMALLER:
        smaller = shape[0], *(int(share * side) // 2 * 2 for side in shape[1:])
        needs = needs_with(use, shape=smaller)
        if most_missing(needs, budget)[1] <= 0:
            break
    yield "{}x{}".format(*(vae.upscale_ratio * side for side in (smaller[2], smaller[1]))), needs
    if shape[0] == 16 and "decode" in needs and not isinstance(vae.first_stage_model, TAESD):
        tiny = comfy.sd.VAE(sd=TAESD(latent_channels=16).state_dict())
        needs = needs_with(use, tiny, smaller)
        yield "TAEF1 as the VAE of the gradient", needs
    if adapter.settings.kind == "LoRA" and (rank := next(iter(adapter.modules.values())).rank) >= 4:
        less = 3 * _size(adapter)  # three quarters of what is there four times
        yield f"rank {rank // 4}", {name: Need(need.weights, need.working - less) for name, need in needs.items()}


def _size(adapter: Adapter) -> int:
    return sum(parameter.nbytes for parameter in adapter.parameters.values())


@torch.inference_mode(False)
def estimate(
    model,
    vae,
    rewards: list,
    cond: list,
    shape: tuple[int, int, int],
    at_once: int,
    checkpointing: bool = True,
    kept_blocks: int = 0,
    offload: bool = False,
) -> dict[str, Need]:
    """What each stage of an update with AdamW needs of the MODEL's device, by its name.

    model: the MODEL of SRPO Trainer. vae: the VAE whose gradient is taken. rewards: their image towers count. A stage
    that computes on another device is left out, such as the VAE's with --cpu-vae.
    cond: of one prompt. shape: (C, H, W) of latents. checkpointing, kept_blocks, offload: see Differentiable.
    The branch's activations stay while its pictures are decoded and scored, the decoder's while they are scored.
    """
    device = model.load_device
    x = torch.zeros(at_once, *shape, device=device)
    sizes = [parameter.nbytes for parameter in adapter_of(model).parameters.values()]
    resting = 3 * sum(sizes)  # the parameters and two moments
    own = resting + sum(sizes)  # and their gradients
    on_cpu = device.type == "cpu"
    copied = resting if on_cpu or resting <= MOST_IN_PLACE else 0  # to undo a step with
    step = copied + (2 * max(sizes) if on_cpu else 0)
    image = picture = 0
    rollout, branch, graph = _flow(model, x, cond, checkpointing, kept_blocks, offload)
    needs = {
        "rollout": Need(model.model_size(), resting + rollout),
        "branch": Need(model.model_size(), own + branch),
    }
    if vae.device == device:
        image = 3 * x[:, 0].nbytes * vae.upscale_ratio**2  # the last one, of which saturation is taken
        decode, picture = HostDecoder(vae, model).memory(x.shape)
        needs["decode"] = Need(vae.patcher.model_size(), own + graph + decode)
    needs["optimizer"] = Need(0, own + image + max(step, image * 4 // 3))
    here = [reward for reward in rewards if hasattr(reward, "image_tower") and device_of(reward.image_tower) == device]
    towers = (_reward(reward, x, vae.upscale_ratio) for reward in here)
    if scored := [Need(weights, own + graph + picture + scoring) for weights, scoring in towers]:
        needs["reward"] = max(scored, key=lambda need: need.peak)
    return needs


def _flow(patcher, x: Tensor, cond: list, checkpointing: bool, kept_blocks: int, offload: bool) -> tuple[int, int, int]:
    """The peaks of a forward without gradient and of one with its backward, and what is held between those two."""
    device = x.device
    trained = adapter_of(patcher).modules.values()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_ejected(patcher.model))
        model = stack.enter_context(as_carried(patcher))
        lists = _lists(model.diffusion_model)
        calls = {}
        sigma, inputs = _inputs(patcher, x, cond)
        layers = map(model.get_submodule, adapter_of(patcher).modules)
        stack.enter_context(Differentiable(model, layers, checkpointing, kept_blocks, offload).open(patcher))
        stack.enter_context(without_content(device, model, *trained))
        with torch.no_grad(), LiveBytes(device.type) as count, _first_of_each(lists, calls, count):
            model.apply_model(x, sigma, **inputs)
        for parameter in (p for module in trained for p in module.parameters() if p.requires_grad):
            parameter.register_post_accumulate_grad_hook(_forget_gradient)
        order = [(listed[0], block) for listed in lists for block in listed if listed[0] in calls]
        costs = {}
        keys = [(first, checkpointing and i < len(order) - kept_blocks) for i, (first, _) in enumerate(order)]
        for key, (first, block) in zip(keys, order):
            if key not in costs:
                costs[key] = _cost(block, *calls[first].inputs, device, offload and key[1])
    return count.peak, *over_blocks(min(call.before for call in calls.values()), [costs[key] for key in keys])


class _Call(NamedTuple):
    """Of a block. inputs: args and kwargs, on the meta device. before: bytes alive then."""

    inputs: tuple
    before: int


@contextlib.contextmanager
def _first_of_each(lists: list[list[nn.Module]], calls: dict, count: LiveBytes) -> Iterator[None]:
    """Notes the calls of the lists' first blocks; the others, which repeat them, hand on what those gave."""

    def note(first, *inputs):
        calls[first] = _Call(tree_map_only(Tensor, lambda tensor: tensor.to("meta"), inputs), count.held)

    given = {}
    others = {block: partial(_hand_on, given, listed[0]) for listed in lists for block in listed[1:]}
    with contextlib.ExitStack() as stack:
        for listed in lists:
            stack.enter_context(listed[0].register_forward_pre_hook(note, with_kwargs=True))
            stack.enter_context(listed[0].register_forward_hook(lambda first, _, output: given.update({first: output})))
        stack.enter_context(replaced_forwards(others))
        yield


def _hand_on(given: dict, first: nn.Module, *_, **__):
    return given[first]


@contextlib.contextmanager
def _ejected(model: nn.Module) -> Iterator[None]:
    """Without the adapter of whoever used this model last: it stays injected until the host loads another clone."""
    with contextlib.ExitStack() as stack:
        for loaded in comfy.model_management.current_loaded_models:
            if loaded.model is not None and loaded.model.model is model:
                stack.enter_context(loaded.model.use_ejected())
        yield


def _forget_gradient(parameter: nn.Parameter):
    parameter.grad = None  # as if it were added to one that there is already


def _inputs(patcher, x: Tensor, cond: list) -> tuple[Tensor, dict]:
    """Noise levels, and what else the model is asked with, as the host makes it of a conditioning."""
    sigma = x.new_full((len(x),), 0.9)
    conds = {"positive": comfy.sampler_helpers.convert_cond(cond)}
    conds = comfy.samplers.process_conds(patcher.model, x, conds, x.device)["positive"]
    inputs = comfy.samplers.cond_cat([comfy.samplers.get_area_and_mult(conds[0], x, sigma).conditioning])
    options = patcher.model_options["transformer_options"] | {"cond_or_uncond": [0], "sigmas": sigma}
    return sigma, inputs | {"transformer_options": with_backward(options, patcher.model.diffusion_model)}


def _lists(root: nn.Module) -> list[list[nn.Module]]:
    """The blocks of a model, those together that repeat each other."""
    parents = {child: id(parent) for parent in root.modules() for child in parent.children()}
    grouped = itertools.groupby(blocks(root), key=lambda block: (parents[block], type(block)))
    return [list(listed) for _, listed in grouped]


def _cost(block: nn.Module, args: tuple, kwargs: dict, device: torch.device, offload: bool) -> Block:
    """What one block keeps for its backward and takes meanwhile. args, kwargs: of a call, on the meta device.

    Its output stays as the input of the next block, unless that is offloaded.
    """
    args, kwargs = tree_map_only(Tensor, lambda tensor: torch.empty_like(tensor, device=device), (args, kwargs))
    with torch.no_grad():
        shapes = {tensor.shape for tensor in _tensors(block(*args, **kwargs))}

    def flowing(tensor: Tensor) -> Tensor:
        """What one block hands to the next has a gradient, and is no leaf."""
        return tensor.requires_grad_().clone() if tensor.shape in shapes else tensor

    args, kwargs = tree_map_only(Tensor, flowing, (args, kwargs))
    with LiveBytes(device.type) as count:
        outputs = _tensors(block(*args, **kwargs))
        saved = count.held - offload * sum(output.nbytes for output in outputs)
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    return Block(saved, count.peak - saved)


def _tensors(tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _reward(reward, x: Tensor, ratio: int) -> tuple[int, int]:
    """The size of a reward's image tower, and the peak of a score with its gradient."""
    tower = reward.image_tower
    dtype = next(tower.parameters()).dtype
    pictures = len(x) * (1 if getattr(reward, "reads_text", True) else 2)
    with without_content(x.device, tower), torch.enable_grad(), LiveBytes(x.device.type) as count:
        image = torch.empty(pictures, 3, ratio * x.shape[2], ratio * x.shape[3], device=x.device, requires_grad=True)
        features = tower(reward.pixels(image).to(dtype))
        torch.autograd.grad(features, image, torch.ones_like(features))
    return comfy.model_management.module_size(tower), count.peak
