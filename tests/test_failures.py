"""What a failure leaves of a run: in memory and on disk it is as if nothing had been tried, and it goes on the same."""

import copy
import errno
import math
import os
import shutil
import sys
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from tiny_run import SETTINGS, TWO, go, opened, same, state, world
from tiny_world import SHAPE, TinyReward
from torch.nn import Parameter

from srpo_core import files
from srpo_core import run as run_module
from srpo_core.loop import Schedule, train
from srpo_core.models import Pullback
from srpo_core.run import MAX_SKIPPED, Run, Settings


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
        self.spoil, self.calls, self.at = spoil, count(), None

    def arm(self, call: int):
        self.calls, self.at = count(1), call

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
        "moving average": (run, "_average", fault.after),
        "spreads": (run, "_remember", fault.after),
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


def check_it_goes_on(run: Run, parts: dict, straight: Run, tmp_path, schedule=TWO):
    """The run in memory, and its folder opened by another process, come to what `straight` came to."""
    shutil.copytree(run.folder, tmp_path / "after a restart")
    fresh = world()
    reopened = Run(tmp_path / "after a restart", fresh["flow"].parameters, run.settings)
    for goes_on, world_of_it in ((run, parts), (reopened, fresh)):
        train(goes_on, straight.updates - goes_on.updates, schedule, **world_of_it)
        assert everything(goes_on) == everything(straight)
        files_of = on_disk(goes_on.folder)
        assert files_of["metrics.jsonl"] == (straight.folder / "metrics.jsonl").read_bytes()
        assert set(files_of) == set(on_disk(straight.folder))


CASES = [
    *((stage, kind, "AdamW") for stage in BEFORE_THE_STEP + AT_THE_STEP for kind in FAILURES),
    *((stage, "out of memory", name) for stage in BEFORE_THE_STEP[-1:] + AT_THE_STEP for name in OTHER_OPTIMIZERS),
]


@pytest.mark.parametrize(
    "finished, schedule", [(0, TWO), (2, Schedule(SHAPE, batch=2, reuse=2))], ids=["first", "third"]
)
@pytest.mark.parametrize("stage, failure, optimizer", CASES, ids=map(", ".join, CASES))
def test_a_failure_inside_an_update_leaves_no_trace(tmp_path, stage, failure, optimizer, finished, schedule):
    chosen, parts, fault = settings(optimizer), world(), Fault(failing(FAILURES[failure]))
    run = Run(tmp_path / "run", parts["flow"].parameters, chosen)
    put_in(fault, stage, run, parts)
    train(run, finished, schedule, **parts)
    memory, disk = everything(run), on_disk(run.folder)
    fault.arm(1 if stage in AT_THE_STEP else 2)
    with pytest.raises(type(FAILURES[failure])):
        train(run, 3, schedule, **parts)
    assert everything(run) == memory and on_disk(run.folder) == disk
    assert all(parameter.grad is None for parameter in run.parameters.values())
    straight = go(tmp_path / "straight", finished + 2, schedule, chosen)
    check_it_goes_on(run, parts, straight, tmp_path, schedule)


@pytest.mark.parametrize(
    "file, update", [("metrics.jsonl", 3), ("run.json", 3), ("state.safetensors", 3), ("000004.safetensors", 4)]
)
def test_a_failure_while_saving_keeps_the_update_in_memory_and_a_whole_state_on_disk(
    tmp_path, monkeypatch, file, update
):
    folder, replace = tmp_path / "my run", os.replace
    parts = world()
    run = Run(folder, parts["flow"].parameters, settings())
    train(run, update - 1, TWO, **parts)
    before = opened(folder)

    def full(source, target):
        if os.path.basename(target) == file:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError) as error:
        patch.setattr(files.os, "replace", full)
        train(run, 2, TWO, **parts)
    straight = go(tmp_path / "straight", update, settings=settings())
    assert everything(run) == everything(straight)
    assert not list(folder.rglob("*.tmp"))
    assert "can't be written to ([Errno 28] No space left on device): make room" in str(error.value)
    left = opened(folder)
    if file == "000004.safetensors":
        assert str(error.value).endswith('The run "my run" is saved up to update 4.')
        assert same(state(left), state(straight)) and left.history == straight.history
    else:
        kept = 'The run "my run" is saved up to update 2. Updates up to 3 are kept while ComfyUI runs.'
        assert str(error.value).endswith(kept)
        assert same(state(left), state(before)) and left.history == before.history
        check_it_goes_on(run, parts, go(tmp_path / "longer", 5, settings=settings()), tmp_path)


@pytest.mark.parametrize("stage, left", [("optimiser step", 2), ("rollout", 3)])
def test_a_state_too_large_to_copy_is_taken_from_disk_where_a_step_failed(tmp_path, monkeypatch, stage, left):
    """A whole model's. All failures before the step leave it as it was, since nothing has been changed."""
    monkeypatch.setattr(run_module, "MOST_COPIED", 0)
    rare = Settings(learning_rate=1e-2, save_every=2, ema=0.9)
    parts, fault = world(), Fault(failing(FAILURES["out of memory"]))
    run = Run(tmp_path / "run", parts["flow"].parameters, rare)
    put_in(fault, stage, run, parts)
    run.save, save = lambda: save() if run.updates == 2 else None, run.save
    train(run, 3, TWO, **parts)
    fault.arm(1)
    with pytest.raises(torch.OutOfMemoryError):
        train(run, 1, TWO, **parts)
    del run.save
    straight = go(tmp_path / "straight", left, settings=rare)
    assert everything(run) == everything(straight)
    check_it_goes_on(run, parts, go(tmp_path / "longer", 5, settings=rare), tmp_path)


