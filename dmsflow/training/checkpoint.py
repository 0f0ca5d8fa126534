"""The state from which an interrupted search or training resumes: one safetensors file, written atomically.

The generators of random numbers are not part of it: every random number of a run follows from its position (see
`training.batches`).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dmsflow.errors import DmsflowError, within_memory
from dmsflow.files import UNREADABLE, writing
from dmsflow.manifest import Flow
from dmsflow.settings import Record, find_difference, with_present_names
from dmsflow.training import processes
from dmsflow.training.model import Model

MODEL = "model0."  # before the names of a model's tensors


# What facts and rows of a log have under these names, where they have them.
class _Point(TypedDict):
    round: int
    mu: list[float]
    gradient: list[float]


class _Row(TypedDict, total=False):
    seconds: float
    points: list[_Point]


class _Facts(TypedDict, total=False):
    rows: list[_Row]
    round: int
    weight_step: int
    step: int
    mu: list[float]
    centre: list[float]
    results: list[tuple[float, float]]
    widths: dict[str, int]
    allocated: dict[str, int]


SAVE_INTERVAL_S = 60.0  # between checkpoints: the work that an interruption may cost


def save_checkpoint(
    path: Path, model: Model, optimisers: Sequence[torch.optim.Optimizer], facts: Mapping[str, Any]
) -> None:
    """Everything a stage needs to resume: tensors in safetensors, the rest as JSON in its header."""
    if not processes.is_first():
        return
    tensors = {f"{MODEL}{name}": tensor for name, tensor in model.tensors().items()}
    for i, optimiser in enumerate(optimisers):
        for parameter, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser{i}.{parameter}.{name}": value for name, value in state.items() if value is not None}
    save_tensors(path, tensors, msgspec.json.encode(facts).decode())


def _hash(tensors: Mapping[str, Tensor], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: str | None = None) -> None:
    """Write a safetensors file atomically; with facts, these and a hash of everything are its header."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with writing(path) as partial:
        try:
            save_file(stored, partial, {"facts": facts, "sha256": _hash(stored, facts)} if facts else None)
        except SafetensorError as error:
            raise OSError(str(error)) from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and its header.

    Raises:
        DmsflowError: the file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DmsflowError(path, f"is not a complete safetensors file ({error})", "start again with --force") from error


def load_checkpoint(path: Path, settings: Record, source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of a checkpoint.

    Raises:
        DmsflowError: the file is damaged, or `check_same` raises it.
    """
    tensors, header = load_tensors(path)
    try:
        msgspec.json.decode(header["facts"], type=_Facts)
        facts = msgspec.json.decode(header["facts"], type=dict[str, Any])
        intact = header["sha256"] == _hash(tensors, header["facts"])
    except (*UNREADABLE, KeyError) as error:
        raise DmsflowError(path, f"is not a checkpoint ({error})", "start again with --force") from error
    if not intact:
        raise DmsflowError(path, "is not as it was written", "start again with --force")
    with continuing(path):
        check_same(path, facts, settings, source)
    return tensors, facts


@contextlib.contextmanager
def continuing(path: Path) -> Iterator[None]:
    """Turn what a checkpoint lacks, or has in another form, into a DmsflowError."""
    try:
        with within_memory():
            yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        what = f"is not a checkpoint of this run ({type(error).__name__}: {error})"
        raise DmsflowError(path, what, "start again with --force") from error


def restore(tensors: Mapping[str, Tensor], model: Model, optimisers: Sequence[torch.optim.Optimizer]) -> None:
    """Put a checkpoint's tensors back where `save_checkpoint` took them from."""
    model.load(_under(tensors, MODEL))
    for i, optimiser in enumerate(optimisers):
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under(tensors, f"optimiser{i}.").items():
            number, _, entry = name.partition(".")
            owner = parameters[int(number)]
            shape = () if entry == "step" else tuple(owner.shape)
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, not {shape}")
            if tensor.shape == owner.shape:  # strides too, or the optimiser takes a slow path on a GPU
                tensor = torch.empty_like(owner, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
            state.setdefault(int(number), {})[entry] = tensor
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def check_same(path: Path, facts: Mapping[str, Any], settings: Record, source: str) -> None:
    """Raise DmsflowError unless a checkpoint was written under these very settings, from this source.

    Args:
        source: what the stage works on, as a fingerprint.
    """
    recorded = with_present_names(facts["settings"])
    if other := set(recorded) ^ set(settings.__struct_fields__):
        what = f"was written by another version of dmsflow, which differs in the setting {min(other)!r}"
        raise DmsflowError(path, what, "use --force to start again")
    if difference := find_difference(recorded, settings):
        name, before, now = difference
        what = f"was written with {name} {before}, not {now}"
        raise DmsflowError(path, what, "use --resume with the same settings, or --force to start again")
    if facts["source"] != source:
        raise DmsflowError(path, "was written for other images or another network", "use --force to start again")


def prepare(path: Path, flow: Flow) -> Path:
    """The path of a stage's checkpoint, once a file there may be resumed from, or is deleted in every process.

    Raises:
        DmsflowError: one is there, and `flow` neither resumes nor overwrites.
    """
    if flow.force:
        path.unlink(missing_ok=True)
    elif path.exists() and not flow.resume:
        right = "use --resume to continue, or --force to start again"
        raise DmsflowError(path, "is the checkpoint of an interrupted run", right)
    processes.wait()  # for those that still look at what is there, before the first one writes
    return path
