"""The measured times of one device for fused blocks of networks, as plain JSON.

`dmsflow profile` writes them and `latency.build_latency` computes with them. A block is a layer with
what folds into it (`blocks.fused_blocks`), and is known by its name: a profile does not name networks,
so what was measured for one serves every other that is made of the same fused blocks.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from dmsflow.errors import DmsflowError
from dmsflow.files import read_record, write_atomically
from dmsflow.plugin import shipped_folder
from dmsflow.settings import Count

SCHEMA = 1  # of the file; another one is refused
SLOWEST_MS = 1e7  # no network takes three hours: such a number has another unit

Ms = Annotated[float, Meta(ge=0, le=SLOWEST_MS)]
Percent = Annotated[float, Meta(ge=0)]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The times of one block over a grid of widths.

    Attributes:
        block: its name, see `blocks.FusedBlock.name`.
        inputs: channels read, rising; empty where a block has no choice (the image).
        outputs: channels written, rising; empty where as many come out as go in.
        ms: a row for each of `inputs` (one if there are none), in it a time for each of `outputs`
            (one if there are none); neither falls with a width.
        spread_percent: largest distance between the medians of the two halves of the runs that a
            time was computed from.
    """

    block: str = msgspec.field(name="piece")  # the key in files that users already have
    inputs: tuple[Count, ...] = ()
    outputs: tuple[Count, ...] = ()
    ms: tuple[tuple[Ms, ...], ...]
    spread_percent: tuple[tuple[Percent, ...], ...]


def round_up(width: int, step: int) -> int:
    """The next multiple of `step`: 33 channels in words of 32 are 64."""
    return -(-width // step) * step


class Granularity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The edges of an op's kernels: all widths up to the next multiple of a step take the same time."""

    inputs: Count = 1
    outputs: Count = 1


# Of binary convolutions in LCE's kernels and dmsflow's: a word of 32 bits in, a block of 8 filters out.
PACKED_GRANULARITY = Granularity(inputs=32, outputs=8)


class Checked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A held-out network, none of whose times are in the profile: its predicted and its measured time."""

    network: str
    resolution: int
    widths: tuple[Count, ...]
    predicted_ms: Ms
    measured_ms: Ms

    @property
    def error_percent(self) -> float:
        """Error of the prediction; below zero if the network took longer."""
        return 100 * (self.predicted_ms / self.measured_ms - 1)


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device, with one runtime and one number of threads.

    Attributes:
        name: what `--profile` calls it.
        method: "modelled" where no such device ran anything; shown wherever the profile is used.
        target: what the files were built for, see `dmsflow list targets`.
        precision: "float" for the float32 networks of the same widths.
        device: the address that was measured.
        threads: of the runtime.
        runtime: name and version.
        overhead_ms: of one run, whatever the network.
        steps: by `blocks.FusedBlock.kind`; a kind that is not named has steps of 1.
        tables: the fused blocks.
        checked: the profile's own error on networks that it was not made from.
        drift_percent: how much slower a file that ran all along was at the end than at the start; of
            all runs that made the profile, the largest.
        commands: that measured it, the first and those that added to it.
        environment: machine, versions and date of the last run that added to it.
    """

    schema: int = SCHEMA
    name: str
    method: Literal["measured", "modelled"] = "measured"
    target: str
    precision: Literal["binary", "float"] = "binary"
    device: str
    threads: Count
    runtime: str
    overhead_ms: Ms
    steps: dict[str, Granularity]
    tables: tuple[Table, ...]
    checked: tuple[Checked, ...] = ()
    drift_percent: float
    commands: tuple[tuple[str, ...], ...]
    environment: dict[str, Any]

    def table(self, block: str) -> Table | None:
        return next((table for table in self.tables if table.block == block), None)

    @property
    def title(self) -> str:
        """Its name, and the word that must stand beside it if nothing was measured."""
        return f"{self.name} (modelled)" if self.method == "modelled" else self.name


def profile_names() -> list[str]:
    """The profiles that come with dmsflow and those in ./profiles."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.json")})


def _folders() -> tuple[Path, Path]:
    return Path("profiles"), shipped_folder("profiles")


def find_profile(name: str) -> Path:
    """The file of a profile: by its path, in ./profiles, or among those that come with dmsflow.

    Raises:
        DmsflowError: there is none.
    """
    candidates = [Path(name)] if name.endswith(".json") else [folder / f"{name}.json" for folder in _folders()]
    if found := next(filter(Path.is_file, candidates), None):
        return found
    make = f"make it: dmsflow profile --name {Path(name).stem}"
    right = f"use one of {', '.join(profile_names()) or 'none yet'}, the path of a .json file, or {make}"
    raise DmsflowError(f"profile {name}", "is unknown", right)


def load_profile(name: str) -> Profile:
    """Read a profile by name or path.

    Raises:
        DmsflowError: there is none, or its file is damaged.
    """
    path, again = find_profile(name), "measure it again: dmsflow profile"
    profile = read_record(path, Profile, name="a profile", right="give the path of a profile", again=again)
    if profile.schema != SCHEMA:
        raise DmsflowError(path, f"has schema {profile.schema}", f"this version reads schema {SCHEMA}")
    if flaw := _find_flaw(profile):
        raise DmsflowError(path, flaw, again)
    return profile


def save_profile(path: Path, profile: Profile) -> Path:
    """Write a profile atomically."""
    write_atomically(path, encode_profile(profile))
    return path


def encode_profile(profile: Profile) -> bytes:
    """The text of its file: a line for each field, and one for each table and each checked network."""
    lines = []
    for name, field in msgspec.structs.asdict(profile).items():
        text = msgspec.json.encode(field)
        if name in ("tables", "checked") and field:
            text = b"[\n  " + b",\n  ".join(map(msgspec.json.encode, field)) + b"\n ]"
        lines.append(b' "%s": %s' % (name.encode(), text))
    return b"{\n" + b",\n".join(lines) + b"\n}\n"


def _find_flaw(profile: Profile) -> str | None:
    """What no measurement could have written, in words; None: the profile is sound."""
    if not profile.tables:
        return "has no tables"
    block, count = Counter(table.block for table in profile.tables).most_common(1)[0]
    if count > 1:
        return f"has two tables of {block!r}"
    if not math.isfinite(profile.drift_percent):
        return "has a drift that is not a number"
    for table in profile.tables:
        if flaw := _find_table_flaw(table, profile.steps.get(table.block.partition(" ")[0], Granularity())):
            return f"table {table.block!r} {flaw}"
    if any(row.measured_ms == 0 for row in profile.checked):
        return "was checked on a network that took no time"
    return None


def _find_table_flaw(table: Table, steps: Granularity) -> str | None:
    rows, columns = max(1, len(table.inputs)), max(1, len(table.outputs))
    for name, grid in (("ms", table.ms), ("spread_percent", table.spread_percent)):
        if len(grid) != rows or any(len(row) != columns for row in grid):
            return f"has {name} of another shape than its {rows} inputs and {columns} outputs"
    for name, widths, step in (("inputs", table.inputs, steps.inputs), ("outputs", table.outputs, steps.outputs)):
        if any(round_up(low, step) >= round_up(high, step) for low, high in pairwise(widths)):
            return f"has {name} that do not rise from step to step"
    if any(low > high for line in (*table.ms, *zip(*table.ms, strict=True)) for low, high in pairwise(line)):
        return "has a time that falls with a width"
    return None
