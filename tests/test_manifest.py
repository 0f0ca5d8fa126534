"""Manifests load only whole and unchanged, and are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmsflow import manifest
from dmsflow.environment import describe_environment
from dmsflow.errors import DmsflowError
from dmsflow.files import describe_artifact, write_atomically, writing
from dmsflow.manifest import Flow, Manifest, load_manifest, save_manifest
from dmsflow.network.architectures import vgg11
from dmsflow.settings import Data, SearchSettings

NETWORK = vgg11.build(1, 32, 10)


def make(folder: Path, **fields: object) -> Path:
    """A search manifest with one artifact, and its path."""
    (folder / "log.jsonl").write_text('{"round": 1}\n')
    values: dict[str, object] = {
        "stage": "search",
        "command": ("dmsflow", "search"),
        "settings": {"seed": 0},
        "network": NETWORK,
        "widths": dict(NETWORK.widths),
        "data": Data(),
        "artifacts": {"log": describe_artifact(folder / "log.jsonl", folder)},
        "metrics": {"memory_mib": 0.0778},
        "environment": {},
        **fields,
    }
    return save_manifest(folder / "search.json", Manifest(**values))  # type: ignore[arg-type]


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = make(tmp_path)
    loaded = load_manifest(path, "search")
    assert loaded.network == NETWORK
    assert loaded.widths == NETWORK.widths
    assert loaded.metrics == {"memory_mib": 0.0778}
    assert loaded.artifacts["log"].sha256 == hashlib.sha256((tmp_path / "log.jsonl").read_bytes()).hexdigest()


@given(st.integers(0, 2000))
def test_a_truncated_manifest_is_refused(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    path = make(tmp_path_factory.mktemp("m"))
    path.write_bytes(path.read_bytes().rstrip()[: -1 - length])
    with pytest.raises(DmsflowError, match="not a dmsflow manifest"):
        load_manifest(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b'{"schema": 1}', b'{"stage": "lunch"}'])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "search.json"
    path.write_bytes(content)
    with pytest.raises(DmsflowError, match="not a dmsflow manifest .*; run the stage that writes it again"):
        load_manifest(path)


def edit(path: Path, **fields: object) -> None:
    path.write_bytes(msgspec.json.encode({**msgspec.json.decode(path.read_bytes()), **fields}))


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path)
    edit(path, mood="good")
    with pytest.raises(DmsflowError, match="unknown field `mood`"):
        load_manifest(path)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path)
    edit(path, schema=2)
    with pytest.raises(DmsflowError, match="has schema 2; this version reads schema 1"):
        load_manifest(path)


@pytest.mark.parametrize("widths", [{}, {**NETWORK.widths, "extra": 3}, {**NETWORK.widths, "conv0": 0}])
def test_widths_that_do_not_fit_are_refused(tmp_path: Path, widths: dict[str, int]) -> None:
    path = make(tmp_path)
    edit(path, widths=widths)
    with pytest.raises(DmsflowError, match="width"):
        load_manifest(path)


def test_the_wrong_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DmsflowError, match="is the manifest of search; give one of train or export"):
        load_manifest(make(tmp_path), "train", "export")


def test_a_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DmsflowError, match="No such file or directory; give the path of a manifest"):
        load_manifest(tmp_path / "search.json")


def test_a_changed_artifact_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path)
    (tmp_path / "log.jsonl").write_text('{"round": 2}\n')
    with pytest.raises(DmsflowError, match=r"log\.jsonl: changed after search\.json was written"):
        load_manifest(path)


def test_a_missing_artifact_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path)
    (tmp_path / "log.jsonl").unlink()
    with pytest.raises(DmsflowError, match=r"log\.jsonl: is missing, and search\.json names it"):
        load_manifest(path)


def test_a_changed_parent_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path)
    child = load_manifest(path)
    child = msgspec.structs.replace(child, stage="train", parent=describe_artifact(path, tmp_path))
    save_manifest(tmp_path / "train.json", child)
    assert load_manifest(tmp_path / "train.json").parent
    edit(path, command=["dmsflow", "search", "--seed", "1"])
    with pytest.raises(DmsflowError, match=r"search\.json: changed after train\.json was written"):
        load_manifest(tmp_path / "train.json")


def test_a_folder_can_be_moved(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    make(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert load_manifest(tmp_path / "b" / "search.json").stage == "search"


def test_a_finished_stage_is_left_alone_or_done_again_as_the_user_says(tmp_path: Path) -> None:
    path, settings = tmp_path / "search.json", SearchSettings()
    assert not manifest.is_finished(path, settings, Flow(()))
    make(tmp_path)
    save_manifest(path, msgspec.structs.replace(load_manifest(path), settings=msgspec.to_builtins(settings)))
    assert manifest.is_finished(path, settings, Flow((), resume=True))
    assert not manifest.is_finished(path, settings, Flow((), force=True))
    with pytest.raises(DmsflowError, match="is already there; --force writes it again, --out takes another folder"):
        manifest.is_finished(path, settings, Flow(()))
    with pytest.raises(DmsflowError, match=r"search\.json: was made with seed 0, not 1; --resume with the options"):
        manifest.is_finished(path, SearchSettings(seed=1), Flow((), resume=True))


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DmsflowError, match="cannot be written .No space left on device.; free some space"):
        write_atomically(tmp_path / "search.json", b"{}")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), writing(path) as partial:
        partial.write_text("ne")
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == ["weights"]
    assert path.read_text() == "old"


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(DmsflowError, match="cannot be written .*; free some space or choose another folder"):
        write_atomically(tmp_path / "runs" / "search.json", b"{}")


def test_the_environment_tells_versions_and_date() -> None:
    seen = describe_environment(threads=1)
    assert seen["threads"] == 1
    assert {"dmsflow", "python", "numpy"} <= set(seen["versions"])
    assert seen["date"].endswith("+00:00")
