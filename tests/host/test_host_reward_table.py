"""SRPO Reward Table on the real host, with the toy models."""

import json
import re

import numpy as np
import prompts
import pytest
import torch
from host_server import HostError
from PIL import Image

from srpo_core.rewards import clip_reward
from srpo_core.toy import models

WORDS = ("Natural-lighting", "Photo")
NEGATIVE = ("Painting", "CG Render")
COUNT = 5


def table(images: list, **options) -> dict:
    """Toy models and the table ("table") of these pictures."""
    asked = {"prompt": prompts.CAPTION, "words": "\n".join(WORDS), "negative": "\n".join(NEGATIVE)}
    inputs = {"reward": ["toy", 3], "images": images, **asked, "best": 3, "show_gradients": True, **options}
    return {"toy": prompts.node("SRPO_ToyModels"), "table": prompts.node("SRPO_RewardTable", **inputs)}


def empty(width=16, height=16, count=1) -> dict:
    return prompts.node("EmptyImage", width=width, height=height, batch_size=count, color=0x3366AA)


def texts(*names) -> dict:
    """Outputs of the table as text: "text <output>"."""
    return {f"text {i}": prompts.node("PreviewAny", source=["table", i]) for i in names}


def saved(name: str, images: list) -> dict:
    return {f"save {name}": prompts.node("SaveImage", images=images, filename_prefix=name)}


def pixels(host, outputs, name) -> np.ndarray:
    """(N, H, W, 3) of what `saved(name)` saved."""
    return np.stack([np.asarray(host.picture(entry)) for entry in outputs[f"save {name}"]["images"]])


@pytest.fixture(scope="module")
def ranked(host):
    """Everything that comes of a batch of toy samples."""
    sampled = prompts.sample(["toy", 0], seed=3)
    sampled["empty"]["inputs"]["batch_size"] = COUNT
    decode = prompts.node("VAEDecode", samples=["sample", 0], vae=["toy", 2])
    files = {**saved("all", ["decode", 0]), **saved("table", ["table", 0]), **saved("best", ["table", 1])}
    chosen = prompts.node("ImageFromBatch", image=["decode", 0], batch_index=["table", 3], length=1)
    graph = {**sampled, "decode": decode, **table(["decode", 0]), **files, **texts(2, 3, 4), "chosen": chosen}
    return host.run({**graph, **saved("chosen", ["chosen", 0])})["outputs"]


@pytest.fixture(scope="module")
def gaps(host, ranked):
    """The words-gap of every picture, from the saved files with transformers' CLIP in this process."""
    images = torch.from_numpy(pixels(host, ranked, "all")).movedim(-1, 1) / 255
    reward = clip_reward(models.load_clip(), models.load_tokenizer())
    asked = [[f"{word}. {prompts.CAPTION}"] * COUNT for word in (*WORDS, *NEGATIVE)]
    with torch.no_grad():
        scores = torch.stack([reward.score(images, row) for row in asked])
    return scores[:2].mean(0) - scores[2:].mean(0)


def test_the_ranking_is_that_of_an_independent_scoring(ranked, gaps):
    lines = ranked["text 2"]["text"][0].splitlines()
    numbers = [int(re.fullmatch(r"\d+\. picture (\d+): \S+ \(words-gap\)", line)[1]) - 1 for line in lines]
    assert sorted(numbers) == list(range(COUNT))
    said = torch.tensor([float(line.split()[3]) for line in lines])
    torch.testing.assert_close(said, gaps[numbers], rtol=0, atol=5e-3)  # the files are rounded to 8 bits
    assert (said.diff() <= 0).all()


def test_indices_and_scores_are_of_the_best(ranked):
    lines = ranked["text 2"]["text"][0].splitlines()[:3]
    indices, scores = ([json.loads(text) for text in ranked[f"text {i}"]["text"]] for i in (3, 4))
    assert [f"picture {i + 1}:" in line for i, line in zip(indices, lines)] == [True] * 3
    assert scores == pytest.approx([float(line.split()[3]) for line in lines], abs=1e-3)


