"""The train stage: trains the chosen network from scratch or from its full-precision weights, or continues a finished run."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from dmsflow import datasets, manifest
from dmsflow.datasets import Dataset
from dmsflow.deploying import folding
from dmsflow.errors import DmsflowError
from dmsflow.files import PARTIAL, hash_file
from dmsflow.manifest import Flow, Link, Manifest, load_manifest
from dmsflow.network import cost
from dmsflow.network.network import Network, has_int8_stem
from dmsflow.settings import Precision, TrainSettings
from dmsflow.terminal import track
from dmsflow.training import checkpoint, processes
from dmsflow.training.batches import Batches, Order, generator, whole, with_crop
from dmsflow.training.log import Log
from dmsflow.training.model import Model, best_effort_initialise, centre_quantisers
from dmsflow.training.place import choose_place
from dmsflow.training.step import check_finite, evaluate, make_optimiser, set_learning_rate, top1_percent, weight_step

KEPT_LOGITS = 1024  # test images whose logits are kept, for export to compare with


def run_stage(source: Path, settings: TrainSettings, out: Path, flow: Flow) -> Path:
    """Train the network of a search manifest and write `out/train.json` and its weights.

    A finished run goes on where `flow` resumes and `settings` ask for more epochs.

    Raises:
        DmsflowError: a bad manifest or data set, a NaN loss, settings that contradict each other.
    """
    path = out / "train.json"
    parent = load_manifest(source, "search")
    _check(settings)
    macs_m = parent.metrics["macs_m"]  # read here, so that one that lacks is refused before the training
    before = _find_shorter_run(path, settings, flow, source)
    if before is None and manifest.is_finished(path, settings, flow, source=source):
        return path
    continued = {name: before.metrics[name] for name in ("epochs", "top1_percent", "seconds")} if before else None
    checkpoints = {kind: checkpoint.prepare(out / f"train-{kind}.checkpoint", flow) for kind in ("float", "binary")}
    with processes.first_ahead():
        dataset = _load_dataset(source, parent)
    where = choose_place(settings)
    count = len(dataset.train)
    order = Order(np.arange(count), min(settings.batch_size, count), settings.seed, purpose="train")
    epochs = count_epochs(settings, order.steps)
    cropped = with_crop(dataset, settings.crop, epochs)
    batches = Batches(cropped, dataset.train, order, where, parent.data.workers)
    log = Log(out / "train.jsonl", tensorboard=flow.tensorboard)
    course = Course(parent, settings, batches, epochs, hash_file(source), checkpoints, log)
    model = _train(course, _load_teacher(settings, dataset, parent.network), (path, before) if before else None)
    processes.wait()  # nothing is read any more that is written now
    if not processes.is_first():
        return path
    test = whole(dataset, dataset.test, where, parent.data.workers)
    with track("train: test", len(dataset.test), "image") as progress:
        logits, labels = evaluate(model, test, advance=progress.advance)
    made = out / f".train{PARTIAL}" if before else out  # then the shorter run stands until this one is whole
    written = {"weights": made / "train.safetensors", "logits": made / "train-logits.safetensors"}
    checkpoint.save_tensors(written["weights"], model.tensors())
    checkpoint.save_tensors(written["logits"], {"logits": logits[:KEPT_LOGITS]})
    memory_bytes = cost.memory_bytes(parent.network, parent.widths, binary=settings.precision == "binary")
    metrics: dict[str, Any] = {"top1_percent": top1_percent(logits, labels), "test_images": len(labels)}
    metrics |= {"epochs": epochs, "memory_mib": memory_bytes / cost.MIB, "macs_m": macs_m}
    metrics["seconds"] = round(sum(row["seconds"] for row in log.rows), 1)  # those before an interruption too
    metrics |= {"continued_from": continued} if continued else {}
    done = manifest.Done(written, metrics, where.facts())
    manifest.finish_stage(made / path.name, settings, flow, done, (source, parent))
    if before:
        manifest.put_in_place(["train"], made.replace(out / f"train{manifest.FORCED}"), path.name)
    for saved in checkpoints.values():
        saved.unlink(missing_ok=True)
    return path


def plan_stage(source: Path, settings: TrainSettings, out: Path) -> list[tuple[str, str]]:
    """What `run_stage` would do."""
    parent = load_manifest(source, "search")
    _check(settings)
    dataset = _load_dataset(source, parent, planned=True)
    _load_teacher(settings, dataset, parent.network)
    epochs = count_epochs(settings, max(1, len(dataset.train) // settings.batch_size))
    plan = f"{settings.float_epochs or epochs} epochs float, then " if needs_float(settings) else ""
    plan += f"{epochs} epochs {settings.precision}" + (f" with the teacher {settings.teacher}" * bool(settings.teacher))
    return [
        ("network", f"{parent.network.name}, widths {' '.join(map(str, parent.widths.values()))}"),
        ("cost", f"{parent.metrics['memory_mib']:.4f} MiB, {parent.metrics['macs_m']:.2f} M MACs"),
        ("data", f"{dataset.name}, {len(dataset.train)} training and {len(dataset.test)} test images"),
        ("schedule", f"{plan}, batch {settings.batch_size}, {settings.optimiser}, {settings.schedule}"),
        ("writes", str(out / "train.json")),
    ]


def count_epochs(settings: TrainSettings, steps: int) -> int:
    """Those of the settings; without them those of the effort, and as many more as a small data set needs.

    Args:
        steps: in an epoch.

    >>> count_epochs(TrainSettings(normal_epochs=12, min_steps=3000), steps=781)
    12
    >>> count_epochs(TrainSettings(normal_epochs=12, min_steps=3000), steps=7)
    429
    """
    return settings.epochs or max(settings.normal_epochs, math.ceil(settings.min_steps / steps))


def needs_float(settings: TrainSettings) -> bool:
    """Whether the network is trained in full precision first, as a start or as the teacher."""
    return settings.from_float or settings.teacher == "float"


def _check(settings: TrainSettings) -> None:
    if needs_float(settings) and settings.precision == "float":
        option = "--from-float" if settings.from_float else "--teacher float"
        raise DmsflowError(option, "is for a binary network, and --precision is float", "leave one of them out")


def _find_shorter_run(path: Path, settings: TrainSettings, flow: Flow, source: Path) -> Manifest | None:
    """The finished run that `settings` only ask more epochs of; None: there is none, or it is not to be resumed."""
    if not (flow.resume and settings.epochs and path.exists() and manifest.is_made_from(source, path)):
        return None
    done = load_manifest(path, "train")
    same = not manifest.find_change(done, settings, ignored=("epochs", "normal_epochs", "min_steps"))
    return done if same and settings.epochs > done.metrics.get("epochs", math.inf) else None  # not known of old ones


def _load_teacher(settings: TrainSettings, dataset: Dataset, network: Network) -> Model | None:
    """The network of a train manifest, to learn from; None: there is none yet."""
    if settings.teacher in (None, "float"):
        return None
    path = Path(settings.teacher)
    done = load_manifest(path, "train")
    if (done.network.classes, done.network.channels) != (len(dataset.classes), dataset.channels):
        what = f"has {done.network.classes} classes and {done.network.channels} channels, unlike {dataset.name}"
        raise DmsflowError(f"--teacher {path}", what, "give a network that was trained on such images")
    if network.channels > 1 and has_int8_stem(done.network) != has_int8_stem(
        network
    ):  # images are normalised otherwise
        what = "has another kind of stem than the network that it is to teach"
        raise DmsflowError(f"--teacher {path}", what, "search the widths of both with --stem float")
    model = Model(done.network, done.widths, precision=done.settings["precision"])
    _load_weights(model, path, done)
    return model.eval()


def _load_weights(model: Model, path: Path, done: Manifest) -> None:
    """Give a model the weights of the finished training whose manifest is at `path`."""
    tensors, _ = checkpoint.load_tensors(manifest.verify(path, done.artifacts["weights"]))
    model.load(tensors)


def _load_dataset(source: Path, parent: Manifest, *, planned: bool = False) -> Dataset:
    """The data set of a search, refused unless it still has the shape that the network was searched for."""
    dataset, network = datasets.load_dataset(parent.data, planned=planned), parent.network
    present = (dataset.channels, dataset.resolution, len(dataset.classes))
    expected = (network.channels, network.resolution, network.classes)
    if present != expected:
        what = f"has (channels, pixels, classes) {present}, but {source.name} was searched on {expected}"
        raise DmsflowError(f"data set {dataset.name}", what, "use the data set of the search")
    return datasets.with_one_mean(dataset) if has_int8_stem(network) else dataset


@dataclass(frozen=True)
class Course:
    """The parts of a training, in full precision or binary.

    Attributes:
        parent, fingerprint: the search manifest, and its hash.
        epochs: of the network that is wanted.
        checkpoints: by precision.
    """

    parent: Manifest
    settings: TrainSettings
    batches: Batches
    epochs: int
    fingerprint: str
    checkpoints: dict[str, Path]
    log: Log


def _train(course: Course, teacher: Model | None, before: Link | None) -> Model:
    """The trained network, its stem rounded as export will round it: the file is compared with what was trained.

    Args:
        before: a finished run that goes on.
    """
    settings, dataset, device = course.settings, course.batches.dataset, course.batches.where.device

    def new_model(precision: Precision) -> Model:
        torch.manual_seed(settings.seed)
        model = Model(course.parent.network, course.parent.widths, precision=precision)
        if settings.centred:
            centre_quantisers(model)
        return model.to(device)

    model, first = new_model(settings.precision), 0
    if before:
        _load_weights(model, *before)
        first = before[1].metrics["epochs"]
        log = course.log
        rows = msgspec.json.Decoder().decode_lines(log.path.read_bytes()) if log.path.exists() else []
        log.rows += [row for row in rows if row["epoch"] <= first]  # not those of a killed one after it
    if needs_float(settings):
        full = new_model("float")
        _fit(full, course, 0, settings.float_epochs or course.epochs)
        if settings.from_float and not before:
            best_effort_initialise(model, full)
            model.constrain()
        teacher = full.eval() if settings.teacher else None
    _fit(model, course, first, course.epochs, teacher and teacher.to(device))
    if settings.precision == "binary":
        weights = {name: tensor.detach().cpu().numpy() for name, tensor in model.tensors().items()}
        rounded = folding.round_weights(model.network, model.widths, weights, dataset.mean, dataset.std)
        model.load({name: torch.from_numpy(array) for name, array in rounded.items()})
    return model


def _fit(model: Model, course: Course, first: int, last: int, teacher: Model | None = None) -> None:
    """Train from epoch `first` to `last`, or resume from the checkpoint, which stays there at the end."""
    settings, batches, saved, log = course.settings, course.batches, course.checkpoints[model.precision], course.log
    title = "train" if model.precision == "binary" else "train float"
    optimiser = make_optimiser(model, settings)
    step, results = first * batches.steps, list[Tensor]()  # loss and fraction right of every step of this epoch
    if saved.exists():
        tensors, facts = checkpoint.load_checkpoint(saved, settings, course.fingerprint)
        with checkpoint.continuing(saved):
            checkpoint.restore(tensors, model, [optimiser])
            log.rows[:] = facts["rows"]
            step = facts["step"].__index__()
            results = list(torch.tensor(facts["seen"], device=batches.where.device).view(-1, 2))
    last_saved = began = time.monotonic()
    counted = 0  # images since `began`
    model.train()
    with track(title, last, "epoch", done=step // batches.steps) as progress:
        for images, labels in batches.run(step, last * batches.steps):
            set_learning_rate(optimiser, learning_rate(settings, step / batches.steps - first, last - first))
            draw = generator(settings.seed, "dropout", step)
            results.append(weight_step(model, optimiser, (images, labels), batches.where, teacher=teacher, draw=draw))
            step, counted = step + 1, counted + batches.order.size
            ended = step % batches.steps == 0
            if ended:
                loss, right = torch.stack(results).mean(0).tolist()
                check_finite(loss, title)
                row = {"phase": model.precision, "epoch": step // batches.steps, "loss": loss}
                row |= {"top1_percent": 100 * right, "learning_rate": optimiser.param_groups[0]["lr"]}
                seconds = time.monotonic() - began
                log.add(row | {"seconds": round(seconds, 3), "images_per_second": (speed := counted / seconds)})
                progress.advance(note=f"loss {loss:.3f}, top-1 {100 * right:.1f} %, {speed:,.0f} images/s")
                results, counted, began = [], 0, time.monotonic()
            if ended or time.monotonic() - last_saved > checkpoint.SAVE_INTERVAL_S:
                facts = {"settings": settings, "source": course.fingerprint, "step": step, "rows": log.rows}
                facts["seen"] = [row.tolist() for row in results]
                checkpoint.save_checkpoint(saved, model, [optimiser], facts)
                last_saved = time.monotonic()


def learning_rate(settings: TrainSettings, epoch: float, epochs: int) -> float:
    """Of a (fractional) epoch: a cosine to 0, or a multiplication at every milestone."""
    if settings.schedule == "cosine":
        return settings.learning_rate * (1 + math.cos(math.pi * epoch / epochs)) / 2
    passed = sum(epoch >= milestone for milestone in settings.milestones)
    return settings.learning_rate * settings.milestone_factor**passed
