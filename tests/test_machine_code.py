"""The float-free certificate: every instruction is classified, and a planted float is found."""

from __future__ import annotations

import json
import subprocess
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from intc.artifact import schema, tensors
from intc.artifact.container import Container
from intc.artifact.writer import write_artifact
from intc.codegen import rules
from intc.codegen.kernel import Frame, store
from intc.codegen.lower import lower
from intc.codegen.machine_code import Functions, kind, machine_code
from intc.codegen.program import Program
from intc.errors import ArtifactCorrupt, CodegenError
from intc.ir.graph import Node
from intc.report.reading import read_graph
from intc.report.verify import verify_artifact
from tests.small import small_feeds, small_graph, small_module

T = pytest.importorskip("tvm.tirx.script.builder").ir


def words(text: str) -> set[str]:
    return set(text.split())


FLOATS = words(
    """
    addss addps vaddpd subsd mulps vmulss divpd sqrtss rcpps rsqrtss minps vmaxsd roundss vrndscaleps
    vfmadd231ps vfnmsub132sd dpps haddps addsubps cmpps vcmpltpd comiss ucomisd cvtsi2ss cvttps2dq
    vcvtdq2ps vcvtps2ph vdpbf16ps vgetexpps vscalefpd vreduceps vfixupimmps vrangeps vfpclassps pfadd
    pi2fd vaesenc
    """
)
STACK = words(
    """
    fld fstp fadd fild fistp fmul fsqrt fxch fwait wait emms fxsave ldmxcsr vstmxcsr
    """
)
INTEGERS = words(
    """
    paddd vpaddq pmaddwd vpdpbusd vpdpwssd pmulhrsw vpmulhrsw vpmuldq pxor vpxorq pand pandn vpandn
    vpternlogd vpermd vpermq vpermt2w vpermi2b pshufb vpshuflw psrad vpsravq vpsllvd vprolvd vpshldd
    packssdw vpmovsdb vpmovzxbd pminud vpmaxsq pextrd vpinsrq palignr vpcmpgtq vptestnmd vpabsw vpsadbw
    vpopcntb vpbroadcastd vpblendmd vplzcntd vpconflictq vpcompressd vpgatherdd vpscatterqd vpsignd
    vphaddd vptest vpmaskmovd
    """
)
MOVES = words(
    """
    movaps vmovups movdqu vmovdqa64 vmovd movq movss vmovsd vbroadcastss vbroadcasti32x4 shufps
    vshufi64x2 unpcklps vblendvpd vpermilps vpermps vpermpd vperm2i128 vextracti64x4 vinsertf128 xorps
    vandnpd valignd kmovd kandw kortestb vgatherdps vmovmskps
    """
)


def test_instructions_are_told_apart() -> None:
    registers = "zmm0, zmm1, zmm2"
    assert {m for m in FLOATS if kind(m, registers) != "float"} == set()
    assert {m for m in STACK if kind(m, "dword ptr [rsp]") != "float"} == set()
    assert {m for m in INTEGERS if kind(m, registers) != ""} == set()
    assert {m for m in MOVES if kind(m, registers.replace("zmm2", "k1")) != "move"} == set()
    assert kind("vzeroupper") == "move"
    assert kind("rep movsd", "dword ptr [rdi], dword ptr [rsi]") == ""
    assert {kind(m, "eax, dword ptr [rcx]") for m in ("add", "imul", "shlx", "popcnt", "prefetcht1")} == {""}


def test_every_function_of_a_library_is_counted() -> None:
    lowered = small_module().lowered
    code = lowered.code
    assert code is not None
    assert code.floats == ()
    assert set(code.moves) <= {m for m in code.moves if kind(m, "zmm0") == "move"}
    assert f"{lowered.entry}_compute_" in code.functions
    assert "TVMFFIErrorSetRaisedFromCStrParts" in code.calls
    assert code.summary()["instructions"] > 300


def float_add(program: Program, node: Node) -> None:
    """A kernel for ``a + b`` that computes in float32: the fault that the certificate is there to find."""

    def body(frame: Frame) -> None:
        with frame.share(10) as i:
            a, b = (T.cast(frame.buffers[x][i], "float32") for x in ("x0", "x1"))
            store(frame.buffers["y"], a + b, i)

    program.generic("float_add", (), node.inputs, node.output, body, source=node.source)


