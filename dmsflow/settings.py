"""The settings of each stage: name, type, default, bounds and help, said once.

The command line makes an option of every field, a preset is a TOML file of field values
(`presets/*.toml`), and a manifest records the resolved ones. The defaults are the quick preset.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from dmsflow.errors import DmsflowError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRESETS = Path(__file__).parent / "presets"

Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]


class Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which images a chain works on: enough to load the same ones again.

    Attributes:
        name: as given to --dataset, e.g. "cifar10" or "image-folder:/data/flowers".
        data_dir: where its files are, if they are not embedded.
        train_images: use only this many training images, evenly over the classes.
        resolution: pixels that images are resized to; None keeps the data set's own.
        workers: processes that decode a streamed data set.
    """

    name: Annotated[str, Meta(description="A data set's name, or image-folder:PATH.")] = "digits"
    data_dir: Annotated[str | None, Meta(description="Folder of the data set's files.")] = None
    train_images: (
        Annotated[int, Meta(ge=1, description="Use only so many training images, evenly over the classes.")] | None
    ) = None
    resolution: (
        Annotated[int, Meta(ge=1, description="Pixels to resize images to; the data set's own unless given.")] | None
    ) = None
    workers: Annotated[int, Meta(ge=0, description="Processes that decode a streamed data set.")] = 2


