"""Runs of the host: which folders they may have, what else they can begin at, and how one makes way for another."""

import json
import shutil

import prompts
import pytest
from host_server import HostError
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

NO_NAMES = [
    *("", ".", "..", "../evil", "../../evil", "a/../../evil", "a/b", "a\\b", "..\\evil", "/evil", "C:\\evil", "C:evil"),
    *(
        "~",
        ".hidden",
        "a.",
        "a ",
        " a",
        "a..",
        "a\0b",
        "a\n",
        "\na",
        "a\tb",
        "a:b",
        "a*",
        "a|b",
        "x" * 65,
        "x" * 100_000,
    ),
    *("con", "NUL", "nul.txt", "Con .txt", "aux", "COM1", "lpt9.safetensors", "prn. x"),
    *("caf\u00e9", "\uff0e\uff0e/evil", "a\u2215b", "a\u202eb", "\u0430dmin", "\U0001f600"),
    *(None, 3, 1.5, True, ["a"], {"a": 1}, b"a"),
]


@pytest.fixture(scope="module")
def output(pack, tmp_path_factory):
    """The output folder of the host in this process."""
    import folder_paths

    kept = folder_paths.get_output_directory()
    folder = tmp_path_factory.mktemp("output")
    folder_paths.set_output_directory(str(folder))
    yield folder
    folder_paths.set_output_directory(kept)


def nothing(name):
    """No run is open, so none is to be saved."""


def makers(pack):
    folders = pack("nodes.folders")
    return folders.run_folder, folders.lora_folder, folders.model_folder, folders.cache_folder


@pytest.mark.parametrize("name", NO_NAMES, ids=lambda name: repr(name)[:20])
def test_no_path_is_made_of_a_name_that_is_none(pack, output, name):
    for make in (*makers(pack), lambda name: pack("nodes.open_run").fork_from(name, "other", nothing)):
        with pytest.raises(ValueError, match="can't be a run name"):
            make(name)
    assert not list(output.iterdir())


@given(name=st.text() | st.text("ab./\\ :~-", max_size=12))
@hypothesis_settings(max_examples=60)
def test_whatever_the_name_its_folder_is_inside(pack, output, name):
    for make in makers(pack):
        try:
            folder = make(name)
        except ValueError:
            continue
        assert folder.parent.resolve().is_relative_to(output) and folder.name.lstrip(".") == name
        assert len(folder.relative_to(output).parts) in (2, 3)


NO_STARTS = ["../evil", "a@b", "a@", "a@-1", "a@1.0", "a@\u00b2", "a@" + "9" * 5000, "a@1@2", "@1", "@", "", " "]


def test_an_open_run_without_an_update_begins_where_it_shall_now(host):
    host.run(prompts.train("where it begins", 2))
    host.run({**prompts.base("open"), "show": prompts.node("PreviewAny", source=["trainer", 1])})
    host.run(prompts.train("open", 1, {"start_from": "where it begins"}))
    assert json.loads((host.base / "output/srpo/open/run.json").read_text())["updates"] == 3


@pytest.mark.parametrize("start", NO_STARTS, ids=lambda start: repr(start)[:20])
def test_what_names_no_run_to_start_from_is_refused(pack, output, start):
    with pytest.raises(ValueError, match="can't be a run name|names no snapshot|names no run"):
        pack("nodes.open_run").fork_from("new", start, nothing)
    assert not list(output.iterdir())


def test_a_run_s_folder_that_is_a_link_leads_nowhere(pack, output, tmp_path):
    for make in makers(pack)[:3]:
        folder = make("linked")
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(tmp_path)
        with pytest.raises(ValueError, match="linked is a link to another place"):
            make("linked")
        folder.unlink()
        assert make("linked") == folder


