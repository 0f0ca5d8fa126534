"""Image folders: one folder for each class, and a split that decodes its files when asked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dmsflow.datasets import Dataset
from dmsflow.datasets._decoding import decode_centre, decode_random, open_image
from dmsflow.errors import DmsflowError
from dmsflow.terminal import list_names

# Files with other suffixes are opened, to see whether Pillow decodes them.
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


@dataclass(frozen=True)
class Listing:
    """The image files below a folder, in alphabetical order of class and file.

    Attributes:
        files: class/file as bytes, in one array: worker processes share it, a list would be copied.
        left_out: files and folders that are no images.
    """

    folder: Path
    classes: tuple[str, ...]
    files: NDArray[np.bytes_]  # [N]
    labels: NDArray[np.int64]  # [N]
    left_out: tuple[str, ...] = ()

    def path(self, index: int) -> Path:
        return self.folder / os.fsdecode(self.files[index].item())


@dataclass(frozen=True)
class FileSplit:
    """Images in files, decoded at each call.

    Attributes:
        resolution: pixels of a side.
        shorter_side: pixels of an image's shorter side before its centre is cut out; None refuses
            any image that is not `resolution` square.
        channels: 3, or 1 of images that must be grey.
    """

    listing: Listing
    resolution: int
    shorter_side: int | None
    channels: int = 3

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.listing.labels

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: NDArray[np.int64], augment_seed: int | None = None) -> NDArray[np.uint8]:
        """Images [n, H, H, C]: the centre of each, or with a seed a random crop, mirrored half of the time.

        What an image becomes depends on the seed and its index alone, not on the batch or the process.

        Raises:
            DmsflowError: a file is damaged or gone, or in colour where images must be grey.
        """
        images = np.empty((len(indices), self.resolution, self.resolution, self.channels), np.uint8)
        for row, index in enumerate(indices.tolist()):
            path = self.listing.path(index)
            if augment_seed is not None:
                image = decode_random(path, self.resolution, np.random.default_rng((augment_seed, index)))
            else:
                image = decode_centre(path, self.resolution, self.shorter_side)
            if self.channels == 1 and (image != image[..., :1]).any():
                what = "is in colour, but the training images are grey"
                raise DmsflowError(path, what, "convert it to grey")
            images[row] = image[..., : self.channels]
        return images


def list_images(folder: Path) -> Listing:
    """Find the images in `folder/<class>/` and in the folders below. Hidden entries and what is no image are left out.

    Raises:
        DmsflowError: fewer than two classes, a class without images, or a folder that cannot be read.
    """
    try:
        return _list_classes(folder)
    except OSError as error:
        right = "give a folder that you can read, with one folder of images for each class"
        raise DmsflowError(error.filename or folder, error.strerror or str(error), right) from error


def _list_classes(folder: Path) -> Listing:
    classes, left_out = list[str](), list[str]()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        is_class = entry.is_dir() and entry.name[0] != "."
        (classes if is_class else left_out).append(entry.name)
    if len(classes) < 2:
        right = "make one folder of images for each class, at least two"
        raise DmsflowError(folder, f"has {len(classes)} class folders", right)
    files: list[bytes] = []
    labels: list[int] = []
    empty: list[str] = []
    for label, name in enumerate(classes):
        found = [*_walk(folder, name)]
        images = sorted(path for path, is_image in found if is_image)
        left_out += sorted(path for path, is_image in found if not is_image)
        empty += [] if images else [name]
        files += map(os.fsencode, images)
        labels += [label] * len(images)
    if empty:
        what = f"no images in {list_names(empty)}"
        what += f" ({len(left_out)} files cannot be read as images: {list_names(left_out)})" if left_out else ""
        raise DmsflowError(folder, what, "put images into each class folder, or remove it")
    return Listing(folder, tuple(classes), np.array(files), np.array(labels), tuple(left_out))


def _walk(root: Path, folder: str) -> Iterator[tuple[str, bool]]:
    """Paths below `root` of all in a folder of it, and whether they are images; a link to a folder may be a loop."""
    with os.scandir(root / folder) as entries:
        listed = [*entries]
    for entry in listed:
        path, is_hidden = f"{folder}/{entry.name}", entry.name[0] == "."
        if entry.is_dir(follow_symlinks=False) and not is_hidden:
            yield from _walk(root, path)
        else:
            yield path, not is_hidden and entry.is_file() and (path.lower().endswith(SUFFIXES) or _is_image(entry.path))


def _is_image(path: str) -> bool:
    with contextlib.suppress(DmsflowError), open_image(Path(path)) as image:
        image.load()
        return True
    return False


def streamed(name: str, train: FileSplit, test: FileSplit, mean: tuple[int, ...], std: tuple[float, ...]) -> Dataset:
    """A data set of files; what is no image is named from the folder that both splits are in."""
    listings = (train.listing, test.listing)
    left_out = tuple(f"{each.folder.name}/{file}" for each in listings for file in each.left_out)
    return Dataset(name, train.listing.classes, train, test, mean, std, left_out=left_out)


def list_splits(root: Path, *tests: str) -> tuple[Listing, Listing]:
    """The images in `root/train` and in the first of `root/<tests>` that exists.

    Raises:
        DmsflowError: a folder is missing, or the two do not have the same classes.
    """
    either = " or ".join(f"{name}/" for name in tests)
    layout = f"it needs train/ and {either}, each with one folder of images for each class"
    if not root.is_dir():
        raise DmsflowError(root, "no such folder", layout)
    held_out = next((name for name in tests if (root / name).is_dir()), None)
    if held_out is None or not (root / "train").is_dir():
        raise DmsflowError(root, f"has no {'train/' if held_out else either}", layout)
    train, test = list_images(root / "train"), list_images(root / held_out)
    if odd := sorted(set(train.classes) ^ set(test.classes)):
        lacking = test.folder if odd[0] in train.classes else train.folder
        raise DmsflowError(lacking, f"has no class {odd[0]}", f"train/ and {held_out}/ need the same classes")
    return train, test
