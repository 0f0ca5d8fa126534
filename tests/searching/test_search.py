"""The search stage: budgets, baselines, interruption."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_search import DATA, SMALL, threads_as_before  # noqa: F401

from dmsflow import cli, manifest
from dmsflow.datasets.arrays import make_dataset
from dmsflow.errors import BudgetMissed, DmsflowError
from dmsflow.importing import load_network
from dmsflow.manifest import Flow, load_manifest, save_manifest
from dmsflow.network import profile
from dmsflow.network.architectures import vgg11
from dmsflow.network.latency import build_latency
from dmsflow.network.network import with_stem
from dmsflow.searching import budget, descent, search, supernetwork
from dmsflow.searching.budget import Budgets
from dmsflow.searching.compare import choose_row
from dmsflow.settings import Data, SearchSettings, TrainSettings
from dmsflow.training import checkpoint, train
from dmsflow.training.log import Log

COMMAND = ("dmsflow", "search")
COMPARED = ["searched", "balanced", "interpolated", "equal", "uniform"]


def searched(out: Path, **changes: Any) -> manifest.Manifest:
    return load_manifest(search.run_stage(DATA, SearchSettings(**{**SMALL, **changes}), out, Flow(COMMAND)), "search")


@pytest.mark.parametrize("method", ["gradient", "published", "evolution"])
def test_every_way_to_search_ends_within_the_budgets(tmp_path: Path, method: str) -> None:
    done = searched(tmp_path, method=method, step_size=0.05 if method == "published" else 0.15, macs_m=6.0, rounds=2)
    assert budget.memory_mib(done.network, done.widths) <= 0.03 and budget.macs_m(done.network, done.widths) <= 6.0
    assert done.metrics["memory_mib"] == budget.memory_mib(done.network, done.widths)
    rows = [json.loads(line) for line in (tmp_path / "search.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2]
    page = (Path(__file__).parents[2] / "docs" / "manifest.md").read_text("utf-8").partition("## search.jsonl")[2]
    assert all(set(re.findall(r"`(\w+)`", page)) >= row.keys() for row in rows)
    page = (Path(__file__).parents[2] / "docs" / "manifest.md").read_text("utf-8")
    section = page.partition("## Comparison in search.json")[2].partition("\n## ")[0]
    comparison = done.metrics.get("comparison", [])
    assert [row["name"] for row in comparison] == ([] if method == "published" else COMPARED)
    assert all(set(re.findall(r"`(\w+)`", section)) >= {*row, row["name"]} for row in comparison)
    moved = [row for row in rows if "gradient" in row]
    assert len(moved) == (0 if method == "evolution" else 2)
    assert all(len(row[key]) == 8 for row in moved for key in ("mu", "sigma", "widths", "gradient", "gradient_error"))
    assert all(0 <= row["weight_top1_percent"] <= 100 for row in rows)
    assert all(0 <= row["width_top1_percent"] <= 100 for row in moved)
    if method != "published":
        assert all(row["memory_mib"] <= 0.03 and row["macs_m"] <= 6.0 for row in rows)
    assert not (tmp_path / "search.checkpoint").exists()


TINY: dict[str, Any] = {
    "network": str(Path(__file__).parents[1] / "tiny.py"),
    "memory_mib": 0.003,
    "macs_m": 0.05,
    "stem": "float",
    "threads": 1,
    "amp": "off",
    "device": "cpu",
    "weight_steps": 6,
    "width_batches": 4,
    "batch_size": 32,
}
SGD = {"optimiser": "sgd", "centred": False, "crop": 1.0, "weight_decay": 1e-4}
SGD |= {"learning_rate": 0.05, "learning_rate_end": 0.01}
LITERAL = {"step_size": 0.05, "sigma_start": 1.0, "width_warmup": 0.0, "weight_epochs": 0.5, "width_batches": 0}


@pytest.mark.parametrize(
    ("changes", "widths"),
    [
        ({"rounds": 6, "seed": 4}, (22, 33)),
        ({"rounds": 4, "seed": 5, "method": "evolution"}, (24, 31)),
        ({"rounds": 5, "seed": 7, "method": "published", "sigma_end": 0.3, **LITERAL}, (14, 34)),
        ({"method": "uniform"}, (19, 37)),
        ({"method": "equal"}, (28, 27)),
        ({"method": "interpolated"}, (28, 27)),
        ({"method": "random"}, (20, 35)),
        ({"method": "balanced"}, (30, 26)),
    ],
    ids=lambda value: value.get("method", "gradient") if isinstance(value, dict) else "",
)
def test_widths_are_those_of_earlier_versions(tmp_path: Path, changes: dict[str, Any], widths: tuple[int, int]) -> None:
    """As commit c6a9be6 chose them (the options had other names there), but for gradient and evolution, which now
    sample a range of budgets, and random, which draws around balanced widths."""
    data = Data(name="digits", resolution=8, train_images=400)
    path = search.run_stage(data, SearchSettings(**{**TINY, **SGD, **changes}), tmp_path, Flow(COMMAND))
    done = load_manifest(path)
    (found, *_) = done.metrics.get("comparison", [{"widths": done.widths}])
    assert tuple(found["widths"].values()) == widths


def test_the_widths_move_and_sigma_deflates(tmp_path: Path) -> None:
    searched(tmp_path, width_batches=8, weight_steps=6)
    rows = [json.loads(line) for line in (tmp_path / "search.jsonl").read_text().splitlines()]
    assert rows[0]["mu"] != rows[-1]["mu"]
    relative = [row["sigma"][0] / mu for row, mu in zip(rows[1:], (row["mu"][0] for row in rows), strict=False)]
    assert relative == sorted(relative, reverse=True) and relative[-1] == pytest.approx(0.15)


def test_the_paper_preset_searches(tmp_path: Path) -> None:
    """Its values, on a short schedule; it may start above the budget and must end below."""
    from dmsflow.preset import load_preset
    from dmsflow.settings import resolve

    chosen = resolve(
        SearchSettings, **{**load_preset("search", "paper"), "rounds": 2, "weight_epochs": 0.1, "threads": 1}
    )
    done = load_manifest(search.run_stage(DATA, chosen, tmp_path, Flow(COMMAND)))
    assert budget.memory_mib(done.network, done.widths) <= 0.12
    row = json.loads((tmp_path / "search.jsonl").read_text().splitlines()[0])
    assert row["sigma"] == [1.0] * 8


@pytest.mark.parametrize("method", ["uniform", "equal", "random"])
def test_baselines_exhaust_the_budgets(tmp_path: Path, method: str) -> None:
    done = searched(tmp_path, method=method)
    used = budget.memory_mib(done.network, done.widths) / 0.03
    assert 0.97 < used <= 1
    assert done.artifacts == {}


def test_random_baselines_follow_the_seed(tmp_path: Path) -> None:
    draws = [searched(tmp_path / str(index), method="random", seed=seed).widths for index, seed in enumerate((1, 1, 2))]
    assert draws[0] == draws[1] != draws[2]


def test_an_infeasible_budget_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(DmsflowError, match="vgg11 cannot be that small"):
        searched(tmp_path, memory_mib=0.0001)
    assert list(tmp_path.iterdir()) == []


def test_a_missed_budget_is_never_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hard check after the search, whatever rounding did."""
    monkeypatch.setattr(budget.Budgets, "round_within", lambda budgets, _: dict(budgets.network.widths))
    with pytest.raises(BudgetMissed, match="the chosen widths need 0.0726 MiB"):
        searched(tmp_path, method="equal")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["search", "train"])
