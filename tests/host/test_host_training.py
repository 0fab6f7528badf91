"""Training on a running ComfyUI: the loop, the graph, the LoRA, going on, cancelling."""

import json
import time
from pathlib import Path

import prompts
import pytest
import torch
from host_server import HostError
from safetensors.torch import load_file

from srpo_core.toy import models


def state(host, run: str) -> dict[str, torch.Tensor]:
    return load_file(host.base / "output/srpo" / run / "state.safetensors")


def updates(host, run: str) -> int:
    return json.loads((host.base / "output/srpo" / run / "run.json").read_text())["updates"]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def latent(host, name: str) -> torch.Tensor:
    file = max((host.base / "output").glob(f"{name}_*.latent"))
    return load_file(file)["latent_tensor"]


def decoded(host, name: str) -> torch.Tensor:
    """(B, 3, 64, 64): the picture of a saved latent, the range [0, 1] visible."""
    x = (latent(host, name) - 0.1159) * 0.3611  # the VAE of the toy world takes what FLUX itself sees
    with torch.no_grad():
        return models.load_vae().decode(x).sample / 2 + 0.5


def test_the_loop_and_the_graph_agree_bit_for_bit(host):
    host.run(prompts.train("loop", 3))
    for number in range(3):
        host.run(prompts.one_step("graph", prompts.noise_seed(number)))
    assert updates(host, "loop") == updates(host, "graph") == 3
    assert same(state(host, "loop"), state(host, "graph"))


def test_how_memory_is_used_changes_nothing(host):
    host.run(prompts.train("recomputed", 2))
    host.run(prompts.train("kept", 2, kept_blocks=3, gradient_vae=["toy", 2], offload=True))
    assert same(state(host, "recomputed"), state(host, "kept"))


def test_going_on_equals_one_go(host):
    host.run(prompts.train("one go", 4, text="a red circle\na blue square\na green star"))
    host.run(prompts.train("two goes", 2, text="a red circle\na blue square\na green star"))
    host.run(prompts.train("between", 1))  # another run closes this one; it is read from disk again
    host.run(prompts.train("two goes", 2, text="a red circle\na blue square\na green star"))
    assert same(state(host, "one go"), state(host, "two goes"))


@pytest.mark.parametrize("kind", ["LoRA", "LoKr", "LoHa", "OFT"])
def test_the_stock_loader_gives_the_picture_of_the_live_adapter(host, kind):
    trainer = {"learning_rate": 1e-2, "adapter": kind, "alpha": 8.0}
    name = f"picture {kind}"
    host.run(prompts.train(name, 5, trainer))
    live = prompts.base(name, **trainer) | prompts.sample(["trainer", 1], 7)
    host.run(live | prompts.save_latent(["sample", 0], f"live {kind}"))
    lora = f"srpo/{name}/{name}_000005.safetensors"
    loader = {"lora": prompts.node("LoraLoaderModelOnly", model=["toy", 0], lora_name=lora, strength_model=1.0)}
    before = len(host.log)
    toy = {"toy": prompts.node("SRPO_ToyModels")}
    host.run(toy | loader | prompts.sample(["lora", 0], 7) | prompts.save_latent(["sample", 0], f"stock {kind}"))
    host.run(toy | prompts.sample(["toy", 0], 7) | prompts.save_latent(["sample", 0], f"plain {kind}"))
    live, stock, plain = (decoded(host, f"{name} {kind}") for name in ("live", "stock", "plain"))
    assert (live - stock).abs().max() < 1e-5
    assert (live - plain).abs().max() > 1e-2
    assert "lora key not loaded" not in host.log[before:]


