"""Measures a device: writes the profile that the search predicts latency with.

Networks of `microbenchmarks` are timed some at a time, in rounds and beside a reference (`timing`), at the
widths that `grid` chooses; it also fits a table to the times of each block. Every batch is saved, so an
interrupted profile can be resumed. At the end the profile is checked on whole networks that gave it no
point.
"""

from __future__ import annotations

import itertools
import math
import re
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dmsflow import terminal
from dmsflow.deploying.target import Target, load_target
from dmsflow.environment import describe_environment
from dmsflow.errors import DmsflowError
from dmsflow.files import UNREADABLE, locked, read_bytes, write_atomically
from dmsflow.measuring import devices, grid, microbenchmarks
from dmsflow.measuring.devices import Access, Measure
from dmsflow.measuring.grid import Plane
from dmsflow.measuring.microbenchmarks import MicroBenchmark, Sum, isolate_block, isolate_overhead
from dmsflow.measuring.random_weights import write_random
from dmsflow.measuring.timing import History, Stopwatch, Time
from dmsflow.network import profile
from dmsflow.network.blocks import FusedBlock
from dmsflow.network.latency import build_latency
from dmsflow.network.network import Layer, Network
from dmsflow.network.profile import Checked, Granularity, Profile, Table
from dmsflow.plugin import load_plugin
from dmsflow.settings import ProfileSettings, with_present_names
from dmsflow.terminal import format_threads, print_line

NAME = re.compile(r"[^\W_][\w.-]*")
BATCH = 24  # micro-benchmarks timed in one process
KEPT = ("target", "precision", "device", "threads")  # settings that a profile has as well
NOT_COMPARED = ("timeout_minutes", "check", "seed", "python")  # settings that measured times do not depend on
PASSES = 3  # over all times that are noisy
THROTTLED_PERCENT = 5.0  # slower at the end than at the start: worth a line
STEP_RUNS = 4  # times as many runs as of other points: steps are found from small differences
CHECK_SPREAD = 0.35  # standard deviation of the log widths of a network to check
CHECK_RATIOS = 0.6, 4.0  # between which the widths of one are scaled as a whole


class State(History, kw_only=True):
    """What has been measured so far: the file from which an interrupted profile is resumed.

    Attributes:
        settings: of the run; one with others does not resume it.
        add: whether it adds to a profile.
        times: by the key of the micro-benchmark.
    """

    settings: dict[str, Any]
    add: bool = False
    times: dict[str, Time] = msgspec.field(default_factory=dict)

    def sum_up(self, terms: Sum) -> tuple[float, float, float]:
        """The time of a sum in ms, how far off it may be (ms, up to a factor), and the largest spread in it (%)."""
        times = [(count, self.times[benchmark.key]) for benchmark, count in terms.items()]
        parts_ms = [count * time.ms for count, time in times]
        noise_ms = math.sqrt(sum(ms**2 for ms in parts_ms))  # each time is off by a part of itself
        return sum(parts_ms), noise_ms, max(time.spread_percent for count, time in times if count)


@dataclass
class Session:
    """A device, the files written for it, and the results so far."""

    settings: ProfileSettings
    target: Target
    folder: Path
    saved: Path
    state: State
    watch: Stopwatch
    asked: dict[str, MicroBenchmark] = field(default_factory=dict)  # by key


