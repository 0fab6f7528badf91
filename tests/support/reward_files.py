"""Small random files of each family of reward models, in the key layouts of the published ones."""

import math

import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

SIZE = 32
PATCH = 8
WIDTH = 128
FEATURE = 48
TEXTS = ["a cat on a mat", "An oil painting of the sea.", "rain"]
IMAGE = dict(hidden_size=WIDTH, intermediate_size=300, num_hidden_layers=2, image_size=SIZE, patch_size=PATCH)
TEXT = dict(hidden_size=WIDTH, intermediate_size=200, num_hidden_layers=3)


def pictures(count=3, size=SIZE, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def randomise(state, seed=0):
    """Values at which every part counts: matrices keep the size of what they multiply, biases are a third of it."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in state.items():
        noise = torch.randn(tensor.shape, generator=generator)
        if "logit_scale" in name:
            noise.fill_(math.log(80))
        elif tensor.ndim < 2:
            noise = 0.3 * noise + (1 if "norm" in name and name.endswith("weight") else 0)
        elif "embedding" not in name or "patch" in name:
            noise = 1.5 * noise / math.sqrt(tensor[0].numel())
        tensor.copy_(noise)
    return state


def clip_model(activation="quick_gelu", width=WIDTH, **changes) -> CLIPModel:
    """A transformers CLIPModel with CLIP's vocabulary, heads 64 wide."""
    head = dict(num_attention_heads=max(1, width // 64), hidden_act=activation)
    text = TEXT | head | dict(max_position_embeddings=77, vocab_size=49408, eos_token_id=49407, hidden_size=width)
    image = IMAGE | head | dict(hidden_size=width)
    config = CLIPConfig(text_config=text, vision_config=image | changes, projection_dim=FEATURE)
    model = CLIPModel(config).eval().requires_grad_(False)
    randomise(dict(model.named_parameters()))
    return model


def siglip_model(vocabulary=1000, width=WIDTH, **image) -> SiglipModel:
    heads = dict(num_attention_heads=max(1, width // 64), hidden_size=width)
    ids = dict(vocab_size=vocabulary, max_position_embeddings=16, bos_token_id=None, eos_token_id=None)
    config = SiglipConfig(text_config=TEXT | heads | ids, vision_config=IMAGE | heads | image)
    model = SiglipModel(config).eval().requires_grad_(False)
    randomise(dict(model.named_parameters()))
    return model


def save(state, path, dtype=torch.float32):
    """As .safetensors or .pt, by the name; returns the path."""
    state = {name: tensor.to(dtype).contiguous().clone() for name, tensor in state.items()}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def to_open_clip(model: CLIPModel, text_prefix=""):
    """The weights of a CLIPModel in open_clip's layout. text_prefix: "text." in some of its models."""
    theirs = model.state_dict()
    state = {
        "visual.class_embedding": theirs["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": theirs["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": theirs["vision_model.embeddings.patch_embedding.weight"],
        "visual.proj": theirs["visual_projection.weight"].T,
        f"{text_prefix}token_embedding.weight": theirs["text_model.embeddings.token_embedding.weight"],
        f"{text_prefix}positional_embedding": theirs["text_model.embeddings.position_embedding.weight"],
        f"{text_prefix}text_projection": theirs["text_projection.weight"].T,
        "logit_scale": theirs["logit_scale"],
    }
    norms = {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        f"{text_prefix}ln_final": "text_model.final_layer_norm",
    }
    for ours, layer in norms.items():
        state |= {f"{ours}.{kind}": theirs[f"{layer}.{kind}"] for kind in ("weight", "bias")}
    for ours, part, count in (("visual.", "vision_model", 2), (text_prefix, "text_model", 3)):
        for i in range(count):
            state |= open_clip_block(theirs, f"{ours}transformer.resblocks.{i}", f"{part}.encoder.layers.{i}")
    return state


def open_clip_block(theirs, ours, layer):
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    names |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    block = {}
    for kind in ("weight", "bias"):
        block |= {f"{ours}.{name}.{kind}": theirs[f"{layer}.{other}.{kind}"] for name, other in names.items()}
        parts = [theirs[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
        block[f"{ours}.attn.in_proj_{kind}"] = torch.cat(parts)
    return block


def mps_state(model: CLIPModel, heads=3, head_width=16, inner=96, depth=2):
    """MPS around this CLIP, with the buffers that a saved module has."""
    shapes = {}
    for i in range(depth):
        cross = f"cross_model.layers.{i}.0.fn"
        alone = f"cross_model.layers.{i}.1.fn"
        shapes |= {
            f"{cross}.norm.weight": (FEATURE,),
            f"{cross}.to_q.weight": (heads * head_width, FEATURE),
            f"{cross}.to_kv.weight": (2 * head_width, FEATURE),
            f"{cross}.to_out.weight": (FEATURE, heads * head_width),
            f"{cross}.ff.0.weight": (2 * inner, FEATURE),
            f"{cross}.ff.2.weight": (FEATURE, inner),
            f"{alone}.norm.weight": (FEATURE,),
            f"{alone}.fused_attn_ff_proj.weight": ((heads + 2) * head_width + 2 * inner, FEATURE),
            f"{alone}.attn_out.weight": (FEATURE, heads * head_width),
            f"{alone}.ff_out.1.weight": (FEATURE, inner),
        }
    state = randomise({name: torch.empty(shape) for name, shape in shapes.items()}, seed=1)
    for i in range(depth):
        for half in (0, 1):
            state[f"cross_model.layers.{i}.{half}.fn.norm.bias"] = torch.zeros(FEATURE)
        frequency = 1 / 10000 ** (torch.arange(0, head_width, 2) / head_width)
        state[f"cross_model.layers.{i}.1.fn.rotary_emb.inv_freq"] = frequency
    return state | {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


def head_state(prefix, indices, width):
    """A head of linear layers, 1,024 to 1 wide in the published ones."""
    widths = [width, 24, 20, 12, 8, 1]
    shapes = {}
    for index, size, out in zip(indices, widths, widths[1:]):
        shapes |= {f"{prefix}{index}.weight": (out, size), f"{prefix}{index}.bias": (out,)}
    return randomise({name: torch.empty(shape) for name, shape in shapes.items()}, seed=2)


def aesthetic_v25(width=WIDTH):
    return head_state("scoring_head.", (0, 2, 4, 6, 8), width)


def laion_aesthetic(width=FEATURE):
    return head_state("layers.", (0, 2, 4, 6, 7), width)
