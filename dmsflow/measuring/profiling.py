"""Measures a device: writes the profile that the search predicts latency with.

Probes (see `probes`) are timed some at a time, turn by turn in one process and beside a reference
(see `stopwatch`); at which widths, and what table fits their times, `fitting` knows. Every batch is
saved, so an interrupted profile goes on. At its end the profile is checked on whole networks that
gave it no point.
"""

from __future__ import annotations

import datetime
import hashlib
import math
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dmsflow import plugin, terminal
from dmsflow.deploying import folding, target
from dmsflow.deploying.target import Target
from dmsflow.environment import describe_environment
from dmsflow.errors import DmsflowError
from dmsflow.files import write_atomically
from dmsflow.measuring import devices, grid, microbenchmarks
from dmsflow.measuring.devices import Access, File, Machine, Measure
from dmsflow.measuring.grid import Plane
from dmsflow.measuring.microbenchmarks import Probe, Sum
from dmsflow.measuring.timing import Stopwatch, Time
from dmsflow.network import latency, profile
from dmsflow.network.blocks import FusedBlock
from dmsflow.network.latency import build_latency
from dmsflow.network.network import Layer, Network
from dmsflow.network.profile import Checked, Granularity, Profile, Table
from dmsflow.settings import ProfileSettings
from dmsflow.terminal import spelled_threads

BATCH = 24  # probes measured in turns
FREE = ("patience_minutes", "check", "seed", "python")  # settings that measured times do not depend on
PASSES = 3  # over all probes that are doubtful
THROTTLED_PERCENT = 5.0
STEP_RUNS = 4  # times as many runs as of other probes: steps are told from small differences
CHECK_SPREAD = 0.35  # standard deviation of the log widths of a network to check
CHECK_RATIOS = 0.6, 4.0


class State(msgspec.Struct, kw_only=True):
    """What has been measured so far: the file that an interrupted profile goes on from.

    Attributes:
        settings: of the run; another one does not go on from here.
        times: by the key of the probe.
        level_ms, levels_ms, machine: as in `Stopwatch`.
    """

    settings: ProfileSettings
    times: dict[str, Time] = {}
    level_ms: float | None = None
    levels_ms: list[float] = []
    machine: tuple[Machine, ...] = ()


@dataclass
class Session:
    """A device, the files written for it, and what it has told."""

    settings: ProfileSettings
    aim: Target
    folder: Path
    saved: Path
    state: State
    watch: Stopwatch
    asked: dict[str, Probe] = field(default_factory=dict)  # by key


def run(
    settings: ProfileSettings,
    name: str,
    out: Path,
    *,
    command: tuple[str, ...],
    resume: bool = False,
    force: bool = False,
    add: bool = False,
) -> Path:
    """Measure a device and write `out/name.json`.

    Args:
        settings: what to cover, and where.
        name: of the profile.
        out: folder to write to.
        command: that runs this again.
        resume: go on where an interrupted one stopped.
        force: overwrite an earlier profile.
        add: keep what an earlier profile has and measure what it lacks.

    Raises:
        DmsflowError: no such device or target, or one that cannot run the probes; a profile of this
            name is there, or belongs to another device.
    """
    path, saved = out / f"{name}.json", out / f"{name}.partial"
    if resume and not add and path.exists() and not saved.exists():
        profile.load_profile(str(path))
        return path  # it was done
    before = _before(path, settings, free=force or (resume and saved.exists()), add=add)
    aim = _aim(settings)
    wanted = grid.wanted(settings, before)
    if not wanted:
        return path
    state = _state(saved, settings, resume=resume)
    aim = msgspec.structs.replace(aim, runner=devices.runner_of(aim, settings))
    access = Access(python=settings.python, runner_file=settings.runner_file)
    with tempfile.TemporaryDirectory() as folder, devices.connect(settings.device, access) as measure:
        watch = stopwatch(settings, aim, measure, Path(folder), state)
        if before:
            _check_same_device(path, before, watch)
        session = Session(settings, aim, Path(folder), saved, state, watch)
        steps = before.steps if before else _steps(session)
        planes = grid.planes(wanted, settings, steps, before)
        sums = (total for plane in planes for total in plane.sums())
        _measure_all(session, [microbenchmarks.overhead(), *sums], settings.runs)
        measured = _assembled(session, name, steps, [_table(session, plane) for plane in planes], before, command)
        measured = msgspec.structs.replace(measured, checked=(*measured.checked, *_check(session, measured)))
    profile.save_profile(path, measured)
    saved.unlink(missing_ok=True)
    _tell(measured)
    return path


