"""The search by gradient descent on the widths: Algorithm 1 of the DMS paper with its errors corrected.

Each round trains the weights on one half of the training set, then moves the widths on the other half
along the budgets, and deflates sigma. The paper's search as published is in `published`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmsflow.searching import supernetwork
from dmsflow.searching.budget import Ratios
from dmsflow.searching.constrained_step import bounded_move, exhaust, normals
from dmsflow.searching.supernetwork import SuperNetwork
from dmsflow.terminal import track
from dmsflow.training import checkpoint
from dmsflow.training.batches import generator
from dmsflow.training.forward import forward_loss
from dmsflow.training.log import Log
from dmsflow.training.mask import Mask, Window, exact_masks
from dmsflow.training.model import Active
from dmsflow.training.step import check_finite, set_learning_rate, weight_step

# What a weight step trains: a sub-network sampled from the whole range, one near mu, the mask, or everything.
# Most steps train narrow sub-networks: those are compared at the end, with the weights that they share.
MIXTURE = (("sampled", 0.70), ("near", 0.13), ("mask", 0.14), ("full", 0.03))
NEAR_SPREAD = 0.15  # standard deviation of the log widths of sub-networks near mu
GRADIENT_DECAY = 0.75  # what a round's gradient counts, each round later; 0.0 and 1.0 gained nothing (docs/results.md)
ROUNDS_TO_COMPARE = 2.0  # effective rounds from which their own spread is a better error than that of batches
AVERAGED_ROUNDS = 1 / 3  # the last ones, whose mean is the result: mu still moves by a step in each


class Descent:
    """The rounds of a search on a super-network.

    Args:
        net: where it stands.
        moves: whether widths move; without it only the weights are trained.
    """

    REACH = 2.5  # sigmas: half-width of what the mask mixes; 2 · 7.6 % of a logistic distribution lie beyond

    def __init__(self, net: SuperNetwork, *, moves: bool = True) -> None:
        self.net, self.settings, self.budgets = net, net.settings, net.budgets
        # The gradient of weights that have hardly been trained is of no use to trained ones.
        rounds = self.settings.rounds
        self.first_move = int(self.settings.width_warmup * rounds) if moves else rounds
        epochs, steps = self.settings.weight_epochs, self.settings.weight_steps
        self.steps = steps if epochs is None else max(1, round(epochs * net.weight_batches.steps))

    def search(self, saved: Path, log: Log) -> Ratios:
        """Do the rounds that are left, each saved, and return the ratios [n] found, within every budget."""
        at, rounds = self.net.at, self.settings.rounds
        log.rows = at.rows
        with track("search", rounds, "round", done=at.round) as progress:
            while at.round < rounds:
                if at.weight_step == 0:
                    self.begin_round()
                self.window = self.make_window(self.net.widths)
                self._train_weights(saved)
                moved = self._move_widths() if at.round >= self.first_move else {}
                row = self._row() | moved
                log.add(row)
                at.round, at.weight_step, at.results = at.round + 1, 0, []
                supernetwork.save(self.net, saved)
                progress.advance(note=self._note(row))
        return self.result()

    # --- what the paper's search overrides ---

    def begin_round(self) -> None:
        """Make the masks of this round around the present mu."""
        self.net.at.centre = self.net.at.mu

    def sigma(self) -> Ratios:
        """Scale of every width's distribution in this round, in ratio, [n]."""
        return self.sigma_factor() * self.net.at.centre

    def make_masks(self, mu: Tensor, phase: str, step: int) -> list[Mask]:
        """The mask of every width at ratios `mu` [n] in one step of a phase, on the CPU; gradients reach `mu`."""
        return exact_masks(mu, self.window)

    def learning_rate(self) -> float:
        """Of this weight step: a cosine over the whole search."""
        at = self.net.at
        return self.cosine((at.round + at.weight_step / self.steps) / self.settings.rounds)

    def choose_active(self) -> Active:
        """What this weight step trains: most often a sub-network that fills the budgets."""
        net, at = self.net, self.net.at
        draw = generator(self.settings.seed, "sub-network", at.round, at.weight_step)
        kind = pick(float(torch.rand(1, generator=draw)))
        if kind == "mask":
            return self.mask_active()
        if kind == "full":
            return {}
        if kind == "sampled":
            return net.widths_near(net.sample_ratios(draw))
        noise = torch.randn(len(at.mu), generator=draw, dtype=torch.float64).numpy()
        return net.widths_near(at.mu * np.exp(NEAR_SPREAD * noise))

    def move(self, gradient: Ratios, error: Ratios) -> None:
        """Move mu at the end of a width phase: one step of all widths, bounded by the error of all rounds' gradients."""
        at, budgets = self.net.at, self.budgets
        gradient, error = remember(at.rows, gradient, error)
        slack, size = budgets.log_slack(at.mu), self.settings.step_size
        step = bounded_move(gradient, error, normals(budgets, at.mu), slack, size)
        within = self.net.allocated()
        at.mu = within.project(within.bounds.clip(at.mu * np.exp(step)))

    def after_pass(self, each: WidthPass) -> None:
        """Called after every batch of a width phase."""

    def result(self) -> Ratios:
        """The ratios found: the mean of the last third's log ratios, where every budget is exhausted."""
        rows = self.net.at.rows
        last = rows[-max(1, round(AVERAGED_ROUNDS * len(rows))) :]
        return exhaust(self.budgets, np.exp(np.log([row["mu"] for row in last]).mean(0)))

    # --- the phases of a round ---

    def sigma_factor(self) -> float:
        """From sigma_start in the first round to sigma_end in the last, by one factor every round."""
        start, end = self.settings.sigma_start, self.settings.sigma_end
        progress = self.net.at.round / max(self.settings.rounds - 1, 1)
        return float(start * (end / start) ** progress)

    def make_window(self, most: Mapping[str, float] | None) -> Window:
        """What the masks of this round mix: as far as REACH around mu, in the range; at most `most` channels of each."""
        budgets, centre, sigma = self.budgets, self.net.at.centre, self.sigma()
        ends = (budgets.bounds.clip(centre + side * self.REACH * sigma) for side in (-1, 1))
        low, high = (np.maximum(np.round(end * budgets.base), 1) for end in ends)
        high = np.minimum(high, list(most.values())) if most else high
        return Window(*map(torch.tensor, (budgets.base, np.minimum(low, high), high, sigma, centre)))

    def cosine(self, done: float) -> float:
        """The learning rate when the fraction `done` of a cosine has passed."""
        start, end = self.settings.learning_rate, self.settings.learning_rate_end
        return end + (start - end) * (1 + math.cos(math.pi * done)) / 2

    def mask_active(self) -> Active:
        """The masks of this weight step, on the device."""
        return self.net.place_masks(self.make_masks(torch.tensor(self.net.at.mu), "weights", self.net.at.weight_step))

    def _train_weights(self, saved: Path) -> None:
        net, at = self.net, self.net.at
        first, last_saved = at.round * self.steps, time.monotonic()
        for images, labels in net.weight_batches.run(first + at.weight_step, first + self.steps):
            set_learning_rate(net.optimiser, self.learning_rate())
            # The results stay on the device: reading one would wait for its step.
            at.results.append(weight_step(net.model, net.optimiser, (images, labels), net.where, self.choose_active()))
            at.weight_step += 1
            if time.monotonic() - last_saved > checkpoint.SAVE_INTERVAL_S:
                self._check_weights()
                supernetwork.save(net, saved)
                last_saved = time.monotonic()
        self._check_weights()

    def _check_weights(self) -> None:
        """Raise DmsflowError if a loss of this round was not finite."""
        check_finite(float(torch.stack(self.net.at.results)[:, 0].mean()), f"search, round {self.net.at.round + 1}")

    def _move_widths(self) -> dict[str, Any]:
        """One pass of mu on the half for widths; its part of the log's row."""
        net, at = self.net, self.net.at
        count = self.settings.width_batches or net.width_batches.steps
        passes = []
        net.model.requires_grad_(False)
        batches = net.width_batches.run(at.round * count, (at.round + 1) * count)
        for step, (images, labels) in enumerate(batches):
            passes.append(WidthPass(self, images, labels, step))
            self.after_pass(passes[-1])
        net.model.requires_grad_(True)
        loss, right = torch.stack([each.result for each in passes]).double().mean(0).tolist()
        check_finite(loss, f"search, round {at.round + 1}")
        gradients = np.stack([each.gradient() for each in passes]) * at.mu  # of log ratios
        mean = gradients.mean(0)
        error = gradients.std(0, ddof=1) / math.sqrt(count) if count > 1 else np.abs(gradients[0])
        self.move(mean, error)
        figures = {"width_loss": loss, "width_top1_percent": 100 * right}
        return {**figures, "gradient": mean.tolist(), "gradient_error": error.tolist()}

    def _row(self) -> dict[str, Any]:
        """What the log has of every round: where mu stands now, in integer widths, and what they cost."""
        at, budgets = self.net.at, self.budgets
        widths = budgets.round_within(at.mu)
        if budgets.utilisation(at.mu).max() > 1:  # under the penalty, before it has pulled them in
            nearest = np.maximum(np.round(at.mu * budgets.base), 1)
            widths = {name: int(width) for name, width in zip(widths, nearest, strict=True)}
        weight_loss, weight_right = torch.stack(at.results).double().mean(0).tolist()
        row: dict[str, Any] = {"round": at.round + 1, "names": list(widths)}
        row |= {"mu": at.mu.tolist(), "sigma": self.sigma().tolist()}
        row |= {"widths": widths, **budgets.figures(widths)}
        return row | {"weight_loss": weight_loss, "weight_top1_percent": 100 * weight_right}

    def _note(self, row: dict[str, Any]) -> str:
        phase = "width" if "width_loss" in row else "weight"
        loss, top1 = row[f"{phase}_loss"], row[f"{phase}_top1_percent"]
        costs = self.budgets.describe(row["widths"], with_file=False)
        return f"loss {loss:.3f}, top-1 {top1:.1f} %, {costs}, widths {' '.join(map(str, row['widths'].values()))}"


