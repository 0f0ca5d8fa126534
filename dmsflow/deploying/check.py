"""Compares a written file with the network that it must compute, on real test images.

Where sums of floats decide bits, a runtime may round one to the other side of its threshold, and change all behind
it. So the integer graph gives each image a margin (`integer_graph.compute_with_margins`): only an image with one
below 1 may have other logits, and few of all may.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmsflow import plugin, terminal
from dmsflow.datasets import Split
from dmsflow.deploying.integer_graph import BinaryConv, FloatConv, IntegerGraph, Stem
from dmsflow.errors import DmsflowError
from dmsflow.modelfile.inputs import from_pixels, inputs_of

TOLERANCE = 1e-3  # of a logit: dense layers and averages add floats in an order of their own
RELATIVE_TOLERANCE = 1e-4  # of the largest logit, at least 1, of networks with such sums in front of binary layers
MOST_CHANGED_PERCENT = 1.0  # of images that a float32 file may put into another class than the trained network
BATCH_SIZE = 64  # images fetched from a split at once

Images = NDArray[np.uint8]  # [N, H, W, C]
Logits = NDArray[np.float32]  # [N, classes]
Reference = Callable[[Images], tuple[NDArray[np.float64], NDArray[np.float64]]]  # logits, and the margin of each image


def check_packed(exporter: Any, graph: IntegerGraph, path: Path) -> None:
    """Check that every binary convolution is an op on packed bits, and no other a float convolution.

    Raises:
        DmsflowError: the file has another number of either.
    """
    counts = exporter.count_ops(path)
    for op, kind in ((exporter.PACKED_CONV, BinaryConv), (exporter.FLOAT_CONV, (Stem, FloatConv))):
        wanted, count = sum(isinstance(one, kind) for one in graph.ops), counts.get(op, 0)
        if count != wanted:
            what = f"has {count} ops of kind {op!r}, but the network has {wanted} such layers"
            raise DmsflowError(path.name, what, "report this: it is a bug of the exporter")


def check_file(
    runner: str,
    path: Path,
    reference: Reference | None,
    test: Split,
    trained: Logits,
    count: int,
    allowed_percent: float = MOST_CHANGED_PERCENT,
) -> tuple[dict[str, Any], list[str]]:
    """Run a file on the first `count` test images; metrics for the manifest, and a line on each comparison.

    Args:
        reference: what it must compute; None for a network trained in float32, which the file must resemble.
        test: the images.
        trained: logits of the first of them, as the trained network gave them.
        allowed_percent: of the images, how many may differ from the reference because a value lies within rounding of
            its threshold; without a reference, how many may be in another class than the trained network's.

    Raises:
        DmsflowError: the file does not take such images, or its logits are not those it must give.
    """
    count = min(count, len(test))
    session = plugin.load_plugin("runners", runner).open(path, 1)
    (port,) = inputs_of(session)
    if (shape := test.images(np.array([0])).shape) != session.input_shape:
        what = f"has images {list(shape[1:])}, but the network takes {list(session.input_shape[1:])}"
        raise DmsflowError("the data set", what, "use the data set of the search")
    parts, expected = list[Logits](), list[Any]()
    with terminal.track("export: check", total=count, unit="image") as track:
        for begin in range(0, count, BATCH_SIZE):
            images = test.images(np.arange(begin, min(begin + BATCH_SIZE, count)))
            parts += [session.run(from_pixels(port, image[None])) for image in images]
            expected += [reference(images)] if reference else []  # pairs
            track.advance(len(images))
    logits, lines = np.concatenate(parts), []
    metrics: dict[str, Any] = {"check_images": count}
    if reference:
        wanted, margins = (np.concatenate(each) for each in zip(*expected, strict=True))
        found, line = compare_with_graph(path.name, logits, wanted, margins, allowed_percent)
        metrics |= found
        lines.append(line)
    compared = min(len(trained), count)
    same_class, moved = compare_logits(logits[:compared], trained[:compared])
    if not reference and 100 * (compared - same_class) > allowed_percent * compared:
        what = f"predicts another class than the trained network on {compared - same_class} of {compared} images"
        right = "report this: it is a bug of the exporter"
        if allowed_percent > MOST_CHANGED_PERCENT:
            right = "train longer, or keep float32 (--target onnx): rounding costs this network too much"
        raise DmsflowError(path.name, what, right)
    metrics |= {"trained_compared_images": compared, "trained_moved_images": moved}
    if compared:
        metrics["trained_agreement_percent"] = 100 * same_class / compared
        what = (
            f"{same_class} of {compared} in the same class, {moved} with a logit that differs by more than {TOLERANCE}"
        )
        lines.append(f"compared with the trained network: {what}")
    return metrics, lines


def compare_with_graph(
    name: str, logits: Logits, wanted: Any, margins: Any, close_percent: float
) -> tuple[dict[str, Any], str]:
    """Metrics, and a line, of a file's logits beside those of the integer graph."""
    is_close, count = margins < 1, len(logits)
    tolerance = TOLERANCE
    if np.isfinite(margins).any():
        tolerance = RELATIVE_TOLERANCE * np.maximum(abs(wanted).max(1, keepdims=True), 1)
    equal = (abs(logits - wanted) <= tolerance).all(1)
    same_class = logits.argmax(1) == wanted.argmax(1)
    moved = ~(equal & same_class)
    difference = float(abs(logits - wanted)[~(moved & is_close)].max(initial=0))
    if (wrong := moved & ~is_close).any():
        what = f"has other logits than the integer graph on {(~equal & wrong).sum()} of {count} images (they differ by "
        what += f"up to {difference:.3g}), and another class on {(~same_class & wrong).sum()}"
        raise DmsflowError(name, what, "report this: it is a bug of the exporter or the runtime")
    metrics: dict[str, Any] = {"deploy_form_largest_logit_difference": difference}
    line = f"{count - moved.sum()} images: equal to the integer graph, no logit differs by more than {difference:.1e}"
    if not np.isfinite(margins).any():
        return metrics, line
    closest = [f"image {index} ({margins[index]:.2g})" for index in np.flatnonzero(moved)]
    what = (
        f"{is_close.sum()} of {count} images have a value within rounding of its threshold, and {moved.sum()} of these "
    )
    what += "other logits" + (
        f": {terminal.list_names(closest)}, in parts of what rounding explains" if closest else ""
    )
    if 100 * moved.sum() > close_percent * count:
        share = 100 * moved.sum() / count
        right = f"allow it with --close-percent {share:.3g}, or train longer, so that fewer values are near"
        raise DmsflowError(name, what, right)
    metrics |= {"close_images": int(is_close.sum()), "close_moved_images": int(moved.sum())}
    return {**metrics, "smallest_margin": float(margins.min())}, f"{line}; {what}"


def compare_logits(logits: Logits, wanted: Logits) -> tuple[int, int]:
    """How many images have the same class, and how many a logit that differs by more than TOLERANCE or is NaN."""
    near = (abs(logits - wanted) <= TOLERANCE).all(1)
    return int((logits.argmax(1) == wanted.argmax(1)).sum()), int((~near).sum())
