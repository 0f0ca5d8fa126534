"""The operations that torch.export finds in a module, as steps of the kinds that a network here has."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from dmsflow.errors import DmsflowError
from dmsflow.importing.binarised import name_op, simplify
from dmsflow.network.network import INPUT

SUPPORTED = (
    "Conv2d, BatchNorm2d, ReLU, ReLU6, PReLU, SiLU, Hardswish, Sigmoid, Hardsigmoid, torch.sign, MaxPool2d, AvgPool2d, "
    "AdaptiveAvgPool2d(1), Linear, Dropout, additions, products and torch.cat"
)
PASSED = ("contiguous", "clone", "alias", "detach", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
CAST = ("to", "type_as")
EXPANDED = ("expand", "expand_as")
# What changes each value on its own: our name by torch's.
POINTWISE = {each: each for each in ("batch_norm", "relu", "relu6", "prelu", "sign", "sigmoid", "silu", "dropout")}
POINTWISE |= {"hardsigmoid": "hard_sigmoid", "hardswish": "hard_swish"}
RESHAPED = ("flatten", "view", "view_as", "reshape", "_unsafe_view", "squeeze", "unsqueeze", "unflatten")
PIXELWISE = ("conv2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "mean")  # what looks at rows and columns
# What to write instead of common operations; the others get the list of what is supported.
INSTEAD = {
    **dict.fromkeys(
        ("cat", "concat", "stack"), "join channels of the same pixels of different layers, as torch.cat((a, b), 1) does"
    ),
    **dict.fromkeys(
        ("gelu", "leaky_relu", "elu", "elu_", "mish"),
        "use a ReLU, which becomes the quantizer of the next binary convolution",
    ),
    "hardtanh": "leave it out in front of a sign; elsewhere use a ReLU or PReLU",
    "mul": "multiply two layers of the same channels and pixels, or by one pixel, as squeeze-and-excite does",
    **dict.fromkeys(("sub", "div", "neg"), "leave arithmetic other than additions out; images are normalised for you"),
    **dict.fromkeys(
        ("softmax", "log_softmax"), "end in the Linear layer, since the loss has the softmax; as a gate use a Sigmoid"
    ),
    **dict.fromkeys(("clamp", "clamp_min", "maximum"), "use a ReLU"),
    "mean": "average over all pixels, as mean((2, 3)) does",
    **dict.fromkeys(RESHAPED, "flatten all pixels at once, in front of a Linear layer"),
    **dict.fromkeys(("wrap_with_set_grad_enabled", "wrap_with_autocast"), "leave no_grad and autocast out of forward"),
    "pad": "give the padding to the convolution, with zeros",
    "adaptive_avg_pool2d": "use AvgPool2d with a kernel, or AdaptiveAvgPool2d(1) over the whole image",
    **dict.fromkeys(("layer_norm", "group_norm", "instance_norm"), "use BatchNorm2d"),
    **dict.fromkeys(
        ("chunk", "split", "transpose"), "leave the shuffling of channels out, and mix them by a 1×1 convolution"
    ),
    "permute": "leave channels in the second dimension, where BatchNorm2d normalises and 1×1 convolutions mix them",
    "slice": "take every second pixel by F.max_pool2d(x, 1, 2), and mix channels by a 1×1 convolution",
}


@dataclass(frozen=True)
class Step:
    """One operation of the exported graph.

    Attributes:
        name: the layer's, from the module's path.
        op: conv, depthwise_conv, linear, batch_norm, relu, relu6, prelu, sign, max_pool, average_pool, add, concat,
            multiply, sigmoid, hard_sigmoid, silu, hard_swish, dropout, or bias, which adds a number to each channel.
        inputs: names of the steps that it reads.
        shape: [channels, pixels, pixels] of what it puts out, also where the module has flattened that.
        window: kernel, stride, padding, groups, dilation and rate, as the record of a layer has them.
        binarised: the module itself computes binary weights for it, or its values, 0 and another.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, int, int]
    window: Mapping[str, Any] = field(default_factory=dict)
    binarised: bool = False


