"""The loss of a batch, as it stands or compiled.

Compiled, forward and backward are one graph each: on a GPU two launches instead of hundreds, on a
CPU fewer passes over memory. A graph has fixed shapes, so there the widths of a sub-network do not
slice the network: every width gets a mask over all its channels, 1 and then 0, which is the same
function (`Model.stacked`). So one graph serves every sub-network and every mask of a search, and
another the plain network.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dmsflow.errors import DmsflowError
from dmsflow.training.model import Active, Model

Losses = tuple[Tensor, Tensor]

BACKEND = "inductor"  # of torch.compile

_compiled: weakref.WeakKeyDictionary[Model, Callable[..., Losses]] = weakref.WeakKeyDictionary()


def of(
    model: Model, images: Tensor, labels: Tensor, *, mixed: bool, compiled: bool, active: Active | None = None
) -> Losses:
    """Cross-entropy of a batch, and the fraction classified right.

    Args:
        images: normalised, [N, C, H, W].
        mixed: compute in bfloat16 where that is safe.
        compiled: by torch.compile. The first call for a model compiles, which takes up to minutes;
            batches must be of one size.

    Raises:
        DmsflowError: torch cannot compile here, for want of a C++ compiler or of Triton most often.
    """
    if not compiled:
        return _plain(model, images, labels, mixed, active)
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    run = _compiled.get(model)
    if run is None:
        torch.compiler.reset()  # or the graphs of former models would count towards torch's limit
        mode = "reduce-overhead" if images.is_cuda else None  # CUDA graphs
        run = _compiled[model] = torch.compile(_stacked, fullgraph=True, dynamic=False, backend=BACKEND, mode=mode)
    if images.is_cuda:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
    stack = None if active is None else model.stacked(active)
    try:
        return run(model, images, labels, mixed, stack)
    except TorchDynamoException as error:
        why = next(line for line in str(error).splitlines() if line and not line.endswith("raised:"))
        raise DmsflowError(
            "--compile",
            f"torch cannot compile here ({why})",
            "install a C++ compiler (for a GPU Triton too), or --compile off",
        ) from error


def _plain(model: Model, images: Tensor, labels: Tensor, mixed: bool, active: Active | None) -> Losses:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=mixed):
        logits = model(images, active).float()
    return F.cross_entropy(logits, labels), (logits.detach().argmax(1) == labels).float().mean()


def _stacked(model: Model, images: Tensor, labels: Tensor, mixed: bool, stack: tuple[Tensor, Tensor] | None) -> Losses:
    active: Any = None if stack is None else model.unstacked(*stack)
    return _plain(model, images, labels, mixed, active)
