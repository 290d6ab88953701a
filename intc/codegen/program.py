"""The program between graph and TIR: stages that call kernels on values, constants and sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from intc.artifact.tensors import INT4, pack_nibbles
from intc.codegen.cuda.printer import THREADS, print_kernel
from intc.codegen.kernel import Frame, PrimFunc, Sharing, define, storage
from intc.codegen.targets import Target
from intc.ir.dims import Dim, factor, factors, product
from intc.ir.graph import Graph, Node
from intc.ir.op import Array
from intc.ir.types import TensorType


@dataclass(frozen=True)
class ValueArg:
    """The address of a value's data, ``offset`` bytes further on."""

    name: str
    offset: int = 0


@dataclass(frozen=True)
class ConstArg:
    """The address of an entry of the constants blob, by its number."""

    entry: int


@dataclass(frozen=True)
class IntArg:
    """A number known at compile time."""

    value: int
    dtype: str = "int64"


@dataclass(frozen=True)
class SizeArg:
    """A size known at run time."""

    dim: Dim
    dtype: str = "int32"


@dataclass(frozen=True)
class ScratchArg:
    """The address of this task's own scratch memory of ``size`` bytes."""

    size: Dim


@dataclass(frozen=True)
class ShareArg:
    """The first (or, with ``end``, one past the last) of this task's share of ``count(rows)`` pieces of work,
    int32.
    """

    count: Callable[[Any], Any]
    sizes: tuple[Dim, ...]
    end: bool


@dataclass(frozen=True)
class TaskArg:
    """The number of this task."""


@dataclass(frozen=True)
class TasksArg:
    """How many tasks the stage is split into."""


@dataclass(frozen=True)
class ZerosArg:
    """The address of zeros that a kernel leaves zero: counters and sums of blocks along z (GPU)."""


Arg: TypeAlias = (
    ValueArg | ConstArg | IntArg | SizeArg | ScratchArg | ShareArg | TaskArg | TasksArg | ZerosArg
)


@dataclass(frozen=True)
class Launch:
    """How a GPU starts a kernel: blocks along each axis of ``grid`` as (size, how much of it a block does).

    Where a stage has several, ``work`` says how long a block takes compared with theirs, or, where it is 0,
    ``grid`` are the sides of tiles; each of ``limits`` is a size and the most that it may be. Where there are
    fewer blocks than multiprocessors, up to ``splits`` blocks along z share each block's sum, in ``zeros``
    bytes a block. The kernel is for one ``architecture`` alone unless that is 0.
    """

    kernel: str
    grid: tuple[tuple[Dim, int], ...]
    threads: int
    shared: int = 0
    splits: int = 1
    zeros: int = 0
    work: int = 0
    architecture: int = 0
    limits: tuple[tuple[Dim, int], ...] = ()


