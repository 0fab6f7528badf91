"""The two places the demo can run in: a real ComfyUI, or diffusers. Both train by workflow 1."""

import contextlib
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import import_core  # noqa: F401 (by which srpo_core is found)
import torch
from host_server import HostServer
from PIL import Image
from workflow import workflow_1

from srpo_core.algorithm.noise_levels import Window
from srpo_core.algorithm.objective import Objective, Strength, parse_words
from srpo_core.algorithm.terms import Term
from srpo_core.headless.prompts import ClipPrompts
from srpo_core.pictures import to_tensor
from srpo_core.report.card import draw_card
from srpo_core.run.draws import Batching, draw_noise
from srpo_core.run.loop import train
from srpo_core.run.run import Run
from srpo_core.run.settings import Settings
from srpo_core.run.training import Training
from srpo_core.toy.models import load_clip, load_tokenizer
from srpo_core.toy.pictures import Scene, caption
from srpo_core.toy.world import toy_world

STEPS = 25  # of the pictures that are measured
GUIDANCE = 3.5
SIZE = 64
FIRST_SEED = 10_000  # of the pictures that are measured
AT_ONCE = 48
PREVIEWS = 4  # as many as SRPO Train shows where nothing else is said


def seeded(seed: int) -> tuple[dict, dict]:
    """The API prompt of workflow 1 with this seed, and the inputs in it by node type."""
    prompt, inputs = workflow_1()
    inputs["SRPO_Trainer"]["adapter.seed"] = seed
    inputs["SRPO_Train"]["seed"] = seed
    return prompt, inputs


class HostWorld(HostServer):
    """A ComfyUI of its own, started for the demo: workflow 1 as it ships, pictures by stock nodes alone.

    on_progress: told which share of a training, or of the pictures, is done.
    """

    def __init__(self, install: Path, base: Path, seed: int):
        super().__init__(install, base, ("--disable-api-nodes",))  # which ask services: it starts sooner
        self.prompt, self.inputs = seeded(seed)
        self.run_name = self.inputs["SRPO_Trainer"]["run_name"]
        self.on_progress: Callable[[float], Any] = lambda share: None
        self.shares: dict[str, float] = {}  # what is done of each node with a bar
        self.bars = 1  # how many nodes have one

    @property
    def updates(self) -> int:
        return self.inputs["SRPO_Train"]["updates"]

    def _hear(self, deadline: float):
        kind, data = super()._hear(deadline)
        if kind == "progress":
            before = self.shares.get(data["node"], 0.0)  # a node may begin another bar beside the one of its work
            self.shares[data["node"]] = max(before, data["value"] / data["max"])
            self.on_progress(sum(self.shares.values()) / self.bars)
        return kind, data

    def _run(self, prompt: dict, bars: int):
        self.shares.clear()
        self.bars = bars
        self.run(prompt, seconds=900)

    @property
    def name(self) -> str:
        return f"ComfyUI {self.get('/system_stats')['system']['comfyui_version']}"

    def train(self, out: Path) -> int:
        """Train; leave the LoRA and training.png in `out`; returns the number of updates."""
        self._run(self.prompt, bars=1)
        run = self.base / "output/srpo" / self.run_name
        shutil.copy(self._lora(), out)
        updates = json.loads((run / "run.json").read_text())["updates"]
        shutil.copy(run / "samples" / f"{updates:06d}.png", out / "training.png")
        return updates

    def pictures(self, scenes: list[Scene], count: int, trained: bool = False) -> torch.Tensor:
        """`count` pictures of each scene, (len(scenes) * count, 3, H, W) in [0, 1]; always from the same noise."""
        folder = self.run_name if trained else "before"
        lora = f"srpo/{self.run_name}/{self._lora().name}" if trained else None
        self._run(sampling(scenes, count, folder, lora), bars=len(scenes))
        files = sorted((self.base / "output" / folder).iterdir())
        return torch.cat([to_tensor(Image.open(file).convert("RGB")) for file in files]).movedim(-1, 1)

    def _lora(self) -> Path:
        return max((self.base / "output/loras/srpo" / self.run_name).iterdir())


