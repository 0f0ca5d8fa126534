"""What search and train share: where torch runs, batches, the optimiser, evaluation.

All randomness is counted, not carried: the batch of step s, or the noise of a named draw at step
s, follows from the seed and s alone. So the position of a run is one number, and a resumed run
sees exactly what an uninterrupted one does.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmsflow.datasets import Dataset, Split
from dmsflow.errors import DmsflowError
from dmsflow.training.place import Place, generator

Indices = NDArray[np.int64]

EVALUATION_BATCH = 250


@dataclass(frozen=True)
class Order:
    """Which images each step sees.

    Attributes:
        count: images in all.
        size: images in a batch.
        shuffle: a new order every epoch, of whole batches only; otherwise every image, in order.
    """

    count: int
    size: int
    seed: int
    purpose: str
    shuffle: bool

    @property
    def steps(self) -> int:
        """In an epoch."""
        return self.count // self.size if self.shuffle else -(-self.count // self.size)

    def place(self, step: int) -> tuple[int, slice]:
        """The epoch of a step, and where in its order the step's images are."""
        epoch, position = divmod(step, self.steps)
        return epoch, slice(position * self.size, (position + 1) * self.size)

    def epoch(self, epoch: int) -> Indices:
        """Positions of the images in the order of an epoch."""
        return _permutation(self, epoch) if self.shuffle else np.arange(self.count)

    def rows(self, step: int) -> Indices:
        """Positions of a step's images."""
        epoch, part = self.place(step)
        return self.epoch(epoch)[part]


@functools.lru_cache(maxsize=8)  # a step asks for the order of its whole epoch
def _permutation(order: Order, epoch: int) -> Indices:
    return torch.randperm(order.count, generator=generator(order.seed, order.purpose, epoch)).numpy()


@dataclass(frozen=True)
class _Epoch:
    """What is drawn for an epoch, on the device that computes: moved once, so that no step waits for it.

    Attributes:
        rows: positions of the images, in order.
        corners: of their crops: the first pixel, counted from where the image lies in the canvas.
    """

    number: int
    rows: Tensor
    corners: Tensor


