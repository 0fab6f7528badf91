"""The FLUX (or other flow model) that ComfyUI loaded, as the core's FlowModel."""

import contextlib
import inspect
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from ...srpo_core.algorithm import scaling as scaled
from ...srpo_core.algorithm.direct_align import at_least_fp32
from ...srpo_core.algorithm.path import Path
from ...srpo_core.algorithm.protocols import Pullback
from ...srpo_core.algorithm.trajectory import Trajectory, by_euler
from .adapters.readable import adapter_of, without_adapter
from .fitting import (
    check_conditioning,
    check_latent,
    check_level,
    check_model,
    check_negative,
    forget_prompts,
    names_other_text_encoders,
)
from .gradients.attention import quickest
from .gradients.compiled import is_compiled, or_uncompiled
from .gradients.differentiable import USUAL_BLOCKS, BlockSettings, Differentiable, in_training
from .gradients.frozen import is_stored_plainly
from .gradients.guests import has_guests
from .gradients.injection import KEY, calls_noted
from .gradients.writing import or_on_copies
from .guiding import LEAST_SHARE, Followed, check_euler, with_guidance, with_references_of
from .one_step import AsSampled, OneDifferentiableStep, OneStep
from .patcher.carried import as_carried, latent_in, signature, structure_of
from .patcher.loading import load, own
from .sampling import Sampling
from .windows import first_state, sigmas_of


