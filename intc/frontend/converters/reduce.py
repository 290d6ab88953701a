"""Converters of sums over named axes and of reductions that others compose."""

from __future__ import annotations

import string

import numpy as np

from intc.errors import GraphError
from intc.frontend.agreement import require_equal
from intc.frontend.call import Call, Converter
from intc.frontend.converters.movement import reshape_to
from intc.frontend.symbolic import Imported, Index
from intc.ir.dims import Dim, product
from intc.ops import elementwise as ew
from intc.ops import logic
from intc.ops.matmul import MatMul
from intc.ops.movement import Concat, Slice, Transpose
from intc.ops.reduce import ArgMax, CumSum, ReduceMax, ReduceSum

FACTORS = 64  # computed values of which a product is taken, at most


def axes_or_all(call: Call, x: str) -> tuple[int, ...]:
    """The axes to reduce; none given means all."""
    rank = len(call.shape(x))
    return call.axes(rank) or tuple(range(rank))


def _keepdims(call: Call) -> bool:
    return bool(call.attributes.get("keepdims", 1))


def norm_of(call: Call, x: str, axes: tuple[int, ...], keepdims: bool, last: bool = True) -> str:
    """``sqrt(sum(x^2))`` over ``axes``."""
    total = call.emit(ReduceSum(axes, keepdims), call.emit(ew.Mul(), x, x, last=False), last=False)
    return call.emit(ew.Sqrt(), total, last=last)


def _reduce_l2(call: Call) -> list[Imported]:
    x = call.x()
    return [norm_of(call, x, axes_or_all(call, x), _keepdims(call))]


def _reduce_l1(call: Call) -> list[Imported]:
    x = call.x()
    return [call.emit(ReduceSum(axes_or_all(call, x), _keepdims(call)), call.emit(ew.Abs(), x, last=False))]


def _reduce_sum_square(call: Call) -> list[Imported]:
    x = call.x()
    return [
        call.emit(ReduceSum(axes_or_all(call, x), _keepdims(call)), call.emit(ew.Mul(), x, x, last=False))
    ]


def _reduce_log_sum(call: Call) -> list[Imported]:
    x = call.x()
    return [call.emit(ew.Log(), call.emit(ReduceSum(axes_or_all(call, x), _keepdims(call)), x, last=False))]


def _reduce_log_sum_exp(call: Call) -> list[Imported]:
    """``log(sum(exp(x - max))) + max``, which does not overflow; the sum is at least 1, also where a mask
    leaves nothing of it.
    """
    x = call.x()
    axes = tuple(a % len(call.shape(x)) for a in axes_or_all(call, x))
    largest = call.emit(ReduceMax(axes, True), x, last=False)
    grown = call.emit(ew.Exp(), call.emit(ew.Sub(), x, largest, last=False), last=False)
    total = call.emit(ReduceSum(axes, True), grown, last=False)
    total = call.emit(ew.Log(), call.emit(ew.Max(), total, call.constant([1.0]), last=False), last=False)
    y = call.emit(ew.Add(), total, largest, last=False)
    kept = _keepdims(call)
    return [
        y if kept else reshape_to(call, y, [d for a, d in enumerate(call.shape(y)) if a not in axes], True)
    ]


def _lp_normalization(call: Call) -> list[Imported]:
    """``x / norm``, and 0 where the norm is 0."""
    x = call.x()
    axes = (call.axis(x, -1),)
    if int(call.attributes.get("p", 2)) == 1:
        norm = call.emit(ReduceSum(axes, True), call.emit(ew.Abs(), x, last=False), last=False)
    else:
        norm = norm_of(call, x, axes, True, last=False)
    norm = call.emit(ew.Max(), norm, call.constant([1e-12]), last=False)
    return [call.emit(ew.Div(), x, norm)]


def _negated(call: Call, x: str, last: bool = False) -> str:
    if call.dtype(x) == "bool":
        return call.emit(logic.Not(), x, last=last)
    graph, node = call.ctx.builder.graph, call.ctx.builder.producer(x)
    chosen = node is not None and isinstance(node.op, ew.Where) and call.dtype(x) == "float32"
    if node is not None and chosen and set(node.inputs[1:]) & graph.constants.keys():
        choices = [  # so that infinity stays the constant of a mask
            call.constant(-graph.constants[v]) if v in graph.constants else _negated(call, v)
            for v in node.inputs[1:]
        ]
        return call.emit(ew.Where(), node.inputs[0], *choices, last=last)
    minus = call.ctx.builder.constant(f"{call.node.output[0]}.c", np.full(1, -1, call.dtype(x)))
    return call.emit(ew.Mul(), x, minus, last=last)


