"""Models on their way to the device and back.

Loader nodes run in inference mode, so weights are inference tensors. Moved outside of that mode, as training would,
they become neither those nor ordinary ones, and no layer can read them ("Inference tensors do not track version
counter").
"""

from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher


@torch.inference_mode()
def load(patcher: ModelPatcher, memory_required: float = 0):
    """Have the host load this model, and unload others for it where it must.

    memory_required: bytes that are needed beside the weights.
    """
    comfy.model_management.load_models_gpu([patcher], memory_required)


@torch.inference_mode(False)
def load_ordinary(patcher: ModelPatcher):
    """The same for a model whose weights autograd will save: they are ordinary tensors afterwards."""
    load(patcher)
    for tensor in (*patcher.model.parameters(), *patcher.model.buffers()):
        if tensor.is_inference():
            tensor.data = tensor.data.clone()


def own(value: Any):
    """A copy of a tensor, which is an ordinary one outside of inference mode; anything else as it is."""
    return value.clone() if torch.is_tensor(value) else value
