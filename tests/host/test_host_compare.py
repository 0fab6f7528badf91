"""SRPO Compare on the real host, with the toy models."""

import numpy as np
import prompts
import pytest
import torch
from host_server import HostError

from srpo_core.algorithm.objective import parse_words
from srpo_core.rewards import clip_reward
from srpo_core.toy import models

CAPTIONS = ("a red circle on grass", "a blue square on sand", "a green star on water")
SEED = 11


def compare(after: list, before=("toy", 0), reward=False, **options) -> dict:
    """Toy models, prompts and the comparison ("compare"), its pictures saved."""
    settings = {"width": 64, "height": 64, "prompts": 2, "seeds": 2, "seed": SEED, "guidance": 3.5}
    settings |= {"cfg": 1.0, "at_once": 1, "many_steps": 0, **options}
    links = {"model_before": list(before), "model_after": after, "dataset": ["prompts", 0], "vae": ["toy", 2]}
    links["previews"] = ["previews", 0]
    graph = {"toy": prompts.node("SRPO_ToyModels"), "objective": prompts.node("SRPO_Objective", **prompts.OBJECTIVE)}
    graph["prompts"] = prompts.node("SRPO_Prompts", clip=["toy", 1], text="\n".join(CAPTIONS), file="none")
    graph["previews"] = prompts.node("SRPO_Previews", **prompts.PREVIEWS)
    asked = {"reward": ["toy", 3], "objective": ["objective", 0]} if reward else {}
    graph["compare"] = prompts.node("SRPO_Compare", **links, **settings, **asked)
    for i, name in enumerate(("sheet", "before", "after")):
        graph[name] = prompts.node("SaveImage", images=["compare", i], filename_prefix=f"compare {name}")
    return graph


