"""The TIR passes that our kernels need, and no others.

The kernels are explicit TIR: no schedule blocks, no shared memory, no software pipelines, and LLVM simplifies
and shares subexpressions better and faster. TVM's default pipeline would spend most of a compilation on
passes that change nothing.
"""

from __future__ import annotations

from typing import Any, Final

import tvm
from tvm import tirx
from tvm.s_tir.pipeline import finalize_device_passes, finalize_host_passes
from tvm.tirx.compilation_pipeline import register_tir_pipeline

KERNELS: Final = "intc_kernels"


def _kernel_pipeline() -> Any:
    """From explicit TIR to what the LLVM code generator takes, with TVM's own finalisation."""

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def run(module: Any, _context: Any) -> Any:
        passes = [
            # before anything else: LLVM vectorises the indices it leaves far better
            tirx.transform.StmtSimplify(),
            tirx.transform.FlattenBuffer(),
            tirx.transform.NarrowDataType(32),
            tirx.transform.VectorizeLoop(True),
            tirx.transform.UnrollLoop(),
            tirx.transform.VerifyMemory(),
            tirx.transform.AnnotateEntryFunc(),
            tirx.transform.SplitHostDevice(),
            tirx.transform.MakePackedAPI(),
        ]
        return tvm.ir.transform.Sequential(passes)(module)

    return run, finalize_host_passes, finalize_device_passes


register_tir_pipeline(KERNELS, _kernel_pipeline)


def build(functions: dict[Any, Any], target: Any) -> Any:
    """An executable module of PrimFuncs by GlobalVar."""
    return tvm.compile(tvm.IRModule(functions), target=target, tir_pipeline=KERNELS)
