"""What a run leaves on disk: to go on from, to branch from, to read."""

import json
import os
import re
import sys

import pytest
import torch
from safetensors.torch import save_file
from tiny_run import SETTINGS, TWO, go, opened, same, state, world
from tiny_world import TinyData
from torch.nn import Parameter

from srpo_core.files import write_whole
from srpo_core.run import saving
from srpo_core.run.folder import fork, saved_updates
from srpo_core.run.history import recent_words_gap
from srpo_core.run.loop import train
from srpo_core.run.run import Run
from srpo_core.run.settings import Settings
from srpo_core.run.training import Training
from srpo_core.run.update import make_update, sample_scores

# What it leaves on disk


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_who_can_read_a_file_is_as_for_any_new_file(tmp_path, mask):
    """A LoRA and a state, too: safetensors' own files are their owner's alone."""
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "lora.safetensors", lambda path: save_file({"a": torch.zeros(2)}, path))
        write_whole(tmp_path / "metrics.jsonl", lambda path: path.write_text("{}"))
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o666 & ~mask}


@pytest.mark.parametrize("pieces", [(3, 4), (1, 5, 1)])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, pieces):
    straight = go(tmp_path / "straight", 7)
    for updates in pieces:
        resumed = go(tmp_path / "pieces", updates)
    assert same(state(resumed), state(straight))
    assert resumed.history == straight.history and resumed.updates == 7
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("straight", "pieces")]
    assert lines[0] == lines[1]


def test_resumed_from_a_kill_equals_uninterrupted(tmp_path):
    """Killed without a word, a run goes on from the last saved state, and comes to the same."""
    straight = go(tmp_path / "straight", 5, settings=Settings(learning_rate=1e-2, save_every=2))

    parts = world()
    run = Run(tmp_path / "killed", parts["flow"].parameters, Settings(learning_rate=1e-2, save_every=2))
    for _ in range(3):
        make_update(run, sample_scores(run, Training(batching=TWO, **parts)), 2)
    assert saved_updates(tmp_path / "killed") == 2
    resumed = go(tmp_path / "killed", 3)
    assert same(state(resumed), state(straight)) and resumed.history == straight.history


def test_cancel_keeps_the_last_finished_update(tmp_path):
    class Cancelled(Exception):
        pass

    def cancel(metrics):
        if metrics["update"] == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        go(tmp_path / "cancelled", 7, on_update=cancel)
    assert saved_updates(tmp_path / "cancelled") == 3
    straight = go(tmp_path / "straight", 7)
    assert same(state(go(tmp_path / "cancelled", 4)), state(straight))


def test_saved_updates(tmp_path):
    assert saved_updates(tmp_path / "nothing") == 0
    go(tmp_path / "run", 3)
    assert saved_updates(tmp_path / "run") == 3


def test_metrics_are_one_json_object_per_update(tmp_path):
    run = go(tmp_path, 3)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == run.history and len(lines) == 3


def test_run_json_tells_people_what_is_there(tmp_path):
    go(tmp_path, 3)
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["updates"] == 3 and about["settings"]["learning_rate"] == SETTINGS.learning_rate
    assert about["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    "other",
    [
        {"mix": Parameter(torch.zeros(2, 2))},
        {"mix": Parameter(torch.zeros(2, 2)), "bias": Parameter(torch.zeros(3, 1, 1))},
        {"mix": Parameter(torch.zeros(2, 2)), "other": Parameter(torch.zeros(2, 1, 1))},
    ],
    ids=["missing", "shape", "name"],
)
def test_another_adapter_in_the_folder_is_refused(tmp_path, other):
    go(tmp_path / "mine", 1)
    with pytest.raises(ValueError, match='The run "mine" was made with another model'):
        Run(tmp_path / "mine", other)
    assert all((parameter == 0).all() for parameter in other.values())


# Snapshots


def snapshots(folder):
    return [int(file.stem) for file in sorted((folder / "snapshots").iterdir())]


def test_snapshots_keep_the_last_and_the_best(tmp_path, monkeypatch):
    merits = {2: 0.1, 4: 0.9, 6: 0.2, 8: 0.3, 10: 0.4}
    monkeypatch.setattr(saving, "recent_words_gap", lambda history, update: merits[update])
    go(tmp_path, 10, settings=Settings(snapshot_every=2, keep_snapshots=2, save_every=100))
    assert snapshots(tmp_path) == [4, 8, 10]


