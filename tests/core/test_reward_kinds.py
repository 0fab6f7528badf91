"""Reward files as trainers and tools leave them: under any prefix, stored in odd ways, and no files at all."""

import os
import re
import resource
import runpy
import zipfile

import pytest
import torch
from find_host import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from reward_files import (
    FEATURE,
    clip_model,
    laion_aesthetic,
    mps_state,
    pictures,
    save,
    to_open_clip,
)
from safetensors.torch import save_file

from srpo_core.rewards import Weights, load_reward
from srpo_core.rewards.text_features import TextFeatures

TEXT = ["a cat"]


@pytest.fixture(scope="module")
def models():
    """Small models by family, as they are trained."""
    clip = clip_model("gelu", width=16)
    return {
        "open_clip": to_open_clip(clip),
        "custom text": to_open_clip(clip, "text."),
        "transformers": clip.state_dict(),
        "MPS": mps_state(clip),
    }


@pytest.fixture(scope="module")
def scores(models, tmp_path_factory):
    """What the plain files score."""
    folder = tmp_path_factory.mktemp("plain")
    return {name: score(save(state, folder / "plain.pt")) for name, state in models.items()}


def score(path, **options):
    return load_reward(path, **options).score(pictures(1), TEXT)


def put_before(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


# Whole models under what trainers put before them


WRAPPER = st.sampled_from(["module.", "model.", "_orig_mod.", "base_model.model.", "clip.", "net-1.", "student.a.b."])
NESTED = st.lists(st.sampled_from(["state_dict", "model", "ema", "weights"]), max_size=2)


@settings(max_examples=8)
@given(prefixes=st.lists(WRAPPER, max_size=3), nested=NESTED, family=st.sampled_from(["open_clip", "transformers"]))
def test_any_prefix_and_any_dictionary(models, scores, tmp_path_factory, prefixes, nested, family):
    content = put_before(models[family], "".join(prefixes))
    for name in nested:
        content = {name: content, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "groups": [{}]}}
    path = tmp_path_factory.mktemp("wrapped") / "model.ckpt"
    torch.save(content, path)
    assert torch.equal(score(path), scores[family])


@pytest.mark.parametrize("family", ["open_clip", "custom text", "transformers", "MPS"])
@pytest.mark.parametrize("prefix", ["model.", "base_model.model."])
def test_every_family_under_a_prefix(models, scores, tmp_path, family, prefix):
    path = save(put_before(models[family], prefix), tmp_path / "model.safetensors")
    assert torch.equal(score(path), scores[family])


def test_wrappers_in_the_middle_of_names(models, scores, tmp_path):
    """As torch.compile and FSDP leave them around a part of a model."""
    state = {
        name.replace("visual.", "visual._orig_mod.").replace(".mlp.", "._fsdp_wrapped_module.mlp."): tensor
        for name, tensor in models["open_clip"].items()
    }
    assert torch.equal(score(save(state, tmp_path / "model.pt")), scores["open_clip"])


@pytest.mark.parametrize("prefix", ["", "model.", "module.predictor."])
def test_heads_under_a_prefix(models, tmp_path, prefix):
    backbone = save(put_before(models["transformers"], prefix), tmp_path / "clip.safetensors")
    head = save(put_before(laion_aesthetic(), prefix), tmp_path / "head.pth")
    plain = score(
        save(laion_aesthetic(), tmp_path / "plain.pth"),
        backbone=save(models["transformers"], tmp_path / "plain.safetensors"),
    )
    assert torch.equal(score(head, backbone=backbone), plain)


def test_the_model_and_not_its_moving_average(models, scores, tmp_path):
    averaged = {name: 0.5 * tensor for name, tensor in models["transformers"].items()}
    path = tmp_path / "model.pt"
    torch.save({"ema": averaged, "model": models["transformers"]}, path)
    assert torch.equal(score(path), scores["transformers"])
    torch.save({"teacher": averaged, "student": models["transformers"]}, path)
    with pytest.raises(ValueError, match='has 2 models, under "teacher." and "student.". Save the one that is meant'):
        load_reward(path)


