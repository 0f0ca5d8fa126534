"""A `Network` as a torch module: the same one for the search, at its largest widths, and for training.

Weights have the model's widths. A forward pass may narrow any width: an int slices it, a `Mask`
slices it to its own length and weighs the channels where the next layer reads them. Without either
it is the plain network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmsflow.errors import DmsflowError
from dmsflow.network.network import (
    BATCH_NORM_EPS,
    INPUT,
    QUANTISERS,
    Layer,
    Network,
    check_size,
    evaluated,
    key_parts,
    out_widths,
    pads_signs,
    pools_all,
    value,
)
from dmsflow.settings import Precision
from dmsflow.training.binary import binarise, quantise, round_to_8_bits, sign
from dmsflow.training.fast_ops import convolve, max_pool
from dmsflow.training.mask import Mask

Active = Mapping[str, "int | Mask"]

ALPHA_START = 1.0  # of the order of a batch norm's outputs, which quantisers read
CENTRED_ALPHA = 2.0  # see centre_quantisers
PRELU_SLOPE = 0.25  # of a new one, as in torch
SMALLEST_SCALE = 1e-3  # alpha, and scale of a batch norm behind a max pool: both must stay positive
FUNCTIONS: dict[str, Callable[..., Any]] = {  # of ops without parameters or settings
    "relu": F.relu,
    "relu6": F.relu6,
    "add": torch.add,
    "concat": lambda *parts: torch.cat(parts, 1),
    "multiply": torch.mul,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": F.hardsigmoid,
}


@dataclass(frozen=True)
class Joined:
    """What is active of the channels that a concatenation puts out.

    Attributes:
        sizes: channels of each of its parts in the model.
        parts: what is active of each.
    """

    sizes: list[int]
    parts: tuple[int | Mask | None, ...]


Channels = int | Mask | Joined | None  # of a width key in one forward pass; None: all


class Model(nn.Module):
    """The torch form of a network.

    Args:
        network: the architecture.
        widths: channels of each named width.
        precision: "float" makes every binary conv a plain one and every quantiser a ReLU.
        statistics: keep them for evaluation (training); the search always normalises with
            the batch, because one set of statistics cannot serve many widths.
    """

    def __init__(
        self, network: Network, widths: Mapping[str, int], *, precision: Precision = "binary", statistics: bool = True
    ) -> None:
        super().__init__()
        check_size(network, widths)
        self.network = network
        self.widths = dict(widths)
        self.precision = precision
        self.keys = out_widths(network)
        self.drops = any(layer.op == "dropout" for layer in network.layers)
        self.ops = nn.ModuleList(self._make_op(layer, statistics) for layer in network.layers)
        last_use = {name: layer.name for layer in network.layers for name in layer.inputs}
        self._dead_after = {layer.name: [n for n in last_use if last_use[n] == layer.name] for layer in network.layers}

    def _make_op(self, layer: Layer, statistics: bool) -> nn.Module:
        c_in, c_out = (value(self.widths, self.keys[name]) for name in (layer.inputs[0], layer.name))
        binary = self.precision == "binary"
        if layer.op == "depthwise_conv":
            above = self.network.layer(layer.inputs[0])
            return GroupedConvolution(
                1, c_out, layer, blurs=above.op == "max_pool" and above.stride == 1 < layer.stride
            )
        if layer.op in ("conv", "binary_conv"):
            kind = {"binary": binary and layer.op == "binary_conv", "signs": binary and pads_signs(self.network, layer)}
            if layer.groups > 1:
                return GroupedConvolution(c_in // layer.groups, c_out, layer, **kind)
            return Convolution(c_in, c_out, layer, **kind, bits=layer.bits if binary else 32)
        if layer.op == "batch_norm":
            (read,) = evaluated(self.network).layer(layer.name).inputs
            return BatchNorm(c_out, statistics, positive=self.network.layer(read).op == "max_pool")
        if layer.op in QUANTISERS:
            quantiser = Quantise() if layer.op == "quantize" else Sign(c_out)
            return quantiser if binary else Plain("relu", layer)
        if layer.op == "prelu":
            return PRelu(c_out)
        return Dense(c_in, c_out, layer.bits if binary else 32) if layer.op == "dense" else Plain(layer.op, layer)

    def forward(self, images: Tensor, active: Active | None = None) -> Tensor:
        """Logits [N, classes] of normalised images [N, C, H, W], at the widths of `active` if given."""
        active = active or {}
        tensors = {INPUT: images.contiguous(memory_format=torch.channels_last)}
        for layer, op in zip(self.network.layers, self.ops, strict=True):
            active_in, active_out = (self._active(name, active) for name in (layer.inputs[0], layer.name))
            inputs = (tensors[name] for name in layer.inputs)
            tensors[layer.name] = op(*inputs, active_in=active_in, active_out=active_out)
            for name in self._dead_after[layer.name]:
                del tensors[name]
        return tensors[self.network.layers[-1].name]

    def sizes(self, name: str) -> list[int]:
        """Channels of the tensor that a layer puts out, of each part where it is a concatenation."""
        return [value(self.widths, part) for part in key_parts(self.keys[name])]

    def _active(self, name: str, active: Active) -> Channels:
        parts = tuple(active.get(part) for part in key_parts(self.keys[name]))  # type: ignore[arg-type]
        if len(parts) == 1 or all(part is None for part in parts):
            return parts[0]
        return Joined(self.sizes(name), parts)

    def stack_masks(self, active: Active) -> tuple[Tensor, Tensor]:
        """`active` as masks over all channels there are: two tensors whose shapes do not depend on it.

        Returns:
            Values [widths, largest width], 0 beyond a width's end; active channels and reach [widths, 2].
        """
        device = next(self.parameters()).device
        chosen = [active.get(name, width) for name, width in self.widths.items()]
        counts = torch.tensor([(e.active, len(e.values)) if isinstance(e, Mask) else (e, e) for e in chosen]).to(device)
        largest = max(self.widths.values())
        values = (torch.arange(largest, device=device) < counts[:, 1:]).to(torch.float32)
        if any(isinstance(each, Mask) for each in chosen):
            rows = zip(chosen, values, strict=True)
            padded = [F.pad(e.values, (0, largest - len(e.values))) if isinstance(e, Mask) else row for e, row in rows]
            return torch.stack(padded), counts
        return values, counts

    def unstack_masks(self, values: Tensor, counts: Tensor) -> dict[str, Mask]:
        """The inverse of `stack_masks`."""
        widths = enumerate(self.widths.items())
        return {name: Mask(values[i, :width], counts[i, 0], counts[i, 1]) for i, (name, width) in widths}

    @torch.no_grad()
    def constrain(self) -> None:
        """After an optimiser's step: alphas, and scales behind a max pool, stay positive."""
        positive: list[Tensor] = [op.alpha for op in self.ops if isinstance(op, Quantise)]
        positive += [op.weight for op in self.ops if isinstance(op, BatchNorm) and op.positive]
        if positive:  # a float network may have neither, and torch takes no empty list
            torch._foreach_clamp_min_(positive, SMALLEST_SCALE)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by layer: "conv1.weight", "norm1.running_mean", "quantize1.alpha"."""
        named = zip((layer.name for layer in self.network.layers), self.ops, strict=True)
        return {f"{name}.{key}": each for name, op in named for key, each in op.state_dict(keep_vars=True).items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over tensors of exactly these names and shapes.

        Raises:
            DmsflowError: they are others, or compact weights, without the latent ones that training changes.
        """
        if "mean" in tensors:
            what, right = "have no latent weights to train", "train again, from the search.json"
            raise DmsflowError("compact weights", what, right)
        mine = self.tensors()
        shapes = ({name: tuple(tensor.shape) for name, tensor in each.items()} for each in (mine, tensors))
        if other := set.symmetric_difference(*(set(each.items()) for each in shapes)):
            what = "of shape {1} is in only one of the network and its weights".format(*min(other))
            raise DmsflowError(f"weights {min(other)[0]}", what, "train again, or start again with --force")
        for name, tensor in mine.items():
            tensor.copy_(tensors[name])


