"""dmsflow as a Python package: typed results, the same files as the command line, nothing printed."""

from __future__ import annotations

import ast
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import dmsflow
from dmsflow import cli
from dmsflow.importing import load_network
from dmsflow.network.network import with_stem

SHORT = {"rounds": 2, "weight_steps": 2, "width_batches": 2, "batch_size": 32, "threads": 1, "train_images": 100}
BASELINE = {"method": "equal", "memory_mib": 0.02}


def images(count: int = 20, side: int = 32, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(count)
    return draw.integers(0, 256, (count, side, side, channels), np.uint8), np.arange(count) % 2


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """All four stages, and their progress."""
    calls_made: list[dmsflow.Progress] = []
    found = dmsflow.search(
        dataset="digits", memory_mib=0.02, out=tmp_path_factory.mktemp("api"), progress=calls_made.append, **SHORT
    )
    trained = dmsflow.train(found, epochs=2, threads=1, progress=calls_made.append)
    exported = dmsflow.export(trained, check_images=20)
    return found, trained, exported, dmsflow.bench(exported, runs=3, baseline="none"), calls_made


def test_stages_give_what_they_found(chain: tuple[Any, ...]) -> None:
    found, trained, exported, measured, _ = chain
    assert found.memory_mib <= 0.02 and list(found.widths) == list(found.network.widths)
    assert found.latency_ms is None and found.macs_m > 0 and found.comparison[0]["name"] == "searched"
    assert trained.epochs == 2 and 0 <= trained.top1_percent <= 100 and trained.widths == found.widths
    assert exported.file.stat().st_size == exported.file_bytes
    assert measured.latency_ms > 0 and 0 <= measured.top1_percent <= 100
    assert str(found.path) in repr(found) and found.files["log"].exists()


def test_progress_is_given_to_the_end(chain: tuple[Any, ...]) -> None:
    calls_made = chain[-1]
    for title, unit in (("search", "round"), ("train", "epoch")):
        calls = [each for each in calls_made if each.title == title]
        assert [each.done for each in calls] == [1, 2] and {(each.unit, each.total) for each in calls} == {(unit, 2)}
        assert calls[-1].seconds_left == 0 and str(calls[-1]).startswith(f"{title}: {unit} 2/2")


def test_the_command_line_makes_the_same_files(chain: tuple[Any, ...], tmp_path: Path) -> None:
    for result in chain[:3]:
        command = [str(tmp_path) if word == str(result.path.parent) else word for word in result.manifest.command[1:]]
        command = [str(tmp_path / Path(word).name) if word.endswith(".json") else word for word in command]
        assert cli.main(command) == 0
        again = dmsflow.load(tmp_path / result.path.name)
        assert type(again) is type(result) and again.widths == result.widths
    assert again.files["model"].read_bytes() == chain[2].file.read_bytes()


def test_a_finished_stage_is_left_or_refused(chain: tuple[Any, ...]) -> None:
    trained = chain[1]
    assert dmsflow.train(chain[0], epochs=2, threads=1, resume=True).path == trained.path
    with pytest.raises(
        dmsflow.DmsflowError, match="already exists; use force=True to overwrite it, or out for another"
    ):
        dmsflow.train(chain[0], epochs=2, threads=1)


def test_commands_in_errors_stay_as_the_command_line_takes_them(chain: tuple[Any, ...], tmp_path: Path) -> None:
    with pytest.raises(dmsflow.DmsflowError, match="add it: dmsflow profile --add --name cortex-a72 --target arm64"):
        dmsflow.search("resnet20", "digits", profile="cortex-a72", latency_ms=1.0, method="equal", out=tmp_path)


def test_a_folder_is_a_data_set_by_its_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "digits"  # which is the name of another one
    for number, part in enumerate(("train/a", "train/b", "test/a", "test/b") * 3):
        (folder / part).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (20 * number,) * 3).save(folder / part / f"{number}.png")
    found = [
        dmsflow.search("vgg11", each, resolution=32, method="equal", out=tmp_path / "out", force=True)
        for each in (folder, str(folder))
    ]
    assert {each.manifest.data.name for each in found} == {f"image-folder:{folder}"}
    monkeypatch.chdir(tmp_path)
    assert dmsflow.search("vgg11", "digits", method="equal", out=tmp_path / "own").manifest.data.name == "digits"


