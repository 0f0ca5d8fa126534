"""What each part of the training recipe is worth, one change at a time, on a validation split of CIFAR-10.

A tenth of the training images, the same number of each class, is kept for validation; the test images are never read.
Every variant of a seed starts from the same weights and sees the same images in the same order. A row is written as
soon as it is done, and rows that are there are not run again, so the program can be stopped, and started twice:

    python benchmarks/recipe.py --dataset image-folder:PATH/TO/CIFAR10/FOLDERS --networks vgg11 --epochs 12
    python benchmarks/recipe.py --tabulate

Other data are compared on their test images, which decide nothing then: `--dataset digits --data digits --epochs 0` is for
as many epochs as `--effort normal` takes.

Seconds are processor time of one thread, validation not counted.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jobs
import msgspec
import numpy as np
import script
import torch
from torch import Tensor, nn

from dmsflow import datasets, settings
from dmsflow.datasets import ArraySplit, Dataset
from dmsflow.environment import describe_environment
from dmsflow.errors import DmsflowError
from dmsflow.files import write_atomically
from dmsflow.importing import load_network
from dmsflow.network.network import Network
from dmsflow.settings import Data, TrainSettings
from dmsflow.terminal import print_table
from dmsflow.training import binary, model, train
from dmsflow.training.batches import Batches, Order, generator, whole, with_crop
from dmsflow.training.model import BatchNorm, Convolution, Model, centre_quantisers
from dmsflow.training.place import Place, choose_place
from dmsflow.training.step import evaluate, make_optimiser, set_learning_rate, top1_percent, weight_step

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "recipe.json"
VALIDATION_SHARE = 0.1
SPLIT_SEED = 5
CIFAR = "CIFAR-10"
KEY = ("data", "network", "epochs", "variant", "seed")
OLD = {"optimiser": "sgd", "learning_rate": 0.1, "weight_decay": 1e-4}  # what was the default before
AVERAGED_SHARE = 0.15  # of the steps, the last ones: whose weights are averaged
TWO_STAGES_SHARE = 0.4  # of the steps, the first ones: with float weights
KEPT_TAIL = 0.99  # ReCU (arXiv 2103.12369): weights are clamped to the quantiles 1 - tau and tau
RECALIBRATION_BATCHES = 100


@dataclass
class Run:
    """A training as a variant may change it.

    Attributes:
        step, steps: done so far, and of the whole training.
    """

    model: Model
    settings: TrainSettings
    batches: Batches
    optimiser: torch.optim.Optimizer
    where: Place
    step: int = 0
    steps: int = 0
    kept: dict[str, Any] = field(default_factory=dict)

    def latent(self) -> list[nn.Parameter]:
        """The weights of binary convolutions."""
        return [op.weight for op in self.model.ops if isinstance(op, Convolution) and op.binary]


@dataclass(frozen=True)
class Variant:
    """The default recipe with one change.

    Attributes:
        changes: settings of train.
        begin, after: called before the first step, and after every step.
        end: called before validation.
    """

    title: str
    changes: dict[str, Any] = field(default_factory=dict)
    begin: Callable[[Run], None] = lambda run: None
    after: Callable[[Run], None] = lambda run: None
    end: Callable[[Run], None] = lambda run: None


# --- changes that are not settings ------------------------------------------------------------------


def alternate_flips(run: Run) -> None:
    """Mirror each image in every other epoch, half of them in the first one (arXiv 2404.00498)."""

    class Alternating(Batches):
        def _draw(self, epoch: int) -> None:
            super()._draw(epoch)
            count, size = len(self.order.indices), self.order.size * self.side * self.side
            first = torch.randint(2, (count,), generator=generator(self.order.seed, "first flip"))
            self._corners = self._corners % size + (first[self._rows] + epoch) % 2 * size

    run.batches.__class__ = Alternating
    run.batches._draw(0)


def begin_with_float_weights(run: Run) -> None:
    """Standardised weights in place of their signs, of the same mean size; `end_float_weights` ends it."""

    def standardised(weight: Tensor, active: object = None, dtype: torch.dtype | None = None) -> Tensor:
        centred = weight - weight.mean((1, 2, 3), keepdim=True)
        return (centred / centred.square().mean((1, 2, 3), keepdim=True).add(1e-5).sqrt()).to(dtype or weight.dtype)

    model.binarise = standardised  # type: ignore[attr-defined]


def end_float_weights(run: Run) -> None:
    if run.step >= TWO_STAGES_SHARE * run.steps:
        model.binarise = binary.binarise  # type: ignore[attr-defined]


@torch.no_grad()
def clamp_tails(run: Run) -> None:
    for weight in run.latent():
        tails = torch.quantile(weight.flatten(), torch.tensor([1 - KEPT_TAIL, KEPT_TAIL]))
        weight.clamp_(*tails.tolist())


@torch.no_grad()
def average_the_end(run: Run) -> None:
    """A running mean of all tensors over the last steps."""
    begun = int((1 - AVERAGED_SHARE) * run.steps)
    if run.step == begun:
        run.kept = {name: tensor.detach().clone() for name, tensor in run.model.tensors().items()}
    elif run.step > begun:
        for name, tensor in run.model.tensors().items():
            run.kept[name].lerp_(tensor, 1 / (run.step - begun + 1))


def take_the_average(run: Run) -> None:
    run.model.load(run.kept)
    take_statistics_again(run)


@torch.no_grad()
def take_statistics_again(run: Run) -> None:
    """Batch norm's, as their mean over batches of the finished network."""
    norms = [op for op in run.model.ops if isinstance(op, BatchNorm)]
    run.model.train()
    for done, (images, _) in enumerate(run.batches.run(0, min(RECALIBRATION_BATCHES, run.batches.steps)), 1):
        for norm in norms:
            norm.momentum = 1 / done
        with torch.autocast(images.device.type, torch.bfloat16, enabled=run.where.amp):
            run.model(images)


