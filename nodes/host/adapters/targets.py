"""Named sets of a model's linear layers, by what the host's models call theirs."""

import re

_BLOCKS = r"^diffusion_model\.{}_(\w+_)?(blocks|layers)\."
# A single block holds attention and MLP in one: its linear1 and linear2 belong to both.
_FUSED = r"\.single_(\w+_)?(blocks|layers)\.\d+\.linear[12]$"
TARGETS = {
    "all": "",
    "attention": r"[._](attn|attention)|" + _FUSED,  # double_blocks.0.img_attn.qkv, blocks.0.self_attn.q
    "MLP": r"[._](mlp|ffn?[._]|feed_forward)|" + _FUSED,  # double_blocks.0.img_mlp.0, blocks.0.ffn.0
    "double blocks": _BLOCKS.format("double"),
    "single blocks": _BLOCKS.format("single"),
}


# Runs while conditionings are made, where no gradient passes.
BESIDE_THE_STEP = re.compile(r"^diffusion_model\.llm_adapter\.")


def belongs(name: str, target: str) -> bool:
    """Whether the layer of this name, such as "diffusion_model.blocks.0.attn.q", is in the set."""
    return re.search(TARGETS[target], name) is not None and not BESIDE_THE_STEP.search(name)
