"""Dropout: what is dropped follows from the step and the part of the batch, and only while weights are trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_batches import CPU
from torch import Tensor

from dmsflow import datasets
from dmsflow.network.network import INPUT, Layer, Network
from dmsflow.searching import evolution, supernetwork
from dmsflow.searching.budget import Budgets
from dmsflow.searching.descent import Descent
from dmsflow.settings import Data, SearchSettings, TrainSettings
from dmsflow.training.batches import generator
from dmsflow.training.model import Model
from dmsflow.training.processes import Share
from dmsflow.training.step import make_optimiser, weight_step

RATE = 0.25
LAYERS = (
    Layer(name="stem", op="conv", inputs=(INPUT,), width="a", kernel=3, padding=1),
    Layer(name="pool", op="max_pool", inputs=("stem",), kernel=2, stride=2),
    Layer(name="early", op="dropout", inputs=("pool",), rate=0.5),
    Layer(name="norm", op="batch_norm", inputs=("early",)),
    Layer(name="quantize", op="quantize", inputs=("norm",)),
    Layer(name="conv", op="binary_conv", inputs=("quantize",), width="b", kernel=3, padding=1),
    Layer(name="conv_norm", op="batch_norm", inputs=("conv",)),
    Layer(name="average", op="average_pool", inputs=("conv_norm",)),
    Layer(name="drop", op="dropout", inputs=("average",), rate=RATE),
    Layer(name="dense", op="dense", inputs=("drop",), width=10),
)
NETWORK = Network(name="drops", channels=1, resolution=8, classes=10, widths={"a": 8, "b": 16}, layers=LAYERS)
IMAGES, LABELS = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 10


def make_model() -> Model:
    torch.manual_seed(0)
    return Model(NETWORK, NETWORK.widths)


def test_it_drops_while_training_and_keeps_the_mean() -> None:
    drop = make_model().ops[LAYERS.index(NETWORK.layer("drop"))]
    x = torch.ones(100, 50, 1, 1)
    dropped = drop(x, active_in=None, active_out=None)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - RATE)])
    assert float((dropped == 0).float().mean()) == pytest.approx(RATE, abs=0.03)
    assert torch.equal(drop.eval()(x, active_in=None, active_out=None), x)


def test_scales_behind_a_max_pool_stay_positive_through_dropout() -> None:
    """For the file has none, and folds both into one convolution."""
    model = make_model()
    norm = model.ops[LAYERS.index(NETWORK.layer("norm"))]
    torch.nn.init.constant_(norm.weight, -1)  # type: ignore[arg-type]
    model.constrain()
    assert bool((norm.weight > 0).all())  # type: ignore[operator]


def test_a_step_drops_the_same_again_and_another_step_does_not() -> None:
    def stepped(step: int) -> Tensor:
        model = make_model()
        optimiser = make_optimiser(model, TrainSettings(learning_rate=0.1))
        torch.manual_seed(step)  # of which nothing may depend
        weight_step(model, optimiser, (IMAGES, LABELS), CPU, draw=generator(0, "dropout", step % 2))
        return model.tensors()["dense.weight"]

    assert torch.equal(stepped(0), stepped(2)) and not torch.equal(stepped(0), stepped(1))


def test_parts_of_a_batch_are_the_same_in_any_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmsflow.training.processes._add_up", lambda total: None)
    seeds: list[int] = []

    def find_seeds(*shares: Share) -> list[int]:
        seeds.clear()
        for share in shares:
            model = make_model()
            with monkeypatch.context() as patch:
                patch.setattr(torch, "manual_seed", seeds.append)
                where, optimiser = replace(CPU, share=share), make_optimiser(model, TrainSettings())
                weight_step(model, optimiser, (IMAGES, LABELS), where, draw=generator(0, "dropout", 1))
        return list(seeds)

    together = find_seeds(Share(0, 1, 4))
    assert together == find_seeds(Share(0, 2, 4), Share(1, 2, 4)) and len(set(together)) == 4


def test_a_search_drops_in_its_weight_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SearchSettings(
        memory_mib=0.001, rounds=1, weight_steps=2, width_batches=2, batch_size=12, threads=1, amp="off"
    )
    dataset = datasets.load_dataset(Data(name="digits", train_images=120))
    network = Network(
        name="drops", channels=1, resolution=dataset.resolution, classes=10, widths=NETWORK.widths, layers=LAYERS
    )
    net = supernetwork.begin(settings, Budgets.from_settings(settings, network), dataset, workers=0)
    dropping: list[bool] = []
    whole = torch.nn.functional.dropout
    monkeypatch.setattr(
        torch.nn.functional, "dropout", lambda x, p, training: dropping.append(training) or whole(x, p, training)
    )
    phases = Descent(net)
    images, labels = next(iter(net.weight_batches.run(0, 1)))
    weight_step(net.model, net.optimiser, (images, labels), net.where, draw=generator(0, "dropout", 0))
    assert dropping == [True, True]
    dropping.clear()
    phases._move_widths()
    assert net.model.training
    evolution.evolve(net, [net.start], 1)
    assert dropping and not any(dropping)