def test_whole_layers_become_a_model_that_the_stock_loader_loads(host):
    trainer = {"learning_rate": 1e-3, "adapter": "full"}
    for updates in (2, 3):
        host.run(prompts.train("whole layers", updates, trainer | {"snapshot_every": 2}))
    folder = host.base / "output/diffusion_models/srpo/whole layers"
    assert [file.name for file in folder.iterdir()] == ["whole layers_000005.safetensors"]
    assert not (host.base / "output/loras/srpo/whole layers").exists()
    live = prompts.base("whole layers", **trainer) | prompts.sample(["trainer", 1], 7)
    host.run(live | prompts.save_latent(["sample", 0], "live full"))
    name = "srpo/whole layers/whole layers_000005.safetensors"
    toy = {"toy": prompts.node("SRPO_ToyModels")}
    model = {"model": prompts.node("UNETLoader", unet_name=name, weight_dtype="default")}
    host.run(toy | model | prompts.sample(["model", 0], 7) | prompts.save_latent(["sample", 0], "stock full"))
    host.run(toy | prompts.sample(["toy", 0], 7) | prompts.save_latent(["sample", 0], "plain full"))
    live, stock, plain = (decoded(host, f"{name} full") for name in ("live", "stock", "plain"))
    assert (live - stock).abs().max() < 1e-5
    assert (live - plain).abs().max() > 1e-2


def test_a_run_begins_at_a_lora_file(host):
    trainer = {"learning_rate": 1e-2, "target": "attention"}
    host.run(prompts.train("first", 3, trainer))
    file = "srpo/first/first_000003.safetensors"
    begun = {"start_lora": file, "rank": 6, "alpha": 3.0, "learning_rate": 0.0, "weight_decay": 0.0}
    host.run(prompts.train("second", 1, begun))
    host.run(prompts.base("second", **{**begun, "start_lora": None}) | picture("second", ["trainer", 1]))
    loader = {"lora": prompts.node("LoraLoaderModelOnly", model=["toy", 0], lora_name=file, strength_model=1.0)}
    host.run({"toy": prompts.node("SRPO_ToyModels")} | loader | picture("stock", ["lora", 0]))
    assert (decoded(host, "second") - decoded(host, "stock")).abs().max() < 1e-5
    for wrong, sentence in [
        ({"target": "MLP"}, "was made with adapter LoRA, not LoRA .MLP."),
        ({"precision": "bf16"}, "was made with precision fp32, not bf16"),
    ]:
        with pytest.raises(HostError, match=sentence):
            host.run(prompts.train("second", 1, begun | wrong))
    for wrong, sentence in [
        ({"target": "MLP"}, "layers that are not trained here"),
        ({"rank": 3}, "it needs rank 4, and the rank is 3"),
    ]:
        with pytest.raises(HostError, match=sentence):
            host.run(prompts.train("third", 1, begun | wrong))
    host.run(prompts.train("third", 1, begun))  # nothing is left of what could not begin
    (host.base / "output/loras" / file).unlink()
    with pytest.raises(HostError, match="not in list"):
        host.run(prompts.train("third", 1, begun))
    host.run(prompts.train("third", 1, {**begun, "start_lora": None}))  # as the help says
    assert (host.base / "output/loras/srpo/third/third_000002.safetensors").exists()


def picture(name, model):
    return prompts.sample(model, 7) | prompts.save_latent(["sample", 0], name)


def test_the_untouched_model_gives_the_bit_identical_picture(host):
    plain = prompts.base("untouched") | prompts.sample(["toy", 0], 3)
    host.run(plain | prompts.save_latent(["sample", 0], "before"))
    host.run(prompts.train("untouched", 2, trainer={"learning_rate": 1e-2}))
    again = plain | prompts.save_latent(["sample", 0], "after")
    again["noise"]["inputs"]["noise_seed"] = 4  # another picture first, so that this one is not the cached one
    host.run(again)
    again["noise"]["inputs"]["noise_seed"] = 3
    host.run(again)
    assert torch.equal(latent(host, "before"), latent(host, "after"))


def test_cancel_keeps_the_last_finished_update_and_the_next_queue_goes_on(host):
    host.run(prompts.train("whole", 6, steps=25))
    prompt_id = host.queue(prompts.train("cancelled", 1000, steps=25, trainer={"save_every": 1}))
    metrics = host.base / "output/srpo/cancelled/metrics.jsonl"
    wait_until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 3)
    pressed = time.monotonic()
    host.interrupt()
    with pytest.raises(HostError, match="interrupted"):
        host.wait(prompt_id)
    assert time.monotonic() - pressed < 2
    done = updates(host, "cancelled")
    assert 3 <= done < 6
    assert (host.base / f"output/loras/srpo/cancelled/cancelled_{done:06d}.safetensors").exists()
    host.run(prompts.train("cancelled", 6 - done, steps=25))
    assert same(state(host, "cancelled"), state(host, "whole"))


