"""The search by gradient descent on the widths (Algorithm 1 of the DMS paper, mended).

Each round trains the weights on one half of the training set, then moves the widths on the other
half, holds the budgets, and deflates sigma. The super-network has a fixed capacity and ordered
rows, so a round costs what training costs, however many widths are in the window; `reallocate`
rebuilds it every round instead, with best-effort initialisation, as the paper has it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from dmsflow import budget, manifest, training
from dmsflow.budget import Budget, Range
from dmsflow.cost import Latency
from dmsflow.datasets import Dataset
from dmsflow.model import Live, Model, best_effort_initialise
from dmsflow.network import Network
from dmsflow.progress import track
from dmsflow.settings import SearchSettings
from dmsflow.training import Batches, Place
from dmsflow.width import CANDIDATES, Mask, clustered_mask, exact_mask

HEADROOM = 1.4  # of the capacity over the widest starting point
BAND_TOP = 1.3  # sub-networks are drawn up to this far over the widest control
BAND_NEAR = 1.35  # and, with --band start, as far as this factor from the start
FIRST = 2  # widths whose gradient --first-gain multiplies
WINDOW = 2.5  # half-width of the exact mask's window, in sigma
GROWTH = 2.0  # a bounded step may grow this many times further than it may shrink
ENOUGH = 2.0  # effective rounds, to tell from them how rounds differ
HELD_OUT = 0.2  # of the width half: kept for the comparison at the end
LAST = 1 / 3  # of the rounds, whose mean is the result
NEAR = 0.15  # standard deviation of the log widths of sub-networks near mu
MIXTURE = (("random", 0.70), ("near", 0.13), ("mask", 0.14), ("full", 0.03))


@dataclass
class Descent:
    """The state of a search: what a checkpoint holds, and the data it works on."""

    settings: SearchSettings
    network: Network
    limits: tuple[Budget, ...]
    bounds: Range
    latency: Latency | None  # the profile's, if there is one
    where: Place
    weight_batches: Batches
    width_batches: Batches
    held_out: Batches
    start: Tensor  # ratios [n], float64, as are all below
    band: Range  # that sub-networks are drawn from
    mu: Tensor
    model: Model
    optimiser: torch.optim.Optimizer
    mu_optimiser: torch.optim.Adam
    round: int = 0
    weight_step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    centre: list[float] = field(default_factory=list)  # mu at the last clustering
    seen: list[Tensor] = field(default_factory=list)  # [2]: loss and fraction right of this round's weight steps

    def sigma(self, index: int) -> float:
        """Scale of width `index` in this round, in ratio; it shrinks by one factor every round."""
        s = self.settings
        progress = self.round / max(s.rounds - 1, 1)
        scale: float = s.sigma_start * (s.sigma_end / s.sigma_start) ** progress
        return scale * self.centre[index] if s.sigma_relative else scale

    def window(self, index: int, base: int) -> tuple[int, int]:
        """Fewest and most channels that the mask of width `index` mixes in this round."""
        reach = (WINDOW if self.settings.estimator == "exact" else CANDIDATES[-1]) * self.sigma(index)
        low = max(self.centre[index] - reach, float(self.bounds.low[index]))
        high = min(self.centre[index] + reach, float(self.bounds.high[index]))
        return max(1, round(low * base)), max(1, round(high * base))

    def masks(self, mu: Tensor, phase: str, step: int) -> dict[str, Mask]:
        """The mask of every width at ratios `mu` [n] in one step of a phase, on the CPU; gradients reach `mu`."""
        s, masks = self.settings, {}
        noise = _gumbel((len(mu), len(CANDIDATES)), training.generator(s.seed, f"gumbel {phase}", self.round, step))
        for index, (name, base) in enumerate(self.network.widths.items()):
            low, high = self.window(index, base)
            high = min(high, self.model.widths[name])
            if s.estimator == "exact":
                masks[name] = exact_mask(mu[index], self.sigma(index), base, min(low, high), high)
            else:
                masks[name] = clustered_mask(
                    mu[index], self.sigma(index), self.centre[index], base, min(low, high), high, s.temperature, noise[index]
                )  # fmt: skip
        return masks

    def placed(self, masks: Mapping[str, Mask]) -> dict[str, Mask]:
        """The masks as the network takes them: leaves, on its device."""
        return {
            name: Mask(mask.values.detach().to(self.where.device, torch.float32), mask.live)
            for name, mask in masks.items()
        }


def _gumbel(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    uniform = torch.rand(shape, generator=draw, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    return -torch.log(-torch.log(uniform))


def begin(
    settings: SearchSettings,
    network: Network,
    limits: tuple[Budget, ...],
    bounds: Range,
    dataset: Dataset,
    workers: int,
    latency: Latency | None = None,
) -> Descent:
    """A search at its first round."""
    where = training.place(settings)
    torch.manual_seed(settings.seed)
    start = starting_point(settings, network, limits, bounds)
    controls = torch.stack([budget.uniform(network, limits, bounds), budget.flat(network, limits, bounds), start])
    widest = controls.amax(0)
    held = bounds.clip(HEADROOM * widest.clamp(min=1.0))
    capacity = {
        name: math.ceil(base * ratio) for (name, base), ratio in zip(network.widths.items(), held.tolist(), strict=True)
    }
    model = Model(network, capacity, running_statistics=False).to(where.device)
    band = Range(controls.amin(0), bounds.clip(BAND_TOP * widest))
    if settings.band == "start":
        band = Range(bounds.clip(start / BAND_NEAR), bounds.clip(start * BAND_NEAR))
    mu = start.clone().requires_grad_()
    weight_batches, width_batches, held_out = _batches(settings, dataset, where, workers)
    return Descent(
        settings=settings, network=network, limits=limits, bounds=bounds, latency=latency, where=where,
        weight_batches=weight_batches, width_batches=width_batches, held_out=held_out,
        start=start, band=band, mu=mu, model=model,
        optimiser=_weight_optimiser(settings, model),
        mu_optimiser=torch.optim.Adam([mu], lr=settings.step_size),
        centre=mu.tolist(),
    )  # fmt: skip


def _batches(
    settings: SearchSettings, dataset: Dataset, where: Place, workers: int
) -> tuple[Batches, Batches, Batches]:
    """One half of the training set for weights; of the other, most for widths and the rest for neither."""
    weight_half, width_half = training.halves(dataset.train, settings.seed)
    shuffled = np.random.default_rng([settings.seed, len(width_half)]).permutation(width_half)
    cut = max(1, round(HELD_OUT * len(shuffled)))
    parts = (("weights", weight_half, True), ("widths", shuffled[cut:], False), ("held out", shuffled[:cut], False))
    weights, widths, held_out = (
        Batches(
            dataset, dataset.train, indices, size=settings.batch_size, seed=settings.seed, purpose=purpose,
            shuffle=True, augment=augment, where=where, workers=workers,
        )
        for purpose, indices, augment in parts
    )  # fmt: skip
    return weights, widths, held_out


def starting_point(settings: SearchSettings, network: Network, limits: tuple[Budget, ...], bounds: Range) -> Tensor:
    """Ratios [n] that the search sets out from."""
    if settings.start == "flat":
        return budget.between(network, limits, bounds)
    ratios = bounds.clip(torch.full((len(network.widths),), settings.start_ratio, dtype=torch.float64))
    return budget.meet(network, limits, ratios, bounds) if settings.hold != "penalty" else ratios


def _weight_optimiser(settings: SearchSettings, model: Model) -> torch.optim.SGD:
    return training.sgd(
        model, learning_rate=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )  # fmt: skip


def descend(state: Descent, checkpoint: Path, log: Path) -> Tensor:
    """Run the rounds that are left and return the ratios [n] found, within every budget."""
    rounds = state.settings.rounds
    with track("search", rounds, "round", done=state.round) as progress:
        while state.round < rounds:
            if state.weight_step == 0:
                _cluster(state)
            _weight_phase(state, checkpoint)
            moved = _width_phase(state) if state.settings.method == "gradient" else {}
            row = _row(state) | moved
            state.rows.append(row)
            state.round, state.weight_step, state.seen = state.round + 1, 0, []
            write_log(log, state.rows)
            save(state, checkpoint)
            progress.advance(note=_note(row, state.latency))
    return result(state)


def _cluster(state: Descent) -> None:
    """Freeze the candidates around the present mu; rebuild the network on them if it reallocates."""
    state.centre = state.mu.detach().tolist()
    if not state.settings.reallocate:
        return
    widths = {name: state.window(i, base)[1] for i, (name, base) in enumerate(state.network.widths.items())}
    torch.manual_seed(
        int(torch.randint(2**31, (1,), generator=training.generator(state.settings.seed, "reallocate", state.round)))
    )
    model = Model(state.network, widths, running_statistics=False).to(state.where.device)
    if state.round and state.settings.best_effort:
        best_effort_initialise(model, state.model)
    state.model, state.optimiser = model, _weight_optimiser(state.settings, model)


def weight_steps(state: Descent) -> int:
    """Steps in a weight phase."""
    epochs = state.settings.weight_epochs
    return state.settings.weight_steps if epochs is None else max(1, round(epochs * state.weight_batches.steps))


def _weight_phase(state: Descent, checkpoint: Path) -> None:
    steps = weight_steps(state)
    first = state.round * steps
    last_saved = training.clock()
    for images, labels in state.weight_batches.run(first + state.weight_step, first + steps):
        training.set_learning_rate(state.optimiser, learning_rate(state, steps))
        seen = training.weight_step(state.model, state.optimiser, images, labels, state.where, _live(state))
        state.seen.append(seen)  # stays on the device: reading it would wait for the step
        state.weight_step += 1
        if training.clock() - last_saved > training.CHECKPOINT_SECONDS:
            _check_weights(state)
            save(state, checkpoint)
            last_saved = training.clock()
    _check_weights(state)


def _check_weights(state: Descent) -> None:
    """Raise DmsflowError if a loss of this round was not finite."""
    training.check_finite(float(torch.stack(state.seen)[:, 0].mean()), f"search, round {state.round + 1}")


def learning_rate(state: Descent, steps: int) -> float:
    """A cosine over the whole search, or one in every round (--restart)."""
    s = state.settings
    done = state.weight_step / steps if s.restart else (state.round + state.weight_step / steps) / s.rounds
    return s.learning_rate_end + (s.learning_rate - s.learning_rate_end) * (1 + math.cos(math.pi * done)) / 2


def _live(state: Descent) -> Live:
    """What this weight step trains: the mask, or most often a sub-network at the budget."""
    s = state.settings
    draw = training.generator(s.seed, "sub-network", state.round, state.weight_step)
    kind = _pick(float(torch.rand(1, generator=draw))) if s.subnetworks else "mask"
    if kind == "mask":
        return state.placed(state.masks(state.mu.detach(), "weights", state.weight_step))
    if kind == "full":
        return {}
    if kind == "random":
        return within_capacity(state, random_ratios(state, draw))
    noise = torch.randn(len(state.mu), generator=draw, dtype=torch.float64)
    return within_capacity(state, state.mu.detach() * torch.exp(NEAR * noise))


def random_ratios(state: Descent, draw: torch.Generator) -> Tensor:
    """Ratios [n] anywhere in the band, evenly in their logarithm; not at the budgets yet."""
    position = torch.rand(len(state.mu), generator=draw, dtype=torch.float64)
    return (state.band.low.log() * (1 - position) + state.band.high.log() * position).exp()


def _pick(draw: float) -> str:
    for kind, share in MIXTURE:
        if draw < share:
            return kind
        draw -= share
    return MIXTURE[-1][0]


def within_capacity(state: Descent, ratios: Tensor) -> dict[str, int]:
    """Whole widths at the budgets near `ratios`, no wider than the super-network is."""
    room = _room(state)
    return budget.round_within(
        state.network, state.limits, budget.meet(state.network, state.limits, ratios, room), room
    )


def _room(state: Descent) -> Range:
    """The range of the search, as far as the super-network is wide enough for it."""
    held = [state.model.widths[name] / base for name, base in state.network.widths.items()]
    return Range(state.bounds.low, torch.minimum(state.bounds.high, torch.tensor(held, dtype=torch.float64)))


def _width_phase(state: Descent) -> dict[str, Any]:
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
    training.check_finite(loss, f"search, round {state.round + 1}")
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


def remembered(state: Descent, gradient: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of all rounds' gradients, older ones counting less, and its standard error; [n] each.

    More batches do not make a round's gradient surer: it tells what the very channels at the edge of the
    mask are worth with the weights of the moment, and that differs between rounds by far more than between
    batches. So the error is taken from how the rounds differ, where that is the larger.
    """
    rounds = [*(row["gradient"] for row in state.rows), gradient.tolist()]
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


