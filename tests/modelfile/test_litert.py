"""LCE files on stock LiteRT with dmsflow's delegate: equal to the integer graph and to the official interpreter, op by op."""

from __future__ import annotations

import importlib.util
import inspect
import platform
import re
import subprocess
import sys
import sysconfig
import types
from pathlib import Path

import damaged_files
import numpy as np
import pytest
from made_up import MEAN, STD, odd_widths, pixels, small_network, trained

from dmsflow import __version__, native
from dmsflow.deploying import folding, integer_graph
from dmsflow.deploying.exporters import lce as exporter
from dmsflow.deploying.target import load_target
from dmsflow.errors import DmsflowError
from dmsflow.measuring import devices
from dmsflow.modelfile import reader, runners
from dmsflow.modelfile.runners import litert, onnxruntime
from dmsflow.network.architectures import resnet18, vgg11
from dmsflow.plugin import list_plugins, load_plugin
from dmsflow.settings import BenchSettings


def written(folder, network, widths, seed=0, images=None):
    form = folding.fold(network, widths, trained(network, widths, seed, 1.0, images), MEAN, STD)
    path = folder / "model.tflite"
    exporter.write(form, path)
    return form, path


def run(path, images, threads=1, runner=litert):
    session = runner.open(path, threads)
    assert session.input_shape == (1, *images.shape[1:])
    return np.concatenate([session.run(image[None].astype(np.float32)) for image in images])


# --- what it computes ---------------------------------------------------------------------------


