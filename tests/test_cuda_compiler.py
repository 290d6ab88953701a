"""What NVIDIA's compiler makes of the kernels, for every architecture: no GPU is needed, nvcc is."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest

from intc.codegen.cuda import compiler
from intc.codegen.cuda.machine_code import MISSING, disassembler, gpu_code, ptx_floats
from intc.codegen.cuda.source import assemble
from intc.codegen.lower import lower
from intc.errors import CodegenError, UsageError
from intc.ir.dims import symbol
from intc.ir.graph import Builder, Graph
from intc.ir.types import TensorType
from intc.ops.division import Divide
from intc.ops.fused import Linear
from intc.ops.shift import ShiftLayerNorm, Shiftmax
from tests.kernel_cases import Case, ints
from tests.product_cases import linear_case
from tests.test_cuda_kernels import attention_case, t, wide_attention_case
from tests.test_cuda_layer_norm import residual

NVCC = compiler.nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
needs_cuobjdump = pytest.mark.skipif(disassembler() is None, reason=MISSING)
KERNELS = {"linear", "attention", "layer_norm", "divide"}
ARCHITECTURES = (75, 80, 86, 89, 90)


def network() -> Graph:
    """Every hand-written kernel with every kind of epilogue, and printed ones with divisions."""
    op = Linear(-127, 127, "int8")
    g, b = ints(-(2**20), 2**20, (192,), np.int32), ints(-(2**45), 2**45, (192,), np.int64)
    cases = [
        linear_case(t((64, 192), "int8", -127, 127), 256, op),
        linear_case(t((64, 192), "int8", -127, 127), 192, Linear(-127, 127, "int8", gelu="none", frac=11)),
        linear_case(
            t((64, 64), "int8", -127, 127), 65, Linear(-127, 127, "int8", gelu="none", frac=11, centred=True)
        ),
        linear_case(t((64, 64), "uint8"), 64, Linear(-32767, 32767, "int16", residual=True)),
        linear_case(t((64, 64), "int16", -4096, 4095), 64, Linear(-(2**31), 2**31 - 1, "int32", raw=True)),
        attention_case(64, 3, 197, 197, 0),
        attention_case(32, 2, 49, 49, 0, masked=True, biased=True),
        wide_attention_case(64, 197, 4095, 4095),
        wide_attention_case(64, symbol("rows"), 4095, 4095, masked=True),
        Case(ShiftLayerNorm(3, 40, -127, 127, "int8"), (t((5, 192), "int16", -5000, 5000), g, b)),
        Case(Shiftmax(2**30, 40, 8), (t((3, 50), "int32", -90000, 90000),)),
        Case(Divide(8, 2**20), (t((40,), "int32", -(2**20), 2**20), t((40,), "int32", -999, 999))),
    ]
    builder = Builder("kernels")
    for i, case in enumerate(cases):
        names = [
            builder.input(f"x{i}_{j}", item)
            if isinstance(item, TensorType)
            else builder.constant(f"c{i}_{j}", item)
            for j, item in enumerate(case.inputs)
        ]
        builder.output(builder.emit(case.op, *names, name=f"y{i}"))
    residual(builder, 768)
    return builder.finish()


@cache
def source() -> str:
    """The source of :func:`network`, and nothing compiled."""
    with pytest.MonkeyPatch.context() as patch:
        found: dict[str, str] = {}
        patch.setattr(
            compiler, "compile_kernels", lambda kernels, architectures: found.update(kernels) or b""
        )
        lower(network(), "cuda")
    return assemble(found)


@cache
def ptx(architecture: int) -> str:
    assert NVCC is not None
    return compiler.run_nvcc(NVCC, source(), ["-ptx", f"-arch=sm_{architecture}"]).code.decode()


@cache
def cubin(architecture: int) -> compiler.Compiled:
    """The machine code, and the assembler's account of it."""
    assert NVCC is not None
    options = ["-cubin", f"-arch=sm_{architecture}", "-Xptxas", "-v"]
    return compiler.run_nvcc(NVCC, ptx(architecture), options, "ptx")


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_registers_suffice(architecture: int) -> None:
    """No spills; registers for at least two blocks of the largest kernels on a multiprocessor."""
    log = cubin(architecture).log
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    assert len(registers) >= 12
    assert set(spills) == {("0", "0")}
    assert max(registers) <= 168


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tensor_cores_and_no_floating_point(architecture: int) -> None:
    text = ptx(architecture)
    shape = "m16n8k32" if architecture >= 80 else "m8n8k16"
    for kind in ("s8", "u8"):
        assert f"mma.sync.aligned.{shape}.row.col.s32.{kind}.s8.s32" in text
    assert ("cp.async.cg.shared.global" in text) == (architecture >= 80)
    assert "ldmatrix.sync.aligned.m8n8.x4.shared.b16" in text
    assert ptx_floats(text) == []


@needs_nvcc
@pytest.mark.slow
@needs_cuobjdump
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_machine_code_has_no_floating_point(architecture: int) -> None:
    found = gpu_code(cubin(architecture).code)
    assert found is not None
    assert found.floats == ()
    assert found.instructions > 10_000
    assert {name.rpartition("_")[0] for name in found.functions[f"sm_{architecture}"]} >= KERNELS


@needs_nvcc
@needs_cuobjdump
def test_floating_point_is_found() -> None:
    """A division by a variable, which the compiler computes by floating point, and a plain sum of floats."""
    assert NVCC is not None
    for body, name in (("*x = *x / *y", "MUFU"), ("*(float*)x += 1.5f", "FADD")):
        code = f'extern "C" __global__ void f(unsigned* x, unsigned* y) {{ {body}; }}'
        found = gpu_code(compiler.run_nvcc(NVCC, code, ["-cubin", "-arch=sm_80"]).code)
        assert found is not None
        assert any(f.startswith("sm_80 f: ") and name in f for f in found.floats)


@pytest.mark.parametrize("by", ["nvcc", "NVRTC"])
@pytest.mark.parametrize(
    ("body", "line"), [("*x = *x / *y", r"div\.u32"), ("*(float*)x += 1.5f", r"(ld\.global|add\.\w*)\.f32")]
)
def test_floating_point_is_refused_without_a_disassembler(
    body: str, line: str, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "NVRTC":
        monkeypatch.setattr(compiler, "nvcc", lambda: None)
    try:
        compiler.require()
    except UsageError:
        pytest.skip(f"{by} is not installed")
    kernel = f'extern "C" __global__ void f(unsigned* x, unsigned* y) {{ {body}; }}'
    with pytest.raises(CodegenError, match=f"floating point in the PTX of the kernels: {line}"):
        compiler.compile_kernels({"f": kernel}, (80, 90))


@needs_nvcc
def test_what_the_compiler_refuses() -> None:
    with pytest.raises(
        CodegenError, match=r"refused the kernels: .*error: identifier .nonsense. is undefined"
    ):
        compiler.compile_kernels({"broken": "nonsense x;"}, (80,))
    with pytest.raises(UsageError, match=r"name an architecture that this CUDA release compiles for"):
        compiler.compile_kernels({}, (61, 999))


def test_without_any_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "nvcc", lambda: None)
    monkeypatch.setattr(compiler.ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    for attempt in (compiler.require, lambda: compiler.compile_kernels({}, (80,))):
        with pytest.raises(UsageError, match=r"target 'cuda' needs nvcc .* or NVRTC"):
            attempt()
