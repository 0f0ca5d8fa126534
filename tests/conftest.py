"""What several test files build on."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest
import tools

from dmsflow.manifest import Flow
from dmsflow.measuring.devices import File
from dmsflow.network.blocks import fused_blocks
from dmsflow.network.network import Network
from dmsflow.network.profile import Checked, Granularity, Profile, Table
from dmsflow.settings import ExportSettings

WriteTrain = Callable[..., Path]
MakeProfile = Callable[..., Profile]

# Left out by `make test-fast`, beside what has @pytest.mark.slow: folders, files, and tests that take 0.7 s or more.
# tests/test_source.py holds that each of them exists.
SLOW = (
    "benchmarks/test_table1.py",
    "benchmarks/test_take_home.py::test_a_file_has_the_top1_of_its_card",
    "datasets/test_datasets.py::test_folder_resolution_is_resize_and_centre_crop",
    "datasets/test_datasets.py::test_imagenet_test_images_are_torchvision_s",
    "datasets/test_datasets.py::test_torchvision_imports_without_its_operators",
    "deploying/test_agreement.py",
    "deploying/test_compact.py::test_without_the_data_set_the_file_is_checked_on_random_images",
    "deploying/test_folding.py::test_a_rounded_stem_is_exported_as_it_is",
    "deploying/test_folding.py::test_thresholds_in_exact_arithmetic",
    "deploying/test_integer_graph.py::test_resnet18_is_the_trained_network_but_for_float32_sums",
    "deploying/test_lce.py::test_a_file_is_about_as_large_as_its_bits",
    "deploying/test_lce.py::test_damaged_files_end_in_one_line_not_in_a_crash",
    "deploying/test_lce.py::test_resnet18_runs_as_the_integer_graph",
    "deploying/test_official.py",
    "measuring/test_adb.py",
    "measuring/test_bench.py::test_a_required_time_is_met_or_missed",
    "measuring/test_bench.py::test_images_that_are_not_the_files_are_refused",
    "measuring/test_bench.py::test_no_training_framework_is_in_the_process",
    "measuring/test_bench.py::test_operations_are_reported_where_the_runtime_tells_them",
    "measuring/test_bench.py::test_top1_is_that_of_the_integer_graph_on_the_whole_test_split",
    "measuring/test_bench.py::test_top1_of_a_bare_file_is_that_of_its_chain",
    "measuring/test_benchmark.py",
    "measuring/test_devices.py::test_an_interrupt_ends_the_child",
    "measuring/test_devices.py::test_peak_memory_is_that_of_the_process_alone",
    "measuring/test_grid.py::test_tables_are_evened_out_so_that_none_falls",
    "measuring/test_profiling.py",
    "measuring/test_qemu.py",
    "measuring/test_ssh.py",
    "modelfile/test_damage.py::test_damaged_files_end_in_one_line",
    "modelfile/test_delegate.py",
    "modelfile/test_litert.py::test_damaged_files_end_in_one_line_not_in_a_crash",
    "modelfile/test_litert.py::test_networks_run_as_the_integer_graph",
    "native",
    "network/test_architectures.py::test_files_compute_the_integer_graph",
    "network/test_architectures.py::test_resnet18_goes_through_all_stages_at_224_pixels",
    "network/test_latency.py::test_memory_and_latency_budgets_are_both_kept",
    "reporting/test_report.py",
    "reporting/test_shipped.py::test_an_export_is_used_again",
    "reporting/test_shipped.py::test_bench_and_export_write_to_the_users_folder",
    "reporting/test_shipped.py::test_show_report_and_train_take_a_name",
    "searching/test_evolution.py",
    "searching/test_search.py::test_a_killed_training_ends_in_the_same_weights",
    "searching/test_search.py::test_a_modelled_profile_says_so_wherever_it_is_used",
    "searching/test_search.py::test_a_process_killed_for_real_resumes",
    "searching/test_search.py::test_every_way_to_search_ends_within_the_budgets",
    "searching/test_search.py::test_killed_anywhere_and_resumed_is_uninterrupted",
    "searching/test_search.py::test_memory_and_latency_budgets_are_kept_together",
    "searching/test_search.py::test_the_float_baseline_is_trained_and_priced_in_full_precision",
    "searching/test_search.py::test_the_paper_preset_searches",
    "searching/test_search.py::test_the_widths_move_and_sigma_deflates",
    "test_cli.py::test_an_interrupted_run_resumes",
    "test_cli.py::test_doctor_reports_the_cpp_part_of_training",
    "test_docs.py::test_every_example_of_adding_runs",
    "test_readme.py",
    "training/test_cpp.py::test_it_gives_the_same_where_torch_has_no_threads_to_lend",
    "training/test_forward.py",
    "training/test_placement.py",
    "training/test_processes.py::test_a_process_that_is_killed_ends_all_and_one_resumes",
    "training/test_processes.py::test_an_error_of_all_processes_is_one_line",
    "training/test_processes.py::test_two_processes_search_as_one",
    "training/test_processes.py::test_two_processes_train_as_one",
)


NOT_RUN = pytest.StashKey[dict[tuple[str, ...], list[str]]]()  # files of left-out tests, by the tools that they lack
# The programs of the installed packages, such as cmake, come before those of the system.
STATE = tempfile.TemporaryDirectory()  # not the user's own, in which tests would leave what they ran
os.environ["XDG_STATE_HOME"] = STATE.name
hypothesis.settings.register_profile("untimed", deadline=None)  # how busy the machine is, is not the matter
hypothesis.settings.load_profile("untimed")
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--agreement", type=int, default=12, help="random networks that are written in every form")
    parser.addoption("--without-torch", action="store_true", help="leave out the tests that need torch")
    parser.addoption("--all-tools", action="store_true", help="a missing tool is an error, and leaves no test out")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[NOT_RUN] = {}
    if config.getoption("all_tools") and (missing := sorted(tools.find_missing())):
        raise pytest.UsageError(f"not installed: {', '.join(missing)}; {tools.describe_install(missing)}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One of several processes reports to the first what was left out: all have collected the same tests."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["not_run"] = [[list(tools_), files] for tools_, files in session.config.stash[NOT_RUN].items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    output = getattr(node, "workeroutput", {})
    node.config.stash[NOT_RUN].update({tuple(lacking): files for lacking, files in output.get("not_run", ())})


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files that import torch are not imported; their tests are counted by their text."""
    if not config.getoption("without_torch") or not collection_path.name.startswith("test_"):
        return None
    path = collection_path.relative_to(Path(__file__).parent)
    if not {path.parts[0], path.as_posix()} & set(tools.NEED_TORCH):
        return None
    tests = re.findall(r"^def test_", collection_path.read_text("utf-8"), re.M)
    config.stash[NOT_RUN].setdefault(("torch",), []).extend([path.as_posix()] * len(tests))
    return True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here, missing = Path(__file__).parent, set(tools.find_missing())
    if config.getoption("without_torch"):
        missing.add("torch")
    left_out, kept = config.stash[NOT_RUN], list[pytest.Item]()
    for item in items:
        path = item.path.relative_to(here)
        names = {path.parts[0], path.as_posix(), f"{path.as_posix()}::{item.name.partition('[')[0]}"}
        names.add(f"{path.as_posix()}::{item.name}")
        if names & set(SLOW):
            item.add_marker(pytest.mark.slow)
        lacking = missing & find_needed(item, names)
        if lacking:
            left_out.setdefault(tuple(sorted(lacking)), []).append(path.as_posix())
        else:
            kept.append(item)
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def find_needed(item: pytest.Item, names: set[str]) -> set[str]:
    """The tools that a test needs, itself or for its fixtures."""
    keys = names & tools.NEEDED_BY.keys()
    named = {word for word in re.split(r"[\[\]-]", item.name) if hasattr(getattr(item, "module", None), word)}
    fixtures = {*getattr(item, "fixturenames", ()), *named} & tools.NEEDED_BY_FIXTURE.keys()
    needed = {tool for key in keys for tool in tools.NEEDED_BY[key]}
    needed |= {"torch"} if {*names, *getattr(item, "fixturenames", ())} & set(tools.NEED_TORCH) else set()
    return needed | {tool for fixture in fixtures for tool in tools.NEEDED_BY_FIXTURE[fixture]}


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Name and count what was not run."""
    if left_out := config.stash.get(NOT_RUN, {}):
        for missing, files in sorted(left_out.items()):
            need = "1 test that needs" if len(files) == 1 else f"{len(files)} tests that need"
            places = ", ".join(sorted(set(files)))
            terminalreporter.line(f"not run here: {need} {' and '.join(missing)} ({places})")
        if every := sorted({tool for missing in left_out for tool in missing} - {"torch"}):
            terminalreporter.line(f"to run them: {tools.describe_install(every)}")


@pytest.fixture(scope="session")
def lce() -> ModuleType:
    """Runner `lce`: LCE's own interpreter, which `make witness` installs."""
    from dmsflow.modelfile.runners import lce

    return lce


