"""What SRPO Train says on its node, and what is saved where nobody queues again."""

import asyncio
import json
import os
import uuid
from pathlib import Path
from types import SimpleNamespace

import prompts
import pytest
import torch
import websocket
from find_host import ROOT

PHOTOS = ("prompts", "content", "prepare", "cond", "cond_shape", "shape", "latents")  # what a PhotoDataset has


CHINESE = json.loads((ROOT / "locales/zh/summaries.json").read_text("utf-8"))


def history(*gaps):
    return [{"words_gap": gap, "saturation": 0.5 + gap} for gap in gaps]


@pytest.mark.parametrize(
    "gaps, sentence",
    [
        ([0.1], "words-gap +0.100, saturation 0.60"),
        (
            [0.1, 0.3, 0.2],
            "words-gap +0.100 -> +0.200, saturation 0.60 -> 0.70 (the first and the last update)",
        ),
        (
            [0.0, 0.2, 0.1, 0.1, 9.0, 0.3, 0.1, 0.2, 0.2],
            "words-gap +0.100 -> +0.200, saturation 0.60 -> 0.70 (means of the first and the last 4 updates)",
        ),
    ],
)
def test_means_are_compared_and_no_two_updates(pack, gaps, sentence):
    assert pack("nodes.messages").changes(history(*gaps)) == sentence


def test_what_is_kept_of_a_training_that_stopped(pack):
    stopped = pack("nodes.messages").stopped
    adapter = SimpleNamespace(whole_layers=False)
    opened = SimpleNamespace(name="toy", run=SimpleNamespace(saved=3), settings=SimpleNamespace(adapter=adapter))
    kept = "Stopped. The run srpo/toy is kept up to update 3. Run again makes "
    assert stopped(opened, 42, None) == kept + "42 updates from there, to update 45."
    assert stopped(opened, 1, None) == kept + "1 update from there, to update 4."
    assert "LoRA: could not be written" in stopped(opened, 42, Path("gone"))
    opened.run.saved = 0
    assert stopped(opened, 42, None).startswith("Stopped. No update was finished. Run again makes 42 updates")


def test_time_left_follows_from_the_updates_that_are_made(pack):
    line = pack("nodes.messages").update_line({"update": 19.0, "words_gap": -0.25}, 3, 9, 60.0)
    assert line == "Update 19 (3 of 9): words-gap -0.250.\n20.0 s each, about 2 minutes left."


@pytest.mark.parametrize(
    "seconds, said",
    [
        (0, ""),
        (20, ", less than a minute left"),
        (50, ", about 1 minute left"),
        (85, ", about 1 minute left"),
        (1000, ", about 17 minutes left"),
    ],
)
def test_what_is_left_is_said_in_whole_minutes(pack, seconds, said):
    assert pack("nodes.messages").time_left(seconds) == said


def test_at_a_limit_it_says_whether_training_stopped(pack):
    warning = pack("nodes.messages").warning
    assert warning(8, {"a": "b is high"}, stops=False) == "At update 8 b is high. Look at the pictures."
    assert "b is high, so training stopped there." in warning(8, {"a": "b is high"}, stops=True)


@pytest.mark.parametrize("both", ["prompts", "photos"])
def test_a_mix_says_which_dataset_is_at_the_wrong_input(pack, both):
    mix = pack("nodes.mix")
    texts = pack("nodes.prompts").Prompts([], [])
    pictures = SimpleNamespace(**{name: len for name in PHOTOS})
    given = {"prompts": (texts, texts), "photos": (pictures, pictures)}[both]
    wrong = "Prompts" if both == "prompts" else "Photos"
    right = "Photos" if both == "prompts" else "Prompts"
    with pytest.raises(
        ValueError, match=f"At {right.lower()} is the dataset of SRPO {wrong}: connect SRPO {right} there"
    ):
        mix.MixNode.execute(prompts=given[0], photos=given[1], photo_share=0.5)


def test_memory_is_planned_for_photos_in_their_own_size(pack):
    largest_shape = pack("nodes.training").largest_shape
    texts = pack("nodes.prompts").Prompts([], [])
    latents = lambda indices: torch.zeros(1, 16, 12, 10)  # noqa: E731
    photos = SimpleNamespace(**{name: len for name in PHOTOS} | {"latents": latents})
    assert largest_shape((16, 8, 8), texts, None) == (16, 8, 8)
    assert largest_shape((16, 8, 8), texts, photos) == largest_shape((16, 90, 90), photos, None) == (16, 12, 10)
    assert largest_shape((16, 90, 90), texts, photos) == (16, 90, 90)


