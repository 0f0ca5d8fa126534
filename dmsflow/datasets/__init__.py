"""Data sets; each file has `load(argument, data, download) -> Dataset`. NumPy only, no torch.

`data` is the chain's `manifest.Data`; `argument` is what follows the colon in the name
("image-folder:PATH"), or None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Split(Protocol):
    """Images of one part of a data set, in memory or streamed from files."""

    labels: NDArray[np.int64]  # [N]
    in_memory: bool  # images() is indexing, so the whole split may live on a GPU

    def __len__(self) -> int: ...

    def images(self, indices: NDArray[np.int64], augment_seed: int | None = None) -> NDArray[np.uint8]:
        """Images [n, H, W, C] at `indices`; a streamed split augments while it decodes, if seeded."""
        ...


@dataclass(frozen=True)
class ArraySplit:
    """A split that fits in memory as one array; it is augmented on the device, never here."""

    pixels: NDArray[np.uint8]  # [N, H, W, C]
    labels: NDArray[np.int64]  # [N]
    in_memory: bool = True

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: NDArray[np.int64], augment_seed: int | None = None) -> NDArray[np.uint8]:
        return self.pixels[indices]


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
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: tuple[int, ...]
    std: tuple[float, ...]
    crop_padding: int = 0
    flip: bool = False

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def resolution(self) -> int:
        return int(self.test.images(np.array([0])).shape[1])
