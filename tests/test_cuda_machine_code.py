"""The instructions of a GPU are told apart; certificate and ``intc verify`` say what was read of them.

NVIDIA's disassembler is not needed: a program that prints a listing stands for it. What it makes of our
kernels is in ``test_cuda_compiler``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from intc.codegen.cuda import machine_code
from intc.codegen.cuda.machine_code import GpuCode, classify, kind, ptx_floats
from intc.codegen.lower import lower
from intc.errors import CodegenError
from intc.module import Module
from intc.report.tables import verification_text
from intc.report.verify import verify_artifact
from tests.emulated import emulation
from tests.small import small_feeds, small_graph

LISTING = """
Fatbin elf code:
================
arch = sm_80

\tcode for sm_80
\t\tFunction : linear_0
\t.headerflags\t@"EF_CUDA_SM80"
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;   /* 0x00000a00ff017624 */
                                                                             /* 0x000fc400078e00ff */
        /*0010*/              @!P0 HFMA2.MMA R7, -RZ, RZ, 0, 5.9604644775390625e-08 ;  /* 0x0 */
        /*0020*/                   IMMA.16832.S8.S8 R4, R4.ROW, R8.COL, R12 ;          /* 0x0 */
\t\tFunction : copy_1
        /*0000*/               @P1 EXIT ;                                              /* 0x0 */
"""
FLOATS = """
FADD FFMA FMUL FSEL FSETP FMNMX DADD DFMA HADD2 HADD2.F32 HMUL2.BF16_V2 HFMA2 HMMA.16816.F32
HGMMA.64x64x16.F32 QGMMA.64x8x32.F32.E4M3.E4M3 DMMA.884 MUFU.RCP I2F.U32.RP F2I.FTZ.U32.F32.TRUNC.NTZ
F2F.F32.F64 I2FP.F32.U32 F2FP.BF16.F32.PACK_AB FRND FCHK FSWZADD TEX TLD4 UTCHMMA
RED.E.ADD.F32.FTZ.RN.STRONG.GPU UFADD ATOMG.E.ADD.F64.RN ATOMS.ADD.F32 REDG.E.ADD.BF16x2.RN.STRONG.GPU
UNHEARDOF
"""
FLOAT_LINE = "        /*0010*/                   FADD R2, R2, 1.5 ;          /* 0x0 */\n"


INTEGERS = """
IMAD IMAD.WIDE.U32 IMAD.MOV.U32 IADD3.X LOP3.LUT SHF.R.S32.HI LEA.HI.X.SX32 VIMNMX.U32 ISETP.GE.U32.AND
IMMA.16832.U8.S8 IGMMA.64x128x32.S8.S8.SAT LDG.E.128.CONSTANT LDS.U.128 STG.E.U8 ATOMG.E.ADD.STRONG.GPU
BAR.SYNC UIADD3 PLOP3.LUT MOV S2R R2UR SHFL.BFLY PRMT BRA EXIT NOP CS2R.32 LDGSTS.E.BYPASS.LTC128B.128
REDUX.SUM.S32
"""


def test_instructions_are_told_apart() -> None:
    assert [name for name in FLOATS.split() if kind(f"{name} R0, R1, R2") != "float"] == []
    assert [name for name in INTEGERS.split() if kind(f"{name} R0, R1, R2") != ""] == []
    assert kind("HFMA2 R3, -RZ, RZ, 0, 0") == "move"
    assert kind("HFMA2 R3, -RZ, R4, 0, 0") == "float"


def test_a_listing_is_counted_by_architecture_and_kernel() -> None:
    found = classify(LISTING)
    assert found == GpuCode({"sm_80": {"linear_0": 3, "copy_1": 1}}, {"HFMA2.MMA": 1}, ())
    assert found.summary()["instructions"] == 4
    wrong = classify(LISTING + FLOAT_LINE)
    assert wrong is not None
    assert wrong.floats == ("sm_80 copy_1: FADD R2, R2, 1.5",)
    assert classify("cuobjdump info: nothing here\n") is None


def test_what_becomes_floating_point_is_found_before_the_assembler() -> None:
    text = """
    //.f32 in a comment
    mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r1, %r2, %r3, %r4}, {%r5};
    div.u32 %r1, %r2, 7;
    {}
    """
    assert ptx_floats(text) == []
    for line in ("add.f32 %f1, %f2, %f3;", "cvt.rn.bf16x2.f32 %r1, %f1, %f2;", "div.s32 %r1, %r2, %r3;"):
        assert ptx_floats(text.replace("{}", line)) == [line]


def stand_in(folder: Path, listing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in place of ``cuobjdump`` that prints ``listing``."""
    program = folder / "cuobjdump"
    program.write_text(f"#!/bin/sh\ncat <<'EOF'\n{listing}\nEOF\n")
    program.chmod(0o755)
    monkeypatch.setattr(machine_code, "disassembler", lambda: str(program))


def test_the_certificate_has_the_code_and_verify_reads_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, path = small_graph(), tmp_path / "small.intc"
    with emulation():
        stand_in(tmp_path, LISTING, monkeypatch)
        module = Module(graph, graph, lower(graph, "cuda"), tuple(graph.outputs))
        assert module.certificate["machine_code"]["functions"] == {"sm_80": {"copy_1": 1, "linear_0": 3}}
        module.save(path)
        same = verify_artifact(path, small_feeds(3), device="cuda")
        assert same.passed
        assert same.float_instructions == []
        assert "float-free (graph and machine code): yes" in verification_text(path, same)

        stand_in(tmp_path, LISTING + FLOAT_LINE, monkeypatch)
        other = verify_artifact(path, small_feeds(3), device="cuda")
        assert not other.passed
        assert other.float_instructions == ["sm_80 copy_1: FADD R2, R2, 1.5"]
        assert other.certificate == ["machine_code"]
        with pytest.raises(CodegenError, match=r"floating point in the kernels for cuda: sm_80 copy_1: FADD"):
            lower(graph, "cuda")


def test_verify_says_that_the_code_was_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it was when the artifact was made."""
    graph, path = small_graph(), tmp_path / "small.intc"
    with emulation():
        stand_in(tmp_path, LISTING, monkeypatch)
        Module(graph, graph, lower(graph, "cuda"), tuple(graph.outputs)).save(path)
        for tool, why in ((None, "cuobjdump is not installed"), ("true", "cuobjdump finds no code of a GPU")):
            monkeypatch.setattr(machine_code, "disassembler", lambda tool=tool: tool)
            result = verify_artifact(path, small_feeds(3), device="cuda")
            assert result.passed
            assert result.float_instructions is None
            assert f"the kernels' instructions were NOT read: {why}" in verification_text(path, result)
