"""FLUX with random weights in the forms that people load it in, made by the host.

ComfyUI is imported by the functions, as it must have been found before.
"""

import json
from collections.abc import Iterable

import torch
from torch import Tensor

from srpo_core.toy.models import FLUX_CONFIG

PLAIN = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float8_e4m3fn, "fp32": torch.float32}
QUANTISED = {"fp8_scaled": "float8_e4m3fn", "int8": "int8_tensorwise", "mxfp8": "mxfp8", "nvfp4": "nvfp4"}
BASES = (*PLAIN, *QUANTISED)
FLUX_DEV = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
TOY = FLUX_DEV | {
    "vec_in_dim": FLUX_CONFIG["pooled_projection_dim"],
    "context_in_dim": FLUX_CONFIG["joint_attention_dim"],
    "hidden_size": FLUX_CONFIG["num_attention_heads"] * FLUX_CONFIG["attention_head_dim"],
    "num_heads": FLUX_CONFIG["num_attention_heads"],
    "depth": FLUX_CONFIG["num_layers"],
    "depth_single_blocks": FLUX_CONFIG["num_single_layers"],
}


def random_flux(sizes: dict, base: str):
    """MODEL as the host's loader makes it. base: one of BASES."""
    return quantised_flux(sizes, QUANTISED[base]) if base in QUANTISED else plain_flux(sizes, PLAIN[base])


def plain_flux(sizes: dict, dtype: torch.dtype):
    """A MODEL of FLUX without a file: 12 billion weights are drawn where they stay."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    config = comfy.supported_models.Flux({"image_model": "flux", **sizes})
    cast = comfy.model_management.unet_manual_cast(dtype, device, config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, cast, device=device)
    model = config.get_model({}).to(offload)
    draw_weights(model.diffusion_model.named_parameters(), device)
    return comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=offload)


def quantised_flux(sizes: dict, algorithm: str):
    """The linear layers of its blocks in a quantised kind of the host, as in the files that it loads."""
    import comfy.ldm.flux.model
    import comfy.model_management
    import comfy.ops
    import comfy.sd
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    device = comfy.model_management.get_torch_device()
    layout = QUANT_ALGOS[algorithm]["comfy_tensor_layout"]
    with torch.device("meta"):
        model = comfy.ldm.flux.model.Flux(**sizes, dtype=torch.bfloat16, operations=comfy.ops.disable_weight_init)
    state = {}
    layers = {}
    for name, empty in model.state_dict().items():
        weight = torch.empty_like(empty, device=device)
        draw_weights([(name, weight)], device)
        if weight.ndim == 2 and "_blocks." in name:
            layers[name.removesuffix(".weight")] = {"format": algorithm}
            scaled = {"scale": "recalculate"} if algorithm.startswith("float8") else {}
            packed = QuantizedTensor.from_float(weight, layout, **scaled).state_dict(name)
            state |= {key: value.contiguous().cpu() for key, value in packed.items()}
        else:
            state[name] = weight.cpu()
    metadata = {"_quantization_metadata": json.dumps({"layers": layers})}
    return comfy.sd.load_diffusion_model_state_dict(state, metadata=metadata)


def draw_weights(named: Iterable[tuple[str, Tensor]], device: torch.device):
    """Draw weights with which signals neither die nor explode: norms as they are made, the rest as wide layers are."""
    for name, weight in named:
        if weight.ndim > 1:
            dtype = weight.dtype if weight.itemsize > 1 else torch.bfloat16
            drawn = torch.randn(weight.shape, device=device, dtype=dtype).mul_(weight[0].numel() ** -0.5)
        else:
            drawn = torch.full(weight.shape, float(name.endswith(("weight", "scale"))), device=device)
        weight.data.copy_(drawn.to(weight.dtype))
