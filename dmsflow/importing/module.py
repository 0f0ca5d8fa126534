"""A torch.nn.Module as a `Network`: torch.export reads it, and its convolutions become binary by one rule.

The first convolution, the last dense layer and convolutions with groups stay float, and so do the layers that the module
names in an attribute `float_layers`, each by its path or by that of a part: ("features.1", "layer4"), and those that
follow its name, as in "torchvision:resnet18+layer4". Every other
convolution becomes a binary one, and every other dense layer a binary convolution over all the pixels it reads. A ReLU,
ReLU6 or PReLU that only binary convolutions read becomes their quantizer; where something else reads it too, or there
is none, a quantizer is put behind it. A sign is a quantizer, of ±1. In a module that binarises weights itself, the
convolutions and dense layers whose weights it leaves alone stay float too. SiLU and hard swish are quantizers as a ReLU
is, or else products with a gate. What computes the gate of a squeeze-and-excite block stays float. Numbers that are
added to each channel beside a layer that learns them are left out, and so is a dropout in front of anything but a layer
that stays float: binary layers need none. A convolution without a batch norm gets one, and its bias is left to the
norm. A max pool behind conv, norm and ReLU moves to the convolution, which is the same function while the norm's scale
is positive, as training keeps it. Layers have the names that the module gives them: "layer1.0.conv1".
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from dmsflow import plugin
from dmsflow.errors import DmsflowError
from dmsflow.importing.steps import Step, find_name, read_steps
from dmsflow.network.network import INPUT, WORD, Key, Layer, Network, Op, key_parts
from dmsflow.terminal import list_names

# Parameters of a class or function that are given what the images have.
CLASSES = ("num_classes", "n_classes")
CHANNELS = ("in_channels", "in_chans")
# The same, unless they have a default: that may be of something else, such as a width.
ONLY_IF_NEEDED = {"classes": CLASSES[0], "channels": CHANNELS[0]}
# Steps that learn a number which is added to each channel in front of them, and behind them.
LEARN_BEFORE = ("bias", "batch_norm", "prelu", "sign")
LEARN_BEHIND = (*LEARN_BEFORE[:-1], "conv", "linear")
GATED = {"silu": "sigmoid", "hard_swish": "hard_sigmoid"}  # activations x · gate(x)
ACTIVATIONS = ("relu", "relu6", "prelu", *GATED)  # the quantizer of binary convolutions, if nothing else reads them
GATES = ("sigmoid", "hard_sigmoid", *ACTIVATIONS, "batch_norm", "conv", "linear", "dropout")  # what computes a gate


def read_module(
    module: nn.Module, name: str, channels: int, resolution: int, classes: int, floats: Sequence[str] = ()
) -> Network:
    """The network that a module becomes, for images [channels, resolution, resolution].

    `floats` are paths of layers, or of parts of the module, that stay float beside those in its `float_layers`. The
    module itself is left as it is; its weights are not taken over.

    Raises:
        DmsflowError: it has an operation that no binary network here has, another number of classes, or a control
            flow that torch.export cannot follow.
    """
    if any(isinstance(each, nn.parameter.UninitializedParameter) for each in module.parameters()):
        raise DmsflowError(name, "has lazy layers without shapes", "call it on images once, or give all channels")
    found = [each.in_channels for each in module.modules() if isinstance(each, nn.Conv2d)]
    if found and channels not in found:  # the first to be made need not be the first to be computed
        what = f"reads images of {found[0]} channels, and these have {channels}"
        raise DmsflowError(name, what, "use images of as many channels, or a module that is built for these")
    steps = read_steps(module, name, channels, resolution)
    made = {INPUT: channels, **{each.name: each.shape[0] for each in steps}}
    for step in steps:
        unit = WORD * step.window["groups"] if _has_groups(step) else 1
        if step.binarised and (step.op == "depthwise_conv" or made[step.inputs[0]] % unit or made[step.name] % unit):
            right = f"give each group a multiple of {WORD} channels to read and write, or leave its weights as they are"
            raise DmsflowError(f"{name}: {step.name}", "binarises the weights of a convolution with groups", right)
    kept = _find_float_layers(module, steps, name, floats) | _find_gate_layers(steps)
    if any(each.binarised and each.op in ("conv", "linear") for each in steps):
        kept |= {each.name for each in steps if each.op in ("conv", "linear") and not each.binarised}
    steps = _drop_dropouts(steps, kept)
    if not steps or steps[-1].op != "linear" or steps[-1].shape[0] != classes:
        shape = "×".join(map(str, steps[-1].shape)).removesuffix("×1×1") if steps else ""
        ends = f"ends in {steps[-1].op} of {shape}" if steps else "computes nothing from the image"
        raise DmsflowError(name, ends, f"end it in a Linear layer of {classes} outputs, one a class")
    for step in steps:
        if INPUT in step.inputs and step.op != "conv":
            what = f"reads the image itself ({step.op})"
            raise DmsflowError(f"{name}: {step.name}", what, "begin with a Conv2d of groups=1, which stays float32")
    steps = _split_activations(_put_norms(_move_pools(_drop_biases(steps, name))), kept)
    return _build_network(steps, kept, name, channels, resolution, classes)


def _find_float_layers(module: nn.Module, steps: list[Step], name: str, floats: Sequence[str]) -> set[str]:
    """The convolutions and dense layers that the module, or its user, wants to stay float.

    Raises:
        DmsflowError: a name is of none, or there are no names.
    """
    wanted, found = getattr(module, "float_layers", ()), set[str]()
    if not isinstance(wanted, list | tuple | set | frozenset):
        raise DmsflowError(f"{name}: float_layers", f"is of type {type(wanted).__name__}", "give a tuple of names")
    weighted = [each.name for each in steps if each.op in ("conv", "linear", "depthwise_conv")]
    for path in (*wanted, *floats):
        those = {each for each in weighted if f"{each}.".startswith(f"{path}.")}
        if not those:
            right = f"name one of {list_names(weighted)}, or a part of the module"
            raise DmsflowError(f"{name}: float_layers", f"names {path!r}, which has no convolution", right)
        found |= those
    return found


def _find_gate_layers(steps: list[Step]) -> set[str]:
    """The convolutions and dense layers of squeeze-and-excite: between an average and the product with its gate."""
    by_name, found = {each.name: each for each in steps}, set[str]()
    for gate in [by_name.get(name) for each in steps if each.op == "multiply" for name in each.inputs]:
        passed = list[Step]()
        while gate and gate.op in GATES:
            passed.append(gate)
            gate = by_name.get(gate.inputs[0])
        if gate and gate.op == "average_pool":
            found |= {each.name for each in passed if each.op in ("conv", "linear")}
    return found


def call_module(make: Any, name: str, channels: int, classes: int) -> nn.Module:
    """The module that a name stands for: itself, or what a class or function makes for such images.

    Raises:
        DmsflowError: it is neither, or raises.
    """
    if not isinstance(make, nn.Module):
        if not callable(make):
            raise DmsflowError(
                name, f"is of type {type(make).__name__}", "name a torch.nn.Module, its class or a function"
            )
        taken = plugin.call(name, inspect.signature, make).parameters
        values = {**dict.fromkeys(CLASSES, classes), **dict.fromkeys(CHANNELS, channels)}
        needed = [each for each in ONLY_IF_NEEDED if each in taken and taken[each].default is inspect.Parameter.empty]
        values |= {each: values[ONLY_IF_NEEDED[each]] for each in needed}
        make = plugin.call(name, make, **{each: value for each, value in values.items() if each in taken})
    if not isinstance(make, nn.Module):
        raise DmsflowError(name, f"returned {type(make).__name__}", "return a torch.nn.Module")
    return make


def make_without_memory(make: Callable[[], nn.Module]) -> nn.Module:
    """A module whose weights have shapes alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchvision, about how it would initialise them
        try:
            with torch.device("meta"):
                return make()
        except NotImplementedError:  # it reads weights while it is made
            return make()