def test_a_kernel_that_computes_in_floats_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "RULES", {**rules.RULES, "add": float_add})
    with pytest.raises(CodegenError, match=r"floating point in the kernels for x86-64-v3: .*v(cvt|add)"):
        lower(small_graph(), "x86-64-v3")


def planted(artifact: Path, out: Path, instruction: bytes) -> Path:
    """The artifact with an instruction over padding between its functions, sealed again."""
    manifest, graph = read_graph(artifact)
    container = Container(artifact)
    library = bytearray(container.member(manifest.kernels))
    at = library.index(b"\x66\x2e\x0f\x1f\x84\x00")  # a long nop
    library[at : at + 6] = instruction.ljust(6, b"\x90")
    library[at + 6 : at + 10] = b"\x90" * 4
    certificate = json.loads(bytes(container.member(schema.CERTIFICATE)))
    weights = tensors.decode(container.member(schema.WEIGHTS), "")
    text = bytes(container.member(schema.GRAPH)).decode()
    write_artifact(out, manifest, text, weights, bytes(library), certificate)
    return out


@pytest.mark.parametrize(
    ("instruction", "name"),
    [
        (b"\xf3\x0f\x58\xc1", "addss xmm0, xmm1"),
        (b"\xc5\xfc\x58\xc1", "vaddps ymm0, ymm0, ymm1"),
        (b"\xd8\xc1", "fadd st(1)"),
        (b"\x0f\xff\xff\xff\xff\xff", "undecodable"),
    ],
)
def test_verify_finds_a_planted_float(artifact: Path, tmp_path: Path, instruction: bytes, name: str) -> None:
    good = verify_artifact(artifact, small_feeds(3))
    assert good.passed
    assert good.float_instructions == []
    bad = verify_artifact(planted(artifact, tmp_path / "bad.intc", instruction), small_feeds(3))
    assert bad.bit_exact
    assert not bad.float_free
    assert not bad.passed
    assert bad.float_instructions is not None
    assert any(name in found for found in bad.float_instructions)
    assert bad.certificate == ["machine_code"]


def test_verify_finds_a_certificate_that_claims_too_much(artifact: Path, tmp_path: Path) -> None:
    manifest, graph = read_graph(artifact)
    container = Container(artifact)
    certificate = json.loads(bytes(container.member(schema.CERTIFICATE)))
    certificate["intervals"]["sums"][2] -= 1
    weights = tensors.decode(container.member(schema.WEIGHTS), "")
    text, kernels = (bytes(container.member(n)) for n in (schema.GRAPH, manifest.kernels))
    write_artifact(tmp_path / "bad.intc", manifest, text.decode(), weights, kernels, certificate)
    result = verify_artifact(tmp_path / "bad.intc", small_feeds(3))
    assert result.certificate == ["intervals"]
    assert not result.passed


def test_what_is_no_library_for_this_processor() -> None:
    library = small_module().lowered.library
    arm = bytearray(library)
    arm[18:20] = (183).to_bytes(2, "little")
    assert machine_code(bytes(arm)) is None
    for bad in (b"", b"\x7fELF", library[:200], np.random.default_rng(0).bytes(4000)):
        with pytest.raises(ArtifactCorrupt, match="no readable ELF library"):
            machine_code(bad)


def test_addresses_without_a_function() -> None:
    elf = SimpleNamespace(get_section_by_name=lambda name: None, has_dwarf_info=lambda: False)
    assert Functions(elf).at(4096) == ""


def test_a_function_that_is_inlined_as_well_is_named_by_its_origin(tmp_path: Path) -> None:
    source = tmp_path / "both.c"
    source.write_text("int twice(int x) { return 2 * x * x; }\nint more(int x) { return twice(x) + 1; }\n")
    library = tmp_path / "both.so"
    subprocess.run(
        ["gcc", "-O2", "-g", "-fno-semantic-interposition", "-shared", "-fPIC", "-o", library, source],
        check=True,
    )
    elf = ELFFile(BytesIO(library.read_bytes()))
    origins = [
        entry
        for unit in elf.get_dwarf_info().iter_CUs()
        for entry in unit.iter_DIEs()
        if "DW_AT_abstract_origin" in entry.attributes and "DW_AT_low_pc" in entry.attributes
    ]
    assert origins, "the compiler describes it that way"
    assert {"twice", "more"} <= {name for _, _, name in Functions(elf).ranges}
