"""Gradients through a model that ComfyUI loaded, without a copy of it.

The host's weights may be inference tensors (which autograd refuses to save), offloaded, cast or
quantised, and its blocks write into their inputs. So, for as long as a gradient is wanted:
linear layers and convolutions save nothing and fetch their weight again for the backward; norms
read a copy of their input; blocks are recomputed, from copies of their inputs.
"""

import contextlib
from collections.abc import Callable, Iterator

import comfy.model_management
import comfy.ops
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

CONVOLUTIONS = {
    nn.Conv1d: torch.nn.grad.conv1d_input,
    nn.Conv2d: torch.nn.grad.conv2d_input,
    nn.Conv3d: torch.nn.grad.conv3d_input,
}
NORMS = {
    nn.LayerNorm: lambda m, x, weight, bias: F.layer_norm(x, m.normalized_shape, weight, bias, m.eps),
    nn.RMSNorm: lambda m, x, weight, bias: F.rms_norm(x, m.normalized_shape, weight, m.eps),
    nn.GroupNorm: lambda m, x, weight, bias: F.group_norm(x, m.num_groups, weight, bias, m.eps),
}


@contextlib.contextmanager
def differentiable(patcher, root: nn.Module, checkpointing: bool = True) -> Iterator[None]:
    """Everything under `root`, a part of the loaded `patcher`'s model, passes gradients while this is open.

    Adapters injected into the patcher stay active, on top. All is as before on leaving, also by an exception.
    """
    in_training, comfy.model_management.in_training = comfy.model_management.in_training, True
    try:
        with torch.inference_mode(False), torch.enable_grad(), patcher.use_ejected(), contextlib.ExitStack() as stack:
            stack.enter_context(_forwards(frozen_forwards(root)))
            stack.enter_context(_own_parameters(root))
            if checkpointing:
                stack.enter_context(_forwards({block: _checkpointed(block.forward) for block in blocks(root)}))
            patcher.inject_model()
            stack.callback(patcher.eject_model)
            yield
    finally:
        comfy.model_management.in_training = in_training


def blocks(root: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks of a model: the outermost composite entries of its module lists."""
    listed = isinstance(root, (nn.ModuleList, nn.Sequential))
    for child in root.children():
        composite = any(True for _ in child.children()) and type(child).forward is not nn.Module.forward
        if listed and composite and any(True for _ in child.parameters()):
            yield child
        else:
            yield from blocks(child)


def frozen_forwards(root: nn.Module) -> dict[nn.Module, Callable]:
    """For each weight-bearing leaf (and each norm), the forward that passes gradients to its input alone."""
    forwards = {}
    for module in root.modules():
        if forward := _frozen_forward(module, module.forward):
            forwards[module] = forward
    return forwards


def _frozen_forward(module: nn.Module, forward: Callable) -> Callable | None:
    for kind, norm in NORMS.items():
        if isinstance(module, kind):
            return lambda x: _norm(module, norm, x) if x.requires_grad else forward(x)
    if any(True for _ in module.children()) or not any(True for _ in module.parameters()):
        return None
    function = _FrozenLinear if _is_known(module) else _Recomputed
    return lambda x, *args: function.apply(x, module, lambda y: forward(y, *args)) if _needs(x) else forward(x, *args)


def _needs(x) -> bool:
    return torch.is_tensor(x) and x.requires_grad and torch.is_grad_enabled()


def _is_known(module: nn.Module) -> bool:
    """Whether the host can hand us the layer's weight, and the layer is linear in its input with it."""
    convolution = _kind_of(module, CONVOLUTIONS) is not None and module.padding_mode == "zeros"
    convolution = convolution and not isinstance(module.padding, str)
    return hasattr(module, "weight_function") and (isinstance(module, nn.Linear) or convolution)


def _kind_of(module: nn.Module, kinds) -> type | None:
    return next((kind for kind in kinds if isinstance(module, kind)), None)


@contextlib.contextmanager
def _weight_of(module: nn.Module, like: Tensor) -> Iterator[tuple[Tensor | None, Tensor | None]]:
    """The layer's weight and bias as the host would use them on `like`, wherever and however they are stored."""
    if module.weight is None or not hasattr(module, "weight_function"):
        yield module.weight, getattr(module, "bias", None)
        return
    weight, bias, stream = comfy.ops.cast_bias_weight(module, like, offloadable=True)
    try:
        yield weight, bias
    finally:
        comfy.ops.uncast_bias_weight(module, weight, bias, stream)


def _norm(module: nn.Module, norm: Callable, x: Tensor) -> Tensor:
    # Copies, because autograd saves all three: the block goes on to write into x, and parameters may be
    # inference tensors or cast buffers.
    with _weight_of(module, x) as (weight, bias):
        weight, bias = (None if p is None else p.clone() for p in (weight, bias))
    return norm(module, x.clone(), weight, bias)


class _FrozenLinear(torch.autograd.Function):
    """A linear layer or convolution with a constant weight: saves nothing but shapes."""

    @staticmethod
    def forward(ctx, x, module, forward):
        ctx.module, ctx.shape = module, x.shape
        y = forward(x)
        # F.linear may return a view, and autograd forbids writing into a view that a Function returned.
        return torch.ops.aten._unsafe_view(y, y.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        m = ctx.module
        with _weight_of(m, gradient) as (weight, _):
            if kind := _kind_of(m, CONVOLUTIONS):
                to_input = CONVOLUTIONS[kind]
                gradient = to_input(ctx.shape, weight, gradient, m.stride, m.padding, m.dilation, m.groups)
            else:
                gradient = gradient @ weight
        return gradient, None, None


class _Recomputed(torch.autograd.Function):
    """A leaf of a kind we don't know: runs again for the backward."""

    @staticmethod
    def forward(ctx, x, module, forward):
        ctx.save_for_backward(x)
        ctx.module, ctx.forward = module, forward
        return forward(x).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        with torch.enable_grad(), _own_parameters(ctx.module):
            x = ctx.saved_tensors[0].detach().requires_grad_()
            return torch.autograd.grad(ctx.forward(x), x, gradient)[0], None, None


def _checkpointed(forward: Callable) -> Callable:
    def own(value):
        return value.clone() if torch.is_tensor(value) else value

    def recomputable(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # The model goes on to change the dicts it passes (block_index and the like).
        kwargs = {k: dict(v) if isinstance(v, dict) else v for k, v in kwargs.items()}

        def run():
            # The block writes into its inputs, which the recomputation needs as they were.
            return forward(*map(own, args), **{k: own(v) for k, v in kwargs.items()})

        return checkpoint(run, use_reentrant=False, preserve_rng_state=False)

    return recomputable


@contextlib.contextmanager
def _forwards(forwards: dict[nn.Module, Callable]) -> Iterator[None]:
    """Replace the modules' forwards, and put back what was there."""
    before = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = forward


@contextlib.contextmanager
def _own_parameters(root: nn.Module) -> Iterator[None]:
    """Copies in place of inference-tensor parameters that lie outside of layers (tables, scales, gates)."""
    replaced = []
    try:
        for module in root.modules():
            if module is not root and not any(True for _ in module.children()):
                continue
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.is_inference():
                    replaced.append((module, name, parameter))
                    module._parameters[name] = nn.Parameter(parameter.clone(), requires_grad=False)
        yield
    finally:
        for module, name, parameter in replaced:
            module._parameters[name] = parameter