@pytest.fixture(scope="session")
def make_profile() -> MakeProfile:
    """`make(network, **fields)` is a profile of exactly its fused blocks, up to 64 channels."""
    return _make_profile


def _make_profile(network: Network, **fields: Any) -> Profile:
    tables = {}
    for index, block in enumerate(fused_blocks(network), 1):
        inputs = () if isinstance(block.reads, int) else (16, 64)
        outputs = (16, 64) if block.grows else ()
        ms = tuple(
            tuple(index * (1 + row) * (1 + column) / 1000 for column in range(len(outputs) or 1))
            for row in range(len(inputs) or 1)
        )
        spread = tuple(tuple(1.0 + index for _ in row) for row in ms)
        tables[block.name] = Table(block=block.name, inputs=inputs, outputs=outputs, ms=ms, spread_percent=spread)
    made: dict[str, Any] = {
        "name": "board",
        "target": "arm64",
        "device": "ssh://pi@board",
        "threads": 1,
        "runtime": "LCE 9.9",
        "overhead_ms": 0.002,
        "steps": {"binary_conv": Granularity(inputs=16, outputs=8)},
        "tables": tuple(tables.values()),
        "checked": tuple(
            Checked(network=network.name, resolution=32, widths=(8, 9), predicted_ms=1 + error, measured_ms=1.0)
            for error in (-0.25, 0.02, 0.04)
        ),
        "drift_percent": 0.5,
        "commands": (("dmsflow", "profile", "--name", "board"),),
        "environment": {"processor": "Cortex-A72", "system": "Linux aarch64", "date": "2026-01-01"},
    }
    return Profile(**{**made, **fields})


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a `dmsflow run` of a few seconds that is done, its folder the last one: to be read, or copied."""
    from dmsflow import cli

    out = tmp_path_factory.mktemp("tiny") / "run"
    network = Path(__file__).with_name("tiny.py")
    text = "--resolution 8 --set data.train_images=200 --memory-mib 0.003 --macs-m 0.05 --target onnx"
    settings = (
        "search.rounds=3 search.weight_steps=2 search.width_batches=2 search.batch_size=32 search.threads=1 "
        "train.epochs=1 train.threads=1 export.check_images=16 bench.runs=3 bench.warm_up=1"
    )
    text += "".join(f" --set {setting}" for setting in settings.split())
    options = ["--network", str(network), *text.split(), "--out", str(out)]
    assert cli.main(["run", *options]) == 0
    return options


PHONE = """
import contextlib
from dmsflow.measuring.devices import Machine, Measurement, Timing

