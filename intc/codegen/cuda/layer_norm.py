"""``shift_layer_norm`` by as many lanes of a warp as a row is worth, with the requantisations around it.

What rescales the input for layer norms alone, and what rescales the output, is computed from the values in
registers; where nothing else reads the output, it is not stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from intc.codegen.cuda.algebra import method
from intc.codegen.cuda.printer import TYPES
from intc.codegen.program import Arg, IntArg, Launch, Layout, Program, SizeArg, ValueArg
from intc.errors import CodegenError
from intc.ir.dims import product
from intc.ir.graph import Node
from intc.ir.op import Array
from intc.ops.requantize import Requantize
from intc.ops.shift import ShiftLayerNorm

THREADS: Final = 128  # as in layer_norm.cuh
HELD: Final = 8  # likewise
PIECES: Final = 3  # of eight values, for each lane where there are lanes enough
PAIRED: Final = 32  # values of a row in a thread up to which it has parts of two
WIDEST: Final = 2**18  # channels up to which deviations can be scaled in 32 bits


def before(program: Program) -> frozenset[str]:
    """The values that layer norms compute from what they read."""
    users = program.graph.users()
    return frozenset(
        node.output
        for node in program.graph.nodes
        if _shift(program, node)
        and node.inputs[0] not in program.inlined
        and node.output not in program.graph.outputs
        and users[node.output]
        and all(_reads_rows(user, node.output) for user in users[node.output])
    )


def after(program: Program) -> dict[str, tuple[Node, ...]]:
    """The nodes whose outputs a layer norm computes from its own."""
    users = program.graph.users()
    found = {
        node.output: tuple(
            user
            for user in users[node.output]
            if _shift(program, user) and user.output not in program.inlined
        )
        for node in program.graph.nodes
        if isinstance(node.op, ShiftLayerNorm)
    }
    return {name: nodes for name, nodes in found.items() if nodes}


def _shift(program: Program, node: Node) -> int | None:
    """The largest E for which ``x * 2**(E - e)`` has 32 bits and its product with m, rounded at ``2**E``, 63.
    None where the result would not be in the high word, or for anything but a requantisation by constants.
    """
    constants = program.graph.constants
    if not isinstance(node.op, Requantize) or not constants.keys() >= set(node.inputs[1:]):
        return None
    x, e = node.inputs[0], constants[node.inputs[2]]
    spare = 31 - program.type(x).magnitude.bit_length()
    total = min(int(e.min()) + spare, 62)
    return total if total >= max(int(e.max()), 32) else None


def _reads_rows(node: Node, value: str) -> bool:
    return isinstance(node.op, ShiftLayerNorm) and node.inputs.count(value) == 1 and node.inputs[0] == value


@dataclass(frozen=True)
class _Rows:
    """How rows of ``channels`` are spread: pieces of ``width`` neighbours, in turns to ``lanes`` lanes."""

    channels: int

    @cached_property
    def lanes(self) -> int:
        return next(n for n in (1, 2, 4, 8, 16, 32) if n == 32 or 8 * PIECES * n >= self.channels)

    @cached_property
    def width(self) -> int:
        return next(n for n in (8, 4, 2, 1) if self.channels % n == 0)

    @cached_property
    def each(self) -> int:
        """Pieces of a lane."""
        return -(-self.channels // (self.width * self.lanes))

    @cached_property
    def together(self) -> int:
        """Rows that a lane has a part of; they share what channels need, and the work on deviations."""
        return 2 if self.lanes > 1 and self.each <= HELD and self.each * self.width <= PAIRED else 1

    def layout(self, dtype: str) -> Layout:
        """That of one number a channel: what a warp reads at a time, at most 16 bytes a lane, is together."""
        part = min(self.width, 16 // np.dtype(dtype).itemsize)
        shape = (self.each, self.lanes, self.width // part, part)
        return Layout((math.prod(shape) - self.channels,), shape, (0, 2, 1, 3), dtype)


class _Rescale:
    """The code of a requantisation that has a :func:`_shift`. ``fields`` are the kernel's parameters."""

    def __init__(self, program: Program, node: Node, number: int, rows: _Rows) -> None:
        op, total = node.op, _shift(program, node)
        assert isinstance(op, Requantize)
        assert total is not None
        m, e = (program.graph.constants[name].ravel() for name in node.inputs[1:])
        reach = program.type(node.inputs[0]).magnitude * np.abs(m.astype(np.int64))
        self.columns: dict[str, Array] = {}
        self.args: list[Arg] = [IntArg(total - 32, "int32")]
        self.fields = [f"i32 shift{number}"]
        m, factor = np.broadcast_arrays(m, np.left_shift(1, total - e.astype(np.int64)))
        if m.size > 1:
            self.columns = {f"m{number}": m, f"f{number}": factor}
            self.fields += [f"const i32* __restrict__ {name}" for name in self.columns]
            layout = rows.layout("int32")
            self.args += [program.constant(layout.apply(array)) for array in self.columns.values()]
        else:
            self.fields.append(f"i32 m{number}")
            self.args.append(IntArg(int(m[0]), "int32"))
        clipped = str(bool((reach >> e).max() + 1 > min(op.hi, -op.lo))).lower()
        given = f"of.f{number}[j], of.m{number}[j]" if self.columns else f"{factor[0]}, m{number}"
        self._call = f"rescaled<{clipped}, {op.lo}, {op.hi}>({{}} * {given}, shift{number})"

    def of(self, value: str) -> str:
        """The rescaled element ``j``."""
        return self._call.format(value)


