"""CIFAR, from the archive of its binary version, or from files of its Python version that are there already.

Those are pickles. They are parsed and never unpickled: no class or function that they name is imported or called.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import pickletools
import tarfile
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dmsflow.datasets import ArraySplit, Dataset, data_folder, statistics, takes_no_argument
from dmsflow.errors import DmsflowError
from dmsflow.files import read_bytes, writing
from dmsflow.settings import Data
from dmsflow.terminal import track

URL = "https://www.cs.toronto.edu/~kriz/"
TIMEOUT_S = 60
# Keys of the pickles' dicts, and opcodes of the numbers and texts that follow each.
KEYS = {"data", "labels", "fine_labels", "coarse_labels", "filenames", "batch_label", "num_cases_per_batch", "num_vis"}
KEYS |= {"label_names", "fine_label_names", "coarse_label_names"}
CONSTANTS = ("BININT", "BININT1", "BININT2", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE")


@dataclass(frozen=True)
class Files:
    """The two versions of a set.

    Attributes:
        archive, md5: of the binary version; its files are named as the pickles.
        names: its file of the classes, one in a line.
        label_bytes: in front of an image; the last of them is its class.
        folder, pickles: of the Python version, and the MD5 of its files: those for training, for tests, the names.
        keys: of labels and of names in the pickles.
    """

    archive: str
    md5: str
    names: str
    label_bytes: int
    folder: str
    pickles: Mapping[str, str]
    keys: tuple[str, str]


def load_cifar(files: Files, argument: str | None, data: Data, download: bool) -> Dataset:
    """CIFAR as arrays, after a check of the MD5 of every file.

    Raises:
        DmsflowError: the files are missing or damaged, or cannot be downloaded.
    """
    takes_no_argument(data, argument)
    folder = data_folder(data)
    path, pickles = folder / files.archive, folder / files.folder
    if download and not path.exists() and not pickles.exists():
        _download(path, files.md5)
    right = "use search --download, or name its folder with --data-dir"
    try:
        splits, classes = _read_pickles(pickles, files) if pickles.exists() > path.exists() else _read(path, files)
    except FileNotFoundError as error:
        raise DmsflowError(error.filename, f"{data.name} is missing", right) from error
    except (OSError, ValueError) as error:
        at = getattr(error, "filename", None) or error
        raise DmsflowError(at, f"{data.name} is damaged or incomplete", f"remove it, and {right}") from error
    mean, std = statistics(splits[0].pixels)
    return Dataset(data.name, classes, splits[0], splits[1], mean, std, crop_padding=4, flip=True)


def _checked(path: Path, md5: str) -> bytes:
    """The bytes of a file; ValueError, with its path, if they are others."""
    content = read_bytes(path)
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise ValueError(path)
    return content


def _read(path: Path, files: Files) -> tuple[list[ArraySplit], tuple[str, ...]]:
    """Both splits and the names of the classes, from the archive; nothing is extracted from it."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(_checked(path, files.md5)), mode="r:gz") as archive:
        for member in archive:
            if reader := archive.extractfile(member):
                found[member.name.rpartition("/")[2]] = reader.read()
    *train, test, _ = files.pickles
    splits = []
    for names in (train, (test,)):
        content = np.frombuffer(b"".join(found[f"{name}.bin"] for name in names), np.uint8)
        rows = content.reshape(-1, files.label_bytes + 3 * 32 * 32)
        splits.append(_split(rows[:, files.label_bytes :], rows[:, files.label_bytes - 1]))
    return splits, tuple(found[files.names].decode("ascii").split())


def _read_pickles(folder: Path, files: Files) -> tuple[list[ArraySplit], tuple[str, ...]]:
    """As `_read`, from the files that torchvision and others extract."""
    parts = [_constants(_checked(folder / name, md5)) for name, md5 in files.pickles.items()]
    splits = []
    for several in (parts[:-2], parts[-2:-1]):
        pixels = b"".join(max(filter(_is_text, part["data"]), key=len).encode("latin-1") for part in several)
        labels = [value for part in several for value in part[files.keys[0]] if not _is_text(value)]
        splits.append(_split(np.frombuffer(pixels, np.uint8), labels))
    return splits, tuple(filter(_is_text, parts[-1][files.keys[1]]))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _split(pixels: Any, labels: Any) -> ArraySplit:
    """A split of planes of red, green and blue."""
    images = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return ArraySplit(images, np.asarray(labels, np.int64))


def _constants(content: bytes) -> dict[str, list[Any]]:
    """The numbers and texts behind each key of a pickled dict, in their order; an array is the longest text."""
    found: dict[str, list[Any]] = {}
    values: list[Any] = []
    for opcode, value, _ in pickletools.genops(content):
        if opcode.name in CONSTANTS:
            if value in KEYS:
                values = found.setdefault(value, [])
            else:
                values.append(value)
    return found


def _download(path: Path, md5: str) -> None:
    right = f"check the connection, or put {path.name} there and leave out --download"
    with writing(path) as partial:
        try:
            with urllib.request.urlopen(URL + path.name, timeout=TIMEOUT_S) as response, partial.open("wb") as file:
                size = int(response.headers.get("Content-Length") or 0)
                with track(f"download {path.name}", size >> 20, "MiB") as progress:
                    while block := response.read(1 << 20):
                        file.write(block)
                        progress.advance()
            _checked(partial, md5)
        except (OSError, ValueError, http.client.HTTPException) as error:
            why = "it was cut off or changed" if isinstance(error, ValueError) else error
            raise DmsflowError(path, f"cannot be downloaded ({why})", right) from error