@torch.no_grad()
def centre_quantisers(model: Model) -> None:
    """Have every quantiser of a new model turn half of its inputs on, and pass most of their gradients.

    A batch norm puts out N(0, 1), of which 31 % lie above the threshold alpha/2 of alpha = 1, and 34 % in the
    straight-through window (0, alpha). With alpha = 2 and inputs shifted to N(1, 1) the threshold is their mean
    and the window two standard deviations wide: 50 % and 68 %. An add is shifted by its last input, the skip; a concat
    by all of them.
    """
    ops = dict(zip((layer.name for layer in model.network.layers), model.ops, strict=True))
    for layer in model.network.layers:
        if not isinstance(quantiser := ops[layer.name], Quantise):
            continue
        quantiser.alpha.fill_(CENTRED_ALPHA)
        sources = [layer.inputs[-1]]
        for source in sources:
            above = model.network.layer(source) if source != INPUT else layer
            if isinstance(norm := ops.get(source), BatchNorm):
                norm.bias.fill_(CENTRED_ALPHA / 2)
            elif above.op in ("relu", "relu6", "prelu", "add", "max_pool", "concat", "dropout"):
                sources += above.inputs[0 if above.op == "concat" else -1 :]


@torch.no_grad()
def best_effort_initialise(new: Model, old: Model) -> None:
    """Keep the first min(old, new) rows and columns of every tensor (Eq. 9-10), in every part of a concatenation."""
    source = old.tensors()
    for name, tensor in new.tensors().items():
        layer = new.network.layer(name.rpartition(".")[0])
        for to, piece in zip(_pieces(tensor, new, layer), _pieces(source.get(name), old, layer), strict=False):
            kept = tuple(slice(0, min(a, b)) for a, b in zip(to.shape, piece.shape, strict=True))
            to[kept] = piece[kept]