@pytest.mark.parametrize("place", ["GPU", "machine", "NumPy"])
def test_too_little_memory_is_an_error_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stage: str, place: str
) -> None:
    """What had been done before it is kept."""
    source = search.run_stage(DATA, SearchSettings(**{**SMALL, "method": "equal"}), tmp_path, Flow(COMMAND))

    def fails(*_: object, **__: object) -> None:
        if place == "machine":
            torch.empty(1 << 60)
        if place == "NumPy":
            np.empty(1 << 50)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has …")

    monkeypatch.setattr(descent, "weight_step", fails)
    monkeypatch.setattr(train, "weight_step", fails)
    arguments = {
        "search": ["search", "--set", "search.rounds=1", "--set", "search.threads=1", "--out", str(tmp_path / "again")],
        "train": ["train", str(source), "--epochs", "1", "--set", "train.threads=1"],
    }
    assert cli.main(arguments[stage]) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"dmsflow: memory: is too small \(.*allocate.*\); set a smaller batch_size, .*", line)
    assert source.exists()


def test_a_nan_loss_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent, "weight_step", lambda *_, **__: torch.tensor([float("nan"), 0]))
    with pytest.raises(DmsflowError, match="search, round 1: the loss became nan; set a lower learning_rate"):
        searched(tmp_path)
    assert not (tmp_path / "search.json").exists()


