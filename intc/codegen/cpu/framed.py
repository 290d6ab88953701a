"""Products stored inside the zeros that a Pad puts around them: the Pad itself copies nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm.tirx as tir
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.vector import const, ramp
from intc.codegen.program import Program
from intc.ir.dims import Dim
from intc.ir.graph import Node
from intc.ops.fused import Linear
from intc.ops.movement import Pad, Reshape

WIDEST = 64  # elements that one store clears


@dataclass(frozen=True)
class Border:
    """Images of ``height`` x ``width`` pixels, and the pixels around each."""

    height: int
    width: int
    top: int
    left: int
    bottom: int
    right: int

    @property
    def across(self) -> int:
        """The pixels of a row with its border."""
        return self.left + self.width + self.right

    def place(self, pixel: Any) -> Any:
        """Where a pixel, counted without borders, lies among all."""
        line = T.Bind(tir.floordiv(pixel, self.width))
        image, y = tir.floordiv(line, self.height), tir.floormod(line, self.height)
        row = image * (self.top + self.height + self.bottom) + y + self.top
        return T.Bind(row * self.across + self.left + tir.floormod(pixel, self.width))

    def emit_places(self, to: Any, at: int, first: Any, count: Any, pixels: Any) -> None:
        """The places of ``count`` pixels from ``first``, and of the next one: the end, where it is beyond all
        ``pixels``.
        """
        with T.serial(0, count + 1) as i:
            T.buffer_store(to, self.place(first + i), [at + i])
        with T.If(first + count == pixels), T.Then():
            beyond = self.top * self.across + self.left  # of the image that is not there
            T.buffer_store(to, to[at + count] - beyond, [at + count])


def clear(out: Any, first: Any, end: Any, stride: int, column: Any, count: int) -> None:
    """Zeros in ``count`` columns from ``column`` of the pixels from ``first`` up to ``end``."""
    with T.serial(0, tir.Max(end - first, tir.IntImm("int32", 0))) as i:
        _zeros(out, T.Bind((first + i) * stride + column), count)


def _zeros(out: Any, at: Any, count: int) -> None:
    """``count`` zeros from ``at``."""
    lanes, done = WIDEST, 0
    while done < count:
        while lanes > count - done:
            lanes //= 2
        T.buffer_store(out, const(0, lanes, out.dtype), [ramp(at + done, lanes)])
        done += lanes


def framed(program: Program) -> dict[str, Node]:
    """The values of Linear operators that are stored as the output of the Pad that alone reads them, and that
    Pad. Reshapes may lie between them.
    """
    graph, users = program.graph, program.graph.users()

    def behind(value: str) -> Node | None:
        readers = users[value]
        if len(readers) != 1 or value in graph.outputs:
            return None
        reader = readers[0]
        return behind(reader.output) if isinstance(reader.op, Reshape) else reader

    found = {}
    for node in graph.nodes if program.target.native else ():
        pad = behind(node.output) if isinstance(node.op, Linear) else None
        if pad is not None and border(program, pad, graph.type(node.output).shape[-1]):
            found[node.output] = pad
    return found


def border(program: Program, node: Node, channels: Dim) -> Border | None:
    """What ``node`` puts around images with so many channels, if it pads images of known size."""
    op, shape = node.op, program.type(node.inputs[0]).shape
    if not isinstance(op, Pad) or len(shape) != 4 or shape[3] != channels:
        return None
    (before, top, left, ahead), (after, bottom, right, behind) = op.before, op.after
    _, height, width, _ = shape
    if before or after or ahead or behind or not isinstance(height, int) or not isinstance(width, int):
        return None
    return Border(height, width, top, left, bottom, right)
