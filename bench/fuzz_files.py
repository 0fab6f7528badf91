"""Hostile files for `bench.fuzz` that the core reads: run folders, prompt texts."""

import json
import os
import random
import shutil
import time
import warnings
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter

from srpo_core.algorithm.objective import Objective
from srpo_core.algorithm.terms import Term
from srpo_core.data.prompt_text import parse_prompts, read_prompts
from srpo_core.run.draws import Batching
from srpo_core.run.folder import fork, saved_updates
from srpo_core.run.loop import train
from srpo_core.run.run import Run
from srpo_core.run.settings import Settings
from srpo_core.run.training import Training
from srpo_core.toy.world import toy_world

from .fuzz_attempt import Attempt, Found

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
        dtypes = (torch.float64, torch.float16, torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64)
        tensor = tensor.to(draw.choice(dtypes))
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
