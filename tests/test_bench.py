"""The bench stage: real timings of real files, what is measured with what, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dmsflow import bench, datasets, deploy, export, manifest
from dmsflow.errors import DmsflowError
from dmsflow.settings import BenchSettings, ExportSettings

COMMAND = ("dmsflow", "bench", "export.json")
FEW = BenchSettings(runs=5, warm_up=2)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, write_train_manifest):
    """Folders with an export.json, by target."""
    folder = tmp_path_factory.mktemp("chain")
    source = write_train_manifest(folder)
    chosen = {name: ExportSettings(target=name, check_images=5) for name in ("x86-64", "onnx")}
    return {name: export.run(source, one, folder / name, command=("x",)) for name, one in chosen.items()}


@pytest.mark.parametrize(("name", "runtime"), [("x86-64", "LCE 0."), ("onnx", "onnxruntime 1.")])
def test_a_chain_is_measured(exported, name, runtime, tmp_path, capsys):
    path = bench.run(exported[name], FEW, tmp_path, command=COMMAND)
    assert path == tmp_path / "bench.json"
    written, above = manifest.load(path, "bench"), manifest.load(exported[name])
    metrics = written.metrics
    assert (written.network, written.widths, written.data, written.command) == (
        above.network,
        above.widths,
        above.data,
        COMMAND,
    )
    for prefix in ("", "float32_"):
        assert (
            0
            < metrics[f"{prefix}latency_ms_minimum"]
            <= metrics[f"{prefix}latency_ms_median"]
            <= metrics[f"{prefix}latency_ms_p90"]
            < 1000
        )
        assert 0 < metrics[f"{prefix}load_ms"] < 10_000
        assert 10 < metrics[f"{prefix}peak_memory_mib"] < 500
    assert metrics["latency_ratio_to_float32"] == metrics["latency_ms_median"] / metrics["float32_latency_ms_median"]
    assert metrics["file_bytes"] == manifest.verify(path, written.artifacts["model"]).stat().st_size
    model = Path(written.artifacts["model"].path).name
    assert written.environment["runtimes"][model].startswith(runtime)
    assert written.environment["runtimes"]["float32"].startswith("onnxruntime")
    assert written.environment["threads"] == 1
    raw = json.loads((tmp_path / "bench-timings.json").read_bytes())
    assert {label: len(times) for label, times in raw.items()} == {model: 5, "float32": 5}
    assert abs(np.median(raw[model]) - metrics["latency_ms_median"]) < 1e-4
    shown = capsys.readouterr()
    assert shown.out == ""
    for head in ("median ms", "p90 ms", "min ms", "peak MiB", "file KiB", "top-1 %", "÷ float32"):
        assert head in shown.err


def test_top1_is_that_of_the_deploy_form_on_the_whole_test_split(exported, tmp_path):
    path = bench.run(exported["x86-64"], FEW, tmp_path, command=COMMAND)
    chain = manifest.load(path)
    digits = datasets.load(chain.data)
    weights = load_file(exported["x86-64"].parent.parent / "train.safetensors")
    form = deploy.deploy_form(chain.network, chain.widths, weights, digits.mean, digits.std)
    right = deploy.run(form, digits.test.pixels).argmax(1) == digits.test.labels
    assert chain.metrics["top1_percent"] == pytest.approx(100 * right.mean())


def test_what_the_user_leaves_out_is_not_measured(exported, tmp_path):
    lean = BenchSettings(runs=3, warm_up=0, baseline=False, accuracy=False, threads=2)
    written = manifest.load(bench.run(exported["x86-64"], lean, tmp_path, command=COMMAND))
    assert not [name for name in written.metrics if name.startswith("float32") or "top1" in name or "ratio" in name]
    assert list(written.environment["runtimes"]) == ["model.tflite"]
    assert written.environment["threads"] == 2


@pytest.mark.parametrize(("name", "file"), [("x86-64", "model.tflite"), ("onnx", "model.onnx")])
def test_a_bare_file_is_measured_and_belongs_to_no_chain(exported, name, file, tmp_path):
    path = bench.run(exported[name].parent / file, FEW, tmp_path, command=COMMAND)
    written = json.loads(path.read_bytes())
    assert written["stage"] == "bench"
    assert written["metrics"]["latency_ms_median"] > 0
    assert written["environment"]["threads"] == 1
    assert written["settings"]["runs"] == 5
    assert (tmp_path / written["artifacts"]["model"]["path"]).samefile(exported[name].parent / file)
    assert not {"network", "widths", "data", "parent"} & set(written)
    assert "float32_latency_ms_median" not in written["metrics"]
    with pytest.raises(DmsflowError, match="measures a bare file, which has no chain; read it as JSON"):
        manifest.load(path)


def test_no_training_framework_is_in_the_process(exported, tmp_path):
    """Neither in the stage, nor in the process that it measures in."""
    script = f"""