def test_names_of_two_tensors_that_become_one(tmp_path):
    path = save({"module.a": torch.zeros(1), "a": torch.ones(1)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="two tensors for a: module.a and a"):
        Weights(path)


def test_what_is_missing_is_looked_for_under_a_prefix(models, tmp_path):
    state = put_before(models["transformers"], "model.")
    del state["model.visual_projection.weight"]
    path = save(state, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(ValueError) as said:
        load_reward(path)
    assert 'visual_projection.weight is missing (looked for under "model.")' in str(said.value)
    assert "one part of several" in str(said.value) and "Download" not in str(said.value)


def test_loras(models, tmp_path):
    name = "vision_model.encoder.layers.0.self_attn.q_proj"
    lora = {f"base_model.model.{name}.lora_{side}.default.weight": torch.zeros(2, 2) for side in "AB"}
    with pytest.raises(ValueError, match="alone.safetensors: This file is a LoRA alone.*merge_and_unload"):
        load_reward(save(lora, tmp_path / "alone.safetensors"))
    both = put_before(models["transformers"], "base_model.model.") | lora
    with pytest.raises(ValueError, match="both.safetensors has a LoRA beside its weights.*lora_A.*merge_and_unload"):
        load_reward(save(both, tmp_path / "both.safetensors"))


class Settings:
    """Of a trainer, saved beside the weights."""


def test_a_trainers_checkpoint_with_its_settings_says_how_to_take_the_tensors_out(
    models, scores, tmp_path, monkeypatch
):
    path = tmp_path / "light.ckpt"
    content = {"state_dict": put_before(models["transformers"], "model."), "hyper_parameters": Settings()}
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"light.ckpt holds more than tensors \(.*Settings\)") as said:
        load_reward(path)
    page, _, heading = str(said.value).rpartition("/main/")[2].partition("#")
    section = (ROOT / page).read_text("utf-8").split(f"## {heading.replace('-', ' ').capitalize()}\n")[1]
    monkeypatch.chdir(tmp_path)
    recipe = re.search(r"```python\n(.+?)```", section, re.DOTALL)[1]
    (tmp_path / "recipe.py").write_text(recipe.replace("name.ckpt", path.name))
    runpy.run_path("recipe.py")
    assert torch.equal(score(tmp_path / "tensors alone.pt"), scores["transformers"])


# How numbers are stored


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_plain_floats_of_any_size_are_cast(models, tmp_path, kind, name):
    stored = {key: value.to(kind) if value.ndim == 2 else value for key, value in models["transformers"].items()}
    plain = score(save(stored, tmp_path / "plain.safetensors"))
    path = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(stored, path)
    assert torch.equal(score(path), plain)


PROJECTION = "visual_projection.weight"


def quantised(tensor):
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


ODD = {
    "sparse": (lambda t: t.to_sparse(), "sparse"),
    "sparse csr": (lambda t: t.to_sparse_csr(), "sparse"),
    "meta": (lambda t: t.to("meta"), "without its values"),
    "quantised": (quantised, "qint8"),
    "complex": (lambda t: t.to(torch.complex64), "complex64"),
    "bool": (lambda t: t > 0, "bool"),
    "int8": (lambda t: t.to(torch.int8), "int8"),
    "expanded": (lambda t: t[:1, :1].clone().expand(FEATURE, 16), "bytes, of which the file has 4"),
    "of gigabytes": (lambda t: torch.zeros(1).expand(60_000, 60_000), "are 60000 and 48 wide"),
    "empty": (lambda t: t[:0], "none of them 0"),
    "flat": (lambda t: t.flatten(), "2 sizes"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ODD)
def test_kinds_of_tensors_that_are_no_weights(models, tmp_path, kind, zipped):
    make, words = ODD[kind]
    path = tmp_path / "model.pt"
    state = models["transformers"] | {PROJECTION: make(models["transformers"][PROJECTION])}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=rf"model.pt (is not|can't).*({PROJECTION}|compares).*{words}"):
        load_reward(path)


def test_transposed_tensors_are_read(models, scores, tmp_path):
    turned = {k: v.t().contiguous().t() if v.ndim == 2 else v for k, v in models["transformers"].items()}
    torch.save(turned, tmp_path / "model.pt")
    assert torch.equal(score(tmp_path / "model.pt"), scores["transformers"])


def test_scaled_fp8_and_quantised_files(models, tmp_path):
    stored = {k: v.to(torch.float8_e4m3fn) if v.ndim == 2 else v for k, v in models["transformers"].items()}
    stored["visual_projection.scale_weight"] = torch.ones(())
    save_file({name: value.contiguous() for name, value in stored.items()}, tmp_path / "scaled.safetensors")
    with pytest.raises(ValueError, match=r"stored as float8_e4m3fn with scales \(visual_projection.scale_weight\)"):
        load_reward(tmp_path / "scaled.safetensors")


def test_a_storage_that_stands_for_many_tensors_takes_no_gigabytes(models, tmp_path):
    """Each tensor has its bytes in the file, and all have the same ones: 2 MB that were 1.3 GB in memory."""
    one = torch.zeros(512, 1024)
    layer = "vision_model.encoder.layers.{}.mlp.fc{}.weight"
    state = models["transformers"] | {layer.format(i, n): one for i in range(300) for n in (1, 2)}
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="300 layers"):
        load_reward(tmp_path / "model.pt")
    same = one.view(-1)[: 128 * 128].view(128, 128)
    heads = {f"layers.{i}.weight": same for i in range(150)} | {f"layers.{i}.bias": same[0] for i in range(150)}
    heads |= {"layers.149.weight": same[:1], "layers.149.bias": same[0, :1]}
    heads["layers.7.weight"] = same[:1]
    torch.save(heads, tmp_path / "head.pt")
    with pytest.raises(ValueError):
        load_reward(tmp_path / "head.pt", backbone=save(models["transformers"], tmp_path / "clip.pt"))


