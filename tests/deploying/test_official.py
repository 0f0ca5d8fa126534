"""The official converter as a second opinion: its files and those written directly agree bit for bit.

Its files, and their logits in the official interpreter, are kept in tests/witnessed; where larq-compute-engine is
installed (`make witness`) they are made again. TensorFlow starts slowly, so one child process converts all.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import witnessed
from made_up import MEAN, STD, odd_widths, pixels, trained
from safetensors.numpy import load_file

from dmsflow import cli, datasets
from dmsflow.deploying import check, export, folding, integer_graph
from dmsflow.deploying.exporters import lce as exporter
from dmsflow.deploying.exporters.official import convert
from dmsflow.deploying.size_report import measure_ops
from dmsflow.errors import DmsflowError
from dmsflow.manifest import Flow, load_manifest
from dmsflow.modelfile import reader, tflite
from dmsflow.modelfile.graph import BITS
from dmsflow.modelfile.runners import lce as lce_runner
from dmsflow.modelfile.runners import litert
from dmsflow.network.architectures import resnet18
from dmsflow.network.network import INPUT, Layer, Network
from dmsflow.network.profile import Granularity
from dmsflow.plugin import list_plugins, load_plugin
from dmsflow.settings import ExportSettings


def rectified():
    """Blocks of QuickNet: convolutions of ±1, with a ReLU in front of the batch norm and a shortcut; one without."""
    layers = [
        Layer(name="stem", op="conv", inputs=(INPUT,), width="a", kernel=3, stride=2, padding=1),
        Layer(name="stem_norm", op="batch_norm", inputs=("stem",)),
    ]
    for index in range(4):
        entry = layers[-1].name
        layers += [
            Layer(name=f"sign{index}", op="sign", inputs=(entry,)),
            Layer(name=f"conv{index}", op="binary_conv", inputs=(f"sign{index}",), width="a", kernel=3, padding=1),
            Layer(name=f"relu{index}", op="relu", inputs=(f"conv{index}",)),
            Layer(name=f"norm{index}", op="batch_norm", inputs=(f"relu{index}",)),
            Layer(name=f"add{index}", op="add", inputs=(f"norm{index}", entry)),
        ]
    layers += [
        Layer(name="sign4", op="sign", inputs=("add3",)),
        Layer(name="conv4", op="binary_conv", inputs=("sign4",), width="b", kernel=3),
        Layer(name="relu4", op="relu", inputs=("conv4",)),
        Layer(name="norm4", op="batch_norm", inputs=("relu4",)),
        Layer(name="quantize5", op="quantize", inputs=("norm4",)),
        Layer(name="conv5", op="binary_conv", inputs=("quantize5",), width="a", kernel=3),
        Layer(name="norm5", op="batch_norm", inputs=("conv5",)),
        Layer(name="average", op="average_pool", inputs=("norm5",)),
        Layer(name="dense", op="dense", inputs=("average",), width=10),
    ]
    widths = {"a": 40, "b": 70}
    return Network(name="rectified", channels=3, resolution=32, classes=10, widths=widths, layers=tuple(layers))


# Those in which no sum of floats decides a bit; the others are in test_agreement.py, to float32's rounding.
NETWORKS = {"rectified": rectified()}
NETWORKS |= {name: load_plugin("networks", name).build(3, 32, 10) for name in ("resnet18", "vgg11")}
NETWORKS |= {"resnet18 of 64 pixels": resnet18.build(3, 64, 10)}
WIDE = ("vgg11", "resnet18", "rectified")
HALVING = ("stem", "conv")


@dataclass
class Both:
    """A network in two files, and what they compute."""

    form: integer_graph.IntegerGraph
    images: np.ndarray
    logits: np.ndarray  # of the official file, in the official interpreter
    official: Path
    direct: Path


def halving(where):
    """A network with stride 2 and padding in its stem or in its binary convolution, on an even image."""
    stem, conv = (2, 1) if where == "stem" else (1, 2)
    layers = (
        Layer(name="stem", op="conv", inputs=(INPUT,), width="a", kernel=3, stride=stem, padding=1),
        Layer(name="norm1", op="batch_norm", inputs=("stem",)),
        Layer(name="quantize", op="quantize", inputs=("norm1",)),
        Layer(name="conv", op="binary_conv", inputs=("quantize",), width="b", kernel=3, stride=conv, padding=1),
        Layer(name="norm2", op="batch_norm", inputs=("conv",)),
        Layer(name="average", op="average_pool", inputs=("norm2",)),
        Layer(name="dense", op="dense", inputs=("average",), width=5),
    )
    return Network(name=where, channels=3, resolution=12, classes=5, widths={"a": 13, "b": 21}, layers=layers)


class Naive(convert.Program):
    """Pads alike on all sides, as one would, and signs rather than what stands before them."""

    def padded(self, op, x, fill=0.0):
        return self.step("pad", op.name, x, amounts=[op.padding] * 2, fill=fill) if op.padding else x

    def padded_signs(self, op, x):
        return self.padded(op, self.step("sign", x.layer, self.below(x)), 1.0)


def fold(network, seed=0, wide=False):
    """Its integer graph, and images that its batch norms know."""
    widths = {name: 3 + 14 * index % 37 for index, name in enumerate(network.widths)}
    if wide:
        widths = {name: width // 2 | 1 for name, width in odd_widths(network, seed).items()}
    images = pixels(network, 5, seed)
    magnitude = (1.0, 1e-3, 300.0)[seed % 3]
    return folding.fold(network, widths, trained(network, widths, seed, magnitude, images), MEAN, STD), images


def forms():
    """Integer graphs and images, by name."""
    made = {name: fold(network, seed, name in WIDE) for seed, (name, network) in enumerate(NETWORKS.items())}
    return made | {where: fold(halving(where)) for where in HALVING}


def converted(made):
    """The official converter's files of some graphs."""
    return convert.convert([convert.Program(form) for form, _ in made.values()])