def width_pass(state: Descent, images: Tensor, labels: Tensor, step: int) -> WidthPass:
    """The loss of one batch under the masks, and its gradient."""
    mu = state.mu.detach().clone().requires_grad_()
    masks = state.masks(mu, "widths", step)
    placed = state.placed(masks)
    leaves = [mask.values.requires_grad_() for mask in placed.values()]
    loss, right = training.loss_of(state.model, images, labels, state.where, placed)
    of_masks = torch.autograd.grad(loss, leaves)
    return WidthPass(mu, tuple(mask.values for mask in masks.values()), of_masks, torch.stack([loss.detach(), right]))


def _hinge_gradient(state: Descent) -> Tensor:
    if state.settings.hold != "penalty":
        return torch.zeros_like(state.mu)
    mu = state.mu.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(budget.penalty(state.network, state.limits, mu, state.settings.penalty), mu)
    return gradient


def _adam_step(state: Descent, gradient: Tensor) -> None:
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
        reach = torch.tensor([state.sigma(i) for i in range(len(centre))], dtype=torch.float64)
        # The gradient fades outside the window that the candidates were frozen for.
        _move(state, torch.minimum(torch.maximum(state.mu, centre - reach), centre + reach), projected)


def _bounded_step(state: Descent, gradient: Tensor, error: Tensor) -> None:
    """One step of all widths; what is left of a budget may be spent (projection) or is left (shift)."""
    network, mu, hold = state.network, state.mu.detach(), state.settings.hold
    gradient = gradient + _hinge_gradient(state) * mu
    limits = list(state.limits) if hold == "projection" else []
    if hold == "shift":
        limits = budget.active(network, state.limits, mu, state.bounds)
    slack = budget.slack(network, limits, mu, state.bounds)
    move = budget.bounded_move(
        gradient, error, budget.normals(network, limits, mu), slack, state.settings.step_size, GROWTH
    )
    _move(state, mu * torch.exp(move), hold != "penalty")


