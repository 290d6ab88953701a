"""How a kernel is written: a private PrimFunc over flat typed buffers, built through TVM's IRBuilder.

Every kernel has the parameters: pointers, 64-bit scalars, the symbols and quotients of sizes that it needs
(int32), ``task`` and ``tasks``. It computes the ``task``-th of ``tasks`` shares; the shares of one stage
write disjoint elements. Where one thread does everything the last two are missing. On a GPU every thread is a
task, and has one item of the work or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from intc.ir.dims import Dim, quotient, terms_of
from intc.ir.types import DType

Expr: TypeAlias = Any  # a TIR expression or a Python int
PrimFunc: TypeAlias = Any
Sharing: TypeAlias = Literal["tasks", "none", "items"]


def storage(dtype: DType) -> str:
    """The element type of a value in memory: a bool is one byte, 0 or 1."""
    return "uint8" if dtype == "bool" else dtype


def dim_expr(dim: Dim, symbols: Mapping[str, Expr], dtype: str = "int32") -> Expr:
    """``dim`` as an expression of type ``dtype`` over the variables of symbols, and of quotients where there
    are any.
    """
    total: Expr = T.IntImm(dtype, 0)
    for mono, coef in terms_of(dim).items():
        term: Expr = T.IntImm(dtype, coef)
        for name in mono:
            inner = None if name in symbols else quotient(name)
            value = T.truncdiv(dim_expr(inner[0], symbols), inner[1]) if inner else symbols[name]
            term = term * T.cast(value, dtype)
        total = total + term
    return total


@dataclass
class Frame:
    """What the body of a kernel sees: ``buffers`` by parameter name, ``scalars`` (int64) and its share of the
    work.

    ``sharing``: ``"tasks"`` as above; ``"none"``, all of it; ``"items"``: there are as many tasks as there is
    ``work``, the total of the one :meth:`share`.
    """

    buffers: dict[str, Any]
    scalars: dict[str, Expr]
    symbols: dict[str, Expr]
    task: Expr
    tasks: Expr
    handles: dict[str, Expr]
    sharing: Sharing = "tasks"
    work: Dim = 0

    @property
    def fine(self) -> bool:
        """Whether a task has one item of the work."""
        return self.sharing == "items"

    def view(self, name: str, dtype: str) -> Any:
        """The memory of buffer ``name`` with elements of ``dtype``."""
        return T.decl_buffer((2**31 - 1,), dtype, data=self.handles[name], layout=None)

    def dim(self, dim: Dim) -> Expr:
        """``dim`` as an int32 expression (a Python int where it is known)."""
        return dim if isinstance(dim, int) else dim_expr(dim, self.symbols)

    @contextmanager
    def share(self, total: Dim) -> Iterator[Expr]:
        """A loop over this task's part of ``range(total)``."""
        if self.fine:
            self.work = total
            with T.If(self.task < self.dim(total)), T.Then():
                yield self.task
            return
        first, mine = self._share(total)
        with T.serial(0, mine) as i:
            yield first + i

    @contextmanager
    def share_blocks(self, total: Dim, size: int) -> Iterator[tuple[Expr, Expr]]:
        """A loop over this task's part of ``range(total)`` in blocks of at most ``size``: (first, count)."""
        first, mine = self._share(total)
        with T.serial(0, T.truncdiv(mine + size - 1, size)) as i:
            done = T.bind(i * size)
            yield T.bind(first + done), T.bind(T.min(mine - done, size))

    def _share(self, total: Dim) -> tuple[Expr, Expr]:
        """The first of this task's part of ``range(total)``, and how many there are."""
        count, self.work = self.dim(total), total
        if self.sharing == "none":
            return 0, count
        chunk = T.bind(T.truncdiv(count + self.tasks - 1, self.tasks))
        first = T.bind(T.min(self.task * chunk, count))
        return first, T.bind(T.min(chunk, count - first))


def define(
    pointers: Sequence[tuple[str, str]],
    scalars: Sequence[str],
    symbols: Sequence[str],
    body: Callable[[Frame], None],
    sharing: Sharing = "tasks",
) -> tuple[PrimFunc, Dim]:
    """The kernel with these parameters, and the work that it shares out; ``pointers`` are (name, element
    type).
    """
    with IRBuilder() as builder:
        with T.prim_func(is_private=True):
            T.func_attr({"tirx.noalias": True})
            handles = {name: T.arg(name, T.handle(dtype)) for name, dtype in pointers}
            ints = {name: T.arg(name, T.int64()) for name in scalars}
            dims = {n: T.arg(f"size{i}" if quotient(n) else n, T.int32()) for i, n in enumerate(symbols)}
            task, tasks = (T.arg(n, T.int32()) if sharing != "none" else None for n in ("task", "tasks"))
            frame = Frame({}, ints, dims, task, tasks, handles, sharing)
            frame.buffers |= {name: frame.view(name, dtype) for name, dtype in pointers}
            body(frame)
    return builder.get(), frame.work


def store(buffer: Any, value: Expr, index: Expr) -> None:
    """``buffer[index] = value``, converted to the buffer's element type (the value must fit it)."""
    T.buffer_store(buffer, T.cast(value, buffer.dtype), [index])


def local(dtype: str, size: int = 1) -> Any:
    """A stack buffer of ``size`` elements (below 1 KiB); a size of 1 is a mutable scalar at index 0."""
    # scope "local" allocates once per function in private functions, "global" is promoted to registers
    return T.alloc_buffer((size,), dtype, scope="global", layout=None)


def opaque(value: Expr, dtype: str = "int64") -> Expr:
    """``value``, of type ``dtype``, by way of memory: TVM's simplifier, exponential in chains of variables,
    stops here.
    """
    cell = local(dtype)
    T.buffer_store(cell, value, [0])
    return T.bind(cell[0])


def bit_length(value: Expr) -> Expr:
    """The number of bits of a positive int64."""
    return T.cast(64 - T.cast(T.clz(value), "int64"), "int64")


def int64(value: int) -> Expr:
    """A 64-bit constant."""
    return T.IntImm("int64", value)


def floor_div(a: Expr, b: Expr) -> Expr:
    """``a // b`` of int64 variables, rounded down."""
    q = T.bind(T.truncdiv(a, b))
    rest = T.bind(a - q * b)
    down = T.And(rest != 0, T.bitwise_xor(rest, b) < 0)
    return T.bind(q - T.cast(down, "int64"))
