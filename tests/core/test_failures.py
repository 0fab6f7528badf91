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
from tiny_run import HPS, SETTINGS, TWO, go, opened, same, state, world
from tiny_world import SHAPE, TinyReward
from torch.nn import Parameter

from srpo_core import files
from srpo_core.algorithm.protocols import Pullback
from srpo_core.algorithm.terms import Term
from srpo_core.run import undo
from srpo_core.run.draws import Batching
from srpo_core.run.folder import FolderGone, FolderLock, snapshots_in, whole_snapshots
from srpo_core.run.loop import train
from srpo_core.run.run import Run
from srpo_core.run.saving import MAX_FAILED_SAVES
from srpo_core.run.settings import Settings
from srpo_core.run.state_file import updates_in
from srpo_core.run.training import Training
from srpo_core.run.update import MAX_SKIPPED, make_update, sample_scores


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


CASES = [
    *((stage, kind, "AdamW") for stage in BEFORE_THE_STEP + AT_THE_STEP for kind in FAILURES),
    *((stage, "out of memory", name) for stage in BEFORE_THE_STEP[-1:] + AT_THE_STEP for name in OTHER_OPTIMIZERS),
]


@pytest.mark.parametrize(
    "finished, batching", [(0, TWO), (2, Batching(shape=SHAPE, batch=2, reuse=2))], ids=["first", "third"]
)
@pytest.mark.parametrize("stage, failure, optimizer", CASES, ids=map(", ".join, CASES))
def test_a_failure_inside_an_update_leaves_no_trace(tmp_path, stage, failure, optimizer, finished, batching):
    chosen = settings(optimizer)
    parts = world()
    fault = Fault(failing(FAILURES[failure]))
    run = Run(tmp_path / "run", parts["flow"].parameters, chosen)
    put_in(fault, stage, run, parts)
    train(run, Training(batching=batching, **parts), finished)
    memory = everything(run)
    disk = on_disk(run.folder)
    fault.arm(1 if stage in AT_THE_STEP else 2)
    with pytest.raises(type(FAILURES[failure])):
        train(run, Training(batching=batching, **parts), 3)
    assert everything(run) == memory and on_disk(run.folder) == disk
    assert all(parameter.grad is None for parameter in run.parameters.values())
    straight = go(tmp_path / "straight", finished + 2, batching, chosen)
    check_it_goes_on(run, parts, straight, tmp_path, batching)


def refusing(replace, files: tuple[str, ...], error: OSError, times: int):
    """`os.replace`, which fails so many times for files of these names; the last part of a path is enough."""
    left = [times]

    def called(source, target):
        if os.path.basename(target) in files and left[0]:
            left[0] -= 1
            raise error
        replace(source, target)

    return called


FULL = OSError(errno.ENOSPC, "No space left on device")
READ_ONLY = OSError(errno.EROFS, "Read-only file system")


@pytest.mark.parametrize("error", [FULL, READ_ONLY], ids=["full", "read-only"])
@pytest.mark.parametrize("times", range(1, MAX_FAILED_SAVES))
def test_a_state_that_cannot_be_saved_is_said_at_once_and_saved_after_the_next_update(
    tmp_path, monkeypatch, times, error
):
    """The disk has room again before too many saves have failed: nothing is lost, and no update is held up."""
    folder = tmp_path / "my run"
    parts = world()
    said = []
    rare = Settings(learning_rate=1e-2, save_every=2)
    run = Run(folder, parts["flow"].parameters, rare)
    train(run, Training(batching=TWO, **parts), 2)
    run.on_trouble = lambda sentence: said.append((run.updates, sentence))
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", refusing(os.replace, ("state.safetensors",), error, times))
        train(run, Training(batching=TWO, **parts), 6)
    assert [update for update, _ in said] == list(range(4, 5 + times))
    for update, sentence in said[:-1]:
        assert f"my run can't be written to ([Errno {error.errno}] {error.strerror}): make room on its disk" in sentence
        assert f"saved up to update 2. Updates up to {update} are kept while ComfyUI runs. Training goes on" in sentence
    assert said[-1][1] == f'The run "my run" can be saved again, and is, up to update {4 + times}.'
    assert run.troubles == [sentence for _, sentence in said] and run.saved == 8
    straight = go(tmp_path / "straight", 8, settings=rare)
    assert everything(run) == everything(straight) == everything(opened_with(run))


