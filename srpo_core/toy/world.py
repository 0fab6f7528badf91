"""The toy world without ComfyUI."""

from ..headless.decoder import DiffusersDecoder
from ..headless.flux import FluxFlow
from ..headless.prompts import ClipPrompts
from ..rewards import DotProductReward, clip_reward
from . import models


def toy_world(prompts: list[str], **flow_options) -> tuple[FluxFlow, DiffusersDecoder, DotProductReward, ClipPrompts]:
    """The shipped toy models as flow model, decoder, reward and dataset; `flow_options` go to FluxFlow."""
    return wire(
        models.load_flux(), models.load_vae(), models.load_clip(), models.load_tokenizer(), prompts, **flow_options
    )


def wire(flux, vae, clip, tokenizer, prompts: list[str], **flow_options):
    """Any toy-sized models of diffusers and transformers, wired in the same way."""
    flow = FluxFlow(flux, **flow_options)
    return flow, DiffusersDecoder(vae), clip_reward(clip, tokenizer), ClipPrompts(prompts, clip, tokenizer)
