"""Converters of resizing: products with the matrix of an interpolation, at any size by a factor, or to any by
the two entries around each place, which is an exact quotient of sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import onnx

from intc.errors import GraphError
from intc.frontend.agreement import require_zero
from intc.frontend.call import Call, Converter
from intc.frontend.converters.image import extended
from intc.frontend.converters.movement import reshape_to
from intc.frontend.fold import compute, small
from intc.frontend.symbolic import Imported, Index
from intc.ir.dims import Dim, exact_div, floor_div
from intc.ir.op import Array
from intc.ops.division import Divide
from intc.ops.elementwise import Add, Cast, Div, Max, Min, Mul, Sub
from intc.ops.fused import WIDE
from intc.ops.matmul import MatMul
from intc.ops.movement import Concat, Expand, Gather, Lookup, Slice, Transpose
from intc.ops.requantize import Clip

# tried where the new size follows from an image that must be a multiple
FACTORS = tuple(
    map(Fraction, ("2", "3", "4", "8", "16", "32", "3/2", "2/3", "4/3", "3/4", "5/2", "5/3", "5/4"))
)
# (step, offset, divisor): the place of entry i of ``m`` in ``n`` is (step * i + offset) / divisor
PLACES: dict[str, Callable[[Dim, Dim], tuple[Dim, Dim, Dim]]] = {
    "half_pixel": lambda n, m: (2 * n, n - m, 2 * m),
    "pytorch_half_pixel": lambda n, m: (2 * n, n - m, 2 * m),
    "align_corners": lambda n, m: (n - 1, 0, m - 1),
    "asymmetric": lambda n, m: (n, 0, m),
}
# what is added to the numerator, of a quotient whose terms are multiplied, before it is rounded down
NEAREST: dict[str, Callable[[Dim], tuple[Dim, int]]] = {
    "floor": lambda divisor: (0, 1),
    "ceil": lambda divisor: (divisor - 1, 1),
    "round_prefer_ceil": lambda divisor: (divisor, 2),
    "round_prefer_floor": lambda divisor: (divisor - 1, 2),
}
SAMPLE = 12  # entries of the axis from which an interpolation at any size is read


def _resize(call: Call) -> list[Imported]:
    """Each resized axis is a product with the matrix of its interpolation, or a gather where it repeats."""
    x = call.x()
    shape = call.shape(x)
    crops = call.attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    call.refuse(crops, "crops are not supported")
    axes = [int(a) % len(shape) for a in call.attributes.get("axes", range(len(shape)))]
    targets: list[Any] = list(call.known(3, "the size").ravel()) if call.has(3) else []
    scales = [float(s) for s in call.known(2, "the scale").ravel()] if call.has(2) and not targets else []
    policy = call.attributes.get("keep_aspect_ratio_policy", "stretch")
    call.refuse(policy != "stretch", f"the policy {policy} is not supported")
    for i, axis in enumerate(axes):
        if (targets and targets[i] == shape[axis]) or (scales and scales[i] == 1.0):
            continue
        size = shape[axis]
        if isinstance(size, int) and (scales or isinstance(targets[i], int | np.integer)):
            extent = {"sizes": [size, int(targets[i])]} if targets else {"scales": [1.0, scales[i]]}
            x = _by_matrix(call, x, axis, _interpolation(call, size, extent))
        else:
            x = _free(call, x, axis, targets[i] if targets else None, scales[i] if scales else None)
    return [x]


def _free(call: Call, x: str, axis: int, target: Dim | None, scale: float | None) -> str:
    """Resized from or to a symbolic size: by a factor where there is one, else from place to place."""
    size = call.shape(x)[axis]
    try:
        factor = _factor(size, target) if target is not None else _fraction(scale)
        if call.attributes.get("coordinate_transformation_mode") != "align_corners":
            return _by_factor(call, x, axis, factor)
    except GraphError:
        if target is None:
            raise
    if target is None:
        target = floor_div(size * factor.numerator, factor.denominator)
    return _by_places(call, x, axis, target)


def _fraction(scale: float | None) -> Fraction:
    return Fraction(scale or 1).limit_denominator(64)


def _interpolation(call: Call, size: int, extent: dict[str, Any]) -> Array:
    """[size, new size], as the reference implementation interpolates."""
    ((key, value),) = extent.items()
    call.refuse(not small((size, size)), f"an axis of {size} is too large to resize")
    value = np.asarray(value, np.int64 if key == "sizes" else np.float32)
    kept = {k: v for k, v in call.attributes.items() if k not in ("axes", "keep_aspect_ratio_policy")}
    inputs = ["x", "", "", "sizes"] if key == "sizes" else ["x", "", "scales"]
    node = onnx.helper.make_node("Resize", inputs, ["y"], **kept)
    (matrix,) = compute(node, {"x": np.eye(size, dtype=np.float32), key: value}, call.ctx.opsets)
    return matrix


def _by_matrix(call: Call, x: str, axis: int, matrix: Array) -> str:
    if _picks(matrix):
        index = call.ctx.builder.constant(f"{call.node.output[0]}.index", matrix.argmax(axis=0))
        return call.emit(Gather(axis), x, index, last=False)
    last = _moved(call, x, axis)
    return _back(call, call.emit(MatMul(), last, call.constant(matrix), last=False), axis)


def _picks(matrix: Array) -> bool:
    """Whether every column has a single 1 and nothing else."""
    return bool((matrix == 1).sum(axis=0).min() == 1 and np.count_nonzero(matrix) == matrix.shape[1])


def _moved(call: Call, x: str, axis: int) -> str:
    """``x`` with ``axis`` last."""
    rank = len(call.shape(x))
    order = (*(a for a in range(rank) if a != axis), axis)
    return x if axis == rank - 1 else call.emit(Transpose(order), x, last=False)


def _back(call: Call, x: str, axis: int) -> str:
    """The inverse of :func:`_moved`."""
    last = len(call.shape(x)) - 1
    order = (*range(axis), last, *range(axis, last))
    return x if axis == last else call.emit(Transpose(order), x, last=False)


def _factor(size: Dim, target: Dim) -> Fraction:
    """``target / size`` where one is always a multiple of the other."""
    for a, b, power in ((target, size, 1), (size, target, -1)):
        try:
            quotient = exact_div(a, b)
        except GraphError:
            continue
        if isinstance(quotient, int):
            return Fraction(quotient) ** power
    for factor in FACTORS:
        if factor.numerator * size == factor.denominator * target:
            return factor
        require_zero(factor.numerator * size - factor.denominator * target)
    raise GraphError(f"a symbolic size {size} cannot be resized to {target}, which is no multiple of it")


def _by_factor(call: Call, x: str, axis: int, factor: Fraction) -> str:
    """Resized at any size: each output is a sum of some neighbours, the same for every whole step."""
    up, down = factor.numerator, factor.denominator
    size = call.shape(x)[axis]
    call.refuse(max(up, down) > SAMPLE // 2, f"a symbolic size times {factor} is not supported")
    if min(up, down) > 1:
        require_zero(floor_div(size, down) * down - size)
    matrix = _interpolation(call, SAMPLE * down, {"scales": [1.0, float(factor)]})
    middle = SAMPLE // 2
    taps = matrix[:, middle * up : (middle + 1) * up]
    used = np.flatnonzero(taps.any(axis=1))
    first, last = int(used[0]) - middle * down, int(used[-1]) - middle * down
    weights = taps[used[0] : used[-1] + 1]
    before, after = max(-first, 0), max(last - down + 1, 0)
    model = np.zeros((SAMPLE * down + before + after, SAMPLE * up), matrix.dtype)
    for i in range(SAMPLE):
        start = i * down + first + before
        model[start : start + len(weights), i * up : (i + 1) * up] = weights
    model[before] += model[:before].sum(axis=0)
    end = len(model) - after
    model[end - 1] += model[end:].sum(axis=0)
    mode = call.attributes.get("coordinate_transformation_mode", "half_pixel")
    same = np.allclose(model[before:end], matrix, atol=1e-6)
    call.refuse(not same, f"a symbolic size under {mode} is not supported")
    return _neighbours(call, x, axis, weights, first + before, (before, after), down)


def _neighbours(
    call: Call, x: str, axis: int, weights: Array, first: int, ends: tuple[int, int], step: int
) -> str:
    """Every ``step`` entries of ``axis``, with copies of its ``ends`` around, the entries from ``first`` on
    times ``weights`` [entries, outputs].
    """
    count = floor_div(call.shape(x)[axis], step)
    outputs = weights.shape[1]
    if any(ends):
        x = extended(call, x, axis, ends, "edge", 0.0)
    x = _moved(call, x, axis)
    lead, rank = call.shape(x)[:-1], len(call.shape(x))
    parts = []
    for tap in range(first, first + len(weights)):
        part = x
        if (tap, step) != (0, 1) or call.shape(x)[-1] != count:
            part = call.emit(Slice(rank - 1, tap, tap + (count - 1) * step + 1, step), x, last=False)
        parts.append(reshape_to(call, part, (*lead, count, 1), True))
    if (weights == 1).all() and len(parts) == 1:
        y = call.emit(Expand((*lead, count, outputs)), parts[0], last=False) if outputs > 1 else parts[0]
    else:
        near = call.emit(Concat(rank), *parts, last=False) if len(parts) > 1 else parts[0]
        y = call.emit(MatMul(), near, call.constant(weights), last=False)
    return _back(call, reshape_to(call, y, (*lead, count * outputs), True), axis)


def _by_places(call: Call, x: str, axis: int, target: Dim) -> str:
    """``target`` entries, each between the two around its place ``numerator / divisor`` in ``axis``."""
    size, rank = call.shape(x)[axis], len(call.shape(x))
    mode, kind = (
        call.attributes.get(k, d)
        for k, d in (("coordinate_transformation_mode", "half_pixel"), ("mode", "nearest"))
    )
    known = mode in PLACES and kind in ("nearest", "linear") and not call.attributes.get("antialias")
    call.refuse(
        not known, f"a symbolic size {size} resized to {target} by {kind} under {mode} is not supported"
    )
    step, offset, divisor = PLACES[mode](size, target)
    if kind == "nearest":
        shift, double = NEAREST[call.attributes.get("nearest_mode", "round_prefer_floor")](divisor)
        step, offset, divisor = (double * s for s in (step, offset, divisor))
        offset = offset + shift
    # a table of positions, so that a larger target is refused
    rows = call.ctx.builder.constant(
        f"{call.node.output[0]}.rows", np.arange(call.ctx.longest, dtype=np.int64)
    )
    place = call.emit(Lookup((target,), (1,), 0), rows, last=False)
    place = call.emit(Mul(), place, _number(call, step), last=False)
    place = call.emit(Add(), place, _number(call, offset), last=False)
    place = call.emit(Max(), place, _number(call, 0), last=False)
    below = call.emit(Sub(), place, _number(call, floor_div(divisor, 2)), last=False)
    pair = (call.emit(Clip(-WIDE, WIDE, "int32"), v, last=False) for v in (below, _number(call, divisor)))
    first = call.emit(Cast("int64"), call.emit(Divide(0, WIDE), *pair, last=False), last=False)
    first = call.emit(Min(), first, _number(call, size - 1), last=False)
    if kind == "nearest":
        return call.emit(Gather(axis), x, first, last=False)
    second = call.emit(Add(), first, _number(call, 1), last=False)
    second = call.emit(Min(), second, _number(call, size - 1), last=False)
    whole = call.emit(Mul(), first, _number(call, divisor), last=False)
    rest = call.emit(Sub(), place, whole, last=False)
    parts = (call.emit(Cast("float32"), v, last=False) for v in (rest, _number(call, divisor)))
    share = reshape_to(call, call.emit(Div(), *parts, last=False), (target, *(1,) * (rank - 1 - axis)), True)
    left, right = (call.emit(Gather(axis), x, v, last=False) for v in (first, second))
    apart = call.emit(Mul(), call.emit(Sub(), right, left, last=False), share, last=False)
    return call.emit(Add(), left, apart, last=False)


def _number(call: Call, size: Dim) -> str:
    return call.ctx.live(Index((1,), (0,), size), f"{call.node.output[0]}.size")


def _upsample(call: Call) -> list[Imported]:
    call.inputs.insert(1, None)
    call.attributes.update(coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    return _resize(call)


CONVERTERS: dict[str, Converter] = {"Resize": _resize, "Upsample": _upsample}
