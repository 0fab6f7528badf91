"""One trial: the toy trained by a method with a budget of forwards, and what became of it."""

import contextlib
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from find_host import ROOT
from torch import Tensor

sys.path.append(str(ROOT / "demo"))

from judged import measured, measured_scenes

from srpo_core.algorithm import baselines
from srpo_core.algorithm.direct_align import inject
from srpo_core.algorithm.guard import norm_ratio
from srpo_core.algorithm.noise_levels import Window
from srpo_core.algorithm.objective import Objective, Strength
from srpo_core.algorithm.protocols import TrainingObjective
from srpo_core.algorithm.terms import Term
from srpo_core.run.draws import Batching, draw_noise
from srpo_core.run.loop import train
from srpo_core.run.run import Run
from srpo_core.run.settings import Settings
from srpo_core.run.training import Training
from srpo_core.run.work import forward_equivalents
from srpo_core.toy.models import load_clip, load_tokenizer
from srpo_core.toy.pictures import SIZE, Scene, caption
from srpo_core.toy.train_clip import reward
from srpo_core.toy.world import toy_world

GUIDANCE = 3.5
SHAPE = (16, SIZE // 8, SIZE // 8)
STEPS = 25  # of the pictures that are judged
PICTURES = 4  # of each scene
JUDGED_SEED = 2_000_000
LEVEL = 0.85  # of noise, at which the velocity is held against the base's
PLAIN = 3.0  # a threshold that no picture of the toy reaches: by less, renders would teach nothing
METHODS: dict[str, TrainingObjective] = {
    "SRPO": Objective(),
    "Direct-Align": baselines.DirectAlign(threshold=PLAIN),
    "ReFL": baselines.ReFL(threshold=PLAIN, last_steps=4),
    "DRaFT-1": baselines.DRaFT(threshold=PLAIN, steps=1),
    "DRaFT-LV": baselines.DRaFTLV(threshold=PLAIN),
    "FlowBP Sparse": baselines.FlowBP(threshold=PLAIN, steps=3, coupling=0.0),
    "FlowBP Bridge": baselines.FlowBP(threshold=PLAIN, steps=4),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a trial is made with; the defaults are those of workflow 1, where it has one.

    method: one of METHODS. objective: fields of it that are others. window: sigma_max, sigma_min, of noise. budget:
    forward-equivalents of all updates. checks: shares of it after which pictures are judged, the last 1.
    """

    method: str = "SRPO"
    seed: int = 0
    objective: tuple[tuple[str, Any], ...] = ()
    window: tuple[float, float] = (Window.sigma_max, Window.sigma_min)
    learning_rate: float = 1.6e-4
    rank: int = 16
    batch: int = 16
    steps: int = 10
    pairs: int = 1
    shared_noise: bool = False
    ema: float = 0.0
    budget: float = 8_000.0
    checks: tuple[float, ...] = (1.0,)

    def made(self) -> TrainingObjective:
        return replace(METHODS[self.method], **dict(self.objective))


class World:
    """The toy, with an adapter that has learned nothing."""

    def __init__(self, setting: Setting, scenes: list[Scene]):
        self.scenes = scenes
        self.prompts = [caption(scene) for scene in scenes]
        self.flow, self.decoder, self.reward, self.dataset = toy_world(
            self.prompts,
            rank=setting.rank,
            alpha=float(setting.rank),
            seed=setting.seed,
            steps=setting.steps,
            guidance=GUIDANCE,
            rollout_guidance=GUIDANCE,
            checkpointing=False,
        )

    def training(self, setting: Setting) -> Training:
        return Training(
            flow=self.flow,
            decoder=self.decoder,
            terms=[Term(reward=self.reward, objective=setting.made())],
            dataset=self.dataset,
            batching=Batching(
                shape=SHAPE,
                batch=setting.batch,
                at_once=setting.batch,
                sampled_at_once=setting.batch,
                seed=setting.seed,
                pairs=setting.pairs,
                shared_noise=setting.shared_noise,
            ),
            window=Window(sigma_max=setting.window[0], sigma_min=setting.window[1]),
        )

    def judged(self, steps: int, pictures: int) -> dict[str, float]:
        """The judge's numbers, the plain reward and the velocity's norm over the base's; always of the same noise."""
        trained_steps = self.flow.steps
        self.flow.steps = STEPS
        scenes = [scene for scene in self.scenes for _ in range(pictures)]
        indices = [i for i in range(len(self.scenes)) for _ in range(pictures)]
        noise = draw_noise([JUDGED_SEED + i for i in range(len(indices))], SHAPE)
        images, ratios = [], []
        for numbers in torch.arange(len(indices)).split(32):
            cond = self.dataset.cond([indices[i] for i in numbers])
            x0 = self.flow.rollout(noise[numbers], cond)
            images.append(self.decoder.decode(x0).value.clamp(0, 1))
            ratios.append(self._velocity_ratio(x0, noise[numbers], cond))
        self.flow.steps = trained_steps
        return self._numbers(torch.cat(images), scenes) | {"velocity_norm": torch.cat(ratios).mean().item()}

    def _velocity_ratio(self, x0: Tensor, noise: Tensor, cond: Any) -> Tensor:
        sigma = torch.full((len(x0),), LEVEL)
        x = inject(x0, noise, sigma)
        return norm_ratio(self.flow.sampled_velocity(x, sigma, cond), self.flow.frozen_velocity(x, sigma, cond))

    def _numbers(self, images: Tensor, scenes: list[Scene]) -> dict[str, float]:
        plain = reward(load_clip(), load_tokenizer(), images, [caption(scene) for scene in scenes])
        return measured(images, scenes) | {"plain_reward": float(plain.mean())}


def base_numbers(pictures: int = PICTURES, scenes: int | None = None) -> dict[str, float]:
    """The model as it is."""
    return World(Setting(), measured_scenes()[:scenes]).judged(STEPS, pictures)


def run_trial(setting: Setting, pictures: int = PICTURES, scenes: int | None = None) -> dict[str, Any]:
    """The setting, how many updates its budget gave, and the numbers at each check, by its forward-equivalents."""
    world = World(setting, measured_scenes()[:scenes])
    training = world.training(setting)
    cost = forward_equivalents(training, setting.steps)
    found = []
    with tempfile.TemporaryDirectory(prefix="srpo-claims-") as folder:
        settings = Settings(learning_rate=setting.learning_rate, ema=setting.ema)
        run = Run(Path(folder), world.flow.parameters, settings)
        for share in setting.checks:
            updates = max(1, round(share * setting.budget / cost)) - run.updates
            train(run, training, updates)
            with run.averaged() if run.ema else contextlib.nullcontext():
                numbers = world.judged(STEPS, pictures)
            found.append({"updates": run.updates, "forward_equivalents": run.updates * cost} | numbers)
    return {"setting": asdict(setting), "checks": found}