def _export(module: nn.Module, name: str, channels: int, resolution: int) -> torch.export.ExportedProgram:
    """The ATen operations of a module in evaluation, with shapes."""
    like = next((each for each in module.parameters() if each.is_floating_point()), torch.zeros(0))
    images = torch.zeros(2, channels, resolution, resolution, device=like.device, dtype=like.dtype)
    modes = {each: each.training for each in module.modules()}
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        # What torch says about itself, and the graph that it prints where it fails: ours is one line.
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            return torch.export.export(module.eval(), (images,), strict=False)
    except Exception as error:  # whatever the user's forward raises, and torch's own
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        what = f"cannot be read for images of {channels}×{resolution}×{resolution} ({why})"
        raise DmsflowError(
            name, what, "try it on such images; let no step depend on their values, and none set .data"
        ) from error
    finally:
        logging.disable(disabled)
        for each, trains in modes.items():
            each.training = trains


def read_steps(module: nn.Module, where: str, channels: int, resolution: int) -> list[Step]:
    """The operations of a module in order, without those that change nothing once the network is trained.

    Args:
        where: the module's name in errors.

    Raises:
        DmsflowError: torch.export cannot follow it, or it has an operation that no network here has.
    """
    exported = _export(module, where, channels, resolution)
    _name_classes(exported.graph, module)
    _refuse_aliases(exported.graph, where)
    graph, binarised = exported.graph, simplify(exported)
    graph.eliminate_dead_code()  # branches whose results are not used
    (image,) = (node for node in graph.nodes if node.name in exported.graph_signature.user_inputs)
    names: dict[torch.fx.Node, str] = {image: INPUT}  # of the step whose output a node has
    steps = {INPUT: Step(INPUT, INPUT, (), tuple(image.meta["val"].shape[1:]))}
    weights: dict[torch.fx.Node, str] = {}  # the step that has them
    for node in graph.nodes:
        read = [each for each in node.all_input_nodes if each in names]
        if node.op != "call_function" or not read or (name_op(node) in EXPANDED and node.args[0] not in names):
            continue  # weights, and what is computed from them alone
        if not isinstance(node.meta.get("val"), Tensor):
            raise _refuse(where, node)
        if _changes_nothing(node):
            names[node] = names[read[0]]
            continue
        step = _read_step(node, [steps[names[each]] for each in read], where)
        _check_weights(node, binarised.get(node), weights, where)
        step = replace(step, name=find_name(step.name, steps), binarised=node in binarised or "steps" in node.meta)
        steps[step.name], names[node] = step, step.name
    (output,) = (node for node in graph.nodes if node.op == "output")
    if (count := len(output.all_input_nodes)) != 1:
        raise DmsflowError(where, f"puts out {count} tensors", "return the class scores alone")
    return list(steps.values())[1:]


def _name_classes(graph: torch.fx.Graph, module: nn.Module) -> None:
    """Have a layer of a subclass that computes what torch's own class does as one of that class."""
    for node in graph.nodes:
        if stack := node.meta.get("nn_module_stack"):
            key, (path, _) = next(reversed(stack.items()))
            with suppress(AttributeError):  # of a call in a function, "conv@1"
                made = type(module.get_submodule(str(path)))
                known = next(each for each in made.__mro__ if each.__module__.startswith("torch.nn.modules"))
                if made is not known and made.forward is known.forward:  # type: ignore[attr-defined]
                    node.meta["nn_module_stack"] = {**stack, key: (path, f"{known.__module__}.{known.__qualname__}")}