def test_a_failure_while_events_are_written_keeps_the_update(tmp_path, monkeypatch):
    from torch.utils.tensorboard import SummaryWriter

    def full(*_):
        raise FAILURES["full disk"]

    parts = world()
    run = Run(tmp_path / "run", parts["flow"].parameters, settings())
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="events can't be written to"):
        patch.setattr(SummaryWriter, "add_scalar", full)
        train(run, 2, TWO, **parts)
    assert everything(run) == everything(opened_with(run)) and run.updates == 1
    check_it_goes_on(run, parts, go(tmp_path / "straight", 3, settings=settings()), tmp_path)


def opened_with(run: Run) -> Run:
    return Run(run.folder, world()["flow"].parameters, run.settings)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files there")
def test_a_file_that_the_disk_has_no_room_for(tmp_path, monkeypatch):
    """Truly so: nothing here stands in for the library that writes the state, or for the file system."""
    import resource

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    go(tmp_path / "run", 2)
    disk = on_disk(tmp_path / "run")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(disk["state.safetensors"]) - 1, limits[1]))
    try:
        with pytest.raises(RuntimeError, match="File too large.*: make room on its disk"):
            go(tmp_path / "run", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    left = on_disk(tmp_path / "run")
    assert set(left) == set(disk) and left["state.safetensors"] == disk["state.safetensors"]
    assert same(state(go(tmp_path / "run", 1)), state(go(tmp_path / "straight", 3)))


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_update(tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("an update was begun")

    parts = world()
    parts["flow"].rollout = never
    (tmp_path / "a file").touch()
    run = Run(tmp_path / "a file/run", parts["flow"].parameters, SETTINGS)
    with pytest.raises(RuntimeError, match="a file/run can't be written to .*: make room on its disk, or let ComfyUI"):
        train(run, 1, TWO, **parts)
    parts["flow"].rollout = world()["flow"].rollout
    run = Run(tmp_path / "run", parts["flow"].parameters, SETTINGS)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=95))
    with pytest.raises(RuntimeError, match="0 MB free, 0 MB needed"):
        train(run, 1, TWO, **parts)
    monkeypatch.undo()
    train(run, 1, TWO, **parts)
    assert run.updates == 1


# Not a number


class SpoiltReward(TinyReward):
    """Not a number, or without a finite gradient, in the calls whose numbers are given."""

    def __init__(self, calls, spoil):
        super().__init__()
        self.calls, self.spoil = calls, spoil

    def score_many(self, images, *texts):
        score = super().score_many(images, *texts)
        return self.spoil(score) if len(self.asked) in self.calls else score


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


SPOILS = {
    "both": lambda score: score * float("nan"),
    "loss": lambda score: score + float("nan"),  # the hinge's gradient at nan is 0: only the loss tells
    "gradient": InfiniteGradient.apply,
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_an_update_without_finite_gradient_is_skipped_and_counted(tmp_path, spoil):
    go(tmp_path, 1)
    before = state(opened(tmp_path))
    run = go(tmp_path, 1, reward=SpoiltReward([2], spoil))  # one of four scores is enough
    assert same(state(run), before)
    assert (run.updates, run.skipped, run.skipped_in_a_row) == (2, 1, 1)
    assert all(parameter.grad is None for parameter in run.parameters.values())
    run = go(tmp_path, 1)
    assert not same(state(run), before)
    assert (run.updates, run.skipped, run.skipped_in_a_row) == (3, 1, 0)


def test_the_run_stops_after_ten_skipped_in_a_row(tmp_path):
    good = go(tmp_path, 2)
    before = state(good)
    always = SpoiltReward(range(1000), SPOILS["loss"])
    go(tmp_path, MAX_SKIPPED - 1, reward=always)
    with pytest.raises(RuntimeError, match="10 updates in a row had no finite loss or gradient.*at update 12") as error:
        go(tmp_path, 5, reward=SpoiltReward(range(1000), SPOILS["loss"]))
    assert "Lower the learning rate (0.01)" in str(error.value)
    stopped = opened(tmp_path)
    assert same(state(stopped), before) and (stopped.updates, stopped.skipped) == (12, 10)


def test_a_finite_update_between_starts_the_count_again(tmp_path):
    calls = [call for call in range(1, 100) if (call - 1) // 4 % 10 != 9]  # four scores an update, each tenth is good
    run = go(tmp_path, 20, reward=SpoiltReward(calls, SPOILS["loss"]))
    assert (run.skipped, run.skipped_in_a_row) == (18, 0)


@pytest.mark.parametrize("stage", ["rollout", "velocity", "decode", "pull through the decoder"])
def test_what_is_not_a_number_anywhere_skips_the_update(tmp_path, stage):
    parts, fault = world(), Fault(not_a_number)
    run = Run(tmp_path, parts["flow"].parameters, settings("schedule-free AdamW"))
    put_in(fault, stage, run, parts)
    train(run, 2, TWO, **parts)
    before = everything(run)
    fault.arm(2)
    train(run, 1, TWO, **parts)
    after = everything(run)
    assert (run.updates, run.skipped) == (3, 1)
    assert all(after[key] == before[key] for key in ("parameters", "ema", "slots", "groups", "spreads"))


def test_a_failure_in_the_first_update_leaves_no_run_behind(tmp_path):
    """So that the same name can be tried again with a smaller adapter."""

    def out_of_memory(score):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        go(tmp_path / "run", 1, reward=SpoiltReward([1], out_of_memory))
    Run(tmp_path / "run", {"smaller": Parameter(torch.zeros(1, 2))})
