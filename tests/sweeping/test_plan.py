"""Plans: what they can have, the rows that follow, and which of them share a search."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from dmsflow.errors import DmsflowError
from dmsflow.sweeping.plan import Plan, Row, read_plan, with_leaders

BUDGETS = "[[budgets]]\nmemory_mib = 0.04\n[[budgets]]\nmemory_mib = 0.03\nmacs_m = 6\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return path


def names(tmp_path: Path, text: str) -> list[str]:
    return [row.name for row in read_plan(write(tmp_path, text))[1]]


def test_rows_are_the_product_of_the_lists(tmp_path: Path) -> None:
    text = f'networks = ["vgg11", "resnet18"]\nmethods = ["gradient", "equal"]\nseeds = [0, 3]\n{BUDGETS}'
    found = names(tmp_path, text)
    assert len(found) == len(set(found)) == 16
    assert found[0] == "vgg11-0.04mib-gradient-0" and found[-1] == "resnet18-0.03mib-6m-equal-3"


def test_modules_of_one_file_and_of_torchvision_have_folders_of_their_own(tmp_path: Path) -> None:
    text = 'networks = ["nets/a.py:Net", "nets/a.py:Wide", "b.py:Net", "torchvision:resnet18", "resnet18"]'
    assert [name.removesuffix("-base-gradient-0") for name in names(tmp_path, text)] == [
        *("a-Net", "a-Wide", "b-Net", "torchvision-resnet18", "resnet18")
    ]


def test_an_empty_plan_is_one_search(tmp_path: Path) -> None:
    assert names(tmp_path, "") == ["vgg11-base-gradient-0"]


def test_a_row_has_the_preset_without_its_budgets(tmp_path: Path) -> None:
    """Those of the plan count alone: the digits preset has MACs too."""
    _, (row,) = read_plan(
        write(tmp_path, 'preset = "digits"\nseeds = [4]\n[[budgets]]\nmemory_mib = 0.03\n[train]\nepochs = 3\n')
    )
    search, train = row.settings("search"), row.settings("train")
    assert (search.memory_mib, search.macs_m, search.rounds, search.seed) == (0.03, None, 8, 4)
    assert (train.epochs, train.batch_size, train.seed) == (3, 32, 4)


def test_milliseconds_without_a_profile_are_those_of_each_device(tmp_path: Path) -> None:
    text = (
        "[[budgets]]\nlatency_ms = 0.2\n[[budgets]]\nmemory_mib = 0.05\n"
        '[[devices]]\ntarget = "arm64"\ndevice = "ssh://pi@desk"\nprofile = "cortex-a72"\n'
        '[[devices]]\nprofile = "epyc-lce"\n'
    )
    _, rows = read_plan(write(tmp_path, text))
    assert [(row.name, [device.name for device in row.devices]) for row in rows] == [
        ("vgg11-0.2ms-cortex-a72-gradient-0", ["arm64-ssh-pi-desk"]),
        ("vgg11-0.2ms-epyc-lce-gradient-0", ["x86-64"]),
        ("vgg11-0.05mib-gradient-0", ["arm64-ssh-pi-desk", "x86-64"]),
    ]
    assert rows[0].settings("bench", rows[0].devices[0]).profile == "cortex-a72"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("networkz = []", "has an unknown field 'networkz'; use only preset, effort, networks"),
        ("[search]\nround = 3", "[search] setting round: is unknown; use a name of docs/settings.md, such as rounds"),
        ("[search]\nseed = 3", "[search] seed: has a list of its own; use seeds"),
        ("[search]\nmemory_mib = 3", "[search] memory_mib: has a list of its own; use budgets"),
        ("[train]\nseed = 3", "[train] seed: has a list of its own; use seeds"),
        (
            "[[budgets]]\nmemory = 3",
            "budgets 1: memory: is unknown; use memory_mib, macs_m, file_kib, latency_ms or profile",
        ),
        ("[[budgets]]\nmemory_mib = -3", "[search] setting memory_mib: -3 is not valid"),
        ("[[budgets]]\nlatency_ms = 3", "budgets 1: has latency_ms and no profile; give it a profile"),
        ("[[devices]]\nboard = 3", "devices 1: board: is unknown; use fields of export and bench"),
        ('targets = ["onnx", "onnx"]', "device onnx: is there twice; leave one of them out"),
        ('targets = ["onnx"]\n[[devices]]\n', "targets: are named, and devices too"),
        ('methods = ["best"]', "setting methods: ['best'] is not valid; use one of "),
        ('targets = ["arm46"]', "target arm46: is unknown; use one of "),
        ("seeds = []", "setting seeds: [] is not valid"),
        ("seeds = [1, 1]", "vgg11-base-gradient-1: is the name of two rows; leave one out, or give"),
        ('effort = "much"', "setting effort: 'much' is not valid; use one of quick, normal, long"),
        ("[data]\nnmae = 1", "[data] setting nmae: is unknown"),
        ("seeds = [", "is not TOML"),
        (
            'targets = ["onnx-int8"]',
            "target onnx-int8: takes float32 networks only, and this one is binary; train with",
        ),
        ('[bench]\nrunner = "nope"', "runner nope: is unknown; use one of "),
        ('[[devices]]\ndevice = "foo"', "device foo: is unknown; use one of "),
    ],
)
def test_what_a_plan_must_not_have_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DmsflowError) as error:
        read_plan(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


# --- who searches for whom ----------------------------------------------------------------------


def leaders(tmp_path: Path, sizes: list[float], searched: str = "", more: str = "") -> list[tuple[str, str | None]]:
    """Rows in the order in which they begin: the memory of each, and of the one that searches for it."""
    text = more + "".join(f"[[budgets]]\nmemory_mib = {size}\n" for size in sizes)
    _, rows = read_plan(write(tmp_path, text))

    def costs(row: Row) -> Mapping[str, float]:
        memory = row.limits["memory_mib"]
        return {"memory_mib": memory, "macs_m": 100 * memory} if memory > 0.001 else {}

    found = with_leaders(rows, costs, lambda row: row.name == searched)
    return [(row.name, row.leader) for row in found]


def test_the_row_in_the_middle_searches_for_all(tmp_path: Path) -> None:
    assert leaders(tmp_path, [0.03, 0.04, 0.06]) == [
        ("vgg11-0.04mib-gradient-0", None),
        ("vgg11-0.03mib-gradient-0", "vgg11-0.04mib-gradient-0"),
        ("vgg11-0.06mib-gradient-0", "vgg11-0.04mib-gradient-0"),
    ]


def test_one_that_has_searched_is_preferred(tmp_path: Path) -> None:
    name = "vgg11-0.03mib-gradient-0"
    assert leaders(tmp_path, [0.03, 0.04, 0.06], name)[0] == (name, None)


def test_rows_out_of_reach_and_impossible_ones_search_themselves(tmp_path: Path) -> None:
    found = dict(leaders(tmp_path, [0.0001, 0.03, 0.04, 0.09]))
    assert found.pop("vgg11-0.03mib-gradient-0") is None
    assert found.pop("vgg11-0.04mib-gradient-0") == "vgg11-0.03mib-gradient-0"
    assert set(found.values()) == {None}


def test_no_row_shares_with_another_seed_network_or_method(tmp_path: Path) -> None:
    more = 'seeds = [0, 1]\nnetworks = ["vgg11", "resnet18"]\nmethods = ["gradient", "balanced", "evolution"]\n'
    found = leaders(tmp_path, [0.03, 0.04], more=more)
    assert sum(leader is not None for _, leader in found) == 4
    for name, leader in found:
        assert leader is None or (name.replace("0.04", "0.03") == leader and "gradient" in name)


# --- the page about them ------------------------------------------------------------------------


def test_the_plans_of_the_page_can_be_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "sweep.md").read_text("utf-8")
    example, devices, slurm = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    _, rows = read_plan(write(tmp_path, example))
    assert len(rows) == 8 and f"runs/digits/{rows[0].name}/" in page
    _, rows = read_plan(write(tmp_path, devices))
    assert [row.limits["profile"] for row in rows] == ["cortex-a72", "epyc-lce"]
    plan, _ = read_plan(write(tmp_path, slurm))
    assert plan.slurm["timeout_min"] == 240
    named = re.findall(r"`(\[*\w+\]*)`", "".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)))
    assert {name.strip("[]") for name in named} >= set(Plan.__struct_fields__)
