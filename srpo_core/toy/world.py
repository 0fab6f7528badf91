"""The toy models as what a run trains on and with, wired by the headless wing: SRPO without ComfyUI."""

from typing import Any

from diffusers import AutoencoderTiny, FluxTransformer2DModel
from transformers import CLIPModel, PreTrainedTokenizerBase

from ..headless.decoder import DiffusersDecoder
from ..headless.flux import FluxFlow
from ..headless.prompts import ClipPrompts
from ..rewards import DotProductReward, clip_reward
from . import models

World = tuple[FluxFlow, DiffusersDecoder, DotProductReward, ClipPrompts]  # flow model, decoder, reward and dataset


def toy_world(prompts: list[str], **flow_options: Any) -> World:
    """The shipped toy models and these prompts; `flow_options` go to FluxFlow."""
    return world_of(
        flux=models.load_flux(),
        vae=models.load_vae(),
        clip=models.load_clip(),
        tokenizer=models.load_tokenizer(),
        prompts=prompts,
        **flow_options,
    )


def world_of(
    *,
    flux: FluxTransformer2DModel,
    vae: AutoencoderTiny,
    clip: CLIPModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    **flow_options: Any,
) -> World:
    """Any toy-sized models of diffusers and transformers, wired in the same way; `clip` encodes the prompts, too."""
    flow = FluxFlow(flux, **flow_options)
    decoder = DiffusersDecoder(vae, checkpointing=False)  # small enough to keep all
    return flow, decoder, clip_reward(clip, tokenizer), ClipPrompts(prompts, clip, tokenizer)
