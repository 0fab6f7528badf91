"""A folder of photos as a dataset: captions, and latents that are encoded once."""

import logging
import os
import re
import struct
import subprocess
import sys
import unicodedata
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from photo_pictures import SIZES, picture, thirds
from PIL import Image

from srpo_core.data import photo_files
from srpo_core.data.photo_files import captions_among, holds_a_picture, scan_folder
from srpo_core.data.photo_latents import VERSION, Latents, Photos, Store
from srpo_core.data.photo_pixels import (
    cropped,
    sizes_of_area,
)
from srpo_core.data.photo_sizes import measure_all
from srpo_core.run.draws import Batching, Draw, of_one_shape
from srpo_core.run.loop import describe_data


class CountingEncoder:
    """Means of 8x8 blocks of each channel as the latent."""

    def __init__(self):
        self.calls = 0

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.nn.functional.avg_pool2d(image, 8)


@pytest.fixture
def encoder():
    return CountingEncoder()


@pytest.fixture
def store(tmp_path, encoder):
    return Store(tmp_path / "store", encoder, "a VAE")


# Captions


def test_captions_beside_pictures_defaults_and_names(tmp_path):
    for name in ("b_red-barn.png", "a.JPG", "deep/er/c.webp", "d.jpeg", "e.bmp", ".hidden/x.png", "._a.jpg"):
        picture(tmp_path / "photos" / name, format="PNG")
    for name, text in {"a": b"\xef\xbb\xbftwo\r\n lines ", "deep/er/c": "Stra\xdfe".encode(), "e": b" \n"}.items():
        (tmp_path / f"photos/{name}.txt").write_bytes(text)
    photos = scan_folder(tmp_path / "photos").photos
    assert {p.file.name: p.caption for p in photos} == {
        "a.JPG": "two lines",
        "b_red-barn.png": "b red barn",
        "c.webp": "Stra\xdfe",
        "d.jpeg": "d",
        "e.bmp": "e",
    }
    default = {p.file.name: p.caption for p in scan_folder(tmp_path / "photos", " a photo ").photos}
    assert default["b_red-barn.png"] == default["e.bmp"] == "a photo" and default["a.JPG"] == "two lines"


@pytest.mark.parametrize(
    "caption",
    ["a.txt", "a.TXT", "A.txt", "a.caption", "a.Caption", "a.jpg.txt", "a.JPG.TXT", "a.jpg.caption"],
)
def test_captions_of_other_programs_and_cameras(tmp_path, caption):
    for picture_name in ("a.jpg", "A.JPG"):
        folder = tmp_path / picture_name
        picture(folder / picture_name, format="JPEG")
        (folder / caption).write_text("a red wall")
        found = scan_folder(folder)
        assert [photo.caption for photo in found.photos] == ["a red wall"]
        assert found.notes() == []


def test_captions_are_told_from_other_texts_as_they_are_read(tmp_path):
    captions = [tmp_path / name for name in ("one.TXT", "two.jpg.txt", "two.caption")]
    others = [tmp_path / name for name in ("prompts.txt", "one.csv", "three.txt")]
    pictures = [tmp_path / name for name in ("One.png", "two.jpg")]
    assert captions_among([*captions, *others, *pictures]) == set(captions)


def test_the_nearest_name_that_has_words_is_the_caption(tmp_path):
    for name in ("a.jpg", "a.png", "b.png", "cafe\u0301.png"):
        picture(tmp_path / name)
    texts = {"a.txt": "both", "a.jpg.txt": "one", "b.txt": " ", "b.caption": "words"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / (unicodedata.normalize("NFC", "cafe\u0301") + ".txt")).write_text("coffee")
    captions = {photo.file.name: photo.caption for photo in scan_folder(tmp_path).photos}
    assert captions == {"a.jpg": "one", "a.png": "both", "b.png": "words", "cafe\u0301.png": "coffee"}


