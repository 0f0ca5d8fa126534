"""benchmarks/ablations.py: what its variants change, which searches it shares, and what it writes of those that are done."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from studies import ablations, budgets, jobs, table1

from dmsflow import manifest, settings
from dmsflow.errors import DmsflowError
from dmsflow.importing import load_network
from dmsflow.searching.budget import Budgets
from dmsflow.settings import Data


@pytest.fixture
def where(tmp_path: Path) -> jobs.Runs:
    return jobs.Runs(tmp_path, Data(name="digits", train_images=20), 1)


def finish(job: jobs.Job, where: jobs.Runs, *, trained: bool = True) -> None:
    """Leave what a job leaves that is done, or whose widths alone are chosen; every choice is another."""
    network = load_network("vgg11", 3, 32, 10)
    widths = dict.fromkeys(network.widths, 8 + len(list(where.out.glob("choices/**/search.json"))))
    found = manifest.Manifest(
        stage="search",
        command=("x",),
        settings=job.search,
        network=network,
        widths=widths,
        data=where.data,
        metrics={"macs_m": 15.5, "seconds": 2.0},
        environment={"commit": "abc1234"},
    )
    where.chosen(job).parent.mkdir(parents=True)
    manifest.save_manifest(where.chosen(job), found)
    if trained:
        path = where.trained(job)
        path.parent.mkdir(parents=True)
        course = {"precision": "binary", **job.train}
        metrics = {"memory_mib": 0.077, "top1_percent": 50.0 + job.train["seed"], "seconds": 3.0}
        manifest.save_manifest(path, msgspec.structs.replace(found, stage="train", settings=course, metrics=metrics))


def options(where: jobs.Runs, *more: str) -> list[str]:
    return ["ablations.py", "--dataset", "digits", "--out", str(where.out), "--results", str(where.out), *more]


@pytest.mark.parametrize("variant", ablations.VARIANTS)
def test_a_variant_differs_from_the_default_as_it_says_and_in_nothing_else(variant: str) -> None:
    changes = settings.with_present_names(ablations.VARIANTS[variant][1])
    for seed in ablations.SEEDS:
        job, default = ablations.job(variant, seed), ablations.job("default", seed)
        one, other = (
            msgspec.structs.asdict(settings.resolve(settings.SearchSettings, **each.search)) for each in (job, default)
        )
        assert {name: value for name, value in one.items() if value != other[name]} == changes
        assert job.train == default.train
        settings.resolve(settings.TrainSettings, **job.train)
    assert bool(changes) == (variant != "default")


def test_past_variants_need_settings_that_are_gone_and_others_do_not() -> None:
    for variant, (_, changes) in ablations.ALL_VARIANTS.items():
        assert bool(changes.keys() & settings.REMOVED_FIELDS.keys()) == (variant in ablations.PAST_VARIANTS)
    page = (jobs.RESULTS.with_suffix(".md")).read_text("utf-8")
    for variant in ablations.PAST_VARIANTS:
        assert f"| {variant} (at {ablations.PAST_COMMIT}) |" in page
    for variant in ablations.VARIANTS:
        assert f"| {variant} |" in page


def test_a_past_variant_cannot_be_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["ablations.py", "--dataset", "digits", "--variants", "adam"])
    with pytest.raises(SystemExit):
        ablations.main()
    assert "invalid choice: 'adam'" in capsys.readouterr().err


def test_the_default_searches_as_dmsflow_did_under_the_first_cells_budgets() -> None:
    """With the weights trained as they were when the published rows were made."""
    found = settings.resolve(settings.SearchSettings, **ablations.job("default", 2).search)
    budgets = {"network": "vgg11", "memory_mib": 0.078, "macs_m": 16.0}
    assert found == settings.SearchSettings(**budgets, seed=2, **jobs.FORMER_SEARCH)


@pytest.mark.parametrize("seed", ablations.SEEDS)
def test_the_searches_of_default_and_evolution_are_those_of_budgets(seed: int) -> None:
    made = [ablations.job(variant, seed) for variant in ablations.VARIANTS]
    assert len({job.choice for job in made}) == len(made)  # a name means one choice
    theirs = {job.choice: job.search for job in budgets.first_wave(budgets.CELLS[0], budgets.METHODS)}
    shared = {
        variant for variant, job in zip(ablations.VARIANTS, made, strict=True) if theirs.get(job.choice) == job.search
    }
    assert shared == {"default", "evolution"}
    assert sum(job.choice in theirs for job in made) == 2


def test_finished_variants_have_a_row_and_others_none(where: jobs.Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = ablations.SEEDS
    for seed in ablations.SEEDS:
        finish(ablations.job("default", seed), where)
    finish(ablations.job("long", first), where)
    finish(ablations.job("long", second), where, trained=False)
    finish(ablations.job("weights", third), where, trained=False)
    finish(ablations.job("adam", second), where)  # of an earlier version
    monkeypatch.setattr(ablations, "TRAIN_IMAGES", 20)
    monkeypatch.setattr(sys, "argv", options(where, "--tabulate"))
    monkeypatch.setattr(jobs, "run", lambda *_: pytest.fail("a job was run"))
    ablations.main()
    rows = json.loads((where.out / "ablations.json").read_text("utf-8"))
    assert [(row["variant"], [run["seed"] for run in row["runs"]]) for row in rows] == [
        ("default", list(ablations.SEEDS)),
        ("adam", [second]),
        ("long", [first]),
    ]
    assert rows[1]["settings"] == {"step": "adam", "step_size": 2e-3}
    assert rows[1]["what"] == ablations.PAST_VARIANTS["adam"][0]
    assert rows[2]["settings"] == {"rounds": 32}
    run = rows[2]["runs"][0]
    assert (run["top1_percent"], run["macs_m"], run["search_seconds"], run["train_seconds"]) == (50.0, 15.5, 2.0, 3.0)


@pytest.mark.parametrize(("rank", "writes"), [("0", True), ("1", False)])
def test_the_variants_asked_for_run_and_one_process_writes(
    rank: str, writes: bool, where: jobs.Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[jobs.Job] = []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(jobs, "run", lambda wave, _: asked.extend(wave))
    monkeypatch.setattr(sys, "argv", options(where, "--variants", "long", "weights"))
    ablations.main()
    assert asked == [ablations.job(variant, seed) for seed in ablations.SEEDS for variant in ("long", "weights")]
    assert (where.out / "ablations.json").exists() == writes


def test_a_wave_is_asked_for_when_those_before_it_are_done(where: jobs.Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best draw's other seeds in budgets.py: the draws decide which it is."""
    told: list[Any] = []
    monkeypatch.setattr(jobs, "run", lambda wave, _: told.append(len(wave)))
    monkeypatch.setattr(budgets, "best_draw", lambda cell, _: told.append(cell.name) or [])
    monkeypatch.setattr(budgets, "tabulate", lambda _: {})
    monkeypatch.setattr(sys, "argv", options(where, "--cells", budgets.CELLS[3].name, "--methods", "equal", "random"))
    budgets.main()
    assert told == [len(budgets.SEEDS) + budgets.DRAWS, "vgg11/0.078MiB", 0]