def lower_shift_layer_norm(program: Program, node: Node) -> None:
    op, graph = node.op, program.graph
    assert isinstance(op, ShiftLayerNorm)
    x, gamma, beta = node.inputs
    shape = program.type(x).shape
    count, channels = product(shape[:-1]), shape[-1]
    assert isinstance(channels, int)
    if channels >= WIDEST:
        raise CodegenError(f"the GPU's kernel takes rows of less than {WIDEST} channels, not {channels}")
    if not graph.constants.keys() >= {gamma, beta}:
        raise CodegenError("gamma and beta must be constants")
    rows, others = _Rows(channels), program.beside.get(node.output, ())
    source = program.producers[x] if x in program.inlined else None
    first = [_Rescale(program, source, 0, rows)] if source else []
    rescales = [_Rescale(program, other, i, rows) for i, other in enumerate(others, 1)]
    kept = program.stored(node.output)
    outputs = [node.output] * kept + [other.output for other in others]
    read = source.inputs[0] if source else x
    results = ["y[j]"] * kept + [rescale.of("y[j]") for rescale in rescales]
    types = [TYPES[program.type(name).dtype] for name in (read, x, *outputs)]
    ends = _ends(rows, types, results, first, rescales)
    fields = _fields(types, [*first, *rescales])
    sizes = f"{channels}, {rows.lanes}, {rows.together}, {op.lo}, {op.hi}, {str(op.centred).lower()}"
    params = ", ".join([*fields, "const i32* gamma, const i64* beta, i64 eps, i32 e, i32 rows"])

    def build() -> str:
        name = f"layer_norm_{len(program.kernels)}"
        given = ", ".join(field.split()[-1] for field in fields)
        return (
            f"struct Ends_{name} {{\n{ends}}};\n"
            f'extern "C" __global__ void __launch_bounds__({THREADS}) {name}({params}) {{\n'
            f"  const Ends_{name} ends{{{given}}};\n"
            f"  layer_norm<{sizes}>(ends, gamma, beta, eps, e, rows);\n}}"
        )

    kernel = program.kernel("layer_norm", (sizes, ends), build)
    args: list[Arg] = [program.operand(read), *map(ValueArg, outputs)]
    args += [arg for rescale in (*first, *rescales) for arg in rescale.args]
    args += [
        program.graph_constant(gamma, rows.layout("int32")),
        program.graph_constant(beta, rows.layout("int64")),
    ]
    args += [IntArg(op.eps_q), IntArg(op.e, "int32"), SizeArg(count)]
    grid = ((count, THREADS // rows.lanes * rows.together),)
    program.add(kernel, args, outputs, node.source, [Launch(kernel, grid, THREADS)])


def _fields(types: Sequence[str], rescales: Iterable[_Rescale]) -> list[str]:
    outputs = [f"{kind}* __restrict__ y{i}" for i, kind in enumerate(types[2:])]
    return [f"const {types[0]}* __restrict__ x", *outputs, *(f for r in rescales for f in r.fields)]


def _ends(
    rows: _Rows, types: Sequence[str], results: Sequence[str], first: list[_Rescale], rescales: list[_Rescale]
) -> str:
    """The members of the struct that reads elements and stores results."""
    lines = [f"store<{rows.width}>(y{i} + at, [&](int j) {{ return {r}; }});" for i, r in enumerate(results)]
    input_ = first[0].of("element") if first else "element"
    return "".join(
        [
            *(f"  {field};\n" for field in _fields(types, [*first, *rescales])),
            f"  using Element = {types[0]};\n  using Value = {types[1]};\n",
            _columns("Before", rows, first),
            _columns("After", rows, rescales),
            method("i32 input(i32 element, const Before& of, int j)", [f"return {input_};"]),
            method(f"void put(i64 at, const i32 (&y)[{rows.width}], const After& of)", lines),
        ]
    )


def _columns(name: str, rows: _Rows, rescales: Iterable[_Rescale]) -> str:
    """What a piece's channels need, and its constructor."""
    names = [n for rescale in rescales for n in rescale.columns]
    members = "".join(f"alignas(16) i32 {n}[{rows.width}]; " for n in names)
    loads = [f"load_columns<{rows.lanes}>(of.{n}, {n}, piece);" for n in names]
    head = f"{name} {name.lower()}(int piece)"
    return f"  struct {name} {{ {members}}};\n" + method(head, [f"{name} of;", *loads, "return of;"])
