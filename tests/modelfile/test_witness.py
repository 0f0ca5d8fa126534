"""The environment of larq-compute-engine: where it is looked for, how it is spoken to, and what may be wrong with it.

A stand-in takes its place here: a folder with a bin/python, which runs this Python with a larq_compute_engine that has
a runtime as its interpreter.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from dmsflow import doctor, environment
from dmsflow.deploying.target import Target
from dmsflow.errors import DmsflowError
from dmsflow.measuring import devices
from dmsflow.measuring.devices import File, Job
from dmsflow.modelfile.inputs import draw_values
from dmsflow.modelfile.runners import _witness, lce, litert

STAND_IN = """
import importlib.util, sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name == "dmsflow.modelfile.runners.lce":
            return importlib.util.spec_from_file_location(name, {runner!r})
sys.meta_path.insert(0, Finder)
"""
RUNNER = """
import sys
from dmsflow.modelfile.runners import litert
def is_here(): return True
def version(): return "LCE 9.9"
def open(path, threads=1): return litert.open(path, threads)
"""


@pytest.fixture
def witness(tmp_path, monkeypatch):
    """`witness(runner, start)` makes one: the text of its runner `lce`, and what its Python runs first."""
    monkeypatch.setenv("DMSFLOW_WITNESS", str(tmp_path))
    monkeypatch.setattr(lce, "is_here", lambda: False)
    monkeypatch.setattr(lce, "_ask_version", lce._ask_version.__wrapped__)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nshift\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)

    def make(runner=RUNNER, start=STAND_IN):
        (tmp_path / "runner.py").write_text(runner)
        (tmp_path / "sitecustomize.py").write_text(start.format(runner=str(tmp_path / "runner.py")))

    return make


@pytest.fixture
def tflite(model_files):
    return Path(model_files[1].path)


def test_a_file_runs_there_as_here(witness, tflite):
    witness()
    assert lce.version() == "LCE 9.9"
    there, here = lce.open(tflite), litert.open(tflite)
    assert isinstance(there, _witness.Session) and there.input_shape == here.input_shape
    for seed in range(3):
        image = np.random.default_rng(seed).integers(0, 256, here.input_shape).astype(np.float32)
        np.testing.assert_array_equal(there.run(image), here.run(image))
    child = there.child
    del there
    assert child.poll() is not None, "the child outlives its session"


def test_another_dmsflow_in_its_environment_is_not_taken(witness, tflite, tmp_path):
    witness()
    (tmp_path / "dmsflow").mkdir()
    (tmp_path / "dmsflow" / "__init__.py").write_text("1 / 0")
    assert lce.open(tflite).version == "LCE 9.9"


def test_a_quantised_input_goes_there_in_its_own_type(witness):
    witness()
    path = Path(__file__).parent / "cases" / "int8-io.tflite"
    there, here = lce.open(path), litert.open(path)
    assert there.inputs == here.inputs and there.inputs[0].dtype == "int8"
    values = draw_values(there.inputs[0], np.random.default_rng(0))
    np.testing.assert_array_equal(there.run(values), here.run(values), strict=True)
    with devices.connect("local") as measure:
        (timing,) = measure(Job(files=(File(path=str(path), runner="lce"),), threads=1, warm_up=0, runs=2)).timings
    assert timing.inputs == here.inputs


def test_several_inputs_go_there(witness, tflite):
    witness(
        RUNNER + "from types import SimpleNamespace\nfrom dmsflow.modelfile.inputs import Port\n"
        "ports = tuple(Port(name, kind, (2,)) for name, kind in (('a', 'uint8'), ('b', 'float16')))\n"
        "open = lambda *_: SimpleNamespace(input_shape=(2,), inputs=ports, run=lambda a, b: a.astype('f8') - b)"
    )
    session = lce.open(tflite)
    assert [str(port) for port in session.inputs] == ["a uint8 2", "b float16 2"]
    for factor in (1, 2):
        left, right = np.array([3, 4], np.uint8), np.array([0.5, factor], np.float16)
        np.testing.assert_array_equal(session.run(left, right), [2.5, 4 - factor])


class Interpreter:
    """Takes what LCE's own takes, as that does it."""

    def __init__(self, content, *_):
        self.input_shapes = [(1, 16, 16, 3)]

    def predict(self, values):
        assert [value.dtype for value in values] == ["int8"]
        return [np.zeros((1, 10), np.int8)]