@contextlib.contextmanager
def connect(address, access):
    yield lambda job: Measurement(
        timings=tuple(Timing(runtime="LCE 0.17", load_ms=1.0, runs_ms=(2.0,) * job.runs) for file in job.files),
        machine=Machine(processor="Kirin 990", system="Linux aarch64", governor="schedutil", temperature_c=41.5),
    )
"""


@pytest.fixture
def phone(tmp_path: Path) -> str:
    """The address of a device that takes 2 ms for anything, and knows nothing of memory."""
    path = tmp_path / "phone.py"
    path.write_text(PHONE)
    return str(path)


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory, write_train_manifest: WriteTrain) -> tuple[File, File]:
    """A small network as an ONNX and as a .tflite file."""
    from dmsflow.deploying import export

    folder = tmp_path_factory.mktemp("files")
    source = write_train_manifest(folder)
    for name in ("x86-64", "onnx"):
        export.run_stage(source, ExportSettings(target=name, check_images=1), folder / name, Flow(("x",)))
    return (
        File(path=str(folder / "onnx" / "model.onnx"), runner="onnxruntime"),
        File(path=str(folder / "x86-64" / "model.tflite"), runner="litert"),
    )


@pytest.fixture(scope="session")
def write_train_manifest() -> WriteTrain:
    """`write(folder, network="vgg11", precision="binary")` leaves a genuine train.json of an untrained network there."""
    return _write_train_manifest


def _write_train_manifest(folder: Path, network: str = "vgg11", precision: str = "binary") -> Path:
    """Narrow widths, random weights, batch norms calibrated on digits; its weights and logits are real files."""
    import made_up
    import numpy as np
    from safetensors.numpy import save_file

    from dmsflow import datasets, manifest
    from dmsflow.environment import describe_environment
    from dmsflow.files import describe_artifact
    from dmsflow.manifest import save_manifest
    from dmsflow.network import cost
    from dmsflow.plugin import load_plugin
    from dmsflow.settings import Data

    folder.mkdir(parents=True, exist_ok=True)
    data = Data(name="digits")
    digits = datasets.load_dataset(data)
    architecture = load_plugin("networks", network).build(1, 32, 10)
    widths = {name: 5 + 3 * index for index, name in enumerate(architecture.widths)}
    if precision == "float":
        weights, logits = _float_network(architecture, widths, digits)
    else:
        scale = {"mean": digits.mean, "std": digits.std}
        weights = made_up.trained(architecture, widths, images=digits.train.pixels[:64], **scale)
        logits = made_up.plain(architecture, weights, digits.test.pixels[:256], **scale)
    save_file(weights, folder / "train.safetensors")
    save_file({"logits": np.asarray(logits, np.float32)}, folder / "train-logits.safetensors")
    written = manifest.Manifest(
        stage="train",
        command=("dmsflow", "train", "search.json"),
        settings={"precision": precision},
        network=architecture,
        widths=widths,
        data=data,
        artifacts={
            "weights": describe_artifact(folder / "train.safetensors", folder),
            "logits": describe_artifact(folder / "train-logits.safetensors", folder),
        },
        metrics={"memory_mib": cost.memory_bytes(architecture, widths) / cost.MIB, "top1_percent": 12.5},
        environment=describe_environment(),
    )
    return save_manifest(folder / "train.json", written)


@pytest.fixture(scope="session")
def sanitized_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the native parts are built with sanitizers, once for all the processes of pytest-xdist."""
    top = tmp_path_factory.getbasetemp()
    folder = (top.parent if "PYTEST_XDIST_WORKER" in os.environ else top) / "sanitised"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def sanitized_benchmark(sanitized_folder: Path) -> tuple[str, ...]:
    """The static benchmark program, built for this machine with sanitizers."""
    import sanitised

    return (str(sanitised.build(sanitized_folder, sanitised.PROGRAM) / sanitised.PROGRAM),)


