"""A folder of photos as a dataset: captions, sizes, crops, and latents that are encoded once."""

import itertools
import logging
import math
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from srpo_core.loop import Draw, Schedule, describe_data, of_one_shape
from srpo_core.photo_latents import Encoded, Photos, Store, encode_all
from srpo_core.photos import Unusable, cropped, nearest_shape, scan, sizes_of_area, upright_size

SIZES = sizes_of_area(64, 64, 16)


def picture(file: Path, width: int = 96, height: int = 96, color=(200, 100, 50), **save) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), color).save(file, **save)
    return file


def thirds(width: int, height: int) -> Image.Image:
    """Red, green, blue from left to right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for channel in range(3):
        pixels[:, channel * width // 3 : (channel + 1) * width // 3, channel] = 255
    return Image.fromarray(pixels)


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
    photos = scan(tmp_path / "photos")
    assert {p.file.name: p.caption for p in photos} == {
        "a.JPG": "two lines",
        "b_red-barn.png": "b red barn",
        "c.webp": "Stra\xdfe",
        "d.jpeg": "d",
        "e.bmp": "e",
    }
    default = {p.file.name: p.caption for p in scan(tmp_path / "photos", " a photo ")}
    assert default["b_red-barn.png"] == default["e.bmp"] == "a photo" and default["a.JPG"] == "two lines"


@pytest.mark.parametrize(
    "text, encoding", [("Stra\xdfe", "latin-1"), ("Stra\xdfe", "utf-16"), ("red barn", "utf-16-le")]
)
def test_a_caption_in_another_encoding_is_named(tmp_path, text, encoding):
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(text, encoding)
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8"):
        scan(tmp_path)


def test_a_folder_without_pictures(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ValueError, match="no picture in"):
        scan(tmp_path)


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    outside = picture(tmp_path / "outside/secret.png")
    (tmp_path / "secret.txt").write_text("secret")
    inside = picture(tmp_path / "photos/a.png")
    (inside.parent / "link.png").symlink_to(outside)
    (inside.parent / "folder").symlink_to(outside.parent)
    (inside.parent / "a.txt").symlink_to(tmp_path / "secret.txt")
    assert [(p.file, p.caption) for p in scan(inside.parent)] == [(inside, "a")]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode there")
def test_a_file_name_that_is_not_utf8(tmp_path, store):
    """As archives made on a Chinese Windows have them."""
    for name, size in ((b"\xd5\xd5 1.png", 96), (b"\xd5.png", 8)):
        picture(tmp_path / "photos" / os.fsdecode(name), size, size)
    (tmp_path / "photos/gone.png").symlink_to("nowhere")
    encoded, left_out = encode(tmp_path / "photos", store)
    assert [p.caption for p in encoded] == ["\ufffd\ufffd 1"] and "\ufffd.png is 8x8" in left_out[0]
    left_out[0].encode()


# Sizes


@pytest.mark.parametrize("width, height", [(720, 720), (832, 1216), (1024, 1024), (1536, 512), (64, 64)])
def test_sizes_have_the_area_and_the_multiple(width, height):
    sizes = sizes_of_area(width, height, 16)
    assert (width, height) in sizes and {(b, a) for a, b in sizes} == set(sizes)
    for size in sizes:
        assert all(side % 16 == 0 for side in size)
        assert math.prod(size) == pytest.approx(width * height, rel=0.02 if width > 64 else 0.15)
        assert max(size) / min(size) <= max(2, width / height)


@pytest.mark.parametrize(
    "size, expected",
    [((4000, 3000), 4 / 3), ((3000, 4000), 3 / 4), ((6000, 4000), 1.5), ((999, 1000), 1), ((9000, 1000), 2)],
)
def test_a_photo_gets_the_size_of_its_shape(size, expected):
    width, height = nearest_shape(size, sizes_of_area(720, 720, 16))
    assert width / height == pytest.approx(expected, rel=0.03)


# Pixels


def test_the_middle_is_cut_out(tmp_path):
    thirds(300, 100).save(tmp_path / "a.png")
    image = cropped(tmp_path / "a.png", (64, 64))
    assert image.shape == (1, 3, 64, 64) and image.dtype == torch.float32
    torch.testing.assert_close(image[0, :, 8:-8, 8:-8].mean((1, 2)), torch.tensor([0.0, 1.0, 0.0]))
    whole = cropped(tmp_path / "a.png", (96, 32))
    torch.testing.assert_close(whole[0, :, 16, [8, 48, 88]], torch.eye(3))


def test_resizing_is_antialiased(tmp_path):
    checks = np.indices((512, 512)).sum(0) % 2 * 255
    Image.fromarray(checks.astype(np.uint8)).save(tmp_path / "a.png")
    assert (cropped(tmp_path / "a.png", (64, 64)) - 0.5).abs().max() < 0.01


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_orientation_turns_size_and_pixels(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    thirds(192, 96).save(tmp_path / f"a.{suffix}", exif=exif)
    assert upright_size(tmp_path / f"a.{suffix}") == (96, 192)
    image = cropped(tmp_path / f"a.{suffix}", (48, 96))
    assert image[0, :, [16, 48, 80], 24].argmax(0).tolist() == [0, 1, 2]


def test_every_kind_of_pixel(tmp_path):
    grey = np.full((64, 64), 128, np.uint8)
    images = {
        "RGB.png": Image.fromarray(np.stack([grey] * 3, -1)),
        "L.png": Image.fromarray(grey),
        "LA.png": Image.fromarray(grey).convert("LA"),
        "RGBA.png": Image.fromarray(np.stack([grey] * 4, -1)),
        "P.png": Image.fromarray(grey).convert("RGB").quantize(4),
        "16.png": Image.fromarray(np.full((64, 64), 128 * 257, np.uint16)),
        "CMYK.jpg": Image.fromarray(grey).convert("RGB").convert("CMYK"),
    }
    for name, image in images.items():
        image.save(tmp_path / name)
        values = cropped(tmp_path / name, (64, 64))
        assert values.shape == (1, 3, 64, 64) and (values - 128 / 255).abs().max() < 0.02, name


def test_content_decides_what_a_file_is(tmp_path):
    """A GIF called .png is a picture; a PostScript file, for which Pillow would run a program, is none."""
    picture(tmp_path / "gif.png", format="GIF")
    assert upright_size(tmp_path / "gif.png") == (96, 96)
    picture(tmp_path / "script.png", format="EPS")
    with pytest.raises(Unusable, match="no picture of these kinds"):
        upright_size(tmp_path / "script.png")


# Encoding


def encode(folder: Path, store: Store, **options):
    return encode_all(scan(folder), SIZES, store, **options)


def test_latents_are_those_of_the_cropped_photos(tmp_path, store):
    thirds(300, 200).save(picture(tmp_path / "photos/a.png"))
    picture(tmp_path / "photos/b.png", 100, 100)
    encoded, left_out = encode(tmp_path / "photos", store)
    dataset = Photos(encoded, SimpleNamespace(cond=lambda indices: indices), lambda latents: 2 * latents)
    assert dataset.prompts == ["a", "b"] and left_out == []
    assert [dataset.shape(i) for i in (0, 1)] == [(3, 6, 10), (3, 8, 8)]
    expected = 2 * torch.nn.functional.avg_pool2d(cropped(tmp_path / "photos/a.png", (80, 48)), 8)
    assert torch.equal(dataset.latents([0, 0]), expected.repeat(2, 1, 1, 1))


def test_other_pictures_or_captions_are_another_dataset(tmp_path, store):
    def told():
        return describe_data(Photos(encode(tmp_path / "photos", store)[0], None))

    picture(tmp_path / "photos/a.png")
    picture(tmp_path / "photos/b.png", color=(0, 0, 1))
    first = told()
    assert re.fullmatch(r"2 photos \([0-9a-f]{8}\)", first) and told() == first
    picture(tmp_path / "photos/b.png", color=(0, 0, 2))
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
    encoded, _ = encode(folder, store)
    assert encoder.calls == 5 and [p.caption for p in encoded] == ["0", "3", "renamed"]
    torch.testing.assert_close(Photos(encoded, None).latents([0])[0, :, 0, 0], torch.tensor([0.0, 1.0, 0.0]))
    encode_all(scan(folder), sizes_of_area(80, 80, 16), store)
    assert encoder.calls == 8
    encode(folder, Store(store.folder, encoder, "another VAE"))
    assert encoder.calls == 11


def test_a_latent_that_was_cut_off_is_encoded_anew(tmp_path, store, encoder):
    picture(tmp_path / "photos/a.png")
    file = encode(tmp_path / "photos", store)[0][0].file
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    encode(tmp_path / "photos", store)
    assert encoder.calls == 2 and file.read_bytes() == whole


def test_a_latent_that_is_gone_is_named(tmp_path, store):
    picture(tmp_path / "photos/a.png")
    encoded, _ = encode(tmp_path / "photos", store)
    encoded[0].file.unlink()
    with pytest.raises(ValueError, match="queue again"):
        Photos(encoded, None).latents([0])


def bomb() -> bytes:
    """A PNG whose header says 60000x60000."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0), b"IDAT"]
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def test_broken_and_small_photos_are_left_out_and_named(tmp_path, store, caplog):
    folder = tmp_path / "photos"
    good = picture(folder / "good.jpg").read_bytes()
    (folder / "no_picture.jpg").write_text("this is text")
    (folder / "empty.png").touch()
    (folder / "cut.jpg").write_bytes(good[: len(good) // 2])
    (folder / "bomb.png").write_bytes(bomb())
    picture(folder / "small.png", 63, 64)
    with caplog.at_level(logging.WARNING):
        encoded, left_out = encode(folder, store)
    assert [p.caption for p in encoded] == ["good"] and len(left_out) == 5
    assert len(caplog.records) == 1
    for words in (
        "5 of 6 photos",
        "no_picture.jpg is no picture",
        "empty.png is no",
        "cut.jpg can't",
        "bomb.png can't",
    ):
        assert words in caplog.text, words
    assert "small.png is 63x64, too small for 64x64" in caplog.text
    (folder / "good.jpg").unlink()
    with pytest.raises(ValueError, match="None of the photos can be used:\n.*bomb.png"):
        encode(folder, store)


def test_a_latent_that_is_not_finite_is_not_kept(tmp_path):
    picture(tmp_path / "photos/a.png")
    with pytest.raises(ValueError, match="not finite"):
        encode(tmp_path / "photos", Store(tmp_path / "store", lambda image: image / 0 * 0, "fp16"))
    assert not (tmp_path / "store").exists()


def test_what_was_encoded_before_a_cancel_is_kept(tmp_path, store, encoder):
    for i in range(3):
        picture(tmp_path / f"photos/{i}.png", color=(i, 0, 0))
    calls = itertools.count()

    def cancel():
        if next(calls) == 2:
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
    photos = Photos([Encoded("", None, shape) for shape in shapes], SimpleNamespace(cond_shape=tokens.__getitem__))
    draws = [Draw(100 + i, photos, i) for i in range(6)]
    groups = of_one_shape(draws, Schedule((), at_once=2))
    assert [[draw.index for draw in group] for group in groups] == expected


# Memory


def peak_mebibytes(folder: Path) -> float:
    """What encoding this folder, and reading it back, adds to the memory of a process of its own."""
    command = [sys.executable, Path(__file__).with_name("photos_memory.py"), folder]
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def test_memory_does_not_grow_with_the_number_of_photos(tmp_path):
    data = picture(tmp_path / "photo.jpg", 1200, 900).read_bytes()
    for count in (10, 110):
        for i in range(count):  # other bytes, other photo: what follows a JPEG's end is no part of the picture
            file = tmp_path / f"{count}/{i}.jpg"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(data + b"%d" % i)
    few, many = peak_mebibytes(tmp_path / "10"), peak_mebibytes(tmp_path / "110")
    assert many < few + 8  # the latents of 100 are 12 MiB, cropped photos 75, decoded ones 309
