"""SRPO_Photos on the real host: photos of a folder become latents of the model, encoded once."""

import time

import numpy as np
import prompts
import pytest
import torch
from host_server import HostError
from PIL import Image
from safetensors.torch import load_file

from srpo_core.toy.pictures import Scene, caption, draw

SCENE = Scene("circle", "red", "grass")


def graph(folder: str, **inputs) -> dict:
    """SRPO_Photos, its dataset shown as text."""
    photos = {"clip": ["toy", 1], "vae": ["toy", 2], "width": 64, "height": 64, "default_caption": "", **inputs}
    return {
        "toy": prompts.node("SRPO_ToyModels"),
        "photos": prompts.node("SRPO_Photos", folder=folder, **photos),
        "show": prompts.node("PreviewAny", source=["photos", 0]),
    }


def training(run: str, folder: str, updates: int = 1, **options) -> dict:
    """A run on the photos of a folder."""
    prompt = prompts.train(run, updates, **options)
    prompt["prompts"] = graph(folder)["photos"]
    return prompt


def told(host) -> str:
    """What nodes said on themselves while the last prompt ran."""
    return b" ".join(data for kind, data in host.messages if kind == "preview").decode("utf-8", "replace")


def photo(seed: int) -> Image.Image:
    """64x64."""
    pixels = draw(SCENE, "photo", np.random.default_rng(seed)).permute(1, 2, 0)
    return Image.fromarray((255 * pixels).round().byte().numpy())


@pytest.fixture
def folder(host):
    """Three photos of a toy scene: one with a caption, one in a folder inside, one in another shape."""
    place = host.base / "input/photos"
    (place / "more").mkdir(parents=True, exist_ok=True)
    photo(0).save(place / "first.png")
    (place / "first.txt").write_text(caption(SCENE))
    photo(1).save(place / "more/second_photo.png")
    photo(2).resize((200, 120)).save(place / "wide.jpg")
    return place


def latents(host) -> dict:
    return {file: file.stat().st_mtime_ns for file in (host.base / "output/srpo/.photos").glob("*")}


def said(host, prompt: dict) -> str:
    with pytest.raises(HostError) as refused:
        host.run(prompt)
    return str(refused.value)


def test_photos_are_encoded_once_when_they_are_drawn_and_anew_when_they_change(host, folder):
    before = latents(host)
    host.run(graph("photos"))
    assert latents(host) == before
    host.run(training("photos", "photos", batch=3))
    first = latents(host)
    assert len(first) == len(before) + 3
    photo(3).save(folder / "first.png")
    (folder / "wide.jpg").unlink()
    host.run(training("photos", "photos", batch=2))
    second = latents(host)
    assert len(second) == len(before) + 4 and first.items() <= second.items()
    assert not list((host.base / "input").rglob("*.safetensors"))


def test_what_is_left_out_or_not_understood_is_said_on_the_node(host, folder, tmp_path):
    (folder / "broken.png").write_text("no picture")
    (folder / "metadata.jsonl").write_text("{}")
    (folder / "10_cat").mkdir()
    photo(7).save(tmp_path / "linked.png")
    (folder / "linked.png").symlink_to(tmp_path / "linked.png")
    host.run(graph("photos"))
    assert "broken.png is no picture" in host.log and "linked.png is a link out of the folder" in host.log
    for words in (
        "3 photos in 2 sizes.",
        "4 without a caption: their file names are used.",
        "1 files not read: .jsonl 1.",
        "The folder 10_cat repeats nothing here",
        "2 left out, see the log: ",
    ):
        assert words in told(host), words
    for name in ("broken.png", "metadata.jsonl", "linked.png"):
        (folder / name).unlink()
    (folder / "10_cat").rmdir()


