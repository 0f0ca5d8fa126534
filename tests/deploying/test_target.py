"""Targets: the files that come with dmsflow, a user's own, and what is refused."""

from __future__ import annotations

import pytest

from dmsflow import plugin
from dmsflow.deploying import target
from dmsflow.deploying.target import list_targets, load_target
from dmsflow.errors import DmsflowError

OWN = 'description = "mine"\nexporter = "lce"\nrunner = "lce"\nsuffix = ".tflite"\n'


def test_targets_of_the_issue_are_there():
    assert {"arm64", "android-arm64", "macos-arm64", "x86-64", "onnx"} <= set(list_targets())


@pytest.mark.parametrize("name", list_targets())
def test_every_target_names_an_exporter_and_a_runner_that_exist(name):
    loaded = load_target(name)
    assert loaded.name == name
    assert len(loaded.description) > 10
    assert plugin.path_of("exporters", loaded.exporter).is_file()
    assert plugin.path_of("runners", loaded.runner).is_file()


def test_a_users_own_file(tmp_path):
    path = tmp_path / "fridge.toml"
    path.write_text(OWN)
    assert load_target(str(path)) == target.Target(
        name="fridge", description="mine", exporter="lce", runner="lce", suffix=".tflite"
    )


def test_files_that_it_names_may_lie_beside_it(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.py").touch()
    path = tmp_path / "own" / "fridge.toml"
    path.write_text(OWN.replace('"lce"', '"mine.py"') + 'reference_runner = "other.py"\n')
    found = load_target(str(path))
    assert found.exporter == found.runner == str(tmp_path / "own" / "mine.py") and found.reference_runner == "other.py"


@pytest.mark.parametrize("key", ["reference_runner", "witness"])
def test_a_reference_runner_may_have_its_earlier_name(tmp_path, key):
    path = tmp_path / "fridge.toml"
    path.write_text(f'{OWN}{key} = "litert"\n')
    assert load_target(str(path)).runners == ("lce", "litert")


def test_a_wheel_has_them_in_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(plugin, "PACKAGE", tmp_path / "dmsflow")
    (tmp_path / "dmsflow" / "targets").mkdir(parents=True)
    (tmp_path / "dmsflow" / "targets" / "fridge.toml").write_text(OWN)
    (tmp_path / "targets").mkdir()  # somebody else's folder in site-packages
    assert list_targets() == ["fridge"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (OWN + 'name = "x"\n', "has a field 'name'; remove it"),
        (OWN + "tunes = 3\n", "unknown field `tunes`); give exactly"),
        (OWN.replace('runner = "lce"\n', ""), "missing required field `runner`); give exactly"),
        (OWN.replace(".tflite", "tflite"), "matching regex"),
        ("description = \n", "is not TOML"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, content, message):
    path = tmp_path / "fridge.toml"
    path.write_text(content)
    with pytest.raises(DmsflowError) as error:
        load_target(str(path))
    assert message in str(error.value)
    assert "fridge.toml" in str(error.value)


def test_an_unknown_target_lists_the_known_ones():
    with pytest.raises(
        DmsflowError, match=r"target arm65: is unknown; use one of android-arm64, arm64, .*x86-64, or the path"
    ):
        load_target("arm65")


def test_a_missing_file_is_said():
    with pytest.raises(DmsflowError, match=r"nowhere\.toml: No such file or directory; give the path"):
        load_target("nowhere.toml")