def test_a_user_network_is_a_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("from dmsflow.network.architectures.vgg11 import build\n")
    found = searched(tmp_path / "out", network=str(mine), method="equal").network
    assert found == with_stem(vgg11.build(1, 32, 10), "int8")
    mine.write_text("build = 3\n")
    with pytest.raises(DmsflowError, match=r"mine.py: has no build\(\); define build\("):
        searched(tmp_path / "out2", network=str(mine))


def test_a_done_search_is_kept(tmp_path: Path) -> None:
    done = searched(tmp_path, method="equal")
    with pytest.raises(DmsflowError, match="search.json: already exists; use --force"):
        searched(tmp_path, method="equal")
    again = SearchSettings(**SMALL, method="equal", device="cpu")  # where it runs changes nothing
    assert load_manifest(search.run_stage(DATA, again, tmp_path, Flow(COMMAND, resume=True))) == done
    with pytest.raises(DmsflowError, match="search.json: was made with method equal, not uniform; use --resume with"):
        search.run_stage(DATA, SearchSettings(**SMALL, method="uniform"), tmp_path, Flow(COMMAND, resume=True))


def test_a_search_of_an_earlier_version_counts_by_the_present_names(tmp_path: Path) -> None:
    done = searched(tmp_path, method="equal")
    recorded = {("mixed" if name == "amp" else name): value for name, value in done.settings.items()}
    recorded |= {"method": "flat", "hold": "projection"}
    save_manifest(tmp_path / "search.json", msgspec.structs.replace(done, settings=recorded))
    settings = SearchSettings(**SMALL, method="equal")
    assert search.run_stage(DATA, settings, tmp_path, Flow(COMMAND, resume=True)) == tmp_path / "search.json"


def test_a_checkpoint_of_an_earlier_version_is_refused_by_name(tmp_path: Path) -> None:
    now = SearchSettings(**SMALL)
    recorded = msgspec.to_builtins(now)
    del recorded["optimiser"]
    for name, settings in (("hold", {**msgspec.to_builtins(now), "hold": "projection"}), ("optimiser", recorded)):
        facts = {"source": "x", "settings": settings}
        with pytest.raises(
            DmsflowError, match=f"by another version .*, which differs in the setting '{name}'; use --force"
        ):
            checkpoint.check_same(tmp_path / "search.checkpoint", facts, now, "x")


def test_choose_takes_another_only_beyond_its_standard_error() -> None:
    def row(name: str, difference: float, error: float) -> dict[str, Any]:
        return {"name": name, "loss": 1 + difference, "loss_difference": difference, "standard_error": error}

    mine = row("searched", 0, 0)
    assert choose_row([mine, row("equal", -0.01, 0.02)])["name"] == "searched"
    assert choose_row([mine, row("equal", -0.03, 0.02), row("uniform", -0.04, 0.05)])["name"] == "equal"


def test_choose_takes_the_balanced_widths_unless_the_search_clearly_beats_them() -> None:
    def chosen(difference: float, error: float) -> str:
        rows = [("searched", 0.0, 0.0), ("balanced", difference, error), ("equal", 0.01, 0.02)]
        keys = "name", "loss_difference", "standard_error"
        return str(choose_row([dict(zip(keys, row, strict=True)) for row in rows])["name"])

    assert chosen(0.05, 0.02) == "searched"
    assert chosen(0.03, 0.02) == "balanced"
    assert chosen(0.0, 0.0) == "searched"  # they are the same widths


class Killed(BaseException):
    pass


