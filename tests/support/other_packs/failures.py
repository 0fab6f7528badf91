"""Nodes of another pack, in the ComfyUI of the tests: MODELs that fail, and what the host thinks of training."""

from itertools import count

import torch
from comfy import model_management
from comfy_api.latest import ComfyExtension, io

calls = count(1)


class OutOfMemoryOnce(io.ComfyNode):
    """A MODEL whose `call`th forward with gradient, of all, finds no memory."""

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
    """A MODEL whose way back is wrong: half of what it should be."""

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
