"""Prints, as JSON, what starting to train adds to the memory of a process that holds a FLUX of about 1 GB.

A process of its own, because memory once taken is not always given back.
"""

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "harness"))

import import_core  # noqa: F401


def resident(kind: str) -> int:
    """Bytes of resident memory: "VmRSS" now, or "VmHWM" at most since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith(kind)).split()[1])


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")


def random_model():
    """MODEL: hidden size 1536, 1 + 4 blocks, fp32, by the host's loader."""
    import comfy.ldm.flux.model
    import comfy.ops
    import comfy.sd
    import torch

    sizes = {"in_channels": 16, "out_channels": 16, "vec_in_dim": 32, "context_in_dim": 64, "hidden_size": 1536}
    shape = {"mlp_ratio": 4.0, "num_heads": 12, "depth": 1, "depth_single_blocks": 4, "axes_dim": [16, 56, 56]}
    rest = {"theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": []}
    with torch.device("meta"):
        flux = comfy.ldm.flux.model.Flux(**sizes, **shape, **rest, operations=comfy.ops.disable_weight_init)
    with torch.inference_mode():
        state = {key: 0.02 * torch.randn(value.shape) for key, value in flux.state_dict().items()}
        return comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": torch.float32})


def main():
    from in_process import new_adapter, pack_module

    host_flow = pack_module("nodes.host.flow_model")
    import torch

    model = random_model()
    size = sum(p.nbytes for p in model.model.parameters())
    cond = [[torch.randn(1, 8, 64), {"pooled_output": torch.randn(1, 32)}]]
    x = torch.randn(1, 16, 16, 16)
    sigma = torch.tensor([0.9])
    with torch.inference_mode():
        host_flow.HostFlow(model, host_flow.Sampling(steps=1)).rollout(x, cond, 0)
    before = resident("VmRSS")
    forget_peak()
    adapter = new_adapter(model, rank=4)
    flow = host_flow.HostFlow(adapter.attach(model), guidance=3.5)
    optimizer = torch.optim.AdamW(adapter.parameters.values())
    for _ in range(2):
        velocity = flow.velocity(x, sigma, cond)
        velocity.pull(torch.randn_like(x))
        optimizer.step()
    sys.stdout.write(json.dumps({"model": size, "extra": resident("VmHWM") - before}) + "\n")


if __name__ == "__main__":
    main()
