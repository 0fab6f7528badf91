"""What a family of models is checked for, in fp64 and fp32, against the host's own samples alone."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import families
import torch
import vaes
from families import Family
from in_process import new_adapter, new_flow, pack_module
from tiny_world import TinyReward, numbers
from torch import Tensor

from srpo_core.algorithm.objective import Objective
from srpo_core.algorithm.protocols import Pullback
from srpo_core.algorithm.terms import Term
from srpo_core.run.draws import Batching
from srpo_core.run.loop import train
from srpo_core.run.run import Run
from srpo_core.run.settings import Settings
from srpo_core.run.training import Training

SHARE = 0.75  # of noise, at which models are asked: such a number is the same in fp32
RANK = 2
DIRECTIONS = 3  # along which slopes are taken
STEP = 2e-4  # of the points of a slope, in lengths of the trained parameters


class Checked:
    """A family's tiny models; each check gives a number, small where all is well. folder: for the run of an update."""

    def __init__(self, family: Family, folder: Path):
        self.family = family
        self.folder = folder
        self.cond = families.prompt(family)
        self.x = families.latent(family)

    def gradient(self) -> float:
        """How far the pulled gradient is off, relatively: along random directions, from differences in fp64."""
        with in_double():
            model, adapter = adapted(families.patcher(self.family, dtype=torch.float64))
            weights = torch.cos(9 * torch.arange(self.x.numel()).double()).view(self.x.shape)
            x = self.x.double()
            flow = new_flow(model)
            flow.velocity(x, torch.tensor([SHARE]).double(), self.cond).pull(weights)
            found = []
            for seed in range(DIRECTIONS):
                along = direction(adapter, seed)
                ours = sum((p.grad * along[n]).sum() for n, p in adapter.parameters.items() if p.grad is not None)
                asked = lambda: (velocity(model, x, self.cond) * weights).sum().item()  # noqa: E731
                found.append((float(ours), slope(adapter, along, asked)))
        ours, theirs = torch.tensor(found, dtype=torch.float64).T
        return ((ours - theirs).norm() / theirs.norm()).item()

    def value(self) -> float:
        """How far what is trained on is off what the host samples, relatively, in fp32."""
        model, _ = adapted(families.patcher(self.family))
        value = new_flow(model).velocity(self.x, torch.tensor([SHARE]), self.cond).value
        return relative(value, velocity(model, self.x, self.cond))

    def round_trip(self) -> float:
        """How far the model with the LoRA's file is off the one with the adapter, relatively, in fp32.

        Raises AssertionError where the host's loader leaves tensors of the file out.
        """
        import comfy.sd

        base = families.patcher(self.family)
        model, adapter = adapted(base)
        with warnings_of_the_host() as heard, torch.inference_mode():
            loaded, _ = comfy.sd.load_lora_for_models(base, None, adapter.state_dict(), 1.0, 0)
        assert not heard, heard[0]
        ours = velocity(model, self.x, self.cond)
        assert relative(ours, velocity(base, self.x, self.cond)) > 1e-3, "the adapter changes nothing"
        return relative(velocity(loaded, self.x, self.cond), ours)

    def update(self) -> float:
        """How much one update, as SRPO Train makes it, changes the plain model: 0, to the bit. The adapter learns."""
        base = families.patcher(self.family)
        before = velocity(base, self.x, self.cond)
        adapter = new_adapter(base, rank=RANK)
        initial = adapter.state_dict()
        flow_model = pack_module("nodes.host.flow_model")
        flow = flow_model.HostFlow(adapter.attach(base), flow_model.Sampling(steps=2))
        run = Run(self.folder / "run", adapter.parameters, Settings(learning_rate=1e-2))
        train(run, self._training(flow), 1)
        assert run.updates == 1 and not run.skipped, "the update was skipped"
        assert any(not torch.equal(initial[name], now) for name, now in adapter.state_dict().items()), "nothing learnt"
        return (velocity(base, self.x, self.cond) - before).abs().max().item()

    def _training(self, flow) -> Training:
        return Training(
            flow=flow,
            decoder=_Colours(),
            terms=[Term(reward=TinyReward(), objective=Objective(threshold=100.0))],
            dataset=_Prompts(self.family),
            batching=Batching(shape=self.family.latent),
        )