import sys
from pathlib import Path
from dmsflow import bench, devices
from dmsflow.devices import _program
from dmsflow.settings import BenchSettings
source = Path({str(exported["x86-64"])!r})
bench.run(source, BenchSettings(runs=2, warm_up=0), Path({str(tmp_path)!r}), command=("x",))
file = {{"path": str(source.parent / "model.tflite"), "runner": "lce"}}
_program.watch({{"files": [file], "threads": 1, "warm_up": 0, "runs": 1, "operations": False}})
print(*sorted({{"tensorflow", "torch", "keras", "jax"}} & set(sys.modules)), "checked")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "checked"), done.stderr


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_a_damaged_file_is_refused(suffix, tmp_path):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(b"\x20\x00\x00\x00TFL3" + bytes(range(200)))
    with pytest.raises(DmsflowError, match=rf"bad\{suffix}: .+; export it again"):
        bench.run(path, FEW, tmp_path, command=COMMAND)
    assert not (tmp_path / "bench.json").exists()


def test_what_is_no_model_is_refused(exported, tmp_path):
    for path, message in (
        (
            tmp_path / "model.h5",
            r"model\.h5: is neither a manifest nor a model file; give an export\.json, or a \.onnx or \.tflite file",
        ),
        (tmp_path / "none.onnx", r"none\.onnx: no such file"),
        (exported["onnx"].parent.parent / "train.json", "is the manifest of train; give one of export"),
    ):
        with pytest.raises(DmsflowError, match=message):
            bench.run(path, FEW, tmp_path, command=COMMAND)


def test_an_unknown_device_lists_the_known_ones(exported, tmp_path):
    with pytest.raises(DmsflowError, match="device toaster: is unknown; use one of .*local"):
        bench.run(exported["onnx"], BenchSettings(device="toaster"), tmp_path, command=COMMAND)
    with pytest.raises(DmsflowError, match="device toaster: is unknown"):
        bench.plan(exported["onnx"], BenchSettings(device="toaster"), tmp_path)


def test_done_is_not_done_again(exported, tmp_path):
    (tmp_path / "bench.json").write_text("{}")
    with pytest.raises(DmsflowError, match="is already there; --force"):
        bench.run(exported["onnx"], FEW, tmp_path, command=COMMAND)


def test_the_plan_measures_nothing(exported, tmp_path):
    rows = dict(bench.plan(exported["onnx"], FEW, tmp_path / "out"))
    assert rows["runner"] == "onnxruntime"
    assert rows["runs"] == "5 of each, after 2 to warm up, 1 thread"
    assert rows["top-1"] == "on the test split of digits"
    assert not (tmp_path / "out").exists()
    bare = dict(bench.plan(exported["onnx"].parent / "model.onnx", FEW, tmp_path / "out"))
    assert (bare["baseline"], bare["top-1"]) == ("none", "not measured")


@pytest.mark.parametrize(("value", "shown"), [(0.04567, "0.046"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")])
def test_milliseconds_are_short(value, shown):
    assert bench._ms(value) == shown


def test_a_data_set_that_changed_its_shape_is_refused(exported, tmp_path, monkeypatch):
    digits = datasets.load(manifest.Data(name="digits", resolution=16))
    monkeypatch.setattr(datasets, "load", lambda data: digits)
    with pytest.raises(
        DmsflowError, match=r"data set digits: has images \[16, 16, 1\], and the file takes \[32, 32, 1\]"
    ):
        bench.run(exported["onnx"], FEW, tmp_path, command=COMMAND)