def switch_to_sgd(run: Run) -> None:
    """SGD in the second half, at its own rate, along the same cosine."""
    if run.step == run.steps // 2:
        run.settings = msgspec.structs.replace(run.settings, **OLD)
        run.optimiser = make_optimiser(run.model, run.settings)


VARIANTS = {
    "default": Variant("the default"),
    "before": Variant(
        "the recipe before: SGD 0.1, decay 1e-4, not centred, crops",
        {**OLD, "centred": False, "crop": 1.0, "normal_epochs": 8, "min_steps": 0},
    ),
    "sgd": Variant("SGD 0.1, decay 1e-4", OLD),
    "not-centred": Variant("quantisers not centred", {"centred": False}),
    "decay": Variant("weight decay 0.02", {"weight_decay": 0.02}),
    "no-crop": Variant("no crops", {"crop": 0.0}),
    "crop-1": Variant("crops of 1 pixel", {"crop": 0.25}),
    "crop-2": Variant("crops of 2 pixels", {"crop": 0.5}),
    "crop-4": Variant("crops of 4 pixels", {"crop": 1.0}),
    "rate-half": Variant("half the learning rate", {"learning_rate": 2.5e-3}),
    "rate-double": Variant("twice the learning rate", {"learning_rate": 1e-2}),
    "batch-128": Variant("batches of 128", {"batch_size": 128}),
    "teacher": Variant("a teacher in full precision (its training not counted)", {"teacher": "float"}),
    "flips": Variant("alternating flips", begin=alternate_flips),
    "two-stages": Variant(
        "float weights for 40 % of the steps", begin=begin_with_float_weights, after=end_float_weights
    ),
    "recu": Variant("ReCU's clamp", after=clamp_tails),
    "average": Variant("mean of the last 15 %", after=average_the_end, end=take_the_average),
    "statistics": Variant("batch norm's statistics taken again", end=take_statistics_again),
    "late-sgd": Variant("SGD for the second half", after=switch_to_sgd),
}


# --- running ----------------------------------------------------------------------------------------


def split(dataset: Dataset) -> Dataset:
    """The training images, and a tenth of them for validation in place of the test images."""
    images = dataset.train
    assert isinstance(images, ArraySplit)
    draw = np.random.default_rng(SPLIT_SEED)
    classes = [draw.permutation(np.flatnonzero(images.labels == label)) for label in range(len(dataset.classes))]
    kept = np.sort(np.concatenate([each[: round(VALIDATION_SHARE * len(each))] for each in classes]))
    rest = np.setdiff1d(np.arange(len(images)), kept)
    train_part, test_part = (ArraySplit(images.pixels[part], images.labels[part]) for part in (rest, kept))
    return replace(dataset, train=train_part, test=test_part)


def fit(network: Network, dataset: Dataset, variant: Variant, chosen: TrainSettings) -> dict[str, Any]:
    """Train one network, and validate it."""
    where, teacher = choose_place(chosen), None
    if chosen.teacher:
        full = msgspec.structs.replace(chosen, teacher=None, precision="float")
        teacher = prepare(network, dataset, full, where)
        steps_of(teacher, Variant("teacher"), None)
        teacher.model.eval()
    run = prepare(network, dataset, chosen, where)
    began = time.process_time()
    loss, right = steps_of(run, variant, teacher.model if teacher else None)
    seconds = time.process_time() - began
    variant.end(run)
    logits, labels = evaluate(run.model, whole(dataset, dataset.test, where, 0))
    return {
        "top1_percent": top1_percent(logits, labels),
        "loss": float(nn.functional.cross_entropy(logits, labels)),
        "train_top1_percent": 100 * right,
        "train_loss": loss,
        "seconds": round(seconds, 1),
    }


def prepare(network: Network, dataset: Dataset, chosen: TrainSettings, where: Place) -> Run:
    torch.manual_seed(chosen.seed)
    new = Model(network, network.widths, precision=chosen.precision)
    if chosen.centred:
        centre_quantisers(new)
    order = Order(np.arange(len(dataset.train)), chosen.batch_size, chosen.seed, purpose="train")
    cropped = with_crop(dataset, chosen.crop, train.count_epochs(chosen, order.steps))
    batches = Batches(cropped, dataset.train, order, where, workers=0)
    new.to(where.device)
    run = Run(new, chosen, batches, make_optimiser(new, chosen), where)
    run.steps = train.count_epochs(chosen, batches.steps) * batches.steps
    return run