def everything_below(folder):
    """All files and their bytes but the host's log and the locks of runs, which begin with one."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name not in ("host.log", "lock"))
    return {file: file.read_bytes() for file in files}


def linked(prompt: dict, **texts) -> dict:
    """The prompt, with these inputs of its trainer linked to texts, which the host validates nowhere."""
    for name, text in texts.items():
        prompt[name] = prompts.node("PrimitiveString", value=text)
        place = "start.start_from" if name == "start_from" else name
        prompt["trainer"]["inputs"][place] = [name, 0]
        if name == "start_from":
            prompt["trainer"]["inputs"]["start"] = "another run"
    return prompt


def test_linked_names_write_nothing_outside(host):
    host.run(prompts.train("honest", 1))
    before = everything_below(host.base)
    for name, start in [
        ("../../evil", "honest"),
        (str(host.base / "evil"), "honest"),
        ("honest/../../../evil", "honest"),
        ("new", "../srpo/honest"),
        ("new", "honest@../../../state"),
        ("NUL", "honest"),
    ]:
        with pytest.raises(HostError, match="SRPO_Trainer: .*(can't be a run name|names no snapshot)"):
            host.run(linked(prompts.train("x", 1), run_name=name, start_from=start))
        assert everything_below(host.base) == before
    assert not list(host.base.parent.rglob("evil*"))
    with pytest.raises(HostError, match='There is a run "honest" already.*"Honest" would be the same folder'):
        host.run(prompts.train("Honest", 1))


def test_a_run_that_another_comfyui_has_open_is_not_begun_again(host, pack):
    from srpo_core.run.folder import FolderLock

    host.run(prompts.train("source", 1))
    lock = FolderLock(host.base / "output/srpo/theirs")
    with pytest.raises(HostError, match='"theirs" is open in another ComfyUI'):
        host.run(linked(prompts.train("theirs", 1, {"start_from": "source"}), run_name="theirs"))
    assert [file.name for file in (host.base / "output/srpo/theirs").iterdir()] == ["lock"]
    lock.release()
    host.run(prompts.train("theirs", 1, {"start_from": "source"}))
    assert updates(host, "theirs") == 2


def updates(host, run: str) -> int:
    return json.loads((host.base / "output/srpo" / run / "run.json").read_text())["updates"]


def test_a_start_that_does_not_fit_spoils_no_name(host):
    host.run(prompts.train("rank four", 1))
    with pytest.raises(HostError, match='can\'t begin at "rank four", which was made with rank 4, not 2: set that'):
        host.run(prompts.train("begins there", 1, {"start_from": "rank four", "rank": 2, "alpha": 4.0}))
    left = [host.base / "output" / place / "begins there" for place in ("srpo", "loras/srpo")]
    assert not any(folder.exists() for folder in left)
    host.run(prompts.train("begins there", 1, {"start_from": "rank four"}))
    assert updates(host, "begins there") == 2


def test_a_spoilt_run_is_named_on_its_node_and_its_snapshot_is_gone_on_from(host):
    settings = {"snapshot_every": 1}
    host.run(prompts.train("spoilt", 2, settings))
    host.run(prompts.train("another", 1))
    file = host.base / "output/srpo/spoilt/state.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(
        HostError, match='The run "spoilt" can\'t go on: .*of the updates 1, 2: .*"spoilt@2" in start_from'
    ):
        host.run(prompts.train("spoilt", 1, settings))
    host.run(prompts.train("spoilt again", 1, settings | {"start_from": "spoilt@2"}))
    assert updates(host, "spoilt again") == 3


def test_a_run_that_cannot_be_saved_keeps_no_other_from_starting_and_is_saved_later(host):
    host.run(prompts.train("stuck", 1))
    state = host.base / "output/srpo/stuck/state.safetensors"
    state.rename(state.with_name("kept"))
    (state / "in the way").mkdir(parents=True)
    with pytest.raises(HostError, match="stuck can't be written to .* Updates up to 2 are kept while ComfyUI runs"):
        host.run(prompts.train("stuck", 1))
    host.run(prompts.train("free", 1))
    assert 'The run "stuck" could not be closed and stays open' in host.log and updates(host, "free") == 1
    shutil.rmtree(state)
    host.run(prompts.train("stuck", 1))
    assert state.is_file() and updates(host, "stuck") == 3


def test_a_run_whose_folder_was_deleted_while_it_was_open_begins_anew(host):
    host.run(prompts.train("deleted", 2))
    shutil.rmtree(host.base / "output/srpo/deleted")
    host.run(prompts.train("deleted", 1))
    assert updates(host, "deleted") == 1


def test_a_run_of_which_only_the_state_was_kept_goes_on(host):
    host.run(prompts.train("copied", 2))
    host.run(prompts.train("meanwhile", 1))  # closes it
    folder = host.base / "output/srpo/copied"
    for name in ("metrics.jsonl", "run.json", "samples", "events", "lock"):
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink(missing_ok=True)
    host.run(prompts.train("copied", 1))
    assert updates(host, "copied") == 3 and "metrics.jsonl lacks 2 of 2 updates" in host.log
