"""Convolution of every channel with a filter of its own: channels are vector lanes, sums stay in registers.

Two rows of the image are interleaved element by element, so that one instruction multiplies both with their
weights and adds the products; neighbouring pixels share what is interleaved. What follows a sum element by
element is applied to it there; see :mod:`intc.codegen.cpu.chains`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import tvm.tirx as tir
from numpy.typing import NDArray
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.isa import ISAS, dot_pairs
from intc.codegen.cpu.vector import Vec, const, ramp, register, shuffle, typed
from intc.codegen.kernel import Expr, Frame
from intc.codegen.program import Program
from intc.ir.graph import Node
from intc.ops.window import GroupedConv

PIXELS: Final = 4  # neighbours along a row that share loads
TAPS: Final = 64  # at most, as their code is unrolled
HALF: Final = 4  # channels that an instruction interleaves side by side: of every 8 the first and the last 4

Done = Callable[[Vec, Expr, Expr], None]


def applies(program: Program, node: Node) -> bool:
    """Whether the kernel can compute ``node``."""
    op, target = node.op, program.target
    if not isinstance(op, GroupedConv) or target.gpu or not target.native:
        return False
    if not ISAS[target.level].even_odd or node.inputs[1] not in program.graph.constants:
        return False
    kh, kw, depth, outputs = (int(d) for d in program.type(node.inputs[1]).shape)  # type: ignore[arg-type]
    fits = depth == 1 and outputs == op.groups and kh * kw <= TAPS and outputs % (2 * HALF) == 0
    return fits and all(program.type(x).dtype in ("int8", "uint8", "int16") for x in node.inputs)


def segments(program: Program, channels: int) -> list[tuple[int, int, int]]:
    """Blocks of channels as (first, how many at a time, how many times): full registers first."""
    found, first, width = [], 0, 2 * ISAS[program.target.level].lanes
    while first < channels:
        while width > channels - first:
            width //= 2
        found.append((first, width, (channels - first) // width))
        first += found[-1][2] * width
    return found


def weights(program: Program, node: Node) -> NDArray[np.int16]:
    """Those of ``node`` in the order in which :func:`sums` reads them: blocks of channels, pairs of rows,
    columns, halves, then lanes.
    """
    w = program.graph.constants[node.inputs[1]][:, :, 0, :].astype(np.int16)  # KH KW C
    kh, kw, channels = w.shape
    rows = np.pad(w, ((0, kh % 2), (0, 0), (0, 0))).reshape(-1, 2, kw, channels)
    parts = []
    for first, width, count in segments(program, channels):
        block = rows[..., first : first + width * count]
        block = block.reshape(len(rows), 2, kw, count, width // (2 * HALF), 2, HALF)
        parts.append(block.transpose(3, 0, 2, 5, 4, 6, 1).reshape(-1))  # count, pair, column, half, .., row
    return np.concatenate(parts)


def sums(program: Program, node: Node, frame: Frame, x: str, w: str, done: Done) -> None:
    """Calls ``done`` with the sums of some channels, the number of their pixel and the first of the channels;
    ``x`` and ``w`` are the names of the buffers.
    """
    op = node.op
    assert isinstance(op, GroupedConv)
    batch, rows, columns, channels = program.type(node.inputs[0]).shape
    kh, kw = (int(d) for d in program.type(node.inputs[1]).shape[:2])  # type: ignore[arg-type]
    oh, ow = program.type(node.output).shape[1:3]
    each = PIXELS if isinstance(ow, int) and ow >= PIXELS else 1
    runs = -(-ow // each) if isinstance(ow, int) else ow
    (sy, sx), (dy, dx) = op.strides, op.dilations
    assert isinstance(channels, int)
    image, factors = frame.buffers[x], frame.view(w, "int16")
    with frame.share(batch * oh * runs) as run:
        line = T.bind(T.truncdiv(run, frame.dim(runs)))
        ox = T.truncmod(run, frame.dim(runs)) * each
        # the last run of a row begins earlier where pixels are missing: some are computed twice
        ox = T.bind(tir.min(ox, ow - each) if isinstance(ow, int) and ow % each else ox)
        oy, sample = T.truncmod(line, frame.dim(oh)), T.truncdiv(line, frame.dim(oh))
        first = T.bind((sample * frame.dim(rows) + oy * sy) * frame.dim(columns) + ox * sx)
        pixel = T.bind(line * frame.dim(ow) + ox)
        down = T.bind(frame.dim(columns) * (dy * channels))

        def block(c: Expr, width: int, stored: Expr) -> None:
            """The sums of ``width`` channels from ``c``, whose weights lie at ``stored``."""
            halves, lanes = (0, 1), width // 2
            # in memory for TVM, whose simplifier is slow on chains of variables; LLVM keeps them in registers
            totals = {(k, half): register(lanes) for k in range(each) for half in halves}
            for pair in range(-(-kh // 2)):
                row = T.bind(first * channels + c + down * (2 * pair))
                at = stored + pair * kw * 2 * width
                factor = {
                    (kx, half): T.Bind(factors[ramp(at + (2 * kx + half) * width, width)])
                    for kx in range(kw)
                    for half in halves
                }
                for column, users in _columns(each, kw, sx, dx):
                    place = T.bind(row + column * channels)
                    upper = _sixteen(image, place, width)
                    last = 2 * pair + 1 == kh
                    lower = const(0, width, "int16") if last else _sixteen(image, place + down, width)
                    for half in halves:
                        both = shuffle([upper, lower], _interleaved(width, half))
                        for k, kx in users:
                            total = totals[k, half]
                            before = total[0] if pair or kx else None  # columns come in order
                            T.buffer_store(total, dot_pairs(before, both, factor[kx, half], lanes), [0])
            for k in range(each):
                ordered = shuffle([totals[k, 0][0], totals[k, 1][0]], _in_order(width))
                done(Vec(ordered, width), pixel + k, c)

        stored, taps = 0, -(-kh // 2) * kw * 2
        for begin, width, count in segments(program, channels):
            if count == 1:
                block(begin, width, stored)
            else:
                with T.serial(0, count) as i:
                    block(T.bind(begin + i * width), width, T.bind(stored + i * (taps * width)))
            stored += count * taps * width


def _columns(each: int, kw: int, stride: int, dilation: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """The columns of the image under ``each`` windows, and which column of which window each is."""
    found: dict[int, list[tuple[int, int]]] = {}
    for k in range(each):
        for kx in range(kw):
            found.setdefault(k * stride + kx * dilation, []).append((k, kx))
    yield from sorted(found.items())


def _sixteen(buffer: Any, at: Expr, width: int) -> Any:
    """``width`` elements from ``at`` as int16."""
    value = buffer[ramp(at, width)]
    return T.Bind(value if buffer.dtype == "int16" else T.cast(value, typed("int16", width)))


def _interleaved(width: int, half: int) -> list[int]:
    """The lanes of one of the two results that interleaving two vectors of ``width`` has."""
    channels = [c for c in range(width) if c // HALF % 2 == half]
    return [lane for c in channels for lane in (c, width + c)]


def _in_order(width: int) -> list[int]:
    """Which lanes of both halves' sums hold the channels, in order."""
    lanes = width // 2
    return [c // (2 * HALF) * HALF + c % HALF + c // HALF % 2 * lanes for c in range(width)]
