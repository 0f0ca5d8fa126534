"""A written file beside the network that it must compute, on real test images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dmsflow import plugin, terminal
from dmsflow.datasets import Split
from dmsflow.errors import DmsflowError

MOVED = 1e-3  # largest difference of a logit between the file and the deploy form

TURNED_PERCENT = 1.0  # of images may change class between a float32 file and the network as it was trained

BATCH = 64  # images fetched from a split at once

Images = NDArray[np.uint8]  # [N, H, W, C]

Logits = NDArray[np.float32]  # [N, classes]


@dataclass(frozen=True)
class Check:
    """What was found on the first test images.

    Attributes:
        images: how many.
        difference: the largest of any logit between the file and the deploy form; None for a float
            file, which has no deploy form.
        compared, agreeing, moved: images whose trained logits are known; those of them where the
            file finds the same class; those where a logit differs by more than MOVED.
    """

    images: int
    difference: float | None
    compared: int
    agreeing: int
    moved: int


Reference = Callable[[Images], Logits]


def _check(runner: str, path: Path, reference: Reference | None, test: Split, trained: Logits, count: int) -> Check:
    """Run the file on the first `count` test images.

    Raises:
        DmsflowError: its logits are not those it must give.
    """
    count = min(count, len(test))
    session = plugin.load("runners", runner).open(path, 1)
    if (shape := test.images(np.array([0])).shape) != session.input_shape:
        what = f"has images {list(shape[1:])}, and the network takes {list(session.input_shape[1:])}"
        raise DmsflowError("the data set", what, "use the one of the search")
    found: list[Logits] = []
    wanted: list[Logits] = []
    with terminal.track("export: check", total=count, unit="image") as track:
        for begin in range(0, count, BATCH):
            images = test.images(np.arange(begin, min(begin + BATCH, count)))
            found += [session.run(image[None].astype(np.float32)) for image in images]
            wanted += [reference(images)] if reference else []
            track.advance(len(images))
    logits = np.concatenate(found)
    difference = _check_equal(path.name, logits, np.concatenate(wanted)) if wanted else None
    compared = min(len(trained), count)
    agreeing, moved = _compare(logits[:compared], trained[:compared])
    if reference is None and 100 * (compared - agreeing) > TURNED_PERCENT * compared:
        what = f"finds another class than the trained network on {compared - agreeing} of {compared} images"
        raise DmsflowError(path.name, what, "report this: the exporter is wrong")
    return Check(images=count, difference=difference, compared=compared, agreeing=agreeing, moved=moved)


def _check_equal(name: str, logits: Logits, wanted: Logits) -> float:
    """The largest difference; an error if any image moved."""
    agreeing, moved = _compare(logits, wanted)
    difference = float(abs(logits - wanted).max())
    if moved or agreeing < len(wanted):
        what = f"gives other logits than the deploy form on {moved} of {len(wanted)} images (up to {difference:.3g}), and another class on {len(wanted) - agreeing}"
        raise DmsflowError(name, what, "report this: the exporter or the runtime is wrong")
    return difference


def _compare(logits: Logits, wanted: Logits) -> tuple[int, int]:
    """Images of the same class, and images with a logit that differs by more than MOVED or is no number."""
    near = (abs(logits - wanted) <= MOVED).all(1)
    return int((logits.argmax(1) == wanted.argmax(1)).sum()), int((~near).sum())
