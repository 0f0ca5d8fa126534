"""docs/results.md and README.md say what docs/results/*.json say, and no more: what was not run says so."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))
import accuracy  # noqa: E402
import figures  # noqa: E402
import results  # noqa: E402
import timing  # noqa: E402

sys.path.remove(str(DOCS))

ENVIRONMENT = {
    "versions": {"dmsflow": "1.2", "python": "3.11.7", "torch": "2.13.0"},
    "processor": "Z80",
    "cores": 1,
    "commit": "abc1234",
    "torch_device": "cpu",
    "date": "2026-01-02T03:04:05+00:00",
}


def job(top1_percent: float, seed: int, **others: Any) -> dict[str, Any]:
    return {
        "network": "vgg11",
        "widths": [16, 17 + seed],
        "memory_mib": 0.0779,
        "macs_m": 15.96,
        "top1_percent": top1_percent,
        "seed": seed,
        "search_seconds": 0.0,
        "train_seconds": 99.0,
        "epochs": 6,
        "environment": ENVIRONMENT,
        **others,
    }


def jobs(*top1: float) -> list[dict[str, Any]]:
    return [job(value, seed) for seed, value in enumerate(top1)]


def cells(**methods: list[dict[str, Any]]) -> dict[str, Any]:
    made = {method: methods.get(method.replace(" ", "_"), []) for method in accuracy.METHODS}
    cell = {
        "cell": "vgg11/0.078MiB+16M",
        "network": "vgg11",
        "memory_mib": 0.078,
        "macs_m": 16.0,
        "seeds": [0, 1, 2],
        "draws": 3,
        "epochs": 6,
    }
    return {"train_images": 20_000, "cells": [{**cell, "methods": made}]}


WHOLE = cells(
    gradient=jobs(54.0, 55.0, 56.0),
    uniform=jobs(48.0, 49.0, 50.0),
    flat=jobs(54.5, 54.5, 54.5),
    between=jobs(57.0, 58.5, 60.0),
    random=[job(40.0, 0), job(50.0, 0), job(51.0, 0)],
    best_random=jobs(51.0, 50.0, 52.0),
    evolution=jobs(54.0, 55.0, 56.0),
    paper=jobs(50.0, 51.0, 52.0),
)


def test_the_page_and_the_readme_are_written_from_the_results() -> None:
    assert results.PAGE.read_text("utf-8") == results.page(), "make docs writes it again"
    text = results.README.read_text("utf-8")
    assert text == results.readme(text), "make docs writes it again"
    for name, drawn in results.pictures().items():
        assert (DOCS / name).read_text("utf-8") == drawn, "make docs writes it again"


@pytest.mark.parametrize(
    "name",
    [
        "budgets",
        "front",
        "ablations",
        "recipe",
        "pairs",
        "table1-quick",
        "search-cost",
        "train-step",
        "processes",
        "startup",
    ],
)
def test_what_was_not_run_says_so_and_how_to_run_it(name: str) -> None:
    kinds = {
        "budgets": accuracy.budgets,
        "front": accuracy.front,
        "ablations": accuracy.ablations,
        "recipe": accuracy.recipe,
        "pairs": accuracy.pairs,
        "search-cost": timing.search_cost,
        "train-step": timing.train_step,
        "processes": timing.processes,
        "startup": timing.startup,
        "table1-quick": lambda content: accuracy.table1({"quick": content}),
    }
    text = kinds[name](None)
    assert "Not run yet" in text
    assert f"benchmarks/{name.split('-quick')[0].replace('-', '_')}.py" in text
    assert (Path(__file__).parents[2] / "benchmarks" / f"{name.split('-quick')[0].replace('-', '_')}.py").is_file()


def test_a_campaign_is_counted_by_kind() -> None:
    assert "Not run yet" in timing.campaign(None) and "make campaign" in timing.campaign(None)
    where = {"date": "2026-01-02", "processor": "Z80", "commit": "abc1234", "versions": {"dmsflow": "1.2"}}
    rows = [
        {"kind": kind, "tries": tries, "faults": faults, "kinds": {}, "seconds": 5, "seed": 3, "environment": where}
        for kind, tries, faults in (("logs", 1000, 0), ("kills of run", 40, 2))
    ]
    text = timing.campaign({"share": 1.0, "rows": rows})
    assert "Of 1,040 tries, 2 ended in a fault" in text and row(text, "logs") == ["logs", "1,000", "0", "5", ""]


def row(text: str, *words: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith("|") and all(word in line for word in words))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_cell_has_means_deviations_paired_gains_and_verdicts() -> None:
    text = accuracy.budgets(WHOLE)
    assert row(text, "**searched**")[4:] == ["54.00, 55.00, 56.00", "55.00 ± 1.00", "–", "–"]
    assert row(text, "| uniform")[-3:] == ["49.00 ± 1.00", "+6.00 ± 0.00", "gain"]
    assert row(text, "| equal")[-2:] == ["+0.50 ± 0.58", "no difference"]
    assert row(text, "| interpolated")[-2:] == ["-3.50 ± 0.29", "loss"]
    assert row(text, "| evolution")[-2:] == ["+0.00 ± 0.00", "no difference"]
    assert row(text, "mean of 3")[-2:] == ["+8.00 ± 3.56", "gain"]
    assert (
        "better than 3 of 6 baselines by more than two standard errors; not better than equal (+0.50 ± 0.58), interpolated (-3.50 ± 0.29)"
        in text
    )
    assert "not run" not in text
    assert "2026-01-02, Z80, 1 core, dmsflow 1.2 at abc1234, Python 3.11.7, torch 2.13.0; seeds 0, 1, 2" in text


def test_a_cell_names_the_rows_that_another_processor_trained() -> None:
    moved = [{**job, "environment": {**job["environment"], "processor": "6502"}} for job in jobs(48.0, 49.0, 50.0)]
    text = accuracy.budgets(cells(gradient=jobs(54.0, 55.0, 56.0), uniform=moved, flat=jobs(50.0)))
    assert "Trained on 6502, the searched widths on Z80: uniform." in text
    assert "Trained on" not in accuracy.budgets(WHOLE)


def test_a_cell_that_is_not_finished_claims_nothing() -> None:
    text = accuracy.budgets(cells(gradient=jobs(60.0, 61.0), uniform=jobs(40.0, 41.0, 42.0)))
    assert "No cell is finished yet." in text
    assert row(text, "**searched**")[-3:] == ["60.50 ± 0.71 (2 of 3)", "–", "–"]
    assert row(text, "| uniform")[-2:] == ["–", "–"]
    assert row(text, "| equal")[-4:] == ["–", "not run", "–", "–"]


def test_a_cell_without_some_baselines_names_them() -> None:
    text = accuracy.budgets(cells(gradient=jobs(54.0, 55.0, 56.0), uniform=jobs(48.0, 49.0, 50.0), flat=jobs(50.0)))
    claim = "better than 1 of 1 baselines by more than two standard errors; not run: equal, interpolated, random (mean of 3)"
    assert claim in " ".join(text.split())


def test_all_cells_together_are_paired_by_seed() -> None:
    first = cells(gradient=jobs(54.0, 55.0, 56.0), uniform=jobs(53.0, 53.0, 53.0))["cells"][0]
    second = cells(gradient=jobs(50.0, 50.0, 50.0), uniform=jobs(49.0, 48.0, 47.0), flat=jobs(1.0))["cells"][0]
    # 1, 2, 3 and 1, 2, 3: mean 2, deviation 0.894, divided by √6.
    assert accuracy.together([first, second]) == "+2.00 ± 0.37 over uniform (6 pairs)"


def test_the_readme_names_the_baselines_that_no_cell_gains_over() -> None:
    cell = cells(gradient=jobs(54.0, 55.0, 56.0), uniform=jobs(50.0, 51.0, 52.0), evolution=jobs(54.0, 55.0, 57.0))[
        "cells"
    ][0]
    assert results._never([cell]) == " It does not beat evolutionary search."


def test_a_front_has_its_gains_what_was_refused_and_its_cost() -> None:
    def made(*top1: float) -> list[dict[str, Any]]:
        return [{**row, "predicted_latency_ms": 0.05} for row in jobs(*top1)]

    methods = {
        "searched": made(54.0, 56.0),
        "balanced": made(53.0, 54.0),
        "interpolated": [],
        "equal": [],
        "uniform": [],
    }
    open_gain = {"seeds": 0, "points": None, "error": None, "verdict": "not decided"}
    gains = dict.fromkeys(list(methods)[1:], open_gain) | {
        "balanced": {"seeds": 2, "points": 1.5, "error": 0.5, "verdict": "above"}
    }
    cell = {"memory_mib": 0.078, "profile": "z80", "latency_ms": 0.055, "methods": methods, "gains": gains}
    cost = {"budgets": 12, "seeds": 2, "refused": 1, "draws": 8} | dict.fromkeys(
        (
            "search_seconds",
            "solution_seconds",
            "front_seconds",
            "searches_seconds",
            "ratio",
            "draws_seconds",
            "draws_ratio",
        ),
        60.0,
    )
    content = {
        "network": "vgg11",
        "train_images": 20_000,
        "epochs": 3,
        "seeds": [0, 1, 2],
        "search": {"memory_mib": 0.078, "macs_m": 28.0},
        "errors": 2.0,
        "cells": [{**cell, "refused": [{"seed": 2, "refused": "too much"}]}],
        "pooled": gains,
        "drawn": [],
        "draws": 8,
        "prediction": [{"seed": 0, "networks": 20, "searched": 0.75, "equal": 0.5}],
        "cost": cost,
    }
    text = accuracy.front(content)
    assert row(text, "**searched**")[1:] == ["**searched**", "0.078", "16.0", "0.050", "55.00 ± 1.41 (2 of 3)", "–", ""]
    assert row(text, "0.055 ms on z80", "| balanced")[-2:] == ["+1.50 ± 0.50", "above"]
    assert row(text, "0.055 ms on z80", "| equal")[-4:] == ["–", "not run", "–", ""]
    assert row(text, "| balanced | +1.50 ± 0.50 | 2 |")[-1] == "above"
    assert "0.078 MiB, 0.055 ms on z80 (seed 2: too much)" in text and "60.0 × as long" in text and "1 minutes" in text
    assert "over the 20 networks of each seed: 0.75 with the slopes that its search learned, 0.50 with equal" in text
    assert "not measured yet" in accuracy.front({**content, "cost": None})


def test_the_picture_of_a_front_has_a_mark_for_each_budget_when_all_are_trained() -> None:
    def cell(ms: float, **top1: float | None) -> dict[str, Any]:
        methods = {
            kind: [{"predicted_latency_ms": ms, "top1_percent": each}] if each else [] for kind, each in top1.items()
        }
        return {"profile": "z80", "memory_mib": 0.078, "methods": methods}

    cells = [cell(0.15, uniform=50.0, searched=52.0), cell(0.25, uniform=51.0, searched=56.0)]
    drawn = results.picture.draw_front(cells)
    assert drawn is not None and drawn.count("<circle") == 4 and "searched: 0.150 ms 52.0 %, 0.250 ms 56.0 %" in drawn
    assert results.picture.draw_front([*cells, cell(0.3, uniform=50.0, searched=None)]) is None


def test_an_ablation_is_compared_with_the_default() -> None:
    content = [
        {"variant": "default", "what": "nothing", "settings": {}, "runs": jobs(54.0, 55.0)},
        {"variant": "adam", "what": "Adam", "settings": {}, "runs": jobs(50.0, 52.0)},
    ]
    text = accuracy.ablations(content)
    assert "trained for 6 epochs" in text
    assert row(text, "adam")[6:9] == ["51.00 ± 1.41", "-3.50 ± 0.50", "loss"]
    assert row(text, "| default")[6:9] == ["54.50 ± 0.71", "–", "–"]


def test_the_table_sets_ours_beside_the_papers() -> None:
    def line(name: str, done: list[dict[str, Any]], **others: Any) -> dict[str, Any]:
        paper = {"memory_mib": 0.08, "top1_percent": 84.1}
        return {
            "network": "vgg11",
            "row": name,
            "widths": "searched",
            "paper": paper,
            "epochs": 6,
            "left_out": None,
            "planned": 3,
            "jobs": done,
            **others,
        }

    rows = [
        line("DMS-A", jobs(54.0, 56.0)),
        line("DMS-A", jobs(50.0), paper=None, widths="flat"),
        line("DMS-A", [], paper=None, widths="uniform"),
        line("DMS-B", []),
        line("4×", [], planned=0, left_out="it is late"),
    ]
    text = accuracy.table1({"quick": {"train_images": 20_000, "rows": rows}, "paper": None})
    ours = ["0.0779", "16.0", "55.00 ± 1.41", "2 of 3", "6", "–", "99"]
    assert row(text, "DMS-A", "searched") == ["VGG-11", "DMS-A", "searched", "0.08", "84.10", *ours]
    assert row(text, "DMS-A", "equal")[3:5] == ["", ""]
    assert "Not run yet: VGG-11 DMS-A (uniform); VGG-11 DMS-B." in text
    assert "VGG-11 4× is left out: it is late." in text
    assert "Not run yet" in text.split("### Protocol `paper`")[1]


def test_the_papers_search_stands_beside_ours_and_is_no_baseline() -> None:
    both = cells(gradient=jobs(54.0, 55.0, 56.0), uniform=jobs(48.0, 49.0, 50.0), paper=jobs(49.0, 50.0, 51.0))
    text = " ".join(accuracy.budgets(both).split())
    assert "better than 1 of 1 baselines" in text
    assert "; over DMS as published +5.00 ± 0.00, gain." in text
    assert row(accuracy.budgets(both), "| DMS as published")[-2:] == ["+5.00 ± 0.00", "gain"]
    assert "in 1 of 1\ncells by more than two standard errors." in accuracy.papers_search(both["cells"])
    for job in both["cells"][0]["methods"]["paper"]:
        job["macs_m"] = 9.0
    assert accuracy.papers_search(both["cells"]).endswith("errors; in each of these DMS as published used fewer MACs.")
    for without in (cells(gradient=jobs(54.0, 55.0, 56.0)), cells(paper=jobs(54.0, 55.0, 56.0))):
        assert accuracy.papers_search(without["cells"]) == ""


def test_steps_of_search_and_training_are_tabulated() -> None:
    step = {
        "batch": 64,
        "threads": 1,
        "float32_first_ms": 8.0,
        "float32_last_ms": 7.0,
        "mixed_ms": 6.0,
        "convolutions_ms": 4.0,
        "epoch_image_us": 90.0,
        "convolutions_image_us": 60.0,
        "epoch_ratio": 1.5,
        "parts_ms": {"binarise": 0.1, "quantize": 0.2, "batch_norm": 0.3, "max_pool": 0.4, "optimiser": 0.5},
    }
    text = timing.train_step({"images": 20_000, "environment": ENVIRONMENT, "rows": [step]})
    assert row(text, "8.0 ms") == ["64", "1", "8.0 ms", "7.0 ms", "6.0 ms", "4.0 ms", "1.50", "90 µs", "60 µs", "1.50"]
    assert row(text, "0.1 ms") == ["64", "1", "0.1 ms", "0.2 ms", "0.3 ms", "0.4 ms", "0.5 ms"]
    cost = {"largest_widths": [8, 9], "window": 3, "search_ms": 2.0, "plain_ms": 1.0, "ratio": 2.0}
    text = timing.search_cost({"threads": 1, "steps": 7, "environment": ENVIRONMENT, "rows": [cost]})
    assert row(text, "8 9") == ["8 9", "3", "2.0", "1.0", "2.000"]


def test_the_readme_shows_the_paper_s_smallest_budget() -> None:
    text = f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n"
    line = {"network": "vgg11", "row": "DMS-A", "widths": "searched", "epochs": 60, "jobs": jobs(80.0, 82.0)}
    rows = [{**line, "paper": {"top1_percent": 84.16}}, {**line, "widths": "uniform", "paper": None, "jobs": []}]

    def load(name: str) -> Any:
        return {"budgets": WHOLE, "table1-long": {"rows": rows}}.get(name, figures.load(name))

    shown = results.readme(text, load)
    assert shown.startswith("before\n") and shown.endswith("\nafter\n") and "old" not in shown
    assert row(shown, "searched by dmsflow")[1:] == ["0.078", "16.0", "81.00 ± 1.41"]
    words = " ".join(shown.split())
    assert "Ours: 60 epochs, 2 seeds, 2 minutes for search and training on one CPU core (Z80, 2026-01-02)" in words
    assert row(shown, "by the DMS paper, after 300 epochs")[-1] == "84.16" and "3 of 6 baselines" in words
    assert "*uniform*" not in shown, "that row was not run"
    assert results.readme(shown, load) == shown


def test_the_readme_says_what_int8_takes_at_equal_widths_and_at_equal_accuracy() -> None:
    def network(scale: float, bit: tuple[float, ...], byte: tuple[float, ...]) -> dict[str, Any]:
        files = {"1-bit": bit, "int8": byte}
        named = {name: dict(zip(results.COMPARED, values, strict=True)) for name, values in files.items()}
        return {"network": "vgg11", "scale": scale, "rows": [{"files": named}]}

    def timed(*ms: tuple[float, float, float]) -> dict[str, Any]:
        """Results of runtimes.py: scale, 1-bit and int8 milliseconds."""
        rows = [{"ratio": scale, "litert_int8_stem_ms": bit, "int8_ms": byte} for scale, bit, byte in ms]
        return {"networks": [{"network": "vgg11", "pixels": pixels, **row} for row in rows for pixels in (64, 32)]}

    course = {"epochs": 12, "train_images": 20_000}
    narrow, wide = network(1.0, (60, 80), (70, 800)), network(2.0, (71, 200), (80, 3200))
    fast, slow = timed((1.0, 0.03, 0.12), (2.0, 0.06, 0.4)), timed((1.0, 0.1, 0.25))
    text = results._beside_int8({**course, "networks": [narrow]}, [fast, slow])
    assert (
        "after 12 epochs of 20,000 images (1 seed), the same network with int8 weights and activations is 10 points more accurate, in a file 10.0 times as large that takes 2.5 to 4.0 times as long on x86-64 ("
        in text
    )
    assert "10.0 times as large (" in results._beside_int8({**course, "networks": [narrow]}, [None])
    modelled = {"1-bit": {"a53": 1.0, "a76": 0.5}, "int8": {"a53": 4.0, "a76": 1.0}}
    for name, ms in modelled.items():
        narrow["rows"][0]["files"][name]["modelled_ms"] = ms
    text = results._beside_int8({**course, "networks": [narrow, wide]}, [fast, slow])
    assert "times as long on x86-64 and 2.0 to 4.0 times on ARM cores (modelled); a 1-bit" in text
    assert "; a 1-bit network 2 times as wide is as accurate, in 0.25 of its bytes and 0.5 of its time (" in text
    assert results._beside_int8(None, []) == results._beside_int8({**course, "networks": [wide]}, []) == ""


def test_a_lead_says_whether_the_seeds_can_carry_it() -> None:
    over = figures.lead(jobs(54.0, 55.0, 56.0), jobs(48.0, 49.0, 50.0))
    assert over.sentence("uniform") == "6.0 points above uniform, beyond two standard errors (0.0)"
    assert figures.lead(jobs(48.5, 49.5), jobs(48.0, 51.0)).sentence("flat") == (
        "0.5 points below flat, within two standard errors (2.0)"
    )
    one = figures.lead(jobs(50.0), jobs(48.0, 49.0))
    assert (str(one), one.verdict, one.gains) == ("+1.50", "–", False)


def test_paragraphs_are_filled_and_tables_and_code_are_not() -> None:
    wide = "word " * 40
    page = f"# {wide}\n\n{wide}\n\n| {wide} |\n\n    {wide}\n\n{wide}\n"
    filled = figures.wrapped(page).split("\n\n")
    assert max(map(len, filled[1].splitlines())) <= 110
    assert [filled[i] for i in (0, 2, 3)] == [page.split("\n\n")[i] for i in (0, 2, 3)]
    assert filled[4].endswith("word\n")


def test_a_row_of_a_table_is_as_long_as_its_head() -> None:
    assert figures.table(("a", "b"), [("1", "2")]) == "| a | b |\n|---|---|\n| 1 | 2 |"
    with pytest.raises(ValueError, match="longer"):
        figures.table(("a", "b"), [("1",)])
