"""Several rewards, and a person's own, on a running ComfyUI."""

import json

import prompts
import pytest
import torch
from PIL import ImageStat
from safetensors.torch import load_file

DARK = {"positive": "Flat", "negative": "Detail", "branches": "denoise"}


def metrics(host, run: str) -> list[dict]:
    return [json.loads(line) for line in (host.base / "output/srpo" / run / "metrics.jsonl").read_text().splitlines()]


def adapter(host, run: str) -> dict[str, torch.Tensor]:
    state = load_file(host.base / "output/srpo" / run / "state.safetensors")
    return {key: value for key, value in state.items() if key.startswith("adapter.")}


def with_another(prompt: dict, **settings) -> dict:
    prompt["dark"] = prompts.node("SRPO_Objective", **prompts.OBJECTIVE | DARK)
    prompt["add"] = prompts.node("SRPO_AddReward", reward=["toy", 3], objective=["dark", 0], **settings)
    prompt["train"]["inputs"]["more_rewards"] = ["add", 0]
    return prompt


def test_a_watching_reward_is_logged_and_trains_nothing(host):
    host.run(prompts.train("alone", 2))
    host.run(with_another(prompts.train("watched", 2), weight=0.0, name="flat"))
    assert "words_gap/flat" in metrics(host, "watched")[1]
    alone = adapter(host, "alone")
    watched = adapter(host, "watched")
    assert all(torch.equal(watched[key], value) for key, value in alone.items())


def test_two_rewards_of_one_picture_in_the_graph_are_the_loops(host):
    loop = with_another(prompts.train("two in a loop", 2), weight=0.5, name="flat")
    host.run(loop)
    for number in range(2):
        graph = prompts.one_step("two in a graph", prompts.noise_seed(number))
        graph["dark"] = loop["dark"]
        graph["reward"]["inputs"]["normalise"] = True
        another = graph["reward"]["inputs"] | {"objective": ["dark", 0], "weight": 0.5, "name": "flat"}
        graph["another"] = prompts.node("SRPO_Reward", **another)
        graph["step"]["inputs"]["rewards.reward1"] = ["another", 0]
        host.run(graph)
    for got, expected in zip(metrics(host, "two in a graph"), metrics(host, "two in a loop")):
        for key in ("gradient_norm", "reward_positive", "words_gap/flat"):
            assert got[key] == pytest.approx(expected[key], rel=1e-3), key


def test_two_of_one_name_are_refused(host):
    with pytest.raises(Exception, match='Two rewards are called ""'):
        host.run(with_another(prompts.train("same name", 1), name=""))


def test_the_reward_of_the_documentation_works_as_written(host):
    """Its twenty lines, beside the pack as it says, make the toy's pictures brighter."""
    prompt = prompts.train("bright", 6, {"learning_rate": 3e-3}, previews_count=4)
    prompt["objective"]["inputs"] |= {"positive": "Bright", "negative": "Dark", "threshold": 100.0}
    prompt["own"] = prompts.node("BrightnessReward")
    prompt["train"]["inputs"]["reward"] = ["own", 0]
    prompt["pictures"] = prompts.node("PreviewImage", images=["train", 3])
    entries = host.run(prompt)["outputs"]["pictures"]["images"]
    light = [ImageStat.Stat(host.picture(entry).convert("L")).mean[0] / 255 for entry in entries]
    before = sum(light[:4]) / 4
    after = sum(light[4:]) / 4
    assert after > before + 0.03, light


def test_training_stops_at_a_limit_and_says_why(host):
    settings = {"words_gap_limit": 0.001, "at_limit": "stop", "seed": 3}
    host.run(prompts.train("limited", 60, {"learning_rate": 3e-3}, **settings))
    numbers = metrics(host, "limited")
    assert 8 <= len(numbers) < 60
    first, last = (sum(n["words_gap"] for n in part) / 4 for part in (numbers[:4], numbers[-4:]))
    assert last - first > 0.001
    (said,) = [message for kind, message in host.messages if kind == "preview" and b"has risen by" in message][-1:]
    assert b"(limit 0.001), so training stopped there. Look at the pictures." in said
