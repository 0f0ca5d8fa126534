"""What makes training VGG-11 quick on a CPU: memory format, bfloat16, threads; and what is lost beside convolutions.

Variants of a step take turns on the same batch, with the convolutions alone among them: forward and
backward of each, in bfloat16, on the inputs that the model gives them; and so are the other kinds of
operation, which shows where the time goes. Then an epoch of training, through the same batches and
steps as `dmsflow train`, takes turns with the convolutions alone, a few steps at a time.

    python benchmarks/train_step.py --out docs/results/train-step.json
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import script
import torch
import torch.nn.functional as F

from dmsflow.datasets import ArraySplit, Dataset
from dmsflow.environment import describe_environment
from dmsflow.files import write_atomically
from dmsflow.network.architectures import vgg11
from dmsflow.settings import TrainSettings
from dmsflow.terminal import print_table
from dmsflow.training.batches import Batches, Order
from dmsflow.training.binary import binarise
from dmsflow.training.model import Convolution, Model
from dmsflow.training.place import Place, choose_place
from dmsflow.training.step import make_optimiser, set_learning_rate, weight_step

Run = Callable[[], Any]

BATCHES = (64, 128)  # of dmsflow train and of the paper; of dmsflow search
CPU = torch.device("cpu")
IMAGES = 20_000
TURN = 12  # steps
STEP_KINDS = {
    "float32_first_ms": "float32, channels first",
    "float32_last_ms": "float32, channels last",
    "mixed_ms": "bfloat16 mixed, channels last",
    "convolutions_ms": "its convolutions alone",
}
PARTS = ("binarise", "quantize", "batch_norm", "max_pool", "optimiser")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15, help="of each kind; the median counts")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--images", type=int, default=IMAGES, help="in the epoch")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    arguments = parser.parse_args()
    kinds = itertools.product(arguments.batches, arguments.threads)
    rows = [row(batch, threads, arguments.steps, arguments.images) for batch, threads in kinds]
    head = (
        "batch",
        "threads",
        *STEP_KINDS.values(),
        "mixed ÷ convolutions",
        "epoch µs an image",
        "convolutions",
        "epoch ÷ convolutions",
    )
    cells = [
        (
            str(row["batch"]),
            str(row["threads"]),
            *(f"{row[key]:.1f} ms" for key in STEP_KINDS),
            f"{row['mixed_ms'] / row['convolutions_ms']:.2f}",
            f"{row['epoch_image_us']:.0f}",
            f"{row['convolutions_image_us']:.0f}",
            f"{row['epoch_ratio']:.2f}",
        )
        for row in rows
    ]
    print_table(f"VGG-11, 32×32 pixels, an epoch of {arguments.images} images", head, cells)
    parts = [
        (str(row["batch"]), str(row["threads"]), *(f"{row['parts_ms'][part]:.1f} ms" for part in PARTS)) for row in rows
    ]
    print_table("Of a mixed step, alone", ("batch", "threads", *PARTS), parts)
    if arguments.out:
        content = {
            "command": f"python benchmarks/train_step.py --images {arguments.images}",
            "environment": describe_environment(torch_device="cpu"),
            "images": arguments.images,
            "rows": rows,
        }
        write_atomically(arguments.out, (json.dumps(content, indent=1) + "\n").encode())


def row(batch: int, threads: int, steps: int, images: int) -> dict[str, Any]:
    choose_place(TrainSettings(device="cpu", threads=threads))
    runs, parts = variants(batch, threads)
    measured = dict(zip((*STEP_KINDS, *parts), medians([*runs, *parts.values()], steps), strict=True))
    epoch, alone = an_epoch(batch, threads, images)
    return {
        "batch": batch,
        "threads": threads,
        **{key: measured[key] for key in STEP_KINDS},
        "parts_ms": {part: measured[part] for part in PARTS},
        "epoch_image_us": epoch,
        "convolutions_image_us": alone,
        "epoch_ratio": epoch / alone,
    }


def variants(batch: int, threads: int) -> tuple[list[Run], dict[str, Run]]:
    """The kinds of step, as STEP_KINDS; and the parts of the mixed one beside its convolutions."""
    network = vgg11.build(3, 32, 10)
    model = Model(network, network.widths)
    optimiser = make_optimiser(model, TrainSettings())
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    with mock.patch.object(torch, "channels_last", torch.contiguous_format):
        first = Model(network, network.widths)
    others = make_optimiser(first, TrainSettings())

    def channels_first() -> None:
        with mock.patch.object(torch, "channels_last", torch.contiguous_format):
            weight_step(first, others, (images, labels), Place(CPU, threads, False))

    def step(mixed: bool) -> None:
        weight_step(model, optimiser, (images, labels), Place(CPU, threads, mixed))

    kinds = [channels_first, lambda: step(False), lambda: step(True), convolutions(model, images)]
    return kinds, {**others_alone(model, images), "optimiser": optimiser.step}


def convolutions(model: Model, images: torch.Tensor) -> Callable[[], None]:
    """Forward and backward of every convolution of the model, and nothing else, in bfloat16."""
    recorded: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, Convolution]] = []

    def record(op: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(op, Convolution)
        image = inputs[0].detach().bfloat16().contiguous(memory_format=torch.channels_last)
        gradient = torch.randn_like(output.detach().bfloat16())
        weight = op.weight.detach().bfloat16().requires_grad_()
        recorded.append((image.requires_grad_(bool(recorded)), weight, gradient, op))

    hooks = [op.register_forward_hook(record) for op in model.ops if isinstance(op, Convolution)]
    model(images)
    for hook in hooks:
        hook.remove()

    def run() -> None:
        for image, weight, gradient, op in recorded:
            out = F.conv2d(image, weight, stride=op.stride, padding=op.padding)
            torch.autograd.grad(out, [each for each in (image, weight) if each.requires_grad], gradient)

    return run


def others_alone(model: Model, images: torch.Tensor) -> dict[str, Run]:
    """Forward and backward of all binarisers, and of every kind of op without them, as in mixed training."""
    made: dict[str, list[Run]] = {part: [] for part in PARTS[:-1]}
    binarised = functools.partial(binarise, dtype=torch.bfloat16)
    weights = [op.weight for op in model.ops if isinstance(op, Convolution) and op.binary]
    made["binarise"] = [repeated(binarised, binarised(each), [each]) for each in weights]

    def record(kind: str, op: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        given = [each.detach().requires_grad_() for each in inputs]
        run = functools.partial(op, active_in=None, active_out=None)
        made[kind].append(repeated(run, output, given, *op.parameters()))

    layers = [layer for layer in model.network.layers if layer.op in made]
    ops = dict(zip((layer.name for layer in model.network.layers), model.ops, strict=True))
    hooks = [ops[layer.name].register_forward_hook(functools.partial(record, layer.op)) for layer in layers]
    with torch.autocast("cpu", torch.bfloat16):
        model(images)
    for hook in hooks:
        hook.remove()
    return {kind: functools.partial(in_turn, runs) for kind, runs in made.items()}


def repeated(op: Callable[..., torch.Tensor], output: torch.Tensor, inputs: list[torch.Tensor], *others: Any) -> Run:
    """Forward and backward of an op, for the gradients of its inputs and of other tensors."""
    gradient = torch.randn_like(output.detach())
    return lambda: torch.autograd.grad(op(*inputs), [*inputs, *others], gradient)


def in_turn(runs: list[Run]) -> None:
    for run in runs:
        run()


def medians(runs: list[Run], steps: int) -> list[float]:
    """Milliseconds of each, in turns, the first two rounds left out."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(steps + 2):
        for run, kept in zip(runs, seconds, strict=True):
            kept.append(timed(run))
    return [1e3 * statistics.median(kept[2:]) for kept in seconds]


