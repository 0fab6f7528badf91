"""What a failure leaves of a run: in memory and on disk it is as if nothing had been tried, and it goes on the same."""

import errno
import os
import shutil
import sys
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from faults import (
    AT_THE_STEP,
    BEFORE_THE_STEP,
    FAILURES,
    OTHER_OPTIMIZERS,
    Fault,
    check_it_goes_on,
    everything,
    failing,
    on_disk,
    opened_with,
    put_in,
    settings,
)
from filelock import FileLock
from tiny_run import SETTINGS, TWO, go, opened, same, state, world
from tiny_world import SHAPE

from srpo_core import files
from srpo_core.run import undo
from srpo_core.run.draws import Batching
from srpo_core.run.folder import FolderGone, FolderLock, snapshots_in, whole_snapshots
from srpo_core.run.loop import train
from srpo_core.run.run import Run
from srpo_core.run.saving import MAX_FAILED_SAVES
from srpo_core.run.settings import Settings
from srpo_core.run.state_file import updates_in
from srpo_core.run.training import Training
from srpo_core.run.update import make_update, sample_scores

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


def test_a_folder_in_which_nothing_began_is_taken_away_again(tmp_path):
    FolderLock(tmp_path / "mine").discard()
    assert not (tmp_path / "mine").exists()
    lock = FolderLock(tmp_path / "mine")
    (tmp_path / "mine/run.json").touch()
    lock.discard()
    assert {file.name for file in (tmp_path / "mine").iterdir()} <= {"lock", "run.json"}
    FolderLock(tmp_path / "mine").release()
    assert (tmp_path / "mine/run.json").exists()


def test_a_folder_that_another_has_made_anew_is_not_taken_away(tmp_path):
    first = FolderLock(tmp_path / "mine")
    (tmp_path / "mine").rename(tmp_path / "moved")
    second = FolderLock(tmp_path / "mine")
    first.discard()
    assert second.holds()


def test_a_lock_on_a_file_that_has_lost_its_name_is_none(tmp_path, monkeypatch):
    """Between opening and locking it another discarded it, and a third has made the next."""

    class Late(FileLock):
        def acquire(self, *args, **options):
            super().acquire(*args, **options)
            os.replace(tmp_path / "of a third", self.lock_file)

    (tmp_path / "of a third").touch()
    monkeypatch.setattr("srpo_core.run.folder.FileLock", Late)
    with pytest.raises(ValueError, match='"mine" is open in another ComfyUI'):
        FolderLock(tmp_path / "mine")
