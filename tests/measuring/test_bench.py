"""The bench stage: real timings of real files, what is measured with what, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from dmsflow import cli, datasets, manifest
from dmsflow.deploying import export, folding, integer_graph
from dmsflow.environment import describe_environment, measured_machine
from dmsflow.errors import BudgetMissed, DmsflowError
from dmsflow.files import describe_artifact, hash_file
from dmsflow.manifest import Flow, load_manifest, save_manifest
from dmsflow.measuring import bench, devices
from dmsflow.network import profile
from dmsflow.network.latency import build_latency
from dmsflow.settings import BenchSettings, Data, ExportSettings

COMMAND = ("dmsflow", "bench", "export.json")
FEW = BenchSettings(runs=5, warm_up=2)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, write_train_manifest):
    """Folders with an export.json, by target."""
    folder = tmp_path_factory.mktemp("chain")
    source = write_train_manifest(folder)
    chosen = {name: ExportSettings(target=name, check_images=5) for name in ("x86-64", "onnx")}
    return {name: export.run_stage(source, one, folder / name, Flow(("x",))) for name, one in chosen.items()}


@pytest.mark.parametrize(("name", "runtime"), [("x86-64", "LiteRT "), ("onnx", "onnxruntime 1.")])
def test_a_chain_is_measured(exported, name, runtime, tmp_path, capsys):
    path = bench.run_stage(exported[name], FEW, tmp_path, Flow(COMMAND))
    assert path == tmp_path / "bench.json"
    written, above = load_manifest(path, "bench"), load_manifest(exported[name])
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


def test_int8_is_measured_beside_float32(exported, tmp_path, capsys):
    both = BenchSettings(runs=3, warm_up=1, baseline="both", accuracy=False)
    written = load_manifest(bench.run_stage(exported["x86-64"], both, tmp_path, Flow(COMMAND)), "bench")
    metrics = written.metrics
    assert list(json.loads((tmp_path / "bench-timings.json").read_bytes())) == ["model.tflite", "float32", "int8"]
    for label in ("float32", "int8"):
        assert written.environment["runtimes"][label].startswith("onnxruntime")
        ratio = metrics["latency_ms_median"] / metrics[f"{label}_latency_ms_median"]
        assert metrics[f"latency_ratio_to_{label}"] == ratio
        assert 10 < metrics[f"{label}_peak_memory_mib"] < 500
    assert metrics["file_bytes"] < metrics["int8_file_bytes"] < metrics["float32_file_bytes"]
    said = capsys.readouterr().err
    assert "÷ int8" in said and "÷ float32" in said and f"{metrics['int8_file_bytes'] / 1024:.1f}" in said
    assert "int8: the network of the same widths, in onnxruntime" in said


def test_one_baseline_is_measured_alone(exported, tmp_path, capsys):
    one = BenchSettings(runs=2, warm_up=0, baseline="int8", accuracy=False)
    assert dict(bench.plan_stage(exported["onnx"], one, tmp_path))["baseline"].startswith("int8 network of the same")
    metrics = load_manifest(bench.run_stage(exported["onnx"], one, tmp_path, Flow(COMMAND))).metrics
    assert metrics["int8_latency_ms_median"] > 0 and not [name for name in metrics if "float32" in name]
    assert "÷ float32" not in capsys.readouterr().err


def test_top1_is_that_of_the_integer_graph_on_the_whole_test_split(exported, tmp_path):
    path = bench.run_stage(exported["x86-64"], FEW, tmp_path, Flow(COMMAND))
    chain = load_manifest(path)
    digits = datasets.load_dataset(chain.data)
    weights = load_file(exported["x86-64"].parent.parent / "train.safetensors")
    form = folding.fold(chain.network, chain.widths, weights, digits.mean, digits.std)
    right = integer_graph.compute_logits(form, digits.test.pixels).argmax(1) == digits.test.labels
    assert chain.metrics["top1_percent"] == pytest.approx(100 * right.mean())


def test_what_the_user_leaves_out_is_not_measured(exported, tmp_path):
    lean = BenchSettings(runs=3, warm_up=0, baseline="none", accuracy=False, threads=2)
    written = load_manifest(bench.run_stage(exported["x86-64"], lean, tmp_path, Flow(COMMAND)))
    assert not [name for name in written.metrics if name.startswith("float32") or "top1" in name or "ratio" in name]
    assert list(written.environment["runtimes"]) == ["model.tflite"]
    assert written.environment["threads"] == 2


@pytest.mark.parametrize(("name", "file"), [("x86-64", "model.tflite"), ("onnx", "model.onnx")])
def test_a_bare_file_is_measured_and_belongs_to_no_chain(exported, name, file, tmp_path, capsys):
    path = bench.run_stage(exported[name].parent / file, FEW, tmp_path, Flow(COMMAND))
    written = json.loads(path.read_bytes())
    assert written["stage"] == "bench"
    assert written["metrics"]["latency_ms_median"] > 0
    assert written["environment"]["threads"] == 1
    assert written["settings"]["runs"] == 5
    assert (tmp_path / written["artifacts"]["model"]["path"]).samefile(exported[name].parent / file)
    assert not {"network", "widths", "data", "parent"} & set(written)
    assert "float32_latency_ms_median" not in written["metrics"]
    assert "no float32 baseline: no manifest has the widths of this file\n" in capsys.readouterr().err
    with pytest.raises(
        DmsflowError,
        match="is the bench of a file without a manifest, so it has no network; look at it with dmsflow show",
    ):
        load_manifest(path)


def test_no_training_framework_is_in_the_process(exported, tmp_path):
    """Neither in the stage, nor in the process that it measures in."""
    script = f"""
