"""A decoder's gradient is held against its pictures."""

import pytest
import torch

from srpo_core.algorithm.decoder_check import check_decoder, slopes
from srpo_core.algorithm.protocols import Pullback

SHAPE = (1, 4, 3, 5)


class Decoder:
    """sin of the latent mixed into three colours; factor: of the way back, which is right at 1."""

    def __init__(self, factor: float = 1.0, dtype: torch.dtype = torch.float32, scale: float = 1.0):
        self.factor = factor
        self.dtype = dtype
        self.scale = scale
        self.mixer = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))

    def decode(self, latent):
        leaf = latent.detach().requires_grad_()
        with torch.enable_grad():
            image = self.scale * torch.einsum("dc,bchw->bdhw", self.mixer, torch.sin(leaf))
        value = image.detach().to(self.dtype).float()
        return Pullback(value, lambda gradient: self.factor * torch.autograd.grad(image, leaf, gradient)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_right_gradient_passes(dtype):
    check_decoder(Decoder(dtype=dtype), SHAPE)


@pytest.mark.parametrize("factor", [0.0, 0.7, 1.3, -1.0])
def test_a_wrong_one_is_told_with_its_ratio(factor):
    with pytest.raises(RuntimeError, match=f"{factor:.2f} times that"):
        check_decoder(Decoder(factor), SHAPE)


def test_the_slopes_of_a_linear_decoder_are_exact():
    decoder = Decoder()
    decoder.decode = lambda latent: Pullback(2 * latent, lambda gradient: 2 * gradient)
    along = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))[1]
    sampled, pulled = slopes(decoder, SHAPE)
    assert sampled == pytest.approx(2 * along.norm().item(), rel=1e-5)
    assert pulled == pytest.approx(sampled, rel=1e-5)


@pytest.mark.parametrize("scale", [0.0, float("nan")])
def test_of_pictures_that_tell_nothing_it_says_nothing(scale):
    check_decoder(Decoder(scale=scale), SHAPE)