def decoded(family: Family, name: str) -> tuple[float, float]:
    """How far a decoder's pictures, and the gradient pulled through it, are off the host's VAE, relatively, in fp64.

    name: of the VAE, in `vaes`. Of pictures it is how far the visible ones are off the host's own.
    """
    with in_double():
        vae = vaes.vae(name, torch.float64)
        latent_format = families.patcher(family).get_model_object("latent_format")
        x = families.latent(family).double()
        decoded = pack_module("nodes.host.decoder").HostDecoder(vae, families.patcher(family)).decode(x)
        weights = torch.cos(9 * torch.arange(decoded.value.numel()).double()).view(decoded.value.shape)
        along = numbers(5, *x.shape)
        low, high = vae.process_output(torch.tensor([0.25, 0.75], dtype=torch.float64)).tolist()
        contrast = 2 * (high - low)

        @torch.inference_mode()
        def ask(steps: int) -> float:
            pictures = vae.first_stage_model.decode(latent_format.process_out(x + STEP * steps * along))
            pictures = pictures[:, :, 0] if pictures.ndim == 5 else pictures
            return (contrast * pictures * weights).sum().item()

        with torch.inference_mode():
            pictures = vae.decode(latent_format.process_out(x)).double()
        pictures = (pictures[:, 0] if pictures.ndim == 5 else pictures).movedim(-1, 1)
        theirs = central(ask, STEP)
        ours = (decoded.pull(weights) * along).sum().item()
    return relative(decoded.value.clamp(0, 1), pictures.clamp(0, 1)), abs(ours - theirs) / abs(theirs)


CHECKS = {
    "gradient": Checked.gradient,
    "value": Checked.value,
    "round trip": Checked.round_trip,
    "update": Checked.update,
}


class _Colours:
    """A decoder for latents of any kind: their channels mixed into three, of the first frame."""

    def decode(self, latent: Tensor) -> Pullback:
        leaf = latent.detach().requires_grad_()
        with torch.enable_grad():
            picture = leaf[:, :, 0] if leaf.ndim == 5 else leaf
            mixed = torch.einsum("dc,bchw->bdhw", numbers(3, 3, picture.shape[1]).to(picture), picture)
            image = 0.5 + 0.1 * mixed
        return Pullback(image.detach(), lambda gradient: torch.autograd.grad(image, leaf, gradient)[0])


class _Prompts:
    """Two prompts of a family."""

    prompts = ("a red circle", "a blue square")

    def __init__(self, family: Family):
        self.family = family

    def content(self):
        return self.prompts

    def prepare(self, indices):
        pass

    def cond(self, indices):
        (index,) = indices
        return families.prompt(self.family, seed=index)

    def cond_shape(self, index):
        return ()


def adapted(model):
    """The MODEL with an adapter on all blocks, and the adapter; its weights are random, in the model's own type."""
    adapter = new_adapter(model, rank=RANK, alpha=float(RANK))
    along = direction(adapter, 99)
    for name, parameter in adapter.parameters.items():
        own = parameter.detach() + 0.1 * along[name]
        parameter.data = own.to(model.model.get_dtype())
    return adapter.attach(model), adapter


def direction(adapter, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in adapter.parameters.items()}


