"""Hostile files for `bench.fuzz` that the core reads: run folders, prompt texts, reward files."""

import json
import os
import random
import shutil
import time
import warnings
import zipfile
from pathlib import Path

import open_clip
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter
from transformers import CLIPConfig, CLIPModel

from srpo_core.algorithm.objective import Objective
from srpo_core.algorithm.terms import Term
from srpo_core.data.prompt_text import parse_prompts, read_prompts
from srpo_core.rewards import load_reward
from srpo_core.run.draws import Batching
from srpo_core.run.folder import fork, saved_updates
from srpo_core.run.loop import train
from srpo_core.run.run import Run
from srpo_core.run.settings import Settings
from srpo_core.run.training import Training
from srpo_core.toy.world import toy_world

from .fuzz import Attempt, Found
from .reward import TOY

warnings.filterwarnings("ignore")  # of torch, at kinds of tensors that nobody should use
LONGEST = 20.0  # seconds of computing that a text of some MB may take; 2 on an idle machine
ODD_BYTES = (b"", b"\x00", b"\xff\xfe", b"null", b"[]", b"{}", b"[" * 100_000, b"<html>", b"PK\x03\x04")
ODD_WORDS = ("", "NaN", "1e999", "-1", "99999999999999999999", "null", "{}", "[1]", "true", "\x00", "x" * 5000)


# Bytes of any file


def damage_bytes(draw: random.Random, path: Path):
    """Cut the file, spoil some bytes, or put something else in its place."""
    content = bytearray(path.read_bytes())
    how = draw.choice(("cut", "spoil", "spoil the start", "replace", "append"))
    if how == "cut":
        del content[draw.randrange(len(content) + 1) :]
    elif how == "append":
        content += draw.randbytes(draw.randrange(1, 100))
    elif how == "replace":
        content = draw.choice(ODD_BYTES)
    else:
        end = min(len(content), 400 if how == "spoil the start" else len(content))
        for _ in range(draw.randrange(1, 9) if end else 0):
            content[draw.randrange(end)] = draw.randrange(256)
    path.write_bytes(content)


def damage_place(draw: random.Random, path: Path):
    """Put at the path what is no file, or one that can't be read."""
    if draw.random() < 0.2:
        path.chmod(0)
        return
    path.unlink()
    how = draw.choice(("nothing", "folder", "pipe", "dangling", "loop", "device"))
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how != "nothing":
        path.symlink_to({"dangling": "gone", "loop": path.name, "device": "/dev/zero"}[how])


# Run folders


def runs(work: Path) -> Attempt:
    """A small run with snapshots, then damaged, opened, and taken as the start of another."""
    work.mkdir()
    whole = work / "whole"
    settings = Settings(save_every=1, snapshot_every=1, ema=0.5)
    parameters = write_run(whole, settings)

    def attempt(draw: random.Random, folder: Path):
        run = folder / "run"
        shutil.copytree(whole, run)
        damage_run(draw, run)
        if draw.random() < 0.3:
            other = folder / "other"
            fork(run, draw.choice((None, 1, 2)), other)
            return check_run(other, parameters, settings)
        if draw.random() < 0.2:
            saved_updates(run)
        check_run(run, parameters, settings)

    return attempt


def write_run(folder: Path, settings: Settings) -> dict[str, Tensor]:
    """Three updates of the toy; returns the parameters that it began with, by name."""
    flow, decoder, reward, dataset = toy_world(["a red circle on grass"], rank=1, steps=1)
    began = {name: parameter.detach().clone() for name, parameter in flow.parameters.items()}
    training = Training(
        flow=flow,
        decoder=decoder,
        terms=[Term(reward=reward, objective=Objective())],
        dataset=dataset,
        batching=Batching(shape=(16, 8, 8), reuse=2),
    )
    train(Run(folder, flow.parameters, settings), training, 3)
    return began


def check_run(folder: Path, parameters: dict[str, Tensor], settings: Settings):
    run = Run(folder, {name: Parameter(value.clone()) for name, value in parameters.items()}, settings)
    values = [*run.parameters.values(), *run.ema.values(), *run.rollouts.values()]
    values += [v for slots in run.optimizer.state.values() for v in slots.values() if isinstance(v, Tensor)]
    if not all(value.isfinite().all() for value in values):
        raise Found("the run opened with numbers that are not finite")
    if run.updates < 0 or run.saved != run.updates:
        raise Found(f"the run opened at update {run.updates}, saved at {run.saved}")


