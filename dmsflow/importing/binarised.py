"""Modules that binarise themselves, as those of papers do: read as if torch.sign and a Conv2d stood there.

How a sign is written, with its gradient, differs from paper to paper, and so does the scale of binary weights. What it
computes does not, so expressions are run on random numbers: one that gives -c below a threshold and c above it is a sign,
one that gives 0 and c a quantizer, and weights of one magnitude in each filter are binary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

ATEN = torch.ops.aten
# Where an expression begins and ends: at layers, which do more than change each value on its own.
LAYERS = ("conv2d", "linear", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "batch_norm", "prelu", "cat", "mean")
WEIGHTED = {"conv2d": "torch.nn.modules.conv.Conv2d", "linear": "torch.nn.modules.linear.Linear"}
STEPPED = ("sign", "lt", "le", "gt", "ge", "round", "floor", "ceil", "where", "heaviside")  # a sign has one of these
PASSED = ("detach", "alias", "clone", "contiguous", "flatten", "view", "reshape")
# A sign behind one of these, or a number added to all, may need none.
CLIPPED = ("hardtanh", "clamp", "clamp_min", "tanh", "relu", "relu6", "sigmoid", "add", "sub", "mul", "div")
ERROR = 1e-4  # of what is 1: w - x + x is rounded
MAGNITUDES = -3, 2  # powers of ten: more steps than one, of activations of several bits, may lie far out or near zero


def simplify(exported: torch.export.ExportedProgram) -> dict[fx.Node, fx.Node]:
    """Change the graph so that signs and quantizers are one node; the parameter behind each layer's binarised weights.

    Such a layer has the path of the module that the parameter is of. Products with numbers for each filter, which a batch
    norm learns, are taken out behind it.
    """
    graph, parameters = exported.graph, exported.graph_signature.inputs_to_parameters
    for node in [each for each in graph.nodes if name_op(each) == "_assert_tensor_metadata"]:
        graph.erase_node(node)  # torch's own checks would keep what nothing else reads
    image = exported.graph_signature.user_inputs[0]
    moving = set[fx.Node]()  # what depends on the image
    for node in graph.nodes:
        if node.name == image or moving.intersection(node.all_input_nodes):
            moving.add(node)
    run, found = _Runner(exported, moving), dict[fx.Node, fx.Node]()
    for node in list(graph.nodes):
        op = name_op(node)
        if node not in moving or op not in LAYERS:
            continue
        if op in WEIGHTED and (held := _find_binarised(node.args[1], run, parameters)) is not None:
            found[node] = held
            if path := parameters[held.name].rpartition(".")[0].partition(".parametrizations.")[0]:
                node.meta["nn_module_stack"] = {path: (path, WEIGHTED[op])}
            _drop_scales(node, moving)
        _replace_sign(node, run)
    return found


def name_op(node: fx.Node) -> str:
    """ "relu" of aten.relu_.default."""
    return str(node.target).removeprefix("aten.").partition(".")[0].rstrip("_")


class _Runner:
    """Computes nodes of a graph from given values."""

    def __init__(self, exported: torch.export.ExportedProgram, moving: set[fx.Node]) -> None:
        self.moving, self.graph_module = moving, exported.graph_module
        signature, held = exported.graph_signature, {**exported.state_dict, **exported.constants}
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        names |= signature.inputs_to_lifted_tensor_constants
        self.held = {name: held[path] for name, path in names.items() if path in held}
        self.random = torch.Generator().manual_seed(0)

    def draw(self, node: fx.Node, powers: tuple[float, float] = (0, 0)) -> Tensor:
        """Random values for a node, each times a power of ten between two."""
        like, (low, high) = node.meta["val"], powers
        values = torch.randn(tuple(like.shape), generator=self.random)
        factors = 10 ** (low + (high - low) * torch.rand(values.shape, generator=self.random))
        return (values * factors).to(like.device, like.dtype)

    @torch.no_grad()
    def __call__(self, wanted: fx.Node, values: dict[fx.Node, Tensor]) -> Tensor | None:
        """The value of a node; None: it needs more than `values`, or cannot be computed here."""
        known: dict[fx.Node, Any] = {node: value.clone() for node, value in values.items()}
        needed = set(_walk_up(wanted, lambda node: node in known))
        try:
            for node in wanted.graph.nodes:  # in this order, since some change what they read
                if node in needed and node not in known:
                    known[node] = self._compute(node, known)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            return None
        found: Tensor = known[wanted]
        return None if found.is_meta else found

    def _compute(self, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        if node in self.moving and name_op(node) in LAYERS:
            raise LookupError(node.name)
        if node.op == "placeholder":
            return self.held[node.name]
        if node.op == "get_attr":
            return getattr(self.graph_module, str(node.target))
        return node.target(*fx.map_arg(node.args, known.get), **fx.map_arg(node.kwargs, known.get))  # type: ignore[operator]


def _find_binarised(weights: Any, run: _Runner, parameters: dict[str, str]) -> fx.Node | None:
    """The parameter of whose signs weights are computed; None: of none, or they are no parameter's signs."""
    if weights.op == "placeholder" or weights in run.moving:
        return None
    count = weights.meta["val"].numel()
    above = [each for each in _walk_up(weights, lambda node: False) if each.name in parameters]
    held = [each for each in above if each.meta["val"].numel() == count]
    if len(held) != 1 or (values := run(weights, {held[0]: run.draw(held[0])})) is None:
        return None
    size = values.abs().flatten(1)
    least, most = size.amin(1), size.amax(1)
    same = bool((least > 0).all() and (most - least <= ERROR * most).all())
    return held[0] if same and bool((values < 0).any() and (values > 0).any()) else None


