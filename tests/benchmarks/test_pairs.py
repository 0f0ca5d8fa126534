"""benchmarks/pairs.py: what its networks share, and a run at toy size that is interrupted, goes on and is shown."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from studies import draw_images, jobs, pairs

from dmsflow.importing import load_network
from dmsflow.searching.widths import make_budgets
from dmsflow.settings import Data, SearchSettings, resolve

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))
import accuracy  # noqa: E402

sys.path.remove(str(DOCS))


@pytest.mark.parametrize("frame", [name for name, pair in pairs.CHOICES.items() if pair == pairs.QUANTISERS])
def test_the_networks_differ_in_their_quantisers_alone(frame: str) -> None:
    own, found = load_network(frame, 3, 32, 10), {}
    for quantiser in pairs.QUANTISERS:
        network = pairs.variant(frame, quantiser)
        assert network.widths == own.widths and network.name == f"{frame}-{quantiser}"
        assert {layer.op for layer in network.layers} & set(pairs.QUANTISERS) == {quantiser}
        found[quantiser] = [msgspec.structs.replace(each, op="relu") for each in network.layers if each.op == quantiser]
        rest = [layer for layer in network.layers if layer.op != quantiser]
        assert rest == [layer for layer in own.layers if layer.op not in pairs.QUANTISERS]
    assert found["sign"] == found["quantize"]


@pytest.mark.parametrize("frame", ["vgg11", "resnet18"])
def test_the_networks_differ_in_their_stems_alone(frame: str, tmp_path: Path) -> None:
    whole, eighth = (pairs.variant(frame, stem) for stem in pairs.CHOICES[frame])
    assert [layer.name for layer in eighth.layers if layer.bits == 8] == [whole.layers[0].name, "dense"]
    assert tuple(msgspec.structs.replace(layer, bits=32) for layer in eighth.layers) == whole.layers
    for stem in pairs.CHOICES[frame]:  # which a search keeps
        asked = pairs.job(frame, stem, 0, jobs.Runs(tmp_path, Data(), 1)).search
        chosen = resolve(SearchSettings, **{"stem": jobs.STEM, **asked})
        assert make_budgets(chosen, pairs.variant(frame, stem)).network == pairs.variant(frame, stem)


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten classes of grey images, one network, and a command line for them; the folder of the results."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = draw_images(tmp_path / "images", train=2, test=2)
    words = ["pairs.py", "--dataset", images, "--out", str(tmp_path / "runs")]
    monkeypatch.setattr("sys.argv", [*words, "--results", str(tmp_path), "--threads", "1"])
    for name, value in (
        ("CHOICES", {"resnet20": pairs.QUANTISERS}),
        ("TRAIN_IMAGES", 20),
        ("SEEDS", (0, 1)),
        ("TRAIN", {"epochs": 1, "batch_size": 10}),
    ):
        monkeypatch.setattr(pairs, name, value)
    return tmp_path


@pytest.mark.slow
def test_interrupted_and_started_again_it_trains_nothing_twice(
    arguments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Path] = []
    train = jobs.train.run_stage

    def run_stage(source: Path, settings: Any, out: Path, flow: Any) -> Any:
        if len(trained) == 1 and not interrupted:
            interrupted.append(out)
            raise KeyboardInterrupt
        trained.append(out)
        return train(source, settings, out, flow)

    interrupted: list[Path] = []
    monkeypatch.setattr(jobs.train, "run_stage", run_stage)
    with pytest.raises(KeyboardInterrupt):
        pairs.main()
    pairs.main()
    assert len(trained) == len(set(trained)) == 4
    pairs.main()
    assert len(trained) == 4, "all of it is done"

    content = json.loads((arguments / "pairs.json").read_text("utf-8"))
    (found,) = content["networks"]
    assert {name: [row["seed"] for row in rows] for name, rows in found["rows"].items()} == {
        "quantize": [0, 1],
        "sign": [0, 1],
    }
    widths = [row["widths"] for rows in found["rows"].values() for row in rows]
    assert widths == [[16, 32, 64]] * 4
    less, more = (found["rows"][name][0]["memory_mib"] for name in ("quantize", "sign"))
    assert more - less == pytest.approx(4 * 656 / 2**20, rel=0.05), "four bytes a channel that is binarised"
    assert str(arguments) not in json.dumps(content), "no path of this machine is published"
    page = accuracy.pairs(content)
    assert "| ResNet-20 | ±1 |" in page and "Not run yet" not in page
    (arguments / "runs" / "choices" / "resnet20" / "sign" / "search.json").unlink()
    monkeypatch.setattr("sys.argv", [*sys.argv, "--tabulate"])
    pairs.main()
    assert len(trained) == 4 and json.loads((arguments / "pairs.json").read_text("utf-8")) == content


def rows(*top1: float) -> list[dict[str, Any]]:
    return [
        {
            "seed": seed,
            "top1_percent": value,
            "widths": [16, 32],
            "memory_mib": 0.04,
            "macs_m": 40.8,
            "train_seconds": 60.0,
            "environment": {
                "processor": "Z80",
                "date": "2026-01-02",
                "commit": "abc1234",
                "versions": {"dmsflow": "1.2"},
            },
        }
        for seed, value in enumerate(top1)
    ]


@pytest.mark.parametrize(
    ("signs", "said"),
    [
        ((52.0, 53.0, 54.0), "ResNet-20: ±1 is better by 2.67 ± 0.33 points"),
        ((48.0, 47.0, 49.0), "ResNet-20: {0, α} is better by 2.33 ± 0.33 points"),
        ((50.0, 51.0, 51.0), "ResNet-20, ±1: no difference is shown (+0.33 ± 0.33)"),
        ((50.0,), "ResNet-20, ±1: not decided"),
        ((52.0, 53.0), "ResNet-20, ±1: not decided"),  # two of three seeds
    ],
)
def test_the_page_says_which_is_better(signs: tuple[float, ...], said: str) -> None:
    zero = (50.0, 50.0, 51.0)
    gaps = [one - other for one, other in zip(signs, zero, strict=False)]
    found = {"network": "resnet20", "rows": {"quantize": rows(*zero), "sign": rows(*signs)}}
    content = {"train_images": 20_000, "epochs": 12, "seeds": [0, 1, 2], "errors": 2.0}
    page = accuracy.pairs({**content, "networks": [{**found, "gain": pairs.front.judge(gaps)}]})
    assert said in " ".join(page.split()) and "| ResNet-20 | {0, α} | 16 32 | 0.0400 |" in page
