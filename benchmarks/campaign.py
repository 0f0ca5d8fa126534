"""Damaged files, kills and limits, many times: does every command end in one line, and is every file whole?

    make campaign
    python benchmarks/campaign.py --share 0.1 --seed 7 --only mutations

A fault is a traceback, an exit code that is none of 0, 1, 2 and 3, an error of several lines, a hang, memory without
bounds, control characters for a terminal, a file that is not whole, a resumed run that differs from an uninterrupted
one, or a report of a sanitizer. The first case of each kind of fault is kept, with its arguments; the exit code is 1
if there is any fault.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import forked
import mutation
import sanitised
import script

from dmsflow.environment import describe_environment
from dmsflow.errors import DmsflowError
from dmsflow.files import write_atomically
from dmsflow.terminal import print_table

Case = tuple[list[str], Callable[[], object]]  # the arguments of a command, and what sets its limits
Try = Callable[[Path, random.Random], Case]

MEMORY = 3 << 30  # bytes that a command may have beside what is loaded
PRELOADED = (  # what commands import, once instead of in every child
    *("dmsflow.searching.search", "dmsflow.searching.widths", "dmsflow.training.train", "dmsflow.deploying.export"),
    *("dmsflow.measuring.bench", "dmsflow.measuring.profiling", "dmsflow.reporting.report", "dmsflow.reporting.show"),
    *("dmsflow.modelfile.runners.litert", "dmsflow.deploying.exporters.lce", "dmsflow.deploying.exporters.onnx"),
    *(
        "onnx",
        "onnxruntime",
        "ai_edge_litert.interpreter",
        "sklearn.datasets",
        "PIL.Image",
        "torch.optim",
        "scipy.optimize",
    ),
)
FAST = [
    *("--set", "search.rounds=2", "--set", "search.weight_steps=3", "--set", "search.width_batches=2"),
    *("--set", "search.batch_size=64"),
]
BUDGET = ["--network", "tiny.py", "--memory-mib", "0.0005"]
DIGITS = ["--dataset", "digits", "--resolution", "8", "--set", "data.train_images=300"]
TRAIN = ["--epochs", "2", "--set", "train.min_steps=1"]
EXPORT = ["--check-images", "16"]
BENCH = ["--runs", "3", "--warm-up", "1", "--baseline", "none"]
RUN = [
    *("run", *DIGITS, *BUDGET, *FAST, "--set", "train.epochs=2", "--set", "train.min_steps=1"),
    *("--set", "export.check_images=16", "--set", "bench.runs=3", "--set", "bench.warm_up=1"),
    *("--set", "bench.baseline=none", "--target", "x86-64"),
]
SEARCH = ["search", *DIGITS, *BUDGET, *FAST]
PROFILE = [
    *(
        "profile",
        "--name",
        "small",
        "--networks",
        "tiny.py",
        "--resolutions",
        "8",
        "--channels",
        "1",
        "--classes",
        "10",
    ),
    *("--max-ratio", "2", "--points", "2", "--runs", "3", "--check", "1"),
]
TINY = Path(__file__).parents[1] / "tests" / "tiny.py"
PRESET = """
[search]
rounds = 2
weight_steps = 3
width_batches = 2
batch_size = 64
step_size = 0.15
network = "tiny.py"
memory_mib = 0.0005
method = "equal"

