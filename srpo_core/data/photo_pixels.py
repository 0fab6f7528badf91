"""The pixels of a photo, upright and cropped to the size that fits its shape; and which pictures can't be used."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

OF_PLUG_IN = (".heic", ".heif")
# What a file is, its content says. Pillow runs programs for others; the last two it may know or not.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF")
MOST_PIXELS = 89_478_485  # of a photo, before it is made smaller; Pillow warns of more
WITH_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")  # modes
ORIENTATION = 0x0112  # the EXIF tag
TIFF_WIDTH = 256  # a tag, as the next one
TIFF_HEIGHT = 257
SIDEWAYS = (5, 6, 7, 8)  # its values that exchange width and height
LONGEST = 2.0  # long side / short side of the sizes that photos are cropped to
Size = tuple[int, int]  # width, height in pixels


class UnusablePhoto(Exception):
    """Why a photo is left out; reads on from its file's name."""


def sizes_of_area(width: int, height: int, multiple: int) -> list[Size]:
    """Sizes of about width x height pixels, one for each shape, with sides that are multiples of `multiple`.

    From 1:2 to 2:1, or to the shape that is asked for, where that is longer.
    """
    area = width * height
    longest = max(LONGEST, max(width, height) / min(width, height))
    sides = range(multiple, math.ceil(math.sqrt(area * longest)) + multiple, multiple)
    found = {(side, max(1, round(area / side / multiple)) * multiple) for side in sides}
    found |= {(b, a) for a, b in found}
    return sorted(size for size in found if max(size) / min(size) <= longest)


def nearest_shape(size: Size, sizes: list[Size]) -> Size:
    """The one of `sizes` whose aspect ratio is nearest to that of `size`."""
    return min(sizes, key=lambda other: abs(math.log(other[0] * size[1] / (other[1] * size[0]))))


def upright_size(file: Path) -> Size:
    """The size of the picture as people see it, from its header alone. Raises UnusablePhoto for what is no picture."""
    from PIL.TiffImagePlugin import TiffImageFile  # here, to keep the import of the pack short

    with opened(file) as image:
        size = image.size
        if isinstance(image, TiffImageFile):  # Pillow may have turned it already
            size = (image.tag_v2[TIFF_WIDTH], image.tag_v2[TIFF_HEIGHT])
        exif = Image.Image.getexif(image)  # a PNG's own decodes it all to look behind its pixels, too
        return size[::-1] if exif.get(ORIENTATION) in SIDEWAYS else size


def cropped(file: Path, size: Size) -> Tensor:
    """(1, 3, H, W) in [0, 1]: turned upright, made smaller until it just covers `size`, its middle cut out.

    Of an animation, or of several pages, the first; what is transparent lies on white. Raises UnusablePhoto for a
    broken picture.
    """
    with opened(file) as image:
        ImageOps.exif_transpose(image, in_place=True)
        pixels = np.array(ImageOps.fit(as_rgb(image), size, Image.Resampling.LANCZOS))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture in 8 bits, on white where it is transparent."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8
        return from_16_bits(image)
    if image.mode == "F":
        raise UnusablePhoto("has numbers in floating point for pixels: save it with 8 or 16 bits")
    if image.mode in WITH_ALPHA or "transparency" in image.info:
        return on_white(image)
    return image.convert("RGB")


def on_white(image: Image.Image) -> Image.Image:
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 255:  # of 16 bits, while Pillow reads the pixels in 8
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    with_alpha = image if image.mode == "RGBA" else image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(with_alpha, mask=with_alpha.getchannel("A"))
    return white


def from_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image.convert("I"))
    if values.max() > 65535 or values.min() < 0:
        raise UnusablePhoto("has more than 16 bits in a pixel: save it with 8 or 16")
    grey = np.round(values / np.float32(257)).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[values == clear] = 255
    return Image.fromarray(grey).convert("RGB")


def known_formats(file: Path) -> list[str]:
    """The FORMATS that this Pillow reads: AVIF if it was built with it, HEIF with a plug-in that is installed."""
    Image.init()
    if file.suffix.lower() in OF_PLUG_IN and "HEIF" not in Image.OPEN:
        with suppress(ImportError):
            import pillow_heif

            pillow_heif.register_heif_opener()
    return [name for name in FORMATS if name in Image.OPEN]


@contextmanager
def opened(file: Path) -> Iterator[Image.Image]:
    """The picture, not yet decoded; what goes wrong inside is UnusablePhoto, as is a picture of too many pixels."""
    formats = known_formats(file)
    try:
        with Image.open(file, formats=formats) as image:
            check_pixels(image.size)
            yield image
    except UnusablePhoto:
        raise
    except UnidentifiedImageError:
        raise UnusablePhoto(f"is no picture of these kinds: {', '.join(formats)}; save it as one of them") from None
    except Image.DecompressionBombError:
        raise UnusablePhoto("has more than 178 megapixels: make it smaller first") from None
    except Exception as error:  # Pillow has a dozen kinds for broken files
        raise UnusablePhoto(f"can't be read ({error})") from error


def check_pixels(size: Size):
    """Raises UnusablePhoto for more than MOST_PIXELS: a file of a few kB may take gigabytes to decode."""
    if math.prod(size) > MOST_PIXELS:
        raise UnusablePhoto(
            f"is {size[0]}x{size[1]}: more than {MOST_PIXELS // 10**6} megapixels take too much memory; make it "
            "smaller first"
        )


def check_covers(size: Size, wanted: Size):
    """Raises UnusablePhoto if a picture of `size` would have to be enlarged."""
    if size[0] < wanted[0] or size[1] < wanted[1]:
        raise UnusablePhoto(
            f"is {size[0]}x{size[1]}, too small for {wanted[0]}x{wanted[1]}, the size of its shape: take a larger one, "
            "or a smaller width and height"
        )
