"""A run's folder as disks, people and other programs leave it: it goes on, or says what is wrong and how to go on."""

import json
import os
import shutil
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_run import go, same, state, world
from tiny_world import SHAPE

from srpo_core.run.draws import Batching
from srpo_core.run.folder import fork, saved_updates
from srpo_core.run.loop import train
from srpo_core.run.run import Run
from srpo_core.run.settings import Settings
from srpo_core.run.training import Training

SETTINGS = Settings(learning_rate=1e-2, ema=0.9, save_every=1, snapshot_every=2, keep_snapshots=2)
REUSE = Batching(shape=SHAPE, batch=2, reuse=2)
UPDATES = 5


@pytest.fixture(autouse=True)
def no_events(monkeypatch, request):
    """TensorBoard takes longer than all the rest."""
    if "events" not in request.node.name:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of five updates with snapshots of 2 and 4, an average and rollouts; nobody changes it."""
    folder = tmp_path_factory.mktemp("whole") / "mine"
    go(folder, UPDATES, REUSE, SETTINGS)
    return folder


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Runs that were never interrupted, by how many updates they made."""
    made = {}

    def run(updates):
        if updates not in made:
            made[updates] = go(tmp_path_factory.mktemp("straight"), updates, REUSE, SETTINGS)
        return made[updates]

    return run


def goes_on(folder, straight, before=UPDATES):
    run = go(folder, 1, REUSE, SETTINGS)
    assert run.updates == before + 1 and same(state(run), state(straight(before + 1)))
    assert all(torch.equal(run.ema[name], average) for name, average in straight(before + 1).ema.items())
    return run


def read(file):
    with safe_open(file, "pt") as stored:
        return {name: stored.get_tensor(name).clone() for name in stored.keys()}, dict(stored.metadata())


def changed(change):
    """What does `change` to the tensors and the header of a state."""

    def spoil(file):
        tensors, header = read(file)
        change(tensors, header)
        save_file(tensors, file, header)

    return spoil


def put(name, value):
    return changed(lambda tensors, header: tensors.__setitem__(name, value(tensors[name])))


def head(name, value):
    return changed(lambda tensors, header: header.__setitem__(name, value))


def without(name):
    return changed(lambda tensors, header: (tensors if name in tensors else header).pop(name))


def numbers(change):
    def edit(tensors, header):
        saved = json.loads(header["numbers"])
        change(saved)
        header["numbers"] = json.dumps(saved)

    return changed(edit)


def instead(make):
    def spoil(file):
        file.unlink()
        make(file)

    return spoil


def filled(value):
    def fill(tensor):
        return torch.full_like(tensor, value)

    return fill


def spread(**values):
    whole_one = {"count": 1, "mean": 0.0, "squares": 0.0}
    return head("spreads", json.dumps({"": whole_one | values}))


def without_rollouts(tensors, header):
    for name in [name for name in tensors if name.startswith("rollout.")]:
        del tensors[name]


