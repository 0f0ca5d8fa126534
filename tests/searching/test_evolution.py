"""Evolution on a super-network, and the settings that ablations of the search vary."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dmsflow import datasets
from dmsflow.network.network import load_network
from dmsflow.searching import budget, descent, evolution, search, supernetwork
from dmsflow.searching.compare import verdict
from dmsflow.searching.supernetwork import SuperNetwork
from dmsflow.settings import Data, SearchSettings
from dmsflow.training import forward
from dmsflow.training.forward import forward_loss

DATA = Data(name="digits", train_images=120)
SMALL: dict[str, Any] = {
    "memory_mib": 0.03,
    "macs_m": 6.0,
    "rounds": 2,
    "weight_steps": 2,
    "width_batches": 2,
    "batch_size": 12,
    "threads": 1,
    "mixed": "off",
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def begun(**changes: Any) -> SuperNetwork:
    settings = SearchSettings(**{**SMALL, **changes})
    dataset = datasets.load_dataset(DATA)
    network = load_network("vgg11", dataset.channels, dataset.resolution, len(dataset.classes))
    limits, bounds = budget.budgets(settings, network), budget.whole_range(network, settings)
    return supernetwork.begin(settings, network, limits, bounds, dataset, workers=0)


def hard_loss(state: SuperNetwork, ratios: torch.Tensor) -> float:
    """Of hard widths, on the images that evolution compares on."""
    widths = budget.round_within(state.network, state.limits, ratios, state.bounds)
    with torch.no_grad():
        losses = [
            forward_loss(state.model, images, labels, state.where, widths)[0]
            for images, labels in state.width_batches.run(0, min(evolution.BATCHES, state.width_batches.steps))
        ]
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("near", [False, True])
def test_evolution_is_never_worse_than_what_it_was_given(near: bool) -> None:
    state = begun()
    first = [state.start, budget.uniform(state.network, state.limits, state.bounds)]
    best = evolution.evolve(state, first, 40, near=near)
    widths = {
        name: base * ratio for (name, base), ratio in zip(state.network.widths.items(), best.tolist(), strict=True)
    }
    assert budget.met(state.network, state.limits, {name: round(width) for name, width in widths.items()})
    assert hard_loss(state, best) <= min(hard_loss(state, each) for each in first) + 1e-6
    assert torch.equal(best, evolution.evolve(state, first, 40, near=near))


def test_evolution_tries_as_many_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generations after the first come from the best so far."""
    state, tried = begun(), []

    def narrow_is_good(state: SuperNetwork, ratios: torch.Tensor, images: object) -> evolution.Tried:
        tried.append(float(ratios[0]))
        return evolution.Tried(tried[-1], ratios, {})

    monkeypatch.setattr(evolution, "_try", narrow_is_good)
    best = evolution.evolve(state, [state.start], 75)
    assert len(tried) == 75 and float(best[0]) == min(tried)
    assert sum(tried[32:]) / 43 < sum(tried[:32]) / 32


def test_evolution_may_take_as_long_as_the_gradient() -> None:
    state = begun(rounds=16, width_batches=40)
    assert evolution.equal_count(state) * evolution.BATCHES == 16 * 40 * 3


def test_evolution_trains_the_same_super_network_and_moves_no_widths(tmp_path: Path) -> None:
    for method in ("gradient", "evolution"):
        search.run(SearchSettings(**SMALL, method=method), DATA, tmp_path / method, command=("dmsflow",))
    logs = {method: _log(tmp_path / method) for method in ("gradient", "evolution")}
    assert logs["evolution"][0]["weight_loss"] == logs["gradient"][0]["weight_loss"]
    assert len({tuple(row["mu"]) for row in logs["evolution"]}) == 1
    assert not any("gradient" in row for row in logs["evolution"])


def _log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "search.jsonl").read_text().splitlines()]


def test_the_first_widths_gradient_is_multiplied(tmp_path: Path) -> None:
    gradients = []
    for gain in (1.0, 3.0):
        search.run(SearchSettings(**SMALL, first_gain=gain), DATA, tmp_path / str(gain), command=("dmsflow",))
        gradients.append(_log(tmp_path / str(gain))[0]["gradient"])
    factors = [after / before for before, after in zip(*gradients, strict=True) if before]
    assert factors == pytest.approx([3, 3] + [1] * (len(factors) - 2))


def test_the_band_around_the_start_holds_the_start_alone() -> None:
    state = begun(band="start")
    assert (state.band.low < state.start).all() and (state.start < state.band.high).all()
    wide = begun().band
    assert (wide.high / wide.low).mean() > (state.band.high / state.band.low).mean()


