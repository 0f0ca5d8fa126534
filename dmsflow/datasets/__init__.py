"""Images; a new data set is a file here, with `load(argument, data, download) -> Dataset`.

NumPy only, no torch.

`data` is the chain's `settings.Data`; `argument` is what follows the colon in the name
("image-folder:PATH"), or None. A file may leave `data.train_images` alone, and for splits in memory
`data.resolution` too: `load_dataset` below applies them.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dmsflow.errors import DmsflowError, printable
from dmsflow.plugin import list_plugins, load_plugin
from dmsflow.settings import MOST_PIXELS, Data
from dmsflow.terminal import list_names

FEW_IMAGES = 20  # of a class, for training
CHUNK = 256  # images in one block of work


class Split(Protocol):
    """The images of one part of a data set, in memory or streamed from files."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class numbers [N]."""
        ...

    def __len__(self) -> int: ...

    def images(self, indices: NDArray[np.int64], augment_seed: int | None = None) -> NDArray[np.uint8]:
        """Images [n, H, W, C] at `indices`; a streamed split augments while it decodes, if seeded."""
        ...


@dataclass(frozen=True)
class ArraySplit:
    """A split that fits in memory as one array; it is augmented on the device, never here."""

    pixels: NDArray[np.uint8]  # [N, H, W, C]
    labels: NDArray[np.int64]  # [N]

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: NDArray[np.int64], augment_seed: int | None = None) -> NDArray[np.uint8]:
        return self.pixels[indices]


@dataclass(frozen=True)
class Subset:
    """Some images of a split that is not in memory; each is augmented as in the whole split."""

    source: Split
    indices: NDArray[np.int64]  # [n]

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.source.labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def images(self, indices: NDArray[np.int64], augment_seed: int | None = None) -> NDArray[np.uint8]:
        return self.source.images(self.indices[indices], augment_seed)


@dataclass(frozen=True)
class Dataset:
    """A training and a held-out test split, and how pixels are normalised and augmented.

    Attributes:
        name: as the user wrote it.
        classes: their names, in label order.
        train, test: the splits.
        mean, std: of each channel in pixels (0..255); the mean is a whole number, so that
            `pixel - mean` is exact in every runtime.
        crop_padding: pixels of zero padding (after normalisation) before a random crop; 0: no crop.
        flip: mirror half of the training images.
        left_out: files of its folders that are no images.

    Crop and flip are for splits in memory; a streamed split augments while it decodes.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: tuple[int, ...]
    std: tuple[float, ...]
    crop_padding: int = 0
    flip: bool = False
    left_out: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def resolution(self) -> int:
        return int(self.test.images(np.array([0])).shape[1])


def with_one_mean(dataset: Dataset) -> Dataset:
    """The data set with the same mean and std for all channels, as a convolution of uint8 pixels needs it: it pads all
    channels with one pixel, and each filter has one step."""
    mean, std = round(sum(dataset.mean) / dataset.channels), sum(dataset.std) / dataset.channels
    return replace(dataset, mean=(mean,) * dataset.channels, std=(std,) * dataset.channels)


def load_dataset(data: Data, download: bool = False, *, planned: bool = False) -> Dataset:
    """The data set of a run, with `data.train_images` and `data.resolution` applied.

    Args:
        data: its name is a plug-in's, with an argument behind a colon where it takes one, or the
            path of a user's own `.py` file.
        download: fetch a missing set, where that is possible.
        planned: only count and describe the images, where that is less work than to decode and cache them.

    Raises:
        DmsflowError: no such data set, files that are missing or damaged, or a count of training
            images that cannot be had.
    """
    name, _, argument = (data.name, "", "") if data.name.endswith(".py") else data.name.partition(":")
    if name not in list_plugins("datasets") and Path(data.name).is_dir():
        raise DmsflowError(f"dataset {data.name}", "is a folder", f"use image-folder:{data.name}")
    module = load_plugin("datasets", name)
    load = getattr(module, "plan", module.load) if planned else module.load
    dataset = load(argument or None, data, download)
    if not isinstance(dataset, Dataset):
        raise DmsflowError(name, f"load() returned a {type(dataset).__name__}", "return a dmsflow.datasets.Dataset")
    check(dataset)
    if data.resolution not in (None, dataset.resolution):
        dataset = _resize_dataset(dataset, data.resolution)
    if data.train_images is None:
        return dataset
    split, indices = dataset.train, first_of_each_class(dataset, data.train_images)
    if isinstance(split, ArraySplit):
        return replace(dataset, train=ArraySplit(split.pixels[indices], split.labels[indices]))
    return replace(dataset, train=Subset(split, indices))


def count_images(dataset: Dataset) -> dict[str, Any]:
    """How many images there are, for a manifest."""
    sizes = np.bincount(dataset.train.labels, minlength=len(dataset.classes))
    smallest = int(sizes.argmin())
    counts = {"train": len(dataset.train), "test": len(dataset.test), "classes": len(dataset.classes)}
    named = {"smallest_class": printable(dataset.classes[smallest]), "smallest_class_images": int(sizes[smallest])}
    return counts | named | {"left_out": len(dataset.left_out)}


def describe_images(dataset: Dataset) -> list[str]:
    """The counts in words; then what a user should know about the images, a line each."""
    counts, sizes = count_images(dataset), np.bincount(dataset.train.labels, minlength=len(dataset.classes))
    words = f"{counts['train']:,} training and {counts['test']:,} test images in {counts['classes']:,} classes"
    lines = [f"{words}; the smallest, {counts['smallest_class']}, has {counts['smallest_class_images']:,} for training"]
    if few := [f"{name} ({size})" for name, size in zip(dataset.classes, sizes, strict=True) if size < FEW_IMAGES]:
        lines.append(f"fewer than {FEW_IMAGES} training images: {list_names(few)}; more would help")
    return lines + describe_left_out(dataset.left_out)


def describe_left_out(names: Sequence[str]) -> list[str]:
    """A line, if there are any."""
    return [f"left out, hidden or no image that Pillow can read: {len(names)} ({list_names(names)})"] if names else []


def takes_no_argument(data: Data, argument: str | None) -> None:
    """Refuse "digits:x"."""
    if argument is not None:
        name = data.name.partition(":")[0]
        raise DmsflowError(f"--dataset {data.name}", f"{name} takes nothing after a colon", f"use --dataset {name}")


def cache_folder() -> Path:
    """Where dmsflow keeps what it can make or fetch again: `$XDG_CACHE_HOME/dmsflow` or `~/.cache/dmsflow`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dmsflow"


