"""Any images: `image-folder:PATH`, with PATH/train and PATH/test (or PATH/val), a folder for each class.

They are decoded once into memory and kept in the cache folder, until a file or the resolution changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dmsflow import terminal
from dmsflow.datasets import CHUNK, ArraySplit, Dataset, cache_folder, check_memory, statistics
from dmsflow.datasets._decoding import open_image
from dmsflow.datasets._folders import FileSplit, Listing, list_splits, streamed
from dmsflow.errors import DmsflowError
from dmsflow.files import open_regular, writing
from dmsflow.settings import Data

CACHE_FORMAT = 2  # of the cache; a new one makes old files unknown
SMALL_FILE_BYTES = 16 << 10  # below, more threads do not decode faster


def load(argument: str | None, data: Data, download: bool) -> Dataset:
    """Three channels. Without `data.resolution` all images must be squares of one size; with it the
    shorter side is resized to it and the centre is cut out.

    Raises:
        DmsflowError: a folder, class or image is missing, damaged or of another size, or they do
            not fit into memory.
    """
    splits = _list_files(argument, data)
    pixels = _load_pixels(*splits)
    train, test = (ArraySplit(array, split.labels) for array, split in zip(pixels, splits, strict=True))
    dataset = streamed(data.name, *splits, *statistics(pixels[0]))
    return replace(dataset, train=train, test=test, crop_padding=splits[0].resolution // 8, flip=True)


def plan(argument: str | None, data: Data, download: bool) -> Dataset:
    """The data set of `load`, without decoding its images: mean and deviation are not those of its pixels."""
    return streamed(data.name, *_list_files(argument, data), (0, 0, 0), (1.0, 1.0, 1.0))


def _list_files(argument: str | None, data: Data) -> tuple[FileSplit, FileSplit]:
    path = argument or data.data_dir
    if path is None:
        raise DmsflowError(f"--dataset {data.name}", "does not say which folder", "use --dataset image-folder:PATH")
    root = Path(path).expanduser()
    train, test = list_splits(root, "test", "val")
    resolution = data.resolution or _own_resolution(train)
    right = f"use --dataset imagenet --data-dir {root}, which streams them, or a smaller --resolution"
    check_memory(root, (len(train.labels) + len(test.labels)) * resolution**2 * 3, right)
    return FileSplit(train, resolution, data.resolution), FileSplit(test, resolution, data.resolution)


def _own_resolution(listing: Listing) -> int:
    path = listing.path(0)
    with open_image(path) as image:
        width, height = image.size
    if width != height:
        right = "use --resolution N to resize all images to N pixels"
        raise DmsflowError(path, f"is {width}x{height}, not square", right)
    return width


# --- the cache --------------------------------------------------------------------------------------


def _load_pixels(train: FileSplit, test: FileSplit) -> Sequence[NDArray[np.uint8]]:
    """The decoded images [N, H, H, 3] of both, from the cache if it was made from these very files.

    It has one file for each folder and resolution, so that a changed folder replaces its own old images.
    """
    fingerprint, root = _fingerprint(train, test), train.listing.folder.parent.resolve()
    place = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    title = re.sub(r"[^A-Za-z0-9_-]+", "-", root.name)
    path = cache_folder() / "images" / f"{title}-{train.resolution}-{place}.npz"
    # It is decoded again, to the same pixels, where there is no cache or its checksums (CRC-32, of zip) are wrong.
    unreadable = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile)
    with contextlib.suppress(*unreadable), open_regular(path) as stored, np.load(stored, allow_pickle=False) as cache:
        if cache["fingerprint"].item() == fingerprint:
            return cache["train"], cache["test"]
    pixels = _decode(train, test)
    with writing(path) as partial, partial.open("wb") as file:
        np.savez(file, fingerprint=np.array(fingerprint), train=pixels[0], test=pixels[1])
    return pixels


def _fingerprint(train: FileSplit, test: FileSplit) -> str:
    """Of all that decides the pixels: name, size and time of every file, the resolution, the decoder."""
    import PIL

    exact = train.shorter_side is None
    digest = hashlib.sha256(f"{CACHE_FORMAT} {PIL.__version__} {train.resolution} {exact}".encode())
    for listing in (train.listing, test.listing):
        folder = os.fsencode(listing.folder)
        for name in listing.files.tolist():
            status = os.stat(folder + b"/" + name)
            digest.update(b"%b %d %d\n" % (name, status.st_size, status.st_mtime_ns))
        digest.update(b"\n")
    return digest.hexdigest()


def _decode(*splits: FileSplit) -> list[NDArray[np.uint8]]:
    """Every image; large ones on all cores, for Pillow lets other threads run while it decodes.

    With small ones most of the time is Python's own, and threads would only wait for each other.
    """
    small = splits[0].listing.path(0).stat().st_size < SMALL_FILE_BYTES
    pool = ThreadPoolExecutor(1 if small else os.cpu_count())

    def decode(split: FileSplit) -> NDArray[np.uint8]:
        pixels = np.empty((len(split), split.resolution, split.resolution, 3), np.uint8)

        def decode_chunk(indices: NDArray[np.int64]) -> int:
            pixels[indices] = split.images(indices)
            return len(indices)

        for count in pool.map(decode_chunk, np.split(np.arange(len(split)), range(CHUNK, len(split), CHUNK))):
            track.advance(count)
        return pixels

    try:
        with terminal.track("decode", sum(map(len, splits)), "image") as track:
            return [decode(split) for split in splits]
    finally:
        pool.shutdown(cancel_futures=True)  # after an error there is nothing left to wait for