def test_names_that_are_no_text(models, scores, tmp_path):
    torch.save({0: torch.zeros(1), ("a", 1): torch.zeros(1), **models["transformers"]}, tmp_path / "both.pt")
    assert torch.equal(score(tmp_path / "both.pt"), scores["transformers"])
    torch.save({0: torch.zeros(1), 1: torch.zeros(1)}, tmp_path / "numbers.pt")
    with pytest.raises(ValueError, match="numbers.pt holds no tensors by name"):
        load_reward(tmp_path / "numbers.pt")


def test_dictionaries_that_are_very_many_when_written_out(tmp_path):
    content = {"a": torch.zeros(1)}
    for _ in range(60):
        content = {"a": content, "b": content}
    torch.save(content, tmp_path / "laughs.pt")
    with pytest.raises(ValueError, match="no reward model"):
        load_reward(tmp_path / "laughs.pt")
    content["b"] = content  # in itself
    torch.save(content, tmp_path / "itself.pt")
    with pytest.raises(ValueError, match="no reward model"):
        load_reward(tmp_path / "itself.pt")


# What grows, and what is no file


def peak_of(path):
    """Bytes by which trying to load this raised the most that the process has held."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError) as said:
        load_reward(path)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, str(said.value)


def zip_bomb(path):
    """200 MB of zeros in 0.2 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("model/data.pkl", "w") as file:
        for _ in range(200):
            file.write(bytes(2**20))


def asks_for_memory(path):
    """A pickle of a few bytes that torch.load lets pass: bytearray(2**33)."""
    path.write_bytes(b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (2**33).to_bytes(5, "little") + b"\x85R.")


def many_steps(path):
    path.write_bytes(b"\x80\x02" + b"}" * 5_000_000 + b".")


def large_header(path):
    path.write_bytes((2**62).to_bytes(8, "little") + b"{" + b" " * 100)


def long_header(path):
    header = b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}' + b" " * (20 * 2**20) + b"}"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


