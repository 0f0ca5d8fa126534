"""The Python functions: the four stages and `load`, each with a typed result.

They write the same manifests as the command line, so the two can be mixed. Nothing is printed unless asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from dmsflow import manifest, options, plugin, preset, settings
from dmsflow.datasets import Dataset, arrays, load_dataset
from dmsflow.datasets.arrays import make_dataset
from dmsflow.errors import DmsflowError
from dmsflow.files import write_atomically
from dmsflow.manifest import Flow, Manifest
from dmsflow.network import Network
from dmsflow.reporting import shipped
from dmsflow.settings import Data
from dmsflow.terminal import Listener, listening

FLAGS = ("download", "force", "from-float", "operations", "resume", "tensorboard", "trust")


@dataclass(frozen=True)
class Result:
    """The result of a stage.

    Attributes:
        path: of its manifest, which the next stage reads, here or on the command line.
        manifest: its content; `metrics` has every number that was found, units in the names.
    """

    path: Path
    manifest: Manifest

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @property
    def network(self) -> Network:
        """The architecture, with its base widths."""
        return self.manifest.network

    @property
    def widths(self) -> dict[str, int]:
        """The channels of every named width."""
        return dict(self.manifest.widths)

    @property
    def metrics(self) -> dict[str, Any]:
        """The results as numbers, with units in the names."""
        return self.manifest.metrics

    @property
    def files(self) -> dict[str, Path]:
        """The files that the stage wrote, by role."""
        return {role: self.path.parent / artifact.path for role, artifact in self.manifest.artifacts.items()}


def _metric(name: str, doc: str) -> Any:
    """An attribute of a result that is one of its metrics; None where the stage did not record it."""
    return property(lambda result: result.metrics.get(name), doc=doc)


class Searched(Result):
    """The widths of a search, and what they cost."""

    memory_mib: float = _metric("memory_mib", "MiB of parameters.")
    macs_m: float = _metric("macs_m", "Million multiply-accumulates for one image.")
    file_kib: float = _metric("file_kib", "KiB of the .tflite file, predicted.")
    latency_ms: float | None = _metric("predicted_latency_ms", "Milliseconds for one image, predicted by the profile.")
    comparison: list[dict[str, Any]] | None = _metric(
        "comparison", "The searched widths and the baselines on held-out images, a row each; None for a baseline."
    )


class Trained(Result):
    """A trained network."""

    top1_percent: float = _metric("top1_percent", "Top-1 accuracy on the test images, in percent.")
    epochs: int = _metric("epochs", "Passes over the training images.")

    def module(self) -> Any:
        """The network as a torch.nn.Module of torch's own layers, in evaluation mode.

        It takes normalised images [N, C, H, W], (pixel - mean) / std, and returns logits. The names in its state_dict
        are those of the layers, which for a PyTorch module are the module's own.
        """
        from dmsflow.training.plain import load_plain_module

        return load_plain_module(self.path, self.manifest)

    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """What images were normalised with, of pixels from 0 to 255: mean and std of each channel.

        With an int8 stem all channels have the same. It reads the data set.
        """
        from dmsflow.deploying import export

        data = export.load_data(self.manifest, export.load_tensors(self.path, self.manifest, "weights"))
        return tuple(data.mean), tuple(data.std)


class Exported(Result):
    """A model file, checked against the integer graph."""

    file_bytes: int = _metric("file_bytes", "Size of the file.")

    @property
    def file(self) -> Path:
        """The .tflite or .onnx file."""
        return self.files["model"]


class Benched(Result):
    """What a device measured of a file."""

    latency_ms: float = _metric("latency_ms_median", "Milliseconds for one image, the median.")
    top1_percent: float | None = _metric("top1_percent", "Top-1 accuracy of the file, in percent; None: not measured.")


Source: TypeAlias = Result | Path | str


def search(
    network: Any = "vgg11",
    dataset: Any = "digits",
    *,
    out: Path | str | None = None,
    preset: str = "default",
    effort: str = "normal",
    progress: Listener | None = None,
    verbose: bool = False,
    resume: bool = False,
    force: bool = False,
    download: bool = False,
    **given: Any,
) -> Searched:
    """Choose the width of every layer.

    Args:
        network: a name or path as for --network, a `Network`, or a torch.nn.Module, whose weights are not used.
        dataset: a name such as "cifar10" or "image-folder:PATH"; the path of a folder with train/ and test/; a
            `Dataset`; or a pair (train, test) as `make_dataset` takes it.
        out: folder for what is written; without it runs/NETWORK-DATASET.
        preset: settings to begin with: a name, or the path of a .toml file.
        effort: "quick", "normal" or "long".
        progress: is called with a `Progress` after every round.
        verbose: print what the command line prints, to stderr.
        resume, force, download: as on the command line.
        given: any other setting of a search by its name (docs/settings.md), such as memory_mib=0.08, and
            train_images, resolution, data_dir and workers.

    Raises:
        DmsflowError: something the caller can put right. BudgetMissed: no widths meet the budgets.
    """
    with _in_python(progress, verbose):
        kind = "image-folder" if isinstance(dataset, Path) else dataset if isinstance(dataset, str) else "arrays"
        folder = Path(out) if out else manifest.run_folder(_title(network), kind)
        if "name" in given:
            raise DmsflowError("name", "is no setting of a search", "give the name of a data set as dataset")
        of_data = {name: given.pop(name) for name in Data.__struct_fields__ if name in given}
        of_data = _plain({**of_data, "name": _name_dataset(dataset, folder)})
        source = settings.resolve(Data, **of_data)
        chosen = {"network": _name_network(network, folder, source), **given}
        words = options.as_words("data", of_data)
        flow = {"resume": resume, "force": force, "download": download}
        return Searched(*_perform("search", source, words, chosen, folder, flow, preset=preset, effort=effort))


def widths(
    source: Source, *, out: Path | str | None = None, resume: bool = False, force: bool = False, **budgets: Any
) -> Searched:
    """Choose widths for other budgets, in a second, from what a search has learned.

    Args:
        source: what `search` returned, or the path of a search.json.
        out: folder for what is written; without it one in that of `source`, named after the budgets.
        budgets: memory_mib, macs_m, file_kib, latency_ms and profile, as for `search`.

    What is raised is as for `search`.
    """
    with _in_python():
        from dmsflow.searching.widths import solve_widths

        path, folder = _find(source, "widths", None)
        chosen = settings.resolve(settings.SearchSettings, **_plain(budgets))
        folder = Path(out) if out else folder / settings.name_budgets(chosen)
        words = [str(path), *options.as_words("search", _plain(budgets)), "--out", str(folder)]
        made = solve_widths(path, chosen, folder, Flow(("dmsflow", "widths", *words), resume=resume, force=force))
        return Searched(made, manifest.load_manifest(made))


def train(
    source: Source,
    *,
    out: Path | str | None = None,
    preset: str = "default",
    effort: str = "normal",
    progress: Listener | None = None,
    verbose: bool = False,
    resume: bool = False,
    force: bool = False,
    trust: bool = False,
    **given: Any,
) -> Trained:
    """Train the network of a search.

    Args:
        source: what `search` returned, the path of a search.json, or the name of a model that comes with dmsflow.
        out: folder for what is written; without it that of `source`.
        progress: is called with a `Progress` after every epoch.
        trust: run the .py files that `source` names (docs/security.md).
        given: any setting of a training by its name (docs/settings.md), such as epochs=60.

    The other arguments, and what is raised, are those of `search`.
    """
    with _in_python(progress, verbose, trust):
        path, folder = _find(source, "train", out)
        flow = {"resume": resume, "force": force}
        return Trained(*_perform("train", path, [str(path)], given, folder, flow, preset=preset, effort=effort))


def export(
    source: Source,
    *,
    out: Path | str | None = None,
    verbose: bool = False,
    resume: bool = False,
    force: bool = False,
    trust: bool = False,
    **given: Any,
) -> Exported:
    """Write a trained network as a model file.

    Args:
        source: what `train` returned, the path of a train.json, or the name of a model that comes with dmsflow.
        given: target="arm64" and any other setting of an export (docs/settings.md).

    The other arguments, and what is raised, are those of `search`.
    """
    with _in_python(None, verbose, trust):
        path, folder = _find(source, "export", out, given.get("target", settings.ExportSettings().target))
        flow = {"resume": resume, "force": force}
        return Exported(*_perform("export", path, [str(path)], given, folder, flow))


def bench(
    source: Source,
    *,
    out: Path | str | None = None,
    progress: Listener | None = None,
    verbose: bool = False,
    resume: bool = False,
    force: bool = False,
    trust: bool = False,
    **given: Any,
) -> Benched:
    """Measure a model file on a device.

    Args:
        source: what `export` returned, the path of an export.json, of a .tflite or of an .onnx file, or the name
            of a model that comes with dmsflow, which is exported for the device first.
        given: device="ssh://pi@raspberry" and any other setting of a bench (docs/settings.md).

    The other arguments, and what is raised, are those of `search`.
    """
    with _in_python(progress, verbose, trust):
        target = shipped.choose_target(settings.resolve(settings.BenchSettings, **_plain(given)))
        path, folder = _find(source, "bench", out, target)
        if shipped.is_model(path):
            path = shipped.export_model(path, target, folder, force=force)
        flow = {"resume": resume, "force": force}
        return Benched(*_perform("bench", path, [str(path)], given, folder, flow))


def load(source: Source) -> Result:
    """Read the result of a stage: the path of its manifest, or the name of a model that comes with dmsflow (its training).

    Raises:
        DmsflowError: there is no such file, or it, or a file that it names, was changed.
    """
    path = _find_file(source, "export")
    kinds = {"search": Searched, "train": Trained, "export": Exported, "bench": Benched}
    done = manifest.load_manifest(path, bare=True)
    return kinds[done.stage](path, done)


# --- how a stage is called ----------------------------------------------------------------------


def _perform(
    stage: str, source: Any, words: list[str], given: dict[str, Any], folder: Path, flow: dict[str, bool], **base: str
) -> tuple[Path, Manifest]:
    """Do the stage, with the settings of the preset and those given; its manifest.

    Args:
        words: of the command line, for the source.
        flow: how the stage is called.
        base: preset and effort, of a stage that has them.
    """
    given = _plain(given)
    values = preset.from_preset(options.RECORDS[stage], stage, **base) if base else {}
    wanted = settings.resolve(options.RECORDS[stage], **values | given)
    words = [*words, *options.as_words(stage, given), "--out", str(folder)]
    words += [word for name, value in base.items() for word in (f"--{name}", value)]
    with contextlib.ExitStack() as stack:
        if stage in ("search", "train"):
            from dmsflow.training.place import torch_unchanged

            stack.enter_context(torch_unchanged())
        called = Flow(("dmsflow", stage, *words), **flow)
        path = manifest.perform([stage], source, {stage: wanted}, folder, called)
    return path, manifest.load_manifest(path, bare=True)


def _find(source: Source, stage: str, out: Path | str | None, target: str = "") -> tuple[Path, Path]:
    """The file that a stage reads, and the folder that it writes to."""
    path = _find_file(source, stage)
    return path, Path(out) if out else shipped.default_out(path, target)


def _find_file(source: Any, stage: str) -> Path:
    if isinstance(source, Result):
        return source.path
    if not isinstance(source, (str, Path)):
        right = "give what another stage returned, or the path of its file"
        raise DmsflowError("source", f"is of type {type(source).__name__}", right)
    return shipped.find_model(Path(source), stage)


def _title(network: Any) -> str:
    """What a run with this network is called."""
    if isinstance(network, (str, Path)):
        return str(network)
    return str(getattr(network, "name", None) or getattr(network, "__name__", None) or type(network).__name__)


def _name_network(network: Any, folder: Path, source: Data) -> str:
    """The name by which a search loads the network; an object is written to `folder` first."""
    if isinstance(network, (str, Path)):
        return str(network)
    if not isinstance(network, Network):
        from dmsflow.importing.module import call_module, read_module

        data, name = load_dataset(source, planned=True), _title(network)
        images = data.channels, data.resolution, len(data.classes)
        network = read_module(call_module(network, name, images[0], images[2]), name, *images)
    content = msgspec.json.format(msgspec.json.encode(network), indent=1) + b"\n"
    path = folder / f"network-{hashlib.sha256(content).hexdigest()[:12]}.json"
    write_atomically(path, content)
    return str(path)


def _name_dataset(dataset: Any, folder: Path) -> str:
    """The name by which a chain loads the data set; images in memory are written to `folder` first."""
    if isinstance(dataset, (str, Path)):
        is_folder = dataset not in plugin.list_plugins("datasets") and Path(dataset).is_dir()
        return f"image-folder:{dataset}" if is_folder or isinstance(dataset, Path) else dataset
    if not isinstance(dataset, Dataset):
        if not (isinstance(dataset, tuple) and len(dataset) == 2):
            right = "give a name, a folder's path, a Dataset, or a pair (train, test)"
            raise DmsflowError("dataset", f"is a {type(dataset).__name__}", right)
        dataset = make_dataset(*dataset)
    return arrays.save(dataset, folder)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as settings take them: paths as text, NumPy's numbers and lists as Python's."""
    plain: dict[str, Any] = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    return {
        name: value.item() if hasattr(value, "item") and value.shape == () else value for name, value in plain.items()
    }


def _as_argument(found: re.Match[str]) -> str:
    """`force=True` of `--force`; a whole command stays."""
    option = found[1]
    return option.replace("-", "_") + "=True" * (option in FLAGS) if option else found[0]


@contextlib.contextmanager
def _in_python(progress: Listener | None = None, verbose: bool = False, trust: bool = False) -> Iterator[None]:
    """Print nothing inside, unless the caller wants to see it; errors speak of `force=True` instead of `--force`."""
    try:
        with contextlib.ExitStack() as stack:
            if progress or not verbose:
                stack.enter_context(listening(progress or (lambda _: None)))
            if trust:
                stack.enter_context(plugin.trusting())
            yield
    except DmsflowError as error:
        error.args = (re.sub(r"dmsflow [a-z]+ [^;]*|--([a-z-]+[a-z])", _as_argument, str(error)),)
        raise