def _assembled(
    session: Session,
    name: str,
    steps: dict[str, Granularity],
    tables: Sequence[Table],
    before: Profile | None,
    command: tuple[str, ...],
) -> Profile:
    """The profile, with what it had before."""
    settings, drift = session.settings, session.watch.drift_percent()
    fresh = Profile(
        name=name,
        method=session.watch.machine[-1].method,
        target=settings.target,
        precision=settings.precision,
        device=settings.device,
        threads=settings.threads,
        runtime=session.watch.runtime,
        overhead_ms=max(0.0, _ms(session.state, microbenchmarks.overhead())),
        steps=steps,
        tables=tuple(tables),
        drift_percent=drift,
        commands=(command,),
        environment=_environment(session.state),
    )
    if before is None:
        return fresh
    measured = {table.block for table in tables}
    kept = tuple(table for table in before.tables if table.block not in measured)
    return msgspec.structs.replace(
        fresh,
        overhead_ms=before.overhead_ms,
        tables=(*kept, *tables),
        checked=before.checked,
        drift_percent=max(drift, before.drift_percent),
        commands=(*before.commands, command),
    )


def plan(settings: ProfileSettings, name: str, out: Path, *, add: bool = False) -> list[tuple[str, str]]:
    """What `run` would do, as rows of a label and a value.

    Raises:
        DmsflowError: as `run`, for what is known before measuring.
    """
    path = out / f"{name}.json"
    before = profile.load_profile(str(path)) if add else None
    aim = _aim(settings)
    devices.find(settings.device)
    wanted = grid.wanted(settings, before)
    steps = before.steps if before else {"binary_conv": Granularity(inputs=32, outputs=8)}
    planes = grid.planes(wanted, settings, steps, before)
    count = len({probe for plane in planes for total in plane.sums() for probe in total})
    return [
        ("target", f"{aim.name}: {aim.description}"),
        ("runner", settings.runner_file or settings.runner or " or ".join(aim.runners)),
        ("device", f"{settings.device}, {spelled_threads(settings.threads)}"),
        (
            "fused blocks",
            f"{len(wanted)} of {', '.join(settings.networks)} at {', '.join(map(str, settings.resolutions))} pixels",
        ),
        ("probes", f"about {count}, {settings.runs} runs of each"),
        ("check", f"{settings.check * len(settings.networks) * len(settings.resolutions)} networks that gave no point"),
        ("writes", str(path)),
    ]


def _before(path: Path, settings: ProfileSettings, *, free: bool, add: bool) -> Profile | None:
    """The profile to add to, if that was asked for; if not, there must be none, or the name be free all the same."""
    if not add:
        if path.exists() and not free:
            right = "--add measures what it lacks, --force measures it again, --name takes another"
            raise DmsflowError(path, "is already there", right)
        return None
    before = profile.load_profile(str(path))
    for name in ("target", "precision", "device", "threads"):
        old, new = getattr(before, name), getattr(settings, name)
        if old != new:
            raise DmsflowError(path, f"has {name} {old}, not {new}", f"give --{name} {old}, or take another --name")
    return before


def _check_same_device(path: Path, before: Profile, watch: Stopwatch) -> None:
    """An address such as "local" is another device elsewhere: times of two are never mixed in one profile."""
    then, now = (before.environment.get("processor"), before.runtime), (watch.machine[-1].processor, watch.runtime)
    if then != now:
        what = f"is of {then[0]} with {then[1]}, and this is {now[0]} with {now[1]}"
        raise DmsflowError(path, what, "take another --name, or measure all of it again with --force")


def _aim(settings: ProfileSettings) -> Target:
    aim = target.load(settings.target)
    if settings.precision == "float" and not hasattr(plugin.load("exporters", aim.exporter), "write_float"):
        raise DmsflowError(
            f"target {aim.name}", "takes binary networks only", "use --target onnx for --precision float"
        )
    return aim