def pick(draw: float) -> str:
    """One kind of MIXTURE for a draw between 0 and 1."""
    for kind, share in MIXTURE:
        if draw < share:
            return kind
        draw -= share
    return MIXTURE[-1][0]


def remember(rows: list[dict[str, Any]], gradient: Ratios, error: Ratios) -> tuple[Ratios, Ratios]:
    """The mean of all rounds' gradients, older ones counting less, and its standard error; [n] each.

    More batches do not reduce the variance between rounds: a gradient depends on the current weights of the
    channels at the mask's edge, which differ more between rounds than between batches. So the error is taken
    from how the rounds differ, where that is the larger.
    """
    means = np.array([*(row["gradient"] for row in rows if "gradient" in row), gradient])  # [rounds, n]
    weight = GRADIENT_DECAY ** np.arange(len(means) - 1, -1, -1.0)[:, None]
    weight /= weight.sum()
    effective = float(1 / np.square(weight).sum())
    mean = (weight * means).sum(0)
    within = error / math.sqrt(effective)
    if effective < ROUNDS_TO_COMPARE:
        return mean, within
    variance = (weight * np.square(means - mean)).sum(0) * effective / (effective - 1)
    return mean, np.maximum(within, np.sqrt(variance / effective))


class WidthPass:
    """One batch of the half for widths, forward and backward: means over the batch's parts, in all processes.

    The network's part of the gradient stays on its device until `gradient()` is called: reading it
    at once would wait for the device at every batch.

    Attributes:
        mu: [n], the leaf of the masks' graph, on the CPU.
        masks: of every width, on the CPU.
        mask_gradients: ∂L_valid/∂mask of every width, [channels] each.
        result: loss and fraction classified right, [2].
    """

    def __init__(self, descent: Descent, images: Tensor, labels: Tensor, step: int) -> None:
        net, where = descent.net, descent.net.where
        self.mu = torch.tensor(net.at.mu).requires_grad_()
        self.masks = descent.make_masks(self.mu, "widths", step)
        placed = net.place_masks(self.masks)
        leaves = [mask.values.requires_grad_() for mask in placed.values()]

        def parts() -> Iterator[list[Tensor]]:
            for part, answers in where.share.split(images, labels):
                loss, right = forward_loss(net.model, part, answers, where, placed)
                yield [torch.stack([loss.detach(), right]), *torch.autograd.grad(loss, leaves)]

        self.result, *self.mask_gradients = where.share.mean(parts())

    def gradient(self) -> Ratios:
        """∂L_valid/∂mu, [n]."""
        masks = [mask.values for mask in self.masks]
        outer = [each.to("cpu", torch.float64) for each in self.mask_gradients]
        (gradient,) = torch.autograd.grad(masks, self.mu, outer, retain_graph=True)
        return gradient.numpy()
