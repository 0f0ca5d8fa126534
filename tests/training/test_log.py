"""The rows of a run, in a file and in TensorBoard."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dmsflow import cli
from dmsflow.training import log


def test_the_example() -> None:
    assert doctest.testmod(log) == (0, 1)


def test_tensorboard_shows_what_the_rows_have(tmp_path: Path) -> None:
    options = "--dataset digits --set data.train_images=60 --memory-mib 0.02 --tensorboard"
    given = ["rounds=2", "weight_steps=1", "width_batches=1", "batch_size=10", "threads=1"]
    settings = [word for text in given for word in ("--set", f"search.{text}")]
    assert cli.main(["search", *options.split(), *settings, "--out", str(tmp_path)]) == 0
    arguments = ["--epochs", "3", "--tensorboard", "--set", "train.threads=1", "--set", "train.batch_size=60"]
    assert cli.main(["train", str(tmp_path / "search.json"), *arguments]) == 0
    for stage, shown in (("search", "weight_loss"), ("train", "loss")):
        rows = [json.loads(line) for line in (tmp_path / f"{stage}.jsonl").read_text("utf-8").splitlines()]
        curves = EventAccumulator(str(tmp_path / "tensorboard" / stage))
        curves.Reload()
        assert set(curves.Tags()["scalars"]) == {name for row in rows for name, _ in log.numbers_of(row)}
        seen = [(event.step, event.value) for event in curves.Scalars(shown)]
        assert seen == [(step + 1, np.float32(row[shown])) for step, row in enumerate(rows)]
