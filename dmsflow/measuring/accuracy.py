"""Top-1 of a model file. It is computed on this machine, by a runner that works here, wherever the file is timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmsflow import datasets, terminal
from dmsflow.datasets import Split
from dmsflow.datasets._folders import FileSplit, list_images
from dmsflow.errors import DmsflowError
from dmsflow.measuring.benched import Benched
from dmsflow.modelfile import runners
from dmsflow.modelfile.inputs import from_pixels, inputs_of
from dmsflow.plugin import load_plugin
from dmsflow.settings import BenchSettings

BATCH = 64  # images fetched from a split at once
WHITE = 255  # the largest pixel


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
            correct += int((_classify(session, images) == test.labels[indices]).sum())
            track.advance(len(indices), note=f"top-1 {100 * correct / (indices[-1] + 1):.2f} %")
    return {"top1_percent": 100 * correct / len(test), "top1_images": len(test)}


def _classify(session: Any, images: NDArray[np.float32]) -> NDArray[np.intp]:
    """The classes that a file gives to images; where it takes several a run, zeros fill the last of its batches."""
    (port,) = inputs_of(session)
    batch, classes = port.sizes[0], []
    for begin in range(0, len(images), batch):
        few = images[begin : begin + batch]
        filled = np.zeros(port.sizes, port.dtype)
        filled[: len(few)] = from_pixels(port, few)
        classes.append(session.run(filled).reshape(batch, -1)[: len(few)].argmax(1))
    return np.concatenate(classes)


def _load_images(benched: Benched, settings: BenchSettings, session: Any) -> Split:
    """The labelled images; their size and classes are those of the file."""
    ports = inputs_of(session)
    port, shape = ports[0], ports[0].sizes
    if benched.export:
        data = benched.export.data
        test = datasets.load_dataset(data).test
        if (own := test.images(np.array([0])).shape) != shape:
            what = f"has images {list(own[1:])}, but the file takes {list(shape[1:])}"
            raise DmsflowError(f"data set {data.name}", what, "use the data set of the search, or --no-accuracy")
        return test
    listing = list_images(Path(settings.images or ""))
    if {"train", "test"} == set(listing.classes):
        raise DmsflowError(
            settings.images, "is a whole data set", f"give its test images: {Path(settings.images or '', 'test')}"
        )
    for line in datasets.describe_left_out(listing.left_out):
        terminal.print_line(line)
    classes = session.run(*(np.zeros(each.sizes, each.dtype) for each in ports)).size / max(1, *shape[:1])
    lacking = ""
    if len(ports) > 1 or len(shape) != 4 or shape[1] != shape[2] or shape[3] not in (1, 3) or classes < 2:
        lacking = "it does not classify square images, batch×height×width×channels"
    elif port.dtype == "int8" and port.scale is None:
        lacking = "without a scale, no pixel is an int8"
    if lacking:
        what = f"has the input {' and '.join(map(str, ports))}, and {classes:g} outputs for it: {lacking}"
        raise DmsflowError(benched.path, what, "leave out --images")
    if classes != len(listing.classes):
        what = f"has {len(listing.classes)} class folders, but the file has {classes:g} classes"
        right = "give one folder for each class, with the same names as in training"
        raise DmsflowError(settings.images, what, right)
    if port.scale and (largest := port.scale * (np.iinfo(port.dtype).max - (port.zero_point or 0))) < WHITE:
        what = f"by its scale and zero point the input holds no more than {largest:.3g}: larger pixels are clipped"
        terminal.print_line(f"{benched.path.name}: {what}")
    return FileSplit(listing, shape[1], shape[1], shape[3])