def data_folder(data: Data) -> Path:
    """Where a data set's files are: --data-dir, else `$DMSFLOW_DATA_DIR`, else the cache folder."""
    given = data.data_dir or os.environ.get("DMSFLOW_DATA_DIR")
    return Path(given).expanduser() if given else cache_folder()


def first_of_each_class(dataset: Dataset, count: int) -> NDArray[np.int64]:
    """Indices [count] of training images, equally many of each class, the first ones of each, in file order.

    Raises:
        DmsflowError: `count` is not a multiple of the classes, or a class has too few images.
    """
    classes, labels = len(dataset.classes), dataset.train.labels
    each, rest = divmod(count, classes)
    where = f"data.train_images {count}"
    if rest or each < 1:
        nearest = max(round(count / classes), 1) * classes
        raise DmsflowError(where, f"is not a multiple of the {classes} classes of {dataset.name}", f"use {nearest}")
    smallest = int(np.bincount(labels, minlength=classes).min())
    if each > smallest:
        what = f"needs {each} images of each class, and the smallest class of {dataset.name} has {smallest}"
        raise DmsflowError(where, what, f"use at most {smallest * classes}")
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:each] for label in range(classes)]))


def statistics(pixels: NDArray[np.uint8]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of images [N, H, W, C]; summed in integers, so exact.

    The mean is rounded to whole pixels, the deviation to three digits and never below one pixel.
    """
    channels, rows = pixels.shape[-1], pixels.reshape(len(pixels), -1)
    total = rows.sum(0, dtype=np.int64).reshape(-1, channels).sum(0)
    squares = np.einsum("ni,ni->i", rows, rows, dtype=np.int64, casting="safe").reshape(-1, channels).sum(0)
    count = pixels.size // channels
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1.0))
    return tuple(round(m) for m in mean.tolist()), tuple(float(f"{s:.3g}") for s in std.tolist())


def resize(pixels: NDArray[np.uint8], resolution: int) -> NDArray[np.uint8]:
    """Images [N, H, W, C] as [N, resolution, resolution, C]: bilinear, antialiased where they shrink."""
    size = len(pixels) * resolution**2 * pixels.shape[3]
    check_memory(f"{len(pixels)} images of {resolution} pixels a side", size, "use a smaller --resolution")
    rows, columns = (_bilinear(size, resolution) for size in pixels.shape[1:3])
    resized = np.empty((len(pixels), resolution, resolution, pixels.shape[3]), np.uint8)
    for start in range(0, len(pixels), CHUNK):
        chunk = pixels[start : start + CHUNK].transpose(0, 3, 1, 2).astype(np.float32)
        smaller = rows @ chunk @ columns.T  # [n, C, resolution, resolution]
        resized[start : start + CHUNK] = np.rint(smaller).transpose(0, 2, 3, 1)
    return resized


def check_memory(where: object, needed: int, right: str) -> None:
    """Raise DmsflowError if pixels of `needed` bytes are more than half of this machine's memory."""
    if needed > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2:
        what = f"the pixels would take {needed / 2**30:.1f} GiB, more than half of this machine's memory"
        raise DmsflowError(where, what, right)


def _bilinear(size: int, resolution: int) -> NDArray[np.float32]:
    """Weights [resolution, size] of a triangle around each new pixel's centre, at least two old pixels wide."""
    scale = size / resolution
    centre = (np.arange(resolution)[:, None] + 0.5) * scale
    distance = np.abs(np.arange(size) + 0.5 - centre) / max(scale, 1.0)
    weights = np.maximum(1.0 - distance, 0.0)
    weights /= weights.sum(1, keepdims=True)
    return np.asarray(weights, np.float32)


def _resize_dataset(dataset: Dataset, resolution: int) -> Dataset:
    train, test = dataset.train, dataset.test
    if not (isinstance(train, ArraySplit) and isinstance(test, ArraySplit)):
        what = f"its images have {dataset.resolution} pixels, not the {resolution} asked for"
        raise DmsflowError(f"data set {dataset.name}", what, "a streamed data set's load() must use data.resolution")
    return replace(
        dataset,
        train=replace(train, pixels=resize(train.pixels, resolution)),
        test=replace(test, pixels=resize(test.pixels, resolution)),
        crop_padding=round(dataset.crop_padding * resolution / dataset.resolution),
    )


def check(dataset: Dataset, right: str = "correct its load()") -> None:
    """Raise DmsflowError where a data set, most likely a user's own, breaks the contract; `right` says what to do."""
    where = f"data set {dataset.name}"
    try:
        broken = _find_fault(dataset)
    except (AttributeError, IndexError, TypeError, ValueError) as error:  # fields may be of any type
        broken = f"{type(error).__name__}: {error}"
    if broken:
        raise DmsflowError(where, broken, right)


def _find_fault(dataset: Dataset) -> str:
    """What breaks the contract, in words; empty: nothing."""
    mean, std, channels, sides = dataset.mean, dataset.std, dataset.channels, set[int]()
    sound = all(0 <= m <= 255 and m == int(m) for m in mean) and all(0 < s < np.inf for s in std)
    if len(std) != channels or not channels or not sound:
        return "it needs an integer mean from 0 to 255 and a positive std for each channel"
    named, padding = all(isinstance(name, str) for name in dataset.classes), operator.index(dataset.crop_padding)
    if not (named and 0 <= padding <= MOST_PIXELS):
        return "it needs names of classes, and a crop_padding of whole pixels"
    last = len(dataset.classes) - 1
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        if not len(split):
            return f"{part} has no images"
        if split.labels.dtype.kind not in "iu" or split.labels.ndim != 1:
            return f"{part} has labels {split.labels.dtype} {list(split.labels.shape)}, but integers [N] are needed"
        if split.labels.min() < 0 or split.labels.max() > last:
            return f"{part} has labels from {split.labels.min()} to {split.labels.max()}, but the classes go from 0 to {last}"
        images = split.pixels if isinstance(split, ArraySplit) else split.images(np.array([0]))
        square = images.ndim == 4 and images.shape[1] == images.shape[2] and images.shape[3] == channels
        if not square or images.dtype != np.uint8:
            return f"{part} has {images.dtype} images {list(images.shape)}, but uint8 [N, H, H, {channels}] is needed"
        if isinstance(split, ArraySplit) and len(images) != len(split.labels):
            return f"{part} has {len(images)} images and {len(split.labels)} labels"
        sides.add(images.shape[1])
    return "" if len(sides) == 1 else f"its images have {' and '.join(map(str, sorted(sides)))} pixels a side"
