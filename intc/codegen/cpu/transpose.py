"""Transposing copies: square blocks of elements go through registers.

An element-wise copy whose source is contiguous along one axis and whose target along another touches a line
of memory for every element. A block of 16 x 16 bytes is read as rows, transposed by shuffles and written as
rows. Fewer rows, as the channels of an image, are interleaved into one run of elements.
"""

from __future__ import annotations

import tvm.tirx as tir
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.strided import View, coalesce, rows
from intc.codegen.cpu.vector import ramp, shuffle, transposed
from intc.codegen.kernel import Expr, Frame
from intc.ir.dims import Dim, Shape

BYTES = 16  # of a vector
LINE = 64  # bytes of memory that move together
REGISTERS = 32  # vectors of a block
SET = 2048  # bytes; places so far apart share a few sets of a first-level cache


def crossing(shape: Shape, read: View, write: View, itemsize: int) -> int | None:
    """The axis of the merged ``shape`` along which ``read`` is contiguous, where ``write`` is along another
    and both hold a block, or ``write`` a few elements without gaps.
    """
    sizes, (source, target) = coalesce(shape, (read, write))
    lanes, last = BYTES // itemsize, sizes[-1]
    if target.strides[-1] != 1 or source.strides[-1] == 1 or not isinstance(last, int):
        return None
    for i, size in enumerate(sizes[:-1]):
        dense = last >= lanes or target.strides[i] == last
        if source.strides[i] == 1 and isinstance(size, int) and size >= lanes and dense:
            return i
    return None


def transposing_copy(frame: Frame, shape: Shape, read: View, write: View, axis: int, itemsize: int) -> None:
    """Copy ``x0`` to ``y`` in blocks; ``axis`` as :func:`crossing` found it."""
    sizes, (source, target) = coalesce(shape, (read, write))
    lanes, along, across = BYTES // itemsize, int(sizes[axis]), int(sizes[-1])  # type: ignore[arg-type]
    run = lanes * min(LINE // BYTES, along // lanes)
    step_in, step_out = frame.dim(source.strides[-1]), frame.dim(target.strides[axis])
    x, y = frame.buffers["x0"], frame.buffers["y"]

    def others(strides: Shape) -> Shape:
        return (*strides[:axis], *strides[axis + 1 : -1], 0)

    outer: tuple[Dim, ...] = (*sizes[:axis], *sizes[axis + 1 : -1], -(-along // run))
    views = [View(others(v.strides), v.offset) for v in (source, target)]
    with rows(frame, outer, views) as (row, bases):
        first = _start(T.truncmod(row, outer[-1]), run, along)
        if across < lanes:
            origin = T.bind(bases[0] + first)
            taken = [T.bind(x[ramp(origin + i * step_in, run)]) for i in range(across)]
            order = [i * run + lane for lane in range(run) for i in range(across)]
            to = T.bind(bases[1] + first * across)
            T.buffer_store(y, shuffle(taken, order), [ramp(to, run * across)])
            return
        # lines of the target that share a set of the cache push each other out: they are written at once
        crowded = isinstance(step_out, int) and step_out * itemsize % SET == 0
        width = lanes * min(LINE // BYTES, across // lanes, REGISTERS // lanes) if crowded else lanes

        def move(at: Expr, column: Expr) -> None:
            origin = T.bind(bases[0] + at + column * step_in)
            taken = [T.bind(x[ramp(origin + i * step_in, lanes)]) for i in range(width)]
            blocks = [transposed(taken[i : i + lanes], lanes) for i in range(0, width, lanes)]
            origin = T.bind(bases[1] + at * step_out + column)
            for i, parts in enumerate(zip(*blocks, strict=True)):
                line = shuffle(list(parts), list(range(width))) if len(parts) > 1 else parts[0]
                T.buffer_store(y, line, [ramp(origin + i * step_out, width)])

        with T.serial(0, -(-across // width)) as block:
            column = _start(block, width, across)
            if width > lanes:
                with T.serial(0, run // lanes) as part:
                    move(T.bind(first + part * lanes), column)
            else:
                for part in range(run // lanes):
                    move(T.bind(first + part * lanes), column)


def _start(block: Expr, size: int, total: int) -> Expr:
    """Where a block begins; the last one overlaps the one before it rather than the end."""
    return T.bind(block * size if total % size == 0 else tir.min(block * size, total - size))
