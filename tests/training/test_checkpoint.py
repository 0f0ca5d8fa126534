"""What an interrupted run resumes from; tests/searching/test_search.py checks that it resumes exactly."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from dmsflow.errors import DmsflowError
from dmsflow.manifest import Flow
from dmsflow.network.architectures import vgg11
from dmsflow.settings import TrainSettings
from dmsflow.training import checkpoint
from dmsflow.training.model import Model
from dmsflow.training.place import Place
from dmsflow.training.step import make_optimiser, weight_step

CPU = Place(torch.device("cpu"), 1, False)


def test_a_checkpoint_brings_everything_back(tmp_path: Path) -> None:
    network = vgg11.build(3, 32, 10)
    widths = dict.fromkeys(network.widths, 8)
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6)

    def step(model: Model, optimiser: torch.optim.Optimizer) -> None:
        weight_step(model, optimiser, (images, labels), CPU)

    torch.manual_seed(0)
    model = Model(network, widths)
    settings = TrainSettings()
    optimiser = make_optimiser(model, settings)
    step(model, optimiser)
    path = tmp_path / "state"
    checkpoint.save_checkpoint(path, model, [optimiser], {"settings": settings, "source": "a"})
    step(model, optimiser)

    other = Model(network, widths)
    fresh = make_optimiser(other, settings)
    tensors, facts = checkpoint.load_checkpoint(path, settings, "a")
    checkpoint.restore(tensors, other, [fresh])
    step(other, fresh)
    assert facts["source"] == "a"
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in model.tensors().items())


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, None])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "state"
    checkpoint.save_tensors(path, {"a": torch.randn(100)}, "{}")
    path.write_bytes(path.read_bytes()[:150] if damage is None else damage)
    with pytest.raises(DmsflowError, match="is not a .*; start again with --force"):
        checkpoint.load_checkpoint(path, TrainSettings(), "a")


@pytest.mark.parametrize(
    "facts",
    [
        {"weight_step": [1]},
        {"step": None},
        {"rows": ["a"]},
        {"mu": ["a"]},
        {"results": [[1.0, 2.0], [1.0]]},
        {"rows": [{"seconds": "1"}]},
        {"rows": [{"points": [{"round": 1, "mu": [1.0]}]}]},
    ],
    ids=str,
)
def test_facts_of_other_types_are_refused(tmp_path: Path, facts: dict[str, object]) -> None:
    path, model = tmp_path / "state", Model(vgg11.build(3, 32, 10), dict.fromkeys(vgg11.build(3, 32, 10).widths, 2))
    checkpoint.save_checkpoint(path, model, [], {"settings": TrainSettings(), "source": "a", **facts})
    with pytest.raises(DmsflowError, match=r"state: is not a checkpoint \(.*; start again with --force"):
        checkpoint.load_checkpoint(path, TrainSettings(), "a")


def test_a_flipped_bit_is_seen_wherever_it_is(tmp_path: Path) -> None:
    path, model = tmp_path / "state", Model(vgg11.build(3, 32, 10), dict.fromkeys(vgg11.build(3, 32, 10).widths, 2))
    checkpoint.save_checkpoint(path, model, [], {"settings": TrainSettings(), "source": "a"})
    content = path.read_bytes()
    for place in range(0, len(content), len(content) // 40):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(DmsflowError, match=r"state: (is not|was written) .*--force"):
            checkpoint.load_checkpoint(path, TrainSettings(), "a")


@pytest.mark.parametrize("change", ["absent", "other", "shape", "optimiser", "step", "parameter", "facts"])
def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path, change: str) -> None:
    path, network = tmp_path / "state", vgg11.build(3, 32, 10)
    model = Model(network, dict.fromkeys(network.widths, 2))
    optimiser = make_optimiser(model, TrainSettings())
    weight_step(model, optimiser, (torch.randn(4, 3, 32, 32), torch.arange(4)), CPU)
    checkpoint.save_checkpoint(path, model, [optimiser], {"settings": TrainSettings(), "source": "a"})
    tensors, facts = checkpoint.load_checkpoint(path, TrainSettings(), "a")
    name = next(iter(model.tensors()))
    if change == "absent":
        del tensors[f"{checkpoint.MODEL}{name}"]
    if change == "other":
        tensors[f"{checkpoint.MODEL}other"] = torch.zeros(2)
    if change == "shape":
        tensors[f"{checkpoint.MODEL}{name}"] = torch.zeros(1)
    if change == "optimiser":
        tensors["optimiser0.0.exp_avg"] = torch.zeros(3)
    if change == "step":
        tensors["optimiser0.0.step"] = tensors["optimiser0.0.exp_avg"]
    if change == "parameter":
        tensors["optimiser0.900.exp_avg"] = torch.zeros(3)
    with pytest.raises(DmsflowError, match=r"--force$"), checkpoint.continuing(path):
        checkpoint.restore(tensors, model, [optimiser])
        assert facts["rounds"]


def test_an_interrupted_run_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    path = tmp_path / "search.checkpoint"
    path.write_bytes(b"state")
    with pytest.raises(DmsflowError, match="use --resume to continue, or --force to start again"):
        checkpoint.prepare(path, Flow(()))
    assert checkpoint.prepare(path, Flow((), resume=True)).exists()
    assert not checkpoint.prepare(path, Flow((), force=True)).exists()


def test_other_settings_or_another_source_do_not_go_on_from_a_checkpoint() -> None:
    facts = msgspec.json.decode(msgspec.json.encode({"settings": TrainSettings(), "source": "a"}))
    checkpoint.check_same(Path("x"), facts, TrainSettings(), "a")
    with pytest.raises(DmsflowError, match="written with batch_size 64, not 32; use --resume with the same settings"):
        checkpoint.check_same(Path("x"), facts, TrainSettings(batch_size=32), "a")
    with pytest.raises(DmsflowError, match="written for other images or another network; use --force to start again"):
        checkpoint.check_same(Path("x"), facts, TrainSettings(), "b")
