"""Sampling of images at computed places, and the places that affine maps give."""

from __future__ import annotations

import numpy as np

from intc.frontend.call import Call, Converter
from intc.frontend.converters.image import fixed
from intc.frontend.converters.movement import reshape_to
from intc.frontend.symbolic import Imported
from intc.ir.dims import as_dim
from intc.ir.op import Op
from intc.ops import elementwise as ew
from intc.ops.matmul import MatMul
from intc.ops.movement import Expand, GatherElements, Pad, Slice, Transpose

MODES = ("bilinear", "linear", "nearest")


def _grid_sample(call: Call) -> list[Imported]:
    """Bilinear mixtures of the four pixels around each place of the grid [B, H, W, 2], x before y, from -1 to
    1 over the image, or the nearest of them. Beyond the image are zeros, or its edge.
    """
    image, grid = call.x(0), call.x(1)
    mode, padding = (
        str(call.attributes.get(k, d)) for k, d in (("mode", "bilinear"), ("padding_mode", "zeros"))
    )
    call.refuse(mode not in MODES, f"the mode {mode} is not supported")
    call.refuse(padding not in ("zeros", "border"), f"the padding mode {padding} is not supported")
    call.refuse(len(call.shape(image)) != 4, "only images in two dimensions are supported")
    batch, channels = call.shape(image)[:2]
    height, width = fixed(call, call.shape(image)[2:], "a sampled image")
    frame = int(padding == "zeros")
    _, rows, columns, _ = call.shape(grid)
    count = rows * columns

    def emit(op: Op, *inputs: str) -> str:
        return call.emit(op, *inputs, last=False)

    def integer(value: int) -> str:
        return call.ctx.builder.constant(f"{call.node.output[0]}.i", np.full(1, value, np.int64))

    def place(axis: int, size: int) -> tuple[str, str]:
        """The pixel [B, 1, N] left of (above) each place in the framed image, and how far the place is on."""
        x = reshape_to(call, emit(Slice(3, axis, axis + 1), grid), (batch, 1, count), True)
        span = size - 1 if call.attributes.get("align_corners") else size
        x = emit(ew.Add(), emit(ew.Mul(), x, call.constant([span / 2])), call.constant([(size - 1) / 2]))
        x = emit(ew.Max(), x, call.constant([float(-frame)]))
        x = emit(ew.Min(), x, call.constant([float(size - 1 + frame)]))
        if mode == "nearest":  # of two the even one, before the frame changes which that is
            x = emit(ew.Round(), x)
            return emit(ew.Add(), x, call.constant([float(frame)])), ""
        x = emit(ew.Add(), x, call.constant([float(frame)]))
        first = emit(ew.Floor(), x)
        return first, emit(ew.Sub(), x, first)

    left, right_share = place(0, width)
    above, below_share = place(1, height)
    framed = emit(Pad((0, 0, frame, frame), (0, 0, frame + 1, frame + 1)), image)
    step = width + 2 * frame + 1
    pixels = reshape_to(call, framed, (batch, channels, (height + 2 * frame + 1) * step), True)
    left, above = (emit(ew.Cast("int64"), x) for x in (left, above))
    first = emit(ew.Add(), emit(ew.Mul(), above, integer(step)), left)

    def at(offset: int) -> str:
        index = emit(ew.Add(), first, integer(offset)) if offset else first
        return emit(GatherElements(2), pixels, emit(Expand((batch, channels, count)), index))

    def between(a: str, b: str, share: str) -> str:
        return emit(ew.Add(), a, emit(ew.Mul(), emit(ew.Sub(), b, a), share))

    if mode == "nearest":
        return [reshape_to(call, at(0), (batch, channels, rows, columns), True)]
    upper, lower = (between(at(o), at(o + 1), right_share) for o in (0, step))
    return [reshape_to(call, between(upper, lower, below_share), (batch, channels, rows, columns), True)]


def _affine_grid(call: Call) -> list[Imported]:
    """The places [B, .., n] that the maps theta [B, n, n + 1] give to those of a regular grid, x first."""
    theta, size = call.x(0), call.known(1, "the size").ravel()
    sides = fixed(call, tuple(as_dim(d) for d in size[2:]), "the grid")
    align = bool(call.attributes.get("align_corners"))
    axes = [(np.arange(d) / max(d - 1, 1) if align else (np.arange(d) + 0.5) / d) * 2 - 1 for d in sides]
    grid = np.stack([*np.meshgrid(*axes, indexing="ij")[::-1], np.ones(sides)])
    places = call.constant(grid.reshape(len(sides) + 1, -1))
    moved = call.emit(MatMul(), theta, places, last=False)
    turned = call.emit(Transpose((0, 2, 1)), moved, last=False)
    return [reshape_to(call, turned, (call.shape(theta)[0], *sides, len(sides)), True)]


CONVERTERS: dict[str, Converter] = {"GridSample": _grid_sample, "AffineGrid": _affine_grid}