def steps_of(run: Run, variant: Variant, teacher: Model | None) -> tuple[float, float]:
    """All steps; loss and fraction classified right in the last epoch."""
    variant.begin(run)
    results = []
    for images, labels in run.batches.run(0, run.steps):
        rate = train.learning_rate(run.settings, run.step / run.batches.steps, run.steps // run.batches.steps)
        set_learning_rate(run.optimiser, rate)
        results.append(weight_step(run.model, run.optimiser, (images, labels), run.where, teacher=teacher))
        run.step += 1
        variant.after(run)
    model.binarise = binary.binarise  # type: ignore[attr-defined]  # if a variant had put another there
    loss, right = torch.stack(results[-run.batches.steps :]).mean(0).tolist()
    return loss, right


# --- rows -------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text("utf-8"))["rows"] if path.exists() else []


def add_row(path: Path, row: dict[str, Any], locks: Path) -> None:
    """Append a row to the results, other processes excluded."""
    with (locks / "results").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = [*read_rows(path), row]
        content = {"head": HEAD, "table": tabulate(rows), "rows": rows}
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def tabulate(rows: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    """A line a network, schedule and variant, with its gain over the default: paired by seed, ± its standard error."""
    groups: dict[tuple[str, str, int, str], dict[int, dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["network"], row["epochs"], row["variant"]), {})[row["seed"]] = row
    lines: list[tuple[object, ...]] = []
    order = list(VARIANTS)
    for key, found in sorted(groups.items(), key=lambda item: (*item[0][:3], order.index(item[0][3]))):
        data, network, epochs, variant = key
        default = groups.get((data, network, epochs, "default"), {})
        gains = [row["top1_percent"] - default[seed]["top1_percent"] for seed, row in found.items() if seed in default]
        error = f" ± {statistics.stdev(gains) / len(gains) ** 0.5:.2f}" if len(gains) > 1 else ""
        gain = f"{statistics.mean(gains):+.2f}{error}" if gains and variant != "default" else None
        means = [statistics.mean(row[key] for row in found.values()) for key in MEANS]
        shown = [f"{mean:.{digits}f}" for mean, digits in zip(means, (2, 2, 0), strict=True)]
        lines.append((data, network, epochs or "by effort", VARIANTS[variant].title, len(found), *shown, gain))
    return lines


MEANS = ("top1_percent", "train_top1_percent", "seconds")
HEAD = ("data", "network", "epochs", "change", "seeds", "top-1 %", "training top-1 %", "CPU s", "gain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="as in dmsflow search: cifar10, or image-folder:PATH")
    parser.add_argument("--data-dir", help="as in dmsflow search")
    parser.add_argument("--train-images", type=int, help="as the setting data.train_images")
    parser.add_argument(
        "--data", default=CIFAR, help="what to call the data; others than CIFAR-10 keep their test images"
    )
    parser.add_argument("--networks", nargs="+", default=["vgg11", "resnet18"])
    parser.add_argument("--epochs", nargs="+", type=int, default=[12], help="0: those of --effort normal")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--locks", type=Path, default=Path("runs/recipe"), help="folder of the rows in progress")
    parser.add_argument("--tabulate", action="store_true", help="run nothing; print the table")
    arguments = parser.parse_args()
    if not arguments.tabulate:
        run_rows(arguments)
    print_table("Validation", HEAD, tabulate(read_rows(arguments.results)), stream=sys.stdout)


def run_rows(arguments: argparse.Namespace) -> None:
    if not arguments.dataset:
        raise DmsflowError("--dataset", "is not given", "give --dataset image-folder:PATH, or --tabulate")
    data = Data(name=arguments.dataset, data_dir=arguments.data_dir, train_images=arguments.train_images)
    dataset = datasets.load_dataset(data)
    dataset = split(dataset) if arguments.data == CIFAR else dataset
    for seed in arguments.seeds:
        for epochs in arguments.epochs:
            for network in arguments.networks:
                for name in arguments.variants:
                    row = {"data": arguments.data, "network": network, "epochs": epochs, "variant": name, "seed": seed}
                    if any(all(done[key] == row[key] for key in KEY) for done in read_rows(arguments.results)):
                        continue
                    with jobs.lock(arguments.locks / "-".join(map(str, row.values()))) as free:
                        if not free:
                            continue
                        print(time.strftime("%H:%M:%S"), *row.values(), file=sys.stderr, flush=True)
                        chosen = settings.resolve(
                            TrainSettings, epochs=epochs or None, seed=seed, threads=1, **VARIANTS[name].changes
                        )
                        built = load_network(network, dataset.channels, dataset.resolution, len(dataset.classes))
                        found = fit(built, dataset, VARIANTS[name], chosen)
                        add_row(
                            arguments.results,
                            {**row, **found, "environment": describe_environment(threads=1)},
                            arguments.locks,
                        )


if __name__ == "__main__":
    script.run(main)
