"""benchmarks/table1.py: its plan, and a short run of it that is killed, goes on in two processes, and is tabulated."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image
from studies import BENCHMARKS, jobs, table1

from dmsflow import settings
from dmsflow.importing import load_network
from dmsflow.manifest import load_manifest
from dmsflow.searching.budget import Budgets
from dmsflow.settings import Data

CHOSEN = ("full", "1x", "dms-a")
RUN = (("vgg11", "full precision", "base widths × 1"), ("vgg11", "1×", "base widths × 1"))
# The quick protocol, a thousand times quicker. As a program it runs it in three processes that share their imports:
# one that is killed at its first checkpoint, and, when it may go on, two as torchrun starts them.
DRIVER = f"""
import os, signal, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import jobs, table1
from dmsflow.training import checkpoint
saved = checkpoint.save_checkpoint

def save_and_die(*arguments):
    saved(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)

def ended(*environments):
    made = []
    for each in environments:
        made.append(os.fork())
        if not made[-1]:
            os.environ.update(each)
            checkpoint.save_checkpoint = save_and_die if "DIE" in each else saved
            table1.main()
            os._exit(0)  # tidying up takes seconds
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in made]

jobs.WAIT_SECONDS = 0.05
one = {{"rounds": 1, "weight_steps": 1, "width_batches": 1, "batch_size": 4}}
table1.PROTOCOLS["quick"] = table1.Protocol(
    train_images=20,
    train={{(network, size): {{"epochs": 2, "batch_size": 4}} for network in table1.PAPER for size in ("A", "2x", "B", "4x")}},
    search={{("vgg11", "dms-a"): one}}, literal={{("vgg11", "dms-a"): {{**one, "weight_epochs": None}}}},
)
if __name__ == "__main__":
    import torch._dynamo  # as torch would in each of them, at the first step
    print(*ended({{"DIE": "after a checkpoint"}}), flush=True)
    sys.stdin.readline()
    ranks = ({{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}} for rank in range(2))
    os._exit(max(map(abs, ended(*ranks))))
table1.main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The driver, and ten classes of grey 32×32 images, each with a brightness of its own."""
    root = tmp_path_factory.mktemp("table1")
    draw = np.random.default_rng(0)
    for part, count in (("train", 2), ("test", 2)):
        for label in range(10):
            (root / "images" / part / str(label)).mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 25, (32, 32, 3)) + 23 * label
                Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / part / str(label) / f"{index}.png")
    (root / "driver.py").write_text(DRIVER)
    yield root


def options(folder: Path, out: str, *rows: str) -> list[str]:
    return [
        str(folder / "driver.py"),
        "--protocol",
        "quick",
        "--dataset",
        f"image-folder:{folder / 'images'}",
        "--threads",
        "1",
        "--networks",
        "vgg11",
        "--rows",
        *rows,
        "--seeds",
        "0",
        "--draws",
        "2",
        "--out",
        str(folder / out),
        "--results",
        str(folder / out),
    ]


def read_lines(stderr: str, folder: Path) -> list[str]:
    """The folders that were worked on."""
    return [line.split(" ", 1)[1] for line in stderr.splitlines() if str(folder) in line and line[2:3] == ":"]


def rows(path: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(row["network"], row["row"], row["widths"]): row for row in json.loads(path.read_text("utf-8"))["rows"]}


@pytest.fixture(scope="module")
def whole(folder: Path) -> str:
    """Folder of an uninterrupted run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", options(folder, "whole", *CHOSEN))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setitem(table1.PROTOCOLS, "quick", table1.PROTOCOLS["quick"])  # the driver puts another there
        patch.setattr(jobs, "WAIT_SECONDS", jobs.WAIT_SECONDS)
        runpy.run_path(str(folder / "driver.py"))
    return "whole"


