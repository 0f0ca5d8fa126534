"""Images in one NumPy archive: `arrays:PATH.npz`; dmsflow's Python functions write one for images in memory.

It has `train_images` and `test_images` (uint8 [N, H, H, C]), `train_labels` and `test_labels` (whole numbers [N]),
and may have `classes` (their names), `crop_padding` and `flip`.
"""

from __future__ import annotations

import hashlib
import operator
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmsflow.datasets import ArraySplit, Dataset, check, statistics
from dmsflow.errors import DmsflowError
from dmsflow.files import open_regular, writing
from dmsflow.settings import MOST_CHANNELS, Data
from dmsflow.terminal import track

PARTS = ("train_images", "train_labels", "test_images", "test_labels")
CROP_SHARE = 1 / 8  # of the side: the four pixels that are usual for CIFAR's 32
MOST_BYTES = 4 << 30  # of images held in memory; more belong into an image folder
LAYOUT = f"save uint8 images [N, H, H, C] and their labels [N] as {', '.join(PARTS)} with numpy.savez"


def load(argument: str | None, data: Data, download: bool) -> Dataset:
    """The archive's images; the mean and deviation of their pixels are computed.

    Raises:
        DmsflowError: the file is missing or damaged, or lacks one of the arrays.
    """
    if not argument:
        raise DmsflowError("--dataset arrays", "names no file", "use --dataset arrays:PATH.npz")
    try:
        with open_regular(Path(argument)) as file, np.load(file, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise DmsflowError(argument, error.strerror or str(error), LAYOUT) from error
    except (ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise DmsflowError(argument, f"is not an archive of arrays ({error})", LAYOUT) from error
    if missing := [name for name in PARTS if name not in found]:
        raise DmsflowError(argument, f"has no {missing[0]}", LAYOUT)
    train, test = ((found[f"{part}_images"], found[f"{part}_labels"]) for part in ("train", "test"))
    classes, flip = tuple(map(str, found.get("classes", ()))), bool(found.get("flip", False))
    padding = int(found["crop_padding"]) if "crop_padding" in found else None
    return make_dataset(train, test, classes, flip=flip, crop_padding=padding, name=data.name)


def make_dataset(
    train: Any,
    test: Any,
    classes: Sequence[str] = (),
    *,
    flip: bool = False,
    crop_padding: int | None = None,
    name: str = "arrays",
) -> Dataset:
    """A data set of images in memory.

    Args:
        train, test: a pair of images, uint8 [N, H, H, C] or [N, H, H], and labels [N] from 0; or a torch Dataset of
            (image, label) without random transforms: an image is one of Pillow's, an array [H, H, C], or a tensor
            [C, H, H], with uint8 pixels or floats from 0 to 1.
        classes: names; without them those of a torchvision data set, or the numbers.
        flip: mirror half of the training images, where left and right mean the same.
        crop_padding: pixels of padding before a random crop; without it an eighth of the side.

    Raises:
        DmsflowError: arrays of another shape or type.
    """
    splits = list[ArraySplit]()
    for part, given in (("train", train), ("test", test)):
        right = "give train and test, each a pair (images, labels) or a torch Dataset (of a DataLoader its .dataset)"
        if hasattr(given, "shape"):
            raise DmsflowError(f"{part} images", "are one array without labels", right)
        if not hasattr(given, "__len__") or not hasattr(given, "__getitem__"):
            raise DmsflowError(f"{part} images", f"are a {type(given).__name__}", right)
        if len(given) != 2 if isinstance(given, tuple) else not len(given):
            raise DmsflowError(f"{part} images", f"are a {type(given).__name__} of {len(given)}", right)
        images, labels = given if isinstance(given, tuple) else _read_items(given)
        try:
            pixels, numbers = np.asarray(images), np.asarray(labels)
        except (ValueError, RuntimeError, TypeError) as error:
            raise DmsflowError(f"{part} images", f"or labels are no array ({error})", right) from error
        pixels = pixels[..., None] if pixels.ndim == 3 else pixels
        square = pixels.ndim == 4 and pixels.shape[1] == pixels.shape[2] and pixels.size > 0
        if not square or pixels.dtype != np.uint8:
            what = f"are {pixels.dtype} {list(pixels.shape)}"
            raise DmsflowError(f"{part} images", what, "give squares of raw pixels, uint8 [N, H, H, C]")
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise DmsflowError(f"{part} labels", f"are {numbers.dtype} {list(numbers.shape)}", "give integers [N]")
        if numbers.max(initial=0) >= MOST_CHANNELS:
            raise DmsflowError(f"{part} labels", f"reach {numbers.max()}", "number the classes from 0")
        splits.append(ArraySplit(pixels, numbers.astype(np.int64)))
    mean, std = statistics(splits[0].pixels)
    padding = round(splits[0].pixels.shape[1] * CROP_SHARE) if crop_padding is None else crop_padding
    names = (
        tuple(classes)
        or tuple(getattr(train, "classes", ()))
        or tuple(str(label) for label in range(int(splits[0].labels.max(initial=0)) + 1))
    )
    made = Dataset(name, names, splits[0], splits[1], mean, std, crop_padding=padding, flip=flip)
    check(made, "correct the arrays, or what is given beside them")
    return made


def _read_items(source: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [N, H, W, C] and labels [N] of a torch Dataset; refused where sizes differ or pixels were normalised."""
    images, labels, held = list[NDArray[np.uint8]](), list[int](), 0
    with track("read", len(source), "image") as progress:
        for index in range(len(source)):
            try:
                image, label = source[index]
                images.append(_pixels(image, index))
                labels.append(operator.index(label))
            except (TypeError, ValueError, OSError) as error:
                what = f"cannot be read as (image, label) ({error})"
                right = "give a tuple (images, labels), or a Dataset of images with whole numbers"
                raise DmsflowError(f"image {index}", what, right) from error
            held += images[-1].nbytes
            if images[-1].shape != images[0].shape:
                what = f"has {list(images[-1].shape)} pixels, and the first one {list(images[0].shape)}"
                raise DmsflowError(f"image {index}", what, "resize all images to one size")
            if held > MOST_BYTES:
                what = f"take more than {MOST_BYTES >> 30} GiB in memory"
                raise DmsflowError("images", what, "keep them as files, and use image-folder:PATH with a resolution")
            progress.advance()
    return np.stack(images), np.array(labels, np.int64)


def _pixels(image: Any, index: int) -> NDArray[np.uint8]:
    """Image [H, W, C] in uint8."""
    if hasattr(image, "convert"):  # one of Pillow's
        image = image if image.mode == "L" else image.convert("RGB")
    pixels: NDArray[Any] = np.asarray(image)
    if hasattr(image, "permute") and pixels.ndim == 3:  # a tensor has its channels first
        pixels = pixels.transpose(1, 2, 0)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind != "f" or not (pixels.min() >= 0 and pixels.max() <= 1):  # or NaN
        what = f"has {pixels.dtype} pixels from {pixels.min():g} to {pixels.max():g}"
        right = "give raw pixels, without Normalize: uint8, or floats from 0 to 1"
        raise DmsflowError(f"image {index}", what, right)
    return np.asarray(np.rint(pixels * 255), np.uint8)


def save(dataset: Dataset, folder: Path) -> str:
    """Write a data set in memory to an archive in `folder`, named after its content; returns the name it loads by.

    Raises:
        DmsflowError: a split is streamed from files, or the archive cannot be written.
    """
    train, test = dataset.train, dataset.test
    if not (isinstance(train, ArraySplit) and isinstance(test, ArraySplit)):
        raise DmsflowError(dataset.name, "is streamed from files", "give its name, such as imagenet")
    arrays: dict[str, Any] = {"train_images": train.pixels, "train_labels": train.labels}
    arrays |= {"test_images": test.pixels, "test_labels": test.labels}
    arrays |= {"classes": np.array(dataset.classes), "flip": np.array(dataset.flip)}
    arrays["crop_padding"] = np.array(dataset.crop_padding)
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    path = folder / f"images-{digest.hexdigest()[:12]}.npz"
    if not path.exists():
        with writing(path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)
    return f"arrays:{path}"
