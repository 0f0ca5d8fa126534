"""The search by gradient descent on the widths (Algorithm 1 of the DMS paper, mended).

Each round trains the weights on one half of the training set, then moves the widths on the other
half, holds the budgets, and deflates sigma. `reallocate` rebuilds the super-network every round,
with best-effort initialisation, as the paper has it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from dmsflow.files import write_atomically
from dmsflow.network.latency import Latency
from dmsflow.searching import budget, supernetwork
from dmsflow.searching.supernetwork import SuperNetwork, random_ratios, within_capacity
from dmsflow.terminal import track
from dmsflow.training import checkpoint
from dmsflow.training.forward import forward_loss
from dmsflow.training.model import Active, Model, best_effort_initialise
from dmsflow.training.place import generator
from dmsflow.training.step import check_finite, set_learning_rate, weight_step

FIRST = 2  # widths whose gradient --first-gain multiplies
ENOUGH = 2.0  # effective rounds, to tell from them how rounds differ
LAST = 1 / 3  # of the rounds, whose mean is the result
ROOM = 1.25  # of a compiled model over the first network that it holds, so that most rounds find room in it
NEAR = 0.15  # standard deviation of the log widths of sub-networks near mu
MIXTURE = (("random", 0.70), ("near", 0.13), ("mask", 0.14), ("full", 0.03))


def descend(state: SuperNetwork, saved: Path, log: Path) -> Tensor:
    """Run the rounds that are left, each saved, and return the ratios [n] found, within every budget."""
    rounds = state.settings.rounds
    # What the gradient tells of weights that have hardly been trained is of no use to trained ones.
    first = int(state.settings.head_start * rounds) if state.settings.method == "gradient" else rounds
    with track("search", rounds, "round", done=state.round) as progress:
        while state.round < rounds:
            if state.weight_step == 0:
                _cluster(state)
            _weight_phase(state, saved)
            moved = _width_phase(state) if state.round >= first else {}
            row = _row(state) | moved
            state.rows.append(row)
            state.round, state.weight_step, state.seen = state.round + 1, 0, []
            write_log(log, state.rows)
            supernetwork.save(state, saved)
            progress.advance(note=_note(row, state.latency))
    return result(state)


def _cluster(state: SuperNetwork) -> None:
    """Freeze the candidates around the present mu; rebuild the network on them if it reallocates."""
    state.centre = state.mu.detach().tolist()
    if state.settings.reallocate:
        _reallocate(state)


def _reallocate(state: SuperNetwork) -> None:
    """A new network, as wide as the widest candidates, with what it can keep of the weights (Eq. 9-10)."""
    s, old = state.settings, _in_use(state)
    draw = generator(s.seed, "reallocate", state.round)
    torch.manual_seed(int(torch.randint(2**31, (1,), generator=draw)))
    widest = state.window_within(torch.full_like(state.start, math.inf)).high
    state.widths = {name: int(most) for name, most in zip(state.widths, widest.tolist(), strict=True)}
    new = _model(state, state.widths)
    if state.round and s.best_effort:
        best_effort_initialise(new, old)
    state.model = _held(state, new) if state.where.compiled else new
    state.optimiser = supernetwork.weight_optimiser(s, state.model)


def _in_use(state: SuperNetwork) -> Model:
    """The network as it stands, without what its model holds beyond that."""
    if state.widths == state.model.widths:
        return state.model
    narrow = _model(state, state.widths)
    best_effort_initialise(narrow, state.model)
    return narrow


def _held(state: SuperNetwork, new: Model) -> Model:
    """A model that holds the new network in its first channels: the compiled one, as long as there is room in it."""
    held = state.model
    if state.round == 0 or any(width > held.widths[name] for name, width in new.widths.items()):
        held = _model(state, {name: math.ceil(ROOM * width) for name, width in new.widths.items()})
    best_effort_initialise(held, new)
    return held


def _model(state: SuperNetwork, widths: Mapping[str, int]) -> Model:
    return Model(state.network, widths, running_statistics=False).to(state.where.device)


def weight_steps(state: SuperNetwork) -> int:
    """Granularity in a weight phase."""
    epochs = state.settings.weight_epochs
    return state.settings.weight_steps if epochs is None else max(1, round(epochs * state.weight_batches.steps))


def _weight_phase(state: SuperNetwork, saved: Path) -> None:
    steps = weight_steps(state)
    first = state.round * steps
    last_saved = time.monotonic()
    for images, labels in state.weight_batches.run(first + state.weight_step, first + steps):
        set_learning_rate(state.optimiser, learning_rate(state, steps))
        seen = weight_step(state.model, state.optimiser, images, labels, state.where, _active(state))
        state.seen.append(seen)  # stays on the device: reading it would wait for the step
        state.weight_step += 1
        if time.monotonic() - last_saved > checkpoint.SECONDS:
            _check_weights(state)
            supernetwork.save(state, saved)
            last_saved = time.monotonic()
    _check_weights(state)


def _check_weights(state: SuperNetwork) -> None:
    """Raise DmsflowError if a loss of this round was not finite."""
    check_finite(float(torch.stack(state.seen)[:, 0].mean()), f"search, round {state.round + 1}")


def learning_rate(state: SuperNetwork, steps: int) -> float:
    """A cosine over the whole search, or one in every round (--restart)."""
    s = state.settings
    done = state.weight_step / steps if s.restart else (state.round + state.weight_step / steps) / s.rounds
    return s.learning_rate_end + (s.learning_rate - s.learning_rate_end) * (1 + math.cos(math.pi * done)) / 2


def _active(state: SuperNetwork) -> Active:
    """What this weight step trains: the mask, or most often a sub-network at the budget."""
    s = state.settings
    draw = generator(s.seed, "sub-network", state.round, state.weight_step)
    kind = _pick(float(torch.rand(1, generator=draw))) if s.subnetworks else "mask"
    if kind == "mask":
        return state.placed(state.masks(state.mu.detach(), "weights", state.weight_step))
    if kind == "full":
        return {} if state.widths == state.model.widths else state.widths
    if kind == "random":
        return within_capacity(state, random_ratios(state, draw))
    noise = torch.randn(len(state.mu), generator=draw, dtype=torch.float64)
    return within_capacity(state, state.mu.detach() * torch.exp(NEAR * noise))


def _pick(draw: float) -> str:
    for kind, share in MIXTURE:
        if draw < share:
            return kind
        draw -= share
    return MIXTURE[-1][0]


def _width_phase(state: SuperNetwork) -> dict[str, Any]:
    """One pass of mu on the width half; its part of the log's row."""
    count = state.settings.width_batches or state.width_batches.steps
    passes = []
    state.model.requires_grad_(False)
    for step, (images, labels) in enumerate(state.width_batches.run(state.round * count, (state.round + 1) * count)):
        passes.append(width_pass(state, images, labels, step))
        if state.settings.step == "adam":
            _adam_step(state, passes[-1].gradient())
    state.model.requires_grad_(True)
    loss, right = torch.stack([each.seen for each in passes]).double().mean(0).tolist()
    check_finite(loss, f"search, round {state.round + 1}")
    gradients = torch.stack([each.gradient() for each in passes]) * state.mu.detach()  # of log ratios
    gradients[:, :FIRST] *= state.settings.first_gain
    error = gradients.std(0) / math.sqrt(count) if count > 1 else gradients.abs().squeeze(0)
    if state.settings.step == "bounded":
        _bounded_step(state, *remembered(state, gradients.mean(0), error))
    return {
        "width_loss": loss,
        "width_top1_percent": 100 * right,
        "gradient": gradients.mean(0).tolist(),
        "gradient_error": error.tolist(),
    }


