"""The loss of a batch, eager or compiled.

Compiled, forward and backward are one graph each: on a GPU two launches instead of hundreds, on a
CPU fewer passes over memory. A graph has fixed shapes, so there the widths of a sub-network do not
slice the network: every width gets a mask over all its channels, 1 and then 0, which is the same
function (`Model.stack_masks`). So one graph serves every sub-network and every mask of a search, and
another the plain network.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dmsflow.errors import DmsflowError
from dmsflow.training.model import Active, Model
from dmsflow.training.place import Place

Losses = tuple[Tensor, Tensor]  # cross-entropy, and the fraction classified right
Stack = tuple[Tensor, Tensor]  # the masks of all widths, see Model.stack_masks

BACKEND = "inductor"  # of torch.compile
TEMPERATURE, TEACHER_SHARE = 3.0, 0.7  # of a teacher; see benchmarks/recipe.py

_compiled: weakref.WeakKeyDictionary[Model, Callable[..., Losses]] = weakref.WeakKeyDictionary()


def forward_loss(
    model: Model,
    images: Tensor,
    labels: Tensor,
    where: Place,
    active: Active | None = None,
    taught: Tensor | None = None,
) -> Losses:
    """The loss of a batch, and the fraction classified right.

    The loss is cross-entropy with the labels. With a teacher it is a mean of that and of the cross-entropy with
    the teacher's probabilities, both softened by TEMPERATURE (arXiv 1503.02531).

    The first compiled call for a model takes up to minutes; its batches must be of one size.

    Args:
        images: normalised, [N, C, H, W].
        active: widths or masks of a sub-network; None: the network as it is.
        taught: logits of a teacher for these images, [N, classes].

    Raises:
        DmsflowError: torch cannot compile here, most often because there is no C++ compiler or no Triton.
    """
    if not where.compiled:
        return _forward(model, images, labels, where.amp, active, taught)
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    if model not in _compiled:
        torch.compiler.reset()  # or the graphs of former models would count towards torch's limit
        mode = "reduce-overhead" if images.is_cuda else None  # CUDA graphs
        _compiled[model] = torch.compile(_forward, fullgraph=True, dynamic=False, backend=BACKEND, mode=mode)
    if images.is_cuda:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
    masks = None if active is None else model.stack_masks(active)
    try:
        return _compiled[model](model, images, labels, where.amp, masks, taught)
    except TorchDynamoException as error:
        why = next(line for line in str(error).splitlines() if line and not line.endswith("raised:"))
        right = "install a C++ compiler (for a GPU Triton too), or set compile to off"
        raise DmsflowError("compile", f"torch cannot compile here ({why})", right) from error


def _forward(
    model: Model, images: Tensor, labels: Tensor, amp: bool, active: Active | Stack | None, taught: Tensor | None
) -> Losses:
    if isinstance(active, tuple):
        active = model.unstack_masks(*active)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
        logits = model(images, active).float()
    loss = F.cross_entropy(logits, labels)
    if taught is not None:
        softened = F.cross_entropy(logits / TEMPERATURE, F.softmax(taught / TEMPERATURE, 1))
        loss = (1 - TEACHER_SHARE) * loss + TEACHER_SHARE * TEMPERATURE**2 * softened
    return loss, (logits.detach().argmax(1) == labels).float().mean()
