"""Cycles of AArch64 code, modelled: LLVM's machine code analyser (llvm-mca) on blocks and how often they ran.

The analyser runs each block in a loop on its model of a core, which knows the pipelines and the
latencies of instructions, but no caches and no branches that were guessed wrong. So the result ranks code
and is near the time of code that keeps its data in the first-level cache; it is modelled, and must always
be called so. An example on a core that starts four integer operations a cycle:

    block                      cycles    ran         of a run
    8 independent additions    2         1,000,000   2,000,000
    8 additions in a chain     8         1,000       8,000

One call of the analyser takes many blocks, and its result for a block is kept on disk.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from dmsflow.errors import DmsflowError
from dmsflow.files import write_atomically

INSTALL = "apt install qemu-user llvm-19 g++-aarch64-linux-gnu"
ANALYSER, DISASSEMBLER = "llvm-mca-19", "llvm-mc-19"  # one version: another one's models give other numbers
FEATURES = "--mattr=+all"
INSTRUCTION_BYTES = 4
ITERATIONS = 100
RUN_COVERAGE = 0.998  # of all instructions lie in blocks that are analysed; the others run as fast as these do
LOAD_COVERAGE = 0.9  # the same, where many blocks run a few times each
BLOCKS_A_CALL = 400
LATE_SHARE = 0.01  # of a run's blocks that other threads may have run: on a busy machine one of a runtime starts late
# No instruction of a runtime; it ends a block in the disassembler's output.
END, END_CODE = "hint\t#127", bytes.fromhex("ff2f03d5")
# The analyser lets a call take 100 cycles, for all that is called: those blocks are counted by themselves.
CALLS = re.compile(r"^\t(bl|blr)\t", re.MULTILINE)
JUMPS = {"bl": "b", "blr": "br"}


Spans = Sequence[Mapping[int, int]]  # from one mark to the next, how often which block ran


def read_counts(path: Path) -> tuple[list[bytes], list[Spans]]:
    """What an emulator counted (see native/count.c): the bytes of each block's instructions; the spans of each run.

    Raises:
        DmsflowError: it is not whole, or other threads than the first took part.
    """
    text = path.read_text(encoding="ascii") if path.is_file() else ""
    if not text.endswith("end\n"):
        raise DmsflowError(path, "the emulator did not finish counting", "try again")
    codes: list[bytes] = []
    runs: list[list[dict[int, int]]] = []
    others = Counter[int]()  # by run
    for line in text.splitlines()[:-1]:
        word, *words = line.split()
        if word == "run":
            runs.append([])
        elif word == "block":  # its number, which rises by one, address and bytes
            codes.append(bytes.fromhex(words[2]))
        elif word == "span":
            runs[-1].append({})
            others[len(runs) - 1] += int(words[0])
        else:
            runs[-1][-1][int(word)] = int(words[0])
    if any(others[at] > LATE_SHARE * sum(sum(span.values()) for span in run) for at, run in enumerate(runs)):
        raise DmsflowError(path, "the work was shared by several threads", "use --threads 1")
    return codes, list(runs)


class Model:
    """One core.

    Args:
        core: that LLVM has a model of its own for; it takes other names too, and silently uses another core's model.
        folder: where the cycles of blocks are kept.
    """

    def __init__(self, core: str, folder: Path) -> None:
        self.core = core
        self.path = folder / f"{core}.json"
        self.known: dict[str, float] = _read_known(self.path)

    def per_block(self, codes: Sequence[bytes]) -> list[float]:
        """Cycles that each block takes when it runs over and over."""
        keys = [hashlib.sha256(code).hexdigest()[:20] for code in codes]
        missing = {key: code for key, code in zip(keys, codes, strict=True) if key not in self.known}
        for begin in range(0, len(missing), BLOCKS_A_CALL):
            part = list(missing)[begin : begin + BLOCKS_A_CALL]
            blocks = disassemble([missing[key] for key in part])
            self.known |= zip(part, _analyse(blocks, self.core), strict=True)
        if missing:  # another process may have added to it meanwhile
            write_atomically(self.path, msgspec.json.encode(_read_known(self.path) | self.known))
        return [self.known[key] for key in keys]

    def cycles(self, codes: Sequence[bytes], spans: Spans, coverage: float = RUN_COVERAGE) -> tuple[float, ...]:
        """Cycles of each span; the hottest blocks are analysed, until they run this part of all instructions."""
        total: Counter[int] = Counter()
        for span in spans:
            total.update(span)
        lengths = [len(code) // INSTRUCTION_BYTES for code in codes]
        work = {block: times * lengths[block] for block, times in total.items()}
        limit, covered, hot = coverage * sum(work.values()), 0, []
        for block in sorted(work, key=lambda block: (-work[block], block)):
            if covered >= limit:
                break
            hot.append(block)
            covered += work[block]
        cost = dict(zip(hot, self.per_block([codes[block] for block in hot]), strict=True))
        average = sum(total[block] * cost[block] for block in hot) / max(1, covered)  # cycles per instruction
        return tuple(
            sum(times * cost.get(block, average * lengths[block]) for block, times in span.items()) for span in spans
        )


def disassemble(codes: Sequence[bytes]) -> list[str]:
    """Each block as assembler text, a line for each instruction; data that is none is left out."""
    written = "\n".join(" ".join(f"0x{byte:02x}" for byte in code + END_CODE) for code in codes)
    output = run_tool([DISASSEMBLER, "--disassemble", "--triple=aarch64", FEATURES], INSTALL, written)
    lines = [line.partition("//")[0].rstrip() for line in output.splitlines() if line.startswith("\t")]
    blocks = "\n".join(lines).split(f"\t{END}")[:-1]
    assert len(blocks) == len(codes)
    return [re.sub(r"\A\s*\.text\n", "", block).strip("\n") for block in blocks]


def _analyse(blocks: Sequence[str], core: str) -> list[float]:
    """Cycles of each block, in the steady state of a loop around it."""
    regions = []
    for index, block in enumerate(blocks):
        code = CALLS.sub(lambda match: f"\t{JUMPS[match[1]]}\t", block)
        regions.append(f"# LLVM-MCA-BEGIN {index}\n{code}\n# LLVM-MCA-END\n")
    options = f"--mtriple=aarch64 --mcpu={core} {FEATURES} --iterations={ITERATIONS}"
    quiet = "--skip-unsupported-instructions=any --instruction-info=false --resource-pressure=false"
    cycles: dict[int, float] = {}
    region = -1
    for line in run_tool([ANALYSER, *options.split(), *quiet.split()], INSTALL, "".join(regions)).splitlines():
        if match := re.match(r"\[\d+\] Code Region - (\d+)", line):
            region = int(match[1])
        elif match := re.match(r"Total Cycles:\s+(\d+)", line):
            cycles[region] = int(match[1]) / ITERATIONS
    # A block of nothing that the analyser knows (a system call alone) takes as many cycles as instructions.
    return [cycles.get(index, float(block.count("\n") + 1)) for index, block in enumerate(blocks)]


def run_tool(command: Sequence[str], right: str, stdin: str = "", settings: Mapping[str, str] | None = None) -> str:
    """What a program of this machine writes to stdout; a DmsflowError, with what would be `right`, if it fails."""
    environment = {**os.environ, **(settings or {})}
    done = subprocess.run(command, input=stdin.encode(), capture_output=True, check=False, env=environment)
    output, errors = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    if done.returncode:
        lines = (errors.strip() or output.strip()).splitlines()
        reasons = [line for line in lines if re.match(r"(E:|ERROR|.*\berror\b)", line)] or lines[-1:]
        raise DmsflowError(command[0], f"failed ({' '.join(reasons[:1]) or f'exit status {done.returncode}'})", right)
    return output


def _read_known(path: Path) -> dict[str, float]:
    """What an earlier process wrote; nothing if it was damaged: it can be computed again."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, float])
    except (OSError, msgspec.MsgspecError):
        return {}
