"""GroupNorm, SiLU and a 3x3 convolution as one step, by strips of rows: what the blocks of a VAE's decoder are made of.

One activation of FLUX's decoder takes up to 0.5 GB at 1024x1024, and autograd keeps several of each block. This keeps
the input alone. Value and gradient are those of the three layers: the statistics of the norm are of the whole picture,
and a strip is convolved with the rows next to it.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .frozen import weight_of

STRIP = 2**24  # elements of an activation that are computed at once


class NormSiluConv(torch.autograd.Function):
    """conv(silu(norm(x))) of x (B, C, H, W), with the host's GroupNorm and Conv2d; their weights are constant."""

    @staticmethod
    def forward(ctx, x, norm, conv):
        ctx.norm, ctx.conv = norm, conv
        mean, rstd = statistics(x, norm)
        ctx.save_for_backward(x, mean, rstd)
        y = x.new_empty(len(x), conv.out_channels, *x.shape[2:])
        with weight_of(norm, x) as affine, weight_of(conv, x) as (kernel, bias):
            scale, shift = scale_and_shift(mean, rstd, *affine)
            for rows in strips(x):
                seen = with_neighbours(x, rows, lambda part: F.silu((part * scale + shift).to(x)))
                y[:, :, rows] = F.conv2d(seen, kernel, bias, padding=(0, 1))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, mean, rstd = ctx.saved_tensors
        to_x = torch.empty_like(x)
        sums = mean.new_zeros(2, *x.shape[:2])  # over the picture, of the gradient at the norm, and of it times x
        with weight_of(ctx.norm, x) as affine, weight_of(ctx.conv, gradient) as (kernel, _):
            scale, shift = scale_and_shift(mean, rstd, *affine)
            back = kernel.transpose(0, 1).flip(2, 3)
            for rows in strips(x):
                part = x[:, :, rows]
                at_silu = F.conv2d(with_neighbours(gradient, rows), back, padding=(0, 1))
                at_norm = torch.ops.aten.silu_backward(at_silu, (part * scale + shift).to(x))
                sums += torch.stack([at_norm.sum((2, 3), dtype=sums.dtype), (at_norm.to(sums) * part).sum((2, 3))])
                to_x[:, :, rows] = at_norm
            slope, constant = through_statistics(x, mean, rstd, sums, affine[0])
        for rows in strips(x):
            to_x[:, :, rows] = to_x[:, :, rows] * scale + x[:, :, rows] * slope + constant
        return to_x, None, None


def strips(x: Tensor) -> Iterator[slice]:
    height = max(1, STRIP // x[:, :, 0].numel())
    for first in range(0, x.shape[2], height):
        yield slice(first, min(first + height, x.shape[2]))


def with_neighbours(x: Tensor, rows: slice, function: Callable[[Tensor], Tensor] = lambda part: part) -> Tensor:
    """The function of these rows and of one more on either side; zeros beyond the picture."""
    first, last = max(rows.start - 1, 0), min(rows.stop + 1, x.shape[2])
    return F.pad(function(x[:, :, first:last]), (0, 0, first - (rows.start - 1), rows.stop + 1 - last))


def statistics(x: Tensor, norm: torch.nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation of each group, (B, groups), in fp32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    parts = [x[:, :, rows].unflatten(1, (norm.num_groups, -1)) for rows in strips(x)]
    count = x[0].numel() // norm.num_groups
    mean = sum(part.sum((2, 3, 4), dtype=wide) for part in parts) / count
    squares = (((part - mean[..., None, None, None]) ** 2).sum((2, 3, 4)) for part in parts)
    return mean, (sum(squares) / count + norm.eps).rsqrt()


def scale_and_shift(mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Both (B, C, 1, 1): norm(x) is x * scale + shift."""
    scale = rstd[..., None] * weight.view(mean.shape[1], -1)
    shift = bias.view(mean.shape[1], -1) - mean[..., None] * scale
    return scale.flatten(1)[..., None, None], shift.flatten(1)[..., None, None]


def through_statistics(x: Tensor, mean: Tensor, rstd: Tensor, sums: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both (B, C, 1, 1): the gradient that reaches x through mean and deviation is x * slope + constant.

    sums: (2, B, C), of the gradient g at the norm's output, and of g * x.
    """
    groups = mean.shape[1]
    count = x[0].numel() // groups
    of_g, of_gx = (sums * weight).unflatten(2, (groups, -1)).sum(3)
    slope = rstd**3 * (mean * of_g - of_gx) / count
    constant = -rstd * of_g / count - mean * slope
    each = x.shape[1] // groups
    return tuple(value.repeat_interleave(each, 1)[..., None, None] for value in (slope, constant))