def _refuse_aliases(graph: torch.fx.Graph, where: str) -> None:
    """Refuse a tensor that is read after another one of the same memory was changed in place."""
    owners: dict[torch.fx.Node, torch.fx.Node] = {}  # whose memory a node has
    changes: dict[torch.fx.Node, torch.fx.Node] = {}  # the last one of an owner's memory
    known: dict[torch.fx.Node, torch.fx.Node | None] = {}  # the last one when the node was made
    for node in graph.nodes:
        for read in node.all_input_nodes:
            change = changes.get(owners[read])
            if change and change is not known[read]:
                what = "changes a tensor in place that is read in another form later"
                raise DmsflowError(f"{where}: {_path(change)}", what, "leave inplace out of it")
        changed = getattr(getattr(node.target, "_schema", None), "is_mutable", False)
        shares = changed or name_op(node) in {*PASSED, *CAST, *RESHAPED, *EXPANDED, "dropout"} - {"clone"}
        owners[node] = owners[node.all_input_nodes[0]] if shares and node.all_input_nodes else node
        if changed:
            changes[owners[node]] = node
        known[node] = changes.get(owners[node])


def _check_weights(
    node: torch.fx.Node, binarised: torch.fx.Node | None, taken: dict[torch.fx.Node, str], where: str
) -> None:
    """Refuse weights that are computed, but for signs of a parameter, and those of an earlier step; `taken` gets these."""
    bound, path = _bind(node), _path(node)
    held = binarised or bound.get("running_mean", bound.get("weight"))
    if held is None:
        if name_op(node) == "batch_norm":
            right = "leave track_running_stats at True"
            raise DmsflowError(f"{where}: {path}", "keeps no running statistics", right)
        return
    if held.op != "placeholder":
        right = "let them be a parameter, or the signs of one with a scale for each filter"
        raise DmsflowError(f"{where}: {path}", "computes its weights", right)
    if held in taken:
        what = f"has the weights of {taken[held]}" if taken[held] != path else "is called twice"
        raise DmsflowError(f"{where}: {path}", what, "make a module for each call: weights are not shared")
    taken[held] = path


def _kind(node: torch.fx.Node) -> str:
    """The class of torch's own that a node comes from: "torch.nn.modules.activation.ReLU"; else ""."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    kind = stack[-1][1] if stack else ""
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return kind if kind.startswith("torch.nn.modules") and "container" not in kind else ""


def _path(node: torch.fx.Node) -> str:
    """Where in the module a node comes from: "layer1.0.relu", or with its operation "layer1.0.add"."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path if path and _kind(node) else ".".join(filter(None, (path, name_op(node))))


def _refuse(where: str, node: torch.fx.Node) -> DmsflowError:
    op, kind = name_op(node), _kind(node).rpartition(".")[2]
    name = kind if kind and kind not in SUPPORTED.replace(",", "").split() else op
    if op in RESHAPED and node.meta["val"].dim() > 4:  # rows of channels, to be exchanged
        op = "transpose"
    what = f"uses {name}, which no binary network here has"
    return DmsflowError(f"{where}: {_path(node)}", what, INSTEAD.get(op, f"use {SUPPORTED} (docs/operations.md)"))


def _changes_nothing(node: torch.fx.Node) -> bool:
    op = name_op(node)
    read, made = node.all_input_nodes[0].meta["val"].shape, node.meta["val"].shape
    if op in RESHAPED:  # all pixels in a row, or the same channels in another form; the next step may look at that
        kept = 1 if len(made) == 2 else 2
        return bool(read.numel() == made.numel() and read[:kept] == made[:kept])
    if op == "add":  # of sum()
        return len(node.all_input_nodes) == 1 and bool(_bind(node)["other"] == 0)
    if op in EXPANDED:  # one pixel to all; a product does so by itself, and all others look at the form
        return bool(read[2:] == (1, 1) and read[:2] == made[:2])
    if op == "cat":  # of one tensor
        return len(node.args[0]) == 1  # type: ignore[arg-type]
    if op in CAST:
        return bool(node.meta["val"].dtype.is_floating_point and read == made)
    return op in PASSED or (op == "adaptive_avg_pool2d" and made == read and made[-2:] != (1, 1))