@pytest.mark.parametrize(
    ("study", "name", "more"),
    [
        (ablations, "ablations", ()),
        (budgets, "budgets", ()),
        (table1, "table1-quick", ("--protocol", "quick")),
        (table1, "table1-long", ("--protocol", "long")),
    ],
)
def test_what_ran_on_other_machines_stays_in_the_results(
    study: Any, name: str, more: tuple[str, ...], where: jobs.Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results of this repository, tabulated where nothing of them ran."""
    published, written = jobs.RESULTS / f"{name}.json", where.out / f"{name}.json"
    written.write_bytes(published.read_bytes())
    monkeypatch.setattr(sys, "argv", options(where, "--tabulate", *more))
    study.main()
    assert json.loads(written.read_text("utf-8")) == json.loads(published.read_text("utf-8"))


def test_what_runs_here_takes_the_place_of_what_was_published(
    where: jobs.Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = ablations.SEEDS
    old = [
        {
            "choice": ablations.job("default", seed).choice,
            "seed": seed,
            "epochs": ablations.EPOCHS,
            "precision": "binary",
            "train_images": 20,
            "top1_percent": 1.0,
        }
        for seed in (first, second)
    ]
    (where.out / "ablations.json").write_text(json.dumps([{"variant": "default", "runs": old}]))
    finish(ablations.job("default", first), where)
    monkeypatch.setattr(ablations, "TRAIN_IMAGES", 20)
    monkeypatch.setattr(sys, "argv", options(where, "--tabulate"))
    ablations.main()
    (row,) = json.loads((where.out / "ablations.json").read_text("utf-8"))
    assert [run["top1_percent"] for run in row["runs"]] == [50.0 + first, 1.0]


def test_what_ran_on_another_machine_is_not_run_again(where: jobs.Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [ablations.job("default", seed) for seed in ablations.SEEDS]
    known = dataclasses.replace(where, published={jobs._key(asked[0], where): {}})
    ran: list[jobs.Job] = []
    monkeypatch.setattr(jobs, "_try", lambda job, _: not ran.append(job))
    jobs.run(asked, known)
    assert ran == asked[1:]


def test_a_damaged_results_file_is_kept(where: jobs.Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    (where.out / "ablations.json").write_text('[{"variant":')
    monkeypatch.setattr(sys, "argv", options(where, "--tabulate"))
    with pytest.raises(DmsflowError, match="is not JSON"):
        ablations.main()
    assert (where.out / "ablations.json").read_text() == '[{"variant":'


@pytest.mark.parametrize(
    ("made", "recorded"),
    [
        (budgets.baseline(budgets.CELLS[0], "equal", 0), {"method": "flat", "mixed": "off"}),
        (budgets.baseline(budgets.CELLS[0], "interpolated", 0), {"method": "between"}),
        (budgets.searched(budgets.CELLS[0], "gradient", 0), {"method": "gradient", "estimator": "exact"}),
        (
            budgets.papers(budgets.CELLS[0], 0, **budgets.PAPER_PHASES["vgg11"]),
            {"method": "gradient", "estimator": "clustered", "hold": "penalty", "head_start": 0.0},
        ),
    ],
)
def test_a_choice_of_an_earlier_version_counts(made: jobs.Job, recorded: dict[str, Any], where: jobs.Runs) -> None:
    """Its manifest has settings by the names that they had."""
    finish(made, where)
    found = manifest.load_manifest(where.chosen(made))
    before = {key: value for key, value in found.settings.items() if key != "width_warmup"} | recorded
    manifest.save_manifest(where.chosen(made), msgspec.structs.replace(found, settings=before))
    assert jobs.done(made, where)


@pytest.mark.parametrize("cell", budgets.CELLS)
def test_interpolated_is_equal_under_one_budget(cell: Any) -> None:
    """Which is why budgets.py makes one job of the two there."""
    network = load_network(cell.network, 3, 32, 10)
    chosen = settings.resolve(settings.SearchSettings, **cell.budgets())
    limits = Budgets.from_settings(chosen, network)
    same = bool((limits.interpolated() == limits.equal()).all())
    jobs_of = [budgets.baseline(cell, method, 0) for method in ("interpolated", "equal")]
    assert same == (jobs_of[0] == jobs_of[1]) == (cell.macs_m is None)