def _drop_scales(layer: fx.Node, moving: set[fx.Node]) -> None:
    """Take out products of a layer with one number, or one for each channel, that no image changes."""
    made = layer.meta["val"].shape
    allowed = [(1,) * len(made), (1, made[1], *(1,) * (len(made) - 2))]
    while len(layer.users) == 1:
        (product,) = layer.users
        others = [each for each in product.all_input_nodes if each is not layer]
        shapes = [(*(1,) * (len(made) - each.meta["val"].dim()), *each.meta["val"].shape) for each in others]
        if name_op(product) != "mul" or moving.intersection(others) or not all(each in allowed for each in shapes):
            return
        product.replace_all_uses_with(layer)
        layer.graph.erase_node(product)


def _replace_sign(reader: fx.Node, run: _Runner) -> None:
    """Let a layer read a sign or a ReLU, which becomes its quantizer, in place of an expression that computes one."""
    for made in [each for each in reader.all_input_nodes if each in run.moving]:
        at = reader
        while name_op(made) in PASSED and len(made.users) == 1:
            at, made = made, made.all_input_nodes[0]
        expression = list(_walk_up(made, lambda node: node not in run.moving or name_op(node) in LAYERS))
        if name_op(made) in LAYERS or not any(name_op(each) in STEPPED for each in expression):
            continue
        for read in (each for each in expression[1:] if each in run.moving):
            values = run.draw(read, MAGNITUDES)
            if (kind := _recognise(values, run(made, {read: values}))) is None:
                continue
            while read in run.moving and name_op(read) in CLIPPED and len(read.all_input_nodes) == 1:
                (above,) = read.all_input_nodes
                if (over := _recognise(values, run(made, {above: values}))) is None:
                    break
                read, kind = above, over
            if (name_op(made), made.all_input_nodes) != ("sign", [read]):  # else it is there already
                with at.graph.inserting_before(at):
                    node = at.graph.call_function(kind.default, (read,))
                node.meta = {key: made.meta[key] for key in ("val", "nn_module_stack") if key in made.meta}
                node.meta["steps"] = True
                run.moving.add(node)
                at.replace_input_with(made, node)
            break


def _walk_up(node: fx.Node, is_end: Callable[[fx.Node], bool]) -> Iterator[fx.Node]:
    """A node and all that it is computed from, nearest first; nothing above an end."""
    seen, order = {node}, [node]
    for each in order:
        yield each
        if each is node or not is_end(each):
            order += [above for above in each.all_input_nodes if above not in seen]
            seen.update(order)


def _recognise(read: Tensor, made: Tensor | None) -> Any:
    """ATen's sign or ReLU, whichever an expression is that made these values of those; None: neither.

    Where its threshold lies is left to the layer, which learns it.
    """
    if made is None or made.shape != read.shape:
        return None
    top, low = float(made.max()), float(made.min())
    is_top, error = made > (top + low) / 2, ERROR * top
    if not (top > 0 and top > low and read[~is_top].max() < read[is_top].min()):
        return None
    two = torch.where(is_top, made - top, made - low).abs().max() <= error
    return ATEN.sign if two and abs(low + top) <= error else ATEN.relu if two and abs(low) <= error else None
