"""What makes a training step of VGG-11 quick on a CPU: memory format, bfloat16, threads.

Variants take turns on the same batch; the share of the convolutions alone is measured beside them.

    python benchmarks/train_step.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
import torch.nn.functional as F

from dmsflow import training
from dmsflow.model import Convolution, Model
from dmsflow.networks import vgg11
from dmsflow.training import Place

BATCH = 64
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15, help="of each kind; the median counts")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    print(
        "| threads | float32, channels first | float32, channels last | bfloat16 mixed, channels last | its convolutions alone |"
    )
    print("|---|---|---|---|---|")
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        cells = " | ".join(f"{ms:.1f} ms" for ms in medians(variants(threads), arguments.steps))
        print(f"| {threads} | {cells} |", flush=True)


def variants(threads: int) -> list[Callable[[], None]]:
    network = vgg11.build(3, 32, 10)
    model = Model(network, network.widths)
    optimiser = training.sgd(model, learning_rate=0.01, momentum=0.9, weight_decay=1e-4)
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))

    def step(mixed: bool) -> None:
        training.weight_step(model, optimiser, images, labels, Place(CPU, threads, mixed))

    def channels_first() -> None:
        with mock.patch.object(torch, "channels_last", torch.contiguous_format):
            step(False)

    return [channels_first, lambda: step(False), lambda: step(True), convolutions(model, images)]


def convolutions(model: Model, images: torch.Tensor) -> Callable[[], None]:
    """Forward and backward of every convolution of the model, and nothing else, in bfloat16."""
    seen: list[tuple[torch.Tensor, torch.Tensor, Convolution]] = []

    def record(op: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(op, Convolution)
        image = inputs[0].detach().bfloat16().contiguous(memory_format=torch.channels_last)
        weight = op.weight.detach().bfloat16().requires_grad_()
        seen.append((image.requires_grad_(bool(seen)), weight, op))

    hooks = [op.register_forward_hook(record) for op in model.ops if isinstance(op, Convolution)]
    model(images)
    for hook in hooks:
        hook.remove()

    def run() -> None:
        for image, weight, op in seen:
            out = F.conv2d(image, weight, stride=op.stride, padding=op.padding)
            out.backward(torch.ones_like(out))  # type: ignore[no-untyped-call]

    return run


def medians(runs: list[Callable[[], None]], steps: int) -> list[float]:
    """Milliseconds of each, in turns, the first two rounds left out."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(steps + 2):
        for run, kept in zip(runs, seconds, strict=True):
            began = time.perf_counter()
            run()
            kept.append(time.perf_counter() - began)
    return [1e3 * statistics.median(kept[2:]) for kept in seconds]


if __name__ == "__main__":
    main()
