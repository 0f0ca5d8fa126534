"""One step of the weights, and the evaluation of a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dmsflow.errors import DmsflowError
from dmsflow.settings import WeightSettings
from dmsflow.training.batches import Batches
from dmsflow.training.forward import forward_loss
from dmsflow.training.model import Active, Model
from dmsflow.training.place import Place

Batch = tuple[Tensor, Tensor]  # images and labels


def make_optimiser(model: nn.Module, settings: WeightSettings) -> Optimizer:
    """Adam or SGD, with weight decay on weights (two or more dimensions) and none on norms, alphas and biases."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    free = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": free, "weight_decay": 0.0}]
    if settings.optimiser == "adam":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=decayed[0].device.type in ("cpu", "cuda"))
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)


def set_learning_rate(optimiser: Optimizer, learning_rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = learning_rate


def weight_step(
    model: Model,
    optimiser: Optimizer,
    batch: Batch,
    where: Place,
    active: Active | None = None,
    teacher: Model | None = None,
    draw: torch.Generator | None = None,
) -> Tensor:
    """One step of the weights; loss and fraction classified right, [2], still on the device.

    Gradients, running statistics and what is returned are means over the batch's parts, in all processes. `draw`
    decides what dropout drops.
    """
    optimiser.zero_grad(set_to_none=True)
    taught = None if teacher is None else predict(teacher, batch[0], where)
    own = where.share.rows(slice(0, where.share.parts))
    seeds = torch.randint(2**63 - 1, (where.share.parts,), generator=draw)[own] if model.drops else None
    before = [each.clone() for each in _averaged(model, where)]  # the running statistics

    def parts() -> Iterator[list[Tensor]]:
        for images, labels, answers, seed in where.share.split(*batch, taught, seeds):
            if seed is not None:
                torch.manual_seed(int(seed))
            optimiser.zero_grad(set_to_none=True)
            if before:
                torch._foreach_copy_(_averaged(model, where), before)  # every part starts from the same
            loss, right = forward_loss(model, images, labels, where, active, answers)
            loss.backward()  # type: ignore[no-untyped-call]
            yield [torch.stack([loss.detach(), right]), *_averaged(model, where)]

    result, *means = where.share.mean(parts())
    if means:
        torch._foreach_copy_(_averaged(model, where), means)
    optimiser.step()
    model.constrain()
    return result


def _averaged(model: Model, where: Place) -> list[Tensor]:
    """What a step averages over the parts of a batch beside its result: running statistics, and gradients there are."""
    gradients = (each.grad for each in model.parameters() if each.grad is not None)
    return [*model.buffers(), *gradients] if where.share.parts > 1 else []


@torch.no_grad()
def predict(model: Model, images: Tensor, where: Place) -> Tensor:
    """Logits [N, classes] of a model in evaluation mode, as fast as the device can."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=where.amp):
        return model(images).float()  # type: ignore[no-any-return]


def check_finite(loss: float, where: str) -> None:
    if not math.isfinite(loss):
        raise DmsflowError(where, f"the loss became {loss}", "set a lower learning_rate, or set amp to off")


@torch.no_grad()
def evaluate(
    model: Model, batches: Batches, active: Active | None = None, advance: Callable[[int], object] = lambda count: None
) -> tuple[Tensor, Tensor]:
    """Logits [n, classes] and labels [n] in float32, on the CPU, in the order of the split.

    Args:
        advance: is called with the number of images after every batch.
    """
    was_training = model.training
    model.eval()
    parts = []
    for images, labels in batches:
        parts.append((model(images, active).float().cpu(), labels.cpu()))
        advance(len(labels))
    model.train(was_training)
    logits, labels = map(torch.cat, zip(*parts, strict=True))
    return logits, labels


def top1_percent(logits: Tensor, labels: Tensor) -> float:
    return 100 * float((logits.argmax(1) == labels).double().mean())
