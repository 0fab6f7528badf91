"""Random files of FLUX.1-dev, CLIP-L, T5, FLUX's VAE and HPS in the layouts in which people have them.

CLIP-L and the VAE have their full size, as the host knows no other; FLUX, T5 and HPS are small. To write them the
host's own classes must be in this process.
"""

import json
from pathlib import Path

import torch
from oracle import host_model, random_flux, random_vae
from reward_files import clip_model, randomise, save, to_open_clip
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

T5_WIDTH = 32
T5_SIZES = {"d_model": T5_WIDTH, "d_kv": 16, "d_ff": 64, "num_heads": 2, "num_layers": 2}
# The host reads T5-XXL's sizes from a file beside the module that has the class.
SMALLER_T5 = """
from pathlib import Path
import comfy.text_encoders.sd3_clip
comfy.text_encoders.sd3_clip.__file__ = str(Path(__file__).with_name("sd3_clip.py"))
NODE_CLASS_MAPPINGS = {}
"""


def write_smaller_t5(folder: Path, install: Path):
    """A pack of custom nodes by which the host takes a T5 of T5_SIZES for T5-XXL. install: where ComfyUI is."""
    folder.mkdir(parents=True)
    config = json.loads((install / "comfy/text_encoders/t5_config_xxl.json").read_text())
    (folder / "t5_config_xxl.json").write_text(json.dumps(config | T5_SIZES))
    (folder / "__init__.py").write_text(SMALLER_T5)


def write_flux_files(models: Path):
    """Everything that the workflows for FLUX.1-dev ask for, under the names that they ask for."""
    files = {
        "diffusion_models/flux1-dev.safetensors": flux(),
        "text_encoders/clip_l.safetensors": clip_l(),
        "text_encoders/t5xxl_fp16.safetensors": t5(),
        "vae/ae.safetensors": vae(),
    }
    for name, state in files.items():
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        save(state, models / name, torch.float16)
    (models / "rewards").mkdir(exist_ok=True)
    torch.save({"state_dict": to_open_clip(clip_model("gelu"))}, models / "rewards/HPS_v2.1_compressed.pt")


def flux() -> dict[str, torch.Tensor]:
    """In Black Forest Labs' layout."""
    small = host_model(random_flux(joint_attention_dim=T5_WIDTH, pooled_projection_dim=768))
    return small.model.diffusion_model.state_dict()


def clip_l() -> dict[str, torch.Tensor]:
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    state = _random(CLIPTextModel(CLIPTextConfig(**sizes)))
    return {name if name.startswith("text_model.") else f"text_model.{name}": each for name, each in state.items()}


def t5() -> dict[str, torch.Tensor]:
    return _random(T5EncoderModel(T5Config(vocab_size=32128, feed_forward_proj="gated-gelu", **T5_SIZES)))


def vae() -> dict[str, torch.Tensor]:
    """In the layout of Latent Diffusion."""
    import comfy.sd

    state = random_vae((128, 256, 512, 512)).state_dict()
    with torch.inference_mode():
        return comfy.sd.VAE(sd=state, dtype=torch.float32).first_stage_model.state_dict()


def _random(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return randomise(model.state_dict())