def anchored(data: Data) -> Data:
    """The same images, found from any folder: paths in the name and --data-dir are made absolute."""
    plugin, colon, argument = data.name.partition(":")
    plugin = str(Path(plugin).absolute()) if plugin.endswith(".py") else plugin
    argument = str(Path(argument).expanduser().absolute()) if argument else argument
    folder = str(Path(data.data_dir).expanduser().absolute()) if data.data_dir else None
    return msgspec.structs.replace(data, name=f"{plugin}{colon}{argument}", data_dir=folder)


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every stage that computes has."""

    seed: Annotated[Natural, Meta(description="Seed of every random choice.")] = 0
    device: Annotated[str, Meta(description="Where torch runs: auto, cpu, cuda, mps.")] = "auto"
    threads: Annotated[Natural, Meta(description="CPU threads; 0: one per core.")] = 0
    mixed: Annotated[
        Literal["auto", "on", "off"],
        Meta(
            description="Train in bfloat16 mixed precision; auto: where the processor or GPU is quicker with it. Evaluation is float32."
        ),
    ] = "auto"
    compile: Annotated[
        Literal["auto", "on", "off"],
        Meta(
            description="Compile the training step (torch.compile); auto: on a CUDA GPU that Triton knows. On a CPU it needs g++."
        ),
    ] = "auto"


class SearchSettings(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the widths are chosen."""

    network: Annotated[str, Meta(description="A network's name, or the path of a .py file with build().")] = "vgg11"
    method: Annotated[
        Literal["gradient", "evolution", "uniform", "flat", "between", "random"],
        Meta(
            description="gradient and evolution search; the others write a control that just meets the budgets (between: flat and uniform, using all budgets up)."
        ),
    ] = "gradient"
    memory_mib: Annotated[
        Positive | None,
        Meta(description="Budget: parameter memory in MiB. Without any budget: the base network's memory."),
    ] = None
    macs_m: Annotated[Positive | None, Meta(description="Budget: million multiply-accumulates for one image.")] = None
    profile: Annotated[
        str | None,
        Meta(
            description="The device to predict latency for: a profile's name (see dmsflow list profiles) or its path."
        ),
    ] = None
    latency_ms: Annotated[
        Positive | None, Meta(description="Budget: milliseconds for one image, as --profile predicts them.")
    ] = None
    align: Annotated[
        bool,
        Meta(
            description="Settle the widths found on edges of the kernels' steps, if no cost grows and no accuracy is lost on images held out."
        ),
    ] = False
    hold: Annotated[
        Literal["projection", "shift", "penalty"],
        Meta(
            description="projection meets every budget at every step and spends all of them; shift meets the tightest by one shift of all widths; penalty adds the hinge of Eq. 7."
        ),
    ] = "projection"
    penalty: Annotated[Positive, Meta(description="Weight of the hinge, per MiB, million MACs and ms.")] = 0.01
    estimator: Annotated[
        Literal["exact", "clustered"],
        Meta(description="exact mixes all widths in one mask; clustered samples the paper's three candidates."),
    ] = "exact"
    temperature: Annotated[Positive, Meta(description="Of the Gumbel-softmax (clustered).")] = 1.0
    reallocate: Annotated[
        bool,
        Meta(
            description="Rebuild the network each round with best-effort initialisation (Eq. 9-10), instead of slicing one of fixed capacity."
        ),
    ] = False
    best_effort: Annotated[
        bool, Meta(description="Rebuilt networks keep the weights that fit (Eq. 9-10); otherwise each starts afresh.")
    ] = True
    step: Annotated[
        Literal["bounded", "adam"],
        Meta(
            description="How widths move: one step a round bounded by the gradient's standard error, or Adam on every batch."
        ),
    ] = "bounded"
    step_size: Annotated[
        Positive,
        Meta(description="Largest change of log width in a round (bounded), or Adam's learning rate on the ratio."),
    ] = 0.15
    start: Annotated[
        Literal["flat", "base"],
        Meta(description="Widths to start from: flat under the budgets, or the base widths times --start-ratio."),
    ] = "flat"
    start_ratio: Annotated[Positive, Meta(description="Expansion ratio to start from (base).")] = 1.5
    gradient_decay: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Factor on what a round's gradient counts, each round later (bounded); 0: only the last one counts.",
        ),
    ] = 0.75
    first_gain: Annotated[
        Positive, Meta(description="Factor on the gradient of the first two widths, which masks understate.")
    ] = 1.0
    refine: Annotated[
        Natural,
        Meta(description="Sub-networks near the result that evolution tries at the end; the best one is taken."),
    ] = 0
    min_ratio: Annotated[Positive, Meta(description="Smallest expansion ratio.")] = 0.3
    max_ratio: Annotated[Positive, Meta(description="Largest expansion ratio.")] = 8.0
    sigma_start: Annotated[Positive, Meta(description="Scale of the width distribution in the first round.")] = 0.3
    sigma_end: Annotated[Positive, Meta(description="Scale in the last round, reached by a constant factor.")] = 0.15
    sigma_relative: Annotated[
        bool, Meta(description="sigma is relative to the width, instead of to the base width.")
    ] = True
    rounds: Annotated[Count, Meta(description="Rounds of one weight phase and one width phase.")] = 16
    head_start: Annotated[
        float,
        Meta(ge=0, lt=1, description="Share of the rounds that train weights alone, before widths move (gradient)."),
    ] = 0.25
    weight_epochs: Annotated[
        Positive | None,
        Meta(
            description="Length of a weight phase in epochs of its half of the training set; overrides --weight-steps."
        ),
    ] = None
    weight_steps: Annotated[Count, Meta(description="Length of a weight phase in steps.")] = 40
    width_batches: Annotated[
        Natural, Meta(description="Length of a width phase in batches; 0: one pass over its half.")
    ] = 40
    subnetworks: Annotated[
        bool,
        Meta(description="Train random sub-networks at the budget in most weight steps, instead of the mask in all."),
    ] = True
    band: Annotated[
        Literal["controls", "start"],
        Meta(
            description="Where random sub-networks are drawn from: between the narrowest and 1.3 times the widest of uniform, flat and the start; or around the start alone."
        ),
    ] = "controls"
    batch_size: Annotated[Count, Meta(description="Images in a batch.")] = 128
    learning_rate: Annotated[Positive, Meta(description="Of the weights (SGD), at the start of each cosine.")] = 0.05
    learning_rate_end: Annotated[Positive, Meta(description="Of the weights, at the end of each cosine.")] = 0.01
    restart: Annotated[bool, Meta(description="One cosine a round (the paper), instead of one over the search.")] = (
        False
    )
    momentum: Annotated[float, Meta(ge=0, lt=1, description="Of SGD.")] = 0.9
    weight_decay: Annotated[float, Meta(ge=0, description="On weights, not on norms and alphas.")] = 1e-4