def _pieces(tensor: Tensor | None, model: Model, layer: Layer) -> list[Tensor]:
    """A tensor of a layer, [C_out, C_in, …], cut where the concatenations that it writes and reads are joined."""
    pieces = [] if tensor is None else [tensor]
    for dimension, name in enumerate((layer.name, layer.inputs[0])):
        sizes = model.sizes(name)
        if tensor is not None and tensor.shape[dimension : dimension + 1] == (sum(sizes),):
            pieces = [part for piece in pieces for part in torch.split(piece, sizes, dimension)]
    return pieces


def _narrow(tensor: Tensor, *active: Channels) -> Tensor:
    """The first channels of a tensor, in each of its first dimensions; of a concatenation, the first of each part."""
    for dimension, kept in enumerate(active):
        if isinstance(kept, Joined):
            pieces = zip(torch.split(tensor.transpose(0, dimension), kept.sizes), kept.parts, strict=True)
            tensor = torch.cat([_narrow(piece, part) for piece, part in pieces]).transpose(0, dimension)
        elif kept is not None:
            tensor = tensor.narrow(dimension, 0, len(kept.values) if isinstance(kept, Mask) else kept)
    return tensor


def _mask(active: Channels) -> Mask | None:
    """The mask among what is active, if there is one; in that of a concatenation, fixed channels are all present."""
    if not isinstance(active, Joined):
        return active if isinstance(active, Mask) else None
    first = next((part.values for part in active.parts if isinstance(part, Mask)), None)
    if first is None:
        return None
    masks = [
        part if isinstance(part, Mask) else Mask(first.new_ones(part or size), part or size)
        for size, part in zip(active.sizes, active.parts, strict=True)
    ]
    inside = [torch.arange(len(each.values), device=first.device) < each.active for each in masks]
    reaches = [len(each.values) if each.reach is None else each.reach for each in masks]
    reach = sum(reaches) if any(isinstance(each, Tensor) for each in reaches) else None
    return Mask(torch.cat([each.values for each in masks]), torch.cat(inside), reach)  # type: ignore[arg-type]


def _masked(weight: Tensor, mask: Mask | None) -> Tensor:
    """The mask on the next layer's input channels: the same as on the activations, and far cheaper."""
    if mask is None:
        return weight
    return weight * mask.values.to(weight).view(1, -1, *[1] * (weight.dim() - 2))


class Convolution(nn.Module):
    """conv and binary_conv, without a bias; one that pads `signs` does so with -1."""

    def __init__(self, c_in: int, c_out: int, layer: Layer, *, binary: bool, signs: bool, bits: int = 32) -> None:
        super().__init__()
        weight = torch.empty(c_out, c_in, layer.kernel, layer.kernel)
        nn.init.kaiming_normal_(weight, nonlinearity="relu")
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))  # as convolutions read them
        self.stride, self.padding, self.binary, self.signs, self.bits = layer.stride, layer.padding, binary, signs, bits

    def forward(self, x: Tensor, active_in: Channels, active_out: Channels) -> Tensor:
        weight, mask = _narrow(self.weight, active_out, active_in), _mask(active_in)
        if self.binary:  # under autocast x is bfloat16 already, and so can weights without a mask be
            weight = binarise(weight, mask.active) if mask else binarise(weight, dtype=x.dtype)
        elif self.bits == 8:
            weight = round_to_8_bits(weight, each_filter=True)
        if self.signs:
            x = F.pad(x, [self.padding] * 4, value=-1.0)
        return convolve(x, _masked(weight, mask), self.stride, 0 if self.signs else self.padding)


