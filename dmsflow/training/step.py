"""One step of the weights, and how right a network is."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dmsflow.errors import DmsflowError
from dmsflow.settings import SearchSettings, TrainSettings
from dmsflow.training.batches import Batches
from dmsflow.training.forward import forward_loss
from dmsflow.training.model import Active, Model
from dmsflow.training.place import Place

Batch = tuple[Tensor, Tensor]  # images and labels


def sgd(model: nn.Module, *, learning_rate: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD with weight decay on weights (two or more dimensions) and none on norms, alphas and biases."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    free = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum)


def make_optimiser(model: nn.Module, settings: SearchSettings | TrainSettings) -> torch.optim.SGD:
    """SGD with the learning rate, momentum and weight decay of these settings."""
    rate, momentum, decay = settings.learning_rate, settings.momentum, settings.weight_decay
    return sgd(model, learning_rate=rate, momentum=momentum, weight_decay=decay)


def set_learning_rate(optimiser: Optimizer, learning_rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = learning_rate


def weight_step(model: Model, optimiser: Optimizer, batch: Batch, where: Place, active: Active | None = None) -> Tensor:
    """One step of SGD on the weights; loss and fraction classified right, [2], still on the device."""
    optimiser.zero_grad(set_to_none=True)
    loss, right = forward_loss(model, *batch, where, active)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    model.constrain()
    return torch.stack([loss.detach(), right])


def check_finite(loss: float, where: str) -> None:
    if not math.isfinite(loss):
        raise DmsflowError(where, f"the loss became {loss}", "set a lower learning_rate, or amp to off")


@torch.no_grad()
def evaluate(model: Model, batches: Batches, active: Active | None = None) -> tuple[Tensor, Tensor]:
    """Logits [n, classes] and labels [n] in float32, on the CPU, in the order of the split."""
    was_training = model.training
    model.eval()
    parts = [(model(images, active).float().cpu(), labels.cpu()) for images, labels in batches]
    model.train(was_training)
    logits, labels = map(torch.cat, zip(*parts, strict=True))
    return logits, labels


def top1_percent(logits: Tensor, labels: Tensor) -> float:
    return 100 * float((logits.argmax(1) == labels).double().mean())
