"""Loops over strided views: the shared body of elementwise operators and data movement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from intc.codegen.kernel import Expr, Frame
from intc.ir.dims import Dim, Shape, exact_div, product, terms_of


@dataclass(frozen=True)
class View:
    """Element ``index`` of the view lies at ``offset + sum(index * strides)`` of a flat buffer."""

    strides: Shape
    offset: Dim = 0


def row_major(shape: Shape) -> Shape:
    """The strides of a dense array."""
    return tuple(product(shape[i + 1 :]) for i in range(len(shape)))


def broadcast_view(shape: Shape, to: Shape) -> View:
    """A dense array of ``shape`` seen as the larger shape ``to``: stride 0 along repeated axes."""
    strides = tuple(0 if d == 1 else s for d, s in zip(shape, row_major(shape), strict=True))
    return View((0,) * (len(to) - len(shape)) + strides)


def coalesce(shape: Shape, views: Sequence[View]) -> tuple[Shape, list[View]]:
    """The same iteration with fewer axes: axes of size 1 dropped, axes merged where every view allows it."""
    sizes: list[Dim] = []
    strides: list[list[Dim]] = []  # per kept axis, one stride a view
    for axis, size in enumerate(shape):
        here = [v.strides[axis] for v in views]
        if size == 1:
            continue
        if sizes and all(outer == inner * size for outer, inner in zip(strides[-1], here, strict=True)):
            sizes[-1], strides[-1] = sizes[-1] * size, here
        else:
            sizes.append(size)
            strides.append(here)
    if not sizes:
        sizes, strides = [1], [[0] * len(views)]
    return tuple(sizes), [View(tuple(s[i] for s in strides), v.offset) for i, v in enumerate(views)]


def loop(frame: Frame, shape: Shape, views: Sequence[View], body: Callable[[list[Expr]], None]) -> None:
    """Run ``body`` on the views' positions for every index of this task's share of ``shape``."""
    sizes, merged = coalesce(shape, views)
    inner = sizes[-1]
    if len(sizes) == 1:
        with frame.share(inner) as i:
            body([frame.dim(v.offset) + i * frame.dim(v.strides[0]) for v in merged])
        return
    if frame.fine:
        with rows(frame, sizes, merged) as (_, positions):
            body(positions)
        return
    outer = [View(v.strides[:-1], v.offset) for v in merged]
    with rows(frame, sizes[:-1], outer) as (_, bases), T.serial(0, frame.dim(inner)) as i:
        body([b + i * frame.dim(v.strides[-1]) for b, v in zip(bases, merged, strict=True)])


def blocks(
    frame: Frame,
    shape: Shape,
    views: Sequence[View],
    lanes: int,
    body: Callable[[list[Expr], list[bool]], None],
) -> bool:
    """Like :func:`loop`, ``lanes`` elements at a time: ``body`` is also told for each view whether they lie
    side by side, or one stands for all. False, and no code, where neither is so, blocks do not fill the last
    axis, or the last view (the output) repeats.
    """
    sizes, merged = coalesce(shape, views)
    inner = [v.strides[-1] for v in merged]
    if any(coefficient % lanes for coefficient in terms_of(sizes[-1]).values()):
        return False
    if any(stride not in (0, 1) for stride in inner) or inner[-1] != 1:
        return False
    dense = [stride == 1 for stride in inner]
    count = exact_div(sizes[-1], lanes)
    if len(sizes) == 1:
        with frame.share(count) as i:
            body([frame.dim(v.offset) + i * (lanes * d) for v, d in zip(merged, dense, strict=True)], dense)
        return True
    outer = [View(v.strides[:-1], v.offset) for v in merged]
    with rows(frame, sizes[:-1], outer) as (_, bases), T.serial(0, frame.dim(count)) as i:
        body([b + i * (lanes * d) for b, d in zip(bases, dense, strict=True)], dense)
    return True


@contextmanager
def rows(frame: Frame, shape: Shape, views: Sequence[View]) -> Iterator[tuple[Expr, list[Expr]]]:
    """A loop over this task's share of ``shape``: the flat index and each view's position."""
    with frame.share(product(shape)) as row:
        bases = [frame.dim(v.offset) for v in views]
        rest = row
        for axis in range(len(shape) - 1, -1, -1):
            size = frame.dim(shape[axis])
            index = rest if axis == 0 else T.bind(T.truncmod(rest, size))
            rest = rest if axis == 0 else T.bind(T.truncdiv(rest, size))
            bases = [b + index * frame.dim(v.strides[axis]) for b, v in zip(bases, views, strict=True)]
        yield row, [b if isinstance(b, int) else T.bind(b) for b in bases]
