"""The record: what is refused, and that what is written is read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dmsflow.errors import DmsflowError
from dmsflow.network import profile
from dmsflow.network.profile import Checked, Granularity, Profile, Table


def make(**changes: Any) -> Profile:
    table = Table(
        block="binary_conv 3x3 on 8x8",
        inputs=(17, 49),
        outputs=(3, 31),
        ms=((0.1, 0.2), (0.15, 0.4)),
        spread_percent=((1.0, 2.0), (0.5, 0.0)),
    )
    fields: dict[str, Any] = {
        "name": "board",
        "target": "arm64",
        "device": "ssh://pi@board",
        "threads": 1,
        "runtime": "LCE 0.16.0",
        "overhead_ms": 0.002,
        "steps": {"binary_conv": Granularity(inputs=32, outputs=4)},
        "tables": (table,),
        "checked": (Checked(network="vgg11", resolution=32, widths=(8, 9), predicted_ms=0.9, measured_ms=1.0),),
        "drift_percent": 0.5,
        "commands": (("dmsflow", "profile"),),
        "environment": {"date": "2026-01-01"},
    }
    return Profile(**{**fields, **changes})


def written(folder: Path, **changes: Any) -> dict[str, Any]:
    """The JSON of a sound profile, with fields replaced."""
    return {**json.loads(profile.encode_profile(make())), **changes}


def refusal(folder: Path, content: Any) -> str:
    path = folder / "board.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DmsflowError) as caught:
        profile.load_profile(str(path))
    line = str(caught.value)
    assert line.startswith(str(path)) and "; " in line and "\n" not in line
    return line


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = profile.save_profile(tmp_path / "board.json", make())
    assert profile.load_profile(str(path)) == make()
    assert len(path.read_text().splitlines()) < 25  # a table is a line


def test_a_checked_network_tells_its_error() -> None:
    assert make().checked[0].error_percent == pytest.approx(-10)


def test_a_modelled_profile_says_so_in_its_title() -> None:
    assert make(method="modelled").title == "board (modelled)"
    assert make().title == "board"


@pytest.mark.parametrize(
    "field", [name for name in Profile.__struct_fields__ if name not in ("schema", "method", "precision", "checked")]
)
def test_a_missing_key_is_named(tmp_path: Path, field: str) -> None:
    content = written(tmp_path)
    del content[field]
    assert f"`{field}`" in refusal(tmp_path, content)


@pytest.mark.parametrize("field", msgspec.structs.fields(Table), ids=lambda field: str(field.name))
def test_a_missing_key_of_a_table_is_refused(tmp_path: Path, field: Any) -> None:
    content = written(tmp_path)
    del content["tables"][0][field.encode_name]
    assert "is not a profile" in (line := refusal(tmp_path, content)) or "another shape" in line


def table(**changes: Any) -> dict[str, Any]:
    return {**json.loads(profile.encode_profile(make()))["tables"][0], **changes}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tables": []}, "no tables"),
        ({"tables": [table(), table()]}, "two tables"),
        ({"tables": [table(ms=[[0.1, -0.2], [0.15, 0.4]])]}, ">= 0.0"),
        ({"tables": [table(ms=[[0.1, 0.2]])]}, "another shape"),
        ({"tables": [table(ms=[[0.1, 0.2], [0.15, 3e12]])]}, "<= 10000000.0"),
        ({"tables": [table(ms=[[0.1, 0.05], [0.15, 0.4]])]}, "falls with a width"),
        ({"tables": [table(ms=[[0.1, 0.2], [0.09, 0.4]])]}, "falls with a width"),
        ({"tables": [table(inputs=[49, 17])]}, "do not rise"),
        ({"tables": [table(inputs=[17, 18])]}, "do not rise"),  # the same step of 32
        ({"tables": [table(inputs=[0, 17])]}, ">= 1"),
        ({"tables": [table(ms="0.1")]}, "Expected `array`"),
        ({"tables": [{**table(), "us": table()["ms"]}]}, "`us`"),
        ({"overhead_us": 2}, "`overhead_us`"),
        ({"overhead_ms": "2 us"}, "Expected `float`"),
        ({"overhead_ms": -1}, ">= 0.0"),
        ({"threads": 0}, ">= 1"),
        ({"method": "guessed"}, "'guessed'"),
        ({"schema": 99}, "schema 99"),
        ({"steps": {"binary_conv": {"inputs": 0}}}, ">= 1"),
        (
            {"checked": [{"network": "a", "resolution": 8, "widths": [1], "predicted_ms": 1, "measured_ms": 0}]},
            "no time",
        ),
    ],
    ids=str,
)
def test_damage_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in refusal(tmp_path, written(tmp_path, **changes))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "null"])
def test_what_is_no_number_is_refused(tmp_path: Path, number: str) -> None:
    text = profile.encode_profile(make()).decode()
    assert "is not a profile" in refusal(tmp_path, text.replace('"overhead_ms": 0.002', f'"overhead_ms": {number}'))
    assert "is not a profile" in refusal(tmp_path, text.replace("0.15", number, 1))


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    text = profile.encode_profile(make()).decode()
    for end in range(0, len(text) - 2, 7):
        refusal(tmp_path, text[:end])


def test_a_profile_is_found_by_path_here_or_among_those_that_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    profile.save_profile(tmp_path / "profiles" / "mine.json", make(name="mine"))
    assert profile.load_profile("mine").name == "mine"
    assert profile.load_profile("profiles/mine.json").name == "mine"
    assert "mine" in profile.profile_names()
    with pytest.raises(DmsflowError, match="profile theirs: is unknown; use one of .*mine"):
        profile.load_profile("theirs")