class Batches:
    """Normalised batches of a part of a split, addressed by step.

    Args:
        indices: which images of the split.
        size: images in a batch.
        shuffle: a new order every epoch, of whole batches only; otherwise every image, in order.
        augment: crop and flip as the data set says.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        indices: Indices,
        *,
        size: int,
        seed: int,
        purpose: str,
        shuffle: bool,
        augment: bool,
        where: Place,
        workers: int,
    ) -> None:
        if not len(indices):
            raise DmsflowError(f"data set {dataset.name}", f"has no images for {purpose}", "use more images")
        self.dataset, self.split, self.indices = dataset, split, indices
        self.order = Order(len(indices), min(size, len(indices)), seed, purpose, shuffle)
        self.steps = self.order.steps  # in an epoch
        self.augment, self.device, self.workers = augment, where.device, workers
        self.mean = torch.tensor(dataset.mean, dtype=torch.float32, device=self.device)
        self.std = torch.tensor(dataset.std, dtype=torch.float32, device=self.device)
        self.pixels = _resident(split, indices, self.device) if split.in_memory else None
        self.side = dataset.resolution + 2 * dataset.crop_padding  # of a padded image
        self.labels = torch.from_numpy(split.labels[indices]).to(self.device)
        self._drawn = self._draw(0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.run(0, self.steps)

    def run(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [n, C, H, W] float32 and labels [n] of steps start … stop - 1."""
        loaded = iter(self._loader(range(start, stop))) if self.pixels is None else iter(())
        for step in range(start, stop):
            epoch, part = self.order.place(step)
            if epoch != self._drawn.number:
                self._drawn = self._draw(epoch)
            rows = self._drawn.rows[part]
            pixels = next(loaded) if self.pixels is None else self._cropped(self.pixels.index_select(0, rows), part)
            yield self._normalised(pixels).permute(0, 3, 1, 2), self.labels[rows]

    def _draw(self, epoch: int) -> _Epoch:
        """The order of an epoch and its crops and flips."""
        order, span = self.order, 2 * self.dataset.crop_padding + 1
        draw = generator(order.seed, f"{order.purpose} augmentation", epoch)
        tops, lefts = torch.randint(span, (2, order.count), generator=draw).unbind()
        mirrored = torch.randint(2 if self.dataset.flip else 1, (order.count,), generator=draw)
        corners = (mirrored * order.size * self.side + tops) * self.side + lefts
        return _Epoch(epoch, torch.from_numpy(order.epoch(epoch)).to(self.device), corners.to(self.device))

    def _cropped(self, pixels: Tensor, part: slice) -> Tensor:
        """A part of the epoch, cropped and flipped; [n, H, W, C] uint8, wherever it lives."""
        if not self.augment:
            return pixels
        canvas, (n, size, _, channels) = self._canvas, pixels.shape
        inside = slice(self.dataset.crop_padding, self.dataset.crop_padding + size)
        canvas[0, :n, inside, inside] = pixels
        # torch flips images that are held channels last quickly, and only those.
        canvas[1, :n, inside, inside] = pixels.permute(0, 3, 1, 2).flip(3).permute(0, 2, 3, 1)
        rows = self._drawn.corners[part, None] + self._starts[:n]
        runs = canvas.view(-1).unfold(0, size * channels, channels)  # what a row would be from any pixel on
        return runs.index_select(0, rows.view(-1)).view(n, size, size, channels)

    @functools.cached_property
    def _canvas(self) -> Tensor:
        """Where a batch is padded, as it is and mirrored: uint8 [2, size, side, side, C], kept for its borders."""
        # The mean pixel is what zero padding after normalisation means.
        return self.mean.to(torch.uint8).expand(2, self.order.size, self.side, self.side, -1).contiguous()

    @functools.cached_property
    def _starts(self) -> Tensor:
        """The first pixel of every row of every image in the canvas, [size, H]."""
        images, rows = torch.arange(self.order.size), torch.arange(self.dataset.resolution)
        return (images[:, None] * self.side**2 + rows * self.side).to(self.device)

    def _normalised(self, pixels: Tensor) -> Tensor:
        """[n, H, W, C] float32; whole rows of pixels at once, which is quicker than three channels."""
        n, height, width, channels = pixels.shape
        rows = pixels.to(self.device, non_blocking=True).to(torch.float32).view(n * height, width * channels)
        return rows.sub_(self.mean.repeat(width)).div_(self.std.repeat(width)).view(n, height, width, channels)

    def _loader(self, steps: range) -> Any:
        """Decoding worker processes, for splits that do not fit in memory."""
        decoded = _Decoded(self.split, self.indices, self.order, steps, self.augment)
        return torch.utils.data.DataLoader(decoded, batch_size=None, num_workers=self.workers)


@dataclass(frozen=True)
class _Decoded(torch.utils.data.Dataset[Tensor]):
    """The decoded batches of some steps, for torch's DataLoader; item i is step steps[i]."""

    split: Split
    indices: Indices
    order: Order
    steps: range
    augment: bool

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, item: int) -> Tensor:
        step = self.steps[item]
        seed = int(np.random.SeedSequence([self.order.seed, step]).generate_state(1)[0]) if self.augment else None
        return torch.from_numpy(self.split.images(self.indices[self.order.rows(step)], seed))


def _resident(split: Split, indices: Indices, device: torch.device) -> Tensor:
    """A split that fits, as one uint8 tensor [N, H, W, C] on the device."""
    return torch.from_numpy(split.images(indices)).to(device)


def halves(split: Split, seed: int) -> tuple[Indices, Indices]:
    """Two disjoint halves of a training set, alike in every class: for weights, and for widths."""
    draw = np.random.default_rng([seed, zlib.crc32(b"halves")])
    first, second = [], []
    for label in np.unique(split.labels):
        members = draw.permutation(np.flatnonzero(split.labels == label))
        first.append(members[: (len(members) + 1) // 2])
        second.append(members[(len(members) + 1) // 2 :])
    return np.sort(np.concatenate(first)), np.sort(np.concatenate(second))


def whole(dataset: Dataset, split: Split, where: Place, workers: int, limit: int | None = None) -> Batches:
    """A split in order, without augmentation, every image of it, for evaluation."""
    indices = np.arange(min(len(split), limit or len(split)))
    return Batches(
        dataset,
        split,
        indices,
        size=EVALUATION_BATCH,
        seed=0,
        purpose="evaluation",
        shuffle=False,
        augment=False,
        where=where,
        workers=workers,
    )
