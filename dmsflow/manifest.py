"""The JSON file that each stage passes to the next, with the hashes of all files that it names.

A manifest is written last and by rename: where it stands, its stage is done. Loading verifies the
schema, the stage and every artifact, so no stage works on a file that changed underneath it.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import re
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, get_args

import msgspec

from dmsflow import settings as records
from dmsflow.environment import describe_environment
from dmsflow.errors import DmsflowError, require_utf8, within_memory
from dmsflow.files import (
    PARTIAL,
    Artifact,
    describe_artifact,
    hash_file,
    locked,
    read_record,
    remove_partials,
    write_atomically,
)
from dmsflow.network.network import Network, check_size
from dmsflow.plugin import check_trusted
from dmsflow.preset import read_toml
from dmsflow.settings import Data, anchored, find_difference, with_present_names

SCHEMA = 1
Stage = Literal["search", "train", "export", "bench"]
STAGES: tuple[Stage, ...] = get_args(Stage)
PACKAGES = {"search": "searching", "train": "training", "export": "deploying", "bench": "measuring"}  # of the stages
AGAIN = "run the stage that writes it again"
FORCED = ".forced"  # ends the name of the folder of a run with --force, until that is finished

RECORDS: dict[str, type[msgspec.Struct]] = {
    "search": records.SearchSettings,
    "train": records.TrainSettings,
    "export": records.ExportSettings,
    "bench": records.BenchSettings,
}
# What metrics and environments have under these names; a name that ends in a unit has a number, or None.
KINDS: dict[str, Any] = {
    **dict.fromkeys(("comparison", "layers", "predicted", "operations", "pieces"), list[dict[str, Any]]),
    **dict.fromkeys(
        ("continued_from", "learned", "slopes", "before", "after", "machine", "profile", "versions"), dict[str, Any]
    ),
    **dict.fromkeys(("chosen", "name", "date", "device", "precision"), str),
    "processor": str | None,
    "remarks": list[str],
    **dict.fromkeys(("budgets_used", "least", "most"), dict[str, float] | None),
    "widths": dict[str, int],
    "runtimes": dict[str, str],
    "threads": int,
    **dict.fromkeys(("file_bytes", "latency_ms_median", "latency_ratio_to_float32", "latency_ratio_to_int8"), float),
}
NUMBER = re.compile(
    r"\w*_(mib|kib|m|ms|bytes|percent|images)|((float32|int8)_)?latency_ms_\w+|seconds|epochs|loss(_difference)?|standard_error"
)


class _Record(dict[str, Any]):
    """A part of a manifest; an error names what it lacks."""

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.where = where

    def __missing__(self, name: str) -> Any:
        raise DmsflowError(f"{self.where}.{name}", "is missing", "run the stage that writes the file again")


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One finished stage.

    Attributes:
        stage: which stage wrote it; `schema` is the version of this record.
        parent: the manifest it was made from, None for a search.
        command: writes this manifest again.
        settings: of the stage, as resolved (preset, options and environment applied).
        network: the whole architecture, so that later stages need no network file; a bench of a bare model file
            has none, nor widths and data, and `load_manifest` refuses it unless asked.
        widths: channels of every named width: the searched result.
        data: the data set.
        artifacts: files beside the manifest, by role ("weights", "model", "log").
        metrics: numbers, units in their names.
        environment: versions, processor, threads, commit, date.
    """

    schema: int = SCHEMA
    stage: Stage
    parent: Artifact | None = None
    command: tuple[str, ...]
    settings: dict[str, Any]
    network: Network = None  # type: ignore[assignment]
    widths: dict[str, int] = {}
    data: Data = None  # type: ignore[assignment]
    artifacts: dict[str, Artifact] = {}
    metrics: dict[str, Any]
    environment: dict[str, Any]


Link: TypeAlias = tuple[Path, Manifest]  # where a manifest lies, and what is in it
Chain: TypeAlias = list[Link]  # the search first