def test_killed_and_resumed_in_two_processes_it_ends_as_if_uninterrupted(folder: Path, whole: str) -> None:
    command = (sys.executable, *options(folder, "killed", *CHOSEN))
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    log = folder / "stderr"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        assert process.stdout and process.stdout.readline() == f"-{signal.SIGKILL.value}\n", log.read_text()
        (half,) = (folder / "killed").glob("trainings/*/*/train-float.checkpoint")
        assert not half.with_name("train.json").exists()
        before = log.read_text()
        process.communicate("\n")
    assert process.returncode == 0, log.read_text()
    worked = read_lines(log.read_text().removeprefix(before), folder)
    assert str(half.parent) in worked
    assert len(worked) == len(set(worked))  # nothing twice

    first, second = (rows(folder / out / "table1-quick.json") for out in (whole, "killed"))
    assert first.keys() == second.keys()
    for key, row in first.items():
        assert len(row["jobs"]) == (row["planned"] if key in RUN or key[:2] == ("vgg11", "DMS-A") else 0)
        for one, other in zip(row["jobs"], second[key]["jobs"], strict=True):
            same = ("choice", "widths", "memory_mib", "macs_m", "top1_percent", "seed", "precision", "epochs")
            assert {name: one[name] for name in same} == {name: other[name] for name in same}
    weights = [
        {
            path.relative_to(folder / out): load_manifest(path).artifacts["weights"].sha256
            for path in (folder / out).glob("trainings/*/*/train.json")
        }
        for out in (whole, "killed")
    ]
    assert weights[0] == weights[1]
    made = {(tuple(job["widths"]), job["precision"]) for row in first.values() for job in row["jobs"]}
    assert len(weights[0]) == len(made) >= 6  # on so few images both searches may end at a baseline's widths


def test_the_table_has_the_papers_rows_and_baselines_that_meet_their_memory(folder: Path, whole: str) -> None:
    table = rows(folder / whole / "table1-quick.json")
    full, base = table["vgg11", "full precision", "base widths × 1"], table["vgg11", "1×", "base widths × 1"]
    assert [round(row["jobs"][0]["memory_mib"], 2) for row in (full, base)] == [2.20, 0.08]
    assert full["paper"] == {"memory_mib": 2.20, "top1_percent": 88.10}
    made = {widths: row for (network, name, widths), row in table.items() if (network, name) == ("vgg11", "DMS-A")}
    assert list(made) == ["searched", "the paper's search, literally", "uniform", "flat", "random, 2 draws around flat"]
    for row in made.values():
        assert all(0.97 * 0.08 < job["memory_mib"] <= 0.08 for job in row["jobs"])
        assert all(job["macs_m"] > 0 for job in row["jobs"])
    assert made["uniform"]["jobs"][0]["macs_m"] < made["flat"]["jobs"][0]["macs_m"]
    assert table["vgg11", "2×", "base widths × 2"]["jobs"] == []


def test_a_choice_that_was_made_otherwise_is_not_taken(folder: Path, whole: str) -> None:
    where = jobs.Runs(folder / whole, Data(name=f"image-folder:{folder / 'images'}", train_images=20), 1)
    made = jobs.Job("vgg11/1x", {"network": "vgg11", "method": "uniform"}, {})
    assert where.trained(made).parent.parent.name == "vgg11-16-32-64-64-128-128-128-128"
    with pytest.raises(SystemExit, match="has method uniform, not equal; remove its folder, or give another --out"):
        where.trained(dataclasses.replace(made, search={"method": "equal"}))
    with pytest.raises(SystemExit, match="has train_images 20, not 20000"):
        dataclasses.replace(where, data=Data(train_images=20_000)).trained(made)


def test_widened_networks_are_exactly_so_many_times_the_base() -> None:
    for name in table1.PAPER:
        network = load_network(name, 3, 32, 10)
        for factor in (1, 2, 3, 4):
            chosen = settings.SearchSettings(network=name, memory_mib=table1.memory_mib(name, factor))
            budgets = Budgets.from_settings(chosen, network)
            assert budgets.round_within(budgets.uniform()) == {
                key: factor * width for key, width in network.widths.items()
            }