FLOATS = ("adapter.mix", "ema.bias", "optimizer.exp_avg.mix", "optimizer.exp_avg_sq.bias", "optimizer.step.mix")
DEEP = "[" * 100_000 + "]" * 100_000
SPOILT = {
    "empty": instead(lambda file: file.touch()),
    "text": instead(lambda file: file.write_text("no safetensors")),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "a directory": instead(lambda file: file.mkdir()),
    "a link to nothing": instead(lambda file: file.symlink_to("gone")),
    "a link to itself": instead(lambda file: file.symlink_to(file.name)),
    "a pipe": instead(os.mkfifo),
    "of another program": instead(lambda file: save_file({"weight": torch.zeros(2)}, file)),
    "no header": lambda file: save_file(read(file)[0], file),
    "no tensors": changed(lambda tensors, header: tensors.clear()),
    **{f"no {name}": without(name) for name in ("updates", "skipped", "numbers", "spreads", "version", "settings")},
    **{f"no {name}": without(name) for name in ("adapter.mix", "ema.mix", "optimizer.step.mix", "data")},
    "no rollouts": changed(without_rollouts),
    "one tensor more": changed(lambda tensors, header: tensors.__setitem__("more", torch.zeros(1))),
    "a slot more": changed(lambda tensors, header: tensors.__setitem__("optimizer.more.mix", torch.zeros(2, 2))),
    **{f"{value[:9]} updates": head("updates", value) for value in ("-1", "0", "x", "1e3", "9" * 5000, "²", "", "5.0")},
    **{f"{value} skipped": head("skipped", value) for value in ("-1", "6", "nan")},
    "more skipped in a row than at all": head("skipped_in_a_row", "3"),
    "version 0": head("version", "0"),
    **{f"{name} deep": head(name, DEEP) for name in ("numbers", "spreads", "settings")},
    **{f"{name} a list": head(name, "[]") for name in ("numbers", "spreads", "settings")},
    **{f"{name} no JSON": head(name, "{'a': 1") for name in ("numbers", "spreads", "settings")},
    **{f"spread {value}": spread(mean=value) for value in ("1", None, True, float("nan"), float("inf"), 10**400, [1])},
    **{f"spread count {value}": spread(count=value) for value in (-1, 1.5, None, True)},
    "spread squares -1": spread(squares=-1.0),
    "spread too much": spread(more=1.0),
    "spreads of a number": head("spreads", '{"": 1}'),
    **{
        f"{value} in {name}": put(name, filled(value))
        for value in (float("nan"), float("inf"))
        for name in FLOATS
    },
    "negative squares": put("optimizer.exp_avg_sq.mix", filled(-1.0)),
    "a negative step": put("optimizer.step.mix", filled(-1.0)),
    "a moment of another shape": put("optimizer.exp_avg.mix", lambda t: t[:1].clone()),
    "a moment without a shape": put("optimizer.exp_avg.mix", lambda t: t[0, 0].clone()),
    "a moment of integers": put("optimizer.exp_avg.mix", lambda t: t.int()),
    "a moment in half precision": put("optimizer.exp_avg.mix", lambda t: t.half()),
    **{
        f"{name} in {dtype}": put(name, lambda t, dtype=dtype: t.to(dtype))
        for name in ("optimizer.step.mix", "ema.mix", "optimizer.exp_avg_sq.mix")
        for dtype in (torch.float8_e4m3fn, torch.complex64, torch.bool, torch.int16, torch.float64)
    },
    "an average in half precision": put("ema.mix", lambda t: t.half()),
    "an average of another shape": put("ema.mix", lambda t: t[:1].clone()),
    "no groups": numbers(lambda saved: saved["groups"].clear()),
    "two groups": numbers(lambda saved: saved["groups"].append({})),
    "groups of numbers": numbers(lambda saved: saved.__setitem__("groups", [1])),
    "a group that climbs": numbers(lambda saved: saved["groups"][0].__setitem__("maximize", True)),
    "a number of nobody": numbers(lambda saved: saved["state"].append(["step", "nobody", 1])),
    "a number too short": numbers(lambda saved: saved["state"].append([1])),
}  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_spoilt_state_is_named_and_what_the_sentence_advises_works(tmp_path, whole, straight, spoil):
    folder = tmp_path / "mine"
    shutil.copytree(whole, folder)
    spoil(folder / "state.safetensors")
    before = sorted(file.name for file in folder.rglob("*"))
    assert isinstance(saved_updates(folder), int)
    with pytest.raises(ValueError) as error:
        Run(folder, world()["flow"].parameters, SETTINGS)
    said = str(error.value)
    assert said.startswith(f'The run "mine" can\'t go on: {folder / "state.safetensors"} ')
    assert "Whole are its snapshots of the updates 2, 4" in said and '"mine@4" in start_from' in said
    assert sorted(file.name for file in folder.rglob("*")) == before
    fork(folder, 4, tmp_path / "new")
    goes_on(tmp_path / "new", straight, 4)


@pytest.mark.parametrize("spoilt, left", [((4,), (2,)), ((2,), (4,)), ((2, 4), ())])
def test_only_whole_snapshots_are_advised(tmp_path, whole, straight, spoilt, left):
    folder = tmp_path / "mine"
    shutil.copytree(whole, folder)
    for update in spoilt:
        SPOILT["nan in adapter.mix"](folder / f"snapshots/{update:06d}.safetensors")
    (folder / "snapshots/my favourite.safetensors").touch()
    (folder / "state.safetensors").write_bytes(b"")
    with pytest.raises(ValueError) as error:
        Run(folder, world()["flow"].parameters, SETTINGS)
    if left:
        assert f"snapshots of the updates {left[0]}:" in str(error.value)
        fork(folder, left[0], tmp_path / "new")
        goes_on(tmp_path / "new", straight, left[0])
    else:
        assert "None of its snapshots is whole. Put a copy of state.safetensors there" in str(error.value)
    for update in (None, *spoilt):
        with pytest.raises(ValueError) as error:
            fork(folder, update, tmp_path / "other")
        listed = f'The whole snapshots of "mine": {left[0] if left else "none"}.'
        assert "There is nothing to start from" in str(error.value) and str(error.value).endswith(listed)
        assert not (tmp_path / "other/state.safetensors").exists()