def load_manifest(path: Path, *stages: Stage, bare: bool = False) -> Manifest:
    """Read and verify a manifest.

    Args:
        path: the JSON file.
        stages: those that the caller can start from; none given means any.
        bare: take the bench of a bare model file too.

    Raises:
        DmsflowError: no such file, not a manifest, the wrong stage, a changed or missing file or one outside of the run,
            or code that the user has not run before.
    """
    manifest = _decode(path)
    if manifest.schema != SCHEMA:
        raise DmsflowError(path, f"has schema {manifest.schema}", f"this version reads schema {SCHEMA}")
    if stages and manifest.stage not in stages:
        raise DmsflowError(path, f"is a manifest of {manifest.stage}", f"give a manifest of {' or '.join(stages)}")
    if not (manifest.network and manifest.data):
        if manifest.stage != "bench":
            raise DmsflowError(path, "has no network or no data", AGAIN)
        if not bare:
            raise DmsflowError(
                path, "is the bench of a file without a manifest, so it has no network", "look at it with dmsflow show"
            )
    named = manifest.network.widths if manifest.network else {}
    if manifest.widths.keys() != named.keys() or any(width < 1 for width in manifest.widths.values()):
        raise DmsflowError(path, "has widths that do not fit its network", AGAIN)
    if manifest.network:
        check_size(manifest.network, manifest.widths)
    folders = [path.parent.resolve()]
    if manifest.parent and (path.parent / manifest.parent.path).exists():
        above = verify(path, manifest.parent)
        _decode(above)  # only a manifest makes its folder one of the run's
        folders.append(above.parent.resolve())
    for artifact in manifest.artifacts.values():
        file = (path.parent / artifact.path).resolve()
        # The bench of a bare file names that, wherever it lies: no stage reads it from there.
        if manifest.network and not any(file.is_relative_to(folder) for folder in folders):
            right = "move it into the folder of the manifest, or do not use this run"
            raise DmsflowError(path, f"names {artifact.path}, which is outside of the run", right)
        verify(path, artifact)
    if stages:
        _check_code(path, manifest)
    try:
        return _with_records(path, manifest)
    except RecursionError as error:
        raise DmsflowError(path, "is nested too deep", AGAIN) from error


def _check_code(path: Path, manifest: Manifest) -> None:
    """Refuse the code that a stage would run because the manifest names it: of a data set, or of a target's plug-ins."""
    name, target = manifest.data.name, str(manifest.settings.get("target"))
    names = [name if name.endswith(".py") else name.partition(":")[0]]
    if target.endswith(".toml") and Path(target).is_file():
        names += [value for value in read_toml(Path(target)).values() if isinstance(value, str)]
    for each in names:
        check_trusted(path, each)


def _decode(path: Path) -> Manifest:
    right = "give the path of a manifest that a stage wrote"
    return read_record(path, Manifest, name="a dmsflow manifest", right=right, again=AGAIN)


def _with_records(path: Path, manifest: Manifest) -> Manifest:
    """The same with records that have been checked, and whose errors name what they lack."""
    made = {name: _record(f"{path}: {name}", getattr(manifest, name)) for name in ("metrics", "environment")}
    settings, kind = with_present_names(manifest.settings), RECORDS[manifest.stage]
    try:
        msgspec.convert({name: value for name, value in settings.items() if name in kind.__struct_fields__}, kind)
    except msgspec.ValidationError as error:
        raise DmsflowError(path, f"has wrong settings ({error})", AGAIN) from error
    made |= {name: _Record(f"{path}: {name}", getattr(manifest, name)) for name in ("settings", "artifacts")}
    return msgspec.structs.replace(manifest, **made)


def _record(where: str, value: Any) -> Any:
    """Lists and dictionaries in which every value has the type that its name requires."""
    if isinstance(value, list):
        return [_record(where, each) for each in value]
    if not isinstance(value, dict):
        return value
    for name, each in value.items():
        kind = KINDS.get(name, float | None if NUMBER.fullmatch(name) else Any)
        try:
            msgspec.convert(each, kind)
        except msgspec.ValidationError as error:
            raise DmsflowError(f"{where}.{name}", str(error), "run the stage that writes the file again") from error
    return _Record(where, {name: _record(f"{where}.{name}", each) for name, each in value.items()})


def chain(path: Path, *, whole: bool = True, bare: bool = False) -> Chain:
    """A manifest and its parents, each verified.

    Args:
        path: of the last one.
        whole: False ends it where a parent is missing, as where only the export was copied to.
        bare: take the bench of a bare model file too, which has no parents.

    Raises:
        DmsflowError: one of them is missing, changed, or not a manifest.
    """
    found: Chain = [(path, load_manifest(path, bare=bare))]
    while (parent := found[0][1].parent) and (whole or (found[0][0].parent / parent.path).exists()):
        above = verify(found[0][0], parent)
        found.insert(0, (above, load_manifest(above)))
    return found


def inherited(manifests: Chain, role: str) -> Path | None:
    """The file of a role, from the last manifest of the chain that has one; None if there is none."""
    for path, each in reversed(manifests):
        if role in each.artifacts:
            return verify(path, each.artifacts[role])
    return None


def verify(manifest_path: Path, artifact: Artifact) -> Path:
    """The artifact's full path, after a check that its bytes have not changed."""
    path, writer = manifest_path.parent / artifact.path, manifest_path.name
    if not path.is_file():
        right = f"put it back, or write it again: see 'command' in {writer}"
        raise DmsflowError(path, f"is missing, but {writer} names it", right)
    if hash_file(path) != artifact.sha256:
        right = f"restore it, or write it again: see 'command' in {writer}"
        raise DmsflowError(path, f"changed after {writer} was written", right)
    return path