@pytest.mark.parametrize("name", ["quick", "paper"])
def test_every_job_of_a_protocol_has_settings_that_are_valid(name: str) -> None:
    request = table1.Request(table1.PROTOCOLS[name], table1.PROTOCOLS[name].seeds, table1.DRAWS)
    chosen: dict[str, dict[str, Any]] = {}
    for network in table1.PAPER:
        for row in table1.ROWS:
            lines = request.lines(network, row)
            assert lines[0].paper and not any(line.paper for line in lines[1:])
            alike = {
                json.dumps({k: v for k, v in job.train.items() if k != "seed"}) for line in lines for job in line.jobs
            }
            assert len(alike) <= 1  # what is compared is trained alike
            for job in (job for line in lines for job in line.jobs):
                settings.resolve(settings.SearchSettings, **job.search)
                settings.resolve(settings.TrainSettings, **job.train)
                assert chosen.setdefault(job.choice, job.search) == job.search  # a name means one choice
            if not request.protocol.left_out.get((network, row)):
                counts = [len(line.jobs) for line in lines]
                assert counts == ([3, 3, 3, 3, 8] if row.startswith("dms") else [3])


def test_the_long_protocol_is_dmsflows_recipe() -> None:
    """Every row of the paper's table, and baselines trained alike; nothing of the recipe of before."""
    request = table1.Request(table1.PROTOCOLS["long"], table1.PROTOCOLS["long"].seeds, table1.DRAWS)
    lines = [line for network in table1.PAPER for row in table1.ROWS for line in request.lines(network, row)]
    per_network = [("full", 1), ("1x", 1), ("2x", 1), ("3x", 1), ("4x", 1), ("dms-a", 3), ("dms-b", 3)]
    assert [(line.network, line.row) for line in lines] == [
        (network, row) for network in table1.PAPER for row, count in per_network for _ in range(count)
    ]
    for line in lines:
        for job in line.jobs:
            settings.resolve(settings.SearchSettings, **job.search)
            assert settings.resolve(settings.TrainSettings, **job.train).optimiser == "adam"
            assert job.search.get("optimiser", "adam") == "adam"


def test_the_papers_protocol_is_the_papers() -> None:
    request = table1.Request(table1.PROTOCOLS["paper"], (0,), 8)

    def trained(network: str, row: str) -> settings.TrainSettings:
        return settings.resolve(settings.TrainSettings, **request.lines(network, row)[0].jobs[0].train)

    assert request.protocol.train_images is None
    assert trained("vgg11", "dms-a") == msgspec.structs.replace(trained("vgg11", "dms-b"), weight_decay=1e-4)
    assert trained("vgg11", "dms-a").milestones == (140, 220, 260)
    assert [trained(network, "dms-b").weight_decay for network in table1.PAPER] == [2e-4, 2e-4]
    resnet = trained("resnet18", "dms-a")
    assert (resnet.epochs, resnet.from_float, resnet.float_epochs) == (300, True, 200)
    assert trained("resnet18", "full").precision == "float"
    literal = request.lines("resnet18", "dms-b")[1].jobs[0].search
    assert (literal["start_ratio"], literal["step_size"], literal["rounds"], literal["weight_epochs"]) == (
        2.5,
        1e-3,
        50,
        5,
    )
    assert literal["memory_mib"] == 0.84


@pytest.mark.parametrize("path", sorted(path for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text()))
def test_every_script_ends_as_dmsflow_does(path: Path) -> None:
    assert path.read_text("utf-8").endswith('if __name__ == "__main__":\n    script.run(main)\n')


def test_a_script_that_cannot_write_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = (sys.executable, str(BENCHMARKS / "budgets.py"), "--tabulate", "--dataset", "digits")
    done = subprocess.run(
        (*command, "--results", str(tmp_path / "file" / "in")),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"budgets.py: {tmp_path / 'file' / 'in' / 'budgets.json'}: cannot be written (")
    assert done.stderr.count("\n") == 1