@pytest.mark.parametrize("build", [vgg11.build, resnet18.build])
@pytest.mark.parametrize("threads", [1, 2])
def test_networks_run_as_the_integer_graph(tmp_path, build, threads):
    network = build(3, 32, 10)
    images = pixels(network, 12)
    form, path = written(tmp_path, network, odd_widths(network, 0), images=images)
    logits = run(path, images, threads)
    np.testing.assert_allclose(logits, integer_graph.compute_logits(form, images), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("build", [vgg11.build, resnet18.build])
def test_networks_run_as_in_the_official_interpreter(lce, tmp_path, build):
    network = build(3, 32, 10)
    images = pixels(network, 12)
    _, path = written(tmp_path, network, odd_widths(network, 0), images=images)
    logits, official = run(path, images), run(path, images, runner=lce)
    np.testing.assert_allclose(logits, official, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(logits.argmax(1), official.argmax(1))


@pytest.mark.parametrize("seed", range(6))
def test_small_networks_run_as_their_integer_graph(tmp_path, seed):
    network = small_network(seed)
    images = pixels(network, 4)
    form, path = written(tmp_path, network, network.widths, seed, images=images)
    np.testing.assert_allclose(run(path, images), integer_graph.compute_logits(form, images), rtol=1e-5, atol=1e-4)


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    """A ResNet-18 of 32 pixels, as a file."""
    network = resnet18.build(3, 32, 10)
    return written(tmp_path_factory.mktemp("resnet18"), network, odd_widths(network, 1))[1]


def test_the_kernels_asked_for_run_and_are_reported(residual, monkeypatch):
    network = resnet18.build(3, 32, 10)
    images = pixels(network, 2)
    best = run(residual, images)
    told = re.fullmatch(
        rf"(?:LiteRT|TFLite|TensorFlow Lite) \d+\.\d+\S* \+ dmsflow {re.escape(__version__)} (\S+)", litert.version()
    )
    assert told and told[1] in native.KERNELS
    monkeypatch.setenv("DMSFLOW_KERNELS", "portable")
    assert litert.version().endswith(" portable")
    np.testing.assert_array_equal(run(residual, images), best)


# --- times of single operations -----------------------------------------------------------------


def test_the_delegates_operations_are_timed_and_the_others_between_them(residual):
    session = litert.open(residual)
    rows = session.operations(np.zeros(session.input_shape, np.float32), 5)
    operators = [one.op for one in reader.read_model_file(residual).ops]
    assert [kind for kind, _, _ in rows if kind != "other ops"] == [op for op in operators if op.startswith("Lce")]
    assert all(ms > 0 for _, _, ms in rows) and sum(ms for _, _, ms in rows) < 100
    layers = [name for kind, name, _ in rows if kind == "LceBconv2d"]
    assert layers[:2] == ["stage0_block0_conv1", "stage0_block0_conv2"] and len(layers) == 19
    others = [name for kind, name, _ in rows if kind == "other ops"]
    assert rows[0][:2] == ("other ops", f"before {rows[1][1]}") and rows[-1][:2] == ("other ops", f"after {layers[-1]}")
    # A residual sum and a sign follow each second convolution, and a padding precedes each shortcut's.
    assert len(others) == 12


def test_time_between_two_operations_is_of_other_ops_where_the_file_has_some_there():
    operators = [("x", "a"), ("LceY", "b"), ("LceY", "c"), ("x", "d"), ("LceY", "e")]
    assert litert._rows(operators, [1, 2, 4], [1.0, 2.0, 0.25, 3.0, 0.5, 4.0, 0.125]) == [
        ("other ops", "before b", 1.0),
        ("LceY", "b", 2.0),
        ("LceY", "c", 3.0),
        ("other ops", "before e", 0.75),  # what lies between b and c is too short for a row
        ("LceY", "e", 4.0),
    ]


def test_a_file_without_operations_of_the_delegate_has_one_row():
    assert litert._rows([("CONV_2D", "conv"), ("RELU", "relu")], [], [1.5]) == [("other ops", "all", 1.5)]


# --- what it says, and to whom --------------------------------------------------------------------


def child(*arguments):
    return subprocess.run([sys.executable, "-c", *arguments], capture_output=True, text=True, check=False)


def test_damaged_files_end_in_one_line_not_in_a_crash(tmp_path):
    network = small_network(2)
    _, path = written(tmp_path, network, network.widths)
    damaged_files.check(path, "litert", seed=1)


def test_the_runtime_keeps_quiet_and_xnnpack_runs_the_floats(residual):
    """What it would print is known: that there is XNNPACK."""
    script = "import sys, pathlib; from dmsflow.modelfile.runners import _compiled, litert; "
    quiet = child(f"{script} litert.open(pathlib.Path(sys.argv[1]), 1)", str(residual))
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    script += "import contextlib; _compiled.loading = lambda *_: contextlib.nullcontext(); "
    loud = child(f"{script} litert.open(pathlib.Path(sys.argv[1]), 1)", str(residual))
    assert "XNNPACK delegate" in loud.stderr


def test_what_is_no_tflite_file_is_refused(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_text("not a model")
    with pytest.raises(
        DmsflowError, match=r"model\.tflite: is not a complete \.tflite file .*; get a complete copy of it"
    ):
        litert.open(path, 1)
    with pytest.raises(DmsflowError, match=r"none\.tflite: No such file or directory"):
        litert.open(tmp_path / "none.tflite", 1)


# --- what it needs ------------------------------------------------------------------------------


def without_runtimes(monkeypatch, *present):
    """No runtime is installed but these, which are empty modules."""
    for name in litert.RUNTIMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = importlib.util.find_spec
    hidden = {name.partition(".")[0] for name in litert.RUNTIMES} - set(present)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else found(name))
    for package in present:
        modules = [name for name in litert.RUNTIMES if name.startswith(package)]
        for name in (package, *modules):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))


def test_a_missing_runtime_is_named(monkeypatch, tmp_path):
    without_runtimes(monkeypatch)
    for call in (litert.version, lambda: litert.open(tmp_path / "model.tflite", 1)):
        with pytest.raises(DmsflowError, match=r"ai-edge-litert: is not installed; pip install 'dmsflow\[device\]'"):
            call()