class HostFlow:
    """A MODEL of the host; its adapter, if SRPO Trainer gave it one, is what gradients reach.

    guidance, cfg: of the differentiated step; see Sampling.
    negative: the conditioning that classifier-free guidance leads away from.
    edits: it gets the references of what it is asked with, where it has none of its own.
    blocks: how the model's blocks run in it.
    working: bytes of the device that the host leaves free of weights for that step; None: as for a sampler's.
    on_step: called after each step of a sampler, and each trained step, with its number of pictures.
    path: the last rollout's.
    Raises ValueError for a model that `check_model` refuses, and for a cfg without a negative conditioning.
    """

    def __init__(
        self,
        patcher: ModelPatcher,
        sampling: Sampling | None = None,
        guidance: float | None = None,
        *,
        cfg: float = 1.0,
        negative: list | None = None,
        edits: bool = False,
        blocks: BlockSettings = USUAL_BLOCKS,
        working: int | None = None,
    ):
        for asked in (cfg, sampling.cfg if sampling else 1.0):
            check_negative(asked, negative)
        self.process = check_model(patcher)
        self.patcher = patcher
        self.sampling = sampling
        self.guidance = guidance
        self.cfg = cfg
        self.negative = negative
        self.edits = edits
        self.working = working
        self.on_step: Callable[[int], None] = lambda pictures: None
        adapter = adapter_of(patcher)
        self.parameters = adapter.parameters if adapter else {}
        self._names = list(adapter.modules) if adapter else []
        self._heard = False
        self.path = Path()
        with as_carried(patcher) as model:
            trained = [model.get_submodule(name) for name in self._names]
        self.differentiable = Differentiable(patcher.model, trained, blocks)

    def velocity(self, x: Tensor, sigma: Tensor, cond: list, *, through_x: bool = False) -> Pullback:
        self._check(x, cond)
        guests = has_guests(self.patcher, [*cond, *(self.negative or [])], KEY)
        ask_model = partial(self._step, x, sigma, cond, guests=guests, through_x=through_x)
        step = ask_model()
        value = step.velocity
        if self.parameters and not value.requires_grad:
            raise ValueError(
                f"No layer that is trained took part in what {type(self.patcher.model).__name__} said of this "
                "conditioning: choose another target in SRPO Trainer."
            )
        self.on_step(len(x))
        # What the host changes in the model for guests is gone when the sampler has ended.
        graph = [step] if value.requires_grad and not guests else []

        def pull(gradient: Tensor) -> Tensor | None:
            if not self.parameters:
                raise ValueError("This MODEL has nothing to train: connect the MODEL output of SRPO Trainer.")

            def ask() -> Tensor | None:
                if guests:
                    return ask_model(pull=lambda step: self._backward(step, gradient)).x.grad
                pulled = graph.pop() if graph else ask_model()
                self._pull(pulled, gradient)
                return pulled.x.grad

            # What compiling a backward fails with comes as it is.
            compiled = partial(or_uncompiled, self, ask, (TorchDynamoException, RuntimeError))
            at_x = or_on_copies(self.patcher.model, compiled, again=self._can_start_over)
            return None if at_x is None else at_x.to(x)

        return Pullback(value.detach().to(x), pull)

    def _pull(self, step: OneDifferentiableStep, gradient: Tensor):
        model = self.differentiable
        with self._room():
            load(self.patcher, self.patcher.memory_required(gradient.shape))
        backward = model.open(self.patcher) if model.settings.checkpointing else in_training()
        with backward, self._attention():
            self._backward(step, gradient)

    def _backward(self, step: OneDifferentiableStep, gradient: Tensor):
        with self._whole_or_not_at_all():
            scaled.backward(step.velocity, gradient, self.parameters.values(), step.x if step.through_x else None)

    def _attention(self) -> contextlib.AbstractContextManager:
        return quickest(self.patcher.load_device, self._is_compiled)

    @property
    def _is_compiled(self) -> bool:
        return self.differentiable.settings.compiled or is_compiled(self.patcher)

    @property
    def _can_start_over(self) -> bool:
        """Whether a backward that fails half-way leaves gradients as they were: copies of large ones are dear."""
        return self._is_compiled or all(parameter.grad is None for parameter in self.parameters.values())

    @contextlib.contextmanager
    def _whole_or_not_at_all(self) -> Iterator[None]:
        """Where compiling may fail half-way, or autograd refuse a model, gradients are then as they were."""
        before = {p: own(p.grad) for p in self.parameters.values()} if self._can_start_over else {}
        try:
            yield
        except Exception:
            for parameter, gradient in before.items():
                parameter.grad = gradient
            raise

    def sampled_velocity(self, x: Tensor, sigma: Tensor, cond: list) -> Tensor:
        """See FlowModel. Raises ValueError where the host samples past a layer that is trained."""
        self._check(x, cond)
        if not self._heard and not self._is_compiled:
            self._check_heard(x, sigma, cond)
            self._heard = True
        return own(or_uncompiled(self, lambda: self.ask(AsSampled(), x, sigma, cond))).to(x)

    def _check_heard(self, x: Tensor, sigma: Tensor, cond: list):
        """Whether sampling calls each adapted layer that training calls: a fused kernel reads its weight instead."""
        with as_carried(self.patcher) as model:
            layers = {name: model.get_submodule(name) for name in self._names}
        called = []
        for sampler in (OneStep(), AsSampled()):
            with calls_noted(self.patcher, layers) as names:
                self.ask(sampler, x, sigma, cond)
            called.append(names)
        trained, sampled = called
        if lost := sorted(trained - sampled):
            raise ValueError(
                f"This ComfyUI samples past {len(lost)} of the {len(layers)} layers that are trained, such as "
                f"{lost[0]}, so that neither rollouts nor previews would show what they learn. Choose another target "
                "in SRPO Trainer, or load the model in bf16 or fp8."
            )

    @property
    def exact(self) -> bool:
        model = self.patcher.model
        types = {model.get_dtype_inference(), *(parameter.dtype for parameter in self.parameters.values())}
        return types == {torch.float32} and all(map(is_stored_plainly, model.modules()))

    def signature(self, cond: list) -> Hashable:
        conds = structure_of(cond), structure_of(self.negative or []), self.cfg
        return signature(self.patcher, ignore=KEY), conds, self.differentiable.settings

    def frozen_velocity(self, x: Tensor, sigma: Tensor, cond: list) -> Tensor:
        return or_uncompiled(
            self, lambda: self.ask(OneStep(), x, sigma, cond, patcher=without_adapter(self.patcher))
        ).to(x)

    def rollout(self, noise: Tensor, cond: list, seed: int) -> Tensor:
        self._check(noise, cond)
        sampling = self.sampling
        sigmas = sigmas_of(self.patcher, sampling)
        sampler = comfy.samplers.sampler_object(sampling.sampler_name)

        def told(*_: Any):
            self.on_step(len(noise))

        @torch.inference_mode()  # see loading.py
        def sample() -> Tensor:
            forget_prompts(self.patcher)
            latent = torch.zeros_like(noise)
            guider = self._guided(Followed(self.patcher, self.process), cond, sampling.guidance, sampling.cfg)
            if self.differentiable.settings.compiled:  # if all is loaded, which the sampler would do later
                load(self.patcher, self.patcher.memory_required(noise.shape))
            plain = self.differentiable.plain(self.patcher)
            with plain, self._attention(), names_other_text_encoders(self.patcher, cond):
                samples = guider.sample(noise, latent, sampler, sigmas, callback=told, disable_pbar=True, seed=seed)
            self.path = guider.path
            return samples

        samples = own(or_uncompiled(self, sample))
        samples = at_least_fp32(samples).to(comfy.model_management.intermediate_device())
        return latent_in(self.patcher, samples)

    def trajectory(self, noise: Tensor, cond: list) -> Trajectory:
        """See FlowModel. Raises ValueError where rollouts have another sampler or guidance than the trained step."""
        check_euler(self.sampling, self.guidance, self.cfg)

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            self.on_step(len(x))
            return self.sampled_velocity(x, sigma, cond)

        sigmas = sigmas_of(self.patcher, self.sampling).cpu()
        start = first_state(self.patcher, noise, sigmas) / self.process.total(sigmas[:1])
        return by_euler(velocity, start, self.process.share(sigmas.double()))

    @property
    def samples_depend_on_batch(self) -> bool:
        """Whether the sampler draws noise while it samples, or chooses its steps by the whole batch."""
        function = getattr(comfy.samplers.sampler_object(self.sampling.sampler_name), "sampler_function", None)
        draws = function is not None and "noise_sampler" in inspect.signature(function).parameters
        return draws or self.sampling.sampler_name == "dpm_adaptive"

    def _step(self, x: Tensor, sigma: Tensor, cond: list, **options: Any) -> OneDifferentiableStep:
        """options: see OneDifferentiableStep."""
        step = OneDifferentiableStep(self.differentiable, self.parameters.values(), **options)
        with self._room():
            or_uncompiled(self, lambda: self.ask(step, x, sigma, cond))
        return step

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        """Inside, the host takes `working` for what is needed beside weights: its own estimate is a sampler's."""
        model = self.patcher.model
        if self.working is not None:
            model.memory_required = lambda *_, **__: self.working
        try:
            yield
        finally:
            model.__dict__.pop("memory_required", None)

    def ask(
        self, sampler: OneStep, x: Tensor, sigma: Tensor, cond: list, *, patcher: ModelPatcher | None = None
    ) -> Tensor:
        """The velocity (B, C, ...) by this sampler, of the MODEL or of another `patcher` of its model.

        The core speaks of flows: of x at a share of noise.
        """
        patcher = patcher or self.patcher
        check_level(patcher, self.process, sigma)
        forget_prompts(patcher)
        sampler.share = sigma.float().clamp(min=LEAST_SHARE)
        sampler.process = self.process
        ends = torch.stack([sampler.sigma.max(), sampler.sigma.new_zeros(())])
        with torch.inference_mode(), self._attention(), names_other_text_encoders(patcher, cond):  # see loading.py
            guider = self._guided(comfy.samplers.CFGGuider(patcher), cond, self.guidance, self.cfg)
            guider.sample(x, torch.zeros_like(x), sampler, ends)
        return sampler.velocity

    def _guided(
        self, guider: comfy.samplers.CFGGuider, positive: list, guidance: float | None, cfg: float
    ) -> comfy.samplers.CFGGuider:
        """The same guider, with what it guides by."""
        negative = with_references_of(positive, self.negative) if self.edits and cfg != 1 else self.negative
        conds = {"positive": positive} | ({} if cfg == 1 else {"negative": negative})
        guider.inner_set_conds({name: with_guidance(cond, guidance) for name, cond in conds.items()})
        guider.set_cfg(cfg)
        return guider

    def _check(self, x: Tensor, cond: list):
        check_latent(self.patcher, x)
        for each in (cond, *filter(None, [self.negative])):
            check_conditioning(self.patcher, each)