# --- steps as a binary network has them ---------------------------------------------------------


def _readers(steps: list[Step], name: str) -> list[Step]:
    return [each for each in steps if name in each.inputs]


def _reading(step: Step, old: str, new: str) -> Step:
    """The same step, reading `new` where it read `old`."""
    return replace(step, inputs=tuple(new if each == old else each for each in step.inputs))


def _drop_biases(steps: list[Step], name: str) -> list[Step]:
    """Without numbers that are added to each channel beside a layer that learns them anyway.

    Raises:
        DmsflowError: there is no such layer beside them.
    """
    while bias := next((each for each in steps if each.op == "bias"), None):
        readers, above = _readers(steps, bias.name), next(each for each in steps if each.name == bias.inputs[0])
        alone = _readers(steps, above.name) == [bias]
        if not (alone and above.op in LEARN_BEHIND) and any(each.op not in LEARN_BEFORE for each in readers):
            right = "put it beside a convolution, batch norm, PReLU or sign, which learn such numbers"
            raise DmsflowError(f"{name}: {bias.name}", "adds a number to each channel", right)
        steps = [_reading(each, bias.name, above.name) for each in steps if each is not bias]
    return steps


def _drop_dropouts(steps: list[Step], floats: set[str]) -> list[Step]:
    """Without dropouts, but for those that only layers read that stay float."""
    floating = ("conv", "linear", "depthwise_conv", "dropout")
    kept = {each.name for each in steps if each.op in floating} - _find_binary(steps, floats)

    def is_kept(step: Step) -> bool:
        readers = {each.name for each in _readers(steps, step.name)}
        return step.op != "dropout" or (bool(readers) and readers <= kept and step.window["rate"] > 0)

    while drop := next((each for each in steps if not is_kept(each)), None):
        steps = [_reading(each, drop.name, drop.inputs[0]) for each in steps if each is not drop]
    return steps