def test_the_interpreter_itself_is_given_the_type_of_the_input(monkeypatch):
    monkeypatch.setattr(lce, "is_here", lambda: True)
    monkeypatch.setattr(lce, "_interpreter", lambda: Interpreter)
    session = lce.open(Path(__file__).parent / "cases" / "int8-io.tflite")
    assert session.inputs[0].dtype == "int8" and session.input_shape == (1, 16, 16, 3)
    assert session.run(np.ones((1, 16, 16, 3), np.int8)[:, ::-1]).shape == (1, 10)


def test_lces_own_interpreter_gives_the_bits_of_litert(lce):
    path = Path(__file__).parent / "cases" / "int8-io.tflite"
    there, here = lce.open(path), litert.open(path)
    values = draw_values(here.inputs[0], np.random.default_rng(1))
    np.testing.assert_array_equal(there.run(values), here.run(values), strict=True)


def test_it_measures_there(witness, model_files):
    """All files of the job, with a program that needs nothing of dmsflow's own packages."""
    witness()
    files = (File(path=model_files[1].path, runner="lce"), model_files[0])
    with devices.connect("local") as measure:
        measured = measure(Job(files=files, threads=1, warm_up=0, runs=2))
    assert measured.timings[0].runtime == "LCE 9.9" and measured.timings[1].runtime.startswith("onnxruntime")
    assert all(timing.peak_memory_bytes for timing in measured.timings)


def test_a_damaged_file_is_one_line(witness, tmp_path):
    witness()
    (tmp_path / "bad.tflite").write_bytes(b"no model")
    with pytest.raises(
        DmsflowError, match=r"^\S+bad.tflite: is not a complete .tflite file \(.*\); get a complete copy of it$"
    ):
        lce.open(tmp_path / "bad.tflite")


@pytest.mark.parametrize(
    ("runner", "line"),
    [
        ("1 / 0", "died (ZeroDivisionError: division by zero); make the witness again: run make witness"),
        ("import os; os._exit(7)", "died (exit status 7); make the witness again: run make witness"),
        ("def is_here(): return False", "has no larq-compute-engine with NumPy 1 ("),
    ],
)
def test_a_broken_one_is_one_line(witness, tflite, runner, line):
    witness(runner)
    with pytest.raises(DmsflowError, match=re.escape(line)):
        lce.open(tflite)


def test_one_that_dies_midway_is_one_line(witness, tflite):
    witness(
        RUNNER + "import os\nclass Dying: input_shape, run = (1, 2), lambda *_: os._exit(3)\nopen = lambda *_: Dying()"
    )
    session = lce.open(tflite)
    with pytest.raises(DmsflowError, match=r"model.tflite: the process .* died \(exit status 3\); export it again"):
        session.run(np.zeros((1, 2), np.float32))


def test_where_it_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.delenv("DMSFLOW_WITNESS", raising=False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(DmsflowError) as raised:
        environment.witness_python()
    assert str(raised.value) == (
        "larq-compute-engine: is not installed; python3.11 -m venv DIR && DIR/bin/pip install 'numpy<2' "
        "larq-compute-engine onnxruntime tensorflow, and set DMSFLOW_WITNESS=DIR"
    )
    (tmp_path / "Makefile").touch()
    with pytest.raises(DmsflowError, match="larq-compute-engine: is not installed; run make witness$"):
        environment.witness_python()
    assert not environment.is_installed("larq_compute_engine")
    for folder in (tmp_path / ".witness", tmp_path / "other"):
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").symlink_to(sys.executable)
    assert environment.witness_python() == str(tmp_path / ".witness" / "bin" / "python")
    assert environment.is_installed("larq_compute_engine")
    monkeypatch.setenv("DMSFLOW_WITNESS", os.path.relpath(tmp_path / "other"))
    assert Path(environment.witness_python()).samefile(sys.executable)
    monkeypatch.setenv("DMSFLOW_WITNESS", str(tmp_path / "none"))
    with pytest.raises(DmsflowError, match=r"^DMSFLOW_WITNESS=\S+none: has no bin/python; run make witness$"):
        environment.witness_python()


def test_a_processor_without_a_wheel_is_not_told_to_install_one(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.delenv("DMSFLOW_WITNESS", raising=False)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(DmsflowError, match=r"larq-compute-engine: has no wheel for Linux aarch64; use another runner"):
        environment.witness_python()


def test_a_target_that_has_no_other_runner_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.delenv("DMSFLOW_WITNESS", raising=False)
    (tmp_path / "Makefile").touch()
    target = Target(name="own", description="x", exporter="lce", runner="lce", suffix=".tflite")
    missing = doctor.find_missing_modules(target)
    with pytest.raises(
        DmsflowError, match=r"target own: needs larq_compute_engine \(not installed\); run make witness"
    ):
        environment.require("target own", missing)