def remembered(state: SuperNetwork, gradient: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of all rounds' gradients, older ones counting less, and its standard error; [n] each.

    More batches do not make a round's gradient surer: it tells what the very channels at the edge of the
    mask are worth with the weights of the moment, and that differs between rounds by far more than between
    batches. So the error is taken from how the rounds differ, where that is the larger.
    """
    rounds = [*(row["gradient"] for row in state.rows if "gradient" in row), gradient.tolist()]
    means = torch.tensor(rounds, dtype=torch.float64)  # [rounds, n]
    weight = state.settings.gradient_decay ** torch.arange(len(rounds) - 1, -1, -1, dtype=torch.float64)
    weight = (weight / weight.sum())[:, None]
    effective = float(1 / weight.square().sum())
    mean = (weight * means).sum(0)
    within = error / math.sqrt(effective)
    if effective < ENOUGH:
        return mean, within
    variance = (weight * (means - mean).square()).sum(0) * effective / (effective - 1)
    return mean, torch.maximum(within, torch.sqrt(variance / effective))


@dataclass(frozen=True)
class WidthPass:
    """One batch of the width half, forward and backward.

    The network's part of the gradient stays on its device until it is asked for: reading it at once
    would wait for the device at every batch.

    Attributes:
        mu: [n], the leaf of the masks' graph, on the CPU.
        masks: of every width, on the CPU.
        of_masks: ∂L_valid/∂mask of every width, [channels] each.
        seen: loss and fraction right, [2].
    """

    mu: Tensor
    masks: tuple[Tensor, ...]
    of_masks: tuple[Tensor, ...]
    seen: Tensor

    def gradient(self) -> Tensor:
        """∂L_valid/∂mu, [n] float64."""
        outer = [each.to("cpu", torch.float64) for each in self.of_masks]
        (gradient,) = torch.autograd.grad(self.masks, self.mu, outer, retain_graph=True)
        return gradient


def width_pass(state: SuperNetwork, images: Tensor, labels: Tensor, step: int) -> WidthPass:
    """The loss of one batch under the masks, and its gradient."""
    mu = state.mu.detach().clone().requires_grad_()
    masks = state.masks(mu, "widths", step)
    placed = state.placed(masks)
    leaves = [mask.values.requires_grad_() for mask in placed.values()]
    loss, right = forward_loss(state.model, images, labels, state.where, placed)
    of_masks = torch.autograd.grad(loss, leaves)
    return WidthPass(mu, tuple(mask.values for mask in masks.values()), of_masks, torch.stack([loss.detach(), right]))


def _hinge_gradient(state: SuperNetwork) -> Tensor:
    if state.settings.hold != "penalty" or budget.use(state.network, state.limits, state.mu.detach()) <= 1:
        return torch.zeros_like(state.mu)
    mu = state.mu.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(budget.penalty(state.network, state.limits, mu, state.settings.penalty), mu)
    return gradient


def _adam_step(state: SuperNetwork, gradient: Tensor) -> None:
    """Adam on mu, as in the paper; under projection only along the budgets, and back to them."""
    gradient = gradient + _hinge_gradient(state)
    projected = state.settings.hold != "penalty"
    if projected:
        active = budget.active(state.network, state.limits, state.mu, state.bounds)
        rows = budget.normals(state.network, active, state.mu)
        gradient = budget.tangent(gradient * state.mu.detach(), rows) / state.mu.detach()
    state.mu.grad = gradient
    state.mu_optimiser.step()
    with torch.no_grad():
        centre = torch.tensor(state.centre, dtype=torch.float64)
        reach = state.sigma()
        # The gradient fades outside the window that the candidates were frozen for.
        _move(state, torch.minimum(torch.maximum(state.mu, centre - reach), centre + reach), projected)


def _bounded_step(state: SuperNetwork, gradient: Tensor, error: Tensor) -> None:
    """One step of all widths; what is left of a budget may be spent (projection) or is left (shift)."""
    network, mu, hold = state.network, state.mu.detach(), state.settings.hold
    gradient = gradient + _hinge_gradient(state) * mu
    limits = list(state.limits) if hold == "projection" else []
    if hold == "shift":
        limits = budget.active(network, state.limits, mu, state.bounds)
    slack = budget.slack(network, limits, mu, state.bounds)
    move = budget.bounded_move(gradient, error, budget.normals(network, limits, mu), slack, state.settings.step_size)
    _move(state, mu * torch.exp(move), hold != "penalty")


@torch.no_grad()
def _move(state: SuperNetwork, ratios: Tensor, projected: bool) -> None:
    # With reallocation the next round's network is as wide as mu asks for.
    room = state.bounds if state.settings.reallocate else supernetwork.room(state)
    ratios = room.clip(ratios)
    state.mu.copy_(budget.meet(state.network, state.limits, ratios, room) if projected else ratios)


def result(state: SuperNetwork) -> Tensor:
    """The ratios found: mu itself under Adam, the mean of the last third's log ratios under bounded steps."""
    ratios = state.mu.detach()
    if state.settings.step == "bounded":
        last = state.rows[-max(1, round(LAST * len(state.rows))) :]
        ratios = torch.tensor([row["mu"] for row in last], dtype=torch.float64).log().mean(0).exp()
    if state.settings.hold == "projection":
        return budget.use_up(state.network, state.limits, ratios, state.bounds)
    if state.settings.hold == "shift" or budget.use(state.network, state.limits, ratios) > 1:
        ratios = budget.meet(state.network, state.limits, ratios, state.bounds)
    return ratios


def _row(state: SuperNetwork) -> dict[str, Any]:
    """What the log has of every round: where mu stands now, in whole widths, and what they cost."""
    ratios = state.mu.detach()
    if budget.use(state.network, state.limits, ratios) > 1:  # under the penalty, before it has pulled them in
        widths = {name: max(1, round(float(width))) for name, width in budget.widths_at(state.network, ratios).items()}
    else:
        widths = budget.round_within(state.network, state.limits, ratios, state.bounds)
    weight_loss, weight_right = torch.stack(state.seen).double().mean(0).tolist()
    return {
        "round": state.round + 1,
        "names": list(state.network.widths),
        "mu": ratios.tolist(),
        "sigma": state.sigma().tolist(),
        "widths": widths,
        **budget.figures(state.network, widths, state.latency),
        "weight_loss": weight_loss,
        "weight_top1_percent": 100 * weight_right,
    }


def _note(row: dict[str, Any], latency: Latency | None) -> str:
    phase = "width" if "width_loss" in row else "weight"
    return f"loss {row[f'{phase}_loss']:.3f}, top-1 {row[f'{phase}_top1_percent']:.1f} %, {budget.spelled(row, latency)}, widths {' '.join(map(str, row['widths'].values()))}"


def write_log(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line, one line a round."""
    write_atomically(path, b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