def _move_pools(steps: list[Step]) -> list[Step]:
    """Max pools straight behind their convolutions, where norm and ReLU stand between."""
    for pool in [each for each in steps if each.op == "max_pool"]:
        by_name, chain = {each.name: each for each in steps}, [pool]
        while (above := by_name.get(chain[-1].inputs[0])) and above.op in ("batch_norm", "relu"):
            if len(_readers(steps, above.name)) > 1:
                break
            chain.append(above)
        if above is None or above.op != "conv" or len(chain) == 1 or len(_readers(steps, above.name)) > 1:
            continue
        last, moved = chain[1], {each.name for each in chain}
        behind = [_reading(replace(each, shape=pool.shape), above.name, pool.name) for each in reversed(chain[1:])]
        rest = [_reading(each, pool.name, last.name) for each in steps if each.name not in moved]
        at = rest.index(above) + 1
        steps = [*rest[:at], replace(pool, inputs=(above.name,)), *behind, *rest[at:]]
    return steps


def _put_norms(steps: list[Step]) -> list[Step]:
    """A batch norm behind every convolution, and every dense layer but the last, that has none."""
    for step in [each for each in steps[:-1] if each.op in ("conv", "depthwise_conv", "linear")]:
        end = step.name
        readers = _readers(steps, end)
        if [each.op for each in readers] == ["max_pool"]:
            end, readers = readers[0].name, _readers(steps, readers[0].name)
        if [each.op for each in readers] == ["batch_norm"]:
            continue
        at = next(index for index, each in enumerate(steps) if each.name == end)
        norm = Step(
            find_name(f"{step.name}_norm", {each.name: each for each in steps}), "batch_norm", (end,), steps[at].shape
        )
        steps = [*steps[: at + 1], norm, *(_reading(each, end, norm.name) for each in steps[at + 1 :])]
    return steps


def _find_binary(steps: list[Step], floats: set[str]) -> set[str]:
    """The convolutions and dense layers that become binary."""
    weighted = {each.name for each in steps[:-1] if each.op in ("conv", "linear") and INPUT not in each.inputs}
    return weighted - floats - {each.name for each in steps if _has_groups(each) and not each.binarised}


def _has_groups(step: Step) -> bool:
    return step.op == "conv" and step.window["groups"] > 1


def _split_activations(steps: list[Step], floats: set[str]) -> list[Step]:
    """SiLU and hard swish as products with a gate; those that only binary convolutions read as the ReLU they become."""
    binary, split = _find_binary(steps, floats), list[Step]()
    for step in steps:
        if step.op in GATED and all(each.name in binary for each in _readers(steps, step.name)):
            step = replace(step, op="relu")
        elif step.op in GATED:
            name = find_name(f"{step.name}_gate", {each.name: each for each in steps})
            split.append(replace(step, name=name, op=GATED[step.op]))
            step = replace(step, op="multiply", inputs=(*step.inputs, name))
        split.append(step)
    return split


