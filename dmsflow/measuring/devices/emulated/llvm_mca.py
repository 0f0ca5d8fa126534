"""Cycles of AArch64 code, modelled: LLVM's machine code analyser (llvm-mca) on blocks and how often they ran.

The analyser runs each block in a loop on its model of a core, which knows the pipelines and the
latencies of instructions, but no caches and no branches that were guessed wrong. So what comes out
ranks code and is near the time of code that keeps its data in the first-level cache; it is modelled,
and must always be called so.

One call of the analyser takes many blocks, and what it says of a block is kept on disk.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dmsflow.errors import DmsflowError
from dmsflow.files import write_atomically

INSTALL = "apt install qemu-user llvm-19 g++-aarch64-linux-gnu"
ANALYSER, DISASSEMBLER = "llvm-mca-19", "llvm-mc-19"  # one version: another one's models give other numbers
# Cores that LLVM 19 has a model of its own for. It takes other names too, and silently uses one of these.
CORES = ("cortex-a53", "cortex-a55", "cortex-a57", "neoverse-n1", "neoverse-v1")
FEATURES = "--mattr=+all"
BYTES = 4  # of an instruction
ITERATIONS = 100
COVERED = 0.998  # of all instructions lie in blocks that are analysed; the others run as fast as these do
ROUGHLY = 0.9  # the same, where many blocks run a few times each
AT_ONCE = 400  # blocks in one call
# No instruction of a runtime; it ends a block in the disassembler's output.
END, END_CODE = "hint\t#127", bytes.fromhex("ff2f03d5")
# The analyser lets a call take 100 cycles, for all that is called: those blocks are counted by themselves.
CALLS = re.compile(r"^\t(bl|blr)\t", re.MULTILINE)
JUMPS = {"bl": "b", "blr": "br"}


@dataclass(frozen=True)
class Counts:
    """What an emulator counted (see native/count.c).

    Attributes:
        codes: of each block, its instructions' bytes.
        addresses: of each block.
        spans: from one mark to the next, how often which block ran.
        runs: of each run that was counted, its first span and the one after its last.
    """

    codes: tuple[bytes, ...]
    addresses: tuple[int, ...]
    spans: tuple[Mapping[int, int], ...]
    runs: tuple[slice, ...]

    def instructions(self) -> tuple[int, ...]:
        """Of each span."""
        return tuple(sum(times * self.length(block) for block, times in span.items()) for span in self.spans)

    def run(self, index: int) -> Counts:
        """One run alone."""
        return Counts(self.codes, self.addresses, self.spans[self.runs[index]], (slice(None),))

    def length(self, block: int) -> int:
        return len(self.codes[block]) // BYTES


def read(path: Path) -> Counts:
    """The file that the emulator's plugin wrote.

    Raises:
        DmsflowError: it is not whole, or other threads than the first took part.
    """
    text = path.read_text(encoding="ascii") if path.is_file() else ""
    if not text.endswith("end\n"):
        raise DmsflowError(path, "the emulator did not finish counting", "try again")
    codes, addresses = [], []
    spans: list[dict[int, int]] = []
    begins: list[int] = []
    for line in text.splitlines()[:-1]:
        word, *words = line.split()
        if word == "run":
            begins.append(len(spans))
        elif word == "block":
            addresses.append(int(words[1], 16))
            codes.append(bytes.fromhex(words[2]))
        elif word == "span":
            spans.append({})
            if words[0] != "0":
                raise DmsflowError(path, "the work was shared by several threads", "count with one thread")
        else:
            spans[-1][int(word)] = int(words[0])
    runs = itertools.pairwise((*begins, len(spans)))
    return Counts(tuple(codes), tuple(addresses), tuple(spans), tuple(slice(*run) for run in runs))


class Model:
    """One core.

    Args:
        core: one of `CORES`.
        folder: where the cycles of blocks are kept; None: nowhere.

    Raises:
        DmsflowError: LLVM has no model of this core, or is not installed.
    """

    def __init__(self, core: str, folder: Path | None = None) -> None:
        if core not in CORES:
            raise DmsflowError(f"core {core}", "has no model of its own in LLVM", f"use one of {', '.join(CORES)}")
        for tool in (ANALYSER, DISASSEMBLER):
            if not shutil.which(tool):
                raise DmsflowError(tool, "is not installed", INSTALL)
        self.core = core
        self.path = folder and folder / f"{core}.json"
        self.known: dict[str, float] = _kept(self.path)

    def per_block(self, codes: Sequence[bytes]) -> list[float]:
        """Cycles that each block takes when it runs over and over."""
        missing = [code for code in dict.fromkeys(codes) if _key(code) not in self.known]
        for begin in range(0, len(missing), AT_ONCE):
            part = missing[begin : begin + AT_ONCE]
            self.known |= zip(map(_key, part), _analysed(disassembled(part), self.core), strict=True)
        if missing and self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Another process may have added to it meanwhile.
            write_atomically(self.path, msgspec.json.encode(_kept(self.path) | self.known))
        return [self.known[_key(code)] for code in codes]

    def cycles(self, counts: Counts, covered: float = COVERED) -> tuple[float, ...]:
        """Of each span."""
        hot = _hot(counts, covered)
        cost = dict(zip(hot, self.per_block([counts.codes[block] for block in hot]), strict=True))
        total = _total(counts)
        analysed = sum(total[block] * counts.length(block) for block in hot)
        average = sum(total[block] * cost[block] for block in hot) / max(1, analysed)  # cycles per instruction
        return tuple(
            sum(times * cost.get(block, average * counts.length(block)) for block, times in span.items())
            for span in counts.spans
        )


def _total(counts: Counts) -> dict[int, int]:
    total: dict[int, int] = {}
    for block, times in itertools.chain.from_iterable(span.items() for span in counts.spans):
        total[block] = total.get(block, 0) + times
    return total


def _hot(counts: Counts, part: float) -> list[int]:
    """The blocks that run this part of all instructions, the hottest first."""
    work = {block: times * counts.length(block) for block, times in _total(counts).items()}
    limit, covered, hot = part * sum(work.values()), 0, []
    for block in sorted(work, key=lambda block: (-work[block], block)):
        if covered >= limit:
            break
        hot.append(block)
        covered += work[block]
    return hot


def disassembled(codes: Sequence[bytes]) -> list[str]:
    """Each block as assembler text, a line for each instruction; data that is none is left out."""
    written = "\n".join(" ".join(f"0x{byte:02x}" for byte in code + END_CODE) for code in codes)
    said = _run([DISASSEMBLER, "--disassemble", "--triple=aarch64", FEATURES], written)
    lines = [line.partition("//")[0].rstrip() for line in said.splitlines() if line.startswith("\t")]
    blocks = "\n".join(lines).split(f"\t{END}")[:-1]
    assert len(blocks) == len(codes)
    return [re.sub(r"\A\s*\.text\n", "", block).strip("\n") for block in blocks]


def _analysed(blocks: Sequence[str], core: str) -> list[float]:
    """Cycles of each block, in the steady state of a loop around it."""
    regions = (
        f"# LLVM-MCA-BEGIN {index}\n{CALLS.sub(lambda found: f'{chr(9)}{JUMPS[found[1]]}{chr(9)}', block)}\n# LLVM-MCA-END"
        for index, block in enumerate(blocks)
    )
    options = (
        "--mtriple=aarch64",
        f"--mcpu={core}",
        FEATURES,
        f"--iterations={ITERATIONS}",
        "--skip-unsupported-instructions=any",
        "--instruction-info=false",
        "--resource-pressure=false",
    )
    said = _run([ANALYSER, *options], "\n".join(regions) + "\n")
    found: dict[int, float] = {}
    region = -1
    for line in said.splitlines():
        if match := re.match(r"\[\d+\] Code Region - (\d+)", line):
            region = int(match[1])
        elif match := re.match(r"Total Cycles:\s+(\d+)", line):
            found[region] = int(match[1]) / ITERATIONS
    # A block of nothing that the analyser knows (a system call alone) takes as many cycles as instructions.
    return [found.get(index, float(block.count("\n") + 1)) for index, block in enumerate(blocks)]


def _run(command: Sequence[str], given: str) -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise DmsflowError(command[0], f"failed ({reason})", INSTALL)
    return done.stdout


def _key(code: bytes) -> str:
    return hashlib.sha256(code).hexdigest()[:20]


def _kept(path: Path | None) -> dict[str, float]:
    """What an earlier process wrote; nothing if it was damaged: it can be computed again."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, float]) if path else {}
    except (OSError, msgspec.MsgspecError):
        return {}