def _read_step(node: torch.fx.Node, read: Sequence[Step], where: str) -> Step:
    """A node as a step that reads others.

    What a node reads may be flattened. Where the form matters, it is compared with the shape of the step.
    """
    op, path, bound = name_op(node), _path(node), _bind(node)
    here, inputs, shape = f"{where}: {path}", tuple(each.name for each in read), read[0].shape
    given, made = tuple(node.all_input_nodes[0].meta["val"].shape[1:]), tuple(node.meta["val"].shape[1:])
    if op == "add":
        return _read_add(node, read, where)
    if op in ("cat", "mul") and len(read) > 1:
        return _join(node, read, where)
    if len(read) != 1:
        raise _refuse(where, node)
    if op == "hardtanh" and (bound.get("min_val"), bound.get("max_val")) == (0, 6):
        op = "relu6"
    if op == "batch_norm" and given[0] != shape[0]:
        raise DmsflowError(here, "normalises flattened pixels", "put a BatchNorm2d in front of Flatten")
    if op == "prelu" and given[0] != shape[0] and bound["weight"].meta["val"].numel() > 1:
        raise DmsflowError(here, "has slopes for flattened pixels", "put the PReLU in front of Flatten")
    if op in POINTWISE:
        return Step(path, POINTWISE[op], inputs, shape, {"rate": bound["p"]} if op == "dropout" else {})
    if op == "linear":
        if len(given) == 1:
            return Step(path, op, inputs, (made[0], 1, 1))
        raise DmsflowError(here, f"reads {'×'.join(map(str, given))} values", "flatten them in front of a Linear layer")
    if op not in PIXELWISE:
        raise _refuse(where, node)
    if op == "mean" and [each % (len(given) + 1) for each in bound.get("dim") or ()] in _pixel_axes(len(given)):
        return Step(path, "average_pool", inputs, (shape[0], 1, 1))
    if given != shape:
        raise DmsflowError(here, f"reads pixels in another form, {'×'.join(map(str, given))}", INSTEAD["reshape"])
    if op == "conv2d":
        window = _window(where, path, bound["weight"].meta["val"].shape[2:], bound)
        is_depthwise = window["groups"] == shape[0] == made[0] > 1
        window = {key: number for key, number in window.items() if key != "groups" or not is_depthwise}
        return Step(path, "depthwise_conv" if is_depthwise else "conv", inputs, made, window)
    pads = any(_pair(bound.get("padding", 0))) or bound.get("divisor_override")
    covers = op == "avg_pool2d" and _pair(bound["kernel_size"]) == shape[1:]
    if op == "avg_pool2d" and (pads or (_pair(bound["kernel_size"]) == (1, 1) and not covers)):
        what = "averages single pixels, or with padding or a divisor of its own"
        raise DmsflowError(here, what, "use AvgPool2d without these")
    if op == "max_pool2d" or (op == "avg_pool2d" and not covers):
        window = _window(where, path, bound["kernel_size"], bound)
        side = shape[1] + 2 * window["padding"] - window["kernel"]
        if bound.get("ceil_mode") and side % window["stride"]:
            raise DmsflowError(here, "pools with ceil_mode beyond the image", "leave ceil_mode out")
        if op == "max_pool2d":
            return Step(path, "max_pool", inputs, made, window)
        return Step(path, "average_pool", inputs, made, {key: window[key] for key in ("kernel", "stride")})
    if made[1:] == (1, 1) and (op == "adaptive_avg_pool2d" or covers):
        return Step(path, "average_pool", inputs, made)
    raise _refuse(where, node)


def _read_add(node: torch.fx.Node, read: Sequence[Step], where: str) -> Step:
    """The sum of two layers, or of one and a number for each channel."""
    path, bound, inputs, shape = _path(node), _bind(node), tuple(each.name for each in read), read[0].shape
    plain, made = bound.get("alpha", 1) == 1, tuple(node.meta["val"].shape[1:])
    if len(read) == 1 and made == shape and plain and _is_bias(node, shape[0]):
        return Step(path, "bias", inputs, shape)
    if len(read) != 2 or not plain or read[0].shape != read[1].shape:
        what = "adds something other than two layers of the same channels and pixels"
        raise DmsflowError(f"{where}: {path}", what, "add two such layers, each once")
    return Step(path, "add", inputs, shape)


