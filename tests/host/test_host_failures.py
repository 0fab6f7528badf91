"""Out of memory inside ComfyUI, folders that can't be written to, wrong gradients: what the next queue finds."""

import json

import prompts
import pytest
import torch
from host_server import HostError, HostServer
from safetensors.torch import load_file

NODES = """
from itertools import count

import torch
from comfy import model_management
from comfy_api.latest import ComfyExtension, io


calls = count(1)


class OutOfMemoryOnce(io.ComfyNode):
    '''A MODEL whose `call`th forward with gradient, of all, finds no memory.'''

    @classmethod
    def define_schema(cls):
        inputs = [io.Model.Input("model"), io.Int.Input("call")]
        return io.Schema(node_id="OutOfMemoryOnce", inputs=inputs, outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, call):
        def wrapper(apply, asked):
            if model_management.in_training and next(calls) == call:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return apply(asked["input"], asked["timestep"], **asked["c"])

        model = model.clone()
        model.set_model_unet_function_wrapper(wrapper)
        return io.NodeOutput(model)


class Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 0.5 * gradient


class HalfTheGradient(io.ComfyNode):
    '''A MODEL whose way back is wrong: half of what it should be.'''

    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="HalfTheGradient", inputs=[io.Model.Input("model")], outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model):
        def wrapper(apply, asked):
            return Half.apply(apply(asked["input"], asked["timestep"], **asked["c"]))

        model = model.clone()
        model.set_model_unet_function_wrapper(wrapper)
        return io.NodeOutput(model)


class InTraining(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="InTraining", outputs=[io.Boolean.Output()])

    @classmethod
    def execute(cls):
        return io.NodeOutput(model_management.in_training)


class Extension(ComfyExtension):
    async def get_node_list(self):
        return [OutOfMemoryOnce, HalfTheGradient, InTraining]


async def comfy_entrypoint():
    return Extension()
"""


@pytest.fixture(scope="module")
def server(comfyui, tmp_path_factory):
    base = tmp_path_factory.mktemp("failures")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes/failures.py").write_text(NODES)
    with HostServer(comfyui, base, ("failures.py",)) as running:  # one more name on the white list
        yield running


def state(server, run: str) -> dict[str, torch.Tensor]:
    return load_file(server.base / "output/srpo" / run / "state.safetensors")


def test_out_of_memory_leaves_the_last_update_and_the_next_queue_goes_on(server):
    server.run(prompts.train("whole", 4, batch=2))
    prompt = prompts.train("short", 3, batch=2)
    # Each runs again for its backward: some check the model and its gradient, and eight are an update.
    prompt["once"] = prompts.node("OutOfMemoryOnce", model=["toy", 0], call=15)
    prompt["trainer"]["inputs"]["model"] = ["once", 0]
    with pytest.raises(HostError, match="SRPO_Train: .*OutOfMemory"):
        server.run(prompt)
    said = server.run({"ask": prompts.node("InTraining"), "show": prompts.node("PreviewAny", source=["ask", 0])})
    assert said["outputs"]["show"]["text"] == ["False"]
    assert json.loads((server.base / "output/srpo/short/run.json").read_text())["updates"] == 1
    server.run(prompt)
    whole = state(server, "whole")
    short = state(server, "short")
    assert whole.keys() == short.keys() and all(torch.equal(short[key], value) for key, value in whole.items())


@pytest.mark.parametrize("place, run", [("srpo", "run in the way"), ("loras/srpo", "LoRAs in the way")])
def test_a_folder_that_cannot_be_written_to_is_refused_before_training(server, place, run):
    file = server.base / "output" / place / run
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    with pytest.raises(HostError, match=f"SRPO_Trainer: .*output/{place}/{run} can't be written to"):
        server.run(prompts.train(run, 1))
    file.unlink()
    server.run(prompts.train(run, 1))


@pytest.mark.parametrize("place", ["srpo/full/samples", "loras/srpo/full"])
def test_pictures_and_loras_that_cannot_be_written_are_said_and_training_goes_on(server, place):
    """Their folders alone are in the way, so that all else is kept."""
    server.run(prompts.train("full", 1))
    before = updates(server, "full")
    folder = server.base / "output" / place
    folder.rename(folder.with_name("old"))
    folder.touch()
    server.run(prompts.train("full", 1, previews_every=1))
    said = b"".join(data for kind, data in server.messages if kind == "preview").decode(errors="replace")
    assert f"output/{place} can't be written to" in said and f"saved up to update {before + 1}." in said
    folder.unlink()
    folder.with_name("old").rename(folder)
    server.run(prompts.train("full", 1))
    assert updates(server, "full") == before + 2


def updates(server, run: str) -> int:
    return json.loads((server.base / "output/srpo" / run / "run.json").read_text())["updates"]


WRONG = "gradient of this model is wrong.*0.50 times that.*leave such things out.*Nothing was changed"


@pytest.mark.parametrize("made", [prompts.train, prompts.one_step])
def test_both_ways_to_train_stop_with_the_sentence_and_go_on_without_the_fault(server, made):
    name = made.__name__
    whole = f"{name} whole"
    wanted = made(name, 1)
    wanted["half"] = prompts.node("HalfTheGradient", model=["toy", 0])
    wanted["trainer"]["inputs"]["model"] = ["half", 0]
    with pytest.raises(HostError, match=WRONG):
        server.run(wanted)
    folder = server.base / "output/srpo" / name
    assert not (folder / "state.safetensors").exists()
    for run in (whole, name):
        server.run(made(run, 1))
    assert json.loads((folder / "run.json").read_text())["updates"] == 1
    ours = state(server, name)
    theirs = state(server, whole)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], value) for key, value in theirs.items())
