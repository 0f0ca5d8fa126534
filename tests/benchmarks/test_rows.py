"""Studies go on from docs/results where another machine stopped, and write the same file again on a bare one."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from studies import front, int8, jobs, kernel_sizes, modules, recipe

from dmsflow.errors import DmsflowError

STUDIES = {"int8": int8, "kernel-sizes": kernel_sizes, "modules": modules}  # by their results files
each_study = pytest.mark.parametrize(("name", "study"), STUDIES.items(), ids=list(STUDIES))


def run(study: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["study.py", "--out", str(folder / "runs"), "--results", str(folder), *words])
    study.main()


@each_study
def test_tabulated_on_a_bare_machine_it_is_what_was_published(
    name: str, study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = (jobs.RESULTS / f"{name}.json").read_bytes()
    results = tmp_path / f"{name}.json"
    results.write_bytes(published)
    for _ in range(2):
        run(study, tmp_path, monkeypatch, "--tabulate")
        assert results.read_bytes() == published


@each_study
def test_only_what_is_not_published_is_run(
    name: str, study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{name}.json").write_bytes((jobs.RESULTS / f"{name}.json").read_bytes())
    made: list[tuple[Any, ...]] = []
    monkeypatch.setattr(study, "make_row", lambda *which: {"number": made.append(which)})
    monkeypatch.setattr(modules, "draw_images", lambda _: None)
    words = [] if study is modules else ["--dataset", "digits"]
    run(study, tmp_path, monkeypatch, *words)
    where = tmp_path / "runs" if study is modules else front.Place(tmp_path / "runs")
    rows = front.finished(study.all_rows(where))
    assert len(made) == len([row for row in rows if "number" in row]) < len(rows) == len(list(study.all_rows(where)))


def test_the_recipe_adds_to_the_rows_of_its_results_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    published = (jobs.RESULTS / "recipe.json").read_bytes()
    results = tmp_path / "recipe.json"
    results.write_bytes(published)
    monkeypatch.setattr("sys.argv", ["recipe.py", "--tabulate", "--results", str(results)])
    recipe.main()
    assert results.read_bytes() == published and "the default" in capsys.readouterr().out
    content = json.loads(published)
    *others, last = content["rows"]
    front.write(results, {**content, "rows": others})
    recipe.add_row(results, last, tmp_path)
    assert results.read_bytes() == published


def test_a_row_made_here_stays_and_one_made_elsewhere_has_its_whole_name(tmp_path: Path) -> None:
    results, here, there = (tmp_path / f"{name}.json" for name in ("results", "here", "there"))
    rows = [(here, {"scale": 1.0, "seed": 0}, dict), (there, {"scale": 2.0, "seed": 0}, dict)]
    front.restore(results, rows)  # there is no results file yet
    front.write(here, {"scale": 1.0, "seed": 0, "ms": 1})
    front.write(results, {"seed": 0, "rows": [{"scale": 1.0, "seed": 0, "ms": 2}, {"scale": 2.0, "rows": []}]})
    front.restore(results, rows)
    assert front.read(here)["ms"] == 1 and not there.exists()
    front.write(results, [[{"scale": 2.0, "seed": 0, "ms": 3}]])
    front.restore(results, rows)
    assert front.finished(rows) == [{"scale": 1.0, "seed": 0, "ms": 1}, {"scale": 2.0, "seed": 0, "ms": 3}]


def test_beside_a_damaged_results_file_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "int8.json").write_text('{"networks": [')
    with pytest.raises(DmsflowError, match="is not JSON"):
        run(int8, tmp_path, monkeypatch, "--dataset", "digits")
    assert (tmp_path / "int8.json").read_text() == '{"networks": ['