BOMBS = {
    zip_bomb: "packed in a way",
    asks_for_memory: "more than tensors .*bytearray",
    many_steps: "far more than the tensors",
    large_header: "ends before its tensors begin",
    long_header: "says 21 MB about its tensors",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_small_files_that_would_take_the_memory(tmp_path, bomb):
    path = tmp_path / ("a.safetensors" if "header" in bomb.__name__ else "a.pt")
    bomb(path)
    peak, said = peak_of(path)
    assert peak < 100e6, peak
    pytest.raises(ValueError, load_reward, path).match(BOMBS[bomb])
    assert said.startswith("a.")


def no_file(path, how):
    if how == "a folder":
        path.mkdir()
    elif how == "a pipe":
        os.mkfifo(path)
    elif how == "Git LFS":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    elif how == "a GGUF file":
        path.write_bytes(b"GGUF" + bytes(100))
    elif how == "is empty":
        path.write_bytes(b"")
    else:
        path.symlink_to({"a link to": "gone", "device": "/dev/zero", "can't be opened": path.name}[how])


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
@pytest.mark.parametrize(
    "how", ["a folder", "a pipe", "a link to", "device", "can't be opened", "Git LFS", "a GGUF file", "is empty"]
)
def test_what_is_no_file_of_weights(models, tmp_path, name, how):
    no_file(tmp_path / name, how)
    with pytest.raises(ValueError, match=f"{name}.*{how}"):
        load_reward(tmp_path / name)
    backbone = save(laion_aesthetic(), tmp_path / "head.pt")
    with pytest.raises(ValueError, match=f"{name}.*{how}"):
        load_reward(backbone, backbone=tmp_path / name)


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_one_kind_with_the_name_of_the_other(models, scores, tmp_path, zipped):
    state = {name: tensor.contiguous() for name, tensor in models["transformers"].items()}
    save_file(state, tmp_path / "model.bin")
    assert torch.equal(score(tmp_path / "model.bin"), scores["transformers"])
    torch.save(state, tmp_path / "model.safetensors", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="is a PyTorch file under a name of safetensors: rename it to model.pt"):
        load_reward(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").rename(tmp_path / "model.pt")
    assert torch.equal(score(tmp_path / "model.pt"), scores["transformers"])


@pytest.mark.parametrize("name", ["odd 'name' $x_{.pt", "\u6a21\u578b.safetensors", "a%20#?.SAFETENSORS", "x.PT"])
def test_names_with_odd_characters(models, scores, tmp_path, name):
    path = tmp_path / name
    state = {name: tensor.contiguous() for name, tensor in models["transformers"].items()}
    (save_file if path.suffix.lower() == ".safetensors" else torch.save)(state, path)
    assert torch.equal(score(path), scores["transformers"])


def test_a_name_that_is_no_utf8(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff\xfe.pt")
    with pytest.raises(ValueError, match="is no UTF-8: give the file another name") as said:
        load_reward(path)
    str(said.value).encode()


# Sizes that no model has


SPOILT = {
    "logit_scale": torch.tensor(1000.0),
    "text_projection.weight": torch.zeros(FEATURE - 1, 16),
    "text_model.embeddings.position_embedding.weight": torch.zeros(100_000, 16),
    "vision_model.embeddings.position_embedding.weight": torch.zeros(300 * 300 + 1, 16),
    "vision_model.embeddings.class_embedding": torch.zeros(16, 16),
    "vision_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(300),
}


@pytest.mark.parametrize("name", SPOILT)
def test_sizes_that_no_model_has(models, tmp_path, name):
    path = save(models["transformers"] | {name: SPOILT[name]}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors is (not of a known model|spoilt): "):
        load_reward(path)


@pytest.mark.parametrize(
    "written", ["[]", '{"model_type": "clip", "vision_config": 3}', "[" * 100_000, '"x"', '{"model_cfg": []}']
)
def test_a_configuration_beside_the_file_that_is_none(models, tmp_path, written):
    for family, name in (("transformers", "config.json"), ("open_clip", "open_clip_config.json")):
        path = save(models[family], tmp_path / f"{family}.pt")
        (tmp_path / name).write_text(written)
        try:
            load_reward(path)
        except ValueError as error:
            assert f"{name} is" in str(error) and "download it again or remove it" in str(error)


def test_an_activation_that_the_configuration_asks_for_and_nobody_knows(models, tmp_path):
    path = save(models["transformers"], tmp_path / "model.pt")
    config = '{"model_type": "clip", "vision_config": {"hidden_size": 16, "hidden_act": "swish9"}}'
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="hidden_act 'swish9'"):
        load_reward(path)
    load_reward(path, activation="gelu")


def test_an_unknown_condition(models, tmp_path):
    with pytest.raises(ValueError, match="no condition 'beauty': choose one of overall, "):
        load_reward(save(models["MPS"], tmp_path / "mps.pt"), condition="beauty")


@pytest.mark.parametrize(
    "stored",
    [
        {"keys": torch.zeros(2, 16), "features": torch.zeros(2, 4)},
        {"keys": torch.zeros(2, 16, dtype=torch.uint8), "features": torch.full((2, 4), torch.nan)},
        {"keys": torch.zeros(2, 16, dtype=torch.uint8), "features": torch.zeros(3, 4)},
        {"keys": torch.zeros(2, 16, dtype=torch.uint8), "features": torch.zeros(2, 4, dtype=torch.float16)},
        {"keys": torch.zeros((), dtype=torch.uint8), "features": torch.zeros(())},
        {"other": torch.zeros(1)},
    ],
)
def test_stored_text_features_that_are_spoilt_are_made_anew(tmp_path, stored):
    save_file(stored, tmp_path / "a.safetensors")
    features = TextFeatures(tmp_path / "a.safetensors")
    assert not len(features)
    features.add(["a"], torch.ones(1, 4))
    assert torch.equal(TextFeatures(tmp_path / "a.safetensors").get(["a"]), torch.ones(1, 4))
