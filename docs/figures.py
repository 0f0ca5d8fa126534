"""How the results page spells numbers: read from docs/results/*.json, none of them typed."""

from __future__ import annotations

import json
import math
import re
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("results")
NETWORKS = {"vgg11": "VGG-11", "resnet18": "ResNet-18", "resnet20": "ResNet-20", "reactnet18": "ReActNet-18"}
NONE = "–"
ERRORS = 2.0  # standard errors: a smaller difference is called none
WORDS = {  # of results files, and what they are called now
    "around flat": "around equal widths",
    "flat": "equal",
    "controls": "baselines",
    "control": "baseline",
    "the paper's search, literally": "DMS as published",
}
Row = Mapping[str, Any]


def load(name: str, folder: Path = FOLDER) -> Any:
    """What a results file holds; None where it was not made yet."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def wrapped(page: str) -> str:
    """Markdown whose paragraphs are filled anew, since figures change their length."""
    parts = page.split("\n\n")
    return "\n\n".join(_filled(part) if re.match(r"[\w*`]", part.lstrip("\n")) else part for part in parts)


def _filled(paragraph: str) -> str:
    before, after = (
        "\n" * (len(paragraph) - len(stripped)) for stripped in (paragraph.lstrip("\n"), paragraph.rstrip("\n"))
    )
    return before + textwrap.fill(paragraph.strip("\n"), 110, break_long_words=False, break_on_hyphens=False) + after


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown; ValueError if a row is not as long as the head."""
    lines = [head, ["---"] * len(head), *([cell for cell, _ in zip(row, head, strict=True)] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("| --- ", "|---").replace("--- |", "---|")


def part(title: str, command: str, texts: tuple[str, str] | None) -> str:
    """A part of the page: the texts before and after the command that measures it; None: it was not run."""
    before, behind = texts or ("Not run yet:", "")
    return "\n\n".join((title, before, f"    {command}", behind)).rstrip("\n") + "\n"


def present_words(text: str) -> str:
    """Words of a results file as the page says them now; the files keep those that they began with.

    >>> present_words("random, 8 draws around flat")
    'random, 8 draws around equal widths'
    """
    for before, now in WORDS.items():
        text = re.sub(rf"\b{before}\b", now, text)
    return text


def widths(rows: Iterable[Row]) -> str:
    """Every set of widths once: `16 32 64; 17 31 66`."""
    return "; ".join(dict.fromkeys(" ".join(map(str, row["widths"])) for row in rows))


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def mean(rows: Sequence[Row], key: str) -> float:
    return statistics.mean(row[key] for row in rows)


def deviation(rows: Sequence[Row], key: str = "top1_percent") -> float | None:
    """None of less than two."""
    return statistics.stdev(row[key] for row in rows) if len(rows) > 1 else None


def spread(rows: Sequence[Row], key: str = "top1_percent") -> str:
    """Mean ± standard deviation."""
    if not rows:
        return "not run"
    around = deviation(rows, key)
    return f"{mean(rows, key):.2f}" + ("" if around is None else f" ± {around:.2f}")


def each(rows: Sequence[Row], key: str = "top1_percent") -> str:
    return ", ".join(f"{row[key]:.2f}" for row in rows) or NONE


@dataclass(frozen=True)
class Lead:
    """By how many points of top-1 some networks lead others.

    Attributes:
        points: difference of the means.
        error: its standard error; paired, of the difference over the seeds that both have. None where one has a single
            seed.
    """

    points: float
    error: float | None

    @property
    def verdict(self) -> str:
        if self.error is None:
            return NONE
        if abs(self.points) <= ERRORS * self.error:
            return "no difference"
        return "gain" if self.points > 0 else "loss"

    @property
    def gains(self) -> bool:
        return self.verdict == "gain"

    def __str__(self) -> str:
        """`+2.81 ± 0.44`."""
        return f"{self.points:+.2f}" + ("" if self.error is None else f" ± {self.error:.2f}")

    def sentence(self, other: str) -> str:
        """`3.5 points above the uniform one, beyond two standard errors (1.3)`."""
        sign = "above" if self.points > 0 else "below"
        place = f"{abs(self.points):.1f} points {sign} {other}"
        if self.error is None:
            return place
        return f"{place}, {'within' if self.verdict == 'no difference' else 'beyond'} two standard errors ({ERRORS * self.error:.1f})"


def lead(ours: Sequence[Row], others: Sequence[Row], *, paired: bool = True) -> Lead:
    """Of the first networks over the second ones, seed by seed if `paired`."""
    gaps, error = differences(ours, others) if paired else [], None
    if len(gaps) > 1:
        error = statistics.stdev(gaps) / math.sqrt(len(gaps))
    elif min(len(ours), len(others)) > 1:
        error = math.hypot(*((deviation(rows) or 0) / math.sqrt(len(rows)) for rows in (ours, others)))
    return Lead(mean(ours, "top1_percent") - mean(others, "top1_percent"), error)


def differences(ours: Sequence[Row], others: Sequence[Row]) -> list[float]:
    """In points of top-1, of every seed that both have."""
    by_seed = {row["seed"]: row["top1_percent"] for row in others}
    return [row["top1_percent"] - by_seed[row["seed"]] for row in ours if row["seed"] in by_seed]


def more(share: float, less: str = "less") -> str:
    """Of a ratio less one: `12 % more`, `36 % less`."""
    return f"{100 * abs(share):.0f} % {'more' if share > 0 else less}"


def listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, dict.fromkeys(values)))


def machine(environments: Iterable[Row], *versions: str) -> str:
    """`2026-11-23, AMD EPYC, 2 cores, dmsflow 0.1.0 at 44c2032, torch 2.13.0+cpu`; every value that occurs."""
    known = list(environments)
    days = sorted({each["date"][:10] for each in known})
    processors = listed((each.get("machine") or each)["processor"] for each in known)
    cores = listed(each["cores"] for each in known if each.get("cores"))
    parts = [days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}", processors]
    parts += [f"{cores} core{'s' * (cores != '1')}"] if cores else []
    parts.append(
        f"dmsflow {listed(each['versions']['dmsflow'] for each in known)} at {listed(each['commit'] for each in known)}"
    )
    for name in versions:
        found = listed(each["versions"][name] for each in known if name in each["versions"])
        parts += [f"{name.capitalize() if name == 'python' else name} {found}"] if found else []
    return ", ".join(parts)
