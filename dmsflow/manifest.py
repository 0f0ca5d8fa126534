"""What passes between stages: one JSON file each, with the hashes of all that it names.

A manifest is written last and by rename: where it stands, its stage is done. Loading verifies the
schema, the stage and every artifact, so no stage works on a file that changed underneath it.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from dmsflow.errors import DmsflowError
from dmsflow.network import Network

SCHEMA = 1
Stage = Literal["search", "train", "export", "bench"]
RUNTIMES = ("numpy", "torch", "onnx", "onnxruntime", "larq-compute-engine", "tensorflow", "tensorflow-cpu")


class Artifact(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file a stage wrote (or its parent manifest); `path` is relative to the manifest's folder."""

    path: str
    sha256: str
    size_bytes: int


class Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which images a chain works on: enough to load the same ones again.

    Attributes:
        name: as given to --dataset, e.g. "cifar10" or "image-folder:/data/flowers".
        data_dir: where its files are, if they are not embedded.
        train_images: use only this many training images, evenly over the classes.
        resolution: pixels that images are resized to; None keeps the data set's own.
        workers: processes that decode a streamed data set.
    """

    name: Annotated[str, Meta(description="A data set's name, or image-folder:PATH.")] = "digits"
    data_dir: Annotated[str | None, Meta(description="Folder of the data set's files.")] = None
    train_images: (
        Annotated[int, Meta(ge=1, description="Use only so many training images, evenly over the classes.")] | None
    ) = None
    resolution: (
        Annotated[int, Meta(ge=1, description="Pixels to resize images to; the data set's own unless given.")] | None
    ) = None
    workers: Annotated[int, Meta(ge=0, description="Processes that decode a streamed data set.")] = 2


def anchored(data: Data) -> Data:
    """The same images, found from any folder: paths in the name and --data-dir are made absolute."""
    plugin, colon, argument = data.name.partition(":")
    plugin = str(Path(plugin).absolute()) if plugin.endswith(".py") else plugin
    argument = str(Path(argument).expanduser().absolute()) if argument else argument
    folder = str(Path(data.data_dir).expanduser().absolute()) if data.data_dir else None
    return msgspec.structs.replace(data, name=f"{plugin}{colon}{argument}", data_dir=folder)


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One finished stage.

    Attributes:
        stage: which stage wrote it; `schema` is the version of this record.
        parent: the manifest it was made from, None for a search.
        command: writes this manifest again.
        settings: of the stage, as resolved (preset, options and environment applied).
        network: the whole architecture, so that later stages need no network file.
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
    network: Network
    widths: dict[str, int]
    data: Data
    artifacts: dict[str, Artifact] = {}
    metrics: dict[str, Any]
    environment: dict[str, Any]


Chain: TypeAlias = list[tuple[Path, Manifest]]  # the search first


def load(path: Path, *stages: Stage) -> Manifest:
    """Read and verify a manifest.

    Args:
        path: the JSON file.
        stages: those that the caller can go on from; none given means any.

    Raises:
        DmsflowError: no such file, not a manifest, the wrong stage, or a changed or missing file.
    """
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise DmsflowError(
            path, error.strerror or str(error), "give the path of a manifest that a stage wrote"
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        if str(error) == "Object missing required field `network`":  # what bench writes of a bare file
            raise DmsflowError(path, "measures a bare file, which has no chain", "read it as JSON") from error
        raise DmsflowError(path, f"not a dmsflow manifest ({error})", "run the stage that writes it again") from error
    if manifest.schema != SCHEMA:
        raise DmsflowError(path, f"has schema {manifest.schema}", f"this version reads schema {SCHEMA}")
    if stages and manifest.stage not in stages:
        raise DmsflowError(path, f"is the manifest of {manifest.stage}", f"give one of {' or '.join(stages)}")
    _check_widths(path, manifest)
    for artifact in manifest.artifacts.values():
        verify(path, artifact)
    if manifest.parent and (path.parent / manifest.parent.path).exists():
        verify(path, manifest.parent)
    return manifest


def chain(path: Path, *, whole: bool = True) -> Chain:
    """A manifest and those it was made from, each verified.

    Args:
        path: of the last one.
        whole: False ends it where a parent is missing, as where only the export was copied to.

    Raises:
        DmsflowError: one of them is missing, changed, or not a manifest.
    """
    found: Chain = [(path, load(path))]
    while (parent := found[0][1].parent) and (whole or (found[0][0].parent / parent.path).exists()):
        above = verify(found[0][0], parent)
        found.insert(0, (above, load(above)))
    return found


def inherited(manifests: Chain, role: str) -> Path | None:
    """The file of a role, from the last manifest of the chain that has one; None: none has."""
    for path, each in reversed(manifests):
        if role in each.artifacts:
            return verify(path, each.artifacts[role])
    return None


def _check_widths(path: Path, manifest: Manifest) -> None:
    if set(manifest.widths) != set(manifest.network.widths):
        raise DmsflowError(path, "its widths are not those of its network", "run the stage that writes it again")
    if any(width < 1 for width in manifest.widths.values()):
        raise DmsflowError(path, "a width is below 1", "run the stage that writes it again")


def verify(manifest_path: Path, artifact: Artifact) -> Path:
    """The artifact's full path, once its bytes are known to be those that were written."""
    path = manifest_path.parent / artifact.path
    if not path.is_file():
        raise DmsflowError(
            path,
            f"is missing, and {manifest_path.name} names it",
            f"put it back, or write it again: see 'command' in {manifest_path.name}",
        )
    if sha256(path) != artifact.sha256:
        raise DmsflowError(
            path,
            f"changed after {manifest_path.name} was written",
            f"restore it, or write it again: see 'command' in {manifest_path.name}",
        )
    return path


def artifact(path: Path, folder: Path) -> Artifact:
    """Describe a file for a manifest that will stand in `folder`."""
    relative = os.path.relpath(path.resolve(), folder.resolve())
    return Artifact(path=Path(relative).as_posix(), sha256=sha256(path), size_bytes=path.stat().st_size)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def save(path: Path, manifest: Manifest) -> Path:
    """Write a manifest atomically."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
    return path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file or none: to a neighbour first, flushed to the disk, then renamed."""
    with writing(path) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A path to write to; it becomes `path` when the block ends well and vanishes when it does not.

    Raises:
        DmsflowError: the file cannot be written (a full disk, no permission).
    """
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        partial = Path(name)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)
        partial.replace(path)
    except OSError as error:
        raise DmsflowError(
            path, f"cannot be written ({error.strerror or error})", "free some space or choose another folder"
        ) from error
    finally:
        if partial:
            partial.unlink(missing_ok=True)


def environment(**extra: Any) -> dict[str, Any]:
    """Where and with what a stage ran; `extra` adds what only the stage knows (device, threads)."""
    from dmsflow import __version__

    versions = {"dmsflow": __version__, "python": platform.python_version()}
    for name in RUNTIMES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "versions": versions,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **extra,
    }


def machine(environment: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an environment says of the machine that measured: not always the one that ran dmsflow."""
    return environment.get("machine") or environment


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of dmsflow itself, where it runs from a git checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, timeout=5, check=True
        )
        return done.stdout.strip()
    return None


def claim(path: Path, *, resume: bool, force: bool) -> bool:
    """Whether the stage that writes `path` is already done and may be left as it is.

    Raises:
        DmsflowError: it is done and the user asked neither to resume nor to overwrite.
    """
    if not path.exists() or force:
        return False
    if resume:
        load(path)
        return True
    raise DmsflowError(path, "is already there", "--force writes it again, --out takes another folder")
