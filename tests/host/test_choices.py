"""Choices that come through links, which the host does not check: an unknown one is a sentence where it enters."""

import asyncio
import inspect
import os
import re

import pytest
from in_process import opens_at, opens_with
from workflow import DYNAMIC

UNKNOWN = ("cinematic", "", "Realism", "as typed ", "../../secret.pt", 3, None, ["realism"], float("nan"))
OWN = {"SRPO_LoadReward": ("file", "backbone"), "SRPO_Prompts": ("file",), "SRPO_Photos": ("folder",)}  # names of files


@pytest.fixture(scope="module")
def nodes(pack):
    """The pack's nodes by their ids."""
    import server

    extension = asyncio.run(pack("nodes").comfy_entrypoint())
    assert server
    return {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}


def known(node, **changes):
    """An option for each combo, the other inputs' defaults, and nothing for links: execute comes to choices first."""
    return {each.id: opens_with(each) for each in node.define_schema().inputs} | changes


def places(node, io_type):
    """Each input of this type, also inside dynamic combos, and what makes node.execute's inputs of its value."""
    for each in node.define_schema().inputs:
        if each.io_type == io_type:
            yield each, lambda value, name=each.id: {name: value}
        for option in each.options if each.io_type == DYNAMIC else ():
            chosen = opens_at(each, option)
            for inner in option.inputs:
                if inner.io_type == io_type:
                    yield inner, lambda value, name=inner.id, at=each.id, of=chosen: {at: of | {name: value}}


def test_every_combo_of_every_node_refuses_what_is_no_option(nodes):
    tried = 0
    for name, node in nodes.items():
        for each, placed in places(node, "COMBO"):
            if each.id in OWN.get(name, ()) or not each.options:
                continue
            for value in UNKNOWN:
                first = re.escape(each.options[0])
                with pytest.raises(ValueError, match=rf"(?s){each.id} is .*: choose one of {first}"):
                    node.execute(**known(node, **placed(value)))
                tried += 1
    assert tried >= 12 * len(UNKNOWN)


@pytest.mark.parametrize("name", ["memory", "adapter", "start"])
def test_a_dynamic_combo_refuses_what_is_no_option(nodes, name):
    node = next(node for node in nodes.values() if name in known(node))
    for value in UNKNOWN:
        with pytest.raises(ValueError, match=f"{name} is .*: choose one of "):
            node.execute(**known(node, **{name: {name: value}}))
    with pytest.raises(ValueError, match=f"{name} is missing, linked or no option: choose on the node itself, one of "):
        node.execute(**{key: value for key, value in known(node).items() if key != name})
    with pytest.raises(ValueError, match=f"{name}.other is given, but belongs to another choice of {name}"):
        node.execute(**known(node, **{f"{name}.other": 1}))


@pytest.mark.parametrize("value", ["nothing.pt", "../../secret.pt", "", "a\0b", "\ud800"])
def test_files_that_are_not_there(nodes, value):
    load = nodes["SRPO_LoadReward"]
    photos = nodes["SRPO_Photos"]
    with pytest.raises(ValueError, match="There is no reward model"):
        load.execute(**known(load, file=value))
    with pytest.raises(ValueError, match="There is no folder|folder is .*: (choose|there)"):
        photos.execute(**known(photos, folder=value))
    with pytest.raises(ValueError, match="There is no file|is no .txt file"):
        nodes["SRPO_Prompts"].execute(None, [""], [value])


PRESETS = "choose one of as typed, realism, "


@pytest.mark.parametrize("preset", ["cinematic", "Realism", "", 3])
def test_an_unknown_preset_trains_nothing(nodes, preset):
    node = nodes["SRPO_Objective"]
    typed = {each.id: each.default for each in node.define_schema().inputs}
    with pytest.raises(ValueError, match=f"preset is .*: {PRESETS}"):
        node.execute(**typed | {"preset": preset})
    answer = node.validate_inputs(positive="Real", negative="Flat", preset=preset)
    assert answer is not True and PRESETS in answer
    assert node.validate_inputs(positive="", negative="", preset=None) is True  # linked
    assert node.validate_inputs(positive="", negative="", preset="realism") is True
    assert "at least one word" in node.validate_inputs(positive="", negative="Flat", preset="as typed")


def test_presets_are_their_words(nodes, pack):
    node = nodes["SRPO_Objective"]
    presets = pack("srpo_core.algorithm.control_words").PRESETS
    typed = {each.id: each.default for each in node.define_schema().inputs} | {"positive": "Mine", "negative": "Yours"}
    for preset, words in {"as typed": (("Mine",), ("Yours",)), **presets}.items():
        objective = node.execute(**typed | {"preset": preset}).args[0]
        assert (objective.positive, objective.negative) == words


