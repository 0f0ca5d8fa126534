"""Packs a finished chain into models/NAME/: its manifests, compact weights, and a model card made from them.

    python benchmarks/take_home.py runs/digits digits
    python benchmarks/take_home.py runs/c10 vgg11-cifar10-0.08 --data-name cifar10

Compact weights have a bit for each weight of a binary convolution, and the mean magnitude of each filter. The same
model file is written from them, bit for bit, which is checked here. The file itself is left out, since `dmsflow bench
NAME` and `dmsflow export NAME` write it.
"""

from __future__ import annotations

import argparse
import ast
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import script
from numpy.typing import NDArray
from safetensors.numpy import save_file

from dmsflow import manifest, plugin
from dmsflow.datasets import Dataset
from dmsflow.deploying.export import choose_pixels, load_data, load_tensors, write_model
from dmsflow.deploying.folding import TrainedWeights, Weights, binarise
from dmsflow.deploying.target import load_target
from dmsflow.environment import measured_machine
from dmsflow.errors import DmsflowError
from dmsflow.files import describe_artifact, write_atomically, writing
from dmsflow.manifest import Manifest, Stage
from dmsflow.settings import ExportSettings, resolve
from dmsflow.terminal import format_threads, milliseconds

MODELS = Path(__file__).parent.parent / "models"
STAGES: tuple[Stage, ...] = get_args(Stage)
BUDGETS = {"memory_mib": "MiB", "macs_m": "million multiply-accumulates", "latency_ms": "ms"}
PATH_OF_A_MACHINE = re.compile(r"(?:^|[\s=:])(?:/[^/\s]|~|[A-Za-z]:\\)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a chain, up to its bench.json")
    parser.add_argument("name", help="of the model, such as vgg11-cifar10-0.08")
    parser.add_argument("--data-name", help="the data set by name, where the chain has the path of an image folder")
    parser.add_argument("--root", type=Path, default=Path(), help="make paths below it relative; default: this folder")
    arguments = parser.parse_args()
    print(pack(arguments.run, MODELS / arguments.name, arguments.data_name, arguments.root))


def pack(run: Path, folder: Path, data_name: str | None = None, root: Path = Path()) -> Path:
    """Write the folder of a model, and give its path.

    Args:
        run: the chain's folder.
        folder: named as the model is.
        data_name: stands for the path of an image folder.
        root: paths below it are made relative.

    Raises:
        DmsflowError: the chain is not a whole one of a binary network, its manifests name paths of this machine, or
            the compact weights give another file.
    """
    chain = manifest.chain(run / "bench.json")
    by_stage = {each.stage: each for _, each in chain}
    train = by_stage["train"]
    if tuple(by_stage) != STAGES or train.settings.get("precision") == "float":
        raise DmsflowError(run, "is not the chain of a binary network", "give one with search, train, export and bench")
    if "top1_percent" not in by_stage["bench"].metrics:
        raise DmsflowError(run / "bench.json", "has no top-1", "measure it again, with the images there")
    if data_name and data_name not in plugin.list_plugins("datasets"):
        raise DmsflowError(f"--data-name {data_name}", "is unknown", "use a name of dmsflow list datasets")
    weights = load_tensors(run / "train.json", train, "weights")
    data = load_data(train, weights)
    compact = pack_weights(train, weights, data)
    check_same_file(by_stage["export"], train, compact, data, run)
    folders = {run: f"runs/{folder.name}", root: ""}
    cleaned = {stage: clean(by_stage[stage], folders, data_name) for stage in STAGES}  # before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder / "train.safetensors") as partial:
        save_file(compact, partial)
    above = None
    for stage, each in cleaned.items():
        artifacts = {"weights": describe_artifact(folder / "train.safetensors", folder)} if stage == "train" else {}
        parent = describe_artifact(above, folder) if above else None
        above = folder / f"{stage}.json"
        manifest.save_manifest(above, msgspec.structs.replace(each, artifacts=artifacts, parent=parent))
    write_atomically(folder / "README.md", card(folder).encode())
    return folder


def pack_weights(train: Manifest, weights: Weights, data: Dataset) -> dict[str, NDArray[Any]]:
    """What `folding` takes: signs and magnitudes of binary convolutions, and mean and std of the data set."""
    trained, compact = TrainedWeights(train.network, train.widths, weights), dict(weights)
    for layer in train.network.layers:
        if layer.op == "binary_conv":
            del compact[f"{layer.name}.weight"]
            signs, magnitude = binarise(trained.filters(layer))
            compact[f"{layer.name}.signs"] = np.packbits(signs.reshape(len(signs), -1) > 0, axis=1)
            compact[f"{layer.name}.magnitude"] = magnitude
    return compact | {"mean": np.array(data.mean, np.float64), "std": np.array(data.std, np.float64)}