@torch.no_grad()
def _move(state: Descent, ratios: Tensor, projected: bool) -> None:
    # With reallocation the next round's network is as wide as mu asks for.
    room = state.bounds if state.settings.reallocate else _room(state)
    ratios = room.clip(ratios)
    state.mu.copy_(budget.meet(state.network, state.limits, ratios, room) if projected else ratios)


def result(state: Descent) -> Tensor:
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


def _row(state: Descent) -> dict[str, Any]:
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
        "sigma": [state.sigma(index) for index in range(len(ratios))],
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
    manifest.write_atomically(path, b"".join(msgspec.json.encode(row) + b"\n" for row in rows))


def save(state: Descent, path: Path) -> None:
    """The whole state, in one file, whole or not at all."""
    facts = {
        "settings": state.settings, "source": _source(state), "round": state.round, "weight_step": state.weight_step, "rows": state.rows,
        "mu": state.mu.tolist(), "centre": state.centre,
        "seen": [seen.tolist() for seen in state.seen], "widths": state.model.widths,
    }  # fmt: skip
    training.save_checkpoint(path, [state.model], [state.optimiser, state.mu_optimiser], facts)


def _source(state: Descent) -> str:
    data = state.weight_batches.dataset
    content = msgspec.json.encode((data.name, len(data.train), data.mean, data.std, state.network))
    return hashlib.sha256(content).hexdigest()


def restore(state: Descent, path: Path) -> None:
    """Go back to a checkpoint of the same settings.

    Raises:
        DmsflowError: it is damaged, or was written under other settings.
    """
    tensors, facts = training.load_checkpoint(path)
    training.check_same(path, facts, state.settings, _source(state))
    if facts["widths"] != state.model.widths:
        state.model = Model(state.network, facts["widths"], running_statistics=False).to(state.where.device)
        state.optimiser = _weight_optimiser(state.settings, state.model)
    training.restore(tensors, [state.model], [state.optimiser, state.mu_optimiser])
    with torch.no_grad():
        state.mu.copy_(torch.tensor(facts["mu"], dtype=torch.float64))
    state.round, state.weight_step = facts["round"], facts["weight_step"]
    state.rows, state.centre = facts["rows"], facts["centre"]
    state.seen = [torch.tensor(seen, device=state.where.device) for seen in facts["seen"]]