[train]
epochs = 1
min_steps = 1
schedule = "cosine"
learning_rate = 0.005
"""
TARGET = """
description = "Linux"
exporter = "lce"
runner = "litert"
reference_runner = "lce"
suffix = ".tflite"
"""


# --- what is damaged ---------------------------------------------------------------------------


def build(base: Path) -> None:
    """A run with checkpoints of its search and training, an .onnx file, a profile, a preset, a target and images."""
    shutil.copy(TINY, base / "tiny.py")
    (base / "short.toml").write_text(PRESET)
    (base / "here.toml").write_text(TARGET)
    draw_images(base / "images", random.Random(0))
    for arguments in (
        [*RUN, "--out", "run"],
        ["export", "run/train.json", "--target", "onnx", *EXPORT, "--out", "onnx"],
    ):
        whole(base, arguments)
    whole(base, [*PROFILE, "--out", "profiles"])
    for stage, arguments in (("search", SEARCH), ("train", ["train", "run/search.json", *TRAIN])):
        folder = base / f"stopped-{stage}"
        forked.call([*arguments, "--out", folder.name], lambda: be_in(base, stop=True))
        if not any(folder.glob("*.checkpoint")):
            raise DmsflowError(folder, "has no checkpoint", "correct this program")


def whole(folder: Path, arguments: list[str]) -> forked.Ended:
    """A command that must succeed."""
    ended = forked.call(arguments, lambda: be_in(folder))
    if ended.code != 0:
        raise DmsflowError(" ".join(arguments), f"ended with {ended.code}", ended.err.decode("utf-8", "replace")[-500:])
    return ended


def be_in(folder: Path, *, stop: bool = False) -> None:
    """Work in a folder that is the home too, save checkpoints at every chance, and with `stop` end at the first."""
    os.chdir(folder)
    checkpoint: Any = importlib.import_module("dmsflow.training.checkpoint")
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "HOME"):
        os.environ[name] = str(folder)
    checkpoint.SAVE_INTERVAL_S = 0.0
    # Files must be whole, whatever times they hold: on a busy machine `profile` would measure them again for minutes.
    importlib.import_module("dmsflow.measuring.profiling").PASSES = 1  # type: ignore[attr-defined]
    if stop:
        save = checkpoint.save_checkpoint
        checkpoint.save_checkpoint = lambda *given: (save(*given), os._exit(0))


def draw_images(folder: Path, chance: random.Random) -> None:
    from PIL import Image

    for part in ("train", "test"):
        for kind in ("ant", "bee"):
            (folder / part / kind).mkdir(parents=True)
            for number, suffix in enumerate(("png", "jpg", "bmp", "gif", "webp", "tiff", "png", "jpg")):
                image = Image.frombytes("RGB", (9, 8), chance.randbytes(216))
                image.save(folder / part / kind / f"{number}.{suffix}")


def damage(path: Path, how: Callable[[bytes, random.Random], bytes], chance: random.Random) -> None:
    content = how(path.read_bytes(), chance)
    with contextlib.suppress(UnicodeEncodeError):
        path.write_bytes(content)


def damaged_manifest(folder: Path, chance: random.Random) -> list[str]:
    stages = mutation.STAGES
    at = chance.randrange(4)
    damage(folder / "run" / f"{stages[at]}.json", mutation.damage_json, chance)
    if chance.randrange(4):
        mutation.repair(folder / "run")
    given = f"run/{stages[min(3, at + chance.choice((0, 0, 0, 1)))]}.json"
    commands = [["show", given], ["show", "--json", given], ["report", "run", "--out", "out/report.html"]]
    if given == "run/search.json":
        commands += [
            ["train", given, *TRAIN, "--out", "out"],
            ["widths", given, "--memory-mib", "0.0004", "--out", "out"],
        ] * 2
    if given == "run/train.json":
        commands += [["export", given, *EXPORT, "--out", "out"]] * 4
    if given == "run/export.json":
        commands += [["bench", given, *BENCH, "--out", "out"]]
    if given == "run/bench.json":
        commands += [[*RUN, "--out", "run", "--resume"]]
    return chance.choice(commands)


def damaged_log(folder: Path, chance: random.Random) -> list[str]:
    where, name = chance.choice((("run", "search.jsonl"), ("run", "train.jsonl"), ("stopped-search", "search.jsonl")))
    path = folder / where / name
    if not path.exists() or not path.read_bytes().strip():
        path = folder / "run" / "search.jsonl"
    damage(path, mutation.damage_lines, chance)
    mutation.repair(folder / "run")
    return chance.choice([["show", path.parent.name], ["report", path.parent.name, "--out", "out/report.html"]])


def damaged_profile(folder: Path, chance: random.Random) -> list[str]:
    path = "profiles/small.json"
    damage(folder / path, mutation.damage_json, chance)
    search = [*SEARCH, "--profile", path, "--latency-ms", "1", "--out", "out", "--set", "search.method=equal"]
    widths = [
        "widths",
        "run/search.json",
        "--memory-mib",
        "0.0005",
        "--profile",
        path,
        "--latency-ms",
        "1",
        "--out",
        "out",
    ]
    return chance.choice([["show", path], search, widths, [*PROFILE, "--out", "profiles", "--add"]])


def damaged_toml(folder: Path, chance: random.Random) -> list[str]:
    if chance.randrange(2):
        damage(folder / "here.toml", mutation.damage_toml, chance)
        export = ["export", "run/train.json", "--target", "here.toml", *EXPORT, "--out", "out"]
        return chance.choice([export, export, ["bench", "run/model.tflite", "--dry-run", "--runner", "here.toml"]])
    damage(folder / "short.toml", mutation.damage_toml, chance)
    search = ["search", *DIGITS, "--preset", "short.toml", "--out", "out"]
    run = ["run", *DIGITS, "--preset", "short.toml", "--target", "x86-64", "--out", "out", "--dry-run"]
    return chance.choice([[*search, "--dry-run"], [*search, "--dry-run", "--effort", "long"], run])


def damaged_checkpoint(folder: Path, chance: random.Random) -> list[str]:
    stage = chance.choice(("search", "train"))
    path = next((folder / f"stopped-{stage}").glob("*.checkpoint"))
    damage(path, mutation.damage_safetensors, chance)
    arguments = SEARCH if stage == "search" else ["train", "run/search.json", *TRAIN]
    return [*arguments, "--out", f"stopped-{stage}", "--resume"]


def damaged_safetensors(folder: Path, chance: random.Random) -> list[str]:
    path = folder / "run" / chance.choice(("train.safetensors", "train.safetensors", "train-logits.safetensors"))
    damage(path, mutation.damage_safetensors, chance)
    mutation.repair(folder / "run")
    export = ["export", "run/train.json", "--target", chance.choice(("x86-64", "onnx")), *EXPORT, "--out", "out"]
    more = ["train", "run/search.json", "--epochs", "3", "--set", "train.min_steps=1", "--out", "run", "--resume"]
    return chance.choice([export, export, export, more])


def damaged_model(folder: Path, chance: random.Random, where: str) -> list[str]:
    damage(folder / where, mutation.damage_bytes, chance)
    mutation.repair((folder / where).parent)
    export = str(Path(where).with_name("export.json"))
    if chance.randrange(20) == 0:
        return ["bench", chance.choice((where, export)), *BENCH, "--out", "out"]
    return ["show", *chance.choice(([], ["--json"])), where]


def damaged_image(folder: Path, chance: random.Random) -> list[str]:
    paths = sorted(path for path in (folder / "images").rglob("*.*"))
    for path in chance.sample(paths, chance.choice((1, 1, 2, 5))):
        damage(path, mutation.damage_bytes, chance)
    return [
        "search",
        "--dataset",
        "image-folder:images",
        "--resolution",
        "8",
        *BUDGET,
        "--method",
        "equal",
        "--out",
        "out",
    ]


MUTATIONS: dict[str, tuple[int, Callable[[Path, random.Random], list[str]]]] = {
    "manifests": (3200, damaged_manifest),
    "logs": (500, damaged_log),
    "profiles": (1000, damaged_profile),
    "TOML": (1000, damaged_toml),
    "checkpoints": (800, damaged_checkpoint),
    "safetensors": (800, damaged_safetensors),
    ".tflite": (1000, lambda folder, chance: damaged_model(folder, chance, "run/model.tflite")),
    ".onnx": (1000, lambda folder, chance: damaged_model(folder, chance, "onnx/model.onnx")),
    "images": (700, damaged_image),
}


# --- the campaign ------------------------------------------------------------------------------


class Campaign:
    """Tries and faults by kind.

    Attributes:
        base: the folder of what is damaged.
        kept: where the first case of each kind of fault is left.
        built: where the native parts are built with sanitizers.
        only: how the kinds begin that are tried; empty: all.
    """

    def __init__(self, base: Path, kept: Path, built: Path, seed: int, share: float, only: str = "") -> None:
        self.base, self.kept, self.built, self.seed, self.share, self.only = base, kept, built, seed, share, only
        self.tries, self.seconds = Counter[str](), Counter[str]()
        self.faults: dict[str, Counter[str]] = {}

    def each(self, kind: str, count: int) -> Iterator[tuple[Path, random.Random]]:
        """The folder and the generator of every try of a kind; each follows from the seed, the kind and its number."""
        began = time.monotonic()
        for number in range(max(1, round(count * self.share)) if kind.startswith(self.only) else 0):
            folder = Path(tempfile.mkdtemp(prefix="try-", dir=self.base.parent))
            shutil.copytree(self.base, folder, dirs_exist_ok=True)
            try:
                yield folder, random.Random(f"{self.seed} {kind} {number}")
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            self.tries[kind] += 1
        if kind in self.tries:
            self.seconds[kind] += round(time.monotonic() - began)

    def note(self, kind: str, what: str | None, folder: Path, arguments: Sequence[str], ended: forked.Ended) -> None:
        """Count a fault, and keep its folder if it is the first of its kind."""
        if what is None:
            return
        found = self.faults.setdefault(kind, Counter())
        last = ended.err.decode("utf-8", "replace").strip().splitlines()[-1:]
        found[what] += 1
        name = re.sub(r"\W+", "-", f"{kind}-{what}")[:80]
        at = self.kept / f"{name}-{found[what]}"
        if found[what] <= 5:
            print(f"{kind}: {what}: {' '.join(arguments)}: {' '.join(last)[:300]!a}", file=sys.stderr, flush=True)
            shutil.rmtree(at, ignore_errors=True)
            shutil.copytree(folder, at, symlinks=True)
            content = {"arguments": list(arguments), "code": ended.code, "stderr": ended.err.decode("utf-8", "replace")}
            (at / "case.json").write_text(json.dumps(content, indent=1))

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "kind": kind,
                "tries": count,
                "faults": sum(found.values()),
                "kinds": dict(found),
                "seconds": self.seconds[kind],
            }
            for kind, count in self.tries.items()
            for found in [self.faults.get(kind, Counter[str]())]
        ]


def mutate(campaign: Campaign) -> None:
    """Damaged files, each for a command that reads it."""
    for kind, (count, damaged) in MUTATIONS.items():
        for folder, chance in campaign.each(kind, count):
            arguments = damaged(folder, chance)

            def before(folder: Path = folder) -> None:
                be_in(folder)
                forked.limited(AS=MEMORY)()

            ended = forked.call(arguments, before)
            what = forked.fault(ended) or (forked.torn(folder / "out") if ended.code == 0 else None)
            campaign.note(kind, what, folder, arguments, ended)


KILLED = {
    "search": SEARCH,
    "train": ["train", "run/search.json", *TRAIN],
    "export": ["export", "run/train.json", *EXPORT],
    "profile": PROFILE,
    "run": RUN,
}


def kill(campaign: Campaign) -> None:
    """SIGKILL at any moment, up to three times, and --resume: the result is that of an uninterrupted run."""
    for stage, command in KILLED.items():
        arguments, wanted, seconds = [*command, "--out", "out"], dict[str, object](), 0.0
        for folder, chance in campaign.each(f"kills of {stage}", 40):
            ended, kills, given = None, 0, arguments
            if not wanted:  # an uninterrupted run, in the first folder
                seconds, wanted = whole(folder, arguments).seconds, forked.digest(folder / "out")
                shutil.rmtree(folder / "out")
            while ended is None or (ended.code == -signal.SIGKILL and kills < 4):
                kills += 1
                after = chance.uniform(0, seconds) if kills < 4 else None
                ended = forked.call(given, lambda folder=folder: be_in(folder), kill=after)  # type: ignore[misc]
                given = [*arguments, "--resume"]
            what = forked.fault(ended) or (f"exit code {ended.code}" if ended.code else forked.torn(folder / "out"))
            if what is None and (found := forked.digest(folder / "out")) != wanted:
                names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
                what = f"differs in {', '.join(names)}"
            campaign.note(f"kills of {stage}", what, folder, given, ended)


LIMITS: dict[str, tuple[str, Callable[[random.Random], int]]] = {
    "disk limits": ("FSIZE", lambda chance: int(10 ** chance.uniform(0, 4.5))),
    "memory limits": ("AS", lambda chance: chance.randrange(400 << 20)),
    "descriptor limits": ("NOFILE", lambda chance: chance.randrange(3, 40)),
}
LIMITED = (
    *(command for command in KILLED.values()),
    ["bench", "run/export.json", *BENCH],
    ["report", "run"],
    ["widths", "run/search.json", "--memory-mib", "0.0005"],
)


def limit(campaign: Campaign) -> None:
    """Little disk, memory or descriptors: an error of one line, and whole files."""
    for kind, (name, draw) in LIMITS.items():
        for folder, chance in campaign.each(kind, 200):
            command, most = chance.choice(LIMITED), draw(chance)
            arguments = [*command, "--out", "out/report.html" if command[0] == "report" else "out"]

            def before(folder: Path = folder, most: int = most, name: str = name) -> None:
                be_in(folder)
                forked.limited(**{name: most})()

            ended = forked.call(arguments, before)
            what = forked.fault(ended, little_memory=True) or forked.torn(folder / "out")
            campaign.note(kind, what, folder, [f"{name}={most}", *arguments], ended)


SCRIPTS = {  # of tests/native: what it runs on, and how many cases
    "delegate, sanitised": ("damage.py", "dmsflow_lce", 1000),
    "training, sanitised": ("shapes.py", "dmsflow_training", 600),
}


def sanitise(campaign: Campaign) -> None:
    """The native parts under sanitizers: .tflite files whose tables lie, and tensors of random shapes."""
    campaign.built.mkdir(parents=True, exist_ok=True)
    program = sanitised.build(campaign.built, sanitised.PROGRAM, *sanitised.LIBRARIES) / sanitised.PROGRAM
    for folder, chance in campaign.each("phone program, sanitised", 1000):
        arguments, ended = sanitised.damaged_run(program, folder, chance)
        campaign.note("phone program, sanitised", sanitised.fault(ended), folder, arguments, ended)
    for kind, (name, target, count) in SCRIPTS.items():
        if not kind.startswith(campaign.only):
            continue
        cases, seed, library = max(1, round(count * campaign.share)), 10**6 * campaign.seed, sanitised.LIBRARIES[target]
        arguments, ended = sanitised.run_script(name, campaign.built / library, cases, seed)
        for what in sanitised.faults(ended):
            campaign.note(kind, what, campaign.base, arguments, ended)
        campaign.tries[kind] += cases
        campaign.seconds[kind] += round(ended.seconds)


PARTS: dict[str, Callable[[Campaign], None]] = {"mutations": mutate, "kills": kill, "limits": limit, "native": sanitise}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the tries: 0.1 is a tenth")
    parser.add_argument("--seed", type=int, default=0)
    what = f"one part ({', '.join(PARTS)}), or kinds that begin so; other rows stay in --out"
    parser.add_argument("--only", default="", help=what)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    parser.add_argument("--keep", type=Path, default=Path("runs/campaign"), help="folder for the first faults")
    parser.add_argument("--built", type=Path, help="folder for the native parts with sanitizers; a temporary one")
    given = parser.parse_args()
    for name in PRELOADED if given.only != "native" else ():
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as top:
        base = Path(top) / "base"
        base.mkdir()
        if given.only != "native":
            build(base)
        built, kinds = given.built or Path(top) / "built", "" if given.only in PARTS else given.only
        campaign = Campaign(base, given.keep, built, given.seed, given.share, kinds)
        for name, part in PARTS.items():
            if given.only == name or given.only not in PARTS:
                part(campaign)
    rows = campaign.rows()
    lines = [(row["kind"], str(row["tries"]), str(row["faults"]), ", ".join(row["kinds"])) for row in rows]
    print_table(f"campaign, seed {given.seed}", ("kind", "tries", "faults", "which"), lines, stream=sys.stdout)
    if given.out:
        done = [{**row, "seed": given.seed, "environment": describe_environment()} for row in rows]
        content = {"share": given.share, "rows": [*keep_rows(given, done), *done]}
        write_atomically(given.out, (json.dumps(content, indent=1) + "\n").encode())
    if faults := sum(row["faults"] for row in rows):
        raise DmsflowError("campaign", f"{faults} faults", f"see {given.keep} for the first of each kind")


def keep_rows(given: argparse.Namespace, done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of other parts that `--only` has left in the file, if they are of as many tries."""
    if not given.only or not given.out.exists():
        return []
    before = json.loads(given.out.read_text())
    kinds = {row["kind"] for row in done}
    return [row for row in before["rows"] if row["kind"] not in kinds] if before["share"] == given.share else []


if __name__ == "__main__":
    script.run(main)
