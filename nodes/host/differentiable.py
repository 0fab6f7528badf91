"""Gradients through a model that ComfyUI loaded, without a copy of it.

The host's weights may be inference tensors (which autograd refuses to save), offloaded, cast or
quantised, and its blocks write into their inputs. So, for as long as a gradient is wanted:
linear layers and convolutions save nothing and fetch their weight again for the backward; norms
read a copy of their input; blocks are recomputed, from copies of their inputs.

Where a layer quantises its input as well (int8, and fp8, nvfp4 and mxfp8 on cards that multiply
them), the gradient is the straight-through one: that of the dequantised weight on the plain input.
"""

import contextlib
from collections.abc import Callable, Iterator

import comfy.model_management
import comfy.ops
import torch
import torch.nn.functional as F
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import save_on_cpu
from torch.utils._pytree import tree_leaves
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
def differentiable(
    patcher, root: nn.Module, checkpointing: bool = True, kept: int = 0, parked: bool = False
) -> Iterator[None]:
    """Everything under `root`, a part of the loaded `patcher`'s model, passes gradients while this is open.

    checkpointing: blocks run again for the backward, but for the last `kept`, whose activations stay in memory.
    parked: the inputs of those that run again wait for it in (pinned) RAM.
    Adapters injected into the patcher stay active, on top. All is as before on leaving, also by an exception.
    Raises ValueError, here or in the backward, at a layer of a kind that passes no gradient.
    """
    with in_training(), patcher.use_ejected(), contextlib.ExitStack() as stack:
        stack.enter_context(replaced_forwards(frozen_forwards(root)))
        stack.enter_context(_own_parameters(root))
        recomputed = list(blocks(root))[: -kept or None] if checkpointing else []
        stack.enter_context(replaced_forwards({block: _checkpointed(block.forward, parked) for block in recomputed}))
        patcher.inject_model()
        stack.callback(patcher.eject_model)
        yield


@contextlib.contextmanager
def in_training() -> Iterator[None]:
    """With gradients, and the host chooses what has a backward: all that a backward needs where nothing runs again."""
    before, comfy.model_management.in_training = comfy.model_management.in_training, True
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        comfy.model_management.in_training = before