def _reduce_min(call: Call) -> list[Imported]:
    """``-max(-x)``."""
    x = call.x()
    op = ReduceMax(axes_or_all(call, x), _keepdims(call))
    return [_negated(call, call.emit(op, _negated(call, x), last=False), last=True)]


def _reduce_prod(call: Call) -> list[Imported]:
    """Products of halves of an axis, until one entry is left."""
    x = call.x()
    axes = tuple(a % len(call.shape(x)) for a in axes_or_all(call, x))
    for axis in axes:
        size = call.shape(x)[axis]
        if not isinstance(size, int) or size > FACTORS:
            raise GraphError(f"a product of {size} computed values; {FACTORS} can be multiplied")
        while size > 1:
            half = size // 2
            first, second, rest = (
                call.emit(Slice(axis, start, stop), x, last=False) if start < stop else ""
                for start, stop in ((0, half), (half, 2 * half), (2 * half, size))
            )
            x = call.emit(ew.Mul(), first, second, last=False)
            x = call.emit(Concat(axis), x, rest, last=False) if rest else x
            size -= half
    kept = [1 if a in axes else d for a, d in enumerate(call.shape(x)) if _keepdims(call) or a not in axes]
    return [reshape_to(call, x, kept, True)]


def _arg(largest: bool) -> Converter:
    def run(call: Call) -> list[Imported]:
        x = call.x()
        flags = (bool(call.attributes.get(k, d)) for k, d in (("keepdims", 1), ("select_last_index", 0)))
        op = ArgMax(call.axis(x), *flags)
        return [call.emit(op, x if largest else _negated(call, x))]

    return run


def _cum_sum(call: Call) -> list[Imported]:
    x = call.x()
    axis, rank = int(call.known(1, "the axis").ravel()[0]), len(call.shape(x))
    call.refuse(not -rank <= axis < rank, f"axis {axis} does not fit rank {rank}")
    flags = (bool(call.attributes.get(k, 0)) for k in ("exclusive", "reverse"))
    if call.ctx.builder.graph.type(x).dtype == "int32":  # of which nothing bounds the sum
        x = call.emit(ew.Cast("int64"), x, last=False)
        return [call.emit(ew.Cast("int32"), call.emit(CumSum(axis % rank, *flags), x, last=False))]
    return [call.emit(CumSum(axis % rank, *flags), x)]


def _einsum(call: Call) -> list[Imported]:
    """From the left: diagonals, transposes and sums, products of matrices, and element-wise products where
    nothing is summed.
    """
    equation = _spelt_out(call, str(call.attributes["equation"]).replace(" ", ""))
    left, _, out = equation.partition("->")
    terms = left.split(",")
    call.refuse(len(terms) != len(call.inputs), f"'{equation}' does not fit the operands")
    call.refuse(len(set(out)) != len(out), "a repeated letter in the result is not supported")
    parts = [(call.x(i), term) for i, term in enumerate(terms)]
    if any(len(call.shape(x)) != len(term) for x, term in parts):
        raise GraphError(f"'{equation}' does not fit the operands")
    parts = [_diagonal(call, x, term) for x, term in parts]
    sizes: dict[str, Dim] = {}
    for x, term in parts:
        for letter, size in zip(term, call.shape(x), strict=True):
            require_equal(sizes.setdefault(letter, size), size)
            call.refuse(sizes[letter] != size, f"two sizes of '{letter}', {sizes[letter]} and {size}")
    needed = [set(out).union(*terms[:i], *terms[i + 1 :]) for i in range(len(terms))]
    reduced = [_summed(call, x, term, letters) for (x, term), letters in zip(parts, needed, strict=True)]
    done, *rest = reduced
    while rest:
        other, *rest = rest
        done = _multiplied(call, done, other, "".join({*out}.union(*(t for _, t in rest))))
    return [_ordered(call, *done, out)]


