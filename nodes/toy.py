"""SRPO_ToyModels: something to try everything on, without a download."""

from comfy_api.latest import io

from .checked import checked
from .sockets import CATEGORY, RewardModelType


class ToyModels(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SRPO_ToyModels",
            display_name="Toy FLUX (no download)",
            category=CATEGORY,
            description="A real FLUX, VAE, text encoder and CLIP reward, only very small: 64x64 pictures of simple "
            'scenes, such as "a red circle on grass". It renders; SRPO can teach it to take photos.',
            search_aliases=["demo", "tiny flux", "example", "test models", "srpo"],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The tiny FLUX."),
                io.Clip.Output(display_name="clip", tooltip="The text encoder of the tiny FLUX."),
                io.Vae.Output(display_name="vae", tooltip="The VAE of the tiny FLUX."),
                RewardModelType.Output(display_name="reward", tooltip="A small CLIP that knows photos from renders."),
            ],
        )

    @classmethod
    @checked
    def execute(cls) -> io.NodeOutput:
        from .host import toy

        return io.NodeOutput(toy.load_model(), toy.load_clip(), toy.load_vae(), toy.load_reward())
