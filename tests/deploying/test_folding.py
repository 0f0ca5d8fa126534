"""What folds into a convolution, in exact fractions, and what does not fold; the forms run in tests/test_integer_graph.py."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_up import MEAN, STD, odd_widths, pixels, plain, trained, with_signs
from msgspec import structs
from test_integer_graph import CHAIN

from dmsflow.deploying import folding, integer_graph
from dmsflow.errors import DmsflowError
from dmsflow.network.architectures import resnet18, vgg11
from dmsflow.network.network import INPUT, Layer, Network, with_stem

# --- thresholds -----------------------------------------------------------------------------------

DYADIC = st.floats(-8, 8, width=32, allow_subnormal=False)
POSITIVE = st.floats(2**-10, 2**10, width=32)


@settings(max_examples=150, deadline=None)
@given(
    gamma=DYADIC,
    beta=DYADIC,
    mu=DYADIC,
    variance=POSITIVE,
    alpha=POSITIVE,
    following=POSITIVE,
    c_in=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_thresholds_in_exact_arithmetic(gamma, beta, mu, variance, alpha, following, c_in, seed):
    """bit(sum) == [gamma (alpha E sum - mu) / sqrt(variance + eps) + beta > alpha' / 2] for every sum there can be."""
    widths = {"a": c_in, "b": 1}
    weights = trained(CHAIN, widths, seed)
    norm = {"weight": [gamma], "bias": [beta], "running_mean": [mu], "running_var": [variance]}
    weights |= {f"norm.{name}": np.array(array) for name, array in norm.items()}
    weights |= {"quantize1.alpha": np.array(alpha), "quantize2.alpha": np.array(following)}
    form = folding.fold(CHAIN, widths, weights, (0,), (1.0,))
    conv = next(op for op in form.ops if op.name == "conv")
    before, magnitude = folding.binarise(weights["conv.weight"].astype(np.float64).transpose(0, 2, 3, 1))
    turned = -1 if (conv.weight != before).any() else 1
    for count in range(-conv.count, conv.count + 1):
        left = Fraction(gamma) * (Fraction(alpha) * Fraction(float(magnitude[0])) * count - Fraction(mu))
        right = Fraction(following) / 2 - Fraction(beta)
        exact = beyond(left, right, Fraction(variance) + Fraction(1e-5), Fraction(beta))
        assume(exact is not None)
        assert (turned * count >= conv.thresholds[0]) == exact


@settings(max_examples=100, deadline=None)
@given(
    gamma=DYADIC,
    beta=DYADIC,
    mu=DYADIC,
    variance=POSITIVE,
    shift=DYADIC,
    relu=st.sampled_from(("", "in front of the norm", "behind it")),
    c_in=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_thresholds_of_signs_in_exact_arithmetic(gamma, beta, mu, variance, shift, relu, c_in, seed):
    """bit(sum) == [gamma (E (2 sum - Σ sign) - mu) / sqrt(variance + eps) + beta > shift], with a ReLU too."""
    network, widths = with_signs(CHAIN), {"a": c_in, "b": 1}
    if relu:
        above = "norm" if relu == "behind it" else "conv"
        layers = [
            structs.replace(each, inputs=("relu",)) if each.inputs == (above,) else each for each in network.layers
        ]
        layers.insert(network.layers.index(network.layer(above)) + 1, Layer(name="relu", op="relu", inputs=(above,)))
        network = structs.replace(network, layers=tuple(layers))
    weights = trained(network, widths, seed)
    norm = {"weight": [gamma], "bias": [beta], "running_mean": [mu], "running_var": [variance]}
    weights |= {f"norm.{name}": np.array(array) for name, array in norm.items()}
    weights |= {"quantize2.shift": np.array([shift])}
    conv = next(op for op in folding.fold(network, widths, weights, (0,), (1.0,)).ops if op.name == "conv")
    before, magnitude = folding.binarise(weights["conv.weight"].astype(np.float64).transpose(0, 2, 3, 1))
    turned = -1 if (conv.weight != before).any() else 1
    for count in range(-conv.count, conv.count + 1):
        value = Fraction(float(magnitude[0])) * (2 * count - int(before.sum()))
        value = max(value, Fraction(0)) if relu == "in front of the norm" else value
        left, right = Fraction(gamma) * (value - Fraction(mu)), Fraction(shift) - Fraction(beta)
        assume(left != right)  # the sum of the signs, times a rounded gain, is part of both: rounding decides a tie
        exact = (
            True
            if relu == "behind it" and shift < 0
            else beyond(left, right, Fraction(variance) + Fraction(1e-5), Fraction(beta))
        )
        assume(exact is not None)
        assert (turned * count >= conv.thresholds[0]) == exact


def beyond(left, right, square, beta):
    """left > right * sqrt(square), or None where float64 cannot tell the two apart, or left is lost beside beta."""
    if left and left**2 <= Fraction(1, 10**24) * beta**2 * square:
        return None
    a, b = left * abs(left), right * abs(right) * square
    if abs(a - b) <= Fraction(1, 10**9) * max(abs(a), abs(b)) and a != b:
        return None
    return a > b if right or left else False


def test_a_value_at_half_alpha_is_off():
    assert folding._compute_thresholds(np.array([0.5, 0.25]), np.array([0.0, 0.5]), 1.0, 10).tolist() == [3, 3]


def test_scale_zero_is_always_on_or_never():
    limits = folding._compute_thresholds(np.array([0.0, 0.0, 1e-320]), np.array([2.0, 0.5, 0.5]), 1.0, 10)
    assert limits.tolist() == [-10, 10, 10]


def test_a_dead_channel_runs():
    widths = {"a": 3, "b": 2}
    weights = trained(CHAIN, widths)
    weights["norm.weight"][:] = 0
    weights["norm.bias"][:] = [-1e9, 1e9]
    form = folding.fold(CHAIN, widths, weights, (0,), (1.0,))
    conv = next(op for op in form.ops if op.name == "conv")
    assert conv.thresholds.tolist() == [conv.count + 1, -conv.count - 1]


# --- the stem ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 1e9, np.nan])
def test_the_stem_is_exact_in_any_order(kernel, size, ratio):
    """Down to the threshold: `threshold - 1 - sum` is what a file computes, at any point of the sum."""
    random = np.random.default_rng(0)
    weight = size * random.standard_cauchy((9, kernel, kernel, 3))
    weight[0] = 0
    reach = np.array([130.0, 255.0, 141.0])
    largest = (abs(weight) * reach).sum((1, 2, 3))
    whole, step = folding.round_filters(weight, reach, ratio * largest)
    assert (whole == np.rint(whole)).all() and not np.signbit(whole[whole == 0]).any()
    assert (abs(whole * step[:, None, None, None] - weight) <= step[:, None, None, None] / 2).all()
    products = (np.sign(whole) * whole * reach).reshape(9, -1)  # of the image that drives each filter furthest
    threshold = np.floor(min(ratio if ratio == ratio else 1, 1) * largest / step) + 2
    furthest = products.sum(1) + threshold
    assert furthest.max() <= 2**24
    assert (
        furthest[1:].min() > integer_graph.LARGEST_SUM / 4
    )  # to a factor of two and the rounding the finest grid that there is
    terms = np.concatenate([products, threshold[:, None]], 1)
    for _ in range(5):
        order = random.permutation(terms.shape[1])
        assert (terms[:, order].astype(np.float32).cumsum(1, dtype=np.float32)[:, -1] == furthest).all()


@pytest.mark.parametrize("build", [vgg11.build, resnet18.build])
def test_a_rounded_stem_is_exported_as_it_is(build):
    """With a real data set's std, and after the round trip through float32."""
    std = (62.99, 62.09, 66.7)
    network = build(3, 32, 10)
    widths, images = odd_widths(network, 5), pixels(network, 40)
    weights = trained(network, widths, 5)
    stem = network.layers[0].name + ".weight"
    weights[stem] = np.random.default_rng(5).normal(size=weights[stem].shape).astype(np.float32)
    plain(network, weights, images, calibrate=True, std=std)
    rounded = folding.round_weights(network, widths, weights, MEAN, std)
    assert rounded.keys() == weights.keys() and rounded[stem].dtype == np.float32
    np.testing.assert_allclose(rounded[stem], weights[stem], atol=2e-3)
    first, again = (folding.fold(network, widths, given, MEAN, std).ops[0] for given in (weights, rounded))
    np.testing.assert_array_equal(again.weight, first.weight)
    form = folding.fold(network, widths, rounded, MEAN, std)
    moved = abs(integer_graph.compute_logits(form, images) - plain(network, rounded, images, std=std)).max(1) > 1e-3
    assert moved.sum() <= (0 if build is vgg11.build else 1)


@pytest.mark.parametrize("build", [vgg11.build, resnet18.build])
def test_weights_rounded_to_8_bits_are_exported_as_they_are(build):
    network = with_stem(build(3, 32, 10), "int8")
    widths, mean, std = odd_widths(network, 5), (121,) * 3, (64.3,) * 3
    weights = trained(network, widths, 5)
    rounded = folding.round_weights(network, widths, weights, mean, std)
    first, again = (folding.fold(network, widths, given, mean, std).ops for given in (weights, rounded))
    for op, twin in ((first[0], again[0]), (first[-1], again[-1])):
        assert op.weight.dtype == np.int8 and abs(op.weight).max() == 127
        np.testing.assert_array_equal(op.weight, twin.weight)
    np.testing.assert_allclose(again[-1].float_weight, rounded[f"{network.layers[-1].name}.weight"], rtol=1e-6)


# --- refusals -----------------------------------------------------------------------------------------


def refusal(network, weights, mean=MEAN, std=STD):
    with pytest.raises(DmsflowError) as caught:
        folding.fold(network, network.widths, weights, mean, std)
    return str(caught.value)


def test_a_negative_scale_behind_a_max_pool_is_refused():
    network = vgg11.build(3, 32, 10)
    weights = trained(network, network.widths)
    weights["norm3.weight"][2] = -0.5
    assert (
        refusal(network, weights) == "norm3: has a negative scale behind a max pool; train again: it must be positive"
    )


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("quantize2.alpha", lambda alpha: 0 * alpha, "quantize2.alpha: is 0; train again: it must be above 0"),
        (
            "conv3.weight",
            lambda weight: weight[1:],
            "conv3.weight: has shape [63, 64, 3, 3], but the widths need [64, 64, 3, 3]; export with the manifest that train wrote",
        ),
        (
            "norm1.bias",
            lambda bias: bias * np.nan,
            "norm1.bias: has values that are not finite; train again, with a smaller learning rate",
        ),
        (  # a signalling NaN, of which NumPy warns as it casts
            "norm2.bias",
            lambda bias: np.full(bias.shape, 0x7FA00000, np.uint32).view(np.float32),
            "norm2.bias: has values that are not finite; train again, with a smaller learning rate",
        ),
        (
            "norm1.running_var",
            lambda var: -var,
            "norm1.running_var: is negative; export with the weights that train wrote",
        ),
        (
            "norm7.weight",
            lambda weight: np.full_like(weight, 1e38),
            "norm7.weight: has 1e+38; train again, with a smaller learning rate",
        ),
    ],
)
def test_bad_weights_are_refused(name, change, expected):
    network = vgg11.build(3, 32, 10)
    weights = trained(network, network.widths)
    with np.errstate(over="ignore"):
        weights[name] = change(weights[name].astype(np.float64))
    assert refusal(network, weights) == expected


