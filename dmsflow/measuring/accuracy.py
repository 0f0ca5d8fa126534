"""Top-1 of a model file. It is computed on this machine, by a runner that works here, wherever the file is timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dmsflow import datasets, terminal
from dmsflow.datasets import Split, image_folder
from dmsflow.datasets._folders import list_images
from dmsflow.errors import DmsflowError
from dmsflow.measuring.benched import Benched
from dmsflow.modelfile import runners
from dmsflow.plugin import load_plugin
from dmsflow.settings import BenchSettings

BATCH = 64  # images fetched from a split at once


def runner_for(benched: Benched, settings: BenchSettings) -> str | None:
    """The runner that computes top-1 on this machine; None if there are no labelled images, or top-1 is not wanted.

    Raises:
        DmsflowError: no runner of the file works here (known before a device is reached), or images
            are given for a chain, which has its own.
    """
    if benched.export and settings.images:
        what = f"is only for a file without a manifest, and this one was exported for {benched.export.data.name}"
        raise DmsflowError("--images", what, f"leave it out, or give {benched.path} instead of its manifest")
    if not (settings.accuracy and (benched.export or settings.images)):
        return None
    if settings.images:
        list_images(Path(settings.images))
    try:
        return runners.first_usable((settings.runner,) if settings.runner else benched.target.runners)[0]
    except DmsflowError as error:
        if settings.device == "local":
            raise
        what = f"is computed on this machine, which cannot run the file ({error})"
        raise DmsflowError("top-1", what, "give --no-accuracy, or install the runtime here") from error


def measure_top1(benched: Benched, settings: BenchSettings, runner: str) -> dict[str, Any]:
    """Metrics of the file on the whole test split, or on all images of the folder.

    None of them where the file was exported from compact weights, and their data set is not on this machine.

    Raises:
        DmsflowError: the images are not of the size or the classes that the file is for.
    """
    session = load_plugin("runners", runner).open(benched.path, 1)
    try:
        test = _load_images(benched, settings, session)
    except DmsflowError as error:
        if benched.export is None or benched.export.metrics.get("trained_compared_images", 1):
            raise
        terminal.print_line(f"top-1 is not measured: {error}")
        return {}
    correct = 0
    with terminal.track("bench: top-1", total=len(test), unit="image") as track:
        for begin in range(0, len(test), BATCH):
            indices = np.arange(begin, min(begin + BATCH, len(test)))
            images = test.images(indices).astype(np.float32)
            classes = [int(session.run(image[None]).argmax()) for image in images]
            correct += int((classes == test.labels[indices]).sum())
            track.advance(len(indices), note=f"top-1 {100 * correct / (indices[-1] + 1):.2f} %")
    return {"top1_percent": 100 * correct / len(test), "top1_images": len(test)}


def _load_images(benched: Benched, settings: BenchSettings, session: Any) -> Split:
    """The labelled images; their size and classes are those of the file."""
    shape = session.input_shape
    if benched.export:
        data = benched.export.data
        test = datasets.load_dataset(data).test
        if (own := test.images(np.array([0])).shape) != shape:
            what = f"has images {list(own[1:])}, but the file takes {list(shape[1:])}"
            raise DmsflowError(f"data set {data.name}", what, "use the data set of the search, or --no-accuracy")
        return test
    listing = list_images(Path(settings.images or ""))
    outputs = session.run(np.zeros(shape, np.float32)).size
    if len(shape) != 4 or shape[0] != 1 or shape[1] != shape[2] or shape[3] not in (1, 3) or outputs < 2:
        what = f"has the input {list(shape)} and {outputs} outputs: it does not classify square images"
        raise DmsflowError(benched.path, what, "leave out --images")
    if outputs != len(listing.classes):
        what = f"has {len(listing.classes)} class folders, but the file has {outputs} classes"
        right = "give one folder for each class, with the same names as in training"
        raise DmsflowError(settings.images, what, right)
    return image_folder.one_split(listing, shape[1], shape[3])
