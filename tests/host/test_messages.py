"""What SRPO Train says on its node, and what is saved where nobody queues again."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import prompts
import pytest

PHOTOS = ("prompts", "content", "prepare", "cond", "cond_shape", "shape", "latents")  # what a PhotoDataset has


def history(*gaps):
    return [{"words_gap": gap, "saturation": 0.5 + gap} for gap in gaps]


@pytest.mark.parametrize(
    "gaps, sentence",
    [
        ([0.1], "words-gap +0.100, saturation 0.60"),
        (
            [0.1, 0.3, 0.2],
            "words-gap +0.100 -> +0.200, saturation 0.60 -> 0.70 (means of the first and the last 1 update)",
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
    assert (
        stopped(opened, None) == "Stopped. The run srpo/toy is kept up to update 3. The next queue goes on from there."
    )
    assert "LoRA: could not be written" in stopped(opened, Path("gone"))
    opened.run.saved = 0
    assert stopped(opened, None).startswith("Stopped. No update was finished.")


def test_time_left_follows_from_the_updates_that_are_made(pack):
    line = pack("nodes.messages").update_line({"words_gap": -0.25}, 3, 9, 60.0)
    assert line == "Update 3 of 9, 20.0 s each, about 2 minutes left: words-gap -0.250."


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