import sys
from contextlib import nullcontext
from pathlib import Path
from dmsflow.manifest import Flow
from dmsflow.measuring import bench, devices
from dmsflow.measuring.devices import _program
from dmsflow.settings import BenchSettings
source = Path({str(exported["x86-64"])!r})
bench.run_stage(source, BenchSettings(runs=2, warm_up=0), Path({str(tmp_path)!r}), Flow(("x",)))
file = {{"path": str(source.parent / "model.tflite"), "runner": "litert"}}
_program.run_job({{"files": [file], "threads": 1, "warm_up": 0, "runs": 1, "operations": False}})
print(*sorted({{"tensorflow", "torch", "keras", "jax"}} & set(sys.modules)), "checked")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "checked"), done.stderr


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_a_damaged_file_is_refused(suffix, tmp_path):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(b"\x20\x00\x00\x00TFL3" + bytes(range(200)))
    with pytest.raises(DmsflowError, match=rf"bad\{suffix}: .+; get a complete copy of it"):
        bench.run_stage(path, FEW, tmp_path, Flow(COMMAND))
    assert not (tmp_path / "bench.json").exists()


def test_what_is_no_model_is_refused(exported, tmp_path):
    for path, message in (
        (
            tmp_path / "model.h5",
            r"model\.h5: is neither a manifest nor a model file; give an export\.json, or a \.onnx or \.tflite file",
        ),
        (tmp_path / "none.onnx", r"none\.onnx: no such file"),
        (exported["onnx"].parent.parent / "train.json", "is a manifest of train; give a manifest of export"),
    ):
        with pytest.raises(DmsflowError, match=message):
            bench.run_stage(path, FEW, tmp_path, Flow(COMMAND))


def test_an_unknown_device_lists_the_known_ones(exported, tmp_path):
    with pytest.raises(DmsflowError, match="device toaster: is unknown; use one of .*local"):
        bench.run_stage(exported["onnx"], BenchSettings(device="toaster"), tmp_path, Flow(COMMAND))
    with pytest.raises(DmsflowError, match="device toaster: is unknown"):
        bench.plan_stage(exported["onnx"], BenchSettings(device="toaster"), tmp_path)


def test_done_is_not_done_again(exported, tmp_path):
    (tmp_path / "bench.json").write_text("{}")
    with pytest.raises(DmsflowError, match="already exists; use --force"):
        bench.run_stage(exported["onnx"], FEW, tmp_path, Flow(COMMAND))


def test_the_plan_measures_nothing(exported, tmp_path):
    rows = dict(bench.plan_stage(exported["onnx"], FEW, tmp_path / "out"))
    assert rows["runner"] == "onnxruntime"
    assert rows["runs"] == "5 of each, after 2 to warm up, 1 thread"
    assert rows["top-1"] == "on the test split of digits, by onnxruntime"
    assert not (tmp_path / "out").exists()
    bare = dict(bench.plan_stage(exported["onnx"].parent / "model.onnx", FEW, tmp_path / "out"))
    assert (bare["baseline"], bare["top-1"]) == ("none", "not measured")


def test_a_data_set_that_changed_its_shape_is_refused(exported, tmp_path, monkeypatch):
    digits = datasets.load_dataset(Data(name="digits", resolution=16))
    monkeypatch.setattr(datasets, "load_dataset", lambda data: digits)
    with pytest.raises(
        DmsflowError, match=r"data set digits: has images \[16, 16, 1\], but the file takes \[32, 32, 1\]"
    ):
        bench.run_stage(exported["onnx"], FEW, tmp_path, Flow(COMMAND))


