"""One image file to one square array, with Pillow; an orientation in its EXIF data is applied."""

from __future__ import annotations

import contextlib
import functools
import math
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dmsflow.errors import DmsflowError
from dmsflow.files import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

CROP_AREA = (0.08, 1.0)  # of the image; Szegedy et al., "Going Deeper with Convolutions", 2014
CROP_ASPECT = (3 / 4, 4 / 3)  # width to height; the same paper
ORIENTATION = 0x0112  # its number in EXIF data
CROP_TRIES = 10  # as in torchvision's RandomResizedCrop

Box = tuple[int, int, int, int]  # left, top, right, bottom


@contextlib.contextmanager
def open_image(path: Path) -> Iterator[Image]:
    """An open image; an exception of Pillow inside the block becomes a DmsflowError, and its warnings are dropped.

    Raises:
        DmsflowError: the file is missing, damaged, or has more than 8 bits a channel.
    """
    from PIL import Image

    try:
        with (
            warnings.catch_warnings(action="ignore"),
            open_regular(path) as file,
            Image.open(file, formats=_formats()) as image,
        ):
            if image.mode.startswith(("I", "F")):
                raise DmsflowError(path, f"has pixels of mode {image.mode}", "convert it to 8 bits a channel")
            yield image
    except (OSError, SyntaxError, TypeError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise DmsflowError(path, f"cannot be read as an image ({error})", "replace it or remove it") from error


def decode_centre(path: Path, resolution: int, shorter_side: int | None) -> NDArray[np.uint8]:
    """The centre [resolution, resolution, 3] of an image whose shorter side is brought to `shorter_side`.

    None refuses an image that is not of this size already.
    """
    from PIL.Image import Resampling

    with open_image(path) as image:
        width, height = image.size
        if shorter_side is None and not width == height == resolution:
            what = f"is {width}x{height}, but others are {resolution}x{resolution}"
            raise DmsflowError(path, what, "use --resolution N to resize all images to N pixels")
        rgb = _to_rgb(_upright(image, _orientation(image)))
        width, height = rgb.size
        short = min(width, height)
        if shorter_side not in (None, short):
            rgb = rgb.resize((shorter_side * width // short, shorter_side * height // short), Resampling.BILINEAR)
        left, top = (round((side - resolution) / 2) for side in rgb.size)
        return np.asarray(rgb.crop((left, top, left + resolution, top + resolution)))


def decode_random(path: Path, resolution: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """A random crop of an image, resized to [resolution, resolution, 3] and mirrored half of the time."""
    from PIL.Image import Resampling, Transpose

    with open_image(path) as image:
        orientation = _orientation(image)
        width, height = _turned(image.size, orientation)
        left, top, right, bottom = random_box(width, height, random)
        flip = random.random() < 0.5
        needed = math.ceil(width * resolution / (right - left)), math.ceil(height * resolution / (bottom - top))
        # A JPEG decodes faster at a half, a quarter or an eighth, where that suffices.
        image.draft("RGB", _turned(needed, orientation))
        rgb = _to_rgb(_upright(image, orientation))
        across, down = rgb.width / width, rgb.height / height
        box = (left * across, top * down, right * across, bottom * down)
        rgb = rgb.resize((resolution, resolution), Resampling.BILINEAR, box=box)
        return np.asarray(rgb.transpose(Transpose.FLIP_LEFT_RIGHT) if flip else rgb)


def random_box(width: int, height: int, random: np.random.Generator) -> Box:
    """A crop of 8 to 100 % of the area, its aspect within 3:4 and 4:3; the largest centred one if none fits."""
    for _ in range(CROP_TRIES):
        area = width * height * random.uniform(*CROP_AREA)
        aspect = math.exp(random.uniform(math.log(CROP_ASPECT[0]), math.log(CROP_ASPECT[1])))
        across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < across <= width and 0 < down <= height:
            left, top = int(random.integers(width - across + 1)), int(random.integers(height - down + 1))
            return left, top, left + across, top + down
    across, down = min(width, math.ceil(height * CROP_ASPECT[1])), min(height, math.ceil(width / CROP_ASPECT[0]))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


@functools.cache
def _formats() -> tuple[str, ...]:
    """What Pillow decodes itself: for Encapsulated PostScript it would start a program."""
    from PIL import Image

    Image.init()
    return tuple(name for name in Image.OPEN if name != "EPS")


def _orientation(image: Image) -> object:
    """Of the EXIF data, 1 (upright) if there are none or they are damaged.

    Only a JPEG is not decoded for it, since its size can still be chosen.
    """
    if image.format not in ("JPEG", "MPO"):
        image.load()
    with contextlib.suppress(SyntaxError, ValueError, TypeError, LookupError, OverflowError, struct.error):
        return image.getexif().get(ORIENTATION, 1)
    return 1


def _turned(size: tuple[int, int], orientation: object) -> tuple[int, int]:
    """Width and height, exchanged if the orientation is on its side."""
    return size[::-1] if orientation in (5, 6, 7, 8) else size


def _upright(image: Image, orientation: object) -> Image:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image) if orientation in range(2, 9) else image


def _to_rgb(image: Image) -> Image:
    """Three channels; transparency is dropped."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")
