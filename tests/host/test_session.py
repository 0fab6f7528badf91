"""A queue's work ends with it: the run stays open for the next, and nothing else of it stays in memory."""

import asyncio
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture
def nodes(pack, tmp_path, monkeypatch):
    """The pack's nodes by their ids, in a host that writes elsewhere."""
    import folder_paths
    import server
    from comfy_execution.utils import CurrentNodeContext

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    extension = asyncio.run(pack("nodes").comfy_entrypoint())
    nodes = {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}
    for node in nodes.values():
        monkeypatch.setattr(node, "hidden", SimpleNamespace(unique_id="1", prompt=None, extra_pnginfo=None))
    shown = []
    nobody = SimpleNamespace(
        send_progress_text=lambda text, node: None,
        send_sync=lambda event, data, client: shown.append(data["output"]["images"][0]),
        shown=shown,
        client_id=None,
        last_prompt_id=None,
    )
    monkeypatch.setattr(server.PromptServer, "instance", nobody, raising=False)
    with torch.inference_mode(), CurrentNodeContext("a queued prompt", "1"):
        yield nodes


def made(node, **given):
    """What a node that is just put down hands out, with these inputs for those that it has no value for."""
    widgets = {each.id: each.default for each in node.define_schema().inputs if hasattr(each, "default")}
    return node.execute(**{name: value for name, value in widgets.items() if value is not None} | given).args


def train(nodes, trainer, updates=1):
    model, clip, vae, reward = made(nodes["SRPO_ToyModels"])
    dataset, _ = nodes["SRPO_Prompts"].execute([clip], ["a red circle on grass"], ["none"]).args
    (objective,) = made(nodes["SRPO_Objective"])
    small = {"updates": updates, "batch": 1, "width": 32, "height": 32, "memory": {"memory": "auto"}}
    (rollouts,) = made(nodes["SRPO_Rollouts"], steps=1)
    (previews,) = made(nodes["SRPO_Previews"], count=1, steps=1)
    links = {"dataset": dataset, "vae": vae, "reward": reward, "objective": objective}
    made(nodes["SRPO_Train"], trainer=trainer, rollouts=rollouts, previews=previews, **links, **small)
    return weakref.ref(dataset), weakref.ref(objective)


def opened(nodes, pack, name):
    whole = {"adapter": "LoRA", "target": "all", "rank": 4, "alpha": 4.0, "seed": 0}
    model = made(nodes["SRPO_ToyModels"])[0]
    new = pack("nodes.adapter_inputs").NEW
    trainer, _ = made(nodes["SRPO_Trainer"], run_name=name, model=model, adapter=whole, start={"start": new})
    return trainer


def test_an_open_run_keeps_nothing_of_the_queue_that_trained_it(nodes, pack):
    trainer = opened(nodes, pack, "let go of")
    seen = train(nodes, trainer)
    gc.collect()
    assert trainer.run.updates == 1
    assert [ref() for ref in seen] == [None, None]
    kinds = (pack("nodes.session").Session, pack("nodes.previews").Previews, pack("nodes.host.progress").Work)
    assert not [kept for kept in gc.get_objects() if isinstance(kept, kinds)]


def test_the_last_picture_is_shown_again_with_each_update_and_as_a_run_goes_on(nodes, pack):
    """A front end that shows another workflow meanwhile forgets it."""
    import folder_paths
    from PIL import Image
    from server import PromptServer

    shown = PromptServer.instance.shown
    trainer = opened(nodes, pack, "shown again")
    train(nodes, trainer, updates=2)
    assert len(shown) == 3 and len({image["filename"] for image in shown}) == 1
    shown.clear()
    train(nodes, trainer)
    pictures = [Image.open(f"{folder_paths.get_temp_directory()}/{image['filename']}") for image in shown]
    (card,) = {picture.tobytes() for picture in pictures}
    assert len(shown) == 2
    assert Image.open(trainer.run.folder / "samples/000002.png").convert("RGB").tobytes() == card


def test_a_card_that_can_not_be_read_is_no_hindrance(nodes, pack, caplog):
    trainer = opened(nodes, pack, "half a card")
    train(nodes, trainer)
    (trainer.run.folder / "samples/000001.png").write_bytes(b"half of one")
    train(nodes, trainer)
    assert trainer.run.updates == 2
    assert "000001.png can't be shown" in caplog.text