@pytest.mark.parametrize(("metrics", "artifacts"), [({}, {"model": {"path": "x"}}), ({"latency_ms_median": 1.0}, {})])
def test_a_damaged_bench_is_one_line(metrics, artifacts, tmp_path):
    (tmp_path / "bench.json").write_text(json.dumps({"metrics": metrics, "artifacts": artifacts}))
    with pytest.raises(DmsflowError, match=r"bench.json: has no '\w+'; run the stage that writes it again"):
        bench.check_required(tmp_path / "bench.json", fewer())


def test_a_finished_bench_is_judged_anew_and_is_of_its_threads(exported, tmp_path):
    bench.run_stage(exported["x86-64"], FEW, tmp_path, Flow(COMMAND))
    written = (tmp_path / "bench.json").read_bytes()
    for limit, raises in ((1e-6, True), (1e6, False)):
        with pytest.raises(BudgetMissed) if raises else nullcontext():
            bench.run_stage(
                exported["x86-64"], msgspec.structs.replace(FEW, require_ms=limit), tmp_path, Flow(COMMAND, resume=True)
            )
    with pytest.raises(DmsflowError, match="was made with threads 1, not 2"):
        bench.run_stage(
            exported["x86-64"], msgspec.structs.replace(FEW, threads=2), tmp_path, Flow(COMMAND, resume=True)
        )
    assert (tmp_path / "bench.json").read_bytes() == written


# --- images beside a bare file ------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The test split of digits as grey PNG files, a folder for each class."""
    folder = tmp_path_factory.mktemp("pictures")
    test = datasets.load_dataset(Data(name="digits")).test
    for index, (pixels, label) in enumerate(zip(test.pixels, test.labels, strict=True)):
        (folder / str(label)).mkdir(exist_ok=True)
        Image.fromarray(pixels[..., 0]).save(folder / str(label) / f"{index}.png")
    return folder


def test_top1_of_a_bare_file_is_that_of_its_chain(exported, pictures, tmp_path):
    file = exported["x86-64"].parent / "model.tflite"
    settings = BenchSettings(runs=1, warm_up=0, images=str(pictures))
    assert dict(bench.plan_stage(file, settings, tmp_path))["top-1"] == f"on the images in {pictures}, by litert"
    bare = json.loads(bench.run_stage(file, settings, tmp_path / "bare", Flow(COMMAND)).read_bytes())["metrics"]
    lean = BenchSettings(runs=1, warm_up=0, baseline="none")
    chain = load_manifest(bench.run_stage(exported["x86-64"], lean, tmp_path / "chain", Flow(COMMAND))).metrics
    assert (bare["top1_percent"], bare["top1_images"]) == (chain["top1_percent"], 360)


def test_images_that_are_not_the_files_are_refused(exported, pictures, tmp_path):
    file = exported["x86-64"].parent / "model.tflite"

    def refused(folder, source=file):
        with pytest.raises(DmsflowError) as raised:
            bench.run_stage(source, fewer(accuracy=True, images=str(folder)), tmp_path / "out", Flow(COMMAND))
        assert not (tmp_path / "out" / "bench.json").exists()
        return str(raised.value)

    assert refused(tmp_path / "none").startswith(f"{tmp_path / 'none'}: No such file or directory; give a folder")
    said = (
        "--images: is only for a file without a manifest, and this one was exported for digits; leave it out, or give"
    )
    assert refused(pictures, exported["x86-64"]).startswith(said)
    few = tmp_path / "few"
    for label in "01":
        shutil.copytree(pictures / label, few / label)
    assert refused(few).startswith(f"{few}: has 2 class folders, but the file has 10 classes; give one folder")
    whole = tmp_path / "whole"
    for part in ("train", "test"):
        shutil.copytree(few, whole / part)
    assert refused(whole) == f"{whole}: is a whole data set; give its test images: {whole / 'test'}"
    red = Path(shutil.copytree(pictures, tmp_path / "red"))
    Image.new("RGB", (32, 32), "red").save(red / "3" / "0.png")
    assert refused(red).startswith(f"{red / '3' / '0.png'}: is in colour, but the training images are grey; ")


# --- predicted beside measured ------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(tmp_path_factory, write_train_manifest, make_profile):
    """The folder of a chain whose search used a profile: search.json, profile.json, train.json, export.json."""
    folder = tmp_path_factory.mktemp("searched")
    source = write_train_manifest(folder)
    trained = load_manifest(source)
    profile.save_profile(folder / "profile.json", make_profile(trained.network))
    artifacts = {"profile": describe_artifact(folder / "profile.json", folder)}
    found = msgspec.structs.replace(trained, stage="search", artifacts=artifacts, metrics={}, settings={})
    parent = describe_artifact(save_manifest(folder / "search.json", found), folder)
    save_manifest(source, msgspec.structs.replace(trained, parent=parent))
    export.run_stage(source, ExportSettings(target="x86-64", check_images=2), folder, Flow(("x",)))
    return folder