class GroupedConvolution(Convolution):
    """depthwise_conv, and one with groups, whose widths are fixed: no mask. One that `blurs` begins with binomial weights."""

    def __init__(
        self, c_in: int, c_out: int, layer: Layer, *, binary: bool = False, signs: bool = False, blurs: bool = False
    ) -> None:
        super().__init__(c_in, c_out, layer, binary=binary, signs=signs)
        if blurs:
            row = torch.tensor([float(math.comb(layer.kernel - 1, tap)) for tap in range(layer.kernel)])
            self.weight.data.copy_(torch.outer(row, row) / row.sum() ** 2)

    def forward(self, x: Tensor, active_in: Channels, active_out: Channels) -> Tensor:
        return super().forward(x, None, active_out)


class BatchNorm(nn.BatchNorm2d):
    """batch_norm; normalises with the batch while training or without running statistics."""

    def __init__(self, channels: int, statistics: bool, positive: bool) -> None:
        super().__init__(channels, eps=BATCH_NORM_EPS, track_running_stats=statistics)
        self.positive = positive
        if statistics:
            self.num_batches_tracked = None  # the momentum is fixed: nothing to count

    def forward(self, x: Tensor, active_in: Channels, active_out: Channels) -> Tensor:  # type: ignore[override]
        weight, bias = _narrow(self.weight, active_out), _narrow(self.bias, active_out)
        running = self.running_mean, self.running_var  # where there are any, no width is narrowed
        use_batch = self.training or self.running_mean is None
        return F.batch_norm(x, *running, weight, bias, use_batch, self.momentum or 0.0, self.eps)


class Quantise(nn.Module):
    """quantize: {0, alpha}, alpha learned for the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(ALPHA_START))

    def forward(self, x: Tensor, active_in: Channels, active_out: Channels) -> Tensor:
        if (mask := _mask(active_in)) and mask.reach is not None:
            return quantise(x, self.alpha, mask.reach * x[0, 0].numel())
        return quantise(x, self.alpha)


class Sign(nn.Module):
    """sign: ±1, the shift of each channel learned."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, active_in: Channels, active_out: Channels) -> Tensor:
        return sign(x, _narrow(self.shift, active_in))


class PRelu(nn.Module):
    """prelu: the RPReLU of ReActNet (arXiv 2003.03488), which begins as a plain PReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full((channels,), PRELU_SLOPE))
        self.before, self.after = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, active_in: Channels, active_out: Channels) -> Tensor:
        slope, *shifts = (_narrow(each, active_in).to(x.dtype) for each in (self.slope, self.before, self.after))
        before, after = (each.view(-1, 1, 1) for each in shifts)
        return F.prelu(x + -before, slope) + after  # so that no gradient as large as x is negated


class Dense(nn.Module):
    """dense: with a bias, on [N, C, 1, 1]."""

    def __init__(self, c_in: int, c_out: int, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.weight = nn.Parameter(torch.empty(c_out, c_in))
        self.bias = nn.Parameter(torch.zeros(c_out))
        nn.init.normal_(self.weight, std=c_in**-0.5)

    def forward(self, x: Tensor, active_in: Channels, active_out: Channels) -> Tensor:
        weight = _narrow(self.weight, None, active_in)
        if self.bits == 8:
            weight = round_to_8_bits(weight, each_filter=False)
        return F.linear(x.flatten(1), _masked(weight, _mask(active_in)), self.bias)


class Plain(nn.Module):
    """Ops without parameters."""

    def __init__(self, op: str, layer: Layer) -> None:
        super().__init__()
        self.op, self.layer = op, layer

    def forward(self, *inputs: Tensor, active_in: Channels, active_out: Channels) -> Tensor:
        if self.op in FUNCTIONS:
            return FUNCTIONS[self.op](*inputs)  # type: ignore[no-any-return]
        if self.op == "dropout":
            return F.dropout(inputs[0], self.layer.rate, self.training)
        if self.op == "max_pool":
            return max_pool(inputs[0], self.layer.kernel, self.layer.stride, self.layer.padding)
        if pools_all(self.layer):
            return inputs[0].mean((2, 3), keepdim=True)
        return F.avg_pool2d(inputs[0], self.layer.kernel, self.layer.stride)
