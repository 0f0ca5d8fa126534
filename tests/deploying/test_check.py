"""Where sums of floats decide bits: what may differ from the integer graph, and what may not."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from made_up import MEAN, STD, pixels, trained

from dmsflow import manifest
from dmsflow.deploying import check, export, folding, integer_graph
from dmsflow.errors import DmsflowError
from dmsflow.manifest import Flow, load_manifest
from dmsflow.network.architectures import resnet18
from dmsflow.network.network import INPUT, Layer, Network
from dmsflow.settings import ExportSettings

AVERAGED = Network(
    name="averaged",
    channels=3,
    resolution=9,
    classes=5,
    widths={"a": 24, "b": 40},
    layers=(
        Layer(name="stem", op="conv", inputs=(INPUT,), width="a", kernel=3),
        Layer(name="norm", op="batch_norm", inputs=("stem",)),
        Layer(name="relu", op="relu", inputs=("norm",)),
        Layer(name="average", op="average_pool", inputs=("relu",)),
        Layer(name="scaled", op="batch_norm", inputs=("average",)),
        Layer(name="quantize", op="quantize", inputs=("scaled",)),
        Layer(name="hidden", op="binary_conv", inputs=("quantize",), width="b"),
        Layer(name="dense", op="dense", inputs=("hidden",), width=5),
    ),
)


def fold(network, seed=0, count=40):
    images = pixels(network, count, seed)
    weights = trained(network, network.widths, seed, images=images)
    return folding.fold(network, network.widths, weights, MEAN, STD), images


def shuffled_average(x, order):
    """In float32, one pixel after another in some order, as some runtime might add them."""
    rows, total = x.reshape(len(x), -1, x.shape[-1])[:, order], np.zeros((len(x), x.shape[-1]), np.float32)
    for row in range(rows.shape[1]):
        total = total + rows[:, row]
    return (total * np.float32(1 / rows.shape[1]))[:, None, None]


def test_bits_without_sums_of_floats_have_no_margin():
    form, images = fold(resnet18.build(3, 16, 10), count=4)
    logits, margins = integer_graph.compute_with_margins(form, images)
    assert np.isinf(margins).all()
    np.testing.assert_array_equal(integer_graph.compute_logits(form, images), logits.astype(np.float32))


def test_the_margin_is_that_of_the_value_nearest_to_its_threshold():
    form, images = fold(AVERAGED)
    quantize = next(op for op in form.ops if op.name == "quantize")
    scaled = {}
    compute_op = integer_graph.compute_op

    def watched(op, *inputs):
        scaled[op.name] = compute_op(op, *inputs)
        return scaled[op.name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integer_graph, "compute_op", watched)
        before = integer_graph.compute_with_margins(form, images[:1])[1]
        value = scaled["scaled"].reshape(-1)[7]
        moved = msgspec.structs.replace(quantize, threshold=np.float32(value))
        near = msgspec.structs.replace(form, ops=tuple(moved if op is quantize else op for op in form.ops))
        after = integer_graph.compute_with_margins(near, images[:1])[1]
    assert before > 10 and after < 1  # the threshold is now that value, to float32


@pytest.mark.parametrize("seed", range(5))
def test_no_order_of_a_sum_is_beyond_its_bound(seed, monkeypatch):
    form, images = fold(AVERAGED, seed)
    random, compute_op, bound = np.random.default_rng(seed), integer_graph.compute_op, integer_graph._bound_error
    errors = {}
    monkeypatch.setattr(integer_graph, "_bound_error", lambda op, *rest: errors.setdefault(op.name, bound(op, *rest)))
    exact, rounded = {}, {}

    def both(op, *inputs):
        exact[op.name] = compute_op(op, *inputs)
        own = [rounded.get(name, inputs[place]) for place, name in enumerate(op.inputs)]
        if isinstance(op, integer_graph.AveragePool):
            rounded[op.name] = shuffled_average(own[0], random.permutation(49))
        else:
            rounded[op.name] = compute_op(op, *own)
        return exact[op.name]

    monkeypatch.setattr(integer_graph, "compute_op", both)
    integer_graph.compute_with_margins(form, images)
    assert exact["scaled"].dtype == np.float64 and rounded["scaled"].dtype == np.float32
    off = abs(exact["scaled"] - rounded["scaled"])
    assert off.max() > 0 and (off <= errors["scaled"]).all()
    assert (off > errors["scaled"] / 100).any()  # and the bound is not far too large


@pytest.mark.parametrize("kind", [integer_graph.FloatConv, integer_graph.DepthwiseConv])
@pytest.mark.parametrize("seed", range(3))
def test_no_order_of_a_convolution_is_beyond_its_bound(kind: type[Any], seed: int) -> None:
    """One product after another, in any order, each rounded to float32; and what it reads is off itself."""
    random = np.random.default_rng(seed)
    reads = 1 if kind is integer_graph.DepthwiseConv else 24
    weight = random.normal(size=(24, 3, 3, reads)).astype(np.float32)
    bias = random.normal(size=24).astype(np.float32)
    conv = kind(name="conv", inputs=("x",), weight=weight, bias=bias, stride=1, padding=0)
    exact = random.normal(size=(40, 3, 3, 24))
    rounded = exact.astype(np.float32)
    y = integer_graph.compute_op(conv, exact)
    error = integer_graph._bound_error(conv, y, [exact], [abs(rounded - exact)])
    windows = rounded[..., None] if reads == 1 else rounded[:, :, :, None, :].repeat(24, 3)  # [N, 3, 3, 24, reads]
    products = (windows * weight.transpose(1, 2, 0, 3)).transpose(1, 2, 4, 0, 3).reshape(-1, 40, 24)
    total = np.zeros((40, 24), np.float32)
    for product in products[random.permutation(len(products))]:
        total = total + product
    off = abs((total + bias)[:, None, None].astype(np.float64) - y)
    assert off.max() > 0 and (off <= error).all() and (off > error / 100).any()


# --- what the export does with it -----------------------------------------------------------------

LOGITS = np.eye(4, dtype=np.float32)[np.arange(200) % 4] * 10


def compare(moved, margins, percent=1.0, by=1.0):
    found = LOGITS.copy()
    found[moved] += np.float32(by) * np.array([1, 0, 0, 0], np.float32)
    return check.compare_with_graph("file", found, LOGITS.astype(np.float64), margins, percent)


def test_close_images_are_counted_and_may_differ():
    margins = np.full(200, 5.0)
    margins[[3, 50, 51]] = 0.5, 0.25, 0.75
    metrics, line = compare([3, 50], margins)
    assert (metrics["close_images"], metrics["close_moved_images"], metrics["smallest_margin"]) == (3, 2, 0.25)
    assert metrics["deploy_form_largest_logit_difference"] == 0
    assert "3 of 200 images have a value within rounding of its threshold, and 2 of these other logits" in line
    assert "image 3 (0.5) and image 50 (0.25)" in line


def test_more_than_the_allowed_percentage_fails():
    margins = np.full(200, 0.5)
    message = r"3 of these other logits: image 1 \(0.5\), .*; allow it with --close-percent 1.5"
    with pytest.raises(DmsflowError, match=message):
        compare([1, 2, 3], margins)
    assert compare([1, 2, 3], margins, 1.5)[0]["close_moved_images"] == 3


def test_an_image_that_rounding_cannot_explain_fails():
    margins = np.full(200, 0.5)
    margins[9] = 1.5
    with pytest.raises(DmsflowError, match="other logits than the integer graph on 1 of 200 images"):
        compare([9], margins, 100)
    compare([9], margins, 100, by=5e-4)  # a ten-thousandth of 10 is 1e-3
    with pytest.raises(DmsflowError, match="other logits"):
        compare([9], margins, 100, by=5e-3)


def test_where_integers_decide_no_image_may_differ():
    with pytest.raises(DmsflowError, match="other logits than the integer graph on 1 of 200 images"):
        compare([9], np.full(200, np.inf), 100, by=2e-3)


@pytest.mark.slow
def test_the_option_decides_whether_the_file_is_kept(tmp_path, write_train_manifest, monkeypatch):
    source = write_train_manifest(tmp_path)
    right = integer_graph.compute_with_margins

    def differs(graph, images):
        logits, margins = right(graph, images)
        logits[0] += np.arange(10)
        return logits, np.where(np.arange(len(margins)) == 0, 0.5, 2)

    monkeypatch.setattr(integer_graph, "compute_with_margins", differs)
    settings = ExportSettings(target="onnx", check_images=10)
    with pytest.raises(DmsflowError, match="allow it with --close-percent 10"):
        export.run_stage(source, settings, tmp_path / "out", Flow(("x",)))
    assert list((tmp_path / "out").iterdir()) == []
    allowed = msgspec.structs.replace(settings, close_percent=10)
    written = load_manifest(export.run_stage(source, allowed, tmp_path / "out", Flow(("x",))))
    assert written.metrics["close_moved_images"] == 1
    manifest.verify(tmp_path / "out" / "export.json", written.artifacts["model"])