@pytest.fixture
def saved(searched, make_profile, tmp_path):
    """`save(**fields)` writes a profile of the chain's network, and gives its path."""
    network = load_manifest(searched / "export.json").network
    return lambda **fields: str(profile.save_profile(tmp_path / "other.json", make_profile(network, **fields)))


def fewer(**fields):
    return BenchSettings(**{"runs": 3, "warm_up": 0, "accuracy": False, "baseline": "none", **fields})


def test_the_searchs_profile_predicts(searched, tmp_path, capsys):
    written = load_manifest(bench.run_stage(searched / "export.json", fewer(), tmp_path, Flow(COMMAND)))
    latency = build_latency(written.network, profile.load_profile(str(searched / "profile.json")))
    metrics = written.metrics
    predicted, measured = metrics["predicted_latency_ms"], metrics["latency_ms_median"]
    assert predicted == latency(written.widths) > 0
    assert metrics["prediction_error_percent"] == pytest.approx(100 * (predicted - measured) / measured)
    assert [row["predicted_ms"] for row in metrics["pieces"][:-1]] == [ms for _, ms in latency.by_block(written.widths)]
    assert metrics["pieces"][-1] == {
        "piece": "overhead of a run",
        "input_width": None,
        "output_width": None,
        "predicted_ms": 0.002,
        "share_percent": pytest.approx(0.2 / predicted),
    }
    assert sum(row["share_percent"] for row in metrics["pieces"]) == pytest.approx(100)
    assert metrics["pieces"][1]["input_width"] == next(iter(written.widths.values()))
    assert written.environment["profile"] == {
        "name": "board",
        "method": "measured",
        "sha256": hash_file(searched / "profile.json"),
    }
    shown = capsys.readouterr().err
    assert "board: measured on ssh://pi@board (Cortex-A72), LCE 9.9, 1 thread, 2026-01-01" in shown
    assert "board is of another processor: Cortex-A72, and this is " in shown
    assert "board is of another runtime: LCE 9.9, and this is LiteRT " in shown
    assert f"{metrics['prediction_error_percent']:+.1f}" in shown
    assert "modelled" not in shown


def test_the_profile_asked_for_predicts_instead_and_says_if_it_is_modelled(searched, saved, tmp_path, capsys):
    other = saved(name="dream", method="modelled", overhead_ms=100.0)
    settings = fewer(profile=other)
    assert dict(bench.plan_stage(searched / "export.json", settings, tmp_path))["predicted"].endswith(
        "dream (modelled)"
    )
    written = load_manifest(bench.run_stage(searched / "export.json", settings, tmp_path, Flow(COMMAND)))
    assert written.metrics["predicted_latency_ms"] > 100
    assert written.environment["profile"]["method"] == "modelled"
    shown = capsys.readouterr().err
    assert "Predicted by block, profile dream (modelled)" in shown
    assert "dream (modelled): modelled for " in shown


def test_a_required_time_is_met_or_missed(searched, tmp_path, capsys):
    """Missed, the numbers are there all the same, and are held against a requirement again."""
    lean = ["--runs", "3", "--warm-up", "0", "--no-accuracy", "--baseline", "none"]
    given = ["bench", str(searched / "export.json"), *lean, "--out"]
    assert cli.main([*given, str(tmp_path / "met"), "--require-ms", "60000"]) == 0
    assert cli.main([*given, str(tmp_path / "missed"), "--require-ms", "1e-3"]) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{searched / 'model.tflite'}: takes " in last and "ms (median), more than --require-ms 0.001; " in last
    path = tmp_path / "missed" / "bench.json"
    median = load_manifest(path).metrics["latency_ms_median"]
    assert f"takes {median:.4g} ms" in last
    bench.check_required(path, fewer(require_ms=median))
    bench.check_required(path, fewer())
    with pytest.raises(BudgetMissed):
        bench.check_required(path, fewer(require_ms=median * 0.999))
    assert dict(bench.plan_stage(searched / "export.json", fewer(require_ms=2), tmp_path))["required"] == "at most 2 ms"


