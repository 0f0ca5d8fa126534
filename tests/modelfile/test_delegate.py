"""The delegate: the official interpreter's bits, errors instead of crashes, threads, and memory that stays flat."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lce_cases
import numpy as np
import pytest
import witnessed
from lce_cases import BITS, BYTES, FLOATS, Case, Graph, Node, Tensor
from made_up import MEAN, STD, odd_widths, pixels, trained

from dmsflow import native
from dmsflow.deploying import folding
from dmsflow.deploying.exporters import _flatbuffer
from dmsflow.deploying.exporters import lce as exporter
from dmsflow.network.architectures import resnet18, vgg11

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "dmsflow" / "native"
LIBRARY = str(native.library())
AVX2 = ["-mavx2", "-mbmi", "-mbmi2", "-mpopcnt"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vpopcntdq", "-mavx512vnni"]
X86_FLAGS = {"kernels_avx2": AVX2, "kernels_avx512": AVX512}


@pytest.fixture(scope="module")
def kernels():
    with lce_cases.silent():
        return lce_cases.available(LIBRARY)


def opened(model, options=None, threads=1):
    with lce_cases.silent():
        return lce_cases.open_litert(model, LIBRARY, options, threads)


def alone(case):
    """The output of a fresh interpreter, whose bits are those of the official one (see below)."""
    return lce_cases.run_litert(opened(case.graph.dumps()), case.values)


# --- the official interpreter's bits ------------------------------------------------------------------------


def test_kept_operators_give_the_official_interpreters_bits(kernels):
    same = Counter()
    for index, case in enumerate(witnessed.operators()):
        for name in kernels:
            interpreter = opened(case.model, {"kernels": name, "threads": str(1 + index % 3)})
            for _ in range(2):
                assert lce_cases.same_bits(lce_cases.run_litert(interpreter, case.values), case.expected), case.name
        same[case.name.split()[0].rstrip(",")] += 1
    assert min(same.values()) > 10 and set(same) == {"conv", "pool", "quantize", "dequantize", "chain"}


@pytest.mark.parametrize("first", range(0, 1200, 300))
def test_random_operators_give_the_official_interpreters_bits(kernels, first):
    same = Counter()
    wrong = [lce_cases.difference(seed, LIBRARY, kernels, same) for seed in range(first, first + 300)]
    assert not any(wrong), "\n".join(filter(None, wrong))
    assert len(same) > 10 and min(Counter(name.split()[0] for name in same.elements()).values()) > 10


@pytest.mark.parametrize("part", witnessed.operators("parts"), ids=lambda part: part.name)
def test_networks_give_the_official_interpreters_bits(kernels, part):
    assert np.ptp(part.expected) > 0
    for name in kernels:
        interpreter = opened(part.model, {"kernels": name, "threads": "2"})
        assert lce_cases.same_bits(lce_cases.run_litert(interpreter, part.values), part.expected), name


@pytest.mark.parametrize("build", [vgg11.build, resnet18.build])
@pytest.mark.parametrize("odd", [True, False])
def test_wide_networks_give_the_official_interpreters_bits(lce, tmp_path, kernels, build, odd):
    network = build(3, 32, 10)
    widths = odd_widths(network, 0) if odd else network.widths
    form = folding.fold(network, widths, trained(network, widths, 0, 1.0, pixels(network, 20)), MEAN, STD)
    exporter.write(form, tmp_path / "model.tflite")
    model, shape = witnessed.exact_part((tmp_path / "model.tflite").read_bytes())
    values = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    wanted = [lce_cases.run_lce(model, image) for image in values]
    assert np.ptp(wanted) > 0
    for name in kernels:
        interpreter = opened(model, {"kernels": name, "threads": "2"})
        for image, output in zip(values, wanted, strict=True):
            assert lce_cases.same_bits(lce_cases.run_litert(interpreter, image), output), name


def test_zero_padding_where_the_filter_is_wider_than_the_image():
    """LCE itself is wrong there; the definition is not."""
    seeds = (seed for seed in range(4000, 9000))
    found = 0
    for seed in seeds:
        case = lce_cases.random_case(np.random.default_rng(seed))
        if case.expected is None:
            continue
        got = lce_cases.run_litert(opened(case.graph.dumps()), case.values)
        assert lce_cases.same_bits(got, case.expected), seed
        found += 1
        if found == 20:
            break
    assert found == 20


# --- sizes, threads, memory -----------------------------------------------------------------------------------


def conv_case(image=(9, 7), batch=1, seed=3, **fixed):
    rng = np.random.default_rng(seed)
    made = lce_cases.random_conv(rng, (5, 5), 96)
    fields = {"same": True, "zero_padding": True, "activation": 0, "dtype": FLOATS, "groups": 1} | fixed
    for name, value in fields.items():
        setattr(made, name, value)
    graph = Graph([Tensor((batch, *image, 3), BITS)], [])
    made.add(graph, 0)
    return Case("conv", graph, lce_cases.bits(rng, batch, *image, 96))


@pytest.mark.parametrize("dtype", [FLOATS, BYTES, BITS])
def test_an_input_is_resized_back_and_forth(dtype):
    cases = [
        conv_case(image, batch, dtype=dtype, zero_padding=dtype == FLOATS)
        for image, batch in [((9, 7), 1), ((12, 16), 3), ((9, 7), 1), ((8, 21), 2)]
    ]
    interpreter = opened(cases[0].graph.dumps(), {"threads": "2"})
    for case in cases * 2:
        interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], case.values.shape)
        interpreter.allocate_tensors()
        wanted = alone(case)
        assert lce_cases.same_bits(lce_cases.run_litert(interpreter, case.values), wanted)


def test_two_interpreters_in_two_threads_do_not_disturb_each_other():
    cases = [conv_case((20, 20), seed=seed) for seed in (1, 2)]
    wanted = [alone(case) for case in cases]
    together = threading.Barrier(2)

    def work(index):
        with_threads = {"threads": "2"} if index else None
        interpreters = [lce_cases.open_litert(cases[index].graph.dumps(), LIBRARY, with_threads) for _ in range(5)]
        together.wait()
        for run in range(300):
            got = lce_cases.run_litert(interpreters[run % 5], cases[index].values)
            assert lce_cases.same_bits(got, wanted[index])

    with lce_cases.silent(), ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))


def test_one_delegate_serves_two_interpreters_and_may_go_first():
    from ai_edge_litert.interpreter import Interpreter, load_delegate

    case = conv_case()
    with lce_cases.silent():
        delegate = load_delegate(LIBRARY, {"threads": "2"})
        interpreters = [
            Interpreter(model_content=case.graph.dumps(), experimental_delegates=[delegate]) for _ in range(2)
        ]
        for interpreter in interpreters:
            interpreter.allocate_tensors()
    del delegate
    wanted = alone(case)
    assert all(lce_cases.same_bits(lce_cases.run_litert(each, case.values), wanted) for each in interpreters)


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_is_flat_over_ten_thousand_invocations_and_many_loads():
    case = conv_case()
    interpreter = opened(case.graph.dumps(), {"threads": "2"})

    def use(runs, loads):
        for _ in range(runs):
            interpreter.invoke()
        for size in range(loads):
            interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], (1, 5 + size % 20, 9, 3))
            interpreter.allocate_tensors()
            interpreter.invoke()
            opened(case.graph.dumps(), {"threads": "2"}).invoke()

    use(1000, 60)
    before = resident_bytes()
    use(10_000, 200)
    assert resident_bytes() - before < 2**20


# --- options of the delegate -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": "0"}, "threads is '0'; give a whole number from 1 to 1024"),
        ({"threads": "many"}, "threads is 'many'"),
        ({"threads": "99999999999999999999"}, "give a whole number"),
        ({"kernels": "magic"}, "kernels is 'magic'; give avx512"),
        ({"times": "12"}, "give the address of an int64 array"),
        ({"speed": "9" * 600}, "there is no such option"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(capfd, options, message):
    from ai_edge_litert.interpreter import load_delegate

    with pytest.raises(ValueError, match="Failed to load delegate") as error:
        load_delegate(LIBRARY, options)
    assert message in str(error.value) + capfd.readouterr().err


def test_times_of_each_node_are_noted_as_far_as_there_is_room():
    case = lce_cases.chain(np.random.default_rng(0))
    nodes = len(case.graph.nodes)
    log = np.zeros(2 + 3 * nodes, np.int64)
    log[1] = nodes
    interpreter = opened(case.graph.dumps(), {"times": str(log.ctypes.data)})
    for _ in range(2):
        log[0] = 0
        lce_cases.run_litert(interpreter, case.values)
        records = log[2:].reshape(-1, 3)
        assert log[0] == nodes and records[:, 0].tolist() == list(range(nodes))
        assert (np.diff(records[:, 1:].ravel()) >= 0).all() and (records[:, 2] > records[:, 1]).all()
    lce_cases.run_litert(interpreter, case.values)
    assert log[0] == nodes


# --- damaged files: an error, never a crash ---------------------------------------------------------------------


def damaged(**changes):
    """A good convolution with other options, inputs, shapes or types."""
    case = conv_case()
    node = case.graph.nodes[0]
    node.options = {**node.options, **changes.pop("options", {})} if changes.get("raw") is None else changes["raw"]
    node.inputs = changes.get("inputs", node.inputs)
    for number, tensor in changes.get("tensors", {}).items():
        case.graph.tensors[number] = tensor
    return case.graph.dumps()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"stride_height": 0}}, "stride_height is 0; it must be from 1 to"),
        ({"options": {"dilation_width_factor": -1}}, "dilation_width_factor is -1"),
        ({"options": {"dilation_width_factor": 2**28}}, "its filter reaches over"),
        ({"options": {"padding": 2}}, "padding is 2; it must be from 0 to 1"),
        ({"options": {"pad_values": 7}}, "pad_values is 7"),
        ({"options": {"fused_activation_function": 4}}, "fused_activation_function is 4"),
        ({"options": {"fused_activation_function": 1}}, "zero-padding"),
        ({"options": {"channels_in": 97}}, "do not divide 97 channels"),
        ({"options": {"channels_in": 2**40}}, "channels_in is 1099511627776"),
        ({"raw": b""}, "damaged options"),
        ({"raw": b"\xff" * 40}, "damaged options"),
        ({"raw": _flatbuffer.flexible({"stride_height": 1})}, "it has no option"),
        ({"inputs": [0, 1, 2, 3]}, "it has 4 inputs and 1 outputs; it takes 5 and 1"),
        ({"inputs": [0, 1, -1, 3, -1]}, "its multiplier is missing"),
        ({"inputs": [0, 0, 2, 3, -1]}, "its filter"),
        ({"inputs": [0, 1, 3, 1, -1]}, "its bias has 4 dimensions"),
        ({"tensors": {0: Tensor((1, 9, 7, 2), BITS)}}, "96 channels are not in 2 words"),
        ({"tensors": {0: Tensor((9, 7, 3), BITS)}}, "its input has 3 dimensions"),
        ({"tensors": {0: Tensor((1, 9, 7, 3), FLOATS)}}, "its input is of type 1"),
        ({"tensors": {2: Tensor((1,), FLOATS, np.zeros(1, np.float32))}}, "its multiplier has 1 values for"),
        ({"tensors": {2: Tensor((100,), FLOATS)}}, "its multiplier"),
    ],
)
def test_a_damaged_convolution_is_refused_with_the_reason(capfd, changes, message):
    with pytest.raises((RuntimeError, ValueError)) as error:
        lce_cases.open_litert(damaged(**changes), LIBRARY)
    written = str(error.value) + capfd.readouterr().err
    assert "LceBconv2d (node 0): " in written and message in written


def test_an_empty_image_is_an_error_too():
    case = conv_case()
    interpreter = opened(case.graph.dumps())
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], (1, 0, 7, 3))
    with pytest.raises(RuntimeError, match="its input is empty or too large"):
        interpreter.allocate_tensors()


def test_a_quantized_output_without_a_scale_is_refused():
    graph = Graph([Tensor((1, 1), BITS), Tensor((1, 9), BYTES)], [Node("LceDequantize", [0], 1)])
    with pytest.raises(RuntimeError, match="its output has scale 0 and zero point 0"):
        opened(graph.dumps())


@pytest.mark.parametrize("seed", range(2))
def test_damaged_bytes_of_options_and_constants_in_the_real_runtime(seed):
    """Flips in all that the runtime hands on unread: an error or a result, and this process lives on."""
    rng = np.random.default_rng(seed)
    outcomes = Counter()
    for _ in range(150):
        case = lce_cases.random_case(rng)
        for node in case.graph.nodes:
            if node.options:
                options = np.frombuffer(_flatbuffer.flexible(node.options), np.uint8).copy()
                options[rng.integers(len(options) * 2 // 3, len(options))] ^= np.uint8(1 << rng.integers(8))
                node.options = (
                    options[: rng.integers(len(options))].tobytes() if rng.random() < 0.2 else options.tobytes()
                )
        for tensor in case.graph.tensors[1:]:
            if tensor.data is None and rng.random() < 0.3:
                tensor.shape = tuple(int(side) for side in rng.integers(0, 9, len(tensor.shape)))
            elif tensor.data is not None and rng.random() < 0.1:
                tensor.data = tensor.data.reshape(-1)[: rng.integers(1, tensor.data.size + 1)]
                tensor.shape = tensor.data.shape
        try:
            with lce_cases.silent():
                lce_cases.run_litert(lce_cases.open_litert(case.graph.dumps(), LIBRARY), case.values)
            outcomes["run"] += 1
        except (RuntimeError, ValueError):
            outcomes["refused"] += 1
    assert outcomes["run"] > 10 and outcomes["refused"] > 50


def test_a_thousand_damaged_nodes_under_sanitizers(tmp_path):
    """AddressSanitizer and UndefinedBehaviorSanitizer watch the library while a stand-in for the runtime drives it."""
    flags = ["-std=c++17", "-O1", "-g", "-fno-rtti", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{NATIVE}"]
    skipped = ("benchmark", "main")
    sources = [path for path in sorted(NATIVE.glob("*.cc")) if not path.stem.startswith(skipped)]
    sources.append(ROOT / "tests" / "native" / "driver.cc")
    known = X86_FLAGS if platform.machine() == "x86_64" else {}

    def compile_one(source):
        built = tmp_path / f"{source.stem}.o"
        command = ["g++", *flags, *known.get(source.stem, ()), "-c", str(source), "-o", str(built)]
        subprocess.run(command, check=True)
        return str(built)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    driver = tmp_path / "driver"
    subprocess.run(["g++", *flags, *objects, "-o", str(driver), "-lpthread"], check=True)
    done = subprocess.run([str(driver), "3000", "7"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run, refused, unloaded = (int(part.split()[0]) for part in done.stdout.split(", "))
    assert run > 1000 and refused > 1000 and unloaded > 50


# --- files for other machines ----------------------------------------------------------------------------------


def test_files_written_for_another_machine_are_checked_there(tmp_path):
    witnessed.write_operators(tmp_path, 12)
    check = [sys.executable, str(ROOT / "tests" / "native" / "check.py"), str(tmp_path), LIBRARY]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0 and "12 files with kernels" in done.stdout and "0 different" in done.stdout
    case = dict(np.load(tmp_path / "7.npz"))
    case["expected"] = case["expected"].copy()
    case["expected"].view(np.uint8).reshape(-1)[0] ^= 1
    np.savez(tmp_path / "7.npz", **case)
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 1 and "7.tflite" in done.stdout
