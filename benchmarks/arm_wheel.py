"""dmsflow itself on ARM: its wheel for aarch64 in an emulated Python, with the stock LiteRT from PyPI.

Each exported file's top-1 is found by `dmsflow bench` there and here, on the same real images: the first
of the test split of the data set that it was trained for. Exit code 1 where they differ.

    make wheels
    python benchmarks/arm_wheel.py dist/wheels/*aarch64.whl runs/a/export.json...
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import script
from PIL import Image

from dmsflow import datasets, manifest
from dmsflow.manifest import load_manifest
from dmsflow.measuring.devices import qemu
from dmsflow.measuring.devices.emulated import parts
from dmsflow.terminal import print_table

CORE = "cortex-a76"


def install(wheel: Path, version: str, site: Path) -> None:
    """The wheel and all that `pip install dmsflow[device]` brings on ARM."""
    platforms = [word for platform in parts.PLATFORMS for word in ("--platform", platform)]
    command = (
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--root-user-action=ignore",
        "--only-binary=:all:",
        "--implementation=cp",
        f"--python-version={version}",
        *platforms,
        "--platform",
        "manylinux2014_aarch64",
        "--target",
        str(site),
        f"{wheel.absolute()}[device]",
    )
    subprocess.run(command, check=True)


def write_images(export: Path, count: int, folder: Path) -> None:
    """The first images of each class of the test split, in a folder for each class."""
    data = datasets.load_dataset(load_manifest(export, "export").data)
    for label, name in enumerate(data.classes):
        place = folder / f"{label:04}"
        place.mkdir(parents=True)
        indices = np.flatnonzero(data.test.labels == label)[: max(1, count // len(data.classes))]
        for index, image in zip(indices, data.test.images(indices).astype(np.uint8), strict=True):
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(place / f"{index}.png")
        if not len(indices):
            raise SystemExit(f"{export}: class {name} has no test images")


def bench(
    command: Sequence[str], environment: Mapping[str, str], model: Path, images: Path, out: Path
) -> dict[str, Any]:
    """What bench.json records."""
    out.mkdir()
    asked = ("bench", str(model.absolute()), "--images", str(images), "--runner", "litert", "--out", str(out))
    few = ("--warm-up", "1", "--runs", "1", "--force")
    # From a folder without a dmsflow in it, or that one would be imported.
    done = subprocess.run(
        [*command, *asked, *few],
        env={**os.environ, **environment},
        cwd=out,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    recorded: dict[str, Any] = json.loads((out / "bench.json").read_bytes())
    return recorded


def python(version: str, folder: Path) -> Path:
    """A Python for ARM that may start others: each is this script, which calls the emulator."""
    core, path = qemu.CORES[CORE], folder / "python3"
    root = parts.root(core.cpuinfo, version)
    emulator = f'{parts.EMULATOR} -L "{root}" -cpu {CORE} -0 "{path}" "{parts.python(root, version)}"'
    path.write_text(f'#!/bin/sh\nexec {emulator} "$@"\n')
    path.chmod(0o755)
    return path


@click.command()
@click.argument("wheel", type=click.Path(exists=True, path_type=Path))
@click.argument("exports", type=click.Path(exists=True, path_type=Path), nargs=-1, required=True)
@click.option("--images", default=500, show_default=True, help="How many of each data set.")
@click.option("--python", "version", type=click.Choice(list(parts.RELEASES)), default="3.13", show_default=True)
def main(wheel: Path, exports: tuple[Path, ...], images: int, version: str) -> None:
    """Compare top-1 of exported files on emulated ARM with this machine's."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        site, there = Path(folder, "site"), (str(python(version, Path(folder))), "-m", "dmsflow")
        install(wheel, version, site)
        for index, export in enumerate(exports):
            place = Path(folder, str(index))
            write_images(export, images, place / "images")
            exported = load_manifest(export, "export")
            model = manifest.verify(export, exported.artifacts["model"])
            own = {"PYTHONPATH": str(site), "OPENBLAS_NUM_THREADS": "1"}
            on_arm = bench(there, own, model, place / "images", place / "there")
            here = bench((sys.executable, "-m", "dmsflow"), {}, model, place / "images", place / "here")
            tops = [each["metrics"]["top1_percent"] for each in (on_arm, here)]
            runtimes = [next(iter(each["environment"]["runtimes"].values())) for each in (on_arm, here)]
            count = on_arm["metrics"]["top1_images"]
            rows.append((exported.network.name, str(count), *(f"{top:.2f}" for top in tops), *runtimes))
    head = ("network", "images", "top-1 % on ARM", "top-1 % here", "runtime on ARM", "runtime here")
    print_table(f"{wheel.name} in an emulated {CORE}, Python {version}", head, rows)
    if any(row[2] != row[3] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    script.run(main)
