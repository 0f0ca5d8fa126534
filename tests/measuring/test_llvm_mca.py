"""Modelled cycles: loops whose throughput is known, and what an emulator's plugin writes."""

from __future__ import annotations

import pytest

from dmsflow.errors import DmsflowError
from dmsflow.measuring.devices.emulated import llvm_mca
from dmsflow.measuring.devices.emulated.llvm_mca import Model

ADD, FADD, FMLA = "00040091", "0028201e", "20cc224e"  # add x0, x0, #1; fadd s0, s0, s0; fmla v0.4s, v1.4s, v2.4s


def code(*words: str) -> bytes:
    return bytes.fromhex("".join(words))


@pytest.mark.parametrize(
    ("core", "word", "latency"),
    [  # as ARM's optimisation guides have them
        ("cortex-a53", ADD, 1),
        ("cortex-a57", ADD, 1),
        ("neoverse-n1", ADD, 1),
        ("cortex-a57", FADD, 5),
        ("neoverse-n1", FADD, 2),
        ("neoverse-n1", FMLA, 4),
    ],
)
def test_a_chain_takes_its_latencies(core, word, latency, tmp_path):
    assert Model(core, tmp_path).per_block([code(word) * 16]) == pytest.approx([16 * latency], rel=0.01)


def test_what_does_not_wait_for_each_other_shares_the_pipes(tmp_path):
    """Three integer pipes of the N1, two of the A57 and the A53."""
    independent = b"".join((0x91000400 + 33 * register).to_bytes(4, "little") for register in range(12))
    for core, expected in (("neoverse-n1", 4), ("cortex-a57", 6), ("cortex-a53", 6)):
        assert Model(core, tmp_path).per_block([independent]) == pytest.approx([expected], rel=0.02)


def test_popcounts_take_two_pipes(tmp_path):
    """eor, cnt and add of 128 bits, eight times: 24 operations, two a cycle."""
    words = [
        word.to_bytes(4, "little")
        for register in range(8)
        for word in (
            0x6E3F1C00 + 33 * register,  # eor v.16b, v.16b, v31.16b
            0x4E205800 + 33 * register,  # cnt v.16b, v.16b
            0x4E208400 + 33 * (register + 10) + (register << 16),  # add v+10, v+10, v
        )
    ]
    assert Model("neoverse-n1", tmp_path).per_block([b"".join(words)]) == pytest.approx([12], rel=0.02)
    assert llvm_mca.disassemble([words[1]]) == ["\tcnt\tv0.16b, v0.16b"]


def test_a_call_is_no_more_than_its_jump(tmp_path):
    call, jump = code(ADD, "02000094"), code(ADD, "02000014")
    assert llvm_mca.disassemble([call, jump]) == ["\tadd\tx0, x0, #1\n\tbl\t#8", "\tadd\tx0, x0, #1\n\tb\t#8"]
    first, second = Model("neoverse-n1", tmp_path).per_block([call, jump])
    assert first == second < 2


def test_data_among_the_code_takes_no_time(tmp_path):
    junk = code("ffffffff")
    assert Model("cortex-a57", tmp_path).per_block([code(ADD), junk + code(ADD)])[1] == pytest.approx(1, rel=0.05)


def test_blocks_are_weighed_by_how_often_they_ran(tmp_path):
    codes = (code(ADD) * 4, code(FADD) * 4)
    spans = {0: 1000}, {1: 500}, {0: 10, 1: 10}
    assert Model("neoverse-n1", tmp_path).cycles(codes, spans) == pytest.approx([4000, 4000, 120], rel=0.01)


def test_cold_blocks_run_as_fast_as_the_hot_ones(tmp_path):
    codes = (code(FADD) * 4, code(ADD) * 4)  # 2 cycles an instruction
    (both,) = Model("neoverse-n1", tmp_path).cycles(codes, [{0: 1_000_000, 1: 1}])
    (hot,) = Model("neoverse-n1", tmp_path).cycles(codes, [{0: 1_000_000}])
    assert both - hot == pytest.approx(8, rel=0.01)


def test_nothing_takes_no_cycles(tmp_path):
    assert Model("cortex-a53", tmp_path).cycles((), [{}]) == (0,)


def test_what_was_analysed_is_kept(tmp_path, monkeypatch):
    blocks = [code(ADD) * 3, code(FADD)]
    found = Model("cortex-a53", tmp_path).per_block(blocks)
    monkeypatch.setattr(llvm_mca, "run_tool", lambda *_: pytest.fail("was analysed again"))
    assert Model("cortex-a53", tmp_path).per_block(blocks) == found


def test_a_damaged_record_is_made_again(tmp_path):
    (tmp_path / "cortex-a53.json").write_text('{"abc')
    (found,) = Model("cortex-a53", tmp_path).per_block([code(ADD)])
    assert found == pytest.approx(1, rel=0.05)
    assert (tmp_path / "cortex-a53.json").read_bytes().endswith(b"}")


def test_the_file_of_the_plugin_is_read(tmp_path):
    path = tmp_path / "counts"
    path.write_text(
        f"run\nblock 0 4000a0 {ADD}\nspan 0\n0 7\nblock 1 5500001000 {ADD}{FADD}\nspan 0\n1 2\n0 1\nrun\nspan 0\nend\n"
    )
    codes, runs = llvm_mca.read_counts(path)
    assert codes == [code(ADD), code(ADD, FADD)]
    assert runs == [[{0: 7}, {1: 2, 0: 1}], [{}]]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "did not finish counting"),
        ("", "did not finish counting"),
        ("run\nspan 0\n0 7", "did not finish counting"),
        (f"run\nblock 0 0 {ADD}\nspan 3\n0 7\nend\n", "shared by several threads"),
    ],
)
def test_counts_that_are_not_whole_are_refused(tmp_path, text, what):
    path = tmp_path / "counts"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DmsflowError, match=what):
        llvm_mca.read_counts(path)


def test_a_thread_that_starts_late_shares_no_work(tmp_path):
    path = tmp_path / "counts"
    path.write_text(f"run\nblock 0 0 {ADD}\nspan 3\n0 7000\nend\n")
    assert llvm_mca.read_counts(path)[1] == [[{0: 7000}]]