def _state(saved: Path, settings: ProfileSettings, *, resume: bool) -> State:
    if not resume or not saved.exists():
        return State(settings=settings)
    try:
        state = msgspec.json.decode(saved.read_bytes(), type=State)
    except msgspec.MsgspecError as error:
        raise DmsflowError(saved, f"is damaged ({error})", "begin again, without --resume") from error
    free = {name: getattr(settings, name) for name in FREE}
    if msgspec.structs.replace(state.settings, **free) != settings:
        raise DmsflowError(saved, "was begun with other options", "give the same ones, or begin again without --resume")
    return state


# --- measuring ----------------------------------------------------------------------------------


def _key(probe: Probe) -> str:
    return hashlib.sha256(msgspec.json.encode(probe)).hexdigest()[:16]


def stopwatch(settings: ProfileSettings, aim: Target, measure: Measure, folder: Path, state: State) -> Stopwatch:
    """A stopwatch that knows how fast the device is, with what an interrupted session has left.

    Its reference, a probe of middling size, is written to `folder`.
    """
    layer = Layer(name="reference", op="binary_conv", inputs=("bits",), width=64, kernel=3, padding=1)
    (probe, *_) = microbenchmarks.of_piece(FusedBlock((layer,), microbenchmarks.CHANNELS, 16, 64, 64), 64, 64)
    path = folder / f"reference{aim.suffix}"
    write(settings, aim, probe.network, {}, path)
    watch = Stopwatch(
        measure,
        File(path=str(path), runner=aim.runner),
        settings.threads,
        machine=state.machine,
        level_ms=state.level_ms or math.inf,
        levels_ms=list(state.levels_ms),
        until=time.monotonic() + 60 * settings.patience_minutes,
    )
    watch.settle()
    return watch


def _measure_all(session: Session, sums: Iterable[Sum], runs: int) -> None:
    """Measure every probe in so many runs, then those again that are doubtful."""
    session.asked |= {_key(probe): probe for each in sums for probe in each}
    times, watch = session.state.times, session.watch
    missing = [key for key in session.asked if key not in times]
    # In a random order, so that a drift of the device is no slope of a table.
    order = np.random.default_rng(0).permutation(len(missing))
    _measure_batches(session, "profile", [missing[index] for index in order], runs)
    for _ in range(PASSES):
        if time.monotonic() > watch.until:
            return
        if doubtful := [key for key in session.asked if watch.doubtful(times[key])]:
            _measure_batches(session, "profile: doubtful ones again", doubtful, runs)


def _measure_batches(session: Session, title: str, keys: Sequence[str], runs: int) -> None:
    with terminal.track(title, total=len(keys), unit="probe") as track:
        for begin in range(0, len(keys), BATCH):
            batch = keys[begin : begin + BATCH]
            _measure_batch(session, batch, runs)
            track.advance(len(batch))


def _measure_batch(session: Session, keys: Sequence[str], runs: int) -> None:
    """Measure some probes and save; of two times of a probe the surer one is kept."""
    state, watch = session.state, session.watch
    files = [_written(session, session.asked[key]) for key in keys]
    for key, seen in zip(keys, watch.times(files, runs), strict=True):
        before = state.times.get(key)
        if before is None or (
            watch.doubtful(before) and not (watch.doubtful(seen) and seen.level_ms > before.level_ms)
        ):
            state.times[key] = seen
    state.level_ms, state.levels_ms, state.machine = watch.level_ms, watch.levels_ms, watch.machine
    write_atomically(session.saved, msgspec.json.encode(state))
    for file in files:
        Path(file.path).unlink(missing_ok=True)


def _written(session: Session, probe: Probe) -> File:
    path = session.folder / f"{_key(probe)}{session.aim.suffix}"
    if not path.exists():
        write(session.settings, session.aim, probe.network, {}, path)
    # Primed, or what ran before it would displace more of one probe's memory than of another's.
    return File(path=str(path), runner=session.aim.runner, primers=1)


def write(settings: ProfileSettings, aim: Target, network: Network, widths: dict[str, int], path: Path) -> None:
    """A network with random weights, as export would write it."""
    exporter = plugin.load("exporters", aim.exporter)
    weights = folding.random_weights(network, widths)
    mean, std = (128,) * network.channels, (64.0,) * network.channels
    if settings.precision == "float":
        exporter.write_float(network, widths, weights, mean, std, path)
    else:
        exporter.write(folding.fold(network, widths, weights, mean, std), path)