@pytest.mark.parametrize("how, words", [("link", "a link to gone, where nothing is"), ("pipe", "is a pipe")])
def test_listed_files_that_can_not_be_opened(pack, tmp_path, monkeypatch, how, words):
    import folder_paths

    load = pack("nodes.load_reward")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "rewards", ([str(tmp_path)], {".pt"}))
    path = tmp_path / "listed.pt"
    path.symlink_to("gone") if how == "link" else os.mkfifo(path)
    assert words in load.LoadReward.validate_inputs(file="listed.pt")
    with pytest.raises(ValueError, match=words):
        load.fetched("listed.pt", download=True)


def test_nothing_is_downloaded_without_the_tick(nodes, pack, monkeypatch):
    """Also where the file comes through a link, so that nobody could ask before."""
    published = pack("srpo_core.rewards.published")
    monkeypatch.setattr(published, "fetch", lambda *_: pytest.fail("it was downloaded"))
    load = nodes["SRPO_LoadReward"]
    assert load.validate_inputs(file=None, download=False) is True
    assert load.validate_inputs(file="HPS_v2.1_compressed.pt", download=None) is True
    with pytest.raises(ValueError, match="Or tick .download if missing"):
        load.execute(**known(load, file="HPS_v2.1_compressed.pt", download=False))


def test_a_backbone_that_is_not_there_is_said_before_the_file_is_downloaded(nodes, pack, monkeypatch):
    published = pack("srpo_core.rewards.published")
    monkeypatch.setattr(published, "fetch", lambda *_: pytest.fail("it was downloaded"))
    load = nodes["SRPO_LoadReward"]
    with pytest.raises(ValueError, match='There is no reward model "gone.pt"'):
        load.execute(**known(load, file="HPS_v2.1_compressed.pt", backbone="gone.pt", download=True))


def test_a_missing_reward_is_said_at_two_inputs_and_no_more(nodes):
    """The host says the sentence of a node once for each input that is named at queue time."""
    assert inspect.getfullargspec(nodes["SRPO_LoadReward"].validate_inputs).args[1:] == ["file", "download"]


def test_a_published_reward_that_is_not_there_is_listed_and_run_says_how_to_get_it(nodes, pack):
    """The front end's own help for missing models is silent then: the menu has the file."""
    load = nodes["SRPO_LoadReward"]
    (menu,) = (each for each in load.define_schema().inputs if each.id == "file")
    for each in pack("srpo_core.rewards.published").PUBLISHED:
        assert each.local in menu.options
        said = load.validate_inputs(file=each.local, download=False)
        wanted = (each.name, f"{each.gigabytes:g} GB", each.file, f"huggingface.co/{each.repository}", each.folder)
        assert [part for part in (*wanted, "Or tick *download if missing*") if part not in said] == []
        assert load.validate_inputs(file=each.local, download=True) is True


def test_a_file_of_prompts_that_is_linked_is_not_asked_for_yet(nodes):
    assert nodes["SRPO_Prompts"].validate_inputs(text=["a cat"], file=[None]) is True


@pytest.mark.parametrize("value", ["a\ud800b", "\udcff", None, 3, ["Real"]])
def test_texts_that_are_none(nodes, value):
    tried = 0
    for node in nodes.values():
        for each, placed in places(node, "STRING") if not node.define_schema().is_input_list else ():
            with pytest.raises(ValueError, match=f"^{each.id} (is .*give a text|holds half of a character)"):
                node.execute(**known(node, **placed(value)))
            tried += 1
    assert tried >= 8


def test_an_error_of_the_pack_has_a_built_in_type_before_its_sentence(nodes, pack):
    """The host shows the full name of the type, which would begin with the path of the pack."""
    misfit = pack("srpo_core.run.opening").Misfit("mine", "rank 4, not 8")
    gone = pack("srpo_core.run.folder").FolderGone("It is gone.")
    checked = pack("nodes.checked")

    for error, kind in ((misfit, ValueError), (gone, RuntimeError)):

        @checked.host_checked
        def execute(error=error):
            raise error

        with pytest.raises(kind, match=re.escape(str(error))) as raised:
            execute()
        assert type(raised.value) is kind


def test_every_node_raises_errors_so(nodes):
    bare = [name for name, node in nodes.items() if not hasattr(node.execute, "__wrapped__")]
    assert bare == []