def _dies_after(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: int) -> None:
    plain = getattr(owner, name)
    count = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count > calls:
            raise Killed
        return plain(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


def _outcome(out: Path) -> tuple[dict[str, int], str]:
    return load_manifest(out / "search.json").widths, (out / "search.jsonl").read_text()


@pytest.mark.parametrize("variant", ["default", "published"])
def test_killed_anywhere_and_resumed_is_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    """Widths, every μ and every gradient to the last bit; a checkpoint after each weight step."""
    changes: dict[str, Any] = {"method": "published", "step_size": 0.05, "width_warmup": 0.0}
    settings = SearchSettings(**{**SMALL, **(changes if variant == "published" else {})})
    search.run_stage(DATA, settings, tmp_path / "straight", Flow(COMMAND))
    monkeypatch.setattr(checkpoint, "SAVE_INTERVAL_S", -1.0)
    deaths = [(descent, "weight_step", 1), (descent, "WidthPass", 2), (descent, "weight_step", 0), (Log, "add", 0)]
    for owner, name, calls in deaths:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            _dies_after(patch, owner, name, calls)
            search.run_stage(DATA, settings, tmp_path / "killed", Flow(COMMAND, resume=True))
    search.run_stage(DATA, settings, tmp_path / "killed", Flow(COMMAND, resume=True))
    assert _outcome(tmp_path / "killed") == _outcome(tmp_path / "straight")


@pytest.mark.parametrize(
    "change",
    [{"widths": {"conv0": 2}}, {"widths": {"conv0": 10_000}}, {"widths": {"conv0": 0}}, {"allocated": {"other": 4}}],
    ids=str,
)
def test_a_checkpoint_whose_widths_cannot_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, dict[str, int]]
) -> None:
    settings = SearchSettings(**SMALL)
    monkeypatch.setattr(checkpoint, "SAVE_INTERVAL_S", -1.0)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        _dies_after(patch, descent, "weight_step", 1)
        search.run_stage(DATA, settings, tmp_path, Flow(COMMAND))
    load = checkpoint.load_checkpoint

    def changed(*given: Any) -> Any:
        tensors, facts = load(*given)
        ((name, widths),) = change.items()
        only = len(widths) == 1 and widths.get("conv0") == 2
        return tensors, {**facts, name: widths if only else {**facts[name], **widths}}

    monkeypatch.setattr(checkpoint, "load_checkpoint", changed)
    with pytest.raises(
        DmsflowError, match=r"search.checkpoint: is not a checkpoint of this run \(ValueError: .*--force"
    ):
        search.run_stage(DATA, settings, tmp_path, Flow(COMMAND, resume=True))


def test_a_search_with_force_that_is_killed_continues_beside_the_old_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (SearchSettings(**SMALL, seed=seed) for seed in (0, 1))

    def perform(settings: SearchSettings, out: str, **flow: bool) -> Path:
        return manifest.perform(["search"], DATA, {"search": settings}, tmp_path / out, Flow(COMMAND, **flow))

    perform(old, "killed")
    before = _outcome(tmp_path / "killed")
    monkeypatch.setattr(checkpoint, "SAVE_INTERVAL_S", -1.0)
    for flow in ({"force": True}, {"resume": True}):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            _dies_after(patch, descent, "weight_step", 2)
            perform(new, "killed", **flow)
        assert _outcome(tmp_path / "killed") == before
    with pytest.raises(DmsflowError, match="search.checkpoint: was written with seed 1, not 0; use --resume with"):
        perform(old, "killed", resume=True)
    with pytest.raises(DmsflowError, match="search.checkpoint: was written with stem int8, not float; use --resume"):
        perform(msgspec.structs.replace(new, stem="float"), "killed", resume=True)
    perform(new, "killed", resume=True)
    perform(new, "straight")
    assert _outcome(tmp_path / "killed") == _outcome(tmp_path / "straight") != before


@pytest.mark.parametrize("from_float", [False, True])
def test_a_killed_training_ends_in_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_float: bool
) -> None:
    source = search.run_stage(DATA, SearchSettings(**{**SMALL, "method": "equal"}), tmp_path, Flow(COMMAND))
    settings = TrainSettings(epochs=2, float_epochs=1, from_float=from_float, batch_size=40, threads=1, amp="off")
    train.run_stage(source, settings, tmp_path / "straight", Flow(COMMAND))
    monkeypatch.setattr(checkpoint, "SAVE_INTERVAL_S", -1.0)
    for calls in (2, 1, 2):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            _dies_after(patch, train, "weight_step", calls)
            train.run_stage(source, settings, tmp_path / "killed", Flow(COMMAND, resume=True))
    train.run_stage(source, settings, tmp_path / "killed", Flow(COMMAND, resume=True))
    weights = [(tmp_path / name / "train.safetensors").read_bytes() for name in ("straight", "killed")]
    assert weights[0] == weights[1]
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [
        "train-logits.safetensors",
        "train.json",
        "train.jsonl",
        "train.safetensors",
    ]