class TrainSettings(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the chosen network is trained."""

    precision: Annotated[
        Literal["binary", "float"], Meta(description="float trains the same widths in full precision: the baseline.")
    ] = "binary"
    epochs: Annotated[Count, Meta(description="Passes over the training set.")] = 8
    from_float: Annotated[
        bool, Meta(description="Train in full precision first, and start the binary network from it.")
    ] = False
    float_epochs: Annotated[Count, Meta(description="Passes in full precision (--from-float).")] = 8
    batch_size: Annotated[Count, Meta(description="Images in a batch.")] = 64
    learning_rate: Annotated[Positive, Meta(description="Of SGD, at the start.")] = 0.1
    schedule: Annotated[
        Literal["cosine", "step"], Meta(description="cosine falls to 0; step multiplies at the milestones.")
    ] = "cosine"
    milestones: Annotated[tuple[Natural, ...], Meta(description="Epochs at which the step schedule multiplies.")] = (
        140,
        220,
        260,
    )
    milestone_factor: Annotated[Positive, Meta(description="What it multiplies by.")] = 0.1
    momentum: Annotated[float, Meta(ge=0, lt=1, description="Of SGD.")] = 0.9
    weight_decay: Annotated[float, Meta(ge=0, description="On weights, not on norms and alphas.")] = 1e-4


class ExportSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What file is written, and on how many real images it is checked."""

    target: Annotated[str, Meta(description="What to build for: see dmsflow list targets.")] = "x86-64"
    check_images: Annotated[
        Count | None,
        Meta(
            description="Test images on which file, integer graph and trained network are compared; by default 256, and fewer of a network that takes billions of multiply-accumulates."
        ),
    ] = None
    onnx_form: Annotated[
        Literal["mixed", "float"],
        Meta(
            description="Of an .onnx file: mixed: integers up to every sum, the faster in onnxruntime; float: float32 operations throughout."
        ),
    ] = "mixed"
    converter: Annotated[
        Literal["direct", "official"],
        Meta(
            description="What writes a .tflite file: direct: dmsflow itself, in a second; official: larq-compute-engine's converter, which needs TensorFlow. Their files give the same logits; the direct one is smaller and faster."
        ),
    ] = "direct"


class Reach(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which device measures, and how it is reached."""

    device: Annotated[
        str,
        Meta(
            description="Where it runs: local, ssh://user@host, adb://SERIAL or qemu (an emulated ARM core); see dmsflow list devices."
        ),
    ] = "local"
    python: Annotated[str, Meta(description="The command that is Python on an ssh device.")] = "python3"
    runner_file: Annotated[
        str | None,
        Meta(
            description="Benchmark binary to run on the device instead of Python: dmsflow's own, TFLite's benchmark_model or LCE's lce_benchmark_model."
        ),
    ] = None
    runner: Annotated[
        str | None,
        Meta(
            description="What runs the file: litert, lce, onnxruntime, or the path of a .py file; the target's own unless given."
        ),
    ] = None
    threads: Annotated[Count, Meta(description="Threads of the runtime.")] = 1


class BenchSettings(Reach, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a file is measured."""

    warm_up: Annotated[Natural, Meta(description="Runs that are not counted.")] = 10
    runs: Annotated[Count, Meta(description="Runs that are counted, of each file.")] = 100
    baseline: Annotated[
        bool, Meta(description="Measure the float32 network of the same widths beside it, in onnxruntime.")
    ] = True
    accuracy: Annotated[bool, Meta(description="Measure top-1 on the test split.")] = True
    images: Annotated[
        str | None,
        Meta(description="Top-1 of a bare file: on the images of this folder, which has a folder for each class."),
    ] = None
    operations: Annotated[bool, Meta(description="Time each operation too, where the runtime can.")] = False
    profile: Annotated[
        str | None, Meta(description="Predict with this profile and show its error; the search's own unless given.")
    ] = None
    require_ms: Annotated[
        Positive | None, Meta(description="Exit with 3 if the median is above so many milliseconds.")
    ] = None


class ProfileSettings(Reach, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a profile covers, and how long it is measured."""

    target: Annotated[str, Meta(description="What to build for: see dmsflow list targets.")] = "x86-64"
    precision: Annotated[
        Literal["binary", "float"], Meta(description="float measures the float32 networks of the same widths.")
    ] = "binary"
    networks: Annotated[
        tuple[str, ...], Meta(description="Networks whose fused blocks are measured, with commas between them.")
    ] = ("vgg11", "resnet18")
    resolutions: Annotated[tuple[Count, ...], Meta(description="Pixels on a side of their images.")] = (32,)
    channels: Annotated[Count, Meta(description="Channels of their images.")] = 3
    classes: Annotated[Count, Meta(description="Classes they tell apart.")] = 10
    max_ratio: Annotated[Positive, Meta(description="Largest expansion ratio to measure.")] = 8.0
    points: Annotated[int, Meta(ge=2, description="Widths to measure in each direction.")] = 6
    runs: Annotated[Count, Meta(description="Runs of each point.")] = 80
    timeout_minutes: Annotated[
        float, Meta(ge=0, description="Stop re-measuring disturbed runs after this many minutes.")
    ] = 5.0
    check: Annotated[
        Natural, Meta(description="Networks to check the predictions on, for each of --networks and --resolutions.")
    ] = 4
    seed: Annotated[Natural, Meta(description="Seed of the widths of those networks.")] = 0


# What fields and values were called in manifests of earlier versions.
RENAMED_FIELDS = {"mixed": "amp", "head_start": "width_warmup", "patience_minutes": "timeout_minutes"}
RENAMED_METHODS = {"flat": "equal", "between": "interpolated"}


def with_present_names(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a manifest, also of an earlier version, with fields and methods as they are called now.

    >>> with_present_names({"method": "flat", "mixed": "off"})
    {'method': 'equal', 'amp': 'off'}
    """
    found = {RENAMED_FIELDS.get(name, name): value for name, value in recorded.items()}
    if found.get("method") in RENAMED_METHODS:
        found["method"] = RENAMED_METHODS[found["method"]]
    return found


S = TypeVar("S", bound=msgspec.Struct)


def preset(stage: str, name: str) -> dict[str, Any]:
    """The field values of a preset for a stage ("search" or "train").

    Args:
        name: of a file in `presets/`, or the path of a user's own `.toml` file.

    Raises:
        DmsflowError: no such preset, or its file is not TOML.
    """
    path = Path(name) if name.endswith(".toml") else PRESETS / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in PRESETS.glob("*.toml")))
        raise DmsflowError(f"--preset {name}", "is unknown", f"use one of {known}, or the path of a .toml file")
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DmsflowError(path, f"is not TOML ({error})", "mend the file") from error
    if unknown := set(values) - {"search", "train"}:
        raise DmsflowError(path, f"has {sorted(unknown)[0]!r}", "give the tables [search] and [train]")
    return dict(values.get(stage, {}))


def resolve(kind: type[S], **values: Any) -> S:
    """Settings of `kind` from field values, with bounds and names checked.

    Raises:
        DmsflowError: an unknown field, or a value of the wrong type or out of bounds.
    """
    try:
        return msgspec.convert(values, kind, strict=True)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at ")
        field = place.strip("`$.")
        if not field:
            raise DmsflowError(kind.__name__, message, "see --help") from error
        where = f"--{field.replace('_', '-')}"
        raise DmsflowError(where, f"{values.get(field)!r} is not valid", _right(kind, field, message)) from error


def _right(kind: type[msgspec.Struct], field: str, message: str) -> str:
    """What a field takes: msgspec's message says it of types and bounds, but not of choices."""
    info = msgspec.json.schema_components([kind])[1][kind.__name__]["properties"].get(field, {})
    return f"use one of {', '.join(info['enum'])}" if "enum" in info else message.lower()
