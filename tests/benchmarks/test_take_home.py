"""models/ and the script that fills it: cards, sizes, no paths of a machine, and the top-1 that a card says."""

from __future__ import annotations

import re
import shutil
import types
from pathlib import Path

import gated
import msgspec
import numpy as np
import pytest
from made_up import trained
from studies import take_home

from dmsflow import cli, manifest
from dmsflow.datasets import load_dataset
from dmsflow.deploying import folding
from dmsflow.errors import DmsflowError
from dmsflow.manifest import load_manifest
from dmsflow.reporting.shipped import model_names
from dmsflow.settings import Data

MODELS = take_home.MODELS
LARGEST = 2 << 20  # bytes, of all of them together


def test_every_folder_is_a_model():
    assert {path.name for path in MODELS.iterdir()} == set(model_names()) >= {"digits"}
    files = {"README.md", "train.safetensors", *(f"{stage}.json" for stage in take_home.STAGES)}
    for folder in MODELS.iterdir():
        assert {path.name for path in folder.iterdir()} == files


def test_all_of_them_are_small():
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) <= LARGEST


@pytest.mark.parametrize("name", model_names())
def test_a_card_is_made_from_its_manifests(name):
    assert (MODELS / name / "README.md").read_text("utf-8") == take_home.card(MODELS / name)


def test_no_manifest_names_a_path_of_a_machine():
    for path in MODELS.rglob("*.json"):
        strings = re.findall(r'"((?:[^"\\]|\\.)*)"', path.read_text("utf-8"))
        assert not [text for text in strings if take_home.PATH_OF_A_MACHINE.search(text)]


@pytest.mark.parametrize("name", model_names())
def test_a_file_has_the_top1_of_its_card(name, tmp_path):
    """And its size; top-1 where the data set is embedded."""
    packed = load_manifest(MODELS / name / "bench.json")
    lean = ["--runs", "2", "--warm-up", "0", "--baseline", "none", "--out", str(tmp_path)]
    assert cli.main(["bench", name, *lean]) == 0
    metrics = load_manifest(tmp_path / "bench.json").metrics
    shared = ("file_bytes", *(("top1_percent", "top1_images") if packed.data.name == "digits" else ()))
    assert {key: metrics[key] for key in shared} == {key: packed.metrics[key] for key in shared}


@pytest.fixture
def run(tiny_run: list[str], tmp_path: Path) -> Path:
    """A chain as a user has it, its network's file named without a folder."""
    folder = Path(shutil.copytree(tiny_run[-1], tmp_path / "run"))
    rewrite(folder, lambda text: re.sub(r'"[^"]*tiny\.py"', '"tiny.py"', text.replace(tiny_run[-1], str(folder))))
    return folder


def rewrite(folder: Path, change) -> None:
    """Change the text of manifests, and the hashes of their parents with it."""
    above = None
    for stage in take_home.STAGES:
        path = folder / f"{stage}.json"
        path.write_text(change(path.read_text("utf-8")))
        read = msgspec.json.decode(path.read_bytes(), type=manifest.Manifest)
        parent = manifest.describe_artifact(above, folder) if above else None
        above = manifest.save_manifest(path, msgspec.structs.replace(read, parent=parent))


def test_a_chain_is_packed(run, tmp_path, capsys):
    folder = take_home.pack(run, tmp_path / "models" / "tiny")
    before, after = ([each for _, each in manifest.chain(path / "bench.json")] for path in (run, folder))
    for old, new in zip(before, after, strict=True):
        for field in ("stage", "settings", "network", "widths", "data", "metrics", "environment"):
            assert getattr(new, field) == getattr(old, field)
        assert str(run) in old.command and str(run) not in new.command and "runs/tiny" in new.command
    small, large = ((path / "train.safetensors").stat().st_size for path in (folder, run))
    assert small < large
    assert "| data | `digits`, 200 of its training images |" in (folder / "README.md").read_text("utf-8")


def test_the_path_of_an_image_folder_needs_a_name(run, tmp_path):
    rewrite(run, lambda text: text.replace('"name": "digits"', '"name": "image-folder:/data/c10"'))
    manifests = [each for _, each in manifest.chain(run / "bench.json")]
    for each in manifests:
        with pytest.raises(DmsflowError, match=r"names .*/data/c10, a path of this machine; give --data-name"):
            take_home.clean(each, {run: "runs/tiny"}, None)
        assert take_home.clean(each, {run: "runs/tiny"}, "cifar10").data.name == "cifar10"


def test_the_folder_of_the_data_is_left_out(run):
    search = load_manifest(run / "search.json")
    data = msgspec.structs.replace(search.data, data_dir="/data")
    for words in (("--data-dir", "/data"), ("--data-dir=/data",)):
        given = msgspec.structs.replace(search, data=data, command=("dmsflow", "search", *words, "--seed", "1"))
        cleaned = take_home.clean(given, {}, None)
        assert (cleaned.data.data_dir, cleaned.command) == (None, ("dmsflow", "search", "--seed", "1"))


def test_paths_below_a_folder_are_made_relative(run):
    train = load_manifest(run / "train.json")
    given = msgspec.structs.replace(train, settings={"teacher": "/a/b/runs/t/train.json"}, command=("--out", "/a/bc"))
    with pytest.raises(DmsflowError, match=r"train.json: names /a/bc, a path of this machine; .* --root"):
        take_home.clean(given, {Path("/a/b"): ""}, None)
    cleaned = take_home.clean(given, {Path("/a/b"): "", Path("/a/bc"): "runs/x"}, None)
    assert (cleaned.settings["teacher"], cleaned.command[1]) == ("runs/t/train.json", "runs/x")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("/tmp/x", True),
        ("--out=/tmp/x", True),
        ("image-folder:/data", True),
        ("~/x", True),
        ("C:\\x", True),
        ("runs/x/search.json", False),
        ("ssh://pi@board", False),
        ("2026-11-29T03:49:11+00:00", False),
        ("binary_conv 3x3 / 2", False),
    ],
)
def test_paths_of_a_machine_are_known(text, found):
    assert bool(take_home.PATH_OF_A_MACHINE.search(text)) == found


def test_what_cannot_be_packed(run, tmp_path):
    with pytest.raises(DmsflowError, match="--data-name cifar11: is unknown"):
        take_home.pack(run, tmp_path / "x", "cifar11")
    rewrite(run, lambda text: text.replace('"precision": "binary"', '"precision": "float"'))
    with pytest.raises(DmsflowError, match="is not the chain of a binary network"):
        take_home.pack(run, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_compact_weights_of_groups_give_the_same_graph():
    network = gated.build(3, 32, 10)
    weights = {name: np.asarray(array) for name, array in trained(network, network.widths).items()}
    data = load_dataset(Data(name="digits"))
    train = types.SimpleNamespace(network=network, widths=network.widths)
    compact = take_home.pack_weights(train, weights, data)
    graphs = [folding.fold(network, network.widths, each, (128,) * 3, (64.0,) * 3) for each in (weights, compact)]
    for one, other in zip(*(graph.ops for graph in graphs), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(*map(msgspec.structs.astuple, (one, other)), strict=True))
