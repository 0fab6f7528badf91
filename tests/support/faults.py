"""Faults that are put into an update, and what a run is before and after one."""

import copy
import errno
import math
import shutil
from itertools import count

import torch
from tiny_run import TWO, world

from srpo_core.algorithm.protocols import Pullback
from srpo_core.run.loop import train
from srpo_core.run.run import Run
from srpo_core.run.settings import Settings
from srpo_core.run.training import Training


class Cancelled(BaseException):
    """The host's InterruptProcessingException is one, too."""


FAILURES = {
    "cancel": Cancelled(),
    "out of memory": torch.OutOfMemoryError("CUDA out of memory"),
    "full disk": OSError(errno.ENOSPC, "No space left on device"),
}
OTHER_OPTIMIZERS = ("schedule-free AdamW", "Prodigy")  # with state of their own kinds
SAID = ("lr", "d_denom", "d_hat")  # of an optimiser's groups: what each step sets and none reads
EACH = dict(save_every=1, snapshot_every=2, ema=0.9)


def settings(optimizer="AdamW") -> Settings:
    return Settings(learning_rate=1.0 if optimizer == "Prodigy" else 1e-2, optimizer=optimizer, **EACH)


def failing(error: BaseException):
    def fail(_):
        raise error

    return fail


def not_a_number(done):
    return Pullback(done.value * math.nan, done.pull) if isinstance(done, Pullback) else done * math.nan


class Fault:
    """`spoil` is given what a function has done, when it is called for the `call`th time since this was armed."""

    def __init__(self, spoil):
        self.spoil = spoil
        self.calls = count()
        self.at = None

    def arm(self, call: int):
        self.calls = count(1)
        self.at = call

    def after(self, function):
        def called(*args, **kwargs):
            done = function(*args, **kwargs)
            return self.spoil(done) if next(self.calls) == self.at else done

        return called

    def after_pull(self, function):
        def called(*args, **kwargs):
            done = function(*args, **kwargs)
            return Pullback(done.value, self.after(done.pull))

        return called


def put_in(fault: Fault, stage: str, run: Run, parts: dict):
    """Let one stage of the updates of `run` fail; `parts` are those that make its world."""
    place, name, wrap = {
        "conditioning": (parts["dataset"], "cond", fault.after),
        "rollout": (parts["flow"], "rollout", fault.after),
        "velocity": (parts["flow"], "velocity", fault.after),
        "decode": (parts["decoder"], "decode", fault.after),
        "reward": (parts["terms"][0].reward, "score_many", fault.after),
        "pull through the decoder": (parts["decoder"], "decode", fault.after_pull),
        "pull through the model": (parts["flow"], "velocity", fault.after_pull),
        "optimiser step": (run.optimizer, "step", fault.after),
        "moving average": (run, "average", fault.after),
        "spreads": (run, "remember", fault.after),
    }[stage]
    setattr(place, name, wrap(getattr(place, name)))


BEFORE_THE_STEP = (
    "conditioning",
    "rollout",
    "velocity",
    "decode",
    "reward",
    "pull through the decoder",
    "pull through the model",
)
AT_THE_STEP = ("optimiser step", "moving average", "spreads")  # once in an update


def everything(run: Run) -> dict:
    """What a run is, in memory: comparable, and not changed by what the run does next."""
    optimizer = run.optimizer.state_dict()
    held = {"parameters": dict(run.parameters), "ema": run.ema, "slots": optimizer["state"], "rollouts": run.rollouts}
    numbers = {key: getattr(run, key) for key in ("updates", "skipped", "skipped_in_a_row", "history", "spreads")}
    groups = [{key: value for key, value in group.items() if key not in SAID} for group in optimizer["param_groups"]]
    return copy.deepcopy(plain(held) | numbers | {"groups": plain(groups)})


def plain(value):
    if isinstance(value, torch.Tensor):
        return value.dtype, value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(held) for held in value]
    return {key: plain(held) for key, held in value.items()} if isinstance(value, dict) else value


def on_disk(folder) -> dict:
    """All files but TensorBoard's, and their bytes."""
    kept = (file for file in folder.rglob("*") if file.is_file() and "events" not in file.parts)
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in kept}


def check_it_goes_on(run: Run, parts: dict, straight: Run, tmp_path, batching=TWO):
    """The run in memory, and its folder opened by another process, come to what `straight` came to."""
    shutil.copytree(run.folder, tmp_path / "after a restart")
    fresh = world()
    reopened = Run(tmp_path / "after a restart", fresh["flow"].parameters, run.settings)
    for goes_on, world_of_it in ((run, parts), (reopened, fresh)):
        train(goes_on, Training(batching=batching, **world_of_it), straight.updates - goes_on.updates)
        assert everything(goes_on) == everything(straight)
        files_of = on_disk(goes_on.folder)
        assert files_of["metrics.jsonl"] == (straight.folder / "metrics.jsonl").read_bytes()
        assert set(files_of) == set(on_disk(straight.folder))


def opened_with(run: Run) -> Run:
    return Run(run.folder, world()["flow"].parameters, run.settings)
