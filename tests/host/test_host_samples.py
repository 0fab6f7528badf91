"""What a run shows and leaves of itself on a running ComfyUI: a bar that moves, samples, numbers, what files say."""

import json

import prompts
import pytest
from PIL import Image
from safetensors import safe_open

from srpo_core.run.draws import Batching
from srpo_core.run.work import WorkPlan

WORKFLOW = {"workflow": {"nodes": [], "of": "the test"}}
RUN = "looked-at"
UPDATES = 3
SEEDS = (5, 6)


@pytest.fixture(scope="module")
def graph():
    return prompts.train(RUN, UPDATES, previews_every=2, previews_count=2, previews_seeds="5, 6")


@pytest.fixture(scope="module")
def messages(host, graph):
    """All that the host said of this run, whose workflow was sent along as a browser does."""
    body = {"prompt": graph, "client_id": host.client, "extra_data": {"extra_pnginfo": WORKFLOW}}
    with host._open("/prompt", body) as answer:
        host.wait(json.load(answer)["prompt_id"])
    return list(host.messages)


@pytest.fixture(scope="module")
def folder(host, messages):
    return host.base / "output/srpo" / RUN


def position(messages, text: str) -> int:
    return next(i for i, (kind, data) in enumerate(messages) if kind == "preview" and text.encode() in data)


def bar_of_train(messages):
    return [data for kind, data in messages if kind == "progress" and data["node"] == "train"]


def test_the_bar_moves_while_pictures_are_sampled(messages):
    each = prompts.STEPS + 2 * Batching.pairs
    plan = WorkPlan(first=0, updates=UPDATES, each=each, samples=2 * prompts.STEPS, every=2)
    before = bar_of_train(messages[: position(messages, "Update 1 (1 of")])
    values = [data["value"] for data in before if data["max"] == plan.until(UPDATES)]
    assert values == sorted(values)
    assert any(0 < value < plan.until(0) for value in values), "still while the samples before training are made"
    assert any(plan.until(0) < value < plan.until(1) for value in values), "still while the first update is made"
    last = bar_of_train(messages)[-1]
    assert last["value"] == last["max"] == plan.until(UPDATES)


@pytest.mark.parametrize("when", ["before", "000002", "000003"])
def test_each_sample_is_a_file_of_its_own_size_with_the_workflow(folder, graph, when):
    for i, seed in enumerate(SEEDS, 1):
        with Image.open(folder / f"samples/{when}_{i:02d}.png") as picture:
            assert picture.size == (64, 64)
            texts = {name: json.loads(text) for name, text in picture.text.items()}
        about = {"sample": when, "prompt": prompts.CAPTION, "seed": seed}
        assert texts == {"prompt": graph, "workflow": WORKFLOW["workflow"], "srpo": about}
    assert len(list((folder / "samples").iterdir())) == 3 * 2 + 2  # and a card of either update


def test_the_numbers_of_the_samples_are_in_the_metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = {"samples saturation", "samples diversity", "samples grid 16 px", "samples grid 8 px"}
    assert [names & line.keys() for line in lines] == [set(), names, names]
    assert lines[1]["samples diversity"] > 0


def test_the_sentence_at_the_end_compares_the_samples(messages):
    text = messages[position(messages, "Samples: ")][1].decode(errors="replace")
    for name in ("saturation", "diversity", "grid 16 px", "grid 8 px"):
        assert f"{name} " in text.partition("Samples: ")[2]


def test_the_lora_says_what_it_was_trained_with(host, folder):
    name = f"srpo/{RUN}/{RUN}_000003.safetensors"
    with safe_open(host.base / "output/loras" / name, "pt") as file:
        header = file.metadata()
    assert host.get(f"/view_metadata/loras?filename={name}") == header
    assert header["modelspec.sai_model_spec"] == "1.0.0" and header["modelspec.architecture"] == "flux/lora"
    assert header["modelspec.title"] == f"{RUN}, update 3" and header["srpo.updates"] == "3"
    assert "towards Natural-lighting, Detail, away from Painting, Flat" in header["modelspec.description"]
    adapter, settings, rewards = (json.loads(header[f"srpo.{name}"]) for name in ("adapter", "settings", "rewards"))
    assert (adapter["kind"], adapter["rank"], adapter["target"]) == ("LoRA", prompts.ADAPTER["rank"], "all")
    assert settings["learning_rate"] == 1e-3 and settings["optimizer"] == "AdamW"
    assert [(entry["reward"], entry["weight"]) for entry in rewards] == [("toy CLIP", 1.0)]
    assert rewards[0]["objective"]["positive"] == ["Natural-lighting", "Detail"]
    assert header["srpo.base"] == "Flux" and header["srpo.data"].startswith("1 prompts (")


def test_one_step_node_by_node_says_so_too(host):
    host.run(prompts.one_step("stepped", prompts.noise_seed(0)))
    with safe_open(host.base / "output/loras/srpo/stepped/stepped_000001.safetensors", "pt") as file:
        assert "towards Natural-lighting, Detail" in file.metadata()["modelspec.description"]
