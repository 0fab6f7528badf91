"""Ways back through models that compute in half precision.

A way back is linear, so a gradient may go in at a size of one, and what comes out is brought back to its own. At
720x720 with a batch of 8 the gradient at a velocity is 1e-6 to 1e-8 in size, and fp16 has no steps below 6e-8. All
factors are powers of two: they change no bit of a result, but for numbers that are too small to have all of theirs.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter

MOST = 100  # exponent of a factor; fp32 has it, and its inverse
OF_A_LOSS = 2.0**10  # about the root of the count of a picture's pixels, over which a score's gradient spreads
MOST_OF_A_LOSS = 24  # exponent of the factor by which it may be larger where nothing came out
SMALLEST = 2.0**-14  # below this fp16 has fewer and fewer bits


def pulled(pull: Callable[[Tensor], Tensor], gradient: Tensor) -> Tensor:
    """pull(gradient) of a `pull` that is linear, and that takes each sample of a gradient (B, ...) for itself."""
    scales = unit_scale(gradient.flatten(1).abs().amax(1)).view(-1, *[1] * (gradient.ndim - 1))
    found = pull(gradient * scales)
    return found / scales.to(found)


def backward(
    output: Tensor, gradient: Tensor, parameters: Iterable[Parameter], x: Tensor | None = None
) -> Tensor | None:
    """Add to the parameters' `.grad` what the gradient at `output`, of its shape, pulls back to them.

    Returns the gradient at x, of its shape, where that is given: a leaf that requires one.
    """
    scale = unit_scale(gradient.abs().amax()).item()
    ends = [*parameters, *([] if x is None else [x])]
    with _divided(ends, scale):
        torch.autograd.backward(output, (gradient * scale).to(output))
    return None if x is None else x.grad


def gradient_of_sum(loss: Tensor, at: Tensor) -> Tensor:
    """The gradient of loss.sum() at `at`.

    Its size on the way is unknown before: where the first scale was too large or too small, others are tried.
    """

    def ask(scale: float) -> Tensor:
        return torch.autograd.grad(scale * loss.sum(), at, retain_graph=True)[0]

    found = ask(OF_A_LOSS)
    for other in _better_scales(found.abs().amax().item(), loss):
        tried = ask(other)
        if tried.isfinite().all():
            return tried / other
    return found / OF_A_LOSS


def _better_scales(largest: float, loss: Tensor) -> Sequence[float]:
    """What to try after OF_A_LOSS, best first, given the largest magnitude that came out with it."""
    if not math.isfinite(largest):
        return [OF_A_LOSS / 2**i for i in range(4, 24, 4)]
    if largest >= SMALLEST or not loss.any():  # at its end a hinge has no gradient
        return []
    room = MOST_OF_A_LOSS if not largest else int(unit_scale(torch.tensor(largest)).log2())
    return [OF_A_LOSS * 2.0**i for i in range(room, 0, -4)]


def unit_scale(largest: Tensor) -> Tensor:
    """The power of two that brings a magnitude to 0.5 or more, and below 1; any shape.

    It is 1 for one that is zero or not finite, which shall come out as it is.
    """
    usable = torch.isfinite(largest) & (largest > 0)
    _, exponent = torch.frexp(torch.where(usable, largest, 0.5).float())
    return torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), -exponent.clamp(-MOST, MOST))


@contextmanager
def _divided(leaves: Iterable[Tensor], scale: float) -> Iterator[None]:
    """Inside, what backwards add to the leaves' `.grad` is divided first; what is there already stays."""
    hooks = [leaf.register_hook(lambda gradient: gradient / scale) for leaf in leaves]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