def test_a_photo_that_turns_out_broken_stops_nobody_and_is_said(host):
    place = host.base / "input/cut"
    place.mkdir()
    for i in range(3):
        photo(i).save(place / f"{i}.png")
    data = (place / "1.png").read_bytes()
    (place / "1.png").write_bytes(data[: len(data) // 2])
    host.run(training("cut", "cut", 2, batch=3))
    assert "1 photo can't be used, and the next one was taken instead, see the log: " in told(host)
    assert "1.png can't be read" in host.log
    whole = load_file(host.base / "output/srpo/cut/state.safetensors")
    for updates in (1, 1):
        host.run(training("cut in two", "cut", updates, batch=3))
    pieces = load_file(host.base / "output/srpo/cut in two/state.safetensors")
    assert all(torch.equal(pieces[key], value) for key, value in whole.items())


def test_cancel_stops_the_encoding_and_keeps_what_is_done(host):
    place = host.base / "input/large"
    place.mkdir()
    Image.new("RGB", (3000, 2000)).save(place / "0.jpg")
    data = (place / "0.jpg").read_bytes()
    for i in range(1, 200):
        (place / f"{i}.jpg").write_bytes(data + b"%d" % i)
    before = len(latents(host))
    queued = host.queue(training("large", "large", 20, batch=10))
    while len(latents(host)) < before + 2:
        time.sleep(0.05)
    host.interrupt()
    with pytest.raises(HostError, match="SRPO_Train: interrupted"):
        host.wait(queued)
    assert before + 2 <= len(latents(host)) < before + 200


def test_sentences_for_folders_that_cannot_be_used(host, folder, tmp_path):
    (host.base / "input/empty").mkdir()
    wrong = host.base / "input/wrong"
    wrong.mkdir()
    photo(0).save(wrong / "a.png")
    (wrong / "a.txt").write_text("Stra\xdfe", "latin-1")
    photo(0).save(tmp_path / "a.png")
    (host.base / "input/link").symlink_to(tmp_path)
    expected = {
        "nothing": 'no folder "nothing"',
        "../output": 'no folder "../output"',
        "photos/../../output": "no folder",
        str(tmp_path): "no folder",
        "link": "no folder",
        "": "no folder",
        "empty": "no picture in",
        "wrong": "a.txt is not UTF-8",
    }
    for name, words in expected.items():
        assert words in said(host, graph(name)), name
    small = said(host, graph("photos", width=512, height=512))
    assert "None of the photos can be used" in small and "first.png is 64x64, too small for 512x512" in small


# In this process


@pytest.fixture
def dataset(pack, tmp_path):
    """Two photos as Photos of the toy VAE's latents, and their tensors (1, 3, 64, 64)."""
    photos = pack("nodes.photos")
    core = pack("srpo_core.data.photo_files")
    pixels = pack("srpo_core.data.photo_pixels")
    stored = pack("srpo_core.data.photo_latents")
    for i in range(2):
        photo(i).save(tmp_path / f"{i}.png")
    vae = pack("nodes.host.toy").load_vae()
    store = stored.Store(tmp_path / "store", photos.store_of(vae).encode, "toy")
    measured, _ = pack("srpo_core.data.photo_sizes").measure_all(
        core.scan_folder(tmp_path).photos, pixels.sizes_of_area(64, 64, 16)
    )
    return stored.Photos(stored.Latents(measured, store), None)


@torch.inference_mode()
def test_latents_for_a_model_decode_to_the_photos(pack, dataset):
    toy = pack("nodes.host.toy")
    model = toy.load_model()
    latents = pack("nodes.photos").for_model(dataset, model).latents([0, 1])
    torch.testing.assert_close(latents, (dataset.latents([0, 1]) - 0.1159) * 0.3611)  # of FLUX
    decoder = pack("nodes.host.decoder").HostDecoder(toy.load_vae(), model)
    decoded = decoder.decode(latents).value
    real = torch.stack([torch.from_numpy(np.array(photo(i))).permute(2, 0, 1) / 255 for i in range(2)])
    errors = [(decoded[i] - real[j]).square().mean().item() for i in range(2) for j in range(2)]
    assert max(errors[0], errors[3]) < 0.01 and min(errors[1:3]) > 2 * max(errors[0], errors[3])


def test_photos_of_another_model_are_refused(pack, dataset):
    model = pack("nodes.host.toy").load_model()
    model.get_model_object("latent_format").latent_channels = 4
    with pytest.raises(ValueError, match="takes .batch, 4,"):
        pack("nodes.photos").for_model(dataset, model)


def test_prompts_are_left_as_they_are(pack):
    dataset = pack("nodes.prompts").Prompts(["a"], [])
    assert pack("nodes.photos").for_model(dataset, None) is dataset


def test_training_on_photos_rolls_nothing_out(host, folder):
    """The sampler's steps change nothing, photos of two shapes share an update, and the run goes on."""
    for run, steps in (("photos once", 2), ("photos twice", 4)):
        for updates in (2, 1):
            host.run(training(run, "photos", updates, batch=3, at_once=2, steps=steps))
    states = [
        load_file(host.base / "output/srpo" / run / "state.safetensors") for run in ("photos once", "photos twice")
    ]
    assert all(torch.equal(states[1][key], value) for key, value in states[0].items())
    assert any(value.abs().max() > 0 for key, value in states[0].items() if "up" in key and key.startswith("adapter."))


def test_a_folder_with_pictures_comes_before_an_empty_one(host, folder):
    (host.base / "input/3d").mkdir(exist_ok=True)
    _, options = host.object_info()["SRPO_Photos"]["input"]["required"]["folder"]
    assert options["options"].index("photos") < options["options"].index("3d")
