"""Hostile inputs for `bench.fuzz` that need the host's classes: values of node inputs, photos, start LoRAs.

The pack is loaded into this process as the host loads it; nodes run on the toy models, in a folder of their own.
"""

import asyncio
import os
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from in_process import load_pack, new_adapter, opens_at, opens_with, pack_module
from PIL import Image
from safetensors.torch import save_file
from workflow import DYNAMIC

from .fuzz_attempt import Attempt, Found, finite
from .fuzz_files import damage_bytes, damage_place, odd_tensor
from .fuzz_rewards import reward_models

SMALL = {  # what makes a node quick, where its defaults don't
    "run_name": "fuzz",
    "updates": 1,
    "width": 64,
    "height": 64,
    "batch": 1,
    "at_once": 1,
    "steps": 1,
    "count": 1,
    "prompts": 1,
    "seeds": 1,
    "rank": 2,
    "text": "a red circle on grass",
    "prompt": "a red circle on grass",
    "words": "Real",
    "negative": "Flat",
    "folder": "photos",
}
QUICK = ("SRPO_ROLLOUTS", "SRPO_PREVIEWS")  # optional links that are made, since training takes long without
REWARD = "small.safetensors"
FLOATS = (float("nan"), float("inf"), float("-inf"), -1.0, 0.0, 1e30, -1e30, 1e-30)
TEXTS = (
    "",
    " ",
    "\0",
    "\ud800",
    "../../outside",
    "/tmp/outside",
    "..\\outside",
    "nul",
    "a" * 10_000,
    "{a|" * 500,
    "$x_{",
    "\\frac{",
    "a\nb",
    "\u202e",
    "fuzz@1",
    "fuzz@99",
    "1, 2, x",
)
LARGE = 2**31  # an input with a larger maximum is no count of work


