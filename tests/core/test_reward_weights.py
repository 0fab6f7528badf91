"""Model files as people have them, whole and spoilt; where the published ones are, and their download."""

import errno
import hashlib
import http.server
import os
import pickle
import threading
import time

import huggingface_hub
import pytest
import torch
from reward_files import save
from torch import nn

from srpo_core.rewards import published
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
    with pytest.raises(ValueError, match=r"torch.nn.modules.linear.Linear.*security.md#tensors-alone"):
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
    with pytest.raises(ValueError, match=r"a.gguf is no file of weights: .*\.safetensors, .*\.pt"):
        Weights(save(STATE, tmp_path / "a.gguf"))
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
    """A hub on 127.0.0.1 that serves `content` under any name.

    told: headers that it answers HEAD with. breaks: connections that it closes in the middle. stalls: it sends the
    first half and then nothing.
    """

    def __init__(self, content: bytes, **told: str):
        self.content = content
        self.breaks = 0
        self.stalls = False
        self.status = 200
        self.told = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": hashlib.sha256(content).hexdigest()}
        self.told |= {"X-Repo-Commit": "0" * 40, **told}
        self.asked: list[tuple[str, str | None]] = []
        self.ended = threading.Event()
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                """Quiet."""

            def do_HEAD(self):
                self.send_response(200)
                for name, value in hub.told.items():
                    self.send_header(name, value)
                self.end_headers()

            def do_GET(self):
                hub.answer(self)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, request):
        wanted = request.headers.get("Range")
        self.asked.append((request.path.rpartition("/")[2], wanted))
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        body = self.content[first:]
        request.send_response(self.status if self.status != 200 else 206 if wanted else 200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if self.breaks or self.stalls:
            request.wfile.write(body[: len(body) // 2])
            request.wfile.flush()
            self.ended.wait(20 if self.stalls else 0)
            self.breaks -= 1
            request.close_connection = True
            return
        request.wfile.write(body)


def at_hub(monkeypatch, address):
    """Let huggingface_hub look there, as where its own variable HF_ENDPOINT was set when it was imported."""
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(monkeypatch):
    """A function that starts a hub, to which downloads go then."""
    hubs = []

    def start(content=bytes(range(256)) * 4096, **told) -> Hub:
        hubs.append(Hub(content, **told))
        at_hub(monkeypatch, hubs[-1].address)
        return hubs[-1]

    monkeypatch.setattr(published, "PATIENCE", 0.3)
    monkeypatch.setattr(published, "PAUSE", 0.01)
    yield start
    for each in hubs:
        each.ended.set()
        each.server.shutdown()
        each.server.server_close()


MODEL = Published(
    name="Some model",
    repository="some/model",
    file="model.safetensors",
    local="some-model.safetensors",
    gigabytes=1.5,
    tokenizer="t.json",
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def nothing(done, size):
    """Nobody watches."""


def test_a_download_is_there_whole_under_its_own_name(tmp_path, hub):
    served = hub()
    path = fetch(MODEL, tmp_path / "models", nothing)
    assert path == tmp_path / "models" / "some-model.safetensors" and path.read_bytes() == served.content
    assert names(path.parent) == ["some-model.safetensors", "some-model.t.json"]
    assert [name for name, _ in served.asked] == ["t.json", "model.safetensors"]
    fetch(MODEL, tmp_path / "models", nothing)
    assert len(served.asked) == 2


def test_a_connection_that_breaks_is_taken_up_where_it_broke(tmp_path, hub):
    served = hub()
    served.breaks = 3
    seen = []
    path = fetch(MODEL, tmp_path, lambda done, size: seen.append((done, size)))
    assert path.read_bytes() == served.content
    halves = [int(wanted.removeprefix("bytes=").rstrip("-")) for name, wanted in served.asked[1:4]]
    assert halves == sorted(halves) and halves[0] == len(served.content) // 2
    assert seen[-1] == (len(served.content), len(served.content))


class Cancelled(Exception):
    """As the host raises it."""


@pytest.mark.parametrize("stalls", [False, True])
def test_cancel_is_heard_during_a_download_and_leaves_nothing(tmp_path, hub, stalls):
    served = hub()
    began = time.monotonic()
    served.stalls = stalls

    def cancel(done, size):
        if time.monotonic() > began + 0.5 or not stalls:
            raise Cancelled

    with pytest.raises(Cancelled):
        fetch(MODEL, tmp_path, cancel)
    assert names(tmp_path) == [] and time.monotonic() < began + 5
    served.stalls = False
    assert fetch(MODEL, tmp_path, nothing).read_bytes() == served.content


@pytest.mark.parametrize(
    "told, message",
    [
        ({"X-Linked-ETag": "0" * 64}, "its SHA-256 differs"),
        ({"X-Linked-Size": str(2**20 + 7)}, "failed"),
        ({"X-Linked-Size": str(2**20 - 7)}, "more bytes came than the 1048569"),
        ({"X-Linked-Size": str(2**60)}, r"needs 1152921504.61 GB, and [\d.]+ GB are free: make room"),
    ],
)
def test_a_download_that_differs_from_the_hub_or_does_not_fit_leaves_nothing(told, message, tmp_path, hub):
    hub(**told)
    with pytest.raises(RuntimeError, match=f"The download of t.json.*{message}.*about 1.5 GB"):
        fetch(MODEL, tmp_path, nothing)
    assert names(tmp_path) == []


@pytest.mark.parametrize("etag, logged", [(None, 0), ("b" * 40, 2)])
def test_where_the_hub_tells_no_sha256_the_log_says_what_was_checked(etag, logged, tmp_path, hub, caplog):
    hub(**({"X-Linked-ETag": etag} if etag else {}))
    fetch(MODEL, tmp_path, nothing)
    assert caplog.text.count("the hub tells no SHA-256 of it, so its size alone was checked") == logged


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_hub_that_refuses(status, tmp_path, hub):
    hub().status = status
    with pytest.raises(RuntimeError, match=f"failed .*{status}.*by hand"):
        fetch(MODEL, tmp_path, nothing)
    assert names(tmp_path) == []


def test_a_hub_that_is_not_there_and_a_folder_that_can_not_be_made(tmp_path, hub, monkeypatch):
    at_hub(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(RuntimeError, match="failed"):
        fetch(MODEL, tmp_path, nothing)
    assert names(tmp_path) == []
    hub()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RuntimeError, match="failed"):
        fetch(MODEL, tmp_path / "file" / "models", nothing)


def test_a_full_disk_is_said_at_once(tmp_path, hub, monkeypatch):
    served = hub()

    def full(remote, part, before):
        part.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    monkeypatch.setattr(published, "receive", full)
    with pytest.raises(RuntimeError, match="No space left on device"):
        fetch(MODEL, tmp_path, nothing)
    assert names(tmp_path) == [] and not served.asked


def test_published_files_have_names_of_their_own():
    local = [name for each in PUBLISHED for name in each.files]
    assert len(set(local)) == len(local)
    assert all(each.folder in ("rewards", "clip_vision") for each in PUBLISHED)


def test_the_sentence_for_a_missing_file(tmp_path):
    assert missing(MODEL, tmp_path) == (
        "Some model is missing (about 1.5 GB): get t.json as 'some-model.t.json' and model.safetensors as "
        f"'some-model.safetensors' from huggingface.co/some/model and put them into {tmp_path}."
    )
    gone = tmp_path / "rewards"
    assert missing(MODEL, gone).endswith(f"put them into {gone} (make that folder).")
