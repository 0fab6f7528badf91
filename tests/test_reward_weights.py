"""Model files as people have them, whole and spoilt; where the published ones are, and their download."""

import hashlib
import os
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from reward_files import save
from torch import nn

from srpo_core.rewards.published import PUBLISHED, Published, fetch, missing
from srpo_core.rewards.weights import Weights, fingerprint

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([0.5])}


def legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


def wrapped(state, path):
    """As a trainer's checkpoint: under "state_dict", with DataParallel's names, beside other things."""
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    return path


@pytest.mark.parametrize(
    "write, name",
    [(save, "a.safetensors"), (save, "a.pt"), (save, "a.pth"), (save, "a.bin"), (legacy, "a.ckpt"), (wrapped, "a.pt")],
)
def test_shapes_and_tensors(write, name, tmp_path):
    weights = Weights(write(STATE, tmp_path / name))
    weights = weights.within("state_dict.") if write is wrapped else weights
    assert weights.shapes == {"a.weight": (2, 3), "b": (1,)}
    read = weights.read(["a.weight"], torch.bfloat16)
    assert list(read) == ["a.weight"] and read["a.weight"].dtype == torch.bfloat16
    assert torch.equal(read["a.weight"].float(), STATE["a.weight"])
    assert weights.number("b") == 0.5
    assert weights.within("a.").shapes == {"weight": (2, 3)}
    assert torch.equal(weights.within("a.").read(["weight"], torch.float32)["weight"], STATE["a.weight"])