def test_load_gives_the_result_of_each_stage(chain: tuple[Any, ...]) -> None:
    for result in chain[:4]:
        assert dmsflow.load(result.path) == result
    assert isinstance(dmsflow.load("digits"), dmsflow.Trained)
    with pytest.raises(dmsflow.DmsflowError, match="No such file"):
        dmsflow.load("nowhere.json")


def test_a_model_that_comes_with_dmsflow_is_measured(tmp_path: Path) -> None:
    measured = dmsflow.bench("digits", out=tmp_path, runs=2, baseline="none")
    assert measured.path == tmp_path / "bench.json" and measured.latency_ms > 0


def test_nothing_is_printed_unless_asked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(verbose: bool) -> str:
        out = tmp_path / str(verbose)
        found = dmsflow.search(memory_mib=0.02, out=out, verbose=verbose, **SHORT)
        exported = dmsflow.export(dmsflow.train(found, epochs=1, threads=1, verbose=verbose), verbose=verbose)
        dmsflow.bench(exported, runs=2, verbose=verbose)
        return "".join(capfd.readouterr())

    assert run(False) == ""
    assert "search: round 2/2" in run(True)


def test_the_caller_s_torch_is_left_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    threads = torch.get_num_threads()
    dmsflow.search(memory_mib=0.02, out=tmp_path, **SHORT)
    assert torch.rand(1) == expected and torch.get_num_threads() == threads


def test_a_network_can_be_an_object(tmp_path: Path) -> None:
    network = load_network("resnet18", 1, 32, 10)
    found = dmsflow.search(network, out=tmp_path, **BASELINE)
    assert found.network == with_stem(network, "int8") and [found.manifest.settings["network"]] == list(
        map(str, tmp_path.glob("network-*.json"))
    )
    with pytest.raises(dmsflow.DmsflowError, match="is for .* and the images have"):
        dmsflow.search(load_network("resnet18", 3, 32, 10), out=tmp_path / "other", **BASELINE)
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(dmsflow.DmsflowError, match="is not a network"):
        dmsflow.search(tmp_path / "broken.json", out=tmp_path / "other", **BASELINE)


def test_the_stem_that_is_asked_for_is_the_one_that_a_network_gets(tmp_path: Path) -> None:
    network = with_stem(load_network("resnet18", 1, 32, 10), "int8")
    assert dmsflow.search(network, stem="float", out=tmp_path, **BASELINE).network == with_stem(network, "float")


def test_a_module_takes_images_as_training_does(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, (40, 160, 256), (60, 32, 32, 3), np.uint8)
    labels = (pixels[..., 0].mean((1, 2)) > 19.5).astype(np.int64)
    found = dmsflow.search(dataset=((pixels, labels), (pixels, labels)), out=tmp_path, **BASELINE)
    trained = dmsflow.train(found, epochs=1, batch_size=4, threads=1)
    mean, std = trained.mean_and_std()
    assert len(set(mean)) == len(set(std)) == 1
    planes = (torch.from_numpy(pixels.transpose(0, 3, 1, 2)).double() - mean[0]) / std[0]
    right = (trained.module()(planes.float()).argmax(1).numpy() == labels).mean()
    assert 100 * right == pytest.approx(trained.top1_percent)


