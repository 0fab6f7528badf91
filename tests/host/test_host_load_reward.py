"""SRPO_LoadReward on a running ComfyUI: files where people keep them, and every way to have them wrong."""

import json

import prompts
import pytest
import torch
from host_server import HostError
from reward_files import aesthetic_v25, clip_model, laion_aesthetic, siglip_model, to_open_clip
from safetensors.torch import load_file, save_file

LOAD = {"dtype": "auto", "family": "auto", "activation": "auto", "backbone": "none", "download": False}


def table(file: str, **load) -> dict:
    """One grey picture scored by this reward."""
    words = {"prompt": "a red circle", "words": "Real", "negative": "Oil", "best": 1, "show_gradients": True}
    return {
        "load": prompts.node("SRPO_LoadReward", file=file, **LOAD | load),
        "image": prompts.node("EmptyImage", width=48, height=40, batch_size=2, color=0x805030),
        "table": prompts.node("SRPO_RewardTable", reward=["load", 0], images=["image", 0], **words),
    }


def put(host, file: str, content):
    path = host.base / "models" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".pt":
        torch.save(content, path)
    else:
        save_file({name: tensor.contiguous().clone() for name, tensor in content.items()}, path)


def said(host, prompt: dict) -> str:
    """The sentence that the user reads."""
    with pytest.raises(HostError) as refused:
        host.run(prompt)
    return str(refused.value)


@pytest.fixture(scope="module")
def files(host):
    """An HPS, a SigLIP and a head on it, and a CLIP too narrow for LAION's head, where people keep such files."""
    clip = clip_model("gelu")
    siglip = siglip_model()
    for file, state in {
        "rewards/hps_small.pt": {"state_dict": to_open_clip(clip)},
        "clip_vision/siglip_small.safetensors": siglip.state_dict(),
        "rewards/predictor.safetensors": aesthetic_v25(),
        "rewards/laion.safetensors": laion_aesthetic(width=96),
        "clip/clip_small.safetensors": clip.state_dict(),
        "loras/lost.safetensors": clip.state_dict(),
    }.items():
        put(host, file, state)
    return host


def test_a_table_of_a_loaded_reward(files):
    outputs = files.run(table("hps_small.pt"))["outputs"]["table"]
    assert "picture 1" in outputs["text"][0] and len(outputs["images"]) == 1


def test_training_with_one_file_while_another_watches(files):
    prompt = prompts.train("from files", 2)
    prompt["load"] = prompts.node("SRPO_LoadReward", **LOAD, file="hps_small.pt")
    prompt["train"]["inputs"]["reward"] = ["load", 0]
    head = LOAD | {"backbone": "clip_vision/siglip_small.safetensors"}
    prompt["head"] = prompts.node("SRPO_LoadReward", **head, file="predictor.safetensors")
    watch = {"weight": 0.0, "name": "aesthetic"}
    prompt["add"] = prompts.node("SRPO_AddReward", reward=["head", 0], objective=["objective", 0], **watch)
    prompt["train"]["inputs"]["more_rewards"] = ["add", 0]
    files.run(prompt)
    run = files.base / "output/srpo/from files"
    numbers = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(n["gradient_norm"] > 0 and n["reward_positive/aesthetic"] != 0 for n in numbers)
    features = list((files.base / "output/srpo/.text_features").glob("*.safetensors"))
    assert features and len(load_file(features[0])["keys"]) >= 4  # two updates, two words each


def test_a_clip_in_the_folder_of_text_encoders(files):
    assert files.run(table("text_encoders/clip_small.safetensors"))["outputs"]["table"]["images"]


@pytest.mark.parametrize("size", [(1, 1), (16384, 2), (3, 16384)])
def test_pictures_of_any_size(files, size):
    prompt = table("hps_small.pt")
    prompt["image"]["inputs"] |= {"width": 16, "height": 16}
    prompt["odd"] = prompts.node(
        "ImageScale", image=["image", 0], upscale_method="bilinear", width=size[0], height=size[1], crop="disabled"
    )
    prompt["table"]["inputs"]["images"] = ["odd", 0]
    assert files.run(prompt)["outputs"]["table"]["images"]


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_sentences_for_files_that_cannot_be_used(files):
    trap = files.base / "executed"
    put(files, "rewards/hostile.pt", {"weight": Hostile(trap)})
    whole = (files.base / "models/clip_vision/siglip_small.safetensors").read_bytes()
    put(files, "rewards/short.safetensors", whole[: len(whole) // 2])
    spoilt = clip_model("gelu").state_dict()
    spoilt["visual_projection.weight"] = spoilt["visual_projection.weight"] * float("nan")
    put(files, "rewards/spoilt.safetensors", spoilt)
    put(files, "rewards/other.safetensors", {"conv_in.weight": torch.zeros(2, 2)})
    expected = {
        ("hostile.pt", "none"): "more than tensors",
        ("short.safetensors", "none"): "short.safetensors",
        ("spoilt.safetensors", "none"): "visual_projection.weight",
        ("other.safetensors", "none"): "no reward model known here",
        ("predictor.safetensors", "none"): "backbone",
        ("laion.safetensors", "text_encoders/clip_small.safetensors"): "96 wide",
        ("lost.safetensors", "none"): "belong into",
        ("HPS_v2.1_compressed.pt", "none"): "huggingface.co/xswu/HPSv2",
        ("nothing.pt", "none"): "no reward model",
        ("../../secret.pt", "none"): "no reward model",
    }
    for (file, backbone), words in expected.items():
        assert words in said(files, table(file, backbone=backbone)), file
    assert not trap.exists()


def test_folders_of_extra_model_paths(host):
    torch.save({"state_dict": to_open_clip(clip_model("gelu"))}, host.base / "elsewhere/hps_there.pt")
    assert "hps_there.pt" in host.object_info()["SRPO_LoadReward"]["input"]["required"]["file"][1]["options"]
    assert host.run(table("hps_there.pt"))["outputs"]["table"]["images"]