class World:
    """The toy models and everything that our nodes exchange, by type; the host's folders are in `base`."""

    def __init__(self, base: Path):
        load_pack()
        import folder_paths
        import server

        for name in ("input", "output", "temp", "models"):
            (base / name).mkdir(parents=True)
        folder_paths.set_input_directory(str(base / "input"))
        folder_paths.set_output_directory(str(base / "output"))
        folder_paths.set_temp_directory(str(base / "temp"))
        folder_paths.add_model_folder_path("rewards", str(base / "models"), is_default=True)
        save_file(reward_models()["clip"], base / "models" / REWARD)
        server.PromptServer.instance = SimpleNamespace(send_progress_text=lambda *_: None)
        self.base = base
        extension = asyncio.run(pack_module("nodes").comfy_entrypoint())
        self.nodes = {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}
        for node in self.nodes.values():
            node.hidden = SimpleNamespace(unique_id="1", prompt=None, extra_pnginfo=None)
        self.values: dict[str, object] = {}
        with torch.inference_mode():
            self._fill()

    def _fill(self):
        photo = self.base / "input" / "photos"
        photo.mkdir()
        Image.effect_noise((80, 80), 50).convert("RGB").save(photo / "a cat.png")
        values = self.values
        values |= dict(zip(("MODEL", "CLIP", "VAE", "SRPO_REWARD_MODEL"), self.call("SRPO_ToyModels").args))
        values["SRPO_OBJECTIVE"] = self.call("SRPO_Objective").args[0]
        values["SRPO_DATASET"] = self.call("SRPO_Prompts").args[0]
        values |= {kind: self.call(node).args[0] for kind, node in zip(QUICK, ("SRPO_Rollouts", "SRPO_Previews"))}
        values["IMAGE"] = torch.rand(2, 64, 64, 3)
        values["CONDITIONING"] = values["SRPO_DATASET"].cond([0])
        values["LATENT"] = {"samples": torch.randn(1, 16, 8, 8)}
        values["NOISE"] = SimpleNamespace(seed=1, generate_noise=lambda latent: torch.randn_like(latent["samples"]))

    def defaults(self, name: str) -> dict:
        """An input for each that the node has, which make it do something small; optional links stay open."""
        found = {}
        for each in self.nodes[name].define_schema().inputs:
            if each.id == "rewards":  # as many as there are
                found[each.id] = {"reward1": self.values.get("SRPO_REWARD")}
            elif each.io_type in self.values and (each.io_type in QUICK or not each.optional):
                found[each.id] = self.values[each.io_type]
            elif each.io_type not in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC):
                found |= {} if each.optional else {each.id: None}
            elif each.id != "texts":
                found[each.id] = opens_with(each, SMALL)
        return found | ({"file": REWARD} if name == "SRPO_LoadReward" else {})

    def call(self, node_id: str, changes: dict | None = None):
        """Execute the node as the host does: in inference mode, in the context of a prompt."""
        from comfy_execution.utils import CurrentNodeContext

        node = self.nodes[node_id]
        inputs = self.defaults(node_id) | (changes or {})
        if node.define_schema().is_input_list:
            inputs = {key: value if isinstance(value, list) else [value] for key, value in inputs.items()}
        with torch.inference_mode(), CurrentNodeContext("prompt", "1"):
            return node.execute(**inputs)

    def validate(self, node_id: str, changes: dict):
        """As the host does before it queues; what is given comes from the node itself."""
        node = self.nodes[node_id]
        takes = getattr(node.validate_inputs, "__func__", node.validate_inputs).__code__
        known = takes.co_varnames[1 : takes.co_argcount]
        inputs = {key: value for key, value in (self.defaults(node_id) | changes).items() if key in known}
        if node.define_schema().is_input_list:
            inputs = {key: [value] for key, value in inputs.items()}
        answer = node.validate_inputs(**inputs) if known else True
        if answer is not True and not (isinstance(answer, str) and answer.strip()):
            raise Found(f"validation answered {answer!r}")

    def chain(self):
        """A trainer and one update's worth of values between the four nodes."""
        self.values["SRPO_TRAINER"], self.values["MODEL"] = self.call("SRPO_Trainer").args[:2]
        self.values["SRPO_NOISED"] = self.call("SRPO_NoisePriorInject").args[0]
        self.values["SRPO_RECOVERED"] = self.call("SRPO_OneStepRecover").args[0]
        self.values["SRPO_REWARD"] = self.call("SRPO_Reward").args[0]

    def clean(self):
        """Close the runs and forget what they wrote. Raises Found for numbers in it that are not finite."""
        runs = pack_module("nodes.open_runs")
        for name in runs.open_names():
            runs.close_run(name)
        output = self.base / "output"
        spoilt = [str(file.relative_to(output)) for file in output.rglob("*.safetensors") if not finite(file)]
        shutil.rmtree(output)
        output.mkdir()
        if spoilt:
            raise Found(f"saved with numbers that are not finite: {spoilt}")


# Values of inputs


def nodes(work: Path) -> Attempt:
    """One or two hostile values for inputs of a node, typed and through links."""
    world = World(work)
    base = world.values["MODEL"]
    names = sorted(set(world.nodes) - {"SRPO_ToyModels"})

    def attempt(draw: random.Random, folder: Path):
        name = draw.choice(names)
        inputs = [each for each in world.nodes[name].define_schema().inputs if hostile(draw, each) is not None]
        chosen = draw.sample(inputs, min(len(inputs), draw.choice((1, 1, 2))))
        changes = {each.id: hostile(draw, each) for each in chosen}
        (folder / "inputs.txt").write_text(f"{name} {changes!r}"[:20_000], "utf-8", "backslashreplace")
        world.values["MODEL"] = base
        try:
            if name in ("SRPO_Train", "SRPO_TrainStep", "SRPO_OneStepRecover", "SRPO_Reward"):
                world.chain()
            world.validate(name, changes)
            world.call(name, changes)
        finally:
            world.values["MODEL"] = base
            world.clean()

    return attempt