def test_a_data_set_can_be_arrays_or_torch_s(tmp_path: Path) -> None:
    pixels, labels = images()
    planes = torch.from_numpy(pixels.transpose(0, 3, 1, 2))
    grey = TensorDataset(planes, torch.from_numpy(labels))
    scaled = TensorDataset(planes.float() / 255, torch.from_numpy(labels))
    names = set()
    for index, part in enumerate(((pixels, labels), (pixels[..., 0], labels), grey, scaled)):
        found = dmsflow.search(dataset=(part, part), out=tmp_path / str(index), **BASELINE)
        names.add(Path(found.manifest.data.name.partition(":")[2]).name)
        assert found.network.classes == 2
    assert len(names) == 1, "the same images, the same archive"
    trained = dmsflow.train(found, epochs=1, batch_size=4, threads=1)
    assert dmsflow.export(trained).metrics["check_images"] == 20


def test_make_dataset_takes_names_and_augmentation(tmp_path: Path) -> None:
    made = dmsflow.make_dataset(images(), images(), ("cat", "dog"), flip=True, crop_padding=2)
    found = dmsflow.search(dataset=made, out=tmp_path, **BASELINE)
    from dmsflow.datasets import load_dataset

    again = load_dataset(found.manifest.data)
    assert (again.classes, again.flip, again.crop_padding) == (("cat", "dog"), True, 2)
    assert (again.mean, again.std) == (made.mean, made.std)


@pytest.mark.parametrize(
    ("train", "wrong"),
    [
        ((np.zeros((4, 8, 8), np.float32), np.zeros(4, int)), "train images: are float32"),
        ((np.zeros((4, 8, 9, 3), np.uint8), np.zeros(4, int)), "give squares"),
        ((np.zeros((4, 8, 8), np.uint8), np.zeros(4)), "train labels: are float64"),
        ((np.zeros((0, 8, 8), np.uint8), np.zeros(0, int)), "train images: are uint8"),
        (np.zeros((4, 8, 8), np.uint8), "train images: are one array without labels; give train and test, each a pair"),
        (
            (np.zeros((4, 8, 8), np.uint8), np.full(4, 10**9)),
            "train labels: reach 1000000000; number the classes from 0",
        ),
        (
            (np.zeros((4, 9, 9), np.uint8), np.arange(4) % 2),
            "its images have 9 and 32 pixels a side; correct the arrays",
        ),
        ((np.zeros((4, 8, 8), np.uint8), np.zeros(3, int)), "train has 4 images and 3 labels"),
        ((np.zeros((4, 8, 8), np.uint8), np.zeros(4, int), 1), "train images: are a tuple of 3"),
        (None, "train images: are a NoneType; give train and test"),
        ([], "train images: are a list of 0"),
        (iter([]), "each a pair .* .of a DataLoader its .dataset"),
        (TensorDataset(torch.full((4, 3, 8, 8), torch.nan), torch.zeros(4)), "without Normalize"),
        (TensorDataset(torch.zeros(4, 3, 8, 8), torch.full((4,), 1.7)), "image 0: cannot be read as .image, label."),
        (TensorDataset(torch.zeros(4, 3, 8, 8)), "image 0: cannot be read as .image, label."),
        (TensorDataset(torch.randn(4, 3, 8, 8), torch.zeros(4)), "without Normalize"),
        ([(np.zeros((8, 8), np.uint8), 0), (np.zeros((9, 9), np.uint8), 1)], "resize all images to one size"),
    ],
)
def test_images_that_cannot_be_used_are_refused(train: Any, wrong: str) -> None:
    with pytest.raises(dmsflow.DmsflowError, match=wrong):
        dmsflow.make_dataset(train, images())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY"])
def test_a_damaged_archive_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(dmsflow.DmsflowError, match="savez"):
        dmsflow.search(dataset=f"arrays:{tmp_path}/a.npz", out=tmp_path, **BASELINE)


def test_an_archive_that_lacks_an_array_names_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train_images=images()[0])
    with pytest.raises(dmsflow.DmsflowError, match="has no train_labels"):
        dmsflow.search(dataset=f"arrays:{tmp_path}/a.npz", out=tmp_path, **BASELINE)