def blocks(root: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks of a model: the outermost composite entries of its module lists."""
    listed = isinstance(root, (nn.ModuleList, nn.Sequential))
    for child in root.children():
        composite = any(True for _ in child.children()) and type(child).forward is not nn.Module.forward
        if listed and composite and any(True for _ in child.parameters()):
            yield child
        else:
            yield from blocks(child)


def is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer of whatever kind: the host's quantised ones are no nn.Linear."""
    return hasattr(module, "in_features") and type(module).forward is not nn.Module.forward


def frozen_forwards(root: nn.Module) -> dict[nn.Module, Callable]:
    """For each weight-bearing leaf (and each norm), the forward that passes gradients to its input alone."""
    forwards = {}
    for module in root.modules():
        if forward := _frozen_forward(module, module.forward):
            forwards[module] = forward
    return forwards


def _frozen_forward(module: nn.Module, forward: Callable) -> Callable | None:
    norm = _kind_of(module, NORMS)
    if norm and _is_known(module):
        return lambda x: _norm(module, NORMS[norm], x) if _needs(x) else forward(x)
    if module._modules or not (norm or any(p is not None for p in module._parameters.values())):
        return None
    # The host's fp8 layers write into their input, which autograd may have saved before.
    copy = _copy if isinstance(module, comfy.ops.fp8_ops.Linear) else _as_it_is
    function = _FrozenLinear if _is_known(module) and _is_linear_in_its_input(module) else _Recomputed

    def frozen(x, *args, **kwargs):
        if not _needs(x):
            return forward(x, *args, **kwargs)
        if any(map(_needs, (*args, *kwargs.values()))):
            raise _no_gradient(module, "more than one of its inputs needs one")
        return function.apply(x, module, lambda y: forward(copy(y), *args, **kwargs))

    return frozen


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _needs(x) -> bool:
    return torch.is_tensor(x) and x.requires_grad and torch.is_grad_enabled()


def _is_known(module: nn.Module) -> bool:
    """Whether its forward is torch's or the host's own, and so its weight what `weight_of` says."""
    kind = type(module)
    if getattr(module.forward, "__func__", None) is not kind.forward:
        return False  # somebody replaced it
    if hasattr(module, "cast_bias_weight"):
        return True
    sources = {kind.forward.__module__, getattr(kind, "forward_comfy_cast_weights", kind.forward).__module__}
    return all(source == comfy.ops.__name__ or source.startswith("torch.nn.") for source in sources)


def _is_linear_in_its_input(module: nn.Module) -> bool:
    if _kind_of(module, CONVOLUTIONS):
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return is_linear(module)


def _kind_of(module: nn.Module, kinds) -> type | None:
    return next((kind for kind in kinds if isinstance(module, kind)), None)


@contextlib.contextmanager
def weight_of(module: nn.Module, like: Tensor) -> Iterator[tuple[Tensor | None, Tensor | None]]:
    """The layer's weight and bias as the host would use them on `like`, wherever and however they are stored."""
    if module.weight is None or not hasattr(module, "weight_function"):
        yield module.weight, getattr(module, "bias", None)
        return
    if hasattr(module, "cast_bias_weight"):  # ComfyUI-GGUF's layers dequantise in a method of this name
        yield module.cast_bias_weight(like)
        return
    weight, bias, stream = comfy.ops.cast_bias_weight(module, like, offloadable=True)
    try:
        # A quantised weight comes as it is stored when its nominal type is that of `like`.
        yield weight.dequantize() if isinstance(weight, QuantizedTensor) else weight, bias
    finally:
        comfy.ops.uncast_bias_weight(module, weight, bias, stream)


def _copy(tensor: Tensor) -> Tensor:
    """A copy, also of ComfyUI-GGUF's kind of tensor, which returns itself for a clone and makes more of its kind."""
    return torch.clone(tensor.as_subclass(Tensor))


def _norm(module: nn.Module, norm: Callable, x: Tensor) -> Tensor:
    # Copies, because autograd saves all three: the block goes on to write into x, and parameters may be
    # inference tensors or cast buffers.
    with weight_of(module, x) as (weight, bias):
        weight, bias = (None if p is None else _copy(p) for p in (weight, bias))
    return norm(module, _copy(x), weight, bias)


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
        with weight_of(m, gradient) as (weight, _):
            if kind := _kind_of(m, CONVOLUTIONS):
                to_input = CONVOLUTIONS[kind]
                gradient = to_input(ctx.shape, weight, gradient, m.stride, m.padding, m.dilation, m.groups)
            else:
                gradient = gradient @ weight
        if (scale := getattr(m, "pre_quant_scale", None)) is not None:  # of the input, with which it left the weight
            gradient = gradient * scale.to(gradient)
        return gradient, None, None


class _Recomputed(torch.autograd.Function):
    """A leaf of a kind we don't know: runs again for the backward."""

    @staticmethod
    def forward(ctx, x, module, forward):
        # The block may go on to write into x; where that matters, keep a copy.
        ctx.save_for_backward(x if is_linear(module) else _copy(x))
        ctx.module, ctx.forward = module, forward
        return forward(x).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        with torch.enable_grad(), _own_parameters(ctx.module):
            x = ctx.saved_tensors[0].detach().requires_grad_()
            try:
                return torch.autograd.grad(ctx.forward(x), x, gradient)[0], None, None
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise _no_gradient(ctx.module, error) from error


def _no_gradient(module: nn.Module, reason) -> ValueError:
    kind = type(module)
    return ValueError(
        f"This model can't be trained as it was loaded: its layers of the kind {kind.__module__}.{kind.__qualname__} "
        f"pass no gradient back ({reason}). Load it with ComfyUI's own Load Diffusion Model (bf16, fp16, fp8 and "
        "ComfyUI's quantised files), or as GGUF."
    )


def _own(value):
    """What later changes of the model to what it passed to a block don't reach, but for a tensor's content."""
    if isinstance(value, dict):  # block_index and the like
        return dict(value)
    # ComfyUI-GGUF's kind of tensor returns itself for a detached one.
    return value.as_subclass(Tensor) if torch.is_tensor(value) else value


def _checkpointed(forward: Callable, parked: bool = False) -> Callable:
    """The block's forward, run without a graph, and again with one when its gradient is asked for."""

    def recomputable(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        values = list(map(_own, (*args, *kwargs.values())))

        def run(*values):
            # The block writes into its inputs, which the recomputation needs as they were.
            values = [_copy(v) if torch.is_tensor(v) else v for v in values]
            return forward(*values[: len(args)], **dict(zip(kwargs, values[len(args) :])))

        # The reentrant kind keeps nothing but the inputs, and has no hook on each tensor that a block saves; but it
        # sees only arguments that are tensors themselves, and needs one with a gradient: the first trained block's
        # have none.
        inside = tree_leaves([value for value in values if not torch.is_tensor(value)])
        reentrant = any(map(_needs, values)) and not any(map(_needs, inside))
        with save_on_cpu(pin_memory=True) if parked else contextlib.nullcontext():
            return checkpoint(run, *values, use_reentrant=reentrant, preserve_rng_state=False)

    return recomputable


@contextlib.contextmanager
def replaced_forwards(forwards: dict[nn.Module, Callable]) -> Iterator[None]:
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