def save_manifest(path: Path, manifest: Manifest) -> Path:
    """Write a manifest, whole or not at all; that of a bare model file has no network, widths and data."""
    absent = () if manifest.network else ("parent", "network", "widths", "data")
    content = {name: value for name, value in msgspec.to_builtins(manifest).items() if name not in absent}
    write_atomically(path, msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
    return path


@dataclass(frozen=True)
class Done:
    """What a stage did.

    Attributes:
        artifacts: the files that it wrote, by role.
        metrics: what it found, units in the names.
        environment: what `describe_environment` cannot know.
    """

    artifacts: Mapping[str, Path]
    metrics: dict[str, Any]
    environment: dict[str, Any]


def finish_stage(
    path: Path, settings: msgspec.Struct, flow: Flow, done: Done, source: Link | None = None, **made: Any
) -> Path:
    """Write the manifest of the stage that `path` is named after, and return `path`.

    Args:
        source: the manifest that it started from, and where that lies.
        made: network, widths and data, where there is no such manifest.
    """

    def describe(file: Path) -> Artifact:
        beside = file.resolve().is_relative_to(path.parent.resolve())
        return describe_artifact(file, path.parent if beside else home(path.parent))

    parent = None
    if source:
        parent, above = describe(source[0]), source[1]
        made = {"network": above.network, "widths": above.widths, "data": above.data}
    artifacts = {role: describe(file) for role, file in done.artifacts.items()}
    made |= {"stage": path.stem, "parent": parent, "command": flow.command, "settings": msgspec.to_builtins(settings)}
    made |= {"artifacts": artifacts, "metrics": done.metrics, "environment": describe_environment(**done.environment)}
    return save_manifest(path, Manifest(**made))


@dataclass(frozen=True)
class Flow:
    """How a stage is called.

    Attributes:
        command: writes its manifest again.
        resume: leave the stage if it is finished, and otherwise start where an interrupted one stopped.
        force: do it again, and overwrite.
        download: fetch the data set if its files are missing (search).
        tensorboard: write TensorBoard's files too (search, train).
    """

    command: tuple[str, ...]
    resume: bool = False
    force: bool = False
    download: bool = False
    tensorboard: bool = False


def is_finished(
    path: Path, settings: msgspec.Struct, flow: Flow, data: Data | None = None, source: Path | None = None
) -> bool:
    """Whether the stage that writes `path` is already done with exactly these settings, from `data` or `source` as it is.

    Raises:
        DmsflowError: runtimes cannot read the folder's name, or it is done and the user asked neither to resume nor to
            overwrite, or it was made otherwise or from another source.
    """
    require_utf8("--out", str(path.parent.absolute()))
    if not path.exists() or flow.force:
        return False
    if not flow.resume:
        raise DmsflowError(path, "already exists", "use --force to overwrite it, or --out for another folder")
    if source and not is_made_from(source, path):
        return False
    done, right = load_manifest(path, bare=True), "use --resume with {}, or --force to repeat the stage"
    if data and anchored(data) != done.data:
        what = f"was made from {done.data.name} with other data options"
        raise DmsflowError(path, what, right.format("the same options"))
    if difference := find_change(done, settings):
        name, before, now = difference
        raise DmsflowError(path, f"was made with {name} {before}, not {now}", right.format(f"{name} {before}"))
    return True


def is_made_from(source: Path, path: Path) -> bool:
    """Whether a finished stage is of this source; False: of what was there before. Hours of training are kept then too.

    Raises:
        DmsflowError: it is of another one.
    """
    done = _decode(path)
    named = done.parent or done.artifacts["model"]
    if named.sha256 == hash_file(source):
        return True
    if (path.parent / named.path).resolve() != source.resolve():
        right = "use --out for another folder, or --force to repeat the stage"
        raise DmsflowError(path, f"was made from {os.path.normpath(path.parent / named.path)}, not {source}", right)
    return done.stage == "train"


def find_change(done: Manifest, settings: msgspec.Struct, ignored: Collection[str] = ()) -> tuple[str, Any, Any] | None:
    """The first setting that differs from a finished stage: its name, the old value, and the new one.

    Where it ran does not matter but to a bench, whose time is judged anew; nor does a setting that the manifest of an
    earlier version does not have.
    """
    free = {"require_ms"} if done.stage == "bench" else {"device", "threads"}
    recorded = with_present_names(done.settings)
    unknown = set(settings.__struct_fields__) - set(recorded)
    return find_difference(recorded, settings, {*free, *unknown, *ignored})


def run_folder(network: str, dataset: str) -> Path:
    """Where a run is written that has no other folder; of paths and arguments only the name is taken.

    >>> run_folder("nets/small.py", "image-folder:photos").as_posix()
    'runs/small-image-folder'
    >>> run_folder("torchvision:resnet18", "cifar10").as_posix()
    'runs/resnet18-cifar10'
    """
    return Path("runs") / f"{Path(network.rpartition(':')[2]).stem}-{Path(dataset.partition(':')[0]).stem}"


class StageModule(Protocol):
    """What the module of each stage has: search, train, export and bench.

    `source` is what the stage starts from: the data of a search, the path of a manifest (or of a bare model file).
    """

    def run_stage(self, source: Any, settings: Any, out: Path, flow: Flow) -> Path:
        """Do the stage, and return the path of its manifest in `out`."""

    def plan_stage(self, source: Any, settings: Any, out: Path) -> list[tuple[str, str]]:
        """What `run_stage` would do, as rows of a table; raises where it cannot be done. Writes nothing."""


def import_stage(stage: str) -> StageModule:
    """The module of a stage; imported when it is needed, for some need torch."""
    return importlib.import_module(f"dmsflow.{PACKAGES[stage]}.{stage}")


# --- a run in its folder ------------------------------------------------------------------------


def home(folder: Path) -> Path:
    """The folder where the results of a run will be that now writes to `folder`."""
    return home(folder.parent) if folder.suffix in (FORCED, PARTIAL) else folder


def perform(stages: Sequence[str], source: Any, settings: Mapping[str, Any], out: Path, flow: Flow) -> Path:
    """Do one or all stages in a folder, one after the other; return the path of the last manifest.

    What is repeated with --force is written to a folder of its own, and takes the place of the old files at the end.
    So the old result stands until then, and --resume continues the new one after an interruption.

    Args:
        source: of the first stage.
        settings: by stage.

    Raises:
        DmsflowError: another process works in the folder, or what a stage raises.
    """
    forced = out / f"{stages[0] if len(stages) == 1 else 'run'}{FORCED}"
    last = f"{stages[-1]}.json"
    several = sys.modules.get("dmsflow.training.processes")  # that torchrun may have started
    first = several is None or several.is_first()
    with contextlib.ExitStack() as stack:
        with several.first_ahead() if several else contextlib.nullcontext():
            if first:
                stack.enter_context(locked(out))
                _prepare(stages, forced, last, flow)
        if not forced.exists():
            return _do_each(stages, source, settings, out, flow)
        try:
            _do_each(stages, source, settings, forced, replace(flow, force=False, resume=True))
        finally:  # done too where a budget was missed
            if first:
                put_in_place(stages, forced, last)
                with contextlib.suppress(OSError):  # which is that it is gone, or that there is something to resume
                    forced.rmdir()
    return out / last


def _do_each(stages: Sequence[str], source: Any, settings: Mapping[str, Any], out: Path, flow: Flow) -> Path:
    for stage in stages:
        with within_memory():
            source = import_stage(stage).run_stage(source, settings[stage], out, flow)
    return Path(source)


def _prepare(stages: Sequence[str], forced: Path, last: str, flow: Flow) -> None:
    """Make the folder of a run with --force where there is an old result, or see which one was interrupted."""
    out = forced.parent
    put_in_place(stages, forced, last)
    if flow.force:
        shutil.rmtree(forced, ignore_errors=True)
        if any((out / f"{stage}.json").exists() for stage in stages):
            forced.mkdir()
        return
    remove_partials(forced)
    if forced.exists() and not flow.resume:
        right = "use --resume to continue it, or --force to start again"
        raise DmsflowError(forced, "is a run with --force that was interrupted", right)
    for other in set(out.glob(f"*{FORCED}")) - {forced} if flow.resume else ():
        what = f"is a run of {other.stem} with --force that was interrupted"
        raise DmsflowError(other, what, f"continue it first with dmsflow {other.stem} and --resume, or delete it")


def put_in_place(stages: Sequence[str], forced: Path, last: str) -> None:
    """Replace the old files, if the run is finished. The last manifest goes last: killed before that, it is done again."""
    out, whole = forced.parent, forced.parent / f".{last}.whole"
    if (forced / last).exists():
        for folder, stage in itertools.product((out, forced), stages):
            for stale in folder.glob(f"{stage}*.checkpoint"):
                stale.unlink()
        for new in sorted(forced.iterdir(), key=lambda path: path.name == last):
            if (old := out / new.name).is_dir():
                shutil.rmtree(old)
            new.replace(whole if new.name == last else old)
    if whole.exists():  # an empty folder alone would be a run that has begun
        if forced.exists():
            forced.rmdir()
        whole.replace(out / last)
