"""benchmarks/campaign.py: what it calls a fault, and a part of it with a fixed seed."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import campaign
import forked
import mutation
import pytest
import sanitised
from forked import Ended

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_a_part_of_the_campaign_finds_no_fault(tmp_path: Path, sanitized_folder: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "campaign.py"), "--share", "0.001", "--seed", "7"]
    command += ["--out", str(tmp_path / "campaign.json"), "--keep", str(tmp_path / "kept")]
    command += ["--built", str(sanitized_folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "campaign.json").read_text())["rows"]
    assert sum(row["tries"] for row in rows) > 20 and not (tmp_path / "kept").exists()
    assert {row["kind"]: row["tries"] for row in rows}["phone program, sanitised"] == 1


def test_one_part_leaves_the_rows_of_the_others(tmp_path: Path) -> None:
    given = argparse.Namespace(only="kills", share=0.5, out=tmp_path / "campaign.json")
    assert campaign.keep_rows(given, []) == []
    rows = [{"kind": "logs"}, {"kind": "kills of run"}]
    given.out.write_text(json.dumps({"share": 0.5, "rows": rows}))
    assert campaign.keep_rows(given, [{"kind": "kills of run"}]) == [{"kind": "logs"}]
    assert campaign.keep_rows(argparse.Namespace(**{**vars(given), "only": None}), []) == []
    assert campaign.keep_rows(argparse.Namespace(**{**vars(given), "share": 1.0}), []) == []


def test_damaged_values_are_independent_of_each_other() -> None:
    before, chance = json.dumps(mutation.HOSTILE), random.Random(0)
    for _ in range(3000):
        json.dumps(mutation.damage_values({"a": [1, [2]], "b": {"c": []}}, chance))
    assert json.dumps(mutation.HOSTILE) == before


LINE = b"dmsflow: a.json: is missing; put it back\n"


@pytest.mark.parametrize(
    ("code", "err", "kind"),
    [
        (0, b"", None),
        (1, LINE, None),
        (1, b"search: round 1\n" + LINE, None),
        (2, b"Usage: dmsflow\n\nError: no such option\n", None),
        (3, LINE, None),
        (None, b"", "hang"),
        (70, LINE, "exit code 70"),
        (-11, b"", "exit code -11"),
        (1, b"", "no line"),
        (1, LINE * 2, "more than one line"),
        (1, LINE + b"more\n", "more than one line"),
        (1, b"Traceback (most recent call last):\n" + LINE, "traceback"),
        (0, b"x.py:1: UserWarning: Truncated File Read\n", "a warning of a library"),
        (1, b"dmsflow: \x1b[31m: is red; paint it\n", "control characters"),
        (1, b"dmsflow: memory: is too small (x); free some\n", "memory"),
    ],
)
def test_what_is_a_fault(code: int | None, err: bytes, kind: str | None) -> None:
    assert forked.fault(Ended(code, b"", err, 0.1)) == kind


def test_what_is_no_fault_where_memory_is_little() -> None:
    for code, err in ((1, b"dmsflow: memory: is too small (x); free some\n"), (-11, b""), (-6, b"")):
        assert forked.fault(Ended(code, b"", err, 0.1)) and not forked.fault(
            Ended(code, b"", err, 0.1), little_memory=True
        )
    assert forked.fault(Ended(-9, b"", b"", 0.1), little_memory=True) == "exit code -9"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, where another test left a thread
def test_a_command_that_hangs_dies_or_raises_is_seen(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("no")

    assert forked.call(["--version"]).out.startswith(b"dmsflow, version")
    assert forked.fault(forked.call(["--version"], lambda: time.sleep(60), seconds=0.2)) == "hang"
    assert forked.call(["--version"], lambda: time.sleep(60), kill=0.2).code == -9
    assert forked.fault(forked.call(["--version"], os.abort)) == "exit code -6"
    assert forked.fault(forked.call(["--version"], fail)) == "traceback"
    ended = forked.call(["show", str(tmp_path / "none.json")])
    assert ended.code == 1 and forked.fault(ended) is None


def test_what_is_not_whole_is_named(tmp_path: Path) -> None:
    assert forked.torn(tmp_path) is None and forked.torn(tmp_path / "none") is None
    (tmp_path / "a.html").write_text("<html>")
    assert forked.torn(tmp_path) == "a.html has no end"
    (tmp_path / ".b.partial").write_text("")
    assert forked.torn(tmp_path) == ".b.partial is left"
    (tmp_path / ".a.json").write_text("{")
    assert (forked.torn(tmp_path) or "").startswith(".a.json is not whole (")


def test_a_digest_knows_no_times_and_all_else(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"metrics": {"seconds": 1, "loss": 2}}')
    (tmp_path / "a.jsonl").write_text('{"images_per_second": 1, "loss": 2}\n')
    (tmp_path / "a.bin").write_bytes(b"1")
    first = forked.digest(tmp_path)
    (tmp_path / "a.json").write_text('{"metrics": {"seconds": 3, "loss": 2}}')
    assert forked.digest(tmp_path) == first
    for name, content in (("a.json", '{"metrics": {"loss": 1}}'), ("a.jsonl", '{"loss": 1}'), ("a.bin", "2")):
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).write_text(content)
        assert forked.digest(tmp_path) != first
        (tmp_path / name).write_bytes(before)


def test_a_digest_knows_no_widths_that_a_profile_was_checked_at(tmp_path: Path) -> None:
    found = []
    for row in ('"widths": [15, 32], "predicted_ms": 1', '"widths": [15, 33], "predicted_ms": 2', '"widths": [15, 33]'):
        (tmp_path / "small.json").write_text(f'{{"checked": [{{"network": "tiny", {row}}}]}}')
        found.append(forked.digest(tmp_path))
    assert found[0] == found[1] != found[2]


def test_hashes_are_repaired_down_the_chain(tmp_path: Path) -> None:
    wrong = {"path": "search.json", "sha256": "0", "size_bytes": 0}
    (tmp_path / "search.json").write_text('{"parent": null, "artifacts": {}}')
    (tmp_path / "model").write_bytes(b"model")
    artifacts = {"model": {**wrong, "path": "model"}, "lost": {**wrong, "path": "lost"}}
    (tmp_path / "train.json").write_text(json.dumps({"parent": wrong, "artifacts": artifacts}))
    (tmp_path / "export.json").write_text("no JSON")
    mutation.repair(tmp_path)
    made = json.loads((tmp_path / "train.json").read_text())
    for each in (made["parent"], made["artifacts"]["model"]):
        content = (tmp_path / each["path"]).read_bytes()
        assert each["sha256"] == mutation.hashlib.sha256(content).hexdigest() and each["size_bytes"] == len(content)
    assert made["artifacts"]["lost"]["sha256"] == "0" and (tmp_path / "export.json").read_text() == "no JSON"


@pytest.mark.parametrize(
    "damage", [mutation.damage_json, mutation.damage_lines, mutation.damage_toml, mutation.damage_bytes]
)
def test_damage_follows_from_its_seed_and_is_seldom_none(damage) -> None:  # type: ignore[no-untyped-def]
    content = b'{"a": [1, 2, {"b": "c"}], "d": 0.5, "e": "eeeeeeeeeeeeeeeeeeeeeeeeeeeeee"}\n'
    content = b"a = 1\nb = 'x'\n" * 4 if damage is mutation.damage_toml else content
    made = [damage(content, random.Random(seed)) for seed in range(50)]
    assert made == [damage(content, random.Random(seed)) for seed in range(50)]
    assert sum(each != content for each in made) > 40 and len(set(made)) > 30


# --- the native parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "err", "kind"),
    [
        (0, b"", None),
        (1, b"ERROR: the file is damaged\n", None),
        (1, b"ERROR: one\nERROR: two\n", "more than one line"),
        (1, b"cannot\n", "more than one line"),
        (1, b"", "no line"),
        (None, b"", "hang"),
        (-11, b"", "exit code -11"),
        (1, b"==1==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x1\n", "heap-buffer-overflow"),
        (1, b"a.cc:1:2: runtime error: shift exponent 64 is too large\n", "shift exponent 64 is too large"),
        (1, b"==1==ERROR: LeakSanitizer: detected memory leaks\n", "detected memory leaks"),
        (1, b"ERROR: \x1b[31m\n", "control characters"),
    ],
)
def test_what_is_a_fault_of_the_program_for_phones(code: int | None, err: bytes, kind: str | None) -> None:
    assert sanitised.fault(Ended(code, b"INFO: a\tb\n", err, 0.1)) == kind


def test_what_a_script_of_the_native_parts_found() -> None:
    assert sanitised.faults(Ended(0, b"10 refused\n", b"", 1)) == []
    assert sanitised.faults(Ended(1, b"seed 3:\nreport\nmore\nseed 9: x\n1 run\n", b"", 1)) == [
        "seed 3:\nreport",
        "seed 9: x\n1 run",
    ]
    assert sanitised.faults(Ended(-6, b"", b"a\nb\n", 1)) == ["b"]
    assert sanitised.faults(Ended(None, b"", b"", 1)) == ["hang"]
    ended = sanitised.call((sys.executable, "-c", "import time; time.sleep(60)"), os.environ, 0.2)
    assert sanitised.fault(ended) == "hang"


def test_tables_are_damaged_so_that_they_still_are_tables() -> None:
    content = sanitised.whole_model(random.Random(1))
    made = [mutation.damage_structure(content, random.Random(seed)) for seed in range(40)]
    assert made == [mutation.damage_structure(content, random.Random(seed)) for seed in range(40)]
    assert sum(each[4:8] == b"TFL3" for each in made) > 30 and len(set(made)) > 30


def test_options_of_custom_operators_are_damaged() -> None:
    options = mutation.flexbuffers.Dumps({"padding": 1, "stride": 2})
    made = [bytes(mutation._damaged_options(bytes(options), random.Random(seed))) for seed in range(40)]
    read = [mutation.flexbuffers.Loads(each) for each in made]
    assert len({str(each) for each in read}) > 15 and {"padding": 1} in read
    assert mutation._damaged_options(b"none", random.Random(0)) != list(b"none")