@dataclass(frozen=True)
class Stage:
    """One call of ``kernel`` per task; ``writes`` names the values that are produced.

    On a GPU it is started as that of ``launches`` which takes the least time at the sizes of a run.
    """

    kernel: str
    args: tuple[Arg, ...]
    writes: tuple[str, ...]
    source: str
    launches: tuple[Launch, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        names = (a.name for a in self.args if isinstance(a, ValueArg))
        return tuple(n for n in names if n not in self.writes)


@dataclass(frozen=True)
class Layout:
    """How a graph constant becomes kernel-ready: pad with zeros at the ends, reshape, transpose, convert to
    ``dtype`` (``"int4"``: two per byte).
    """

    pad: tuple[int, ...]
    reshape: tuple[int, ...]
    perm: tuple[int, ...]
    dtype: str

    def apply(self, array: Array) -> Array:
        padded = np.pad(array, [(0, p) for p in self.pad])
        ordered = padded.reshape(self.reshape).transpose(self.perm)
        return pack_nibbles(ordered) if self.dtype == INT4 else np.ascontiguousarray(ordered, self.dtype)


@dataclass(frozen=True)
class Constant:
    """One entry of the blob: ``array`` in kernel order; ``name`` is the graph constant that it holds in full,
    or "".

    ``layout`` is None where the entry is the graph constant as it is.
    """

    array: Array
    name: str = ""
    layout: Layout | None = None


@dataclass
class Program:
    """Kernels by name, stages in order, constants in blob order and aliases (value -> value with the same
    bytes). Values of ``inlined`` are computed by their readers, those of ``framed`` are stored as the output
    of a Pad; ``beside`` has the readers of a value that its own kernel computes. A GPU's kernels are text,
    and ``work`` says how many threads those of standard form need.
    """

    graph: Graph
    target: Target
    kernels: dict[str, PrimFunc] = field(default_factory=dict)
    work: dict[str, Dim] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    inlined: frozenset[str] = frozenset()
    framed: dict[str, Node] = field(default_factory=dict)
    beside: dict[str, tuple[Node, ...]] = field(default_factory=dict)
    _kernel_names: dict[object, str] = field(default_factory=dict)
    _constant_numbers: dict[object, int] = field(default_factory=dict)

    @cached_property
    def producers(self) -> dict[str, Node]:
        return self.graph.producers()

    @property
    def within(self) -> frozenset[str]:
        """The values that no memory holds: inlined ones, those that are stored as the output of a Pad, and
        those that are read where they are computed.
        """
        found = {*self.inlined, *(value for value in self.beside if not self.stored(value))}
        for pad in self.framed.values():
            value = pad.inputs[0]
            while value not in self.framed:  # a reshape
                found.add(value)
                value = self.producers[value].inputs[0]
            found.add(value)
        return frozenset(found)

    def stored(self, value: str) -> bool:
        """Whether anything reads ``value`` but the nodes that are computed beside it."""
        apart = self.beside.get(value, ())
        return value in self.graph.outputs or any(user not in apart for user in self.graph.users()[value])

    def type(self, name: str) -> TensorType:
        return self.graph.type(name)

    def kernel(self, stem: str, key: object, build: Callable[[], PrimFunc]) -> str:
        """The name of the kernel with this ``(stem, key)``, built on first use."""
        name = self._kernel_names.get((stem, key))
        if name is None:
            name = self._kernel_names[stem, key] = f"{stem}_{len(self.kernels)}"
            self.kernels[name] = build()
        return name

    def constant(self, array: Array, name: str = "", layout: Layout | None = None) -> ConstArg:
        """The blob entry with these bytes; equal entries are stored once."""
        array = np.ascontiguousarray(array, np.uint8 if array.dtype == np.bool_ else array.dtype)
        key = (array.dtype.str, array.shape, name or array.tobytes(), layout)
        number = self._constant_numbers.setdefault(key, len(self.constants))
        if number == len(self.constants):
            self.constants.append(Constant(array, name, layout))
        return ConstArg(number)

    def graph_constant(self, name: str, layout: Layout | None = None) -> ConstArg:
        """The blob entry that holds graph constant ``name``."""
        array = self.graph.constants[name]
        return self.constant(layout.apply(array) if layout else array, name, layout)

    def operand(self, name: str, start: int = 0) -> ValueArg | ConstArg:
        """The address of element ``start`` of value ``name``, computed or constant."""
        if name not in self.graph.constants:
            return ValueArg(name, start * np.dtype(self.type(name).dtype).itemsize)
        if not start:
            return self.graph_constant(name)
        return self.constant(self.graph.constants[name].ravel()[start:])

    def _placed(self, name: str, layout: Layout | Array) -> ConstArg:
        return self.graph_constant(name, layout) if isinstance(layout, Layout) else self.constant(layout)

    def add(
        self,
        kernel: str,
        args: Sequence[Arg],
        output: str | Sequence[str],
        source: str = "",
        launches: Sequence[Launch] = (),
    ) -> None:
        """Append the stage that computes ``output``, one value or several."""
        outputs = (output,) if isinstance(output, str) else tuple(output)
        self.stages.append(Stage(kernel, tuple(args), outputs, source, tuple(launches)))

    def generic(
        self,
        stem: str,
        key: object,
        inputs: Sequence[str],
        output: str,
        body: Callable[[Frame], None],
        scalars: Sequence[tuple[str, int]] = (),
        scratch: Sequence[tuple[str, str, Dim]] = (),
        source: str = "",
        layouts: Mapping[str, Layout | Array] | None = None,
        dims: Sequence[Dim] = (),
    ) -> None:
        """Append a stage of our standard form; ``layouts`` gives graph constants in another order
        (an array: of other elements too); ``dims`` are sizes that ``body`` needs beside those of the shapes.

        Pointers are ``x0, x1, ..`` (inputs), ``y`` (output), then ``scratch`` as (name, element type,
        elements); scalars are passed at run time, so that ``key`` need not hold them. Shapes and element
        types are part of the key.
        """
        # a copy to a graph output writes memory that is no value of the graph
        types = [self.type(x) for x in (*inputs, output if output in self.graph.values else inputs[0])]
        names = (*(f"x{i}" for i in range(len(inputs))), "y")
        shapes = tuple((t.shape, t.dtype) for t in types)
        sizes = factors([d for t in types for d in t.shape] + [s[2] for s in scratch] + [*dims])
        pointers = [(n, storage(t.dtype)) for n, t in zip(names, types, strict=True)]
        pointers += [(name, dtype) for name, dtype, _ in scratch]
        key = (key, shapes, tuple(n for n, _ in scalars), tuple(scratch))
        sharing: Sharing = "items" if self.target.gpu else "tasks" if self.target.native else "none"

        def build() -> PrimFunc:
            function, work = define(pointers, [n for n, _ in scalars], sizes, body, sharing)
            if not self.target.gpu:
                return function
            name = f"{stem}_{len(self.kernels)}"
            self.work[name] = work
            return print_kernel(name, function, [n for n, _, _ in scratch], THREADS)

        kernel = self.kernel(stem, key, build)
        special = layouts or {}
        args: list[Arg] = [self._placed(x, special[x]) if x in special else self.operand(x) for x in inputs]
        args.append(ValueArg(output))
        args += [ScratchArg(count * np.dtype(dtype).itemsize) for _, dtype, count in scratch]
        args += [IntArg(v) for _, v in scalars]
        args += [SizeArg(factor(s)) for s in sizes]
        if self.target.gpu:
            args += [SizeArg(count * np.dtype(dtype).itemsize, "int64") for _, dtype, count in scratch]
            launch = Launch(kernel, ((self.work[kernel], THREADS),), THREADS)
            self.add(kernel, args, output, source, [launch])
            return
        self.add(kernel, [*args, TaskArg(), TasksArg()] if sharing == "tasks" else args, output, source)


def nbytes(type_: TensorType) -> Dim:
    """The size in memory of a value of this type."""
    return product(type_.shape) * np.dtype(storage(type_.dtype)).itemsize
