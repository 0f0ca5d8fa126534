"""Top-1 of a model file, found on this machine by a runner that works here, wherever the file is timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dmsflow import datasets, plugin, terminal
from dmsflow.datasets import Split, image_folder
from dmsflow.datasets._folders import list_images
from dmsflow.errors import DmsflowError
from dmsflow.measuring.subject import Subject
from dmsflow.modelfile import runners
from dmsflow.settings import BenchSettings

BATCH = 64  # images fetched from a split at once


def judge(subject: Subject, settings: BenchSettings) -> str | None:
    """The runner that finds top-1 on this machine; None: nothing to find, or nobody asked.

    Raises:
        DmsflowError: no runner of the file works here; it is told before a device is reached. Or
            images are given for a chain, which has its own.
    """
    if subject.export and settings.images:
        what = f"are not those of {subject.export.data.name}, which {subject.path.name} was exported with"
        raise DmsflowError("--images", what, f"give {subject.path} instead of its manifest, or leave them out")
    if not (settings.accuracy and (subject.export or settings.images)):
        return None
    if settings.images:
        list_images(Path(settings.images))
    wanted = (settings.runner,) if settings.runner else subject.aim.runners
    try:
        return runners.first_usable(wanted)[0]
    except DmsflowError as error:
        if settings.device == "local":
            raise
        what = f"is found on this machine, which cannot run the file ({error})"
        raise DmsflowError("top-1", what, "or leave it out: --no-accuracy") from error


def images_of(subject: Subject, settings: BenchSettings) -> str:
    """Which images they are, in words."""
    return f"the test split of {subject.export.data.name}" if subject.export else f"the images in {settings.images}"


def found(subject: Subject, settings: BenchSettings, runner: str) -> dict[str, Any]:
    """Metrics of the file, on the whole test split or all images of the folder.

    Raises:
        DmsflowError: the images are not of the size or the classes that the file is for.
    """
    session = plugin.load("runners", runner).open(subject.path, 1)
    test = _test_of(subject, settings, session)
    right = 0
    with terminal.track("bench: top-1", total=len(test), unit="image") as track:
        for begin in range(0, len(test), BATCH):
            indices = np.arange(begin, min(begin + BATCH, len(test)))
            right += _right(session, test, indices)
            track.advance(len(indices), note=f"top-1 {100 * right / (indices[-1] + 1):.2f} %")
    return {"top1_percent": 100 * right / len(test), "top1_images": len(test)}


def _test_of(subject: Subject, settings: BenchSettings, session: Any) -> Split:
    """The labelled images; their size and classes are those of the file."""
    shape = session.input_shape
    if subject.export:
        test = datasets.load_dataset(subject.export.data).test
        if (own := test.images(np.array([0])).shape) != shape:
            what = f"has images {list(own[1:])}, and the file takes {list(shape[1:])}"
            where = f"data set {subject.export.data.name}"
            raise DmsflowError(where, what, "use the one of the search, or --no-accuracy")
        return test
    listing = list_images(Path(settings.images or ""))
    found = session.run(np.zeros(shape, np.float32)).size
    if len(shape) != 4 or shape[0] != 1 or shape[1] != shape[2] or shape[3] not in (1, 3) or found < 2:
        what = f"takes {list(shape)} and gives {found} numbers: it tells no classes of square images"
        raise DmsflowError(subject.path, what, "leave out --images")
    if found != len(listing.classes):
        what = f"has {len(listing.classes)} class folders, and the file tells {found} classes"
        raise DmsflowError(
            settings.images, what, "give a folder for each class, in the alphabetical order of the training"
        )
    return image_folder.one_split(listing, shape[1], shape[3])


def _right(session: Any, split: Split, indices: Any) -> int:
    images = split.images(indices).astype(np.float32)
    found = [int(session.run(image[None]).argmax()) for image in images]
    return int((found == split.labels[indices]).sum())
