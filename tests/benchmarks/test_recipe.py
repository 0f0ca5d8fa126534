"""The ablation of the training recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studies import recipe

from dmsflow import datasets
from dmsflow.settings import Data


def test_the_validation_images_are_training_images_that_no_run_sees() -> None:
    whole = datasets.load_dataset(Data(name="digits"))
    part = recipe.split(whole)
    assert len(part.train) + len(part.test) == len(whole.train)
    assert len(part.test) == pytest.approx(0.1 * len(whole.train), rel=0.05)
    everything = {image.tobytes() for image in whole.train.images(np.arange(len(whole.train)))}
    seen, kept = ({image.tobytes() for image in each.images(np.arange(len(each)))} for each in (part.train, part.test))
    assert seen | kept == everything and not seen & kept


@pytest.mark.slow
@pytest.mark.parametrize("variant", recipe.VARIANTS)
def test_every_variant_runs_and_its_row_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variant: str
) -> None:
    results = tmp_path / "recipe.json"
    arguments = ["recipe.py", "--dataset", "digits", "--train-images", "200", "--networks", "vgg11", "--epochs", "2"]
    arguments += ["--seeds", "0", "--variants", variant, "--results", str(results), "--locks", str(tmp_path / "locks")]
    monkeypatch.setattr("sys.argv", arguments)
    recipe.main()
    (row,) = recipe.read_rows(results)
    assert row["variant"] == variant and 0 <= row["top1_percent"] <= 100 and row["loss"] > 0
    monkeypatch.setattr(recipe, "fit", lambda *_: 1 / 0)  # it is not run again
    recipe.main()
    assert recipe.VARIANTS[variant].title[:20] in capsys.readouterr().out


def test_gains_are_paired_by_seed() -> None:
    def row(variant: str, seed: int, top1: float) -> dict[str, Any]:
        facts = {"top1_percent": top1, "train_top1_percent": top1 + 1, "seconds": 60.0}
        return {"data": "CIFAR-10", "network": "vgg11", "epochs": 4, "variant": variant, "seed": seed, **facts}

    rows = [row("default", 0, 60), row("default", 1, 62), row("sgd", 0, 59), row("sgd", 1, 60), row("sgd", 2, 1)]
    default, sgd = recipe.tabulate(rows)
    assert default[-1] is None
    assert sgd[-1] == "-1.50 ± 0.50"