def test_outputs_of_a_run(host):
    entry = host.run(prompts.train("outputs", 2, previews_every=1, previews_count=2))
    (shown,) = entry["outputs"]["train"]["images"]
    assert host.picture(shown).width > 600
    shows = [data["output"] for kind, data in host.messages if kind == "executed" and data["node"] == "train"]
    before, first, again, last = (each["images"] for each in shows)
    assert host.picture(*before).width < 960  # no card around it yet
    assert [host.picture(*images).width for images in (first, last)] == [960, 960]
    assert again == first and last == [shown]
    folder = host.base / "output/srpo/outputs"
    assert {f.name for f in folder.iterdir()} >= {"state.safetensors", "run.json", "metrics.jsonl", "samples"}
    cards = ["000001.png", "000002.png"]
    assert [file.name for file in sorted((folder / "samples").glob("??????.png"))] == cards
    assert not list(Path(host.base).rglob("*.tmp"))


def test_core_nodes_take_the_lora_and_the_loss(host):
    wanted = prompts.train("core", 3)
    wanted["save"] = prompts.node("SaveLoRA", lora=["train", 1], prefix="loras/core", steps=0)
    wanted["plot"] = prompts.node("LossGraphNode", loss=["train", 2], filename_prefix="loss")
    host.run(wanted)
    assert list((host.base / "output/loras").glob("core*.safetensors"))


def test_two_rewards_share_one_update(host):
    wanted, other = (prompts.one_step("shared", prompts.noise_seed(number)) for number in (0, 1))
    again = {f"{key} 2": value for key, value in other.items() if key not in prompts.base("x")}
    for entry in again.values():
        for name, link in entry["inputs"].items():
            if isinstance(link, list) and f"{link[0]} 2" in again:
                entry["inputs"][name] = [f"{link[0]} 2", link[1]]
    del again["step 2"]
    wanted["step"]["inputs"]["rewards.reward1"] = ["reward 2", 0]
    host.run(wanted | again)
    host.run(prompts.train("shared loop", 1, batch=2))
    assert updates(host, "shared") == 1
    assert same(state(host, "shared"), state(host, "shared loop"))


def wait_until(condition, seconds: float = 120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_branch_from_a_snapshot_goes_the_same_way(host):
    settings = {"snapshot_every": 2, "ema": 0.5, "learning_rate": 1e-2}
    host.run(prompts.train("trunk", 4, settings))
    host.run(prompts.train("twig", 2, settings | {"start_from": "trunk@2"}))
    assert same(state(host, "twig"), state(host, "trunk")) and updates(host, "twig") == 4
    loras = host.base / "output/loras/srpo"
    assert {file.stem for file in (loras / "trunk").iterdir()} == {
        f"trunk_{update:06d}{end}" for update in (2, 4) for end in ("", "_ema")
    }
    now, average = (load_file(loras / f"trunk/trunk_000004{end}.safetensors") for end in ("", "_ema"))
    assert now.keys() == average.keys() and not same(now, average)
    with pytest.raises(HostError, match='no snapshot of update 3 to start from in "trunk"; its snapshots: 2, 4'):
        host.run(prompts.train("another twig", 1, settings | {"start_from": "trunk@3"}))


def test_another_optimizer_trains_through_the_host(host):
    host.run(
        prompts.train("schedule-free", 3, {"optimizer": "schedule-free AdamW", "warmup": 1, "learning_rate": 1e-2})
    )
    host.run(
        prompts.train("schedule-free", 1, {"optimizer": "schedule-free AdamW", "warmup": 1, "learning_rate": 1e-2})
    )
    assert updates(host, "schedule-free") == 4
    with pytest.raises(HostError, match="made with optimizer schedule-free AdamW, not AdamW"):
        host.run(prompts.train("schedule-free", 1))