@given(st.data())
@hypothesis_settings(max_examples=20)
def test_a_state_cut_anywhere_is_refused_in_a_sentence(tmp_path_factory, whole, data):
    folder = tmp_path_factory.mktemp("cut") / "mine"
    shutil.copytree(whole, folder)
    file = folder / "state.safetensors"
    file.write_bytes(file.read_bytes()[: data.draw(st.integers(0, file.stat().st_size - 1))])
    with pytest.raises(ValueError, match="can't go on: .*start_from"):
        Run(folder, world()["flow"].parameters, SETTINGS)
    assert saved_updates(folder) in (0, UPDATES)


@given(st.data())
@hypothesis_settings(max_examples=40)
def test_a_header_changed_anywhere_is_refused_in_a_sentence_or_harmless(tmp_path_factory, whole, data):
    folder = tmp_path_factory.mktemp("changed") / "mine"
    shutil.copytree(whole, folder)
    file = folder / "state.safetensors"
    content = bytearray(file.read_bytes())
    length = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    saved_updates(folder)
    try:
        run = Run(folder, world()["flow"].parameters, SETTINGS)
    except ValueError as error:
        assert "start_from" in str(error) or "give this" in str(error) or "new name" in str(error)
    else:
        parts = world()
        run = Run(folder, parts["flow"].parameters, SETTINGS)
        train(run, Training(batching=REUSE, **parts), 1)
        assert all(tensor.isfinite().all() for tensor in run.contents()[0].values())


FOR_PEOPLE = {
    "gone": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "a directory": instead(lambda file: (file / "in it").mkdir(parents=True)),
    "a link to nothing": instead(lambda file: file.symlink_to("gone/too")),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-20]),
    "zeros": lambda file: file.write_bytes(bytes(100)),
    "deep": lambda file: file.write_text(DEEP + "\n"),
    "lists": lambda file: file.write_text("[1]\n" * UPDATES),
    "other objects": lambda file: file.write_text('{"update": "1"}\n{"loss": 1}\n{"update": 2, "loss": "x"}\n'),
    "not finite": lambda file: file.write_text('{"update": 1, "loss": NaN}\n{"update": 2, "loss": 1e999}\n'),
    "huge": lambda file: file.write_text('{"update": 1, "loss": ' + "9" * 4000 + "}\n"),
    "twice": lambda file: file.write_text(file.read_text() * 2),
    "backwards": lambda file: file.write_text("\n".join(reversed(file.read_text().splitlines()))),
}


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.json"])
@pytest.mark.parametrize("spoil", FOR_PEOPLE.values(), ids=FOR_PEOPLE)
def test_what_is_for_people_is_not_needed_to_go_on(tmp_path, whole, straight, caplog, name, spoil):
    folder = tmp_path / "mine"
    shutil.copytree(whole, folder)
    spoil(folder / name)
    run = goes_on(folder, straight)
    assert run.history[-1] == straight(UPDATES + 1).history[-1]
    if name == "metrics.jsonl":
        assert "metrics.jsonl" in caplog.text and not os.path.isdir(folder / name)
        assert [json.loads(line)["update"] for line in (folder / name).read_text().splitlines()] == [
            metrics["update"] for metrics in run.history
        ]
    again = Run(folder, world()["flow"].parameters, SETTINGS)
    assert again.history == run.history and again.updates == UPDATES + 1


def test_snapshots_of_unknown_merit_are_kept(tmp_path, whole):
    folder = tmp_path / "mine"
    shutil.copytree(whole, folder)
    (folder / "metrics.jsonl").unlink()
    go(folder, 7, REUSE, SETTINGS)
    kept = {int(file.stem) for file in (folder / "snapshots").iterdir()}
    assert {2, 4} <= kept and {10, 12} <= kept


@pytest.mark.parametrize("name", ["events", "samples", "snapshots"])
def test_a_file_in_place_of_a_folder_is_said_and_training_goes_on(tmp_path, straight, name):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).touch()
    run = go(folder, 2, REUSE, SETTINGS)
    run.write_aside(folder / "samples/1.png", lambda path: path.write_bytes(b"picture"))
    assert run.saved == 2 and same(state(run), state(straight(2)))
    assert len(run.troubles) == 1 and f"{folder / name} can't be written to" in run.troubles[0]


def test_a_run_without_its_state_goes_on_from_its_last_snapshot(tmp_path, whole, straight, caplog):
    folder = tmp_path / "mine"
    shutil.copytree(whole, folder)
    (folder / "state.safetensors").unlink()
    assert saved_updates(folder) == 4
    goes_on(folder, straight, 4)
    assert 'The run "mine" has no state.safetensors; it goes on from its snapshot 000004.safetensors.' in caplog.text
