"""Only regular files are read: a FIFO would wait for ever, and /dev/zero has no end."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from dmsflow import cli, files
from dmsflow.datasets import load_dataset
from dmsflow.deploying.target import load_target
from dmsflow.errors import DmsflowError
from dmsflow.manifest import load_manifest
from dmsflow.network.network import read_network
from dmsflow.network.profile import load_profile
from dmsflow.preset import load_preset
from dmsflow.settings import Data

KINDS = ("fifo", "device", "link to a device", "socket", "folder")


def make_special(folder: Path, kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of that kind; a socket's path may have 108 bytes at most, so it is bound from its folder."""
    path = folder / name
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(folder)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(name)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        return Path("/dev/zero")
    else:
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".json", ".tflite", ".onnx"])
def test_show_reads_no_special_file(
    tmp_path: Path, kind: str, suffix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_special(tmp_path, kind, f"x{suffix}", monkeypatch)
    assert cli.main(["show", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(f"dmsflow: {path}: ") and captured.err.count("\n") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_reads_a_special_file(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_special(tmp_path, kind, "x.toml", monkeypatch)
    array = Data(name=f"arrays:{path}")
    for read in (load_manifest, read_network, load_target, lambda path: load_dataset(array)):
        with pytest.raises(DmsflowError, match=str(path)):
            read(path if read is not load_target else str(path))
    with pytest.raises(DmsflowError):
        load_profile(str(path))
    with pytest.raises(DmsflowError):
        load_preset("search", str(path))
    for read in (files.read_bytes, files.hash_file):
        with pytest.raises(OSError, match="is a folder|is not a regular file|No such device"):
            read(path)


def test_a_file_too_large_to_read_whole_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(files.MOST_BYTES + 1)
    with pytest.raises(DmsflowError, match="has more than 4 GiB"):
        load_manifest(path)
