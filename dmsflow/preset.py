"""Where field values come from that are no options: presets (TOML files), the dial --effort, and --set."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from dmsflow.errors import DmsflowError
from dmsflow.files import read_bytes
from dmsflow.settings import REMOVED_FIELDS, RENAMED_FIELDS

PRESETS = Path(__file__).parent / "presets"
PRESET_TABLES = ("search", "train", "export", "bench")

# What the dial --effort multiplies. Weights and widths share the rounds, so four times the rounds and twice the
# steps of each are eight times the work; a training is as long as its epochs.
_TRAINING = ("epochs", "normal_epochs", "float_epochs", "min_steps")
EFFORTS = {
    "quick": {"rounds": 0.5, "weight_steps": 0.5, "width_batches": 0.5, **dict.fromkeys(_TRAINING, 0.25)},
    "normal": {},
    "long": {"rounds": 2.0, "weight_steps": 4.0, "width_batches": 2.0, **dict.fromkeys(_TRAINING, 8.0)},
}


def from_preset(kind: type[msgspec.Struct], stage: str, preset: str, effort: str) -> dict[str, Any]:
    """The field values of a preset for a stage, with the lengths of phases and trainings scaled by the effort.

    Each stays at least 1. Errors as `load_preset`.
    """
    values = load_preset(stage, str(preset))
    if effort not in EFFORTS:
        raise DmsflowError("setting effort", f"{effort!r} is not valid", f"use one of {', '.join(EFFORTS)}")
    for field in msgspec.structs.fields(kind):
        before, factor = values.get(field.name, field.default), EFFORTS[effort].get(field.name)
        if factor and type(before) is int and 0 < before < 1 << 53:  # `settings.resolve` refuses others
            values[field.name] = max(1, round(factor * before))
    return values


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a file.

    Raises:
        DmsflowError: it is not TOML.
    """
    try:
        return tomllib.loads(read_bytes(path).decode())
    except (ValueError, RecursionError) as error:  # a number of very many digits too
        raise DmsflowError(path, f"is not TOML ({error})", "correct the file") from error


def load_preset(stage: str, name: str) -> dict[str, Any]:
    """The field values of a preset for a stage ("search" or "train"); none for another stage.

    Args:
        name: of a file in `presets/`, or the path of a user's own `.toml` file.

    Raises:
        DmsflowError: no such preset, or its file is not TOML.
    """
    path = Path(name) if name.endswith(".toml") else PRESETS / f"{name}.toml"
    if not path.is_file():
        right = f"use one of {', '.join(preset_names())}, or the path of a .toml file"
        raise DmsflowError(f"--preset {name}", "is unknown", right)
    values = read_toml(path)
    if unknown := set(values) - set(PRESET_TABLES):
        tables = " ".join(f"[{table}]" for table in PRESET_TABLES)
        raise DmsflowError(path, f"has an unknown table {sorted(unknown)[0]!r}", f"use only the tables {tables}")
    return dict(values.get(stage, {}))


def parse_assignments(
    stage: str, kinds: Mapping[str, type[msgspec.Struct]], assignments: Iterable[str]
) -> dict[str, Any]:
    """The values that options such as `--set search.rounds=32` give to one stage; a value is TOML, or else a word.

    Raises:
        DmsflowError: it is not of that form, or none of `kinds`, the records of a command, has such a setting.
    """
    found: dict[str, Any] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        table, _, field = name.strip().partition(".")
        fields = kinds[table].__struct_fields__ if table in kinds else tuple(f"{kind}.NAME" for kind in kinds)
        # `resolve` says what a setting of an earlier version is called now.
        if not equals or table not in kinds or field not in (*fields, *RENAMED_FIELDS, *REMOVED_FIELDS):
            right = f"write STAGE.NAME=VALUE with one of {', '.join(fields)}"
            raise DmsflowError(f"--set {text}", "is not a setting of this command", right)
        if table == stage:
            try:
                found[field] = tomllib.loads(f"value = {value}")["value"]
            except (ValueError, RecursionError):
                found[field] = value.strip()
    return found
