"""Evolution on a super-network, the paper's rebuilt network, and the sentence on a search's result."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_search
import torch
from small_search import DATA, threads_as_before  # noqa: F401

from dmsflow.manifest import Flow
from dmsflow.searching import descent, evolution, published, search
from dmsflow.searching.budget import Ratios, as_widths, memory_mib
from dmsflow.searching.slopes import REACH
from dmsflow.searching.supernetwork import SuperNetwork
from dmsflow.searching.verdict import describe_verdict
from dmsflow.settings import SearchSettings
from dmsflow.training import forward
from dmsflow.training.forward import forward_loss
from dmsflow.training.log import Log

SMALL = {**small_search.SMALL, "macs_m": 6.0, "rounds": 2}


def begin_search(**changes: Any) -> SuperNetwork:
    return small_search.begin_search(**{**SMALL, **changes})


def loss_at(net: SuperNetwork, ratios: Ratios) -> float:
    """Of integer widths, on the images that evolution compares on."""
    widths, batches = net.budgets.round_within(ratios), net.width_batches
    with torch.no_grad():
        losses = [
            forward_loss(net.model, images, labels, net.where, widths)[0]
            for images, labels in batches.run(0, min(evolution.BATCHES, batches.steps))
        ]
    return float(torch.stack(losses).mean())


def test_evolution_is_never_worse_than_what_it_was_given() -> None:
    net = begin_search()
    budgets = net.budgets
    first = [net.start, budgets.uniform()]
    best = evolution.evolve(net, first, 40)
    assert budgets.met(dict(zip(net.widths, np.round(best * budgets.base).tolist(), strict=True)))
    assert loss_at(net, best) <= min(loss_at(net, each) for each in first) + 1e-6
    assert np.array_equal(best, evolution.evolve(net, first, 40))


def test_evolution_tries_as_many_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generations after the first come from the best so far."""
    net, tried = begin_search(), []

    def narrow_is_good(net: SuperNetwork, ratios: Ratios, images: object) -> evolution.Trial:
        tried.append(float(ratios[0]))
        return evolution.Trial(tried[-1], ratios)

    monkeypatch.setattr(evolution, "_try", narrow_is_good)
    best = evolution.evolve(net, [net.start], 75)
    assert len(tried) == 75 and float(best[0]) == min(tried)
    assert sum(tried[32:]) / 43 < sum(tried[:32]) / 32


def test_evolution_may_take_as_long_as_the_gradient() -> None:
    net = begin_search(rounds=16, width_batches=40)
    assert evolution.count_equal_effort(net) * evolution.BATCHES == 16 * 40 * 3


def test_evolution_trains_the_same_super_network_and_moves_no_widths(tmp_path: Path) -> None:
    for method in ("gradient", "evolution"):
        search.run_stage(DATA, SearchSettings(**SMALL, method=method), tmp_path / method, Flow(("dmsflow",)))
    logs = {method: _log(tmp_path / method) for method in ("gradient", "evolution")}
    assert logs["evolution"][0]["weight_loss"] == logs["gradient"][0]["weight_loss"]
    assert len({tuple(row["mu"]) for row in logs["evolution"]}) == 1
    assert not any("gradient" in row for row in logs["evolution"])


def _log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "search.jsonl").read_text().splitlines()]


