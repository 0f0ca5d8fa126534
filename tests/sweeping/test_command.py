"""The options of `dmsflow sweep`, and what it refuses before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmsflow import cli, environment


@pytest.mark.parametrize("given", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3"])
def test_a_shard_is_one_of_n(given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", str(tmp_path / "plan.toml"), "--shard", given]) == 2
    assert "is not i/n with i from 1 to n, such as 2/8" in " ".join(capsys.readouterr().err.split())


def test_a_missing_plan_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path / "plan.toml", tmp_path):
        assert cli.main(["sweep", str(path)]) == 1
        line = f"dmsflow: {path}: is not a file; give the path of a plan (docs/sweep.md)\n"
        assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('networks = ["vgg12"]', "network vgg12: is unknown; use one of "),
        ('networks = ["net.py:Net"]', "net.py: no such file; give the path of an existing .py file"),
        ('[[budgets]]\nlatency_ms = 1\nprofile = "desk"', "profile desk: is unknown; use one of "),
        ('[data]\nname = "digist"', "dataset digist: is unknown; use one of "),
    ],
)
def test_names_that_are_unknown_are_refused_before_any_row(
    text: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, out = tmp_path / "plan.toml", tmp_path / "out"
    plan.write_text(text)
    for words in ([], ["--dry-run"]):
        assert cli.main(["sweep", str(plan), "--out", str(out), *words]) == 1
        said = capsys.readouterr().err
        assert line in said and said.count("\n") == 1 and not out.exists()


def test_slurm_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "is_installed", lambda module: module != "submitit")
    plan, out = tmp_path / "plan.toml", tmp_path / "out"
    plan.write_text("")
    assert cli.main(["sweep", str(plan), "--launcher", "slurm", "--out", str(out)]) == 1
    line = "dmsflow: --launcher slurm: needs submitit (not installed); pip install 'dmsflow[slurm]'\n"
    assert capsys.readouterr().err == line
    assert not out.exists()


def test_a_dry_run_writes_nothing_and_says_what_is_possible(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, out = tmp_path / "plan.toml", tmp_path / "out"
    plan.write_text("[[budgets]]\nmemory_mib = 0.04\n[[budgets]]\nmemory_mib = 0.03\n[[budgets]]\nmemory_mib = 1e-5\n")
    assert cli.main(["sweep", str(plan), "--dry-run", "--jobs", "2", "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "widths of vgg11-0.04mib-gradient-0" in said and "not possible" in said
    assert "3 rows until bench, on local; about" in said and "with 2 rows at a time" in said
    assert not out.exists()
