"""A flow model, a decoder, a reward and a dataset of a few lines each, for tests of what stands around them."""

import zlib

import torch
from torch.nn import Parameter

from srpo_core.algorithm.protocols import Pullback
from srpo_core.algorithm.trajectory import by_euler

SHAPE = (2, 4, 4)  # of a latent


def numbers(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class TinyFlow:
    """velocity = tanh(mix x + sigma cond) + bias; cond is (B,)."""

    def __init__(self, dtype=torch.float64):
        self.parameters = {
            "mix": Parameter(numbers(1, 2, 2, dtype=dtype)),
            "bias": Parameter(numbers(2, 2, 1, 1, dtype=dtype) / 10),
        }
        self.frozen = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def forward(self, x, sigma, cond, frozen=False):
        parameters = self.frozen if frozen else self.parameters
        x = x.to(parameters["mix"])
        mixed = torch.einsum("dc,bchw->bdhw", parameters["mix"], x)
        return torch.tanh(mixed + (sigma.to(x) * cond.to(x)).view(-1, 1, 1, 1)) + parameters["bias"]

    def velocity(self, x, sigma, cond, *, through_x=False):
        x = x.detach().clone().requires_grad_(through_x)
        with torch.enable_grad():
            output = self.forward(x, sigma, cond)

        def pull(gradient):
            torch.autograd.backward(output, gradient.to(output))
            return x.grad

        return Pullback(output.detach(), pull)

    @torch.no_grad()
    def sampled_velocity(self, x, sigma, cond):
        return self.forward(x, sigma, cond)

    exact = True
    samples_depend_on_batch = False

    def signature(self, cond):
        return ()

    @torch.no_grad()
    def frozen_velocity(self, x, sigma, cond):
        return self.forward(x, sigma, cond, frozen=True)

    @torch.no_grad()
    def rollout(self, noise, cond, seed=0):
        x = noise.to(self.parameters["mix"])
        for sigma in (1.0, 0.5):
            x = x - 0.5 * self.forward(x, torch.full((len(x),), sigma), cond)
        return x

    def trajectory(self, noise, cond):
        sigmas = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0], dtype=torch.float64)
        return by_euler(lambda x, sigma: self.sampled_velocity(x, sigma, cond), noise, sigmas)


class TinyDecoder:
    """Latent channels mixed into colours, twice the size; some pixels end outside [0, 1]."""

    def forward(self, latent):
        colours = torch.einsum("dc,bchw->bdhw", numbers(3, 3, 2).to(latent), latent)
        return 0.5 + 0.4 * colours.repeat_interleave(2, -1).repeat_interleave(2, -2)

    def decode(self, latent):
        latent = latent.detach().requires_grad_()
        with torch.enable_grad():
            image = self.forward(latent)
        return Pullback(image.detach(), lambda gradient: torch.autograd.grad(image, latent, gradient)[0])


class TinyReward:
    """tanh of the product with a direction that the text names; remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def one(self, image, text):
        direction = numbers(zlib.crc32(text.encode()), *image.shape).to(image)
        return torch.tanh((image * direction).sum() / 20)

    def score(self, images, texts):
        return self.score_many(images, texts)[0]

    def score_many(self, images, *texts):
        self.asked.append(texts)
        return torch.stack([torch.stack([self.one(i, t) for i, t in zip(images, row)]) for row in texts])


class TinyData:
    def __init__(self, count=5):
        self.prompts = [f"picture {i}" for i in range(count)]

    def content(self):
        return self.prompts

    def prepare(self, indices):
        pass

    def cond(self, indices):
        return torch.tensor(indices, dtype=torch.float64) / 3

    def cond_shape(self, index):
        return ()