def test_a_snapshot_s_merit_is_the_mean_of_the_updates_before_it(tmp_path):
    run = go(tmp_path, 12)
    gaps = [metrics["words_gap"] for metrics in run.history]
    assert recent_words_gap(run.history, 10) == pytest.approx(sum(gaps[2:10]) / 8)
    assert recent_words_gap(run.history, 3) == pytest.approx(sum(gaps[:3]) / 3)


@pytest.mark.parametrize("update", [4, None])
def test_a_branch_is_the_run_as_it_was(tmp_path, update):
    settings = Settings(learning_rate=1e-2, snapshot_every=2)
    go(tmp_path / "source", 6, settings=settings)
    fork(tmp_path / "source", update, tmp_path / "fork")
    branched = go(tmp_path / "fork", 3, settings=settings)
    straight = go(tmp_path / "straight", (update or 6) + 3, settings=settings)
    assert same(state(branched), state(straight)) and branched.history == straight.history


def test_a_branch_from_nowhere_is_refused(tmp_path):
    go(tmp_path / "source", 4, settings=Settings(snapshot_every=2))
    with pytest.raises(ValueError, match="no snapshot of update 3 to start from in .*; its snapshots: 2, 4"):
        fork(tmp_path / "source", 3, tmp_path / "fork")
    with pytest.raises(ValueError, match="no run to start from"):
        fork(tmp_path / "nothing", None, tmp_path / "fork")


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    go(tmp_path, 2)
    before = set(tmp_path.rglob("*"))
    (tmp_path / "run.json.tmp").write_bytes(b"half")
    (tmp_path / ".tmpxUGF23").write_bytes(b"half")  # as safetensors calls them
    opened(tmp_path)
    assert set(tmp_path.rglob("*")) == before


# What a run tells


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written = EventAccumulator(str(folder / "events")).Reload()
    return {name: [(e.step, e.value) for e in written.Scalars(name)] for name in written.Tags()["scalars"]}


def test_tensorboard_shows_each_update_once(tmp_path):
    settings = Settings(learning_rate=1e-2, save_every=2)
    go(tmp_path, 2, settings=settings)
    parts = world()
    lost = Run(tmp_path, parts["flow"].parameters, settings)
    lost.save = lambda: None  # as in a process that dies
    train(lost, Training(batching=TWO, **parts), 1)
    run = go(tmp_path, 2, settings=settings)
    shown = scalars(tmp_path)
    for name in ("loss", "words_gap", "gradient_norm"):
        assert shown[name] == [(m["update"], pytest.approx(m[name], rel=1e-6)) for m in run.history]


def test_without_tensorboard_a_run_trains_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert go(tmp_path, 1).updates == 1 and not (tmp_path / "events").exists()


def test_changed_data_is_named(tmp_path, caplog):
    def go_on(count, first=0):
        parts = world() | {"dataset": TinyData(count)}
        parts["dataset"].prompts = parts["dataset"].prompts[first:]
        caplog.clear()
        with caplog.at_level("INFO", "srpo_core.run.run"):
            train(Run(tmp_path / "my run", parts["flow"].parameters, SETTINGS), Training(batching=TWO, **parts), 1)
        return caplog.text

    assert "goes on with" not in go_on(5) + go_on(5)
    digests = r"5 prompts \(([0-9a-f]{8})\); until now it was 5 prompts \(([0-9a-f]{8})\)"
    other = re.search(f'The run "my run" goes on with {digests}', go_on(6, first=1))
    assert other and other[1] != other[2]
    assert "goes on with 3 prompts" in go_on(3) and "goes on with" not in go_on(3)


def test_changed_settings_are_named(tmp_path, caplog):
    go(tmp_path, 2)
    with caplog.at_level("INFO"):
        go(tmp_path, 1, settings=Settings(learning_rate=5e-3, ema=0.9))
    assert "goes on with other settings: learning_rate 0.01 -> 0.005, ema 0.0 -> 0.9." in caplog.text
