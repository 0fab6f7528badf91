"""What the core asks of the two models it trains through: a flow model and a decoder.

Implemented by `nodes/host/` for the models ComfyUI loaded, and by `headless/` for diffusers'.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.nn import Parameter


@dataclass
class Pullback:
    """A computed value and the way back from it, so that stages need not share memory.

    value: detached.
    pull(gradient): takes the gradient at `value`, of its shape, and hands it on: to the `.grad` of
        the model's trainable parameters (flow model; returns None), or to the input (decoder;
        returns the gradient there). To be called once.
    """

    value: Tensor
    pull: Callable[[Tensor], Tensor | None]


class FlowModel(Protocol):
    """A frozen flow-matching model with a trainable adapter.

    It may have `samples_depend_on_batch`, which says that a rollout depends on those it shares a batch with, as where
    the sampler draws noise of its own: it is then asked for one sample at a time.
    """

    parameters: dict[str, Parameter]

    def velocity(self, x: Tensor, sigma: Tensor, cond: Any) -> Pullback:
        """The model's estimate of `noise - x0`; x (B, C, H, W), sigma (B,) in (0, 1], cond of B prompts."""

    def sampled_velocity(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """What `velocity` gives, as the model's samplers ask for it: without gradient, or anything done for one."""

    @property
    def exact(self) -> bool:
        """Whether it computes in fp32 at least, with adapters too, and rounds no layer's input further."""

    def signature(self, cond: Any) -> Hashable:
        """Another one for all that the way back may depend on: the model, what it carries, the kind of cond."""

    def frozen_velocity(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """What `velocity` gives without the adapter, (B, C, H, W), without gradient."""

    def rollout(self, noise: Tensor, cond: Any, seed: int) -> Tensor:
        """Sample without gradient from pure noise (B, C, H, W) to the clean latent x0; seed: of stochastic samplers."""


class Decoder(Protocol):
    def decode(self, latent: Tensor) -> Pullback:
        """Latent (B, C, H, W) to image (B, 3, 8H, 8W); visible range [0, 1], not yet clamped."""


class Dataset(Protocol):
    """Prompts and what the flow model needs of each.

    One of photos also has `shape(index)`, (C, H, W), and `latents(indices)`, (B, C, H, W), the photos as x0.
    It may have `prepare(indices)`: hears, many at once, which of them will be asked soon, so that it can encode them.
    """

    prompts: list[str]

    def cond(self, indices: list[int]) -> Any:
        """The conditioning of these prompts as one batch; they have the same `cond_shape`."""

    def cond_shape(self, index: int) -> Hashable:
        """What conditionings have in common that can be one batch: for most models, the number of tokens."""
