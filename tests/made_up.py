"""Trained networks, made up, and every op as it is defined, in float64: what files are compared with."""

from __future__ import annotations

import numpy as np
from msgspec import structs

from dmsflow.network.network import INPUT, Layer, Network, out_widths, value, weight_shape

MEAN, STD = (125, 123, 114), (64.0, 32.0, 64.0)  # powers of two: the stem's weights then lie on its grid
FLOAT_CONVS = ("conv", "depthwise_conv")


def odd_widths(network, seed):
    random = np.random.default_rng(seed)
    return {name: int(base * random.uniform(0.3, 2.2)) | 1 for name, base in network.widths.items()}


def trained(network, widths, seed=0, magnitude=1.0, images=None, mean=MEAN, std=STD):
    """Random weights; batch norms calibrated on `images`, alphas of about `magnitude`."""
    random = np.random.default_rng(seed)
    keys = out_widths(network)
    weights = {}
    for layer in network.layers:
        c_out, c_in = value(widths, keys[layer.name]), value(widths, keys[layer.inputs[0]])
        shape = (c_out, c_in, layer.kernel, layer.kernel)
        if layer.op == "conv" and INPUT in layer.inputs:
            weights[f"{layer.name}.weight"] = random.integers(-40, 41, shape) / 32
        elif layer.op in FLOAT_CONVS:
            shape = weight_shape(layer, c_in, c_out)
            weights[f"{layer.name}.weight"] = random.normal(0, np.prod(shape[1:]) ** -0.5, shape)
        if layer.op == "binary_conv":
            weights[f"{layer.name}.weight"] = random.normal(0, 0.1, (c_out, c_in // layer.groups, *shape[2:]))
        if layer.op == "dense":
            weights[f"{layer.name}.weight"] = random.normal(0, 1 / magnitude, (c_out, c_in))
            weights[f"{layer.name}.bias"] = random.normal(size=c_out)
        if layer.op == "batch_norm":
            pooled = network.layer(layer.inputs[0]).op == "max_pool"
            sign = 1 if pooled else random.choice([-1, 1], c_out)
            weights[f"{layer.name}.weight"] = magnitude * sign * random.uniform(0.5, 1.5, c_out)
            weights[f"{layer.name}.bias"] = magnitude * random.normal(0, 0.3, c_out)
            weights[f"{layer.name}.running_mean"] = random.normal(size=c_out)
            weights[f"{layer.name}.running_var"] = random.uniform(0.5, 2, c_out)
        if layer.op == "quantize":
            weights[f"{layer.name}.alpha"] = magnitude * random.uniform(0.3, 1.5)
        if layer.op == "prelu":
            weights[f"{layer.name}.slope"] = random.normal(0.2, 0.3, c_out)
            weights[f"{layer.name}.before"] = magnitude * random.normal(0, 0.3, c_out)
            weights[f"{layer.name}.after"] = magnitude * random.normal(0, 0.3, c_out)
        if layer.op == "sign":
            weights[f"{layer.name}.shift"] = magnitude * random.normal(0, 0.3, c_out)
    weights = {name: np.asarray(array, np.float32) for name, array in weights.items()}
    if images is not None:
        plain(network, weights, images, True, mean, std)
    return weights


def with_signs(network):
    """The same network with ±1 in place of {0, alpha}."""
    layers = (structs.replace(each, op="sign") if each.op == "quantize" else each for each in network.layers)
    return structs.replace(network, layers=tuple(layers))


def pixels(network, count, seed=1):
    shape = (count, network.resolution, network.resolution, network.channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def plain(network, weights, images, calibrate=False, mean=MEAN, std=STD):
    """Logits; `calibrate` sets the running statistics of each batch norm to what it sees."""
    mean, std = (np.reshape(part[: network.channels], (-1, 1, 1)) for part in (mean, std))
    tensors = {INPUT: (images.transpose(0, 3, 1, 2) - mean) / std}
    for layer in network.layers:
        x = tensors[layer.inputs[0]]
        if layer.op == "batch_norm" and calibrate:
            weights[f"{layer.name}.running_mean"] = x.mean((0, 2, 3)).astype(np.float32)
            weights[f"{layer.name}.running_var"] = x.var((0, 2, 3)).astype(np.float32)
        own = {
            key.rpartition(".")[2]: array.astype(np.float64)
            for key, array in weights.items()
            if key.rpartition(".")[0] == layer.name
        }
        signs = layer.inputs[0] != INPUT and network.layer(layer.inputs[0]).op == "sign"
        tensors[layer.name] = plain_op(layer, own, [tensors[name] for name in layer.inputs], fill=-signs)
    return tensors[network.layers[-1].name]


def small_network(seed):
    """Random kernels, strides, paddings and pools, and a residual sum at the end."""
    random = np.random.default_rng(seed)
    layers, widths = [], {}

    def add(op, name, *inputs, **fields):
        layers.append(Layer(name=name, op=op, inputs=inputs, **fields))
        return name

    def convolution(op, index, last):
        kernel, stride, pool = int(random.choice([1, 3, 5])), int(random.integers(1, 3)), int(random.integers(3))
        padding = int(random.integers(0, kernel // 2 + 1))
        widths[f"conv{index}"] = int(random.integers(1, 70))
        last = add(op, f"conv{index}", last, width=f"conv{index}", kernel=kernel, stride=stride, padding=padding)
        if pool and stride == 1:  # 2×2 or padded 3×3
            last = add("max_pool", f"pool{index}", last, kernel=pool + 1, stride=2, padding=pool - 1)
        if index == 0 or random.random() < 0.8:
            last = add("batch_norm", f"norm{index}", last)
        return add("relu", f"relu{index}", last) if random.random() < 0.3 else last

    last = convolution("conv", 0, INPUT)
    for index in (1, 2):
        last = convolution("binary_conv", index, add("quantize", f"quantize{index}", last))
    entry = add("quantize", "quantize3", last)
    widths["end"] = int(random.integers(1, 70))
    left = add("batch_norm", "left_norm", add("binary_conv", "left", entry, width="end", kernel=3, padding=1))
    right = add("binary_conv", "right", entry, width="end")
    last = add("average_pool", "average", add("relu", "relu", add("add", "sum", left, right)))
    add("dense", "dense", last, width=7)
    resolution = int(random.integers(30, 40))
    return Network(
        name=f"small{seed}", channels=3, resolution=resolution, classes=7, widths=widths, layers=tuple(layers)
    )


def plain_op(layer, own, inputs, fill=0):
    x = inputs[0]
    if layer.op in ("conv", "binary_conv"):
        weight = own["weight"] if layer.op == "conv" else plain_binary(own["weight"])
        groups = zip(np.split(windows(x, layer, fill), layer.groups, 1), np.split(weight, layer.groups), strict=True)
        return np.concatenate([np.einsum("ncijkl,ockl->noij", *group, optimize=True) for group in groups], 1)
    if layer.op == "depthwise_conv":
        return np.einsum("ncijkl,ckl->ncij", windows(x, layer, 0), own["weight"][:, 0])
    if layer.op == "max_pool":
        return windows(x, layer, -np.inf).max((4, 5))
    if layer.op == "batch_norm":
        gain = own["weight"] / np.sqrt(own["running_var"] + 1e-5)
        return (x - own["running_mean"][:, None, None]) * gain[:, None, None] + own["bias"][:, None, None]
    if layer.op == "quantize":
        return own["alpha"] * (x > own["alpha"] / 2)
    if layer.op == "prelu":
        slope, before, after = (own[name][:, None, None] for name in ("slope", "before", "after"))
        return np.maximum(x - before, 0) + slope * np.minimum(x - before, 0) + after
    if layer.op == "sign":
        return np.where(x > own["shift"][:, None, None], 1.0, -1.0)
    if layer.op == "dense":
        return x.reshape(len(x), -1) @ own["weight"].T + own["bias"]
    return {
        "relu": lambda: np.maximum(x, 0),
        "dropout": lambda: x,
        "relu6": lambda: np.clip(x, 0, 6),
        "add": lambda: x + inputs[1],
        "concat": lambda: np.concatenate(inputs, 1),
        "multiply": lambda: x * inputs[1],
        "sigmoid": lambda: (1 + np.tanh(x / 2)) / 2,
        "hard_sigmoid": lambda: np.clip(x / 6 + 0.5, 0, 1),
        "average_pool": lambda: (
            x.mean((2, 3), keepdims=True) if layer.kernel == 1 else windows(x, layer, 0).mean((4, 5))
        ),
    }[layer.op]()


def plain_binary(latent):
    centred = latent - latent.mean((1, 2, 3), keepdims=True)
    standard = centred / np.sqrt(latent.var((1, 2, 3), keepdims=True) + 1e-10)
    return np.where(standard < 0, -1, 1) * abs(standard).mean((1, 2, 3), keepdims=True)


def windows(x, layer, fill):
    """[N, C, H, W] -> [N, C, H', W', k, k]"""
    x = np.pad(x, ((0, 0), (0, 0), *[(layer.padding,) * 2] * 2), constant_values=fill)
    seen = np.lib.stride_tricks.sliding_window_view(x, (layer.kernel, layer.kernel), (2, 3))
    return seen[:, :, :: layer.stride, :: layer.stride]