def hostile(draw: random.Random, each: Any):
    """A value for this input that a link can bring; None where there is none to try."""
    if each.io_type == "FLOAT":
        return draw.choice((*FLOATS, each.min, each.max))
    if each.io_type == "INT":
        large = (each.max + 1, 2**64, 2**64 + 1) if each.max >= LARGE else ()
        return draw.choice((-1, 0, each.min - 1, -LARGE, *large))
    if each.io_type == "COMBO":
        return draw.choice((*TEXTS, *each.options))
    if each.io_type == "STRING":
        return draw.choice(TEXTS)
    if each.io_type == DYNAMIC:
        option = draw.choice(each.options)
        changes = {inner.id: hostile(draw, inner) for inner in option.inputs if hostile(draw, inner) is not None}
        changed = draw.sample(sorted(changes), min(len(changes), 1)) or [each.id]
        return opens_at(each, option, SMALL) | {name: changes.get(name, draw.choice(TEXTS)) for name in changed}
    return None


# Photos


def photos(work: Path) -> Attempt:
    """A folder of pictures, captions and what is neither."""
    world = World(work)
    pictures = work / "input" / "hostile"

    def attempt(draw: random.Random, folder: Path):
        shutil.rmtree(pictures, ignore_errors=True)
        write_pictures(draw, folder / "hostile")
        shutil.copytree(folder / "hostile", pictures, symlinks=True, copy_function=copy_any)
        try:
            world.validate("SRPO_Photos", {"folder": "hostile"})
            world.nodes["SRPO_Photos"].fingerprint_inputs(folder="hostile")
            dataset = world.call("SRPO_Photos", {"folder": "hostile"}).args[0]
            with torch.inference_mode():
                if not dataset.latents([draw.randrange(len(dataset.prompts))]).isfinite().all():
                    raise Found("a latent that is not finite")
        finally:
            world.clean()

    return attempt


def copy_any(source: str, target: str):
    """Pipes too, which shutil refuses to copy."""
    os.mkfifo(target) if Path(source).is_fifo() else shutil.copy2(source, target)


def write_pictures(draw: random.Random, folder: Path):
    folder.mkdir()
    for number in range(draw.randrange(1, 5)):
        kind = draw.choice(("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"))
        mode = draw.choice(("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"))
        size = draw.choice(((80, 80), (64, 200), (1, 1), (2000, 3), (90, 64)))
        path = folder / draw.choice((f"{number}.png", f"{number}.jpg", f"2_cat {number}.webp", f"x{number}.bmp"))
        try:
            Image.new(mode, size).save(path, kind)
        except (OSError, KeyError, ValueError):  # not every kind has every mode
            Image.new("RGB", size).save(path, "PNG")
        if draw.random() < 0.4:
            draw.choice((damage_bytes, damage_place))(draw, path)
        if draw.random() < 0.5:
            caption = path.with_suffix(draw.choice((".txt", ".caption", ".TXT")))
            caption.write_bytes(draw.choice((b"a cat", b"", b"\xff\xfea\0", b"\0", b"\xe9", b"x " * 100_000)))
            if draw.random() < 0.2:
                damage_place(draw, caption)


# Start LoRAs


def loras(work: Path) -> Attempt:
    """An adapter's own file, made odd, as the start of another."""
    world = World(work)
    model = world.values["MODEL"]
    small = new_adapter(model, rank=2, alpha=2.0)
    state = {name: tensor.contiguous() for name, tensor in small.state_dict().items()}

    def attempt(draw: random.Random, folder: Path):
        path = folder / "start.safetensors"
        odd = dict(state)
        for _ in range(draw.randrange(4)):
            name = draw.choice(sorted(odd))
            value = odd.pop(name)
            if draw.random() < 0.8:
                odd[draw.choice((name, name, name, "x." + name))] = odd_tensor(draw, value)
        save_file(odd, path)
        if draw.random() < 0.3:
            draw.choice((damage_bytes, damage_place))(draw, path)
        adapter = new_adapter(model, rank=4, alpha=4.0)
        pack_module("nodes.host.adapters.start_lora").start_at(adapter, model.model, path)
        if not all(parameter.isfinite().all() for parameter in adapter.parameters.values()):
            raise Found("the adapter begins with numbers that are not finite")

    return attempt