def test_what_was_read_does_not_hang_on_the_file(tmp_path):
    for name in ("a.safetensors", "a.pt"):
        path = save(STATE, tmp_path / name)
        read = Weights(path).read(STATE, torch.float32)
        with path.open("r+b") as file:
            file.write(b"\0" * path.stat().st_size)
        assert torch.equal(read["a.weight"], STATE["a.weight"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_values_that_are_not_finite_are_named_when_they_are_read(bad, name, tmp_path):
    weights = Weights(save(STATE | {"spoilt.bias": torch.tensor([1.0, bad])}, tmp_path / name))
    weights.read(["b"], torch.float32)
    with pytest.raises(ValueError, match=f"{name} is spoilt: spoilt.bias has values that are not finite"):
        weights.read(["b", "spoilt.bias"], torch.float32)


class Hostile:
    def __init__(self, command, *inputs):
        self.call = (command, inputs)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_of_more_than_tensors_is_not_run(zipped, tmp_path):
    victim = tmp_path / "victim"
    hostile = {"state_dict": STATE, "more": Hostile(os.mkdir, str(victim))}
    torch.save(hostile, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"a\.pt holds more than tensors \(\w+\.mkdir\).*it was not opened"):
        Weights(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(hostile))
    with pytest.raises(ValueError, match="b.pt"):
        Weights(tmp_path / "b.pt")
    assert not victim.exists()
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert victim.exists()  # or the file above would prove nothing


def test_a_whole_module_is_told_how_to_become_a_file_of_tensors(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "MPS_overall_checkpoint.pth")
    with pytest.raises(ValueError, match=r"torch.nn.modules.linear.Linear.*torch.save\(content.state_dict\(\)"):
        Weights(tmp_path / "MPS_overall_checkpoint.pth")


def test_torchscript_is_told_where_the_same_weights_are(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "ViT-L-14.pt")
    with pytest.raises(ValueError, match="TorchScript.*openai/clip-vit-large-patch14"):
        Weights(tmp_path / "ViT-L-14.pt")


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    return path


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "old.pt"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
def test_files_cut_short(name, part, tmp_path):
    path = (legacy if name == "old.pt" else save)(STATE, tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name} (is|can't).*Download it again"):
        Weights(cut(path, int(part * path.stat().st_size)))


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_files_that_are_something_else(name, tmp_path):
    (tmp_path / name).write_bytes(b"<!DOCTYPE html>" + b" " * 200)
    with pytest.raises(ValueError, match=f"{name} is not a .*Download it again"):
        Weights(tmp_path / name)


def test_files_without_tensors_by_name(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="a.pt holds no tensors by name"):
        Weights(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a.gguf is no file of weights: .*\.safetensors, \.pt"):
        Weights(tmp_path / "a.gguf")
    with pytest.raises(ValueError, match="There is no file .*none.safetensors"):
        Weights(tmp_path / "none.safetensors")


def test_fingerprint_tells_files_apart(tmp_path):
    path = tmp_path / "a"
    content = bytearray(os.urandom(9_000_000))
    path.write_bytes(content)
    first = fingerprint(path)
    assert len(first) == 32 and fingerprint(path) == first
    content[0] ^= 1
    path.write_bytes(content)
    second = fingerprint(path)
    content[-1] ^= 1
    path.write_bytes(content)
    third = fingerprint(path)
    path.write_bytes(content + b"\0")
    assert len({first, second, third, fingerprint(path)}) == 4
    small = {name: fingerprint(save({"a": torch.tensor([value])}, tmp_path / name)) for name, value in
             (("1.safetensors", 1.0), ("2.safetensors", 2.0))}  # fmt: skip
    assert len(set(small.values())) == 2


# The published files


class Hub:
    """In place of huggingface_hub: serves `content`, and can break off."""

    def __init__(self, monkeypatch, content=b"weights", sha=None, size=None):
        self.content, self.broken, self.asked = content, None, []
        self.told = types.SimpleNamespace(
            size=len(content) if size is None else size, etag=sha or hashlib.sha256(content).hexdigest()
        )
        monkeypatch.setitem(sys.modules, "huggingface_hub", self)
        self.hf_hub_url = lambda repository, file: f"{repository}/{file}"
        self.get_hf_file_metadata = lambda url: self.told

    def hf_hub_download(self, repository, file, local_dir):
        self.asked.append((repository, file))
        kept = Path(local_dir) / ".cache" / f"{file}.incomplete"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(self.content[:3])
        if self.broken:
            raise self.broken
        (Path(local_dir) / file).write_bytes(self.content)
        return str(Path(local_dir) / file)


MODEL = Published("Some model", "some/model", "model.safetensors", "some-model.safetensors", 1.5, tokenizer="t.json")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_download_is_there_whole_under_its_own_name(tmp_path, monkeypatch):
    hub = Hub(monkeypatch)
    path = fetch(MODEL, tmp_path / "models")
    assert path == tmp_path / "models" / "some-model.safetensors" and path.read_bytes() == b"weights"
    assert names(path.parent) == ["some-model.safetensors", "some-model.t.json"]
    assert hub.asked == [("some/model", "t.json"), ("some/model", "model.safetensors")]
    fetch(MODEL, tmp_path / "models")
    assert len(hub.asked) == 2


def test_a_download_that_breaks_off_goes_on_later(tmp_path, monkeypatch):
    hub = Hub(monkeypatch)
    hub.broken = ConnectionError("no route to the hub")
    with pytest.raises(OSError, match="no route to the hub.*What has arrived is kept.*about 1.5 GB"):
        fetch(MODEL, tmp_path)
    assert names(tmp_path) == [".some-model.t.json.download"]
    assert list(tmp_path.rglob("*.incomplete"))
    hub.broken = None
    fetch(MODEL, tmp_path)
    assert names(tmp_path) == ["some-model.safetensors", "some-model.t.json"]


@pytest.mark.parametrize(
    "told, message", [(dict(sha="0" * 64), "its SHA-256 differs"), (dict(size=99), "7 bytes arrived of 99")]
)
def test_a_download_that_differs_from_the_hub_is_thrown_away(told, message, tmp_path, monkeypatch):
    Hub(monkeypatch, **told)
    with pytest.raises(OSError, match=message):
        fetch(MODEL, tmp_path)
    assert names(tmp_path) == []


def test_published_files_have_names_of_their_own():
    local = [name for published in PUBLISHED for name in published.files]
    assert len(set(local)) == len(local)
    assert all(published.folder in ("rewards", "clip_vision") for published in PUBLISHED)


def test_the_sentence_for_a_missing_file(tmp_path):
    assert missing(MODEL, tmp_path) == (
        "Some model is missing (about 1.5 GB): get t.json as 'some-model.t.json' and model.safetensors as "
        f"'some-model.safetensors' from huggingface.co/some/model and put them into {tmp_path}."
    )
