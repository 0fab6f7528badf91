"""Hostile reward files for `bench.fuzz`: files of the known families, made odd."""

import random
import zipfile
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from srpo_core.rewards import load_reward

from .fuzz_attempt import Attempt, Found
from .fuzz_files import ODD_BYTES, damage_bytes, damage_place, odd_tensor
from .reward import TOY


def rewards(work: Path) -> Attempt:
    """Whole files of the families under any prefix, then made odd, and scored with if they load."""
    work.mkdir()
    models = reward_models()
    save_file(models["clip"], work / "backbone.safetensors")

    def attempt(draw: random.Random, folder: Path):
        path = folder / draw.choice(("model.pt", "model.ckpt", "hps.bin", "model.safetensors", "odd \u00e9 'name'.pth"))
        name = draw.choice(sorted(models))
        write_reward(draw, odd_model(draw, models[name]), path)
        if draw.random() < 0.3:
            draw.choice((damage_bytes, damage_place))(draw, path)
        if draw.random() < 0.1:
            (folder / "config.json").write_bytes(draw.choice(ODD_BYTES))
        backbone = work / "backbone.safetensors" if name == "head" else None
        score = load_reward(path, backbone=backbone).score(torch.rand(1, 3, 40, 40), ["a cat"])
        if not score.isfinite().all():
            raise Found("a score that is not finite")

    return attempt


def reward_models() -> dict[str, dict[str, Tensor]]:
    """Small models of random weights, by family."""
    torch.manual_seed(0)
    sizes = TOY | {"text_cfg": TOY["text_cfg"] | {"width": 16, "layers": 1}}
    tower = dict(hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=1)
    text = tower | dict(vocab_size=49408, max_position_embeddings=77, eos_token_id=49407)
    image = tower | dict(image_size=32, patch_size=8)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=12))
    widths = {0: (8, 12), 2: (6, 8), 4: (5, 6), 6: (4, 5), 7: (1, 4)}
    head = {f"layers.{i}.weight": torch.randn(size) for i, size in widths.items()}
    head |= {f"layers.{i}.bias": torch.randn(size[0]) for i, size in widths.items()}
    both = {"open_clip": open_clip.CLIP(**sizes).state_dict(), "clip": clip.state_dict()}
    return {name: {k: v.detach().clone() for k, v in state.items()} for name, state in (both | {"head": head}).items()}


def odd_model(draw: random.Random, state: dict[str, Tensor]) -> dict:
    """A prefix, an odd tensor or two, names that are lost or are more."""
    state = dict(state)
    for _ in range(draw.choice((0, 0, 1, 1, 2))):
        name = draw.choice(sorted(state))
        how = draw.choice(("odd", "lost", "other name", "number", "all"))
        if how == "odd":
            state[name] = odd_tensor(draw, state[name])
        elif how == "all":
            kind = draw.choice((torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64))
            state = {key: value.to(kind) for key, value in state.items()}
        else:
            value = state.pop(name)
            if how == "other name":
                state[draw.choice(("x", "module." + name, name + ".scale_weight", "encoder.lora_A.weight"))] = value
    prefix = draw.choice(("", "", "module.", "model.", "_orig_mod.", "base_model.model.", "a.b-c.clip."))
    return {prefix + name: value for name, value in state.items()}


def write_reward(draw: random.Random, state: dict, path: Path):
    """As safetensors, or as any of the things that torch.save is used for."""
    if path.suffix == ".safetensors":
        return save_file({name: value.contiguous() for name, value in state.items()}, path)
    if draw.random() < 0.3:
        name = draw.choice(sorted(state))
        state[name] = unsafe_tensor(draw, state[name])
    content = draw.choice(
        (state, {"state_dict": state, "epoch": 3}, {"model": state, "ema": state}, {1: state[min(state)]})
    )
    if draw.random() < 0.1:
        content = draw.choice(({"a": laughs(40)}, {"w": Path("x")}, state[min(state)], [state], {"n": {1: state}}))
    torch.save(content, path, _use_new_zipfile_serialization=draw.random() < 0.8)
    if draw.random() < 0.1 and zipfile.is_zipfile(path):
        pack(path)


def unsafe_tensor(draw: random.Random, tensor: Tensor) -> Tensor:
    """A kind that a pickle can hold and safetensors can't."""
    how = draw.choice(("sparse", "meta", "expanded", "strided", "quantised"))
    if how == "sparse":
        return torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (100_000, 100_000))
    if how == "meta":
        return tensor.to("meta")
    if how == "expanded":
        return torch.zeros(1).expand(draw.choice((tensor.shape, (50_000, 50_000))))
    if how == "quantised":
        return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


def laughs(depth: int) -> dict:
    """Few dictionaries that are very many when they are written out."""
    inner: dict = {"x": torch.zeros(1)}
    for _ in range(depth):
        inner = {"a": inner, "b": inner}
    return inner


def pack(path: Path):
    """The same zip, compressed."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