def timed(run: Run) -> float:
    """Seconds."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def an_epoch(batch: int, threads: int, count: int) -> tuple[float, float]:
    """Microseconds for an image of an epoch of mixed training, and of its convolutions alone: medians of the turns."""
    random = np.random.default_rng(0)
    split = ArraySplit(random.integers(0, 256, (count, 32, 32, 3), np.uint8), random.integers(0, 10, count))
    dataset = Dataset("random", tuple("0123456789"), split, split, (127,) * 3, (74.0,) * 3, crop_padding=4, flip=True)
    where = Place(CPU, threads, True)
    batches = Batches(dataset, split, Order(np.arange(count), batch, seed=0, purpose="train"), where, workers=0)
    network = vgg11.build(3, 32, 10)
    model = Model(network, network.widths)
    optimiser = make_optimiser(model, TrainSettings())
    alone = convolutions(model, torch.randn(batch, 3, 32, 32))
    left = batches.run(0, batches.steps)

    def train() -> None:
        for images, labels in itertools.islice(left, TURN):
            set_learning_rate(optimiser, 0.01)
            weight_step(model, optimiser, (images, labels), where)

    def convolve() -> None:
        for _ in range(TURN):
            alone()

    turns = [(timed(train), timed(convolve)) for _ in range(batches.steps // TURN)]
    trained, convolved = (1e6 * statistics.median(kind) / (TURN * batch) for kind in zip(*turns[1:], strict=True))
    return trained, convolved


if __name__ == "__main__":
    script.run(main)
