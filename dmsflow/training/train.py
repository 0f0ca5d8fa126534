"""The train stage: the chosen network from scratch, or from its full-precision self."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmsflow import datasets, manifest
from dmsflow.datasets import Dataset
from dmsflow.deploying import folding
from dmsflow.errors import DmsflowError
from dmsflow.files import hash_file
from dmsflow.manifest import Flow, Manifest, load_manifest
from dmsflow.network import cost
from dmsflow.settings import TrainSettings
from dmsflow.terminal import track
from dmsflow.training import checkpoint
from dmsflow.training.batches import Batches, Order, whole
from dmsflow.training.model import Model, Precision, best_effort_initialise
from dmsflow.training.place import choose_place, within_memory
from dmsflow.training.step import check_finite, evaluate, make_optimiser, set_learning_rate, top1_percent, weight_step

KEPT_LOGITS = 1024  # test images whose logits are kept, for export to compare with


@within_memory()
def run_stage(source: Path, settings: TrainSettings, out: Path, flow: Flow) -> Path:
    """Train the network of a search manifest and write `out/train.json` and its weights.

    Raises:
        DmsflowError: a bad manifest or data set, a NaN loss, settings that contradict each other.
    """
    path = out / "train.json"
    parent = load_manifest(source, "search")
    _check(settings)
    if manifest.is_finished(path, settings, flow):
        return path
    checkpoints = {kind: checkpoint.prepare(out / f"train-{kind}.checkpoint", flow) for kind in ("float", "binary")}
    dataset = _load_dataset(source, parent)
    where = choose_place(settings)
    began = time.monotonic()
    order = Order(np.arange(len(dataset.train)), settings.batch_size, settings.seed, purpose="train")
    batches = Batches(dataset, dataset.train, order, where, parent.data.workers)
    model = _train(parent, Course(settings, batches, hash_file(source), checkpoints))
    logits, labels = evaluate(model, whole(dataset, dataset.test, where, parent.data.workers))
    written = {"weights": out / "train.safetensors", "logits": out / "train-logits.safetensors"}
    checkpoint.save_tensors(written["weights"], model.tensors())
    checkpoint.save_tensors(written["logits"], {"logits": logits[:KEPT_LOGITS]})
    memory_bytes = cost.memory_bytes(parent.network, parent.widths, binary=settings.precision == "binary")
    metrics = {"top1_percent": top1_percent(logits, labels), "test_images": len(labels)}
    metrics |= {"memory_mib": memory_bytes / cost.MIB, "macs_m": parent.metrics["macs_m"]}
    metrics["seconds"] = round(time.monotonic() - began, 1)
    done = manifest.Done(written, metrics, where.facts())
    manifest.finish_stage(path, settings, flow, done, (source, parent))
    for saved in checkpoints.values():
        saved.unlink(missing_ok=True)
    return path


def plan_stage(source: Path, settings: TrainSettings, out: Path) -> list[tuple[str, str]]:
    """What `run_stage` would do."""
    parent = load_manifest(source, "search")
    _check(settings)
    dataset = _load_dataset(source, parent)
    epochs = f"{settings.float_epochs} epochs float, then " if settings.from_float else ""
    epochs += f"{settings.epochs} epochs {settings.precision}"
    return [
        ("network", f"{parent.network.name}, widths {' '.join(map(str, parent.widths.values()))}"),
        ("cost", f"{parent.metrics['memory_mib']:.4f} MiB, {parent.metrics['macs_m']:.2f} M MACs"),
        ("data", f"{dataset.name}, {len(dataset.train)} training and {len(dataset.test)} test images"),
        ("schedule", f"{epochs}, batch {settings.batch_size}, {settings.schedule}"),
        ("writes", str(out / "train.json")),
    ]


def _check(settings: TrainSettings) -> None:
    if settings.from_float and settings.precision == "float":
        raise DmsflowError("--from-float", "starts a binary network, and --precision is float", "leave one of them out")


def _load_dataset(source: Path, parent: Manifest) -> Dataset:
    """The data set of a search, refused unless it still has the shape that the network was searched for."""
    dataset, network = datasets.load_dataset(parent.data), parent.network
    present = (dataset.channels, dataset.resolution, len(dataset.classes))
    expected = (network.channels, network.resolution, network.classes)
    if present != expected:
        what = f"has (channels, pixels, classes) {present}, and {source.name} was searched on {expected}"
        raise DmsflowError(f"data set {dataset.name}", what, "use the data set of the search")
    return dataset


@dataclass(frozen=True)
class Course:
    """What a training is made of, in full precision or binary.

    Attributes:
        parent: fingerprint of the search manifest.
        checkpoints: by precision.
    """

    settings: TrainSettings
    batches: Batches
    parent: str
    checkpoints: dict[str, Path]


def _train(parent: Manifest, course: Course) -> Model:
    """The trained network, its stem rounded as export will round it: the file is compared with what was trained."""
    settings, dataset, device = course.settings, course.batches.dataset, course.batches.where.device

    def new_model(precision: Precision) -> Model:
        torch.manual_seed(settings.seed)
        return Model(parent.network, parent.widths, precision=precision).to(device)

    model = new_model(settings.precision)
    if settings.from_float:
        full = new_model("float")
        _fit(full, course, settings.float_epochs)
        best_effort_initialise(model, full)
        model.constrain()
    _fit(model, course, settings.epochs)
    if settings.precision == "binary":
        weights = {name: tensor.detach().cpu().numpy() for name, tensor in model.tensors().items()}
        rounded = folding.round_stem(model.network, model.widths, weights, dataset.mean, dataset.std)
        model.load({name: torch.from_numpy(array) for name, array in rounded.items()})
    return model


def _fit(model: Model, course: Course, epochs: int) -> None:
    """Train for some epochs, or resume from the checkpoint, which stays there at the end."""
    settings, batches, saved = course.settings, course.batches, course.checkpoints[model.precision]
    title = "train" if model.precision == "binary" else "train float"
    optimiser = make_optimiser(model, settings)
    step, results = 0, list[Tensor]()  # loss and fraction right of every step of this epoch, on the device
    if saved.exists():
        tensors, facts = checkpoint.load_checkpoint(saved)
        checkpoint.check_same(saved, facts, settings, course.parent)
        checkpoint.restore(tensors, [model], [optimiser])
        step, results = facts["step"], list(torch.tensor(facts["seen"]).view(-1, 2).to(batches.where.device))
    last_saved = time.monotonic()
    model.train()
    with track(title, epochs, "epoch", done=step // batches.steps) as progress:
        for images, labels in batches.run(step, epochs * batches.steps):
            set_learning_rate(optimiser, learning_rate(settings, step / batches.steps, epochs))
            results.append(weight_step(model, optimiser, (images, labels), batches.where))
            step += 1
            ended = step % batches.steps == 0
            if ended:
                loss, right = torch.stack(results).mean(0).tolist()
                check_finite(loss, title)
                progress.advance(note=f"loss {loss:.3f}, top-1 {100 * right:.1f} %")
                results = []
            if ended or time.monotonic() - last_saved > checkpoint.SAVE_INTERVAL_S:
                rows = [row.tolist() for row in results]
                facts = {"settings": settings, "source": course.parent, "step": step, "seen": rows}
                checkpoint.save_checkpoint(saved, [model], [optimiser], facts)
                last_saved = time.monotonic()


def learning_rate(settings: TrainSettings, epoch: float, epochs: int) -> float:
    """Of a (fractional) epoch: a cosine to 0, or a multiplication at every milestone."""
    if settings.schedule == "cosine":
        return settings.learning_rate * (1 + math.cos(math.pi * epoch / epochs)) / 2
    passed = sum(epoch >= milestone for milestone in settings.milestones)
    return settings.learning_rate * settings.milestone_factor**passed