def check_same_file(export: Manifest, train: Manifest, compact: Weights, data: Dataset, run: Path) -> None:
    """Refuse weights that give another file than the one of the chain."""
    model = manifest.verify(run / "export.json", export.artifacts["model"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, model.name)
        pixels = choose_pixels(train, resolve(ExportSettings, **export.settings))
        write_model(train, compact, data, path, load_target(export.settings["target"]), pixels)
        if path.read_bytes() != model.read_bytes():
            what = "is not what its weights give once they are packed"
            raise DmsflowError(model, what, "export it again, by this version and without --converter official")


def clean(each: Manifest, folders: Mapping[Path, str], data_name: str | None) -> Manifest:
    """A manifest without paths of this machine.

    Args:
        folders: what stands for them in paths.
        data_name: stands for the path of an image folder.

    Raises:
        DmsflowError: one is left.
    """

    def put_names(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: put_names(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [put_names(inner) for inner in value]
        if not isinstance(value, str):
            return value
        for path, short in folders.items():
            value = re.sub(rf"{re.escape(str(path.resolve()))}(/|$)", f"{short}\\1" if short else "", value)
        value = re.sub("image-folder:.*", data_name, value) if data_name else value
        if PATH_OF_A_MACHINE.search(value):
            right = "give --data-name if it is that of images, or else --root"
            raise DmsflowError(f"{each.stage}.json", f"names {value}, a path of this machine", right)
        return value

    content = msgspec.to_builtins(each)
    if folder := content["data"]["data_dir"]:
        content["data"]["data_dir"], command = None, content["command"]
        content["command"] = [
            word
            for before, word in zip(["", *command], command, strict=False)
            if "--data-dir" not in (before, word.partition("=")[0]) and word != folder
        ]
    return msgspec.convert(put_names(content), Manifest)


def card(folder: Path) -> str:
    """The model card, from the manifests of a folder."""
    chain = {each.stage: each for _, each in manifest.chain(folder / "bench.json")}
    search, train, export, bench = (chain[stage] for stage in STAGES)
    network, data, found, ran = train.network, train.data, bench.metrics, bench.environment
    about = ast.get_docstring(ast.parse(plugin.path_of("datasets", data.name).read_text("utf-8"))) or ""
    about = " ".join(about.split())
    epochs = train.metrics.get("epochs") or train.settings["epochs"]
    teacher = ", with a teacher" if train.settings.get("teacher") else ""
    limits = [f"{search.settings[key]:g} {unit}" for key, unit in BUDGETS.items() if search.settings.get(key)]
    runtime = next(text for label, text in ran["runtimes"].items() if label not in ("float32", "int8"))
    where = (measured_machine(ran)["processor"], format_threads(ran["threads"]), runtime, ran["date"][:10])
    used = f", {data.train_images:,} of its training images" if data.train_images else ""
    suffix = load_target(export.settings["target"]).suffix
    rows = {
        "network": f"`{network.name}`, 1-bit; {network.resolution}×{network.resolution}×{network.channels} pixels, "
        f"{network.classes} classes",
        "data": f"`{data.name}`{used}",
        "budgets": ", ".join(limits) or "the memory of the base network",
        "widths": f"{' '.join(map(str, train.widths.values()))} (`--method {search.settings['method']}`)",
        "memory": f"{train.metrics['memory_mib']:.4f} MiB of parameters",
        "multiply-accumulates": f"{train.metrics['macs_m']:.2f} million",
        "top-1": f"{found['top1_percent']:.2f} % of {found['top1_images']:,} test images, by the exported file",
        "file": f"{found['file_bytes']:,} bytes (`{suffix}`)",
        "latency": f"{milliseconds(found['latency_ms_median'])} ms, median ({', '.join(where)})",
        "trained": f"{epochs} epochs{teacher}, seed {train.settings['seed']}, {train.environment['date'][:10]}",
        "licence": "Apache License 2.0, as dmsflow",
    }
    table = "\n".join(f"| {label} | {text} |" for label, text in rows.items())
    return f"""# {folder.name}

<!-- Written by benchmarks/take_home.py from the manifests beside it. -->

| | |
|---|---|
{table}

{about}

```sh
dmsflow bench {folder.name}
dmsflow export {folder.name} --target onnx
```
"""


if __name__ == "__main__":
    script.run(main)