def damage_run(draw: random.Random, run: Path):
    for _ in range(draw.randrange(1, 3)):
        files = sorted(path for path in run.rglob("*") if path.is_file() and not path.is_symlink())
        if not files:
            return
        states = [path for path in files if path.suffix == ".safetensors"]
        path = draw.choice(states if states and draw.random() < 0.6 else files)
        how = draw.choice((damage_bytes, damage_place, damage_text if path not in states else damage_state))
        try:
            how(draw, path)
        except Exception:  # what one damage left another can't read
            return


def damage_text(draw: random.Random, path: Path):
    lines = path.read_text("utf-8", "replace").splitlines()
    lines.insert(draw.randrange(len(lines) + 1), draw.choice(ODD_WORDS))
    del lines[draw.randrange(len(lines))]
    path.write_text("\n".join(lines), "utf-8")


def damage_state(draw: random.Random, path: Path):
    """Another header, or other tensors, in a file that is whole."""
    with safe_open(path, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if draw.random() < 0.5:
        name = draw.choice(sorted(header))
        header[name] = draw.choice((*ODD_WORDS, json.dumps({"a": 1}), "[" * 100_000))
        if draw.random() < 0.2:
            del header[name]
    else:
        name = draw.choice(sorted(tensors))
        tensors[name] = odd_tensor(draw, tensors[name], ("large",))
        if draw.random() < 0.2:
            del tensors[name]
    save_file(tensors, path, header if draw.random() < 0.9 else None)


def odd_tensor(draw: random.Random, tensor: Tensor, more: tuple[str, ...] = ()) -> Tensor:
    """Another value, shape or kind, such as a safetensors file can hold."""
    tensor = tensor.clone()
    how = draw.choice(("nan", "inf", "shape", "flat", "dtype", "empty", *more))
    if how in ("nan", "inf", "large") and tensor.is_floating_point() and tensor.numel():
        tensor.view(-1)[draw.randrange(tensor.numel())] = {"nan": torch.nan, "inf": torch.inf, "large": 3e38}[how]
    elif how == "dtype":
        kinds = (torch.float64, torch.float16, torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64)
        tensor = tensor.to(draw.choice(kinds))
    elif how == "empty":
        tensor = tensor.new_zeros(0, *tensor.shape[1:])
    else:
        tensor = torch.cat([tensor.flatten(), tensor.new_zeros(1)]) if how == "shape" else tensor.flatten()
    return tensor


# Prompts


def prompts(work: Path) -> Attempt:
    """Texts of wildcards, comments and odd letters; files in any encoding."""
    work.mkdir()

    def attempt(draw: random.Random, folder: Path):
        text = prompt_text(draw)
        path = folder / "prompts.txt"
        path.write_text(text, draw.choice(("utf-8", "utf-8-sig", "utf-16")), "surrogatepass")
        if draw.random() < 0.2:
            damage_bytes(draw, path)
        for read in (lambda: parse_prompts(text), lambda: read_prompts(path)):
            began = time.process_time()
            try:
                found = read()
            except ValueError as error:
                last = error
            else:
                last = None
                if not found or not all(prompt.strip() for prompt in found):
                    raise Found("no prompt, or a blank one, and no sentence")
            if (seconds := time.process_time() - began) > LONGEST:
                raise Found(f"reading took {seconds:.0f} s of computing")
        if last:
            raise last

    return attempt


def prompt_text(draw: random.Random) -> str:
    parts = (
        "{",
        "}",
        "|",
        "{a|b}",
        "\\",
        "{|}",
        "a",
        " ",
        "\n",
        "# ",
        "__x__",
        "(a:1.2)",
        "\0",
        "\u202e",
        "\ud800",
        ",",
    )
    how = draw.choice(("mixed", "mixed", "repeated", "nested", "long"))
    if how == "mixed":
        return "".join(draw.choice(parts) for _ in range(draw.randrange(200)))
    if how == "repeated":
        return draw.choice(parts) * draw.choice((10, 1000, 100_000))
    if how == "nested":
        depth = draw.choice((5, 100, 1000, 20_000))
        return "{a|" * depth + "b" + "}" * (depth - draw.randrange(2))
    return draw.choice(("a cat\n", "{a|b} {c|d}\n", "word ")) * draw.choice((1000, 300_000))


# Reward files


def rewards(work: Path) -> Attempt:
    """Whole files of the families under any prefix, then made odd, and scored with if they load."""
    work.mkdir()
    models = reward_models()
    save_file(models["clip"], work / "backbone.safetensors")

    def attempt(draw: random.Random, folder: Path):
        path = folder / draw.choice(("model.pt", "model.ckpt", "hps.bin", "model.safetensors", "odd \u00e9 'name'.pth"))
        name = draw.choice(sorted(models))
        write_reward(draw, odd_model(draw, models[name]), path)
        if draw.random() < 0.3:
            draw.choice((damage_bytes, damage_place))(draw, path)
        if draw.random() < 0.1:
            (folder / "config.json").write_bytes(draw.choice(ODD_BYTES))
        backbone = work / "backbone.safetensors" if name == "head" else None
        score = load_reward(path, backbone=backbone).score(torch.rand(1, 3, 40, 40), ["a cat"])
        if not score.isfinite().all():
            raise Found("a score that is not finite")

    return attempt


def reward_models() -> dict[str, dict[str, Tensor]]:
    """Small models of random weights, by family."""
    torch.manual_seed(0)
    sizes = TOY | {"text_cfg": TOY["text_cfg"] | {"width": 16, "layers": 1}}
    tower = dict(hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=1)
    text = tower | dict(vocab_size=49408, max_position_embeddings=77, eos_token_id=49407)
    image = tower | dict(image_size=32, patch_size=8)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=12))
    widths = {0: (8, 12), 2: (6, 8), 4: (5, 6), 6: (4, 5), 7: (1, 4)}
    head = {f"layers.{i}.weight": torch.randn(size) for i, size in widths.items()}
    head |= {f"layers.{i}.bias": torch.randn(size[0]) for i, size in widths.items()}
    both = {"open_clip": open_clip.CLIP(**sizes).state_dict(), "clip": clip.state_dict()}
    return {name: {k: v.detach().clone() for k, v in state.items()} for name, state in (both | {"head": head}).items()}