def test_a_rebuilt_network_keeps_the_weights_that_fit() -> None:
    net = begin_search(method="published")
    search = published.PublishedSearch(net)
    search.begin_round()
    before = net.model.tensors()["conv1.weight"].detach().clone()
    net.at.round = 1
    search.begin_round()
    after = net.model.tensors()["conv1.weight"].detach()
    rows, columns = (min(a, b) for a, b in zip(before.shape[:2], after.shape[:2], strict=True))
    assert torch.equal(before[:rows, :columns], after[:rows, :columns])


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile does what
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # these warn of
def test_a_rebuilt_network_stays_in_the_compiled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round by round the same network, in the first channels of one wider model, which is compiled once."""
    monkeypatch.setattr(forward, "BACKEND", "aot_eager")
    # Thresholds at the mean, where values are dense, would turn a rounding error into another activation.
    given = {"method": "published", "rounds": 3, "centred": False}
    plain, compiled = (begin_search(**given, compile=kind) for kind in ("off", "on"))
    models = set()
    for number, factor in enumerate((1.0, 0.6, 1.5)):  # rows that went come back new
        seen = []
        for net in (plain, compiled):
            search = published.PublishedSearch(net)
            net.at.round, net.at.mu = number, net.at.mu * factor
            search.begin_round()
            search.window = search.make_window(net.at.centre, net.widths)
            images, labels = next(iter(net.weight_batches.run(number, number + 1)))
            for active in (search.mask_active(), net.widths):
                losses = forward_loss(net.model, images, labels, net.where, active)
                seen.append([each.item() for each in losses])
        assert plain.widths == compiled.widths == plain.model.widths
        assert seen[2:] == [pytest.approx(each, rel=1e-4) for each in seen[:2]]
        models.add(compiled.model)
    assert len(models) == 1


def test_a_compiled_network_gives_way_to_a_wider_one() -> None:
    net = begin_search(method="published")
    net.where = dataclasses.replace(net.where, compiled=True)
    search = published.PublishedSearch(net)
    search.begin_round()
    first, before = net.model, dict(net.widths)
    net.at.mu = net.at.mu * 1.8
    kept = net.model.tensors()["conv1.weight"].detach().clone()
    net.at.round = 1
    search.begin_round()
    assert net.model is not first and net.model.widths["conv1"] > net.widths["conv1"] > before["conv1"]
    rows, columns = before["conv1"], before["conv0"]
    assert torch.equal(net.model.tensors()["conv1.weight"][:rows, :columns], kept[:rows, :columns])
    beyond = net.model.tensors()["conv1.weight"][rows, :columns]
    assert not (beyond == kept[rows, :columns]).any()  # that row was not in use


def test_the_hinge_of_eq_7_pulls_on_what_is_over_its_budget() -> None:
    net = begin_search(method="published", memory_mib=0.1, macs_m=100.0, penalty=0.01)
    search, budgets = published.PublishedSearch(net), net.budgets
    net.at.mu = np.full_like(budgets.base, 0.5)
    assert not search._hinge_gradient().any()
    net.at.mu = np.full_like(budgets.base, 2.0)
    assert (budgets.utilisation(net.at.mu) > 1).tolist() == [True, False]
    step = 1e-6 * np.eye(len(budgets.base))
    memory = [memory_mib(budgets.network, as_widths(budgets.network, net.at.mu + each)) for each in (*step, *-step)]
    slopes = 0.01 * (np.array(memory[: len(step)]) - memory[len(step) :]) / 2e-6
    assert search._hinge_gradient() == pytest.approx(slopes, rel=1e-4)


def test_mu_stays_near_the_frozen_candidates_and_in_its_range(tmp_path: Path) -> None:
    """However far Adam would step: the gradient fades beyond the candidates."""
    net = begin_search(method="published", step_size=5.0)
    search, before = published.PublishedSearch(net), net.at.mu
    search.search(tmp_path / "saved", Log(tmp_path / "search.jsonl"))
    bounds = search.budgets.bounds
    for row in _log(tmp_path):
        mu = np.array(row["mu"])
        assert (np.abs(mu - before) <= np.array(row["sigma"]) + 1e-12).all()
        assert (bounds.low <= mu).all() and (mu <= bounds.high).all()
        before = mu
    assert search.budgets.utilisation(search.result()).max() <= 1


def test_sub_networks_fit_in_the_super_network_and_fill_a_range_of_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    net = begin_search()
    steps, budgets, used = descent.Descent(net), net.budgets, {}
    for kind in ("sampled", "near"):
        monkeypatch.setattr(descent, "pick", lambda draw, kind=kind: kind)
        used[kind] = []
        for net.at.weight_step in range(30):
            widths = steps.choose_active()
            assert all(widths[name] <= most for name, most in net.widths.items())
            used[kind].append(budgets.utilisation(np.array(list(widths.values())) / budgets.base).max())
    assert min(used["near"]) > 0.9 and max(used["near"]) <= 1
    most = 1.05 * REACH  # with the widths rounded to whole channels
    assert 1 / most < min(used["sampled"]) < 0.6 and 1.6 < max(used["sampled"]) < most


def test_weight_steps_are_mixed_by_their_shares() -> None:
    picked = [descent.pick((number + 0.5) / 1000) for number in range(1000)]
    for kind, share in descent.MIXTURE:
        assert picked.count(kind) / 1000 == pytest.approx(share, abs=0.002)
    assert descent.pick(1.0) == "full"  # past the last share, by rounding


@pytest.mark.parametrize(
    ("leads", "words"),
    [
        (
            {"equal": (0.3, 0.1), "uniform": (0.5, 0.1)},
            "The search beat the best baseline, equal: the searched loss is 0.3000 ± ",
        ),
        ({"equal": (0.3, 0.1), "uniform": (0.15, 0.1)}, "did not beat the best baseline, uniform, by two standard err"),
        (
            {"equal": (0.3, 0.1), "start": (-0.2, 0.3)},
            "baseline, start, by two standard errors: the searched loss is 0.2000 ± 0.3000 h",
        ),
        ({"equal": (0.0, 0.0)}, "The search did not beat the best baseline, equal, by two standard errors"),
    ],
)
def test_the_search_says_whether_it_beat_the_best_baseline(leads: dict[str, tuple[float, float]], words: str) -> None:
    rows: list[dict[str, Any]] = [{"name": "searched"}]
    rows += [{"name": name, "loss_difference": lead, "standard_error": error} for name, (lead, error) in leads.items()]
    assert words in describe_verdict(rows, rows[0])


def test_the_verdict_names_baselines_that_leave_a_budget_unused() -> None:
    rows: list[dict[str, Any]] = [{"name": "searched", "budgets_used": {"memory": 0.5}}]
    used = {"equal": {"memory": 0.19, "latency": 0.99}, "uniform": {"memory": 0.95, "latency": 0.91}}
    for name, shares in used.items():
        rows.append({"name": name, "loss_difference": 0.1, "standard_error": 0.01, "budgets_used": shares})
    verdict = describe_verdict(rows, rows[0])
    assert verdict.endswith("images). Budgets that a baseline does not fill: equal takes 19 % of the memory.")


def test_the_verdict_names_the_widths_that_are_taken_in_place_of_the_searched_ones() -> None:
    rows = [
        {"name": "searched", "loss_difference": 0.0, "standard_error": 0.0},
        {"name": "uniform", "loss_difference": -0.1099, "standard_error": 0.0743},
    ]
    words = "The widths of uniform were kept instead of the searched ones: their loss is 0.1099 ± 0.0743 lower"
    assert describe_verdict(rows, rows[1]).startswith(words)
    rows[1] |= {"name": "balanced", "loss_difference": 0.01, "standard_error": 0.02}
    words = "The search did not beat balanced by two standard errors, so those widths were kept: the searched loss is 0.0100 ± 0.0200 lower"
    assert describe_verdict(rows, rows[1]).startswith(words)


def test_widths_stay_during_the_warm_up(tmp_path: Path) -> None:
    settings = SearchSettings(**{**SMALL, "rounds": 4, "width_warmup": 0.5})
    search.run_stage(DATA, settings, tmp_path, Flow(("dmsflow",)))
    rows = _log(tmp_path)
    assert ["gradient" in row for row in rows] == [False, False, True, True]
    assert rows[0]["mu"] == rows[1]["mu"]
