"""Batches of images, addressed by step.

All randomness is counted, not carried: the batch of step s, or the noise of a named draw at step
s, follows from the seed and s alone. So the position of a run is one number, and a resumed run
computes exactly what an uninterrupted one does.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmsflow.datasets import ArraySplit, Dataset, Split
from dmsflow.errors import DmsflowError
from dmsflow.training.place import Place
from dmsflow.training.processes import ALONE, Share

Indices = NDArray[np.int64]

FULL_CROP_EPOCHS = 100  # from here on the crops of a training are the data set's own
EVALUATION_BATCH = 250  # images; divides the 10,000 test images of CIFAR


def generator(seed: int, purpose: str, *position: int) -> torch.Generator:
    """A CPU generator for one draw; different for every purpose and position."""
    entropy = [seed, zlib.crc32(purpose.encode()), *position]
    state = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state & (2**63 - 1))


@dataclass(frozen=True)
class Order:
    """Which images of a split each step reads.

    Attributes:
        indices: all of them, [N].
        size: images in a batch.
        purpose: what the batches are for; every purpose has orders of its own.
        shuffle: a new order every epoch, of whole batches only; otherwise every image, in order.
        augment: crop and flip with the data set's padding and flip.
    """

    indices: Indices
    size: int
    seed: int
    purpose: str
    shuffle: bool = True
    augment: bool = True

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        count = len(self.indices)
        return count // self.size if self.shuffle else -(-count // self.size)

    def locate(self, step: int) -> tuple[int, slice]:
        """The epoch of a step, and where in its order the step's images are."""
        epoch, position = divmod(step, self.steps)
        return epoch, slice(position * self.size, (position + 1) * self.size)

    def rows(self, epoch: int) -> Indices:
        """Positions in `indices`, in the order of an epoch."""
        count = len(self.indices)
        return _permute(count, self.seed, self.purpose, epoch) if self.shuffle else np.arange(count)


@functools.lru_cache(maxsize=8)  # a worker process asks for the order of the whole epoch at every step
def _permute(count: int, seed: int, purpose: str, epoch: int) -> Indices:
    return torch.randperm(count, generator=generator(seed, purpose, epoch)).numpy()