def run(path, images, runner=litert):
    session = runner.open(path, 1)
    return np.concatenate([session.run(image[None].astype(np.float32)) for image in images])


def run_lce(model, images):
    """Logits of a file in the official interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.tflite")
        path.write_bytes(model)
        return run(path, images, lce_runner)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The kept files of the official converter, and those that dmsflow writes, by name."""
    folder, made = tmp_path_factory.mktemp("official"), {}
    for name, kept in witnessed.networks().items():
        both = Both(kept.graph, kept.images, kept.logits, folder / f"{name}.tflite", folder / f"{name}-direct.tflite")
        exporter.write(both.form, both.direct)
        both.official.write_bytes(kept.model)
        made[name] = both
    return made


@pytest.fixture(scope="module")
def source(tmp_path_factory, write_train_manifest):
    return write_train_manifest(tmp_path_factory.mktemp("train"), "resnet18")


@pytest.fixture(scope="module")
def form_of_source(source):
    train = load_manifest(source)
    data = datasets.load_dataset(train.data)
    return folding.fold(
        train.network, train.widths, load_file(source.parent / "train.safetensors"), data.mean, data.std
    )


@pytest.fixture(scope="module")
def converted_now(lce, files, form_of_source):
    """Everything that larq-compute-engine writes, by name."""
    programs = {name: convert.Program(both.form) for name, both in files.items()}
    programs |= {f"{where}-naive": Naive(files[where].form) for where in HALVING}
    programs["source"] = convert.Program(form_of_source)
    return dict(zip(programs, convert.convert(list(programs.values())), strict=True))


def weights(path):
    """Of the binary convolutions, sorted: the two files have them in another order."""
    model = tflite.read_model(path)
    graph = model["subgraphs"][0]
    codes = [code.get("custom_code") for code in model["operator_codes"]]
    chosen = [one["inputs"][1] for one in graph["operators"] if codes[one.get("opcode_index", 0)] == "LceBconv2d"]
    return sorted(bytes(model["buffers"][graph["tensors"][number]["buffer"]]["data"]) for number in chosen)


# --- the two files agree ------------------------------------------------------------------------


def test_what_is_kept_is_what_the_converter_makes(files, converted_now):
    for name, both in files.items():
        np.testing.assert_array_equal(run_lce(converted_now[name], both.images), both.logits, err_msg=name)


