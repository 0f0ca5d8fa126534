"""The search by gradient descent on the widths: Algorithm 1 of the DMS paper with its errors corrected.

Each round trains the weights on one half of the training set, takes gradients of the widths on the other half, at
several points of a range of budgets, and deflates sigma. All gradients so far give the slopes of the loss
(`slopes`), and these the widths of the next round. The paper's search as published is in `published`.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmsflow.searching import supernetwork
from dmsflow.searching.budget import Ratios
from dmsflow.searching.slopes import POINTS, Slopes, fit_slopes, solve
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

    def search(self, saved: Path, log: Log) -> None:
        """Do the rounds that are left, each saved."""
        at, rounds = self.net.at, self.settings.rounds
        log.rows = at.rows
        with track("search", rounds, "round", done=at.round) as progress:
            while at.round < rounds:
                if at.weight_step == 0:
                    self.begin_round()
                self.window = self.make_window(at.centre, self.net.widths)
                self._train_weights(saved)
                moved = self._move_widths() if at.round >= self.first_move else {}
                row = self._row() | moved
                log.add(row)
                at.round, at.weight_step, at.results = at.round + 1, 0, []
                supernetwork.save(self.net, saved)
                progress.advance(note=self._note(row))

    # --- what the paper's search overrides ---

    def begin_round(self) -> None:
        """Make the masks of this round around the present mu."""
        self.net.at.centre = self.net.at.mu

    def sigma(self, centre: Ratios) -> Ratios:
        """Scale of the distribution of every width around `centre` in this round, in ratio, [n]."""
        return self.sigma_factor() * centre

    def points(self) -> list[Ratios]:
        """Where this round's width phase takes gradients, ratios [n] each: at mu, and anywhere in the range."""
        net, seed = self.net, self.settings.seed
        draws = (generator(seed, "point", net.at.round, number) for number in range(1, POINTS))
        return [net.at.mu, *map(net.sample_ratios, draws)]

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
            return net.whole_widths(net.sample_ratios(draw))
        noise = torch.randn(len(at.mu), generator=draw, dtype=torch.float64).numpy()
        return net.widths_near(at.mu * np.exp(NEAR_SPREAD * noise))

    def move(self, points: Sequence[dict[str, Any]]) -> None:
        """Move mu at the end of a width phase, to where the slopes known by now say that the loss is lowest."""
        self.net.at.mu = solve(self.net.allocated(), self.slopes(points))

    def slopes(self, points: Sequence[dict[str, Any]] = ()) -> Slopes:
        """From the points of all rounds so far, and these."""
        known = [point for row in self.net.at.rows for point in row.get("points", ())]
        return fit_slopes([*known, *points], self.budgets.network)

    def after_pass(self, each: WidthPass) -> None:
        """Called after every batch of a width phase."""

    # --- the phases of a round ---

    def sigma_factor(self) -> float:
        """From sigma_start in the first round to sigma_end in the last, by one factor every round."""
        start, end = self.settings.sigma_start, self.settings.sigma_end
        progress = self.net.at.round / max(self.settings.rounds - 1, 1)
        return float(start * (end / start) ** progress)

    def make_window(self, centre: Ratios, most: Mapping[str, float] | None) -> Window:
        """What masks around `centre` mix: as far as REACH, in the range; at most `most` channels of each."""
        budgets, sigma = self.budgets, self.sigma(centre)
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
            active, draw = self.choose_active(), generator(self.settings.seed, "dropout", at.round, at.weight_step)
            batch = images, labels
            at.results.append(weight_step(net.model, net.optimiser, batch, net.where, active, draw=draw))
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
        """Gradients of the widths on the other half, at several points, and a move of mu; their part of the log's row."""
        net, at = self.net, self.net.at
        count = self.settings.width_batches or net.width_batches.steps
        batches = net.width_batches.run(at.round * count, (at.round + 1) * count)
        points, places = [], self.points()
        net.model.requires_grad_(False).eval()
        for number, mu in enumerate(places):
            share = -(-count * (number + 1) // len(places)) - -(-count * number // len(places))
            self.window, passes = self.make_window(mu, net.widths), []
            for step, (images, labels) in enumerate(itertools.islice(batches, share)):
                passes.append(WidthPass(self, mu if number else at.mu, images, labels, step))
                self.after_pass(passes[-1])
            if passes:
                points.append(self._point(mu, passes))
        net.model.requires_grad_(True).train()
        self.move(points)
        first = points[0]
        figures = {"width_loss": first["loss"], "width_top1_percent": first["top1_percent"]}
        return figures | {name: first[name] for name in ("gradient", "gradient_error")} | {"points": points}

    def _point(self, mu: Ratios, passes: Sequence[WidthPass]) -> dict[str, Any]:
        """What the log keeps of the gradients at one point: means over its batches, and their standard error."""
        loss, right = torch.stack([each.result for each in passes]).double().mean(0).tolist()
        check_finite(loss, f"search, round {self.net.at.round + 1}")
        gradients = np.stack([each.gradient() for each in passes]) * mu  # of log ratios
        error = gradients.std(0, ddof=1) / math.sqrt(len(passes)) if len(passes) > 1 else np.abs(gradients[0])
        point = {"round": self.net.at.round + 1, "mu": mu.tolist(), "loss": loss, "top1_percent": 100 * right}
        return point | {"gradient": gradients.mean(0).tolist(), "gradient_error": error.tolist()}

    def _row(self) -> dict[str, Any]:
        """What the log has of every round: where mu stands now, in integer widths, and what they cost."""
        at, budgets = self.net.at, self.budgets
        widths = budgets.round_within(at.mu)
        if budgets.utilisation(at.mu).max() > 1:  # under the penalty, before it has pulled them in
            widths = self.net.whole_widths(at.mu)
        weight_loss, weight_right = torch.stack(at.results).double().mean(0).tolist()
        row: dict[str, Any] = {"round": at.round + 1, "names": list(widths)}
        row |= {"mu": at.mu.tolist(), "sigma": self.sigma(at.centre).tolist()}
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

    def __init__(self, descent: Descent, mu: Ratios, images: Tensor, labels: Tensor, step: int) -> None:
        net, where = descent.net, descent.net.where
        self.mu = torch.tensor(mu).requires_grad_()
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