def _build_network(
    steps: list[Step], floats: set[str], name: str, channels: int, resolution: int, classes: int
) -> Network:
    """Layers with quantizers in front of binary convolutions, and widths that additions share."""
    by_name = {each.name: each for each in steps}
    is_binary = dict.fromkeys(_find_binary(steps, floats), True)
    widths = _share_widths(steps, name, channels)
    named = {key: by_name[key].shape[0] for key in dict.fromkeys(widths.values()) if isinstance(key, str)}
    named.pop(steps[-1].name, None)
    layers: dict[str, Layer] = {}
    quantizers: dict[str, str] = {}  # by what they read in the module
    for step in steps:
        quantizes = step.op in ACTIVATIONS and all(is_binary.get(each.name) for each in _readers(steps, step.name))
        if quantizes or step.op == "sign":
            op: Op = "quantize" if quantizes else "sign"
            layers[step.name] = Layer(name=step.name, op=op, inputs=step.inputs)
            quantizers[step.name] = step.name
            continue
        if step.op in ACTIVATIONS and step.binarised:
            reader = next(each.name for each in _readers(steps, step.name) if not is_binary.get(each.name))
            what, right = f"gives 0 or another value to {reader}, which is not binary", "give it what comes before that"
            raise DmsflowError(f"{name}: {step.name}", what, right)
        inputs, window = step.inputs, step.window
        if step.op == "linear" and step is not steps[-1]:
            window = {"kernel": by_name[step.inputs[0]].shape[1]}
        if is_binary.get(step.name):
            (read,) = step.inputs
            if read not in quantizers:
                quantizers[read] = find_name(f"{read}_quantize", {**by_name, **layers})
                layers[quantizers[read]] = Layer(name=quantizers[read], op="quantize", inputs=(read,))
            inputs = (quantizers[read],)
        ops: dict[str, Any] = dict.fromkeys(("conv", "linear"), "binary_conv" if is_binary.get(step.name) else "conv")
        fields: dict[str, Any] = {"op": ops.get(step.op, step.op), "inputs": inputs, **window}
        if step.op in ops:
            fields["width"] = widths[step.name]
        if step is steps[-1]:
            fields |= {"op": "dense", "width": classes}
        layers[step.name] = Layer(name=step.name, **fields)
    shape = {"channels": channels, "resolution": resolution, "classes": classes}
    return Network(name=name, widths=named, layers=tuple(layers.values()), **shape)


def _share_widths(steps: list[Step], where: str, channels: int) -> dict[str, Any]:
    """Of each step the width that it puts out: the name of the first layer that has it, or the image's channels.

    What a convolution with groups reads and puts out are numbers.

    Raises:
        DmsflowError: channels that were joined are added or multiplied part by part, and their parts are not the same.
    """
    found: dict[str, Key] = {INPUT: channels}
    order, base = [each.name for each in steps], {each.name: each.shape[0] for each in steps}
    for step in steps:
        if step.op in ("conv", "linear"):
            found[step.name] = step.name
        elif step.op == "concat":
            found[step.name] = tuple(part for name in step.inputs for part in key_parts(found[name]))
        else:
            parts = [[base.get(str(part), part) for part in key_parts(found[name])] for name in step.inputs]
            if parts[0] != parts[-1]:
                what = f"reads channels that are joined of {parts[0]} and of {parts[-1]}"
                right = "join the same parts on both sides, or put a convolution behind one of them"
                raise DmsflowError(f"{where}: {step.name}", what, right)
            for index in range(len(parts[0])):
                first, last = (key_parts(found[step.inputs[side]])[index] for side in (0, -1))
                if first != last:
                    first, last = sorted((first, last), key=lambda key: order.index(str(key)))
                    found = {name: _rename(key, last, first) for name, key in found.items()}
            found[step.name] = found[step.inputs[0]]
    for step in [each for each in steps if _has_groups(each)]:
        for key in (*key_parts(found[step.inputs[0]]), *key_parts(found[step.name])):
            found = {name: _rename(each, key, base.get(str(key), key)) for name, each in found.items()}
    return found


def _rename(key: Key, old: str | int, new: str | int) -> Key:
    if isinstance(key, tuple):
        return tuple(new if part == old else part for part in key)
    return new if key == old else key