@pytest.mark.parametrize("name", [*NETWORKS, *HALVING])
def test_both_files_give_the_same_bits(files, name):
    both = files[name]
    logits = run(both.direct, both.images)
    np.testing.assert_array_equal(run(both.official, both.images), logits)
    np.testing.assert_allclose(logits, both.logits, rtol=1e-5, atol=1e-4)
    expected = integer_graph.compute_logits(both.form, both.images)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-4)
    assert expected.std(0).min() > 0, "all images have the same logits, so that nothing was compared"


@pytest.mark.parametrize("name", NETWORKS)
def test_both_files_give_the_same_bits_in_the_official_interpreter(lce, files, name):
    both = files[name]
    np.testing.assert_array_equal(run_lce(both.direct.read_bytes(), both.images), both.logits)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_binary_layer_is_packed_and_has_the_same_weights(files, name):
    both = files[name]
    check.check_packed(exporter, both.form, both.official)
    assert weights(both.official) == weights(both.direct)


def test_bits_stay_packed_where_no_pool_stands_between(files):
    packed = {}
    for name in ("vgg11", "resnet18"):
        convs = [op for op in reader.read_model_file(files[name].official).ops if op.op == "LceBconv2d"]
        packed[name] = [exporter.layer_of_tensor(op.output.name) for op in convs if op.output.dtype == BITS]
    assert packed["vgg11"] == ["conv2", "conv4", "conv6"]
    assert packed["resnet18"] == [f"stage{stage}_block{block}_conv1" for stage in range(4) for block in range(2)]


@pytest.mark.parametrize("name", WIDE)
def test_the_account_knows_the_layers_of_both_files(files, name):
    """In front of a pool the official file has a factor and an addend a channel, the direct one a threshold."""
    both = files[name]
    official, direct = exporter.layer_bytes(both.official), exporter.layer_bytes(both.direct)
    shapes, rows = both.form.shapes(), [row.layer for row in measure_ops(both.form, Granularity())]
    more = {layer: official[layer] - direct[layer] for layer in rows}
    pooled = ["conv1", "conv3", "conv5"] if name == "vgg11" else []
    assert {layer: more[layer] for layer in pooled} == {layer: 4 * shapes[layer][2] for layer in pooled}
    assert all(more[layer] in (0, 4) for layer in rows if layer not in pooled)  # 4: the -1 of a quantiser
    total = both.official.stat().st_size
    assert both.direct.stat().st_size < total < 1.1 * both.direct.stat().st_size


# --- around the converter's bug -------------------------------------------------------------------


@pytest.mark.parametrize("where", HALVING)
def test_the_converter_miscompiles_even_padding_at_stride_2(lce, files, converted_now, where, tmp_path):
    right, wrong = files[where], tmp_path / "wrong.tflite"
    wrong.write_bytes(converted_now[f"{where}-naive"])
    expected = integer_graph.compute_logits(right.form, right.images)
    difference = abs(run(wrong, right.images, lce) - expected)
    assert difference.max() > 0.01 * expected.std(), (
        f"{lce.version()} has its bug repaired: `Program.padded` may pad alike on all sides, and this test go"
    )
    assert not any(op.startswith("PAD") for op in exporter.count_ops(wrong)), "it took the padding for SAME"


@pytest.mark.parametrize("where", HALVING)
def test_only_what_is_read_is_padded(files, where):
    assert exporter.count_ops(files[where].official)["PAD"] == 1


# --- as an export ---------------------------------------------------------------------------------


def test_an_export_by_the_official_converter(converted_now, source, form_of_source, tmp_path, monkeypatch):
    def converted(programs):
        assert [one.dumps() for one in programs] == [convert.Program(form_of_source).dumps()]
        return [converted_now["source"]]

    monkeypatch.setattr(convert, "convert", converted)
    settings = ExportSettings(target="x86-64", check_images=20, converter="official")
    assert ("exporter", "lce, official") in export.plan_stage(source, settings, tmp_path)
    path = export.run_stage(source, settings, tmp_path, Flow(("dmsflow", "export")))
    written = load_manifest(path)
    assert written.settings["converter"] == "official"
    assert (tmp_path / "model.tflite").read_bytes() == converted_now["source"]
    assert written.metrics["deploy_form_largest_logit_difference"] < 1e-4
    layers = written.metrics["layers"]
    assert all(layer["file_bytes"] >= layer["binary_bytes"] for layer in layers)
    with pytest.raises(DmsflowError, match=r"--converter official: is not for target onnx"):
        export.plan_stage(source, ExportSettings(target="onnx", converter="official"), tmp_path)


