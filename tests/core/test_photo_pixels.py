"""The pixels of photos: sizes, crops, and what can be a picture."""

import math

import numpy as np
import pytest
import torch
from photo_pictures import SIZES, picture, thirds
from PIL import Image

from srpo_core.data.photo_files import scan_folder
from srpo_core.data.photo_pixels import (
    MOST_PIXELS,
    UnusablePhoto,
    cropped,
    nearest_shape,
    sizes_of_area,
    upright_size,
)
from srpo_core.data.photo_sizes import measure_all

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


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
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
        "RGBA.png": Image.fromarray(np.stack([grey] * 3, -1)).convert("RGBA"),
        "P.png": Image.fromarray(grey).convert("RGB").quantize(4),
        "16.png": Image.fromarray(np.full((64, 64), 128 * 257, np.uint16)),
        "CMYK.jpg": Image.fromarray(grey).convert("RGB").convert("CMYK"),
    }
    for name, image in images.items():
        image.save(tmp_path / name)
        values = cropped(tmp_path / name, (64, 64))
        assert values.shape == (1, 3, 64, 64) and (values - 128 / 255).abs().max() < 0.02, name


def test_what_is_transparent_lies_on_white(tmp_path):
    """Not the colour that a program left under it, which nobody sees."""
    clear = Image.new("RGBA", (64, 64), (200, 0, 0, 255))
    clear.paste((0, 0, 0, 0), (32, 0, 64, 64))
    half = Image.new("RGBA", (64, 64), (0, 0, 0, 128))
    grey16 = np.full((64, 64), 128 * 257, np.uint16)
    grey16[:, 32:] = 5
    clear.save(tmp_path / "RGBA.png")
    clear.save(tmp_path / "RGBA.webp", lossless=True)
    clear.save(tmp_path / "RGBA.tif")
    clear.save(tmp_path / "RGBA.avif")
    clear.save(tmp_path / "P.gif")
    clear.convert("LA").save(tmp_path / "LA.png")
    clear.quantize(8).save(tmp_path / "PA.png")
    clear.convert("RGB").save(tmp_path / "RGB.png", transparency=(0, 0, 0))
    clear.convert("RGB").quantize(2).save(
        tmp_path / "P.png", transparency=clear.convert("RGB").quantize(2).getpixel((40, 0))
    )
    clear.convert("L").save(tmp_path / "L.png", transparency=0)
    Image.fromarray(grey16).save(tmp_path / "16.png", transparency=5)
    for file in sorted(tmp_path.iterdir()):
        values = cropped(file, (64, 64))
        assert (values[0, :, :, 34:] > 0.97).all(), file.name
        assert values[0, 1, :, :30].max() < 0.55, file.name
    half.save(tmp_path / "half.png")
    assert (cropped(tmp_path / "half.png", (64, 64)) - 127 / 255).abs().max() < 0.01


def test_pixels_without_a_scale_are_refused(tmp_path):
    Image.new("F", (64, 64)).save(tmp_path / "F.tif")
    Image.fromarray(np.full((64, 64), 10**6, np.int32)).save(tmp_path / "I.tif")
    for name, words in {"F.tif": "floating point", "I.tif": "more than 16 bits"}.items():
        with pytest.raises(UnusablePhoto, match=words):
            cropped(tmp_path / name, (64, 64))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "gif", "bmp", "avif"])
def test_the_size_is_read_without_decoding(tmp_path, monkeypatch, suffix):
    file = picture(tmp_path / f"a.{suffix}", 96, 64)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    assert upright_size(file) == (96, 64)


def test_of_pages_and_animations_the_first_counts(tmp_path):
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    for name in ("a.gif", "a.tif", "a.webp", "a.png", "a.avif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert cropped(tmp_path / name, (64, 64))[0, :, 32, 32].round().tolist() == [1, 0, 0], name


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
@pytest.mark.parametrize("size", [(13000, 13000), (10000, 9000), (60000, 1500)])
def test_a_small_file_of_very_many_pixels_is_not_decoded(tmp_path, monkeypatch, suffix, size):
    file = tmp_path / f"a.{suffix}"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    Image.new("1", size).save(file, **({"compression": "group4"} if suffix == "tif" else {}))
    monkeypatch.setattr(Image.Image, "load", None)
    said = f"is {size[0]}x{size[1]}: more than {MOST_PIXELS // 10**6} megapixels"
    for read in (
        upright_size,
        lambda file: cropped(file, (64, 64)),
        lambda _: measure_all(scan_folder(tmp_path).photos, SIZES),
    ):
        with pytest.raises((UnusablePhoto, ValueError), match=said):
            read(file)


def test_a_plug_in_of_pillow_reads_heic(tmp_path, monkeypatch):
    """Without one the photo is left out, and says so."""
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(UnusablePhoto, match="is no picture of these kinds: PNG.*save it as one of them"):
        upright_size(tmp_path / "a.heic")
    monkeypatch.setitem(Image.OPEN, "HEIF", (lambda file, name: Image.new("RGB", (96, 64)), lambda head: True))
    monkeypatch.setattr(Image, "ID", [*Image.ID, "HEIF"])
    assert upright_size(tmp_path / "a.heic") == (96, 64)


def test_content_decides_what_a_file_is(tmp_path):
    """A GIF called .png is a picture; a PostScript file, for which Pillow would run a program, is none."""
    picture(tmp_path / "gif.png", format="GIF")
    assert upright_size(tmp_path / "gif.png") == (96, 96)
    picture(tmp_path / "script.png", format="EPS")
    with pytest.raises(UnusablePhoto, match="no picture of these kinds"):
        upright_size(tmp_path / "script.png")