class Batches:
    """Normalised batches of a part of a split, on the device that computes: the rows that this process takes of each.

    A split in memory is stored there whole, as uint8; others are decoded by `workers` processes. The
    orders and crops of an epoch are moved there once, so that no step waits for them.
    """

    def __init__(self, dataset: Dataset, split: Split, order: Order, where: Place, workers: int) -> None:
        self.dataset, self.split, self.where, self.workers = dataset, split, where, workers
        self.order = replace(order, size=min(order.size, len(order.indices)))
        if rest := self.order.size % (parts := where.share.parts):
            right = f"use a batch_size of {max(parts, self.order.size - rest)}, or more images"
            raise DmsflowError(f"batch of {self.order.size} images", f"cannot be split into {parts} parts", right)
        if order.shuffle and self.order.size < 2 * parts:  # one image has no variance to normalise with
            what, least = f"a batch for {order.purpose} has {self.order.size} images", 2 * parts
            right = f"at least {least} are needed: use more images, or a larger batch_size"
            raise DmsflowError(f"data set {dataset.name}", what, right)
        self.steps = self.order.steps  # in an epoch
        self.side = dataset.resolution + 2 * dataset.crop_padding  # of a padded image
        self.mean = torch.tensor(dataset.mean, dtype=torch.float32, device=where.device)
        self.std = torch.tensor(dataset.std, dtype=torch.float32, device=where.device)
        self.labels = torch.from_numpy(split.labels[order.indices]).to(where.device)
        held = isinstance(split, ArraySplit)
        self.pixels = torch.from_numpy(split.images(order.indices)).to(where.device) if held else None
        self._draw(0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.run(0, self.steps)

    def run(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [n, C, H, W] float32 and labels [n] of steps start … stop - 1."""
        decoded = iter(self._decode(range(start, stop))) if self.pixels is None else iter(())
        for step in range(start, stop):
            epoch, part = self.order.locate(step)
            if epoch != self._epoch:
                self._draw(epoch)
            part = self.where.share.rows(part)
            rows = self._rows[part]
            pixels = next(decoded) if self.pixels is None else self._cropped(self.pixels.index_select(0, rows), part)
            yield self._normalised(pixels).permute(0, 3, 1, 2), self.labels[rows]

    def _decode(self, steps: range) -> torch.utils.data.DataLoader[Tensor]:
        """The images of each step, decoded in worker processes."""
        decode = functools.partial(_decode_step, self.split, self.order, self.where.share)
        return torch.utils.data.DataLoader(steps, batch_size=None, num_workers=self.workers, collate_fn=decode)  # type: ignore[arg-type]

    def _draw(self, epoch: int) -> None:
        """The order of an epoch; of each image, the first pixel of its crop, counted from its corner of the canvas."""
        order, span = self.order, 2 * self.dataset.crop_padding + 1
        count = len(order.indices)
        draw = generator(order.seed, f"{order.purpose} augmentation", epoch)
        tops, lefts = torch.randint(span, (2, count), generator=draw).unbind()
        mirrored = torch.randint(2 if self.dataset.flip else 1, (count,), generator=draw)
        corners = (mirrored * order.size * self.side + tops) * self.side + lefts
        self._epoch = epoch
        self._rows = torch.from_numpy(order.rows(epoch)).to(self.where.device)
        self._corners = corners.to(self.where.device)

    def _cropped(self, pixels: Tensor, part: slice) -> Tensor:
        """A part of the epoch, cropped and flipped; [n, H, W, C] uint8, on the device of `pixels`."""
        if not self.order.augment:
            return pixels
        canvas, (n, size, _, channels) = self._canvas, pixels.shape
        inside = slice(self.dataset.crop_padding, self.dataset.crop_padding + size)
        canvas[0, :n, inside, inside] = pixels
        # torch flips images that are stored channels last quickly, and only those.
        canvas[1, :n, inside, inside] = pixels.permute(0, 3, 1, 2).flip(3).permute(0, 2, 3, 1)
        rows = self._corners[part, None] + self._starts[:n]
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
        return (images[:, None] * self.side**2 + rows * self.side).to(self.where.device)

    def _normalised(self, pixels: Tensor) -> Tensor:
        """[n, H, W, C] float32; whole rows of pixels at once, which is faster than three channels."""
        n, height, width, channels = pixels.shape
        rows = pixels.to(self.where.device, non_blocking=True).to(torch.float32).view(n * height, width * channels)
        return rows.sub_(self.mean.repeat(width)).div_(self.std.repeat(width)).view(n, height, width, channels)


def _decode_step(split: Split, order: Order, share: Share, step: int) -> Tensor:
    epoch, part = order.locate(step)
    seed = int(np.random.SeedSequence([order.seed, step]).generate_state(1)[0]) if order.augment else None
    return torch.from_numpy(split.images(order.indices[order.rows(epoch)[share.rows(part)]], seed))


def halves(split: Split, seed: int) -> tuple[Indices, Indices]:
    """Two disjoint halves of a training set, with equal shares of every class: for weights, and for widths."""
    draw = np.random.default_rng([seed, zlib.crc32(b"halves")])
    classes = (draw.permutation(np.flatnonzero(split.labels == label)) for label in np.unique(split.labels))
    first, second = zip(*(np.array_split(members, 2) for members in classes), strict=True)
    return np.sort(np.concatenate(first)), np.sort(np.concatenate(second))


def with_crop(dataset: Dataset, share: float | None, epochs: float) -> Dataset:
    """The data set with a share of its padding for random crops.

    Args:
        share: None for one that grows with the epochs. A binary network underfits for long, so crops cost top-1 in a
            short training, and pay only where images are seen often (benchmarks/recipe.py).
        epochs: how often an image is seen.
    """
    share = min(1.0, epochs / FULL_CROP_EPOCHS) if share is None else share
    return replace(dataset, crop_padding=round(share * dataset.crop_padding))


def whole(dataset: Dataset, split: Split, where: Place, workers: int) -> Batches:
    """A split in order, without augmentation, every image of it in every process, for evaluation."""
    order = Order(np.arange(len(split)), EVALUATION_BATCH, seed=0, purpose="evaluation", shuffle=False, augment=False)
    return Batches(dataset, split, order, replace(where, share=ALONE), workers)