def test_a_missing_weight_is_refused():
    network = vgg11.build(3, 32, 10)
    weights = trained(network, network.widths)
    del weights["norm1.bias"]
    assert (
        refusal(network, weights)
        == "norm1.bias: is not among the trained weights; export with the manifest that train wrote"
    )


def test_a_broken_mean_is_refused():
    network = vgg11.build(3, 32, 10)
    weights = trained(network, network.widths)
    assert refusal(network, weights, mean=(125.5, 123, 114)).startswith(
        "the data set's mean and std: are [125.5, 123.0, 114.0]"
    )
    assert "an integer mean and a positive std" in refusal(network, weights, std=(1.0, 0.0, 1.0))


@pytest.mark.parametrize("alpha", [4, 12, 13])
def test_a_relu6_in_front_of_a_quantizer_keeps_its_limit(alpha: float) -> None:
    """Nothing exceeds 6: with alpha / 2 of 6 or more no bit is on."""
    layers = (
        Layer(name="stem", op="conv", inputs=(INPUT,), width="a"),
        Layer(name="relu6", op="relu6", inputs=("stem",)),
        Layer(name="quantize", op="quantize", inputs=("relu6",)),
        Layer(name="conv", op="binary_conv", inputs=("quantize",), width=1, kernel=2),
        Layer(name="dense", op="dense", inputs=("conv",), width=2),
    )
    network = Network(name="n", channels=1, resolution=2, classes=2, widths={"a": 1}, layers=layers)
    weights = trained(network, network.widths) | {"quantize.alpha": np.float32(alpha)}
    weights["stem.weight"] = np.full((1, 1, 1, 1), 0.25, np.float32)
    graph = folding.fold(network, network.widths, weights, (0,), (1.0,))
    images = np.array([[[[16]], [[8]]], [[[255]], [[255]]]], np.uint8).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(
        integer_graph.compute_logits(graph, images), plain(network, weights, images, mean=(0,), std=(1,)), atol=1e-5
    )
    bits = integer_graph.compute_op(graph.ops[0], images.astype(np.float32))
    assert bits.ravel().tolist() == ([True, False, True, True] if alpha < 12 else [False] * 4)