def _is_bias(node: torch.fx.Node, channels: int) -> bool:
    """Whether an addition adds weights [channels, 1, 1], perhaps expanded, to one tensor."""
    added = (each.all_input_nodes[0] if name_op(each) in EXPANDED else each for each in node.all_input_nodes)
    return any(tuple(each.meta["val"].shape) in ((1, channels, 1, 1), (channels, 1, 1)) for each in added)


def _join(node: torch.fx.Node, read: Sequence[Step], where: str) -> Step:
    """A concatenation of channels, or a product; its first factor has the pixels."""
    bound, forms = _bind(node), [tuple(each.meta["val"].shape[1:]) for each in node.all_input_nodes]
    read = sorted(read, key=lambda each: -each.shape[1]) if "tensors" not in bound else read
    name, inputs, shape = _path(node), tuple(each.name for each in read), read[0].shape
    pixels, channels = {each.shape[1:] for each in read}, [each.shape[0] for each in read]
    # Flattened tensors have one pixel in each channel; other forms would have others.
    kept = all(len(form) == len(forms[0]) for form in forms) and [form[0] for form in forms] == channels
    if "tensors" in bound:
        axis = bound.get("dim", 0) % (len(forms[0]) + 1)
        kept = kept and axis == 1 and len(pixels) == 1 and len(bound["tensors"]) == len(read)
        step = Step(name, "concat", inputs, (sum(channels), *shape[1:]))
    else:
        kept = kept and len(set(channels)) == 1 and pixels <= {shape[1:], (1, 1)}
        step = Step(name, "multiply", inputs, shape)
    if not kept or (len(forms[0]) > 1 and tuple(node.meta["val"].shape[2:]) != shape[1:]):
        raise _refuse(where, node)
    return step


def _pixel_axes(dimensions: int) -> list[list[int]]:
    """The axes of pixels in both orders, for tensors [N, C, H, W] (3 dimensions without N) or [N, C, H * W]."""
    return {3: [[2, 3], [3, 2]], 2: [[2]]}.get(dimensions, [])


def _bind(node: torch.fx.Node) -> dict[str, Any]:
    """The arguments of a node by their names in ATen's schema."""
    names = [each.name for each in node.target._schema.arguments]  # type: ignore[union-attr]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _pair(value: Any) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, (list, tuple, torch.Size)) else (value,)
    return values * 2 if len(values) == 1 else values


def _window(where: str, path: str, kernel: Any, bound: Mapping[str, Any]) -> dict[str, int]:
    """Kernel, stride, padding, groups and dilation; one number each, since kernels here are square."""
    found = {"kernel": _pair(kernel), "groups": (bound.get("groups", 1),) * 2}
    found["stride"] = _pair(bound.get("stride") or (found["kernel"] if "kernel_size" in bound else 1))
    found["padding"], found["dilation"] = _pair(bound.get("padding", 0)), _pair(bound.get("dilation", 1))
    if found["padding"] == ("same", "same"):
        if any(size % 2 == 0 for size in found["kernel"]):
            right = "use an odd kernel, or a number for padding"
            raise DmsflowError(f"{where}: {path}", "pads one side more than the other", right)
        found["padding"] = tuple((size - 1) // 2 for size in found["kernel"])
    found["padding"] = (0, 0) if found["padding"] == ("valid", "valid") else found["padding"]
    for name, (first, last) in found.items():
        if first != last:
            raise DmsflowError(f"{where}: {path}", f"has {name} {first}×{last}", "use the same in both directions")
    return {name: first for name, (first, _) in found.items()}


def find_name(name: str, taken: Mapping[str, object]) -> str:
    """A module may be called several times: "relu", "relu_2", …"""
    if name not in taken:
        return name
    return next(each for each in (f"{name}_{n}" for n in range(2, len(taken) + 3)) if each not in taken)