def stock(model: list, caption: str, seed: int, name: str) -> dict:
    """The core's KSampler at CFG 1, its picture saved as `name`."""
    sampling = {"seed": seed, "steps": prompts.STEPS, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    links = {"positive": [f"{name} guidance", 0], "negative": [f"{name} text", 0], "latent_image": [f"{name} empty", 0]}
    return {
        f"{name} text": prompts.node("CLIPTextEncode", clip=["toy", 1], text=caption),
        f"{name} guidance": prompts.node("FluxGuidance", conditioning=[f"{name} text", 0], guidance=3.5),
        f"{name} empty": prompts.node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        f"{name} sample": prompts.node("KSampler", model=model, denoise=1.0, **sampling, **links),
        f"{name} decode": prompts.node("VAEDecode", samples=[f"{name} sample", 0], vae=["toy", 2]),
        name: prompts.node("SaveImage", images=[f"{name} decode", 0], filename_prefix=name),
    }


def pixels(host, outputs, name) -> np.ndarray:
    """(N, H, W, 3) of what the node `name` saved or shows."""
    return np.stack([np.asarray(host.picture(entry)) for entry in outputs[name]["images"]]).astype(int)


@pytest.fixture(scope="module")
def lora(host) -> dict:
    """The toy with a LoRA of a short, violent run ("lora")."""
    host.run(prompts.train("compared", 3, trainer={"learning_rate": 2e-2}))
    name = "srpo/compared/compared_000003.safetensors"
    return {"lora": prompts.node("LoraLoaderModelOnly", model=["toy", 0], lora_name=name, strength_model=1.0)}


@pytest.fixture(scope="module")
def compared(host, lora):
    """The outputs of a comparison with a reward, and of the same pictures by stock nodes."""
    graph = compare(["lora", 0], reward=True) | lora
    for which, model in (("before", ["toy", 0]), ("after", ["lora", 0])):
        for i in range(4):
            graph |= stock(model, CAPTIONS[i // 2], SEED + i % 2, f"stock {which} {i}")
    return host.run(graph)["outputs"]


@pytest.mark.parametrize("which", ["before", "after"])
def test_the_pictures_are_those_of_the_stock_nodes(host, compared, which):
    expected = np.concatenate([pixels(host, compared, f"stock {which} {i}") for i in range(4)])
    pictures = pixels(host, compared, which)
    assert pictures.shape == expected.shape == (4, 64, 64, 3)
    assert abs(pictures - expected).max() <= 1  # of 255: the latent is rounded once more on its way
    assert len({picture.tobytes() for picture in pictures}) == 4


def test_the_lora_makes_the_difference(host, compared):
    before, after = (pixels(host, compared, name) for name in ("before", "after"))
    assert (abs(before - after).mean((1, 2, 3)) > 2).all()


def test_the_sentence_says_what_an_independent_scoring_says(host, compared):
    reward = clip_reward(models.load_clip(), models.load_tokenizer())
    means = []
    words = [parse_words(prompts.OBJECTIVE[side]) for side in ("positive", "negative")]
    for name in ("before", "after"):
        images = (torch.from_numpy(pixels(host, compared, name)).movedim(-1, 1) + 0.5) / 255  # SaveImage rounds down
        with torch.no_grad():
            scores = [
                torch.stack([reward.score(images, [f"{word}. {CAPTIONS[i // 2]}" for i in range(4)]) for word in side])
                for side in words
            ]
        high = images.amax(1)
        low = images.amin(1)
        gap = scores[0].mean() - scores[1].mean()
        saturation = ((high - low) / high.clamp(min=1e-6)).mean()
        means.append((gap.item(), saturation.item()))
    (text,) = compared["compare"]["text"]
    head, gaps, colours, seeds, bends, *grids = text.replace(": ", ", ").split(", ")
    assert head == "4 pictures" and gaps.startswith("words-gap ") and colours.startswith("saturation ")
    assert (
        seeds.startswith("diversity ")
        and bends.startswith("curvature ")
        and [grid[:7] for grid in grids] == ["grid 16", "grid 8 "]
    )
    assert [float(gaps.split()[i]) for i in (1, 3)] == pytest.approx([gap for gap, _ in means], abs=2e-3)
    assert [float(colours.split()[i]) for i in (1, 3)] == pytest.approx([colour for _, colour in means], abs=0.011)


def test_the_node_shows_the_sheet(host, compared):
    (shown,) = pixels(host, compared, "compare")
    assert np.array_equal(shown, pixels(host, compared, "sheet")[0])
    block = pixels(host, compared, "after")[3].repeat(4, 0).repeat(4, 1)
    rows, columns = np.nonzero((abs(shown - block[0, 0]) <= 1).all(-1))
    found = (shown[y : y + 256, x : x + 256] for y, x in zip(rows, columns))
    assert any(part.shape == block.shape and (abs(part - block) <= 1).all() for part in found)


def test_one_model_against_itself_and_several_at_once(host, compared):
    outputs = host.run(compare(["toy", 0], at_once=3, prompts=32, seeds=2))["outputs"]
    before, after = (pixels(host, outputs, name) for name in ("before", "after"))
    assert np.array_equal(before, after) and len(before) == 2 * len(CAPTIONS)
    assert abs(before[:4] - pixels(host, compared, "before")).max() <= 2
    assert outputs["compare"]["text"][0].startswith("6 pictures: saturation ")


def refuses(host, prompt: dict, *words: str):
    with pytest.raises(HostError) as refusal:
        host.run(prompt)
    for word in words:
        assert word in str(refusal.value), str(refusal.value)


def test_what_can_not_be_compared(host):
    alone = compare(["toy", 0])
    alone["compare"]["inputs"]["objective"] = ["objective", 0]
    refuses(host, alone, "no reward to ask")
    refuses(host, compare(["toy", 0], width=80, height=72), "80x72", "multiples of 16")


@pytest.fixture
def toy(pack):
    return pack("nodes.host.toy")


def test_models_of_two_kinds_are_refused(pack, toy):
    import comfy.latent_formats

    before = toy.load_model()
    after = toy.load_model().clone()
    after.add_object_patch("latent_format", comfy.latent_formats.SD3())
    with pytest.raises(ValueError, match="before is Flux with Flux latents, the model after Flux with SD3 latents"):
        pack("nodes.compare").check_models(before, after, toy.load_vae())


class Captions:
    prompts = list(CAPTIONS)

    def prepare(self, indices):
        """There is nothing to encode."""

    def cond(self, indices):
        return indices

    def cond_shape(self, index):
        return ()


def test_cancel_is_heard_at_each_step_of_a_picture(pack, toy, monkeypatch):
    """Somebody presses Cancel while the second picture is made."""
    import comfy.model_management

    flow_model = pack("nodes.host.flow_model")
    made = []

    def rollout(self, noise, cond, seed):
        made.append(seed)
        if len(made) == 2:
            comfy.model_management.interrupt_current_processing()
        self.on_step(len(noise))
        return noise

    monkeypatch.setattr(flow_model.HostFlow, "rollout", rollout)
    monkeypatch.setattr(pack("srpo_core.algorithm.path").Path, "curvature", lambda self: torch.zeros(1))
    model = toy.load_model()
    inputs = {"model_before": model, "model_after": model, "dataset": Captions(), "vae": toy.load_vae()}
    inputs |= {"width": 64, "height": 64, "prompts": 3, "seeds": 2, "seed": SEED, "at_once": 1}
    inputs |= {"guidance": 3.5, "cfg": 1.0, "many_steps": 0}
    with torch.inference_mode(), pytest.raises(comfy.model_management.InterruptProcessingException):
        pack("nodes.compare").Compare.execute(**inputs)
    assert made == [SEED, SEED + 1]
