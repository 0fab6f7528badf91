"""Out of memory inside ComfyUI, folders that can't be written to, wrong gradients: what the next queue finds."""

import json

import prompts
import pytest
import torch
from host_server import HostError
from safetensors.torch import load_file


def state(host, run: str) -> dict[str, torch.Tensor]:
    return load_file(host.base / "output/srpo" / run / "state.safetensors")


def test_out_of_memory_leaves_the_last_update_and_the_next_queue_goes_on(host):
    host.run(prompts.train("memory enough", 3, batch=2))
    prompt = prompts.train("out of memory", 2, batch=2)
    # Each runs again for its backward: some check the model and its gradient, and eight are an update.
    prompt["once"] = prompts.node("OutOfMemoryOnce", model=["toy", 0], call=15)
    prompt["trainer"]["inputs"]["model"] = ["once", 0]
    with pytest.raises(HostError, match="SRPO_Train: .*OutOfMemory"):
        host.run(prompt)
    said = host.run({"ask": prompts.node("InTraining"), "show": prompts.node("PreviewAny", source=["ask", 0])})
    assert said["outputs"]["show"]["text"] == ["False"]
    assert json.loads((host.base / "output/srpo/out of memory/run.json").read_text())["updates"] == 1
    host.run(prompt)
    whole = state(host, "memory enough")
    short = state(host, "out of memory")
    assert whole.keys() == short.keys() and all(torch.equal(short[key], value) for key, value in whole.items())


@pytest.mark.parametrize("place, run", [("srpo", "run in the way"), ("loras/srpo", "LoRAs in the way")])
def test_a_folder_that_cannot_be_written_to_is_refused_before_training(host, place, run):
    file = host.base / "output" / place / run
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    with pytest.raises(HostError, match=f"SRPO_Trainer: .*output/{place}/{run} can't be written to"):
        host.run(prompts.train(run, 1))
    file.unlink()
    host.run(prompts.train(run, 1))


@pytest.mark.parametrize("place", ["srpo/disk full/samples", "loras/srpo/disk full"])
def test_pictures_and_loras_that_cannot_be_written_are_said_and_training_goes_on(host, place):
    """Their folders alone are in the way, so that all else is kept."""
    host.run(prompts.train("disk full", 1))
    before = updates(host, "disk full")
    folder = host.base / "output" / place
    folder.rename(folder.with_name("old"))
    folder.touch()
    host.run(prompts.train("disk full", 1, previews_every=1))
    said = b"".join(data for kind, data in host.messages if kind == "preview").decode(errors="replace")
    assert f"output/{place} can't be written to" in said and f"saved up to update {before + 1}." in said
    folder.unlink()
    folder.with_name("old").rename(folder)
    host.run(prompts.train("disk full", 1))
    assert updates(host, "disk full") == before + 2


def updates(host, run: str) -> int:
    return json.loads((host.base / "output/srpo" / run / "run.json").read_text())["updates"]


WRONG = "gradient of this model is wrong.*0.50 times that.*leave such things out.*Nothing was changed"


@pytest.mark.parametrize("made", [prompts.train, prompts.one_step])
def test_both_ways_to_train_stop_with_the_sentence_and_go_on_without_the_fault(host, made):
    name = f"half the gradient {made.__name__}"
    whole = f"{name} whole"
    wanted = made(name, 1)
    wanted["half"] = prompts.node("HalfTheGradient", model=["toy", 0])
    wanted["trainer"]["inputs"]["model"] = ["half", 0]
    with pytest.raises(HostError, match=WRONG):
        host.run(wanted)
    folder = host.base / "output/srpo" / name
    assert not (folder / "state.safetensors").exists()
    for run in (whole, name):
        host.run(made(run, 1))
    assert json.loads((folder / "run.json").read_text())["updates"] == 1
    ours = state(host, name)
    theirs = state(host, whole)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], value) for key, value in theirs.items())