def test_the_best_are_handed_on_as_they_came(host, ranked):
    indices = [json.loads(text) for text in ranked["text 3"]["text"]]
    everything = pixels(host, ranked, "all")
    best = pixels(host, ranked, "best")
    assert np.array_equal(best, everything[indices])
    assert np.array_equal(pixels(host, ranked, "chosen"), best)  # a list: the node behind it ran for each


def test_the_node_shows_table_and_ranking(host, ranked):
    (shown,) = ranked["table"]["images"]
    picture = host.picture(shown)
    assert np.array_equal(np.asarray(picture), pixels(host, ranked, "table")[0])
    assert ranked["table"]["text"] == ranked["text 2"]["text"]
    best = Image.fromarray(pixels(host, ranked, "best")[0]).resize((128, 128), Image.Resampling.NEAREST)
    sheet = np.asarray(picture).astype(int)
    block = np.asarray(best).astype(int)
    rows, columns = np.nonzero((abs(sheet - block[0, 0]) <= 1).all(-1))
    found = [(y, x) for y, x in zip(rows, columns) if sheet[y : y + 128, x : x + 128].shape == block.shape]
    assert any((abs(sheet[y : y + 128, x : x + 128] - block) <= 1).all() for y, x in found)


@pytest.mark.parametrize("width, height", [(1, 1), (1, 400), (1500, 1000)])
def test_pictures_of_every_size(host, width, height):
    prompt = {"images": empty(width, height, 2), **table(["images", 0]), **saved("odd", ["table", 1])}
    outputs = host.run(prompt)["outputs"]
    assert pixels(host, outputs, "odd").shape == (2, height, width, 3)


def test_alpha(host):
    mask = prompts.node("SolidMask", value=0.5, width=16, height=16)
    joined = prompts.node("JoinImageWithAlpha", image=["plain", 0], alpha=["mask", 0])
    prompt = {"plain": empty(count=1), "mask": mask, "joined": joined}
    with_alpha = host.run({**prompt, **table(["joined", 0]), **texts(2)})["outputs"]["text 2"]
    assert with_alpha == host.run({**prompt, **table(["plain", 0]), **texts(2)})["outputs"]["text 2"]


def test_more_than_are_shown(host):
    prompt = {"images": empty(count=40), **table(["images", 0], best=50, show_gradients=False), **texts(2, 3)}
    outputs = host.run(prompt)["outputs"]
    assert len(outputs["text 2"]["text"][0].splitlines()) == len(outputs["text 3"]["text"]) == 40
    assert outputs["table"]["text"][0].splitlines()[-1] == "and 24 more"


def refuses(host, prompt: dict, *words: str):
    with pytest.raises(HostError) as refusal:
        host.run(prompt)
    for word in words:
        assert word in str(refusal.value), str(refusal.value)


def test_questions_that_can_not_be_asked(host):
    images = {"images": empty()}
    refuses(
        host, {**images, **table(["images", 0], prompt=" ", words="\n", negative="")}, "neither a prompt nor a word"
    )
    refuses(host, {**images, **table(["images", 0], words="")}, "Painting", "no words for them to stand against")
    refuses(host, {**images, **table(["images", 0], words="\n".join(["w"] * 99))}, "101 words", "up to 99")


def test_words_from_another_node_are_checked_too(host):
    text = {"text": prompts.node("PrimitiveStringMultiline", value="")}
    refuses(host, {"images": empty(), **text, **table(["images", 0], words=["text", 0])}, "no words for them")


@pytest.mark.parametrize("show_gradients", [False, True])
def test_cancel_is_heard_while_it_scores(pack, monkeypatch, show_gradients):
    import comfy.model_management

    class Cancelled:
        """Somebody presses Cancel while it scores for the second time."""

        asked = 0

        def score(self, images, texts):
            self.asked += 1
            if self.asked == 2:
                comfy.model_management.interrupt_current_processing()
            return images.mean((1, 2, 3))

    reward = Cancelled()
    images = torch.rand(3 if show_gradients else 1600, 8, 8, 3)
    inputs = {"reward": reward, "images": images, "prompt": "a", "words": "", "negative": "", "best": 1}
    with torch.inference_mode(), pytest.raises(comfy.model_management.InterruptProcessingException):
        pack("nodes.reward_table").RewardTable.execute(**inputs, show_gradients=show_gradients)
    assert reward.asked == 2
