"""Windows over images as rows of a matrix product: copied from the image when the product packs its rows, so
that the matrix of all windows is never in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import tvm.tirx as tir
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.tile import Packed
from intc.codegen.cpu.vector import const, ramp
from intc.codegen.program import Program
from intc.ir.dims import Dim
from intc.ir.graph import Graph, Node
from intc.ops.fused import Linear
from intc.ops.im2col import Im2col

LONGEST: Final = 64  # elements that one vector copies


@dataclass(frozen=True)
class Windows:
    """How rows lie in an image of ``planes`` planes, each [H, W, ``depth``]: one plane where the channels of
    a pixel lie side by side, otherwise one per channel. The other fields are those of :class:`Im2col`.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int]
    dilations: tuple[int, int]
    planes: int
    depth: int
    fill: int
    bounded: bool

    @property
    def k(self) -> int:
        """Elements of a row."""
        return self.planes * self.kernel[0] * self.kernel[1] * self.depth


def inlined(program: Program) -> frozenset[str]:
    """The matrices of windows that only matrix products read."""
    graph: Graph = program.graph
    users = graph.users()
    if not program.target.native:
        return frozenset()
    return frozenset(
        node.output
        for node in graph.nodes
        if isinstance(node.op, Im2col)
        and node.output not in graph.outputs
        and all(
            isinstance(user.op, Linear) and user.inputs.count(node.output) == 1 for user in users[node.output]
        )
    )


def windows(program: Program, node: Node) -> tuple[Windows, tuple[Dim, Dim, Dim, Dim]]:
    """The form of the rows of Im2col ``node``, and the sizes H, W, OH and OW."""
    op, x = node.op, program.type(node.inputs[0])
    assert isinstance(op, Im2col)
    height, width = x.shape[1:3] if op.channels_last else x.shape[2:]
    channels = x.shape[3 if op.channels_last else 1]
    assert isinstance(channels, int)
    planes, depth = (1, channels) if op.channels_last else (channels, 1)
    top, left = op.pads[:2]
    form = Windows(op.kernel, op.strides, (top, left), op.dilations, planes, depth, op.fill, any(op.pads))
    return form, (height, width, *op.output_size(x))


def emit_pack_windows(
    form: Windows,
    sizes: tuple[Any, Any, Any, Any],
    x: Any,
    first: Any,
    rows: Any,
    to: Packed,
    around: int,
) -> None:
    """Copy rows ``first`` and the ``rows - 1`` behind it of the windows over ``x``; ``sizes`` are H, W, OH
    and OW, ``around`` is the converted element beyond the image.
    """
    height, width, oh, ow = sizes
    (kh, kw), (sy, sx), (top, left), (dy, dx) = form.kernel, form.strides, form.pads, form.dilations

    def copied(source: Any, target: Any, count: int) -> None:
        def copy(at: Any, n: int) -> None:
            T.buffer_store(to.buffer, to.convert(x[ramp(source + at, n)], n), [ramp(target + at, n)])

        _spans(count, copy)

    def filled(target: Any, count: int) -> None:
        def fill(at: Any, n: int) -> None:
            T.buffer_store(to.buffer, const(around, n, to.dtype), [ramp(target + at, n)])

        _spans(count, fill)

    def guarded(inside: Any, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
        if not form.bounded:
            then()
            return
        with T.If(inside):
            with T.Then():
                then()
            with T.Else():
                otherwise()

    def pixels(line: Any, ix: Any, target: Any) -> None:
        """One row of a window, pixel by pixel."""
        with T.serial(0, kw) as kx:
            at, place = T.Bind(ix + kx * dx), T.Bind(target + kx * form.depth)
            guarded(
                tir.And(at >= 0, at < width),
                lambda: copied(T.Bind((line + at) * form.depth), place, form.depth),
                lambda: filled(place, form.depth),
            )

    def across(line: Any, ix: Any, target: Any) -> None:
        """One row of a window; its pixels lie side by side where nothing is left out between them."""
        if dx == 1:
            guarded(
                tir.And(ix >= 0, ix + kw <= width),
                lambda: copied(T.Bind((line + ix) * form.depth), target, kw * form.depth),
                lambda: pixels(line, ix, target),
            )
        else:
            pixels(line, ix, target)

    def row_of_window(y: Any, line: Any, ix: Any, target: Any) -> None:
        guarded(
            tir.And(y >= 0, y < height),
            lambda: across(line, ix, target),
            lambda: filled(target, kw * form.depth),
        )

    with T.serial(0, rows) as row:
        pixel = T.Bind(first + row)
        above = T.Bind(tir.floordiv(pixel, ow))
        ix = T.Bind(tir.floormod(pixel, ow) * sx - left)
        image = T.Bind(tir.floordiv(above, oh) * form.planes)
        iy = T.Bind(tir.floormod(above, oh) * sy - top)
        target = to.row(row)
        with T.serial(0, form.planes) as plane, T.serial(0, kh) as ky:
            y = T.Bind(iy + ky * dy)
            line = T.Bind(((image + plane) * height + y) * width)
            place = T.Bind(target + (plane * kh + ky) * (kw * form.depth))
            row_of_window(y, line, ix, place)
        to.fill(target, form.k)


def _spans(count: int, copy: Callable[[Any, int], None]) -> None:
    """Cover ``count`` elements by vectors; the last one may overlap the one before."""
    lanes = min(LONGEST, 1 << (count.bit_length() - 1))
    if count // lanes > 4:
        with T.serial(0, count // lanes) as i:
            copy(T.Bind(i * lanes), lanes)
    else:
        for i in range(count // lanes):
            copy(i * lanes, lanes)
    if count % lanes:
        copy(count - lanes, lanes)