def test_a_run_that_cannot_be_saved_again_and_again_stops_and_keeps_all_in_memory(tmp_path, monkeypatch):
    folder = tmp_path / "my run"
    parts = world()
    run = Run(folder, parts["flow"].parameters, settings())
    train(run, Training(batching=TWO, **parts), 2)
    before = opened(folder)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError) as error:
        patch.setattr(files.os, "replace", refusing(os.replace, ("state.safetensors",), FULL, 100))
        train(run, Training(batching=TWO, **parts), 9)
    reached = 2 + MAX_FAILED_SAVES
    kept = f'The run "my run" is saved up to update 2. Updates up to {reached} are kept while ComfyUI runs.'
    assert str(error.value).endswith(kept) and run.updates == reached
    assert not list(folder.rglob("*.tmp"))
    left = opened(folder)
    assert same(state(left), state(before)) and left.history == before.history
    assert everything(run) == everything(go(tmp_path / "straight", reached, settings=settings()))
    check_it_goes_on(run, parts, go(tmp_path / "longer", reached + 2, settings=settings()), tmp_path)


@pytest.mark.parametrize("file", ["metrics.jsonl", "run.json", "000004.safetensors"])
def test_what_a_run_does_not_need_is_said_and_training_goes_on(tmp_path, monkeypatch, file):
    parts = world()
    run = Run(tmp_path / "run", parts["flow"].parameters, settings())
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", refusing(os.replace, (file,), READ_ONLY, 100))
        train(run, Training(batching=TWO, **parts), 5)
    assert run.saved == 5 and all("can't be written to ([Errno 30]" in sentence for sentence in run.troubles)
    assert run.troubles and not (tmp_path / "run" / file).exists()
    train(run, Training(batching=TWO, **parts), 1)
    straight = go(tmp_path / "straight", 6, settings=settings())
    assert run.troubles == [] and everything(run) == everything(straight) == everything(opened_with(run))


class Killed(BaseException):
    """The process ends here: nothing after it is done."""


