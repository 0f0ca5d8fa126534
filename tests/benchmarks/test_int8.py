"""benchmarks/int8.py: one row at toy size, run once and tabulated."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from studies import Calls, draw_images, front, int8

from dmsflow.deploying.exporters import onnx_int8

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))
import accuracy  # noqa: E402

sys.path.remove(str(DOCS))


@pytest.mark.slow
def test_a_row_has_all_precisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = Calls()
    monkeypatch.setattr(int8, "call", commands)
    small = {
        "NETWORKS": {"vgg11": (0.5,)},
        "SEEDS": (0,),
        "TRAIN_IMAGES": 40,
        "EPOCHS": 1,
        "SETTINGS": ("train.batch_size=4", "train.min_steps=40"),
        "CORES": (),
        "RUNS": ("--runs", "2", "--warm-up", "1", "--baseline", "none"),
        "ARM": dict.fromkeys(int8.PRECISIONS, "onnx") | {"1-bit": "arm64", "int8": "onnx-int8"},
    }
    monkeypatch.setattr(onnx_int8, "MOST_CHANGED_PERCENT", 100.0)  # which a network of 40 steps may need
    for name, value in small.items():
        monkeypatch.setattr(int8, name, value)
    where = front.Place(tmp_path / "runs", ("--dataset", draw_images(tmp_path / "images", train=4, test=2)))
    assert int8.run(where) == 0
    before = len(commands)
    assert int8.run(where) == 0 and len(commands) == before
    (network,) = int8.tabulate(where.out)["networks"]
    (row,) = network["rows"]
    bits, eight, full = (row["files"][name] for name in ("1-bit", "int8", "float32"))
    assert bits["memory_mib"] < eight["memory_mib"] < full["memory_mib"]
    assert bits["file_bytes"] < eight["file_bytes"] < full["file_bytes"]
    assert all(0 <= each["top1_percent"] <= 100 and "ms" not in each for each in (bits, eight, full))
    timed = {
        "network": "vgg11",
        "pixels": 32,
        "ratio": 0.5,
        "litert_int8_stem_ms": 0.0625,
        "int8_ms": 0.125,
        "float32_ms": 0.25,
    }
    page = accuracy.int8(int8.tabulate(where.out), [None, {"networks": [timed]}])
    assert page.count("| VGG-11 0.5× |") == 3 and str(tmp_path) not in page
    assert [line.split(" | ")[5:7] for line in page.splitlines() if "0.5×" in line] == [
        ["–", "0.062 |"],
        ["–", "0.125 |"],
        ["–", "0.250 |"],
    ]
