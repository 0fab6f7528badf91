"""The toy world as ComfyUI models: the weights that ship with the pack, in the host's own classes."""

from functools import partial
from typing import Any

import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from ...srpo_core.rewards import clip_reward
from ...srpo_core.toy import models as toy
from .reward import managed


def load_model():
    """MODEL: FLUX, only small."""
    return comfy.sd.load_diffusion_model_state_dict(_state("flux"), model_options={"dtype": torch.float32})


def load_vae():
    """VAE: the tiny autoencoder, with the latent scale of FLUX."""
    state = {_taesd_key(key): value for key, value in _state("vae").items()}
    state |= {"vae_scale": torch.tensor(0.3611), "vae_shift": torch.tensor(0.1159)}
    return comfy.sd.VAE(sd=state, dtype=torch.float32)


def _taesd_key(key: str) -> str:
    """diffusers' AutoencoderTiny to TAESD, whose decoder begins with a clamp that has a number of its own."""
    side, _, number, rest = key.split(".", 3)
    return f"taesd_{side}.{int(number) + (side == 'decoder')}.{rest}"


def load_clip():
    """CLIP: the text tower of the toy CLIP, over words."""
    target = comfy.supported_models_base.ClipTarget(_Tokenizer, _TextEncoder)
    text = {k: v for k, v in _state("clip").items() if k.startswith(("text_model.", "text_projection."))}
    return comfy.sd.CLIP(target, state_dict=[text], model_options={"dtype": torch.float32})


class _TextModel(comfy.sd1_clip.SDClipModel):
    def __init__(self, **kwargs: Any):
        super().__init__(
            max_length=toy.TEXT_LENGTH,
            textmodel_json_config=toy.CLIP_TEXT_CONFIG,
            special_tokens={"start": toy.BOS, "end": toy.EOS, "pad": toy.PAD},
            return_projected_pooled=False,
            **kwargs,
        )
        words = self.operations.Embedding(toy.CLIP_TEXT_CONFIG["vocab_size"], toy.TEXT_WIDTH)
        self.transformer.set_input_embeddings(words)  # the host's has the size of CLIP's vocabulary


class _TextEncoder(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, **kwargs: Any):
        super().__init__(clip_name="toy", clip_model=_TextModel, **kwargs)


class _Tokenizer(comfy.sd1_clip.SD1Tokenizer):
    def __init__(self, embedding_directory: str | None = None, tokenizer_data: dict | None = None):
        words = partial(
            comfy.sd1_clip.SDTokenizer,
            str(toy.weights_path("tokenizer")),
            max_length=toy.TEXT_LENGTH,
            pad_with_end=False,
            embedding_size=toy.TEXT_WIDTH,
            embedding_key="clip_toy",
            tokenizer_class=PreTrainedTokenizerFast,
        )
        super().__init__(embedding_directory, tokenizer_data or {}, clip_name="toy", tokenizer=words)


def load_reward():
    """SRPO_REWARD_MODEL: both towers of the toy CLIP."""
    with torch.inference_mode(False):
        reward = clip_reward(toy.load_clip(), toy.load_tokenizer())
    reward.name = "toy CLIP"
    return managed(reward)


def _state(name: str) -> dict[str, torch.Tensor]:
    return {key: value.float() for key, value in load_file(toy.weights_path(name)).items()}