def test_each_queue_of_train_step_is_saved(host):
    for number in range(2):
        host.run(prompts.one_step("rarely saved", prompts.noise_seed(number), {"save_every": 100}))
        about = json.loads((host.base / "output/srpo/rarely saved/run.json").read_text())
        assert about["updates"] == number + 1


@pytest.mark.parametrize(
    "folder, warns",
    [("ComfyUI-SRPO", False), ("srpo_1.2", False), ("My SRPO", True), ("\u8bad\u7ec3", True), ("a#b", True)],
)
def test_a_folder_from_which_the_host_serves_no_pages_is_told_of(pack, folder, warns, monkeypatch, caplog):
    nodes = pack("nodes")
    monkeypatch.setattr(nodes, "FOLDER", folder)
    asyncio.run(nodes.comfy_entrypoint())
    assert (f'from a folder called "{folder}": rename it' in caplog.text) == warns


@pytest.fixture
def front_end(pack, tmp_path, monkeypatch):
    """The pack as a host loads it: gives the file of the front end's settings, and the host's server."""
    import folder_paths
    from server import PromptServer

    server = SimpleNamespace(client_id="client", sockets={})
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    monkeypatch.setattr(PromptServer, "instance", server, raising=False)
    monkeypatch.setattr(pack("nodes.host.language"), "_accepted", {})
    language = pack("srpo_core.language")
    asyncio.run(pack("nodes").SRPOExtension().on_load())
    (tmp_path / "default").mkdir()
    yield tmp_path / "default/comfy.settings.json", server
    language.use(dict)


def socket_of(accepted):
    """A browser's, as the host keeps it."""
    return SimpleNamespace(_req=SimpleNamespace(headers={"Accept-Language": accepted}))


def test_summaries_are_in_the_language_that_is_chosen_in_the_front_end(pack, front_end):
    settings, _ = front_end
    summary = pack("nodes.prompts").prompts_summary
    assert summary(["a"] * 1000) == "1,000 prompts."
    chinese = CHINESE["{count:,} prompts."].format(count=1000)
    expected = [("zh", chinese), ("zh-TW", chinese), ("fr", "1,000 prompts."), ("en", "1,000 prompts.")]
    for number, (language, sentence) in enumerate(expected):
        settings.write_text(json.dumps({"Comfy.Locale": language}))
        os.utime(settings, (number, number))
        assert summary(["a"] * 1000) == sentence


@pytest.mark.parametrize(
    "content", ["", "{", '["Comfy.Locale"]', '{"Comfy.Locale": 7}', '{"Comfy.Locale": "../zh"}', "[" * 10**5, "\0\xff"]
)
def test_a_broken_file_of_settings_leaves_english(pack, front_end, content):
    front_end[0].write_bytes(content.encode("latin-1"))
    assert pack("nodes.prompts").prompts_summary(["a"]) == "1 prompt."


def test_without_a_choice_it_is_the_browsers_language_that_queued(pack, front_end):
    settings, server = front_end
    summary = pack("nodes.prompts").prompts_summary
    chinese = CHINESE["{count} prompt."].format(count=1)
    server.sockets["another"] = socket_of("zh-CN")
    assert summary(["a"]) == "1 prompt."
    server.sockets["client"] = socket_of("zh-CN,zh;q=0.9,en;q=0.8")
    assert summary(["a"]) == chinese
    server.sockets.clear()  # closed during a long training
    assert summary(["a"]) == chinese
    settings.write_text('{"Comfy.Locale": "en"}')
    assert summary(["a"]) == "1 prompt."


def test_with_many_users_it_is_english(pack, front_end, monkeypatch):
    from comfy.cli_args import args

    front_end[0].write_text('{"Comfy.Locale": "zh"}')
    monkeypatch.setattr(args, "multi_user", True)
    assert pack("nodes.prompts").prompts_summary(["a"]) == "1 prompt."


def test_the_host_hands_on_the_language_of_a_browser(host, monkeypatch):
    """What the sockets of a real ComfyUI keep of a browser."""
    client = uuid.uuid4().hex
    address = f"ws://{host.address}/ws?clientId={client}"
    socket = websocket.create_connection(address, timeout=30, header=["Accept-Language: zh-CN,zh;q=0.9"])
    monkeypatch.setattr(host, "client", client)
    monkeypatch.setattr(host, "socket", socket)
    entry = host.run(
        {
            "toy": prompts.node("SRPO_ToyModels"),
            "prompts": prompts.node("SRPO_Prompts", clip=["toy", 1], text="a cat", file="none"),
            "show": prompts.node("PreviewAny", source=["prompts", 1]),
        }
    )
    socket.close()
    assert entry["outputs"]["show"]["text"] == [CHINESE["{count} prompt."].format(count=1)]