@pytest.fixture(scope="session")
def arm() -> tuple[str, ...]:
    """The program for phones as it is shipped, emulated where that is needed."""
    import platform

    from dmsflow import native

    shipped = native.benchmark()
    assert shipped
    return (str(shipped),) if platform.machine() == "aarch64" else ("qemu-aarch64", str(shipped))


def _float_network(architecture: Network, widths: dict[str, int], digits: Any) -> tuple[dict[str, Any], Any]:
    """Weights and logits of a float network, by the torch model."""
    import torch

    from dmsflow.training.model import Model

    torch.manual_seed(0)
    model = Model(architecture, widths, precision="float")
    for key, tensor in model.tensors().items():
        if "norm" in key and key.endswith((".weight", ".bias")):
            tensor.data = torch.randn_like(tensor)
    model.constrain()

    def normalised(split, count):
        pixels = torch.from_numpy(split.pixels[:count]).float()
        return ((pixels - torch.tensor(digits.mean)) / torch.tensor(digits.std)).permute(0, 3, 1, 2)

    torch.set_num_threads(1)  # more of them only wait for each other on layers this narrow
    with torch.no_grad():
        for _ in range(12):
            model(normalised(digits.train, 32))
        logits = model.eval()(normalised(digits.test, 256))
    return {key: tensor.detach().contiguous().numpy() for key, tensor in model.tensors().items()}, logits.numpy()