def test_a_file_that_lost_a_binary_layer_is_not_kept(files, source, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "convert", lambda _: [files["vgg11"].official.read_bytes()])
    settings = ExportSettings(target="x86-64", check_images=20, converter="official")
    with pytest.raises(DmsflowError, match=r"model.tflite: has 7 ops of kind 'LceBconv2d', but the network has 19"):
        export.run_stage(source, settings, tmp_path, Flow(("dmsflow", "export")))
    assert not list(tmp_path.iterdir())


def test_other_exports_need_no_tensorflow():
    assert exporter.REQUIRES == ()
    assert not [name for name in list_plugins("exporters") if "official" in name]


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("x86-64", r"DMSFLOW_WITNESS=\S+: has no bin/python; run make witness"),
        ("onnx", r"--converter official: is not for target onnx"),
    ],
)
def test_a_run_says_before_the_search_what_its_export_lacks(tmp_path, monkeypatch, capsys, target, line):
    monkeypatch.setenv("DMSFLOW_WITNESS", str(tmp_path))
    command = [
        "run",
        "--set",
        "export.converter=official",
        "--target",
        target,
        "--set",
        "bench.baseline=none",
        "--out",
        str(tmp_path / "run"),
    ]
    assert cli.main(command) == 1
    assert re.search(line, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


# --- what can go wrong with the child ---------------------------------------------------------------


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """`broken(text)` makes a witness whose larq_compute_engine has this text; all temporary files are in `tmp`."""
    temporary, python = tmp_path / "tmp", tmp_path / "bin" / "python"
    temporary.mkdir()
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nshift\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("DMSFLOW_WITNESS", str(tmp_path))
    return (tmp_path / "larq_compute_engine.py").write_text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "import none.such",
            "none: is not in the environment of larq-compute-engine; run make witness, or leave out --converter official",
        ),
        (
            "1 / 0",
            "larq-compute-engine: its converter failed (exit status 1: ZeroDivisionError: division by zero); report this, or leave out --converter official",
        ),
        (
            "import os\nos.abort()",
            "larq-compute-engine: its converter failed (SIGABRT: no output); report this, or leave out --converter official",
        ),
        (
            "import sys\nprint('no', file=sys.stderr)\nsys.exit(9)",
            "larq-compute-engine: its converter failed (exit status 9: no); report this, or leave out --converter official",
        ),
    ],
)
def test_a_child_that_fails_is_one_line(broken, files, tmp_path, text, line):
    broken(text)
    with pytest.raises(DmsflowError) as raised:
        exporter.write(files["stem"].form, tmp_path / "out" / "model.tflite", "official")
    assert str(raised.value) == line
    assert not (tmp_path / "out").exists() and not list((tmp_path / "tmp").iterdir())


def test_no_room_for_the_program(broken, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(DmsflowError, match=r"none: cannot be written \(No such file or directory\); free some space"):
        convert.convert([])


PARENT = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from test_official import exporter, witnessed
try:
    exporter.write(witnessed.networks()["stem"].graph, Path(sys.argv[1]), "official")
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_child_ends_with_its_parent(broken, tmp_path, how):
    broken(
        "import os, pathlib, time\npathlib.Path(__file__).with_name('pid').write_text(f'{os.getpid()} ')\ntime.sleep(60)"
    )
    command = [sys.executable, "-c", PARENT.format(path=sys.path), str(tmp_path / "model.tflite")]
    with subprocess.Popen(command) as parent:
        pid = tmp_path / "pid"
        wait_until(lambda: pid.exists() and pid.read_text().endswith(" "))
        parent.send_signal(how)
    wait_until(lambda: not running(int(pid.read_text())))
    assert parent.returncode == (130 if how == signal.SIGINT else -how)
    assert not (tmp_path / "model.tflite").exists()
    if how == signal.SIGINT:
        assert not list((tmp_path / "tmp").iterdir())


def wait_until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def running(pid):
    """An ended process that nobody waited for is still listed, as a zombie."""
    if Path("/proc/self").exists():
        stat = Path(f"/proc/{pid}/stat")
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
