"""What search and train share: where torch runs, batches, the optimiser, evaluation.

All randomness is counted, not carried: the batch of step s, or the noise of a named draw at step
s, follows from the seed and s alone. So the position of a run is one number, and a resumed run
sees exactly what an uninterrupted one does.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dmsflow import loss
from dmsflow.datasets import Dataset, Split
from dmsflow.errors import DmsflowError
from dmsflow.model import Live, Model
from dmsflow.settings import Record

Indices = NDArray[np.int64]

EVALUATION_BATCH = 250
NO_MEMORY = ("out of memory", "can't allocate memory")  # as torch says it, of a GPU and of this machine
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@dataclass(frozen=True)
class Place:
    """Where and how torch computes."""

    device: torch.device
    threads: int
    mixed: bool
    compiled: bool = False

    def facts(self) -> dict[str, Any]:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return {"torch_device": name, "threads": self.threads, "mixed": self.mixed, "compiled": self.compiled}


def place(settings: Record) -> Place:
    """Set torch up as the settings say.

    Raises:
        DmsflowError: the device is unknown or absent.
    """
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DmsflowError(
            f"--device {name}", "is not here", "use auto, cpu, or a device that torch can use"
        ) from error
    threads = settings.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    _keep_freed_memory()
    torch.backends.cudnn.benchmark = device.type == "cuda"
    mixed = settings.mixed == "on" or (settings.mixed == "auto" and _has_bfloat16(device))
    compiled = settings.compile == "on" or (settings.compile == "auto" and _compiles(device))
    return Place(device, threads, mixed, compiled)


@contextmanager
def within_memory() -> Iterator[None]:
    """Raise DmsflowError where there is no memory, a GPU's or this machine's, for what is done inside."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        why = str(error).partition("\n")[0]
        if isinstance(error, RuntimeError) and not any(words in why for words in NO_MEMORY):
            raise
        raise DmsflowError(
            "memory", f"does not suffice ({why})", "lower --batch-size, or give another --device"
        ) from error


def _keep_freed_memory() -> None:
    """Have glibc keep it: given back after every step, it is mapped again, page by page."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # no more is allowed
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


def _has_bfloat16(device: torch.device) -> bool:
    """Whether a step is quicker in bfloat16 there than in float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    facts = Path("/proc/cpuinfo")
    return device.type == "cpu" and facts.exists() and quick_bfloat16(facts.read_text())


def quick_bfloat16(cpuinfo: str) -> bool:
    """Whether the processor that Linux describes so is quicker in bfloat16.

    AMD's is with AVX-512, Intel's with AMX alone: a Xeon whose AMX a virtual machine hides takes 1.4 times
    as long as with float32 (benchmarks/train_step.py).
    """
    known = set(cpuinfo.split())
    return "amx_bf16" in known or {"avx512_bf16", "AuthenticAMD"} <= known


def _compiles(device: torch.device) -> bool:
    """Whether it is a GPU that torch compiles for: Triton knows none before Volta."""
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= (7, 0)
        and importlib.util.find_spec("triton") is not None
    )


def generator(seed: int, purpose: str, *position: int) -> torch.Generator:
    """A CPU generator for one draw; different for every purpose and position."""
    entropy = [seed, zlib.crc32(purpose.encode()), *position]
    state = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state & (2**63 - 1))


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
        self, dataset: Dataset, split: Split, indices: Indices, *, size: int, seed: int, purpose: str,
        shuffle: bool, augment: bool, where: Place, workers: int,
    ) -> None:  # fmt: skip
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


def sgd(model: nn.Module, *, learning_rate: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD with weight decay on weights (two or more dimensions) and none on norms, alphas and biases."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    free = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum)


def set_learning_rate(optimiser: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = learning_rate


def weight_step(
    model: Model,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    where: Place,
    live: Live | None = None,
) -> Tensor:
    """One step of SGD on the weights; loss and fraction classified right, [2], still on the device."""
    optimiser.zero_grad(set_to_none=True)
    value, right = loss_of(model, images, labels, where, live)
    value.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    model.constrain()
    return torch.stack([value.detach(), right])


def loss_of(
    model: Model, images: Tensor, labels: Tensor, where: Place, live: Live | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of a batch, and the fraction classified right."""
    return loss.of(model, images, labels, mixed=where.mixed, compiled=where.compiled, live=live)


def check_finite(value: float, where: str) -> None:
    if not np.isfinite(value):
        raise DmsflowError(where, f"the loss became {value}", "lower --learning-rate, or try --mixed off")


@torch.no_grad()
def evaluate(model: Model, batches: Batches, live: Live | None = None) -> tuple[Tensor, Tensor]:
    """Logits [n, classes] and labels [n] in float32, on the CPU, in the order of the split."""
    was_training = model.training
    model.eval()
    parts = [(model(images, live).float().cpu(), labels.cpu()) for images, labels in batches]
    model.train(was_training)
    return torch.cat([logits for logits, _ in parts]), torch.cat([labels for _, labels in parts])


def whole(dataset: Dataset, split: Split, where: Place, workers: int, limit: int | None = None) -> Batches:
    """A split in order, without augmentation, every image of it, for evaluation."""
    indices = np.arange(min(len(split), limit or len(split)))
    return Batches(
        dataset, split, indices, size=EVALUATION_BATCH, seed=0, purpose="evaluation",
        shuffle=False, augment=False, where=where, workers=workers,
    )  # fmt: skip


def top1_percent(logits: Tensor, labels: Tensor) -> float:
    return 100 * float((logits.argmax(1) == labels).double().mean())
