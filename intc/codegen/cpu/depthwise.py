"""Convolution of every channel with a filter of its own: channels are vector lanes, sums stay in registers.

What follows a sum element by element is applied to it there; see :mod:`intc.codegen.cpu.chains`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import tvm.tirx as tir
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.isa import ISAS
from intc.codegen.cpu.vector import Vec, load
from intc.codegen.kernel import Expr, Frame
from intc.codegen.program import Program
from intc.ir.graph import Node
from intc.ops.window import GroupedConv

PIXELS: Final = 4  # neighbours along a row that share the loads of the weights
TAPS: Final = 64  # at most, as their code is unrolled


def lanes(program: Program, node: Node) -> int:
    """How many channels the kernel takes at a time; 0 where it does not apply."""
    op, target = node.op, program.target
    if not isinstance(op, GroupedConv) or target.gpu or not target.native:
        return 0
    if not ISAS[target.level].even_odd:
        return 0
    kh, kw, depth, outputs = (int(d) for d in program.type(node.inputs[1]).shape)  # type: ignore[arg-type]
    fits = depth == 1 and outputs == op.groups and kh * kw <= TAPS
    count = ISAS[target.level].lanes
    narrow = all(program.type(x).dtype in ("int8", "uint8", "int16") for x in node.inputs)
    return count if fits and narrow and outputs % count == 0 else 0


def sums(
    program: Program, node: Node, frame: Frame, x: str, w: str, done: Callable[[Vec, Expr, Expr], None]
) -> None:
    """Calls ``done`` with the sums of :func:`lanes` channels, the number of their pixel and the first of the
    channels; ``x`` and ``w`` are the names of the buffers.
    """
    op, width = node.op, lanes(program, node)
    assert isinstance(op, GroupedConv)
    types = {name: program.type(value).dtype for name, value in zip((x, w), node.inputs, strict=True)}
    batch, rows, columns, channels = program.type(node.inputs[0]).shape
    kh, kw = (int(d) for d in program.type(node.inputs[1]).shape[:2])  # type: ignore[arg-type]
    oh, ow = program.type(node.output).shape[1:3]
    each = PIXELS if isinstance(ow, int) and ow >= PIXELS else 1
    runs = -(-ow // each) if isinstance(ow, int) else ow
    (sy, sx), (dy, dx) = op.strides, op.dilations
    assert isinstance(channels, int)
    with frame.share(batch * oh * runs) as run:
        line = T.bind(T.truncdiv(run, frame.dim(runs)))
        ox = T.truncmod(run, frame.dim(runs)) * each
        # the last run of a row begins earlier where pixels are missing: some are computed twice
        ox = T.bind(tir.min(ox, ow - each) if isinstance(ow, int) and ow % each else ox)
        oy, image = T.truncmod(line, frame.dim(oh)), T.truncdiv(line, frame.dim(oh))
        first = T.bind((image * frame.dim(rows) + oy * sy) * frame.dim(columns) + ox * sx)
        pixel = T.bind(line * frame.dim(ow) + ox)
        with T.serial(0, channels // width) as block:
            c = T.bind(block * width)
            totals: list[Vec | None] = [None] * each
            for ky in range(kh):
                row = T.bind((first + ky * dy * frame.dim(columns)) * channels + c)
                for kx in range(kw):
                    factor = load(frame.buffers[w], (ky * kw + kx) * channels + c, width, types[w])
                    for k in range(each):
                        at = row + (kx * dx + k * sx) * channels
                        term = load(frame.buffers[x], at, width, types[x]) * factor
                        before = totals[k]
                        totals[k] = term if before is None else before + term
            for k, total in enumerate(totals):
                assert total is not None
                done(total, pixel + k, c)