@pytest.mark.parametrize("kept", [True, False])
def test_a_rebuilt_network_keeps_its_weights_only_with_best_effort(kept: bool, tmp_path: Path) -> None:
    state = begun(reallocate=True, best_effort=kept)
    descent._cluster(state)
    before = state.model.tensors()["conv1.weight"].detach().clone()
    state.round = 1
    descent._cluster(state)
    after = state.model.tensors()["conv1.weight"].detach()
    rows, columns = (min(a, b) for a, b in zip(before.shape[:2], after.shape[:2], strict=True))
    assert torch.equal(before[:rows, :columns], after[:rows, :columns]) == kept


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile does what
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # these warn of
def test_a_rebuilt_network_stays_in_the_compiled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round by round the same network, in the first channels of one wider model, which is compiled once."""
    monkeypatch.setattr(forward, "BACKEND", "aot_eager")
    plain, compiled = (begun(reallocate=True, subnetworks=False, rounds=3, compile=kind) for kind in ("off", "on"))
    models = set()
    for number, factor in enumerate((1.0, 0.6, 1.5)):  # rows that went come back new
        seen = []
        for state in (plain, compiled):
            state.round = number
            with torch.no_grad():
                state.mu.mul_(factor)
            descent._cluster(state)
            images, labels = next(iter(state.weight_batches.run(number, number + 1)))
            masks = state.placed(state.masks(state.mu.detach(), "weights", 0))
            for active in (masks, state.widths):
                seen.append([each.item() for each in forward_loss(state.model, images, labels, state.where, active)])
        assert plain.widths == compiled.widths == plain.model.widths
        assert seen[2:] == [pytest.approx(each, rel=1e-4) for each in seen[:2]]
        models.add(compiled.model)
    assert len(models) == 1


def test_a_compiled_network_gives_way_to_a_wider_one() -> None:
    state = begun(reallocate=True, subnetworks=False)
    state.where = dataclasses.replace(state.where, compiled=True)
    descent._cluster(state)
    first, before = state.model, dict(state.widths)
    with torch.no_grad():
        state.mu.mul_(1.8)
    kept = state.model.tensors()["conv1.weight"].detach().clone()
    state.round = 1
    descent._cluster(state)
    assert state.model is not first and state.model.widths["conv1"] > state.widths["conv1"] > before["conv1"]
    rows, columns = before["conv1"], before["conv0"]
    assert torch.equal(state.model.tensors()["conv1.weight"][:rows, :columns], kept[:rows, :columns])
    assert not torch.equal(state.model.tensors()["conv1.weight"][rows], kept[rows])  # that row was not in use


@pytest.mark.parametrize(
    ("lead", "words"),
    [
        (0.3, "beat flat widths: its loss is 0.3000 ± 0.1000 lower"),
        (0.05, "did not beat"),
        (-0.2, "0.2000 ± 0.1000 higher"),
    ],
)
def test_the_search_says_whether_it_beat_flat(lead: float, words: str) -> None:
    rows = [{"name": "searched"}, {"name": "flat", "loss_difference": lead, "standard_error": 0.1}]
    assert words in verdict(rows)


def test_rounds_that_contradict_each_other_make_the_gradient_unsure() -> None:
    """However small each round's own error is; agreeing ones make it surer."""
    state = begun(gradient_decay=0.9)
    tiny = torch.full((8,), 1e-3, dtype=torch.float64)
    signs = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)
    state.rows = [{"gradient": (sign * signs).tolist()} for sign in (1, -1, 1, -1, 1)]
    mean, error = descent.remembered(state, -signs, tiny)
    assert bool((mean.abs() < error).all())
    state.rows = [{"gradient": signs.tolist()}] * 5
    mean, error = descent.remembered(state, signs, tiny)
    assert torch.allclose(mean, signs) and float(error.max()) < float(tiny.min())
    state.settings = SearchSettings(**SMALL, gradient_decay=0.0)
    mean, error = descent.remembered(state, -signs, tiny)
    assert torch.equal(mean, -signs) and torch.equal(error, tiny)


def test_weights_get_a_head_start(tmp_path: Path) -> None:
    settings = SearchSettings(**{**SMALL, "rounds": 4, "head_start": 0.5})
    search.run(settings, DATA, tmp_path, command=("dmsflow",))
    rows = _log(tmp_path)
    assert ["gradient" in row for row in rows] == [False, False, True, True]
    assert rows[0]["mu"] == rows[1]["mu"]