OWN = """
from pathlib import Path
from dmsflow.datasets import digits
def load(argument, data, download):
    Path(__file__).with_suffix(".ran").touch()
    return digits.load(argument, data, download)
"""


@pytest.mark.slow
def test_code_that_a_result_names_is_run_where_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    (tmp_path / "own.py").write_text(OWN)
    found = dmsflow.search(dataset=str(tmp_path / "own.py"), out=tmp_path / "run", train_images=20, **BASELINE)
    (ran := tmp_path / "own.ran").unlink()
    given: dict[str, dict[str, Any]] = {
        "train": {"epochs": 1, "batch_size": 20, "threads": 1},
        "export": {"check_images": 10},
        "bench": {"runs": 2, "baseline": "none"},
    }
    for name, settings in given.items():
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / name))  # of somebody who has never run it
        stage = getattr(dmsflow, name)
        with pytest.raises(
            dmsflow.DmsflowError, match=r"not run that code before; .* use trust=True or set DMSFLOW_TR"
        ):
            stage(found, **settings)
        assert not ran.exists()
        found = stage(found, trust=True, **settings)
        ran.unlink()


def test_errors_name_arguments_not_options(tmp_path: Path) -> None:
    with pytest.raises(
        dmsflow.DmsflowError, match="setting memory: is unknown; use a name of docs/settings.md, such as memory_mib"
    ):
        dmsflow.search(out=tmp_path, memory=3)
    with pytest.raises(dmsflow.DmsflowError, match="train_images 7: is not a multiple"):
        dmsflow.search(out=tmp_path, train_images=7)
    with pytest.raises(dmsflow.DmsflowError, match="dataset: is a int; give a name"):
        dmsflow.search(dataset=3, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_names_are_those_of_the_package() -> None:
    for name in dmsflow.__all__:
        assert getattr(dmsflow, name) is not None and name in dir(dmsflow)
    with pytest.raises(AttributeError, match="no attribute 'sarch'"):
        dmsflow.sarch  # noqa: B018
    declared = ast.parse(Path(dmsflow.__file__).read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(declared) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(dmsflow.__all__) <= imported, "type checkers read the imports"


def test_a_search_by_hand_is_written_as_a_command(chain: tuple[Any, ...]) -> None:
    assert shlex.join(chain[0].manifest.command).startswith(
        "dmsflow search --dataset digits --set data.train_images=100 --set"
    )


def test_a_user_s_own_wait_of_openmp_stays() -> None:
    code = "import dmsflow, os; print(os.environ['GOMP_SPINCOUNT'])"
    for given, printed in (({}, "10000"), ({"GOMP_SPINCOUNT": "5"}, "5")):
        environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | given
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert run.stdout.strip() == printed


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"name": "cifar10"}, "name: is no setting of a search; give the name of a data set as dataset"),
        ({"effort": "huge"}, "setting effort: 'huge' is not valid; use one of quick, normal, long"),
        ({"preset": Path("none.toml")}, "preset none.toml: is unknown"),
        ({"memory_mib": np.array([0.02, 1])}, "setting memory_mib: "),
    ],
)
def test_settings_that_are_none_are_refused(given: dict[str, Any], wrong: str, tmp_path: Path) -> None:
    with pytest.raises(dmsflow.DmsflowError, match=wrong):
        dmsflow.search(out=tmp_path, **given)


def test_a_source_is_a_result_or_a_path(chain: tuple[Any, ...]) -> None:
    found = next(each for each in chain if isinstance(each, dmsflow.Result))
    assert dmsflow.load(found).path == found.path
    for call in (dmsflow.load, dmsflow.train, dmsflow.export, dmsflow.bench):
        with pytest.raises(dmsflow.DmsflowError, match="source: is of type NoneType; give what another stage returned"):
            call(None)  # type: ignore[operator]
