"""Small random files of Z-Image and Qwen3 in the layouts in which people have them.

The host reads both models' sizes off fixed lists, so a pack of custom nodes has it know smaller ones.
"""

import json
from dataclasses import replace
from pathlib import Path

import families
import torch
from families import FAMILIES
from reward_files import randomise, save

TEXT_WIDTH = 32
(FAMILY,) = (family for family in FAMILIES if family.name == "Z-Image")
CONFIG = FAMILY.config | {"cap_feat_dim": TEXT_WIDTH}
QWEN = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 3,  # the last but one is read
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
SMALLER = """
from functools import partial
import comfy.model_detection
import comfy.sd
import comfy.supported_models
import comfy.text_encoders.llama as llama

CONFIG = {config}
detect_unet = comfy.model_detection.detect_unet_config
detect_te = comfy.sd.detect_te_model


def smaller_unet(*args, **kwargs):
    found = detect_unet(*args, **kwargs)
    ours = found and (found.get("image_model"), found.get("dim")) == ("lumina2", CONFIG["dim"])
    return dict(CONFIG) if ours else found


def smaller_te(sd):
    ours = "model.layers.0.self_attn.q_norm.weight" in sd
    return comfy.sd.TEModel.QWEN3_4B if ours else detect_te(sd)


comfy.supported_models.ZImage.unet_config = {{"image_model": "lumina2", "dim": CONFIG["dim"]}}
comfy.model_detection.detect_unet_config = smaller_unet
comfy.sd.detect_te_model = smaller_te
llama.Qwen3_4BConfig = partial(llama.Qwen3_4BConfig, **{qwen})
NODE_CLASS_MAPPINGS = {{}}
"""


def write_smaller_z_image(folder: Path):
    """A pack of custom nodes by which the host takes these sizes for Z-Image's and Qwen3's."""
    folder.mkdir(parents=True)
    config = json.loads(json.dumps(CONFIG))
    (folder / "__init__.py").write_text(SMALLER.format(config=config, qwen=QWEN))


def write_z_image_files(models: Path):
    """What the workflow for Z-Image-Turbo asks for beside FLUX's VAE and a reward, under the names it asks for."""
    files = {
        "diffusion_models/z_image_turbo_bf16.safetensors": z_image(),
        "text_encoders/qwen_3_4b.safetensors": qwen(),
    }
    for name, state in files.items():
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        save(state, models / name, torch.bfloat16)


def z_image() -> dict[str, torch.Tensor]:
    return families.patcher(replace(FAMILY, config=CONFIG)).model.diffusion_model.state_dict()


def qwen() -> dict[str, torch.Tensor]:
    import comfy.ops
    import comfy.text_encoders.llama as llama

    model = llama.Qwen3_4B(QWEN, torch.float32, "cpu", comfy.ops.disable_weight_init)
    return randomise(model.state_dict())
