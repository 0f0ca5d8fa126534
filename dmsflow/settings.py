"""The settings of each stage: name, type, default, bounds and help, in one place.

The command line makes an option of every field, a preset is a TOML file of field values
(`presets/*.toml`), and a manifest records the resolved ones. The preset `default` changes none of the defaults.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from dmsflow.errors import DmsflowError, require_utf8

# What is larger is a slip, and would be allocated, overflow or never end: every number has both limits.
MOST, LARGEST = 10_000_000, 1e9  # of what is counted; of real numbers: no help names them, an error does
Amount = Annotated[float, Meta(ge=0, le=LARGEST)]
Positive = Annotated[float, Meta(gt=0, le=LARGEST)]
Spread = Annotated[float, Meta(ge=1e-6, le=LARGEST)]  # what is divided by; gradients overflow far below that
Count = Annotated[int, Meta(ge=1, le=MOST)]
Natural = Annotated[int, Meta(ge=0, le=MOST)]
Share = Annotated[float, Meta(ge=0, le=1)]
MOST_CHANNELS = 1 << 16  # of images and layers; also classes
MOST_PIXELS = 4096  # of a side
Channels = Annotated[int, Meta(ge=1, le=MOST_CHANNELS)]
Pixels = Annotated[int, Meta(ge=1, le=MOST_PIXELS)]
Parallel = Annotated[int, Meta(ge=1, le=1024)]  # some runtimes crash with more threads than the system can start
Batch = Annotated[int, Meta(ge=2, le=1 << 16)]  # one image has no variance to normalise with
Seed = Annotated[int, Meta(ge=0, lt=1 << 32)]
Ratio = Annotated[float, Meta(gt=0, le=64)]
Precision = Literal["binary", "float"]


def option(description: str, **bounds: Any) -> Meta:
    """The Meta of a field that is an option on the command line."""
    return Meta(description=description, **bounds)


def preset_only(description: str, **bounds: Any) -> Meta:
    """The Meta of a field that has no option: a preset or --set changes it."""
    return Meta(description=description, extra={"option": False}, **bounds)


class Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which images a run uses: enough to load the same ones again."""

    name: Annotated[str, option("Use this data set: its name, or image-folder:PATH.")] = "digits"
    data_dir: Annotated[str | None, option("Look for the data set's files in this folder.")] = None
    train_images: Annotated[
        Count | None, preset_only("Use only this many training images, evenly over the classes.")
    ] = None
    resolution: Annotated[Pixels | None, option("Resize images to this many pixels a side.")] = None
    workers: Annotated[int, preset_only("Decode a streamed data set in this many processes.", ge=0, le=1024)] = 2


def anchored(data: Data) -> Data:
    """The same images, found from any folder: paths in the name and --data-dir are made absolute."""
    plugin, colon, argument = data.name.partition(":")
    plugin = str(Path(plugin).absolute()) if plugin.endswith(".py") else plugin
    argument = str(Path(argument).expanduser().absolute()) if argument else argument
    folder = str(Path(data.data_dir).expanduser().absolute()) if data.data_dir else None
    name = require_utf8("data set", f"{plugin}{colon}{argument}")
    return msgspec.structs.replace(data, name=name, data_dir=require_utf8("--data-dir", folder) if folder else None)


Choice = Literal["auto", "on", "off"]
BUDGETS = ("memory_mib", "macs_m", "file_kib", "latency_ms")  # of a search
Method = Literal["gradient", "published", "evolution", "balanced", "uniform", "equal", "interpolated", "random"]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings that search and train share: where and how torch computes."""

    seed: Annotated[Seed, option("Derive every random choice from this seed.")] = 0
    device: Annotated[str, option("Run torch on this device: auto, cpu, cuda or mps.")] = "auto"
    threads: Annotated[int, preset_only("Use this many CPU threads; 0: one for each core.", ge=0, le=1024)] = 0
    amp: Annotated[Choice, preset_only("Train in bfloat16 mixed precision; auto: if it is faster.")] = "auto"
    compile: Annotated[Choice, preset_only("Compile the training step; auto: on a GPU that Triton supports.")] = "auto"


class WeightSettings(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How weights are trained, in a search and after it."""

    optimiser: Annotated[
        Literal["adam", "sgd"], preset_only("Train with Adam (decoupled weight decay) or SGD (momentum).")
    ] = "adam"
    learning_rate: Annotated[Positive, preset_only("Start the weights with this learning rate.")] = 5e-3
    momentum: Annotated[float, preset_only("Use this momentum with SGD.", ge=0, lt=1)] = 0.9
    weight_decay: Annotated[Amount, preset_only("Use this weight decay, except for batch norms and alphas.")] = 0.0
    centred: Annotated[bool, preset_only("Start with half of the activations on, instead of 31 %.")] = True
    crop: Annotated[
        Share | None,
        preset_only(
            "Pad random crops with this share of the data set's own padding; default: more in longer trainings."
        ),
    ] = None
    batch_parts: Annotated[
        Parallel | None,
        preset_only(
            "Normalise a batch in this many separate parts; default: one for each process. With the same number, a run "
            "is the same function in any number of processes."
        ),
    ] = None