def test_what_was_not_found_is_said(tmp_path):
    folder = tmp_path / "photos"
    outside = tmp_path / "outside"
    for name in ("a.png", "b.png", "10_cat/c.png", "d.png"):
        picture(folder / name)
    for name in ("metadata.jsonl", "tags.csv", "d.json", "movie.mp4", "raw.NEF", "raw2.nef", "README", "orphan.txt"):
        (folder / name).write_text("{}")
    (folder / "Thumbs.db").touch()
    (folder / "a.txt").write_text("a caption")
    (folder / "b.txt").touch()
    picture(outside / "e.png")
    (outside / "d.txt").write_text("secret")
    (folder / "d.txt").symlink_to(outside / "d.txt")
    (folder / "more").symlink_to(outside)
    said = " ".join(scan_folder(folder).notes())
    for words in (
        "3 without a caption (1 with an empty one): their file names are used.",
        "10 files not read: ",
        ".nef 2",
        "links 2",
        ".jsonl 1",
        "without suffix 1",
        ".txt 1",
        "The folder 10_cat repeats nothing here",
    ):
        assert words in said, (words, said)
    assert "default_caption is used" in " ".join(scan_folder(folder, "x").notes("x"))
    assert "secret" not in {photo.caption for photo in scan_folder(folder).photos}