@pytest.mark.parametrize("every, keep, save_every", [(2, 1, 2), (1, 2, 3)])
def test_killed_at_any_moment_the_promised_snapshots_are_there(tmp_path, monkeypatch, every, keep, save_every):
    """At each write and each deletion in turn: what the state on disk counts has its snapshots."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # it takes longer than all the rest
    chosen = Settings(learning_rate=1e-2, snapshot_every=every, keep_snapshots=keep, save_every=save_every)
    straight = go(tmp_path / "straight", 5, settings=chosen)
    for moment in count():
        folder = tmp_path / str(moment)
        parts = world()
        moments = count()

        def dying(function, moments=moments, moment=moment):
            def called(*args):
                if next(moments) >= moment:
                    raise Killed
                return function(*args)

            return called

        run = Run(folder, parts["flow"].parameters, chosen)
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "replace", dying(os.replace))
            patch.setattr(files.os, "unlink", dying(os.unlink))
            try:
                for _ in range(5):
                    make_update(run, sample_scores(run, Training(batching=TWO, **parts)), 2)
            except Killed:
                pass
            else:
                break
        saved = updates_in(folder / "state.safetensors") if (folder / "state.safetensors").exists() else 0
        promised = list(range(every, saved + 1, every))[-keep:]
        assert set(promised) <= set(whole_snapshots(folder)) == set(snapshots_in(folder))
        fresh = world()
        again = Run(folder, fresh["flow"].parameters, chosen)
        train(again, Training(batching=TWO, **fresh), 5 - again.updates)
        assert everything(again) == everything(straight)
    assert moment >= 8


@pytest.mark.parametrize("times", [1, 3])
def test_a_file_that_another_program_holds_for_a_moment_is_written_all_the_same(tmp_path, monkeypatch, times):
    held = PermissionError(
        errno.EACCES, "The process cannot access the file because it is being used by another process"
    )
    monkeypatch.setattr(files, "WAITS", (0.001,) * 5)
    monkeypatch.setattr(files.os, "replace", refusing(os.replace, ("state.safetensors",), held, times))
    run = go(tmp_path, 1, settings=Settings(save_every=1))
    assert run.saved == 1 and run.troubles == []


@pytest.mark.parametrize("reuse, saved", [(1, 2), (2, 2), (2, 3), (3, 2)])
@pytest.mark.parametrize(
    "stage, failure", [("optimiser step", "out of memory"), ("spreads", "cancel"), ("rollout", "full disk")]
)
def test_a_state_too_large_to_copy_is_taken_from_disk_where_a_step_failed(
    tmp_path, monkeypatch, stage, failure, reuse, saved
):
    """A whole model's. All failures before the step leave it as it was, since nothing has been changed.

    Its rollouts are those of the update that it goes back to.
    """
    monkeypatch.setattr(undo, "MOST_COPIED", 0)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    rare = Settings(learning_rate=1e-2, save_every=100, ema=0.9)
    batching = Batching(shape=SHAPE, batch=2, reuse=reuse)
    parts = world()
    fault = Fault(failing(FAILURES[failure]))
    run = Run(tmp_path / "run", parts["flow"].parameters, rare)
    put_in(fault, stage, run, parts)
    train(run, Training(batching=batching, **parts), saved)
    run.save = lambda *_: None
    steps = 4 if reuse == 1 else 5  # the fifth update rolls out in the third case, not in the second
    train(run, Training(batching=batching, **parts), steps - saved)
    fault.arm(1)
    at_the_step = stage in AT_THE_STEP
    if stage == "rollout" and steps % reuse:
        steps += reuse - steps % reuse  # there is none before
    with pytest.raises(type(FAILURES[failure])):
        train(run, Training(batching=batching, **parts), 3)
    del run.save
    straight = go(tmp_path / "straight", saved if at_the_step else steps, batching, rare)
    assert everything(run) == everything(straight)
    check_it_goes_on(run, parts, go(tmp_path / "longer", steps + 2, batching, rare), tmp_path, batching)


def test_a_step_that_fails_half_way_with_nothing_to_go_back_to_is_never_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(undo, "MOST_COPIED", 0)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    parts = world()
    fault = Fault(failing(FAILURES["out of memory"]))
    run = Run(tmp_path / "run", parts["flow"].parameters, settings())
    put_in(fault, "optimiser step", run, parts)
    fault.arm(1)
    with pytest.raises(torch.OutOfMemoryError):
        train(run, Training(batching=TWO, **parts), 1)
    assert run.lost
    with pytest.raises(RuntimeError, match='could not be undone in the run "run".*it begins anew'):
        train(run, Training(batching=TWO, **parts), 1)
    assert not list((tmp_path / "run").glob("*.safetensors"))
    assert everything(go(tmp_path / "run", 2, settings=settings())) == everything(
        go(tmp_path / "straight", 2, settings=settings())
    )


def test_a_failure_while_events_are_written_keeps_the_update(tmp_path, monkeypatch):
    from torch.utils.tensorboard import SummaryWriter

    def full(*_):
        raise FAILURES["full disk"]

    parts = world()
    run = Run(tmp_path / "run", parts["flow"].parameters, settings())
    with monkeypatch.context() as patch:
        patch.setattr(SummaryWriter, "add_scalar", full)
        train(run, Training(batching=TWO, **parts), 2)
    assert everything(run) == everything(opened_with(run)) and run.updates == 2
    assert len(run.troubles) == 1 and "events can't be written to any more ([Errno 28]" in run.troubles[0]
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
    with pytest.raises(RuntimeError, match="a file/run can't be written to .*: move away what lies there"):
        train(run, Training(batching=TWO, **parts), 1)
    parts["flow"].rollout = world()["flow"].rollout
    run = Run(tmp_path / "run", parts["flow"].parameters, SETTINGS)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=95))
    with pytest.raises(RuntimeError, match="0 MB free, 0 MB needed"):
        train(run, Training(batching=TWO, **parts), 1)
    monkeypatch.undo()
    train(run, Training(batching=TWO, **parts), 1)
    assert run.updates == 1


# Not a number


class SpoiltReward(TinyReward):
    """Not a number, or without a finite gradient, in the calls whose numbers are given."""

    def __init__(self, calls, spoil):
        super().__init__()
        self.calls = calls
        self.spoil = spoil

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
    parts = world()
    fault = Fault(not_a_number)
    run = Run(tmp_path, parts["flow"].parameters, settings("schedule-free AdamW"))
    put_in(fault, stage, run, parts)
    train(run, Training(batching=TWO, **parts), 2)
    before = everything(run)
    fault.arm(2)
    train(run, Training(batching=TWO, **parts), 1)
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


# A state that is not finite


def poisoned(run: Run, place: str, value: float):
    """One number of the state after a step."""
    slots = run.optimizer.state_dict()["state"][0]
    tensors = {"parameter": run.parameters["mix"].data, "average": run.ema["bias"]}
    tensors |= {slot: tensor for slot, tensor in slots.items() if isinstance(tensor, torch.Tensor) and tensor.ndim}
    if place == "spread":
        run.spreads[""].mean = value
    elif place == "rollout":
        next(iter(run.rollouts.values())).view(-1)[-1] = value
    else:
        name = place if place in tensors else next(reversed(tensors))
        tensors[name].view(-1)[-1] = value


@pytest.mark.parametrize("optimizer, value", [("AdamW", math.nan), ("Prodigy", math.inf), ("AdamW", -math.inf)])
@pytest.mark.parametrize("place", ["parameter", "average", "a slot", "rollout", "spread"])
def test_a_step_that_leaves_what_is_not_finite_is_undone_and_counts_as_skipped(
    tmp_path, caplog, optimizer, place, value
):
    chosen = settings(optimizer)
    parts = world()
    batching = Batching(shape=SHAPE, batch=2, reuse=2)
    run = Run(tmp_path / "run", parts["flow"].parameters, chosen)
    train(run, Training(batching=batching, **parts), 3)
    before = everything(run)
    remember = run.remember

    def spoil(seen):
        remember(seen)
        poisoned(run, place, value)

    run.remember = spoil
    train(run, Training(batching=batching, **parts), 1)
    del run.remember
    after = everything(run)
    assert all(after[key] == before[key] for key in ("parameters", "ema", "slots", "groups", "spreads", "rollouts"))
    assert (run.updates, run.skipped, run.saved) == (4, 1, 4) and "Update 4 skipped: " in caplog.text
    assert everything(opened_with(run)) == after
    train(run, Training(batching=batching, **parts), 1)
    assert (run.updates, run.skipped, run.skipped_in_a_row) == (5, 1, 0)


def test_a_step_of_a_large_state_that_leaves_what_is_not_finite_goes_back_and_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(undo, "MOST_COPIED", 0)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    parts = world()
    run = Run(tmp_path / "run", parts["flow"].parameters, settings())
    train(run, Training(batching=TWO, **parts), 2)
    before = everything(run)
    remember = run.remember
    run.remember = lambda seen: (remember(seen), poisoned(run, "parameter", math.nan))
    with pytest.raises(RuntimeError, match="Update 3 left numbers that are not finite in adapter.mix.* at update 2"):
        train(run, Training(batching=TWO, **parts), 1)
    del run.remember
    assert everything(run) == before == everything(opened_with(run))


def test_a_watching_reward_that_says_no_number_spoils_nothing(tmp_path):
    parts = world()
    spoilt = SpoiltReward(range(5, 9), SPOILS["loss"])
    parts["terms"] = [*parts["terms"], Term(reward=spoilt, objective=HPS, weight=0.0, name="watching")]
    run = Run(tmp_path, parts["flow"].parameters, settings())
    train(run, Training(batching=TWO, **parts), 3)
    assert run.skipped == 0 and math.isfinite(run.spreads["watching"].std)
    assert run.spreads["watching"].count < run.spreads[""].count


# Whose folder it is


@pytest.mark.parametrize("gone", ["deleted", "moved", "made anew by another"])
def test_a_folder_that_is_gone_is_not_written_to_any_more(tmp_path, gone):
    folder = tmp_path / "mine"
    parts = world()
    lock = FolderLock(tmp_path / "mine")
    run = Run(folder, parts["flow"].parameters, settings(), lock=lock)
    train(run, Training(batching=TWO, **parts), 2)
    second = None
    if gone == "moved":
        folder.rename(tmp_path / "moved")
    else:
        shutil.rmtree(folder)
    if gone == "made anew by another":
        second = FolderLock(folder)
    before = on_disk(tmp_path)
    for write in (
        lambda: train(run, Training(batching=TWO, **parts), 1),
        lambda: make_update(run, sample_scores(run, Training(batching=TWO, **parts)), 2),
        lambda: run.write_aside(folder / "samples/1.png", lambda path: path.write_bytes(b"picture")),
        run.save,
    ):
        with pytest.raises(
            FolderGone, match='folder of the run "mine".* was deleted, moved or made anew.*Move it back'
        ):
            write()
        assert on_disk(tmp_path) == before
    if gone == "moved":  # what the sentence says
        (tmp_path / "moved").rename(folder)
        train(run, Training(batching=TWO, **parts), 1)
        assert run.saved == run.updates
        lock.release()
        assert FolderLock(folder).holds()
    if second:
        assert second.holds()


@pytest.mark.parametrize("name", ["lock", "samples", "snapshots", "events"])
def test_a_link_in_a_run_s_folder_that_leads_out_is_refused(tmp_path, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).symlink_to(outside / "file" if name == "lock" else outside)
    with pytest.raises(ValueError, match=f"mine/{name} is a link to another place"):
        FolderLock(tmp_path / "mine")
    assert (outside / "file").read_text() == "precious"


def test_a_folder_has_one_run_at_a_time(tmp_path):
    first = FolderLock(tmp_path / "mine")
    with pytest.raises(ValueError, match='"mine" is open in another ComfyUI'):
        FolderLock(tmp_path / "mine")
    first.release()
    FolderLock(tmp_path / "mine").release()