def test_a_process_killed_for_real_resumes(tmp_path: Path) -> None:
    options = "--dataset digits --set data.train_images=120 --memory-mib 0.03"
    settings = ("rounds=4", "weight_steps=4", "width_batches=2", "batch_size=12", "threads=1", "amp=off")
    options += "".join(f" --set search.{setting}" for setting in settings)
    arguments = [sys.executable, "-m", "dmsflow", "search", *options.split()]
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    process = subprocess.Popen(
        [*arguments, "--out", tmp_path / "killed"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    deadline = time.monotonic() + 120
    while (
        not (tmp_path / "killed" / "search.checkpoint").exists()
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "killed" / "search.json").exists()
    for out, options in (("killed", ["--resume"]), ("straight", [])):
        done = subprocess.run(
            [*arguments, "--out", tmp_path / out, *options], capture_output=True, text=True, env=environment, check=True
        )
        assert done.stdout.strip() == str(tmp_path / out / "search.json")
    assert _outcome(tmp_path / "killed") == _outcome(tmp_path / "straight")


def test_plan_shows_what_is_possible_and_trains_nothing(tmp_path: Path) -> None:
    rows = dict(search.plan_stage(DATA, SearchSettings(**SMALL), tmp_path))
    assert {"smallest", "base", "largest", "memory budget", "uniform", "equal"} <= rows.keys()
    assert "0.0726 MiB, file 82.1 KiB, 9.59 M MACs" in rows["base"] and not list(tmp_path.iterdir())


def test_the_float_baseline_is_trained_and_priced_in_full_precision(tmp_path: Path) -> None:
    source = search.run_stage(DATA, SearchSettings(**{**SMALL, "method": "equal"}), tmp_path, Flow(COMMAND))
    settings = TrainSettings(precision="float", epochs=1, threads=1, amp="off")
    done = load_manifest(train.run_stage(source, settings, tmp_path / "float", Flow(COMMAND)))
    assert done.metrics["memory_mib"] > 10 * load_manifest(source).metrics["memory_mib"]
    assert not any(name.endswith(".alpha") for name in load_file(tmp_path / "float" / "train.safetensors"))


def test_ratios_that_leave_no_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DmsflowError, match="min_ratio: 9 is not below max_ratio 8; lower it"):
        searched(tmp_path, min_ratio=9.0)


def test_a_build_that_gives_no_network_is_refused(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def build(channels, resolution, classes):\n    return 3\n")
    with pytest.raises(DmsflowError, match=r"build\(\) returned int; return a dmsflow.network.Network"):
        searched(tmp_path, network=str(mine))


def test_the_command_line_shows_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["search", "--memory-mib", "0.03", "--dry-run", "--out", str(tmp_path / "a")]) == 0
    written = capsys.readouterr()
    assert written.out == "" and "largest" in written.err and list(tmp_path.iterdir()) == []


# --- under a latency budget ---------------------------------------------------------------------

SHIPPED = "epyc-lce"


@pytest.mark.parametrize("method", ["gradient", "published"])
def test_memory_and_latency_budgets_are_kept_together(tmp_path: Path, method: str) -> None:
    done = searched(tmp_path, method=method, step_size=0.1, profile=SHIPPED, latency_ms=0.11, rounds=2)
    copied = profile.load_profile(str(manifest.verify(tmp_path / "search.json", done.artifacts["profile"])))
    assert copied == profile.load_profile(SHIPPED)
    latency = build_latency(done.network, copied)
    assert budget.memory_mib(done.network, done.widths) <= 0.03 and latency(done.widths) <= 0.11
    assert done.metrics["predicted_latency_ms"] == latency(done.widths)
    rows = [json.loads(line) for line in (tmp_path / "search.jsonl").read_text().splitlines()]
    if method == "gradient":
        assert all(row["memory_mib"] <= 0.03 and row["predicted_latency_ms"] <= 0.11 for row in rows)
    page = (Path(__file__).parents[2] / "docs" / "manifest.md").read_text("utf-8").partition("## search.jsonl")[2]
    assert all(set(re.findall(r"`(\w+)`", page)) >= row.keys() for row in rows)


@pytest.mark.parametrize("method", ["uniform", "equal", "random"])
def test_baselines_meet_memory_and_latency(tmp_path: Path, method: str) -> None:
    done = searched(tmp_path, method=method, profile=SHIPPED, latency_ms=0.11)
    assert done.metrics["memory_mib"] <= 0.03 and done.metrics["predicted_latency_ms"] <= 0.11


def test_a_profile_without_a_budget_only_predicts(tmp_path: Path) -> None:
    with_one, without = (searched(tmp_path / str(name), method="equal", profile=name) for name in (SHIPPED, None))
    assert with_one.widths == without.widths
    assert "predicted_latency_ms" in with_one.metrics and "predicted_latency_ms" not in without.metrics


def test_an_infeasible_pair_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(DmsflowError, match=r"latency budget of 0\.01 ms: vgg11 cannot be that small .* allow at least"):
        searched(tmp_path, profile=SHIPPED, latency_ms=0.01)
    assert list(tmp_path.iterdir()) == []


def test_the_plan_has_the_profile_and_what_each_budget_leaves(tmp_path: Path) -> None:
    chosen = SearchSettings(**SMALL, profile=SHIPPED, latency_ms=0.11)
    rows = dict(search.plan_stage(DATA, chosen, tmp_path))
    assert rows["profile"].startswith("epyc-lce: ") and "LCE" in rows["profile"] and "1 thread" in rows["profile"]
    assert all(rows[name].endswith(" ms") for name in ("smallest", "base", "largest"))
    assert rows["latency budget"].startswith("0.11 ms, ") and " ms: " in rows["equal"]


def test_a_modelled_profile_says_so_wherever_it_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    modelled = msgspec.structs.replace(profile.load_profile(SHIPPED), name="model", method="modelled")
    path = profile.save_profile(tmp_path / "model.json", modelled)
    chosen: dict[str, Any] = {"profile": str(path), "latency_ms": 0.11}
    rows = dict(search.plan_stage(DATA, SearchSettings(**SMALL, **chosen), tmp_path))
    assert rows["profile"].startswith("model (modelled): ")
    assert all("ms (modelled)" in rows[name] for name in ("smallest", "latency budget", "uniform"))
    searched(tmp_path / "run", **chosen)
    shown = capsys.readouterr().err
    assert shown.count("ms (modelled)") >= 4 and not re.search(r"\d ms(?! \(modelled\))", shown)
    with pytest.raises(DmsflowError, match=r"latency budget of 0\.01 ms \(modelled\)"):
        searched(tmp_path / "other", **{**chosen, "latency_ms": 0.01})


def test_profiles_of_float32_networks_are_refused(tmp_path: Path) -> None:
    other = msgspec.structs.replace(profile.load_profile(SHIPPED), precision="float")
    path = profile.save_profile(tmp_path / "float.json", other)
    with pytest.raises(DmsflowError, match="has times of float32 networks, and the search is for binary ones"):
        searched(tmp_path / "run", profile=str(path), latency_ms=0.11)


def test_a_profile_of_other_files_is_refused_before_the_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["run", "--preset", "digits", "--profile", SHIPPED, "--latency-ms", "0.11", "--out", str(tmp_path / "run")]
    assert cli.main([*given, "--target", "onnx"]) == 1
    assert f"--profile {SHIPPED}: has times of files for x86-64, and this file is for onnx" in capsys.readouterr().err
    assert cli.main([*given, "--set", "bench.threads=2"]) == 1
    assert not (tmp_path / "run").exists()


def test_five_images_of_each_of_two_classes_are_enough() -> None:
    """No part of them is a single image, which has no variance to normalise with."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 1), dtype=np.uint8)
    data = make_dataset((pixels, np.arange(10) % 2), (pixels, np.arange(10) % 2))
    settings = SearchSettings(**SMALL)
    budgets = Budgets.from_settings(settings, load_network("vgg11", 1, 32, 2))
    net = supernetwork.begin(settings, budgets, data, workers=0)
    assert [each.order.size for each in (net.weight_batches, net.width_batches, net.held_out)] == [6, 2, 2]
