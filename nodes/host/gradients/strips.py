"""GroupNorm, SiLU and a 3x3 convolution as one step, by strips of rows: what the blocks of a VAE's decoder are made of.

One activation of FLUX's decoder takes up to 0.5 GB at 1024x1024, and autograd keeps several of each block. This keeps
the input alone. Value and gradient are those of the three layers: the statistics of the norm are of the whole picture,
and a strip is convolved with the rows next to it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .frozen import weight_of

STRIP = 2**25  # elements of an activation that are computed at once


class NormSiluConv(torch.autograd.Function):
    """conv(silu(norm(x))) of x (B, C, H, W), with the host's GroupNorm and Conv2d; their weights are constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: nn.GroupNorm, conv: nn.Conv2d):
        ctx.norm = norm
        ctx.conv = conv
        mean, rstd = statistics(x, norm)
        ctx.save_for_backward(x, mean, rstd)
        y = x.new_empty(len(x), conv.out_channels, *x.shape[2:])
        with weight_of(norm, x) as (weight, shift), weight_of(conv, x) as (kernel, bias):
            scale = rstd * weight
            for rows in strips(x):
                y[:, :, rows] = convolved(
                    x, rows, kernel, bias, function=lambda part: F.silu(affine(part, mean, scale, shift), inplace=True)
                )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):
        x, mean, rstd = ctx.saved_tensors
        to_x = torch.empty_like(x)
        sums = mean.new_zeros(2, *mean.shape)  # over the picture, of the gradient at the norm, and of it times x
        with weight_of(ctx.norm, x) as (weight, shift), weight_of(ctx.conv, gradient) as (kernel, _):
            scale = rstd * weight
            back = kernel.transpose(0, 1).flip(2, 3)
            for rows in strips(x):
                at_silu = convolved(gradient, rows, back)
                at_norm = torch.ops.aten.silu_backward(at_silu, affine(x[:, :, rows], mean, scale, shift))
                torch.mul(at_norm, scale[..., None, None], out=to_x[:, :, rows])
                sums[0] += at_norm.sum((2, 3), dtype=sums.dtype)
                sums[1] += at_norm.mul_(x[:, :, rows]).sum((2, 3), dtype=sums.dtype)
            of_g, of_gx = over_groups(sums * weight, ctx.norm) / group_size(x, ctx.norm)
        slope = rstd**3 * (mean * of_g - of_gx)  # what reaches x through mean and deviation
        constant = -rstd * of_g
        for rows in strips(x):
            to_x[:, :, rows] += affine(x[:, :, rows], mean, slope, constant)
        return to_x, None, None


def strips(x: Tensor) -> Iterator[slice]:
    height = max(1, STRIP // x[:, :, 0].numel())
    for first in range(0, x.shape[2], height):
        yield slice(first, min(first + height, x.shape[2]))


def convolved(
    x: Tensor, rows: slice, kernel: Tensor, bias: Tensor | None = None, function: Callable = lambda part: part
) -> Tensor:
    """These rows of conv(function(x)): of it and one row more on either side, where there is one."""
    first = max(rows.start - 1, 0)
    last = min(rows.stop + 1, x.shape[2])
    y = F.conv2d(function(x[:, :, first:last]), kernel, bias, padding=1)
    return y[:, :, rows.start - first : rows.stop - first]


def affine(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(x - mean) * scale + shift in the type of x (B, C, H, W), computed in that of the mean; the others (B, C).

    By the kernel of a BatchNorm with given statistics, which passes once over x; one by one, the operations would pass
    over it six times, in fp32.
    """
    one = torch.ones_like(mean).flatten()
    shift = shift.to(mean).expand_as(mean).flatten()
    rows = x.flatten(0, 1)[None]
    return F.batch_norm(rows, mean.flatten(), one, scale.flatten(), shift, training=False, eps=0.0).view(x.shape)


def statistics(x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation of each channel's group, (B, C), in fp32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    count = group_size(x, norm)
    mean = over_groups(sum(x[:, :, rows].sum((2, 3), dtype=wide) for rows in strips(x)), norm) / count
    one = torch.ones_like(mean)
    zero = torch.zeros_like(mean)
    away = (affine(x[:, :, rows], mean, one, zero) for rows in strips(x))
    squares = sum(torch.linalg.vector_norm(part, dim=(2, 3), dtype=wide) ** 2 for part in away)
    return mean, (over_groups(squares, norm) / count + norm.eps).rsqrt()


def group_size(x: Tensor, norm: nn.GroupNorm) -> int:
    return x[0].numel() // norm.num_groups


def over_groups(values: Tensor, norm: nn.GroupNorm) -> Tensor:
    """The sum over each channel's group: of (..., C), in the same shape."""
    groups = values.unflatten(-1, (norm.num_groups, -1))
    return groups.sum(-1, keepdim=True).expand_as(groups).flatten(-2)