def test_operations_are_reported_where_the_runtime_tells_them(exported, tmp_path, capsys):
    written = load_manifest(bench.run_stage(exported["onnx"], fewer(operations=True), tmp_path, Flow(COMMAND)))
    rows = written.metrics["operations"]
    assert {"Conv"} < {row["op"] for row in rows}
    assert sum(row["share_percent"] for row in rows) == pytest.approx(100)
    assert all(row["ms"] >= 0 and row["name"] for row in rows)
    assert "Operations as timed by onnxruntime 1." in capsys.readouterr().err
    written = load_manifest(
        bench.run_stage(exported["x86-64"], fewer(operations=True), tmp_path / "litert", Flow(COMMAND))
    )
    assert {"LceBconv2d", "LceQuantize"} < {row["op"] for row in written.metrics["operations"]}


def test_the_official_interpreter_measures_in_its_own_environment(lce, exported, tmp_path, capsys):
    """Beside the float32 baseline, which that environment runs too."""
    settings = fewer(operations=True, runner="lce", baseline="float32")
    path = bench.run_stage(exported["x86-64"], settings, tmp_path / "lce", Flow(COMMAND))
    assert load_manifest(path).environment["runtimes"]["model.tflite"] == lce.version()
    assert lce.version().startswith("LCE 0.")
    assert load_manifest(path).metrics["float32_latency_ms_median"] > 0
    assert "operations" not in load_manifest(path).metrics
    assert "does not report the time of its operations\n" in capsys.readouterr().err


# --- other devices ------------------------------------------------------------------------------


def test_a_bench_tells_the_device_that_measured(exported, phone, tmp_path, capsys):
    settings = BenchSettings(device=phone, runs=3)
    written = load_manifest(bench.run_stage(exported["x86-64"], settings, tmp_path, Flow(COMMAND)))
    machine = written.environment["machine"]
    assert machine == {
        "processor": "Kirin 990",
        "system": "Linux aarch64",
        "governor": "schedutil",
        "temperature_c": 41.5,
        "method": "measured",
    }
    assert measured_machine(written.environment) == machine != measured_machine(describe_environment())
    assert written.metrics["float32_latency_ms_median"] == 2.0
    assert "peak_memory_mib" not in written.metrics
    shown = capsys.readouterr().err
    assert "measured on: Kirin 990, Linux aarch64, governor schedutil, 42 °C" in shown
    assert "top-1: computed on this machine, with the same file" in shown
    assert bench.PEAK not in shown


@pytest.mark.parametrize(
    ("reach", "told"),
    [({"device": "adb://S1"}, "adb://S1"), ({"device": "ssh://a@b", "runner_file": "lce_bench"}, "lce_bench")],
)
def test_where_only_the_file_can_run_there_is_no_baseline(reach, told, exported, phone, tmp_path, monkeypatch, capsys):
    asked = []

    def connect(address, access):
        asked.append((address, access.runner_file))
        return original(phone, access)

    original = devices.connect
    monkeypatch.setattr(devices, "connect", connect)
    settings = BenchSettings(runs=3, accuracy=False, **reach)
    assert dict(bench.plan_stage(exported["x86-64"], settings, tmp_path))["baseline"] == "none"
    written = load_manifest(bench.run_stage(exported["x86-64"], settings, tmp_path, Flow(COMMAND)))
    assert asked == [(reach["device"], reach.get("runner_file"))]
    assert list(written.environment["runtimes"]) == ["model.tflite"]
    assert not [name for name in written.metrics if name.startswith("float32")]
    line = f"no float32 baseline: {told} does not run onnxruntime\n"
    assert capsys.readouterr().err.startswith(line)


def test_top1_needs_a_runtime_here(exported, phone, tmp_path, monkeypatch):
    def absent():
        raise DmsflowError("ai-edge-litert", "is not installed", "pip install 'dmsflow[device]'")

    monkeypatch.setattr("dmsflow.modelfile.runners.litert.version", absent)
    monkeypatch.setattr("dmsflow.modelfile.runners.lce.version", lambda: "LCE 0.16.0")
    witnessed = dict(bench.plan_stage(exported["x86-64"], BenchSettings(device=phone), tmp_path))
    assert witnessed["top-1"] == "on the test split of digits, by lce"
    monkeypatch.setattr("dmsflow.modelfile.runners.lce.version", absent)
    with pytest.raises(DmsflowError, match=r"top-1: .*cannot run the file \(ai-edge.*device\]'\); .*--no-accuracy"):
        bench.run_stage(exported["x86-64"], BenchSettings(device=phone), tmp_path / "out", Flow(COMMAND))
    assert not (tmp_path / "out").exists()
    settings = BenchSettings(device=phone, accuracy=False)
    assert bench.run_stage(exported["x86-64"], settings, tmp_path / "out", Flow(COMMAND)).exists()