@pytest.mark.parametrize("caption", ["a {red|blue} cat", "a cat <lora:x:1>", "a __colour__ cat", "[a:b:0.5] cat"])
def test_wildcards_in_captions_are_counted(tmp_path, caption):
    for name, words in (("a", caption), ("b", "a (cat:1.2), 3:2, :)"), ("c", caption)):
        picture(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(words)
    found = scan_folder(tmp_path)
    said = [sentence for sentence in found.notes() if "as they are written" in sentence]
    assert found.photos[0].caption == caption and len(said) == 1
    assert said[0].startswith("2 captions ") and caption in said[0]


@pytest.mark.parametrize(
    "text, encoding", [("Stra\xdfe", "latin-1"), ("Stra\xdfe", "utf-16"), ("red barn", "utf-16-le")]
)
def test_a_caption_in_another_encoding_is_named(tmp_path, text, encoding):
    for name in "abc":
        picture(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(text, encoding)
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8.*2 more captions"):
        scan_folder(tmp_path)


@pytest.mark.parametrize(
    "text, said", [("word " * 30_000, "150,000 bytes"), ("word " * 3000, "14,999 char"), ("(" * 99, "inside")]
)
def test_a_caption_that_no_text_encoder_can_read_is_named(tmp_path, text, said):
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.txt .*{said}"):
        scan_folder(tmp_path)


def test_a_folder_without_pictures(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ValueError, match="no picture in"):
        scan_folder(tmp_path)


@pytest.mark.parametrize(
    "name, holds",
    [
        ("inside/b.JPG", True),
        ("notes.txt", False),
        (".hidden.png", False),
        (".hidden/b.png", False),
        ("png", False),
    ],
)
def test_whether_a_folder_holds_a_picture_is_told_by_names(tmp_path, monkeypatch, name, holds):
    """A menu of all folders is made of this, so no file is asked for: 20,000 took two seconds."""
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    assert any(place.pictures for place in photo_files.walk(tmp_path)) == holds
    monkeypatch.setattr(photo_files, "where_it_leads", lambda *_: pytest.fail("a file is asked for"))
    assert holds_a_picture(tmp_path) == holds


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    outside = picture(tmp_path / "outside/secret.png")
    (tmp_path / "secret.txt").write_text("secret")
    inside = picture(tmp_path / "photos/a.png")
    for name, target in {"link.png": outside, "nowhere.png": "gone", "twice.png": "link.png", "b.png": "a.png"}.items():
        (inside.parent / name).symlink_to(target)
    (inside.parent / "folder").symlink_to(outside.parent)
    (inside.parent / "a.txt").symlink_to(tmp_path / "secret.txt")
    assert [photo.file.name for photo in scan_folder(inside.parent).photos] == [
        "a.png",
        "b.png",
        "link.png",
        "nowhere.png",
        "twice.png",
    ]
    usable, left_out = measure_all(scan_folder(inside.parent).photos, SIZES)
    assert [(sized.photo.file.name, sized.photo.caption) for sized in usable] == [("a.png", "a"), ("b.png", "b")]
    assert [text.split(" ", 1)[1] for text in left_out] == [
        "is a link out of the folder: copy the picture there.",
        "is a link to nowhere.",
        "is a link out of the folder: copy the picture there.",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode there")
def test_a_file_name_that_is_not_utf8(tmp_path, store):
    """As archives made on a Chinese Windows have them."""
    for name, size in ((b"\xd5\xd5 1.png", 96), (b"\xd5.png", 8)):
        picture(tmp_path / "photos" / os.fsdecode(name), size, size)
    (tmp_path / "photos/gone.png").symlink_to("nowhere")
    dataset, left_out = encode(tmp_path / "photos", store)
    assert dataset.prompts == ["\ufffd\ufffd 1"] and "\ufffd.png is 8x8" in " ".join(left_out)
    " ".join(left_out).encode()


# Encoding


class Captions:
    """A dataset of captions that remembers what it was told of."""

    def __init__(self):
        self.told = []

    def prepare(self, indices):
        self.told += indices

    def cond(self, indices):
        return list(indices)

    def cond_shape(self, index):
        return 0


def dataset_of(folder: Path, store: Store, sizes=SIZES, **options) -> tuple[Photos, list[str]]:
    photos, left_out = measure_all(scan_folder(folder).photos, sizes)
    return Photos(Latents(photos, store, **options), Captions()), left_out


def encode(folder: Path, store: Store, **options) -> tuple[Photos, list[str]]:
    """All of them."""
    dataset, left_out = dataset_of(folder, store, **options)
    dataset.prepare(range(len(dataset.prompts)))
    return dataset, left_out


def test_latents_are_those_of_the_cropped_photos(tmp_path, store):
    thirds(300, 200).save(picture(tmp_path / "photos/a.png"))
    picture(tmp_path / "photos/b.png", 100, 100)
    dataset, left_out = encode(tmp_path / "photos", store)
    dataset = Photos(dataset.encoded, dataset.caption_dataset, lambda latents: 2 * latents)
    assert dataset.prompts == ["a", "b"] and left_out == []
    assert [dataset.shape(i) for i in (0, 1)] == [(3, 6, 10), (3, 8, 8)]
    expected = 2 * torch.nn.functional.avg_pool2d(cropped(tmp_path / "photos/a.png", (80, 48)), 8)
    assert torch.equal(dataset.latents([0, 0]), expected.repeat(2, 1, 1, 1))


def test_only_what_is_asked_for_is_encoded(tmp_path, store, encoder):
    for i in range(9):
        picture(tmp_path / f"photos/{i}.png", color=(i, 0, 0))
    dataset, _ = dataset_of(tmp_path / "photos", store)
    before = describe_data(dataset)
    assert encoder.calls == 0 and before.startswith("9 photos")
    dataset.prepare([7, 2, 7])
    assert encoder.calls == 2 and dataset.caption_dataset.told == [7, 2]
    dataset.latents([2, 7]), dataset.shape(7), dataset.prepare([2])
    assert encoder.calls == 2
    dataset.latents([0])
    assert encoder.calls == 3 and describe_data(dataset) == before


def test_other_pictures_or_captions_are_another_dataset(tmp_path, store):
    def told():
        return describe_data(dataset_of(tmp_path / "photos", store)[0])

    picture(tmp_path / "photos/a.png")
    large = picture(tmp_path / "photos/b.bmp", 400, 400, color=(0, 0, 1))
    first = told()
    assert re.fullmatch(r"2 photos \([0-9a-f]{8}\)", first) and told() == first
    length = large.stat().st_size
    picture(large, 400, 400, color=(0, 0, 2))
    assert large.stat().st_size == length
    second = told()
    (tmp_path / "photos/b.txt").write_text("another caption")
    assert len({first, second, told()}) == 3


def test_each_photo_is_encoded_once_by_its_content(tmp_path, store, encoder):
    folder = tmp_path / "photos"
    for i in range(4):
        picture(folder / f"{i}.png", color=(i, 0, 0))
    encode(folder, store)
    assert encoder.calls == 4
    encode(folder, store)
    assert encoder.calls == 4
    picture(folder / "0.png", color=(0, 255, 0))  # changed
    (folder / "1.png").rename(folder / "renamed.png")
    (folder / "2.png").unlink()
    dataset, _ = encode(folder, store)
    assert encoder.calls == 5 and dataset.prompts == ["0", "3", "renamed"]
    torch.testing.assert_close(dataset.latents([0])[0, :, 0, 0], torch.tensor([0.0, 1.0, 0.0]))
    dataset_of(folder, store, sizes_of_area(80, 80, 16))[0].prepare(range(3))
    assert encoder.calls == 8
    encode(folder, Store(store.folder, encoder, "another VAE"))
    assert encoder.calls == 11


def only_file(store: Store) -> Path:
    return next(store.folder.glob("*.safetensors"))


def test_another_way_to_prepare_pixels_encodes_anew(tmp_path, store, encoder, monkeypatch):
    picture(tmp_path / "photos/a.png")
    encode(tmp_path / "photos", store)
    monkeypatch.setattr("srpo_core.data.photo_latents.VERSION", VERSION + ".")
    encode(tmp_path / "photos", store)
    assert encoder.calls == 2


def test_a_latent_that_was_cut_off_is_encoded_anew(tmp_path, store, encoder):
    picture(tmp_path / "photos/a.png")
    encode(tmp_path / "photos", store)
    file = only_file(store)
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    encode(tmp_path / "photos", store)
    assert encoder.calls == 2 and file.read_bytes() == whole


def test_a_latent_that_is_gone_is_named(tmp_path, store):
    picture(tmp_path / "photos/a.png")
    dataset, _ = encode(tmp_path / "photos", store)
    only_file(store).unlink()
    with pytest.raises(ValueError, match="queue again"):
        dataset.latents([0])


def bomb() -> bytes:
    """A PNG whose header says 60000x60000."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0), b"IDAT"]
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def test_broken_and_small_photos_are_left_out_and_named(tmp_path, store, caplog):
    folder = tmp_path / "photos"
    picture(folder / "good.jpg")
    (folder / "no_picture.jpg").write_text("this is text")
    (folder / "empty.png").touch()
    (folder / "bomb.png").write_bytes(bomb())
    picture(folder / "small.png", 63, 64)
    with caplog.at_level(logging.WARNING):
        dataset, left_out = dataset_of(folder, store)
    assert dataset.prompts == ["good"] and len(left_out) == 4
    assert len(caplog.records) == 1
    for words in ("4 of 5 photos", "no_picture.jpg is no picture", "empty.png is no", "bomb.png has more than"):
        assert words in caplog.text, words
    assert "small.png is 63x64, too small for 64x64" in caplog.text
    (folder / "good.jpg").unlink()
    with pytest.raises(ValueError, match="None of the photos can be used:\n.*bomb.png"):
        dataset_of(folder, store)


def photos_of_which_some_are_cut_off(folder: Path, count: int, broken: set[int]):
    """Their headers are fine."""
    folder.mkdir()
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 255, (96, 96, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i:02}.jpg")
        if i in broken:
            data = (folder / f"{i:02}.jpg").read_bytes()
            (folder / f"{i:02}.jpg").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2], [1, 4]])
def test_the_next_photo_stands_in_for_one_that_turns_out_broken(tmp_path, store, caplog, order):
    """With its caption; in whatever order they are drawn, so that a resumed run draws what an uninterrupted one did."""
    photos_of_which_some_are_cut_off(tmp_path / "photos", 5, {1, 2})
    dataset, left_out = dataset_of(tmp_path / "photos", store)
    before = describe_data(dataset)
    dataset.prepare(order)
    stand_ins = [0, 3, 3, 3, 4]
    for index in order:
        assert dataset.prompts[index] == f"{stand_ins[index]:02}" and dataset.cond([index]) == [stand_ins[index]]
        assert torch.equal(dataset.latents([index]), dataset.latents([stand_ins[index]]))
        assert dataset.shape(index) == dataset.shape(stand_ins[index])
    assert set(dataset.caption_dataset.told) == {stand_ins[index] for index in order}
    assert len(dataset.prompts) == 5 and left_out == [] and describe_data(dataset) == before
    assert "can't be read" in caplog.text and "The next photo is taken in its place" in caplog.text


def test_many_broken_photos_stop_it(tmp_path, store):
    photos_of_which_some_are_cut_off(tmp_path / "photos", 12, set(range(12)))
    dataset, _ = dataset_of(tmp_path / "photos", store)
    with pytest.raises(ValueError, match="None of these photos can be used:\n.*03.jpg can't"):
        dataset.prepare([3])


def test_a_photo_that_goes_while_it_is_used_is_like_a_broken_one(tmp_path, store):
    for i in range(2):
        picture(tmp_path / f"photos/{i}.png", color=(i, 0, 0))
    dataset, _ = dataset_of(tmp_path / "photos", store)
    (tmp_path / "photos/0.png").unlink()
    dataset.prepare([0])
    assert dataset.prompts == ["1", "1"] and "0.png can't be read" in dataset.encoded.left_out[0]


def test_a_latent_that_is_not_finite_is_not_kept(tmp_path):
    picture(tmp_path / "photos/a.png")
    with pytest.raises(ValueError, match="not finite"):
        encode(tmp_path / "photos", Store(tmp_path / "store", lambda image: image / 0 * 0, "fp16"))
    assert not (tmp_path / "store").exists()


def test_what_was_encoded_before_a_cancel_is_kept(tmp_path, store, encoder):
    for i in range(3):
        picture(tmp_path / f"photos/{i}.png", color=(i, 0, 0))

    def cancel(done, total):
        if done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        encode(tmp_path / "photos", store, on_photo=cancel)
    encode(tmp_path / "photos", store)
    assert encoder.calls == 3


# Batches


@pytest.mark.parametrize(
    "tokens, expected",
    [([256] * 6, [[0, 2], [4], [1, 5], [3]]), ([256, 256, 300, 256, 256, 300], [[0, 4], [1], [2], [3], [5]])],
)
def test_groups_share_their_shapes_and_lose_nobody(tokens, expected):
    """Of the picture, and of what its caption was encoded to."""
    shapes = ["square", "wide", "square", "tall", "square", "wide"]
    plain = [SimpleNamespace(reference=None)] * 6
    encoded = SimpleNamespace(photos=plain, captions=shapes, shape=shapes.__getitem__, stand_in=lambda index: index)
    photos = Photos(encoded, SimpleNamespace(cond_shape=tokens.__getitem__))
    draws = [Draw(100 + i, photos, i) for i in range(6)]
    groups = of_one_shape(draws, Batching(shape=(), at_once=2))
    assert [[draw.index for draw in group] for group in groups] == expected


# Memory


def peak_mebibytes(folder: Path) -> float:
    """What encoding this folder, and reading it back, adds to the memory of a process of its own."""
    command = [sys.executable, Path(__file__).parents[1] / "support/photos_memory.py", folder]
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def test_memory_does_not_grow_with_the_number_of_photos(tmp_path):
    data = picture(tmp_path / "photo.jpg", 1200, 900).read_bytes()
    for count in (10, 110):
        for i in range(count):  # other bytes, other photo: what follows a JPEG's end is no part of the picture
            file = tmp_path / f"{count}/{i}.jpg"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(data + b"%d" % i)
    few = peak_mebibytes(tmp_path / "10")
    many = peak_mebibytes(tmp_path / "110")
    assert many < few + 8  # the latents of 100 are 12 MiB, cropped photos 75, decoded ones 309
