"""What several test files build on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

WriteTrain = Callable[..., Path]


@pytest.fixture(scope="session")
def write_train_manifest() -> WriteTrain:
    """`write(folder, network="vgg11", precision="binary")` leaves a genuine train.json of an untrained network there."""
    return _write_train_manifest


def _write_train_manifest(folder: Path, network: str = "vgg11", precision: str = "binary") -> Path:
    """Narrow widths, random weights, batch norms calibrated on digits; its weights and logits are real files."""
    import torch

    from dmsflow import cost, datasets, manifest, plugin, training
    from dmsflow.model import Model

    folder.mkdir(parents=True, exist_ok=True)
    data = manifest.Data(name="digits")
    digits = datasets.load(data)
    architecture = plugin.load("networks", network).build(1, 32, 10)
    widths = {name: 5 + 3 * index for index, name in enumerate(architecture.widths)}
    torch.manual_seed(0)
    model = Model(architecture, widths, precision=precision)
    for key, tensor in model.tensors().items():
        if "norm" in key and key.endswith((".weight", ".bias")):
            tensor.data = torch.randn_like(tensor)
    model.constrain()

    def normalised(split, count):
        pixels = torch.from_numpy(split.pixels[:count]).float()
        return ((pixels - torch.tensor(digits.mean)) / torch.tensor(digits.std)).permute(0, 3, 1, 2)

    torch.set_num_threads(1)  # more of them only wait for each other on layers this narrow
    with torch.no_grad():
        for _ in range(12):
            model(normalised(digits.train, 32))
        logits = model.eval()(normalised(digits.test, 256))
    training.save_tensors(folder / "train.safetensors", model.tensors())
    training.save_tensors(folder / "train-logits.safetensors", {"logits": logits})
    written = manifest.Manifest(
        stage="train",
        command=("dmsflow", "train", "search.json"),
        settings={"precision": precision},
        network=architecture,
        widths=widths,
        data=data,
        artifacts={
            "weights": manifest.artifact(folder / "train.safetensors", folder),
            "logits": manifest.artifact(folder / "train-logits.safetensors", folder),
        },
        metrics={"memory_mib": cost.memory_bytes(architecture, widths) / cost.MIB, "top1_percent": 12.5},
        environment=manifest.environment(),
    )
    return manifest.save(folder / "train.json", written)