def measure_profile(
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
        command: that runs this again.
        add: keep what an earlier profile has and measure what it lacks.

    Raises:
        DmsflowError: no such device or target, or one that cannot run the micro-benchmarks; a profile of
            this name is there, or belongs to another device.
    """
    path, _ = _paths(name, out)
    with locked(out):
        _measure(settings, name, out, command, resume=resume, force=force, add=add)
    return path


def _paths(name: str, out: Path) -> tuple[Path, Path]:
    """Of the profile, and of what an interrupted run has measured."""
    if not NAME.fullmatch(name):
        raise DmsflowError(
            f"--name {name}", "is not a name", "use letters, digits, dashes and underscores, such as pi5"
        )
    return out / f"{name}.json", out / f"{name}.partial"


def _measure(
    settings: ProfileSettings, name: str, out: Path, command: tuple[str, ...], *, resume: bool, force: bool, add: bool
) -> None:
    path, saved = _paths(name, out)
    begun = saved.exists() and not force
    if begun and not resume:
        raise DmsflowError(saved, "is of an interrupted run", "use --resume to continue, or --force to start again")
    if resume and not add and path.exists() and not begun:
        profile.load_profile(str(path))
        return  # it was done
    state = _load_state(saved, settings) if begun else State(settings=msgspec.to_builtins(settings), add=add)
    before = _load_before(path, settings, free=force or begun, add=add or state.add)
    built_for = _load_target(settings)
    missing = grid.find_missing(settings, before)
    if not missing:
        if before and not path.exists():
            profile.save_profile(path, before)
        return
    if path.exists():
        _save(saved, state)  # or --resume would take the old profile for this one
    built_for = msgspec.structs.replace(built_for, runner=devices.runner_of(built_for, settings))
    access = Access(python=settings.python, runner_file=settings.runner_file)
    with tempfile.TemporaryDirectory() as folder, devices.connect(settings.device, access) as measure:
        watch = start_stopwatch(settings, built_for, measure, Path(folder), state)
        if before:
            _check_same_device(path, before, watch)
        session = Session(settings, built_for, Path(folder), saved, state, watch)
        steps = _find_steps(session, {block.kind for block, _ in missing}, before.steps if before else {})
        planes = grid.lay_out(missing, settings, steps, before)
        rows = itertools.chain.from_iterable(plane.rows() for plane in planes)
        _measure_all(session, [isolate_overhead(), *itertools.chain.from_iterable(rows)], settings.runs)
        tables = tuple(_fit_table(state, plane) for plane in planes)
        measured = Profile(
            name=name,
            method=watch.machine.method,
            **{name: getattr(settings, name) for name in KEPT},
            runtime=watch.runtime,
            overhead_ms=max(0.0, state.sum_up(isolate_overhead())[0]),
            steps=steps,
            tables=tables,
            drift_percent=watch.drift_percent(),
            commands=(command,),
            environment=_describe_device(state),
        )
        if before:
            measured = _add_to(before, measured)
        checked = (*measured.checked, *_check(session, measured))
    measured = msgspec.structs.replace(measured, checked=checked)
    profile.save_profile(path, measured)
    saved.unlink(missing_ok=True)
    _print_errors(measured)


def plan_profile(settings: ProfileSettings, name: str, out: Path, *, add: bool = False) -> list[tuple[str, str]]:
    """What `measure_profile` would do, as rows of a label and a value; its errors, where known before measuring."""
    path, _ = _paths(name, out)
    before = _load_before(path, settings, free=True, add=add)
    built_for = _load_target(settings)
    devices.find(settings.device)
    missing = grid.find_missing(settings, before)
    steps = before.steps if before else {"binary_conv": Granularity(inputs=32, outputs=8)}
    planes = grid.lay_out(missing, settings, steps, before)
    count = len({benchmark for plane in planes for row in plane.rows() for terms in row for benchmark in terms})
    pixels = ", ".join(map(str, settings.resolutions))
    networks = settings.check * len(settings.networks) * len(settings.resolutions)
    return [
        ("target", f"{built_for.name}: {built_for.description}"),
        ("runner", settings.runner_file or settings.runner or " or ".join(built_for.runners)),
        ("device", f"{settings.device}, {format_threads(settings.threads)}"),
        ("fused blocks", f"{len(missing)} of {', '.join(settings.networks)} at {pixels} pixels"),
        ("micro-benchmarks", f"about {count}, {settings.runs} runs of each"),
        ("check", f"{networks} held-out networks"),
        ("writes", str(path)),
    ]


# --- what an earlier run left -------------------------------------------------------------------


def _load_before(path: Path, settings: ProfileSettings, *, free: bool, add: bool) -> Profile | None:
    """The profile to add to, if that was asked for; if not, there must be none, unless its name is free all the same."""
    if not add:
        if path.exists() and not free:
            right = "use --add to measure missing blocks, --force to measure everything again, or another --name"
            raise DmsflowError(path, "already exists", right)
        return None
    # Else the one that its name stands for, which stays as it is.
    before = profile.load_profile(str(path) if path.exists() else path.stem)
    for name in KEPT:
        old, new = getattr(before, name), getattr(settings, name)
        if old != new:
            where = f"profile {before.title}"
            raise DmsflowError(where, f"has {name} {old}, not {new}", f"use --{name} {old}, or another --name")
    return before


def _check_same_device(path: Path, before: Profile, watch: Stopwatch) -> None:
    """An address such as "local" is another device elsewhere: times of two are never mixed in one profile."""
    then, now = (before.environment.get("processor"), before.runtime), (watch.machine.processor, watch.runtime)
    if then != now:
        what = f"was measured on {then[0]} with {then[1]}, and this is {now[0]} with {now[1]}"
        raise DmsflowError(path, what, "use another --name, or --force to measure everything again")


def _add_to(before: Profile, measured: Profile) -> Profile:
    """A profile with what was measured later."""
    replaced = {table.block for table in measured.tables}
    return msgspec.structs.replace(
        measured,
        overhead_ms=before.overhead_ms,
        tables=(*(table for table in before.tables if table.block not in replaced), *measured.tables),
        checked=before.checked,
        drift_percent=max(measured.drift_percent, before.drift_percent),
        commands=(*before.commands, *measured.commands),
    )


def _load_target(settings: ProfileSettings) -> Target:
    built_for = load_target(settings.target)
    exporter = load_plugin("exporters", built_for.exporter)
    if settings.precision == "float" and not hasattr(exporter, "write_float"):
        right = "use --target onnx or onnx-int8 for --precision float"
        raise DmsflowError(f"target {built_for.name}", "takes binary networks only", right)
    if settings.precision == "binary" and not hasattr(exporter, "write"):
        raise DmsflowError(f"target {built_for.name}", "takes float32 networks only", "use it with --precision float")
    return built_for


def _save(saved: Path, state: State) -> None:
    write_atomically(saved, msgspec.json.encode(state))


def _load_state(saved: Path, settings: ProfileSettings) -> State:
    try:
        state = msgspec.json.decode(read_bytes(saved), type=State)
    except UNREADABLE as error:
        raise DmsflowError(saved, f"is damaged ({error})", "start again with --force") from error
    recorded, wanted = with_present_names(state.settings), msgspec.json.decode(msgspec.json.encode(settings))
    if any(recorded.get(name) != wanted[name] for name in wanted if name not in NOT_COMPARED):
        raise DmsflowError(saved, "was started with other options", "use the same options, or start again with --force")
    return state


# --- measuring ----------------------------------------------------------------------------------


def start_stopwatch(
    settings: ProfileSettings, built_for: Target, measure: Measure, folder: Path, history: History
) -> Stopwatch:
    """A stopwatch that knows its device's baseline; its reference, a network of middling size, is written to `folder`."""
    layer = Layer(name="reference", op="binary_conv", inputs=("bits",), width=64, kernel=3, padding=1)
    (reference, *_) = isolate_block(FusedBlock((layer,), microbenchmarks.CHANNELS, 16, 64, 64), 64, 64)
    file = write_random(built_for, settings.precision, reference.network, {}, folder / "reference")
    until = time.monotonic() + 60 * settings.timeout_minutes
    watch = Stopwatch(measure, file, settings.threads, history, until)
    watch.calibrate()
    return watch


def _measure_all(session: Session, sums: Iterable[Sum], runs: int) -> None:
    """Time every micro-benchmark in so many runs, then those again whose times are noisy."""
    session.asked |= {benchmark.key: benchmark for terms in sums for benchmark in terms}
    times, watch = session.state.times, session.watch
    missing = [key for key in session.asked if key not in times]
    # In a random order, so that a drift of the device is no slope of a table.
    order = np.random.default_rng(0).permutation(len(missing))
    title, keys = "profile", [missing[index] for index in order]
    for _ in range(1 + PASSES):
        with terminal.track(title, total=len(keys), unit="micro-benchmark") as track:
            for begin in range(0, len(keys), BATCH):
                batch = keys[begin : begin + BATCH]
                _measure_batch(session, batch, runs)
                track.advance(len(batch))
        title, keys = "profile: noisy ones again", [key for key in session.asked if watch.is_noisy(times[key])]
        if not keys or time.monotonic() > watch.until:
            return


def _measure_batch(session: Session, keys: Sequence[str], runs: int) -> None:
    """Time some micro-benchmarks and save; of two times of one the surer is kept."""
    state, watch, files = session.state, session.watch, []
    for key in keys:
        network, path = session.asked[key].network, session.folder / key
        file = write_random(session.target, session.settings.precision, network, {}, path)
        # Primed, or what ran before it would displace more of one file's memory than of another's.
        files.append(msgspec.structs.replace(file, primers=1))
    for key, measured in zip(keys, watch.time_files(files, runs), strict=True):
        before = state.times.get(key)
        worse = before and watch.is_noisy(measured) and measured.baseline_ms > before.baseline_ms
        if before is None or (watch.is_noisy(before) and not worse):
            state.times[key] = measured
    _save(session.saved, state)
    for file in files:
        Path(file.path).unlink()


def _find_steps(session: Session, kinds: Collection[str], known: Mapping[str, Granularity]) -> dict[str, Granularity]:
    """The steps of the kernels, by measuring unless they are known: all widths of one step take the same time."""
    lines = grid.isolate_steps(session.settings.channels)
    lines = {(kind, side): line for (kind, side), line in lines.items() if kind in kinds and kind not in known}
    _measure_all(session, itertools.chain.from_iterable(lines.values()), STEP_RUNS * session.settings.runs)
    steps: dict[str, dict[str, int]] = {}
    for (kind, side), line in lines.items():
        steps.setdefault(kind, {})[side] = grid.find_step([session.state.sum_up(terms)[0] for terms in line])
    return {**known, **{kind: Granularity(**sides) for kind, sides in steps.items()}}


def _fit_table(state: State, plane: Plane) -> Table:
    """A block's times, evened out where noise would let them fall with a width."""
    cells = np.array([[state.sum_up(terms) for terms in row] for row in plane.rows()])
    ms, noise_ms, spread = np.moveaxis(cells, -1, 0)
    fitted = grid.fit_rising_table(ms, 1 / noise_ms**2)
    return Table(
        block=plane.block.name,
        inputs=plane.inputs,
        outputs=plane.outputs,
        ms=tuple(tuple(round(cell, 6) for cell in row) for row in fitted.tolist()),
        spread_percent=tuple(tuple(round(cell, 2) for cell in row) for row in spread.tolist()),
    )


def _describe_device(state: State) -> dict[str, Any]:
    """The device, and what measured it."""
    first, last = state.machine[0], state.machine[-1]
    here = describe_environment()
    facts: dict[str, Any] = msgspec.to_builtins(last) | {"temperature_before_c": first.temperature_c}
    del facts["method"]  # the profile has it itself
    facts |= {"versions": {"dmsflow": here["versions"]["dmsflow"]}, "commit": here["commit"], "date": here["date"]}
    return facts


# --- the profile's own error --------------------------------------------------------------------


def _check(session: Session, measured: Profile) -> list[Checked]:
    """Networks of random widths, predicted and then measured."""
    settings = session.settings
    draw = np.random.default_rng(settings.seed)
    rows: list[Checked] = []
    networks = grid.load_networks(settings)
    with terminal.track("profile: check", total=settings.check * len(networks), unit="network") as track:
        for network in networks:
            latency = build_latency(network, measured)
            for _ in range(settings.check):
                widths = draw_widths(network, latency.widest(), draw)
                file = write_random(session.target, settings.precision, network, widths, session.folder / "check")
                (measured_time,) = session.watch.time_files([file], settings.runs)
                row = Checked(
                    network=network.name,
                    resolution=network.resolution,
                    widths=tuple(widths.values()),
                    predicted_ms=round(latency(widths), 6),
                    measured_ms=round(measured_time.ms, 6),
                )
                rows.append(row)
                track.advance(note=f"{network.name}, {row.error_percent:+.1f} %")
    return rows


def draw_widths(network: Network, widest: dict[str, int], draw: np.random.Generator) -> dict[str, int]:
    """Widths of a network to check: one ratio for all, and a deviation from it for every layer."""
    low, high = np.log(CHECK_RATIOS)
    ratio = np.exp(draw.uniform(low, high) + CHECK_SPREAD * draw.standard_normal(len(network.widths)))
    return {
        name: min(max(1, round(base * float(factor))), widest[name])
        for (name, base), factor in zip(network.widths.items(), ratio, strict=True)
    }


def _print_errors(measured: Profile) -> None:
    errors = [abs(row.error_percent) for row in measured.checked]
    if errors:
        near = sum(error <= 10 for error in errors)
        print_line(
            f"{measured.name}: median error {np.median(errors):.1f} % on {len(errors)} held-out networks "
            f"({near} of {len(errors)} within 10 %)"
        )
    if measured.drift_percent > THROTTLED_PERCENT:
        print_line(
            f"{measured.name}: the device became {measured.drift_percent:.0f} % slower while it was measured, so it "
            "throttles or is busy: cool or free it, and measure again with --force"
        )