def _diagonal(call: Call, x: str, term: str) -> tuple[str, str]:
    """The entries of ``x`` whose positions along the axes of one letter are equal, and the letters left."""
    twice = next((letter for letter in term if term.count(letter) > 1), None)
    if twice is None:
        return x, term
    first, second, shape = term.index(twice), term.rindex(twice), call.shape(x)
    require_equal(shape[first], shape[second])
    line = tuple(d if a in (first, second) else 1 for a, d in enumerate(shape))
    steps = tuple((a == first) - (a == second) for a in range(len(shape)))
    apart = call.ctx.live(Index(line, steps), f"{call.node.output[0]}.positions")
    nothing, zero = (
        call.ctx.builder.constant(f"{call.node.output[0]}.zero", np.zeros(1, dtype))
        for dtype in ("int64", call.dtype(x))
    )
    here = call.emit(logic.Equal(), apart, nothing, last=False)
    kept = call.emit(ew.Where(), here, x, zero, last=False)
    rest = call.emit(ReduceSum((second,), False), kept, last=False)
    return _diagonal(call, rest, term[:second] + term[second + 1 :])


def _spelt_out(call: Call, equation: str) -> str:
    """``equation`` with its output, and with letters for what an ellipsis stands for."""
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = "".join(terms).replace(".", "")
        out = "..." * ("..." in left) + "".join(sorted(c for c in letters if letters.count(c) == 1))
    unused = [c for c in string.ascii_uppercase if c not in equation]
    ranks = [
        len(call.ctx.shape_of(x)) - len(t.replace("...", ""))
        for x, t in zip(call.inputs, terms, strict=False)
    ]
    most = max((r for r, t in zip(ranks, terms, strict=False) if "..." in t), default=0)
    call.refuse(most > len(unused), "an ellipsis of too many axes")
    spelt = [t.replace("...", "".join(unused[most - r : most])) for r, t in zip(ranks, terms, strict=False)]
    return ",".join(spelt) + "->" + out.replace("...", "".join(unused[:most]))


def _summed(call: Call, x: str, term: str, needed: set[str]) -> tuple[str, str]:
    """``x`` without the axes that nothing else names."""
    gone = tuple(i for i, c in enumerate(term) if c not in needed)
    if not gone:
        return x, term
    return call.emit(ReduceSum(gone, False), x, last=False), "".join(c for c in term if c in needed)


def _ordered(call: Call, x: str, term: str, wanted: str) -> str:
    perm = tuple(term.index(c) for c in wanted)
    return x if perm == tuple(range(len(perm))) else call.emit(Transpose(perm), x, last=False)


def _multiplied(call: Call, a: tuple[str, str], b: tuple[str, str], out: str) -> tuple[str, str]:
    """``a`` times ``b``, each a value and the letters of its axes, summed over those not in ``out``."""
    (x, left), (y, right) = a, b
    shared = [c for c in left if c in right]
    batch, inner = [c for c in shared if c in out], [c for c in shared if c not in out]
    rows, columns = [c for c in left if c not in right], [c for c in right if c not in left]
    sizes: dict[str, Dim] = dict(zip(left, call.shape(x), strict=True)) | dict(
        zip(right, call.shape(y), strict=True)
    )

    whole = [*batch, *rows, *columns]

    def spread(value: str, term: str) -> str:
        moved = _ordered(call, value, term, "".join(c for c in whole if c in term))
        return reshape_to(call, moved, [sizes[c] if c in term else 1 for c in whole], True)

    if not inner:
        return call.emit(ew.Mul(), spread(x, left), spread(y, right), last=False), "".join(whole)

    def matrix(value: str, term: str, *groups: list[str]) -> str:
        moved = _ordered(call, value, term, "".join(batch + groups[0] + groups[1]))
        shape = [*(sizes[c] for c in batch), *(product(sizes[c] for c in g) for g in groups)]
        return reshape_to(call, moved, shape, True)

    z = call.emit(MatMul(), matrix(x, left, rows, inner), matrix(y, right, inner, columns), last=False)
    return reshape_to(call, z, [sizes[c] for c in whole], True), "".join(whole)


CONVERTERS: dict[str, Converter] = {
    "ReduceMax": lambda call: [call.emit(ReduceMax(axes_or_all(call, call.x()), _keepdims(call)), call.x())],
    "ReduceMin": _reduce_min,
    "ReduceProd": _reduce_prod,
    "ReduceL1": _reduce_l1,
    "ReduceL2": _reduce_l2,
    "ReduceSumSquare": _reduce_sum_square,
    "ReduceLogSum": _reduce_log_sum,
    "ReduceLogSumExp": _reduce_log_sum_exp,
    "LpNormalization": _lp_normalization,
    "ArgMax": _arg(True),
    "ArgMin": _arg(False),
    "CumSum": _cum_sum,
    "Einsum": _einsum,
}