class SearchSettings(WeightSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the widths are chosen."""

    network: Annotated[
        str,
        option("Use this network: its name, the path of a .py file with build(), net.py:Module, or torchvision:NAME."),
    ] = "vgg11"
    method: Annotated[
        Method,
        option("Search by gradient or evolution, or as published (--preset paper), or take a baseline's widths."),
    ] = "gradient"
    memory_mib: Annotated[Positive | None, option("Budget: allow at most this many MiB of parameters.")] = None
    macs_m: Annotated[
        Positive | None, option("Budget: allow at most this many million multiply-accumulates for one image.")
    ] = None
    file_kib: Annotated[
        Positive | None, option("Budget: allow at most this many KiB of the .tflite file, padding and graph included.")
    ] = None
    profile: Annotated[str | None, option("Predict latency with this device profile: its name, or a path.")] = None
    latency_ms: Annotated[
        Positive | None, option("Budget: allow at most this many milliseconds for one image, predicted by --profile.")
    ] = None
    stem: Annotated[
        Literal["float", "int8"],
        option("Give the first convolution and the dense layer weights of 8 bits, for uint8 pixels, or float32 ones."),
    ] = "int8"
    rounds: Annotated[Count, preset_only("Search for this many rounds, each a weight phase and a width phase.")] = 16
    weight_steps: Annotated[Count, preset_only("Train this many steps in a weight phase.")] = 40
    weight_epochs: Annotated[
        Positive | None, preset_only("Train this many epochs in a weight phase; overrides weight_steps.")
    ] = None
    width_batches: Annotated[
        Natural, preset_only("Use this many batches in a width phase; 0: all of its half of the images.")
    ] = 40
    width_warmup: Annotated[
        float, preset_only("Train weights only in this share of the rounds, at the start.", ge=0, lt=1)
    ] = 0.25
    step_size: Annotated[Positive, preset_only("Published: use this learning rate for widths.")] = 0.15
    min_ratio: Annotated[Positive, preset_only("Allow no width below this ratio to its base width.")] = 0.3
    max_ratio: Annotated[Ratio, preset_only("Allow no width above this ratio to its base width.")] = 8.0
    sigma_start: Annotated[Spread, preset_only("Use this scale of the width distribution in the first round.")] = 0.3
    sigma_end: Annotated[Spread, preset_only("Use this scale in the last round; it falls by a constant factor.")] = 0.15
    batch_size: Annotated[Batch, preset_only("Use this many images in a batch.")] = 128
    learning_rate_end: Annotated[Positive, preset_only("End the cosine schedule at this learning rate.")] = 1e-3
    start_ratio: Annotated[Positive, preset_only("Published: start at this ratio to the base widths.")] = 1.5
    penalty: Annotated[
        Positive, preset_only("Published: use this weight for the penalty of Eq. 7, per MiB, million MACs and ms.")
    ] = 0.01
    temperature: Annotated[Spread, preset_only("Published: use this temperature of the Gumbel-softmax.")] = 1.0


def name_budgets(chosen: SearchSettings) -> str:
    """The name of a folder for widths within these budgets.

    >>> name_budgets(SearchSettings(memory_mib=0.06, latency_ms=2, profile="profiles/desk.json"))
    '0.06mib-2ms-desk'
    """
    given = ((name, getattr(chosen, name)) for name in BUDGETS)
    words = [f"{limit:g}{name.rpartition('_')[2]}" for name, limit in given if limit] or ["widths"]
    return "-".join([*words, *([Path(chosen.profile).stem] if chosen.profile else [])])


class TrainSettings(WeightSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the chosen network is trained."""

    precision: Annotated[Precision, option("Train a binary network, or the same widths in full precision (float).")] = (
        "binary"
    )
    epochs: Annotated[Count | None, option("Train for this many epochs; default: those of --effort.")] = None
    normal_epochs: Annotated[Count, preset_only("Train for this many epochs with --effort normal.")] = 12
    min_steps: Annotated[
        Natural, preset_only("Train for at least this many steps with --effort normal, on a small data set.")
    ] = 3000
    from_float: Annotated[bool, option("Train in full precision first, and start from those weights.")] = False
    teacher: Annotated[
        str | None, option("Distil from a teacher: float (the same widths in full precision) or a train.json.")
    ] = None
    float_epochs: Annotated[
        Count | None,
        preset_only("Train a from_float or teacher network for this many epochs; default: as many as binary."),
    ] = None
    batch_size: Annotated[Batch, preset_only("Use this many images in a batch.")] = 64
    schedule: Annotated[
        Literal["cosine", "step"],
        preset_only("Lower the learning rate by a cosine to 0, or by a factor at milestones (step)."),
    ] = "cosine"
    milestones: Annotated[tuple[Natural, ...], preset_only("Lower the learning rate at these epochs (step).")] = (
        140,
        220,
        260,
    )
    milestone_factor: Annotated[
        Positive, preset_only("Multiply the learning rate by this factor at each milestone.")
    ] = 0.1


class ExportSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What file is written, and on how many real images it is checked."""

    target: Annotated[str, option("Build for this target: see dmsflow list targets.")] = "x86-64"
    check_images: Annotated[Count | None, option("Check the file on this many test images; default: up to 256.")] = None
    converter: Annotated[
        Literal["direct", "official"],
        option("Write a .tflite file directly, or with larq-compute-engine's own converter (needs TensorFlow)."),
    ] = "direct"
    pixels: Annotated[
        Literal["uint8", "float32"] | None,
        option("Have the file take pixels of this type; default: uint8, or float32 where the stem is float."),
    ] = None
    close_percent: Annotated[
        float,
        option(
            "Allow this percentage of images to differ because a value lies within rounding of its threshold.",
            ge=0,
            le=100,
        ),
    ] = 1.0


class Reach(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which device measures, and how it is reached."""

    device: Annotated[str, option("Run on local, ssh://user@host, adb://SERIAL or qemu (an emulated ARM core).")] = (
        "local"
    )
    python: Annotated[str, option("Use this Python on an ssh device.")] = "python3"
    runner_file: Annotated[str | None, option("Run this benchmark binary on the device instead of Python.")] = None
    runner: Annotated[
        str | None, option("Use this runtime: litert, lce, onnxruntime or a .py file; default: the target's.")
    ] = None
    threads: Annotated[Parallel, option("Use this many threads of the runtime.")] = 1


class BenchSettings(Reach, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a file is measured."""

    warm_up: Annotated[Natural, option("Warm up with this many runs, which are not counted.")] = 10
    runs: Annotated[Count, option("Time this many runs of each file.")] = 100
    baseline: Annotated[
        Literal["float32", "int8", "both", "none"],
        option("Also measure the network of the same widths in float32 or int8, in onnxruntime."),
    ] = "float32"
    accuracy: Annotated[bool, option("Measure top-1 on the test split.")] = True
    images: Annotated[
        str | None, option("Measure top-1 of a file without a manifest on this folder of class folders.")
    ] = None
    operations: Annotated[bool, option("Also time each operation, if the runtime can.")] = False
    profile: Annotated[str | None, option("Predict latency with this profile; default: the search's own.")] = None
    require_ms: Annotated[Positive | None, option("Exit with code 3 if the median takes more milliseconds.")] = None


class ProfileSettings(Reach, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a profile covers, and how long it is measured."""

    target: Annotated[str, option("Build for this target: see dmsflow list targets.")] = "x86-64"
    precision: Annotated[Precision, option("Measure binary networks, or the same widths in float32 (float).")] = (
        "binary"
    )
    networks: Annotated[
        tuple[str, ...], option("Measure the fused blocks of these networks, separated by commas.", min_length=1)
    ] = ("vgg11", "resnet18")
    resolutions: Annotated[
        tuple[Pixels, ...], option("Measure them for images of these pixels a side, separated by commas.", min_length=1)
    ] = (32,)
    channels: Annotated[Channels, option("Measure them for images of this many channels.")] = 3
    classes: Annotated[Channels, option("Measure them for this many classes.")] = 10
    max_ratio: Annotated[Ratio, option("Measure widths up to this ratio to the base width.")] = 8.0
    points: Annotated[int, option("Measure this many widths for inputs, and as many for outputs.", ge=2, le=256)] = 6
    runs: Annotated[Count, option("Time this many runs of each point.")] = 80
    timeout_minutes: Annotated[Amount, option("Stop re-measuring disturbed runs after this many minutes.")] = 5.0
    check: Annotated[Natural, option("Check predictions on this many networks of each kind and resolution.")] = 4
    seed: Annotated[Seed, option("Derive the widths of these networks from this seed.")] = 0


# Old names of fields and values, and removed fields.
RENAMED_FIELDS = {"mixed": "amp", "head_start": "width_warmup", "patience_minutes": "timeout_minutes"}
RENAMED_METHODS = {"flat": "equal", "between": "interpolated"}
RENAMED_BASELINES = {True: "float32", False: "none"}  # of bench, when there was one to have or not
OF_THE_PAPER = ("estimator", "reallocate", "step", "start", "sigma_relative", "subnetworks", "restart")
WITHOUT_GAIN = ("hold", "band", "first_gain", "refine", "gradient_decay", "best_effort")
REMOVED_FIELDS = dict.fromkeys(OF_THE_PAPER, "leave it out; --preset paper is the search as published")
REMOVED_FIELDS |= dict.fromkeys(WITHOUT_GAIN, "leave it out; it gained nothing (docs/results.md)")
REMOVED_FIELDS["align"] = "leave it out; --file-kib and --latency-ms count whole words and the steps of kernels"
REMOVED_FIELDS["onnx_form"] = "leave it out; onnx files always compute sums with integers"


def with_present_names(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a manifest, with the old names of an earlier version replaced by today's.

    >>> with_present_names({"method": "flat", "mixed": "off"})
    {'method': 'equal', 'amp': 'off'}
    """
    found = {RENAMED_FIELDS.get(name, name): value for name, value in recorded.items()}
    if found.get("method") in [*RENAMED_METHODS]:  # which a list, that cannot be a key, is not
        found["method"] = RENAMED_METHODS[found["method"]]
    if "weight_steps" in found:  # a search; before there was a choice its stem was float
        found.setdefault("stem", "float")
    if isinstance(found.get("baseline"), bool):
        found["baseline"] = RENAMED_BASELINES[found["baseline"]]
    return found


def find_difference(
    recorded: Mapping[str, Any], wanted: msgspec.Struct, ignored: Collection[str] = ()
) -> tuple[str, Any, Any] | None:
    """The first setting that differs from a record: its name, the recorded value, and the wanted one; or None."""
    for name, value in msgspec.json.decode(msgspec.json.encode(wanted)).items():
        if name not in ignored and recorded.get(name) != value:
            return name, recorded.get(name), value
    return None


S = TypeVar("S", bound=msgspec.Struct)


def resolve(kind: type[S], **values: Any) -> S:
    """Settings of `kind` from field values, with bounds and names checked.

    Raises:
        DmsflowError: an unknown field, or a value of the wrong type or out of bounds.
    """
    for name in set(values) - set(kind.__struct_fields__):
        if name in REMOVED_FIELDS:
            raise DmsflowError(f"setting {name}", "was removed", REMOVED_FIELDS[name])
        if name in RENAMED_FIELDS:
            raise DmsflowError(f"setting {name}", "was renamed", f"use {RENAMED_FIELDS[name]}")
        near = difflib.get_close_matches(name, kind.__struct_fields__, 1, cutoff=0)
        raise DmsflowError(f"setting {name}", "is unknown", f"use a name of docs/settings.md, such as {near[0]}")
    if (method := values.get("method")) in [*RENAMED_METHODS]:
        raise DmsflowError(f"method {method}", "was renamed", f"use {RENAMED_METHODS[method]}")
    if isinstance(baseline := values.get("baseline"), bool):
        raise DmsflowError("setting baseline", "has names now", f"use {RENAMED_BASELINES[baseline]} for {baseline}")
    try:
        for name, value in values.items():
            for text in value if isinstance(value, (list, tuple)) else (value,):
                require_utf8(f"setting {name}", str(text))
        return msgspec.convert(values, kind, strict=True)
    except ValueError as error:  # also of an integer that has too many digits for Python
        message, _, place = str(error).partition(" - at ")
        field = place.strip("`$.").partition("[")[0]
        if not field:
            raise DmsflowError(kind.__name__, message, "see --help") from error
        # msgspec's message says what is right of types and bounds, but not of choices.
        info = msgspec.json.schema_components([kind])[1][kind.__name__]["properties"].get(field, {})
        info = info.get("items", info)
        right = f"use one of {', '.join(info['enum'])}" if "enum" in info else message.lower()
        raise DmsflowError(f"setting {field}", f"{values.get(field)!r:.80} is not valid", right) from error