def odd_model(draw: random.Random, state: dict[str, Tensor]) -> dict:
    """A prefix, an odd tensor or two, names that are lost or are more."""
    state = dict(state)
    for _ in range(draw.choice((0, 0, 1, 1, 2))):
        name = draw.choice(sorted(state))
        how = draw.choice(("odd", "lost", "other name", "number", "all"))
        if how == "odd":
            state[name] = odd_tensor(draw, state[name])
        elif how == "all":
            kind = draw.choice((torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64))
            state = {key: value.to(kind) for key, value in state.items()}
        else:
            value = state.pop(name)
            if how == "other name":
                state[draw.choice(("x", "module." + name, name + ".scale_weight", "encoder.lora_A.weight"))] = value
    prefix = draw.choice(("", "", "module.", "model.", "_orig_mod.", "base_model.model.", "a.b-c.clip."))
    return {prefix + name: value for name, value in state.items()}


def write_reward(draw: random.Random, state: dict, path: Path):
    """As safetensors, or as any of the things that torch.save is used for."""
    if path.suffix == ".safetensors":
        return save_file({name: value.contiguous() for name, value in state.items()}, path)
    if draw.random() < 0.3:
        name = draw.choice(sorted(state))
        state[name] = unsafe_tensor(draw, state[name])
    content = draw.choice(
        (state, {"state_dict": state, "epoch": 3}, {"model": state, "ema": state}, {1: state[min(state)]})
    )
    if draw.random() < 0.1:
        content = draw.choice(({"a": laughs(40)}, {"w": Path("x")}, state[min(state)], [state], {"n": {1: state}}))
    torch.save(content, path, _use_new_zipfile_serialization=draw.random() < 0.8)
    if draw.random() < 0.1 and zipfile.is_zipfile(path):
        pack(path)


def unsafe_tensor(draw: random.Random, tensor: Tensor) -> Tensor:
    """A kind that a pickle can hold and safetensors can't."""
    how = draw.choice(("sparse", "meta", "expanded", "strided", "quantised"))
    if how == "sparse":
        return torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (100_000, 100_000))
    if how == "meta":
        return tensor.to("meta")
    if how == "expanded":
        return torch.zeros(1).expand(draw.choice((tensor.shape, (50_000, 50_000))))
    if how == "quantised":
        return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


def laughs(depth: int) -> dict:
    """Few dictionaries that are very many when they are written out."""
    inner: dict = {"x": torch.zeros(1)}
    for _ in range(depth):
        inner = {"a": inner, "b": inner}
    return inner


def pack(path: Path):
    """The same zip, compressed."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
