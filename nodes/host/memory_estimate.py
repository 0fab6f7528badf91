"""What each stage of a run will need of the device, before anything is loaded there.

The host's own code runs on tensors without content (torch's fake tensors), and the bytes of those that are alive are
counted.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ...srpo_core.algorithm.protocols import Shape
from ...srpo_core.rewards.protocol import Reward, TowerReward, reads_text
from ...srpo_core.run.memory import (
    BlockBytes,
    LiveBytes,
    StageBytes,
    over_blocks,
)
from ...srpo_core.run.undo import MOST_IN_PLACE
from .adapters.readable import adapter_of
from .decoder import HostDecoder
from .gradients.attention import with_backward
from .gradients.differentiable import USUAL_BLOCKS, BlockSettings, Differentiable, blocks
from .gradients.injection import eject_all
from .gradients.writing import or_on_copies
from .patcher.carried import as_carried
from .patcher.forwards import replaced_forwards
from .reward import device_of
from .without_content import without_content


@dataclass(frozen=True, kw_only=True, eq=False)
class Workload:
    """What an update of a run computes with.

    model: the MODEL of SRPO Trainer. vae: the VAE whose gradient is taken. rewards: their image towers count.
    cond: the CONDITIONING of one prompt, which stands for all. shape: of latents. batch: pictures of an update.
    asked_twice: classifier-free guidance asks the MODEL for the negative conditioning, too, in the same forward.
    """

    model: ModelPatcher
    vae: VAE
    rewards: Sequence[Reward]
    cond: list
    shape: Shape
    batch: int = 1
    asked_twice: bool = False


@torch.inference_mode(False)
def estimate(workload: Workload, at_once: int, settings: BlockSettings = USUAL_BLOCKS) -> dict[str, StageBytes]:
    """What each stage of an update with AdamW needs of the MODEL's device, by its name.

    at_once: pictures in one trained forward. settings: how the MODEL's blocks run in it.
    A stage that computes on another device is left out, such as the VAE's with --cpu-vae. The branch's activations stay
    while its pictures are decoded and scored, the decoder's while they are scored.
    """
    patcher = workload.model
    vae = workload.vae
    device = patcher.load_device
    x = torch.zeros(at_once, *workload.shape, device=device)
    sizes = [parameter.nbytes for parameter in adapter_of(patcher).parameters.values()]
    resting = 3 * sum(sizes)  # the parameters and two moments
    own = resting + sum(sizes)  # and their gradients
    on_cpu = device.type == "cpu"
    copied = resting if on_cpu or resting <= MOST_IN_PLACE else 0  # to undo a step with
    step = copied + (2 * max(sizes) if on_cpu else 0)
    image = 0
    picture = 0
    asked = torch.cat([x, x]) if workload.asked_twice else x
    rollout, branch, graph = or_on_copies(patcher.model, lambda: _flow(patcher, asked, workload.cond, settings))
    needs = {
        "rollout": StageBytes(patcher.model_size(), resting + rollout),
        "branch": StageBytes(patcher.model_size(), own + branch),
    }
    if vae.device == device:
        image = 3 * x[:, 0].nbytes * vae.spacial_compression_decode() ** 2  # the last one, of which saturation is taken
        decode, picture = HostDecoder(vae, patcher).memory(x.shape)
        needs["decode"] = StageBytes(vae.patcher.model_size(), own + graph + decode)
    needs["optimizer"] = StageBytes(0, own + image + max(step, image * 4 // 3))
    here = [
        reward
        for reward in workload.rewards
        if isinstance(reward, TowerReward) and device_of(reward.image_tower) == device
    ]
    towers = (_reward(reward, x, vae.spacial_compression_decode()) for reward in here)
    if scored := [StageBytes(weights, own + graph + picture + scoring) for weights, scoring in towers]:
        needs["reward"] = max(scored, key=lambda need: need.peak)
    return needs


def _flow(patcher: ModelPatcher, x: Tensor, cond: list, settings: BlockSettings) -> tuple[int, int, int]:
    """The peaks of a forward without gradient and of one with its backward, and what is held between those two."""
    device = x.device
    trained = adapter_of(patcher).modules.values()
    eject_all(patcher.model)  # an adapter stays injected until the host loads another clone
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(as_carried(patcher))
        lists = _lists(model.diffusion_model)
        calls: dict[nn.Module, _BlockCall] = {}
        sigma, inputs = _inputs(patcher, x, cond)
        layers = map(model.get_submodule, adapter_of(patcher).modules)
        stack.enter_context(Differentiable(model, layers, settings).open(patcher))
        stack.enter_context(without_content(device, model, *trained))
        with torch.no_grad(), LiveBytes(device.type) as count, _first_of_each(lists, calls, count):
            model.apply_model(x, sigma, **inputs)
        for parameter in (p for module in trained for p in module.parameters() if p.requires_grad):
            parameter.register_post_accumulate_grad_hook(_forget_gradient)
        order = [(listed[0], block) for listed in lists for block in listed if listed[0] in calls]
        costs = {}
        keys = [
            (first, settings.checkpointing and i < len(order) - settings.kept_blocks)
            for i, (first, _) in enumerate(order)
        ]
        for key, (first, block) in zip(keys, order):
            if key not in costs:
                costs[key] = _cost(block, calls[first].inputs, device, offload=settings.offload and key[1])
    return count.peak, *over_blocks(min(call.before for call in calls.values()), [costs[key] for key in keys])


class _BlockCall(NamedTuple):
    """A call of a block. inputs: args and kwargs, on the meta device. before: bytes alive then."""

    inputs: tuple
    before: int


@contextlib.contextmanager
def _first_of_each(lists: list[list[nn.Module]], calls: dict, count: LiveBytes) -> Iterator[None]:
    """Notes the calls of the lists' first blocks; the others, which repeat them, hand on what those gave."""

    def note(first: nn.Module, *inputs: Any):
        calls[first] = _BlockCall(tree_map_only(Tensor, lambda tensor: tensor.to("meta"), inputs), count.held)

    given = {}
    others = {block: partial(_hand_on, given, listed[0]) for listed in lists for block in listed[1:]}
    with contextlib.ExitStack() as stack:
        for listed in lists:
            stack.enter_context(listed[0].register_forward_pre_hook(note, with_kwargs=True))
            stack.enter_context(listed[0].register_forward_hook(lambda first, _, output: given.update({first: output})))
        stack.enter_context(replaced_forwards(others))
        yield