@pytest.mark.parametrize(
    ("system", "told"),
    [
        ((2**31 - 1, "armv7l", "arm-linux-gnueabihf"), "a 32-bit system (32-bit Python on armv7l)"),
        ((2**31 - 1, "aarch64", "arm-linux-gnueabihf"), "a 32-bit system (32-bit Python on aarch64)"),
        ((2**63 - 1, "riscv64", "riscv64-linux-gnu"), "riscv64"),
        ((2**63 - 1, "x86_64", "x86_64-alpine-linux-musl"), "x86_64-alpine-linux-musl"),
        ((2**63 - 1, "aarch64", "aarch64-linux-gnu"), None),
    ],
)
def test_pip_is_advised_only_where_there_are_wheels(system, told, monkeypatch, tmp_path):
    without_runtimes(monkeypatch)
    for module, name, value in ((sys, "maxsize", system[0]), (platform, "machine", lambda: system[1])):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(sysconfig, "get_config_var", {"HOST_GNU_TYPE": system[2]}.get)
    advice = f"is not installed, and has no wheel for {told}; a 64-bit system" if told else "; pip install 'dmsflow"
    with pytest.raises(DmsflowError, match=re.escape(advice)):
        litert.open(tmp_path / "model.tflite")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DmsflowError, match=re.escape(advice)):
        onnxruntime.version()


@pytest.mark.parametrize(
    ("package", "told"), [("tflite_runtime", "TFLite 2.14.0 + "), ("tensorflow", "TensorFlow Lite 2.14.0 + ")]
)
def test_an_older_name_of_the_runtime_does_as_well(package, told, monkeypatch):
    without_runtimes(monkeypatch, package)
    monkeypatch.setattr(sys.modules[package], "__version__", "2.14.0", raising=False)
    assert litert.version().startswith(told)


def test_a_runtime_that_does_not_import_is_reported(monkeypatch):
    without_runtimes(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "tflite_runtime")
    monkeypatch.setitem(sys.modules, "tflite_runtime", None)
    with pytest.raises(DmsflowError, match=r"tflite_runtime: cannot be imported \(.*\); install it again, or pip"):
        litert.version()


def test_a_library_that_was_not_built_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(
        DmsflowError, match=r"libdmsflow_lce\.so: is missing: dmsflow was installed without its C\+\+ part"
    ):
        litert.version()


def test_a_library_that_does_not_load_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / native.LIBRARY).write_bytes(b"not a library")
    with pytest.raises(DmsflowError, match=r"libdmsflow_lce\.so: cannot be loaded here"):
        litert.version()


# --- which runner -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*list_plugins("runners")} - {"lce"}))
def test_every_runner_keeps_the_contract(name):
    check_contract(load_plugin("runners", name))


def test_the_official_interpreter_keeps_the_contract(lce):
    check_contract(lce)


def check_contract(module):
    assert list(inspect.signature(module.open).parameters) == ["path", "threads"]
    assert re.search(r" \d+\.\d+", module.version())
    assert module.__doc__.splitlines()[0].endswith(".")
    session = inspect.signature(module.Session.run)
    assert list(session.parameters)[:2] == ["self", "images"]


def absent(name, monkeypatch):
    def lacking():
        raise DmsflowError(name, "is not installed", f"pip install {name}")

    monkeypatch.setattr(f"dmsflow.modelfile.runners.{name}.version", lacking)


def test_lce_files_run_on_litert_and_otherwise_in_the_official_interpreter(monkeypatch, capsys):
    monkeypatch.setattr("dmsflow.modelfile.runners.lce.version", lambda: "LCE 0.16.0")
    aim = load_target("arm64")
    assert devices.runner_of(aim, BenchSettings()) == "litert"
    assert capsys.readouterr().err == ""
    absent("litert", monkeypatch)
    assert devices.runner_of(aim, BenchSettings()) == "lce"
    line = "run by lce, not by litert: litert: is not installed; pip install litert\n"
    assert capsys.readouterr().err == line
    assert devices.runner_of(aim, BenchSettings(runner="litert")) == "litert"
    assert devices.runner_of(aim, BenchSettings(device="ssh://pi@board")) == "litert"
    absent("lce", monkeypatch)
    with pytest.raises(DmsflowError, match=r"^litert: is not installed; pip install litert$"):
        devices.runner_of(aim, BenchSettings())
    with pytest.raises(DmsflowError, match=r"^lce: is not installed"):
        runners.first_usable(aim.runners[::-1])


def test_the_program_for_devices_carries_what_the_runner_imports():
    from dmsflow.measuring.devices import _python

    assert "native/__init__.py" in _python.SHIPPED
    assert Path(litert.__file__).with_name("_compiled.py").is_file()
