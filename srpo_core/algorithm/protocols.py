"""What the core asks of the two models it trains through, a flow model and a decoder, of a dataset and an objective.

Flow models, decoders and datasets of prompts are in `nodes/host/` for what ComfyUI loaded, and in `headless/` for
diffusers' models; a dataset of photos is in `data/photo_latents.py`, the objective in `objective.py`.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.nn import Parameter

from .noise_levels import Branch
from .trajectory import Trajectory

Shape = tuple[int, ...]  # of a latent: (C, H, W), or (C, 1, H, W) where a picture is one frame of a video


@dataclass
class Pullback:
    """A computed value and the way back from it, so that stages need not share memory.

    value: detached.
    pull(gradient): takes the gradient at `value`, of its shape, and hands it on: to the `.grad` of
        the model's trainable parameters (flow model), or to the input (decoder, and a flow model that
        was asked for it; returns the gradient there, else None). To be called once.
    """

    value: Tensor
    pull: Callable[[Tensor], Any]


class FlowModel(Protocol):
    """A frozen flow-matching model with a trainable adapter."""

    parameters: dict[str, Parameter]

    @property
    def samples_depend_on_batch(self) -> bool:
        """Whether a rollout depends on those it shares a batch with, as where the sampler draws noise of its own.

        Then it is asked for one sample at a time.
        """

    def velocity(self, x: Tensor, sigma: Tensor, cond: Any, *, through_x: bool = False) -> Pullback:
        """The model's estimate of `noise - x0`; x (B, C, H, W), sigma (B,) in (0, 1], cond of B prompts.

        through_x: its `pull` also returns the gradient at x.
        """

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
        """Sample without gradient from pure noise (B, C, H, W) to the clean latent x0.

        seed: what a stochastic sampler draws its noise from.
        """

    def trajectory(self, noise: Tensor, cond: Any) -> Trajectory:
        """The way from pure noise (B, C, H, W) by Euler steps of `sampled_velocity`, as many as a rollout has.

        Raises ValueError where rollouts are set to be sampled otherwise.
        """


class Decoder(Protocol):
    def decode(self, latent: Tensor) -> Pullback:
        """Latent (B, C, H, W) to image (B, 3, 8H, 8W); visible range [0, 1], not yet clamped."""


class Dataset(Protocol):
    """Prompts and what the flow model needs of each."""

    @property
    def prompts(self) -> list[str]: ...

    def content(self) -> Sequence[Any]:
        """What makes it another dataset, for `digest`; nothing that is encoded."""

    def prepare(self, indices: list[int]) -> Any:
        """Hears, many at once, which of them will be asked for soon, so that it can encode them."""

    def cond(self, indices: list[int]) -> Any:
        """The conditioning of these prompts as one batch; they have the same `cond_shape`."""

    def cond_shape(self, index: int) -> Hashable:
        """What conditionings have in common that can be one batch: for most models, the number of tokens."""


@runtime_checkable
class PhotoDataset(Dataset, Protocol):
    """A dataset of photos, whose prompts are their captions."""

    def shape(self, index: int) -> Shape:
        """(C, H, W) of its latent."""

    def latents(self, indices: list[int]) -> Tensor:
        """(B, C, H, W): photos of one shape, as x0."""


class TrainingObjective(Protocol):
    """What a reward is asked of what, and how its answers become a loss.

    route: where the gradient enters the model, a `routes.Route`. forwards: how many trained forwards a picture
    has by it, for each pair.
    """

    @property
    def route(self) -> Any: ...

    @property
    def forwards(self) -> int: ...

    def trains(self, branch: Branch) -> bool:
        """Whether this branch is trained; the other one is not even computed."""

    def texts(self, prompts: list[str], update: int, seeds: Sequence[int] = ()) -> tuple[list[str], list[str]]:
        """What the reward reads in update `update` (the first is 1): positive and negative texts, one for each prompt.

        seeds: those of the samples, for what is drawn.
        """

    def loss(self, branch: Branch, positive: Tensor, negative: Tensor) -> Tensor:
        """(B,), from the rewards with the positive and with the negative texts, (B,) each; differentiable in both."""