def _hand_on(given: dict, first: nn.Module, *_: Any, **__: Any) -> Any:
    return given[first]


def _forget_gradient(parameter: nn.Parameter):
    parameter.grad = None  # as if it were added to one that there is already


def _inputs(patcher: ModelPatcher, x: Tensor, cond: list) -> tuple[Tensor, dict]:
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


def _cost(block: nn.Module, inputs: tuple, device: torch.device, *, offload: bool) -> BlockBytes:
    """What one block keeps for its backward and takes meanwhile. inputs: args and kwargs, on the meta device.

    Its output stays as the input of the next block, unless that is offloaded.
    """
    args, kwargs = tree_map_only(Tensor, lambda tensor: torch.empty_like(tensor, device=device), inputs)
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
    return BlockBytes(saved, count.peak - saved)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _reward(reward: TowerReward, x: Tensor, ratio: int) -> tuple[int, int]:
    """The size of a reward's image tower, and the peak of a score with its gradient."""
    tower = reward.image_tower
    dtype = next(tower.parameters()).dtype
    pictures = len(x) * (1 if reads_text(reward) else 2)
    with without_content(x.device, tower), torch.enable_grad(), LiveBytes(x.device.type) as count:
        image = torch.empty(pictures, 3, ratio * x.shape[-2], ratio * x.shape[-1], device=x.device, requires_grad=True)
        features = tower(reward.pixels(image).to(dtype))
        torch.autograd.grad(features, image, torch.ones_like(features))
    return comfy.model_management.module_size(tower), count.peak
