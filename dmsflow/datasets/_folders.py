"""Image folders: one folder for each class, and a split that decodes its files when asked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dmsflow.datasets._decoding import decode_centre, decode_exact, decode_random
from dmsflow.errors import DmsflowError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


@dataclass(frozen=True)
class FileSplit:
    """Images in files, decoded at each call.

    Attributes:
        folder: what the names of `files` start from.
        files: paths as bytes, in one array: it is shared by worker processes, a list would be copied.
        labels: of each file.
        resolution: pixels of a side.
        shorter_side: pixels of an image's shorter side before its centre is cut out; None refuses
            any image that is not `resolution` square.
    """

    folder: Path
    files: NDArray[np.bytes_]  # [N]
    labels: NDArray[np.int64]  # [N]
    resolution: int
    shorter_side: int | None
    in_memory: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: NDArray[np.int64], augment_seed: int | None = None) -> NDArray[np.uint8]:
        """Images [n, H, H, 3]: the centre of each, or with a seed a random crop, mirrored half of the time.

        What an image becomes depends on the seed and its index alone, not on the batch or the process.

        Raises:
            DmsflowError: a file is damaged or gone.
        """
        images = np.empty((len(indices), self.resolution, self.resolution, 3), np.uint8)
        for row, index in enumerate(indices):
            images[row] = self._image(int(index), augment_seed)
        return images

    def _image(self, index: int, augment_seed: int | None) -> NDArray[np.uint8]:
        path = self.path(index)
        if augment_seed is not None:
            return decode_random(path, self.resolution, np.random.default_rng((augment_seed, index)))
        if self.shorter_side is None:
            return decode_exact(path, self.resolution)
        return decode_centre(path, self.resolution, self.shorter_side)

    def path(self, index: int) -> Path:
        return self.folder / os.fsdecode(self.files[index].item())


@dataclass(frozen=True)
class Listing:
    """The image files below a folder, in alphabetical order of class and file."""

    folder: Path
    classes: tuple[str, ...]
    files: NDArray[np.bytes_]  # [N] class/file
    labels: NDArray[np.int64]  # [N]


def list_images(folder: Path) -> Listing:
    """Find the images in `folder/<class>/`. Hidden entries and files that are no images are left out.

    Raises:
        DmsflowError: fewer than two classes, or a class without images.
    """
    try:
        classes = sorted(
            entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")
        )
    except OSError as error:
        raise DmsflowError(
            folder, error.strerror or str(error), "give a folder with one folder of images for each class"
        ) from error
    if len(classes) < 2:
        raise DmsflowError(
            folder, f"has {len(classes)} class folders", "make one folder of images for each class, at least two"
        )
    files: list[bytes] = []
    counts = []
    for name in classes:
        found = sorted(entry.name for entry in os.scandir(folder / name) if _is_image(entry))
        if not found:
            raise DmsflowError(
                folder / name, f"has no images ({' '.join(SUFFIXES)})", "put images of this class into it, or remove it"
            )
        files.extend(os.fsencode(f"{name}/{file}") for file in found)
        counts.append(len(found))
    return Listing(folder, tuple(classes), np.array(files), np.repeat(np.arange(len(classes)), counts))


def _is_image(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".") and entry.name.lower().endswith(SUFFIXES) and entry.is_file()


def list_splits(root: Path, *tests: str) -> tuple[Listing, Listing]:
    """The images in `root/train` and in the first of `root/<tests>` that is there.

    Raises:
        DmsflowError: a folder is missing, or the two do not have the same classes.
    """
    layout = f"it needs train/ and {' or '.join(f'{name}/' for name in tests)}, each with one folder of images for each class"
    if not root.is_dir():
        raise DmsflowError(root, "no such folder", layout)
    held_out = next((name for name in tests if (root / name).is_dir()), None)
    if held_out is None or not (root / "train").is_dir():
        missing = "train/" if held_out else " or ".join(f"{name}/" for name in tests)
        raise DmsflowError(root, f"has no {missing}", layout)
    train, test = list_images(root / "train"), list_images(root / held_out)
    odd = sorted(set(train.classes) ^ set(test.classes))
    if odd:
        lacking = test.folder if odd[0] in train.classes else train.folder
        raise DmsflowError(lacking, f"has no class {odd[0]}", f"train/ and {held_out}/ need the same classes")
    return train, test