def slope(adapter, along: dict[str, Tensor], ask: Callable[[], float]) -> float:
    """Of what is asked, along a direction of the trained parameters: by central differences of five points."""
    before = {name: parameter.detach().clone() for name, parameter in adapter.parameters.items()}
    length = (
        sum(p.square().sum() for p in before.values()).sqrt() / sum(a.square().sum() for a in along.values()).sqrt()
    )
    step = STEP * length.item()

    def at(steps: int) -> float:
        for name, parameter in adapter.parameters.items():
            parameter.data.copy_(before[name] + steps * step * along[name])
        return ask()

    found = central(at, step)
    at(0)
    return found


def central(at: Callable[[int], float], step: float) -> float:
    """The slope in the middle of five points, these steps apart."""
    return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)


def velocity(model, x: Tensor, cond: list) -> Tensor:
    """(x - denoised) / SHARE of the flow's state x, in double where the model is: as the host samples, none of ours."""
    import comfy.samplers

    sigma, total = host_level(model.get_model_object("model_sampling"))
    found = []

    class Once(comfy.samplers.Sampler):
        def sample(self, ask, sigmas, extra_args, callback, noise, *_, **__):
            state = noise.to(model.model.get_dtype())
            level = torch.full((len(noise),), sigma, dtype=state.dtype)
            found.append((state - ask(state * total, level, **extra_args)) / SHARE)
            return noise

    if hasattr(model.model.diffusion_model, "clear_kv_cache"):  # of what the prompt was with other weights
        model.model.diffusion_model.clear_kv_cache()
    with torch.inference_mode():
        guider = comfy.samplers.CFGGuider(model)
        guider.inner_set_conds({"positive": cond})
        guider.sample(x, torch.zeros_like(x), Once(), torch.tensor([sigma, 0.0]))
    return found[0].double().clone()


def host_level(sampling) -> tuple[float, float]:
    """The host's sigma where SHARE of a state is noise, and the sum of both parts there: by bisection."""

    def parts(sigma: float) -> tuple[float, float]:
        level = torch.tensor([sigma], dtype=torch.float64)
        zero = torch.zeros(1, 1, dtype=torch.float64)
        clean = sampling.noise_scaling(level, zero, zero + 1)
        return clean.item(), sampling.noise_scaling(level, zero + 1, zero).item()

    low = 0.0
    high = float(sampling.sigma_max)
    for _ in range(60):
        middle = (low + high) / 2
        clean, noise = parts(middle)
        low, high = (middle, high) if noise < SHARE * (clean + noise) else (low, middle)
    return low, sum(parts(low))


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@contextlib.contextmanager
def in_double() -> Iterator[None]:
    """What is fp64 stays so inside.

    The host brings much to fp32, to be more exact than its weights are. And its kernels, whose plain form takes any
    type, refuse fp64; whether they have a backward is the same in each type.
    """
    from comfy_kitchen.constraints import ParamConstraint

    to = torch.Tensor.to
    norm = torch.linalg.vector_norm
    allows = ParamConstraint.check_dtype

    def kept(x: Tensor, *args, **more) -> Tensor:
        if x.dtype != torch.float64:
            return to(x, *args, **more)
        args = [torch.float64 if arg is torch.float32 else arg for arg in args]
        more = {name: torch.float64 if arg is torch.float32 else arg for name, arg in more.items()}
        return to(x, *args, **more)

    torch.Tensor.to = kept
    torch.Tensor.float = lambda x, *args, **more: kept(x, torch.float32)
    torch.linalg.vector_norm = lambda x, *args, dtype=None, **more: norm(kept(x, dtype or x.dtype), *args, **more)
    ParamConstraint.check_dtype = lambda self, x: getattr(x, "dtype", x) == torch.float64 or allows(self, x)
    try:
        yield
    finally:
        del torch.Tensor.to
        del torch.Tensor.float
        torch.linalg.vector_norm = norm
        ParamConstraint.check_dtype = allows


@contextlib.contextmanager
def warnings_of_the_host() -> Iterator[list[str]]:
    """What is logged inside as a warning, or worse."""
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        yield heard
    finally:
        logging.getLogger().removeHandler(handler)