def sampling(scenes: list[Scene], count: int, folder: str, lora: str | None) -> dict:
    """The API prompt that samples and saves `count` pictures of each scene with the core's own nodes."""

    def node(kind: str, **inputs):
        return {"class_type": kind, "inputs": inputs}

    empty = node("EmptySD3LatentImage", width=SIZE, height=SIZE, batch_size=count)
    prompt = {"toy": node("SRPO_ToyModels"), "empty": empty}
    model = ["toy", 0]
    if lora:
        prompt["lora"] = node("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=1.0)
        model = ["lora", 0]
    fixed = {"steps": STEPS, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    for i, scene in enumerate(scenes):
        ends = {"model": model, "positive": [f"guidance {i}", 0], "negative": [f"guidance {i}", 0]}
        prompt |= {
            f"text {i}": node("CLIPTextEncode", clip=["toy", 1], text=caption(scene)),
            f"guidance {i}": node("FluxGuidance", conditioning=[f"text {i}", 0], guidance=GUIDANCE),
            f"sample {i}": node("KSampler", **ends, **fixed, latent_image=["empty", 0], seed=FIRST_SEED + i),
            f"decode {i}": node("VAEDecode", samples=[f"sample {i}", 0], vae=["toy", 2]),
            f"save {i}": node("SaveImage", images=[f"decode {i}", 0], filename_prefix=f"{folder}/{i:04d}"),
        }
    return prompt


class DiffusersWorld:
    """The same training without ComfyUI, on the second implementation. on_progress: as of HostWorld."""

    def __init__(self, seed: int):
        self.name = f"diffusers {version('diffusers')}, without ComfyUI"
        self.on_progress: Callable[[float], Any] = lambda share: None
        _, self.inputs = seeded(seed)
        trainer = self.inputs["SRPO_Trainer"]
        options = self.inputs["SRPO_Train"]
        rollouts = self.inputs["SRPO_Rollouts"]
        self.shape = (16, SIZE // 8, SIZE // 8)
        self.prompts = [line.strip() for line in self.inputs["SRPO_Prompts"]["text"].splitlines() if line.strip()]
        self.flow, self.decoder, self.reward, self.dataset = toy_world(
            self.prompts,
            rank=trainer["adapter.rank"],
            alpha=trainer["adapter.alpha"],
            seed=seed,
            steps=rollouts["steps"],
            guidance=options["guidance"],
            rollout_guidance=rollouts["guidance"],
            checkpointing=False,
        )

    @property
    def updates(self) -> int:
        return self.inputs["SRPO_Train"]["updates"]

    def train(self, out: Path) -> int:
        trainer = self.inputs["SRPO_Trainer"]
        options = self.inputs["SRPO_Train"]
        rollouts = self.inputs["SRPO_Rollouts"]
        run = Run(out / "run", self.flow.parameters, Settings(learning_rate=trainer["learning_rate"]))
        batching = Batching(
            shape=self.shape,
            batch=options["batch"],
            at_once=options["memory.at_once"],
            seed=options["seed"],
            pairs=rollouts["pairs"],
        )
        shown = [self.prompts[i % len(self.prompts)] for i in range(PREVIEWS)]
        self.flow.steps = STEPS
        before = self._sample(shown, trained=False)
        self.flow.steps = rollouts["steps"]
        training = Training(
            flow=self.flow,
            decoder=self.decoder,
            terms=[Term(reward=self.reward, objective=self._objective())],
            dataset=self.dataset,
            batching=batching,
            window=Window(),
        )
        train(run, training, self.updates, lambda metrics: self.on_progress(metrics["update"] / self.updates))
        self.flow.steps = STEPS
        sheets = [images.movedim(1, -1) for images in (before, self._sample(shown, trained=True))]
        draw_card(*sheets, run.history, f"{trainer['run_name']}, update {run.updates}").save(out / "training.png")
        self.flow.save_lora(out / f"{trainer['run_name']}_{run.updates:06d}.safetensors")
        return run.updates

    def pictures(self, scenes: list[Scene], count: int, trained: bool = False) -> torch.Tensor:
        """The same as of HostWorld."""
        self.flow.steps = STEPS
        return self._sample([caption(scene) for scene in scenes for _ in range(count)], trained, self.on_progress)

    def _sample(
        self, captions: list[str], trained: bool, on_progress: Callable[[float], Any] = lambda share: None
    ) -> torch.Tensor:
        """(N, 3, H, W) in [0, 1], with the adapter or without."""
        dataset = ClipPrompts(captions, load_clip(), load_tokenizer())
        images = []
        with contextlib.nullcontext() if trained else self.flow.without_adapter():
            for numbers in torch.arange(len(captions)).split(AT_ONCE):
                noise = draw_noise([FIRST_SEED + i for i in numbers.tolist()], self.shape)
                latent = self.flow.rollout(noise, dataset.cond(numbers.tolist()), FIRST_SEED)
                images.append(self.decoder.decode(latent).value.clamp(0, 1))
                on_progress((numbers[-1].item() + 1) / len(captions))
        return torch.cat(images)

    def _objective(self) -> Objective:
        words = self.inputs["SRPO_Objective"]
        return Objective(
            positive=parse_words(words["positive"]),
            negative=parse_words(words["negative"]),
            denoise_strength=Strength(low_noise=words["reward_low_noise"], high_noise=words["reward_high_noise"]),
            inversion_strength=Strength(low_noise=words["penalty_low_noise"], high_noise=words["penalty_high_noise"]),
            threshold=words["threshold"],
            branches=words["branches"],
        )