# --- what the times tell ------------------------------------------------------------------------


def _ms(state: State, total: Sum) -> float:
    return sum(times * state.times[_key(probe)].ms for probe, times in total.items())


def _noise_ms(state: State, total: Sum) -> float:
    """How far off a sum of times may be, up to a factor: each is off by a part of itself."""
    return float(np.sqrt(sum((times * state.times[_key(probe)].ms) ** 2 for probe, times in total.items())))


def _table(session: Session, plane: Plane) -> Table:
    """A block's times, evened out where noise would let them fall with a width."""
    state = session.state
    ms = np.array([[_ms(state, total) for total in row] for row in plane.rows()])
    noise = np.array([[_noise_ms(state, total) for total in row] for row in plane.rows()])
    spread = [
        [max(state.times[_key(probe)].spread_percent for probe, times in total.items() if times) for total in row]
        for row in plane.rows()
    ]
    return grid.table_of(plane, ms, noise, spread)


def _steps(session: Session) -> dict[str, Granularity]:
    """The steps of the kernels, found by measuring: widths of one step take one time."""
    lines = grid.step_probes(session.settings.channels)
    _measure_all(session, [total for line in lines.values() for total in line], STEP_RUNS * session.settings.runs)
    found: dict[str, dict[str, int]] = {}
    for (op, side), line in lines.items():
        found.setdefault(op, {})[side] = grid.step_of([_ms(session.state, total) for total in line])
    return {op: Granularity(**sides) for op, sides in found.items()}


def _environment(state: State) -> dict[str, Any]:
    """The device, and what measured it."""
    first, last = state.machine[0], state.machine[-1]
    machine = msgspec.to_builtins(last)
    machine.pop("method")  # the profile says it itself
    here = describe_environment()
    return {
        **machine,
        "temperature_before_c": first.temperature_c,
        "versions": {"dmsflow": here["versions"]["dmsflow"]},
        "commit": here["commit"],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


# --- the profile's own error --------------------------------------------------------------------


def _check(session: Session, measured: Profile) -> list[Checked]:
    """Networks of random widths, predicted and then measured."""
    settings = session.settings
    draw = np.random.default_rng(settings.seed)
    rows = []
    networks = grid.networks(settings)
    with terminal.track("profile: check", total=settings.check * len(networks), unit="network") as track:
        for network in networks:
            latency = build_latency(network, measured)
            for _ in range(settings.check):
                rows.append(_checked(session, network, random_widths(network, latency.widest(), draw), latency))
                track.advance(note=f"{network.name}, {rows[-1].error_percent:+.1f} %")
    return rows


def random_widths(network: Network, widest: dict[str, int], draw: np.random.Generator) -> dict[str, int]:
    """Widths of a network to check: one ratio for all, and every layer off it."""
    low, high = np.log(CHECK_RATIOS)
    ratio = np.exp(draw.uniform(low, high) + CHECK_SPREAD * draw.standard_normal(len(network.widths)))
    return {
        name: min(max(1, round(base * float(factor))), widest[name])
        for (name, base), factor in zip(network.widths.items(), ratio, strict=True)
    }


def _checked(session: Session, network: Network, widths: dict[str, int], latency: latency.Latency) -> Checked:
    path = session.folder / f"check{session.aim.suffix}"
    write(session.settings, session.aim, network, widths, path)
    (seen,) = session.watch.times([File(path=str(path), runner=session.aim.runner)], session.settings.runs)
    path.unlink()
    return Checked(
        network=network.name,
        resolution=network.resolution,
        widths=tuple(widths.values()),
        predicted_ms=round(latency(widths), 6),
        measured_ms=round(seen.ms, 6),
    )


def _tell(measured: Profile) -> None:
    errors = [abs(row.error_percent) for row in measured.checked]
    if errors:
        near = sum(error <= 10 for error in errors)
        print(
            f"{measured.name}: on {len(errors)} networks that gave no point the median error is {np.median(errors):.1f} %, "
            f"{near} of them are within 10 %",
            file=sys.stderr,
        )
    if measured.drift_percent > THROTTLED_PERCENT:
        print(
            f"{measured.name}: the device became {measured.drift_percent:.0f} % slower while it was measured, so it "
            "throttles or is busy: cool or free it, and measure again with --force",
            file=sys.stderr,
        )
