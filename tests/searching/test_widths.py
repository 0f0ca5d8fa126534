"""Widths for other budgets from the slopes of a search: met, quick, without torch, and refused beyond what was learned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmsflow import cli
from dmsflow.manifest import load_manifest
from dmsflow.searching.budget import macs_m, memory_mib

SEARCH = (
    "search --dataset digits --set data.train_images=120 --memory-mib 0.03 --macs-m 6 --set search.rounds=3"
    " --set search.weight_steps=2 --set search.width_batches=4 --set search.batch_size=12 --set search.threads=1"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("searched")
    assert cli.main([*SEARCH.split(), "--out", str(out)]) == 0
    return out / "search.json"


def test_budgets_of_the_range_are_all_met(source: Path, tmp_path: Path) -> None:
    learned, noise = load_manifest(source).metrics["learned"], np.random.default_rng(0)
    low, high = (np.array(list(learned[end].values())) for end in ("least", "most"))
    solved = 0
    for number in range(20):
        memory, macs = np.exp(noise.uniform(np.log(low * 1.1), np.log(high / 1.1)))
        out = tmp_path / str(number)
        code = cli.main(["widths", str(source), "--memory-mib", str(memory), "--macs-m", str(macs), "--out", str(out)])
        if code:  # one budget alone leads to costs that were not learned
            continue
        solved += 1
        done = load_manifest(out / "search.json", "search")
        assert memory_mib(done.network, done.widths) <= memory and macs_m(done.network, done.widths) <= macs
    assert solved > 15


def test_what_is_written_is_a_search_that_can_be_trained(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["widths", str(source), "--memory-mib", "0.025", "--macs-m", "4"]
    assert cli.main([*command, "--dry-run"]) == 0
    assert not (source.parent / "0.025mib-4m").exists()
    assert cli.main(command) == 0
    out = capsys.readouterr()
    path = Path(out.out.strip().splitlines()[-1])
    assert path == source.parent / "0.025mib-4m" / "search.json" and "balanced" in out.err
    found, done = load_manifest(source), load_manifest(path, "search")
    assert done.settings["memory_mib"] == 0.025 and done.settings["macs_m"] == 4
    assert (done.data, done.network) == (found.data, found.network)
    lowest, *others = (row["predicted_loss"] for row in done.metrics["predicted"])
    assert lowest <= min(others) + 1e-9
    assert cli.main(command) == 1 and cli.main([*command, "--resume"]) == 0
    again = path.parent / "0.024mib-4m" / "search.json"  # from the slopes that were passed on
    assert cli.main(["widths", str(path), "--memory-mib", "0.024", "--macs-m", "4"]) == 0 and again.exists()


def test_the_search_itself_is_never_overwritten(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = source.read_bytes()
    command = ["widths", str(source), "--memory-mib", "0.025", "--macs-m", "4", "--out", str(source.parent)]
    for more in ([], ["--force"], ["--resume"]):
        assert cli.main([*command, *more]) == 1
        line = f"{source}: is the search from which the widths are taken; use --out for another folder"
        assert line in " ".join(capsys.readouterr().err.split()) and source.read_bytes() == before


def test_neither_torch_nor_images_are_needed(source: Path, tmp_path: Path) -> None:
    """In a process in which neither torch nor a data set can be imported."""
    code = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'dmsflow.datasets.digits', 'sklearn'))\n"
        "from dmsflow import cli; sys.exit(cli.main(sys.argv[1:]))"
    )
    command = ("widths", source, "--memory-mib", "0.025", "--macs-m", "4", "--out", tmp_path)
    subprocess.run([sys.executable, "-c", code, *map(str, command)], check=True)
    assert (tmp_path / "search.json").exists()


@pytest.mark.parametrize(
    ("budgets", "line"),
    [
        ([], "widths: has no budget; give one or more of --memory-mib, --macs-m, --file-kib, --latency-ms"),
        (["--memory-mib", "3"], "the search has learned memory_mib 0.0"),
        (["--memory-mib", "0.0001"], "memory budget of 0.0001 MiB: vgg11 cannot be that small"),
        (
            ["--memory-mib", "0.0001"],
            "or search again with --set and a smaller search.min_ratio (learned: memory_mib 0.0",
        ),
        (
            ["--memory-mib", "900"],
            "smaller budget, or search again with --set and a larger search.max_ratio (learned: m",
        ),
        (["--latency-ms", "1"], "--latency-ms: needs --profile"),
    ],
)
def test_other_budgets_are_refused(
    source: Path, budgets: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["widths", str(source), *budgets, "--out", str(tmp_path / "out")]) == 1
    assert line in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("slopes", "line"),
    [
        (None, "search.json: has no slopes, which only the gradient search learns; give the"),
        ({"slope": "steep"}, "search.json: has wrong slopes ("),
        (
            {key: [1.0] for key in ("centre", "slope", "error", "curvature")},
            "search.json: has slopes that do not fit its",
        ),
    ],
)
def test_a_search_without_sound_slopes_is_refused(
    source: Path, slopes: dict[str, Any] | None, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(source.read_text())
    del content["metrics"]["slopes"], content["artifacts"]["log"]
    content["metrics"] |= {"slopes": slopes} if slopes else {}
    (tmp_path / "search.json").write_text(json.dumps(content))
    assert cli.main(["widths", str(tmp_path / "search.json"), "--memory-mib", "0.025", "--macs-m", "4"]) == 1
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("learned", "line"),
    [
        ({"least": 3, "most": {}}, "metrics.learned.least: Expected `object | null`, got `int`; run the stage"),
        ({"least": {"memory_mib": "x"}, "most": {}}, "metrics.learned.least: Expected `float`, got `str`"),
        ({"least": {}}, "metrics.learned.most: is missing; run the stage"),
    ],
)
def test_a_damaged_range_is_refused(
    source: Path, learned: dict[str, Any], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(source.read_text())
    del content["artifacts"]["log"]
    content["metrics"]["learned"] = learned
    (tmp_path / "search.json").write_text(json.dumps(content))
    assert cli.main(["widths", str(tmp_path / "search.json"), "--memory-mib", "0.025", "--macs-m", "4"]) == 1
    assert line in capsys.readouterr().err
