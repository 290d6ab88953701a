"""Phase 5: ``requantize(normalise_rows(w @ v, w))`` becomes one ``attention``, where
``w = shift_weights(q @ k^T [+ bias])``; also without the ``requantize``, which is then by one.

What splits rows into heads is absorbed, since the kernel reads token-major and head-major rows alike:
``reshape -> transpose`` of q, k and v, the repetition of keys that several heads share, and the merge of the
result. Scores of more axes (windows) have their last leading axes for heads, as far as these are numbers,
and the others for the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intc.ir.dims import Dim, Shape, product
from intc.ir.graph import Builder, Graph, Node, rebuild
from intc.ir.types import TensorType
from intc.ops.elementwise import Add
from intc.ops.fused import TWO_BYTES, Attention
from intc.ops.matmul import MatMul
from intc.ops.movement import Expand, Reshape, Transpose
from intc.ops.requantize import Requantize
from intc.ops.row_softmax import NormaliseRows, ShiftWeights
from intc.passes.match import Uses

IDENTITY = (2**30, 30)  # m and e that multiply by one
HEADS_FIRST = (0, 2, 1, 3)
KEYS_LAST = (0, 2, 3, 1)


@dataclass(frozen=True)
class FuseAttention:
    name: str = "fuse_attention"

    def run(self, graph: Graph) -> Graph:
        uses = Uses.of(graph)
        matches = (_match(graph, uses, node) for node in graph.nodes if isinstance(node.op, NormaliseRows))
        found = {match.output: match for match in matches if match is not None}

        def visit(b: Builder, node: Node, inputs: tuple[str, ...]) -> str | None:
            match = found.get(node.output)
            return None if match is None else match.emit(b, graph.values[node.output].scale, node.source)

        return rebuild(graph, visit)


@dataclass(frozen=True)
class _Rows:
    """``value`` holds the rows of ``heads``: [B.., heads.., S, dim], or [B, S, heads, dim] if ``tokens``;
    where there is a ``perm``, its transpose does.
    """

    value: str
    heads: int
    dim: int
    tokens: bool
    perm: tuple[int, ...] = ()

    def shape(self, graph: Graph) -> Shape:
        """[B.., heads.., S, dim]."""
        shape = graph.type(self.value).shape
        if self.tokens:
            return (shape[0], shape[2], shape[1], shape[3])
        return tuple(shape[i] for i in self.perm) if self.perm else tuple(shape)

    def emit(self, b: Builder, batch: Dim) -> str:
        """As the operator takes them, for ``batch`` items; ``reshape`` moves nothing."""
        x = b.emit(Transpose(self.perm), self.value, name=f"{self.value}.rows") if self.perm else self.value
        shape = b.graph.type(x).shape
        if self.tokens:
            whole: Shape = (*shape[:2], self.heads * self.dim)
            split = b.producer(x)
            merged = split is not None and isinstance(split.op, Reshape)
            if merged and b.graph.type(split.inputs[0]).shape == whole:  # type: ignore[union-attr]
                x = split.inputs[0]  # type: ignore[union-attr]
        elif len(shape) == 3:
            whole = tuple(shape)
        else:
            whole = (_batch(shape[:-2], self.heads), self.heads, *shape[-2:])
        if b.graph.type(x).shape != whole:
            x = b.emit(Reshape(whole), x, name=f"{x}.rows")
        return x if whole[0] == batch else b.emit(Expand((batch, *whole[1:])), x, name=f"{x}.wide")


@dataclass(frozen=True)
class _Match:
    """An attention that computes ``output``; ``beside`` are its mask and its bias, ``factors`` m and e,
    ``scores`` the shape of the scores.
    """

    op: Attention
    output: str
    rows: tuple[_Rows, _Rows, _Rows]
    factors: tuple[str, ...]
    beside: tuple[str, ...]
    scores: Shape

    def emit(self, b: Builder, scale: object, source: str) -> str:
        factors = self.factors or tuple(
            b.constant(n, np.array([v], np.int32)) for n, v in zip("me", IDENTITY, strict=True)
        )
        beside = (_of_rank_4(b, x, self.scores, self.op.heads) for x in self.beside)
        lead = self.scores[:-2]
        batch = _batch(lead, self.op.heads) if len(lead) > 1 else lead[0]
        operands = (*(rows.emit(b, batch) for rows in self.rows), *factors, *beside)
        if len(self.scores) <= 4:
            return b.emit(self.op, *operands, name=self.output, source=source, scale=scale)  # type: ignore[arg-type]
        y = b.emit(self.op, *operands, name=f"{self.output}.windows", source=source, scale=scale)  # type: ignore[arg-type]
        shape = (*self.scores[:-1], self.op.head_dim)
        return b.emit(Reshape(shape), y, name=self.output, source=source, scale=scale)  # type: ignore[arg-type]


def _batch(lead: Shape, heads: int) -> Dim:
    """The product of the axes in front of ``heads``."""
    return product(lead[: _first_head(lead, heads)])


def _first_head(lead: Shape, heads: int) -> int:
    """The first of the last axes of ``lead`` whose product is ``heads``; axes of size 1 count as theirs."""
    return next(i for i in range(len(lead)) if product(lead[i:]) == heads)


def _of_rank_4(b: Builder, x: str, scores: Shape, heads: int) -> str:
    """``x``, which broadcasts to the scores, with the axes [B, H, Sq, Sk] (rank 2 means [B, Sk] to the
    operator), repeated along those that it shares only in part.
    """
    shape = tuple(b.graph.type(x).shape)
    shape = (1,) * (len(scores) - len(shape)) + shape
    first = _first_head(scores[:-2], heads) if len(scores) > 3 else 1
    groups = ((0, first), (first, len(scores) - 2))
    wide = [*shape[:-1], scores[-1]]
    for start, stop in groups:
        if any(d != 1 for d in shape[start:stop]):
            wide[start:stop] = scores[start:stop]
    if tuple(wide) != shape:
        x = b.emit(Expand(tuple(wide)), x, name=f"{x}.wide")
    full = (*(product(wide[start:stop]) for start, stop in groups), *wide[-2:])
    return x if full == tuple(b.graph.type(x).shape) else b.emit(Reshape(full), x, name=f"{x}.rank4")


def _match(graph: Graph, uses: Uses, rows: Node) -> _Match | None:
    """The attention around ``normalise_rows``, as far as it reaches."""
    context = uses.only(rows.inputs[0], MatMul)
    weights = uses.producer(rows.inputs[1], ShiftWeights)
    if context is None or weights is None or context.inputs[0] != weights.output:
        return None
    if len(uses.users[weights.output]) != 2 or weights.output in uses.outputs:
        return None
    assert isinstance(weights.op, ShiftWeights)
    biased = uses.only(weights.inputs[0], Add)
    scores, bias = _biased(graph, uses, biased) if biased else (uses.only(weights.inputs[0], MatMul), ())
    if scores is None or graph.type(scores.output).rank < 3:
        return None
    shape = graph.type(scores.output).shape
    heads = _heads(shape[:-2])
    q = _rows(graph, uses, scores.inputs[0], heads)
    k = _keys(graph, uses, scores.inputs[1], heads)
    v = _rows(graph, uses, context.inputs[1], heads)
    if q is None or k is None or v is None or k.heads != v.heads or q.heads % k.heads:
        return None
    if not q.dim == k.dim == v.dim or graph.type(v.value).dtype != "int8":
        return None
    if not all(_agrees(rows.shape(graph)[:-2], shape[:-2]) for rows in (q, k, v)):
        return None
    beside = (*weights.inputs[1:], *bias)
    end, (lo, hi) = rows, graph.type(rows.output).interval
    factors: tuple[str, ...] = ()
    narrow = uses.sole_user(rows.output, Requantize)
    if narrow is not None and graph.constants[narrow.inputs[1]].size == 1:
        assert isinstance(narrow.op, Requantize)
        if narrow.op.dtype in ("int8", "int16"):
            end, lo, hi, factors = narrow, narrow.op.lo, narrow.op.hi, narrow.inputs[1:]
    merge = _merge(graph, uses, end.output)
    heads_first = merge is None and len(shape) > 3
    op = Attention(
        *(q.heads, k.heads, q.dim, 0, 0, 0, weights.op.m, weights.op.shift, lo, hi),
        masked=len(weights.inputs) == 2,
        biased=bool(bias),
        heads_first=heads_first,
        uniform=weights.op.uniform,
    )
    return _Match(op, (merge or end).output, (q, k, v), tuple(factors), beside, shape)


def _biased(graph: Graph, uses: Uses, total: Node) -> tuple[Node | None, tuple[str, ...]]:
    """``scores + bias`` taken apart."""
    for scores, bias in (total.inputs, total.inputs[::-1]):
        node = uses.only(scores, MatMul)
        same = graph.type(scores).shape == graph.type(total.output).shape
        if node is not None and same and graph.type(bias).dtype == "int32":
            return node, (bias,)
    return None, ()


def _agrees(lead: Shape, wanted: Shape) -> bool:
    """Whether rows with these axes in front are those of the scores: the same batch, or one for all of it."""
    if len(wanted) > 2:
        return lead == wanted
    return len(lead) == len(wanted) and lead[0] in (1, wanted[0])


def _heads(lead: Shape) -> int:
    """How many heads scores with these axes in front have."""
    if len(lead) == 1:
        return 1
    first = next((i for i in range(1, len(lead)) if all(isinstance(d, int) for d in lead[i:])), len(lead) - 1)
    heads = product(lead[first:])
    return heads if isinstance(heads, int) else 0


def _rows(graph: Graph, uses: Uses, value: str, heads: int) -> _Rows | None:
    """The rows that ``value`` [B.., H.., S, D] or [B, S, D] shows."""
    value = _unshared(graph, uses, value)
    type_ = graph.type(value)
    heads = int(type_.shape[1]) if type_.rank == 4 and isinstance(type_.shape[1], int) else heads
    return _tokens(graph, uses, value, HEADS_FIRST) or _made(graph, value, heads, False)


def _keys(graph: Graph, uses: Uses, value: str, heads: int) -> _Rows | None:
    """Like :func:`_rows`, of ``value`` [B.., H.., D, S] or [B, D, S], which is turned where nothing that is
    there shows its rows.
    """
    moved = uses.producer(value, Transpose)
    rank = graph.type(value).rank
    swapped = (*range(rank - 2), rank - 1, rank - 2)
    perm = tuple(moved.op.perm) if moved is not None and isinstance(moved.op, Transpose) else ()
    if moved is not None and perm == swapped:
        return _rows(graph, uses, moved.inputs[0], heads)
    tokens = _tokens(graph, uses, value, KEYS_LAST)
    if tokens is not None:
        return tokens
    source, whole = (moved.inputs[0], tuple(perm[i] for i in swapped)) if moved else (value, swapped)
    type_ = graph.type(value)
    shape = type_.shape
    heads = int(shape[1]) if rank == 4 and isinstance(shape[1], int) else heads
    if not isinstance(shape[-2], int) or not _multiplies(type_) or not heads:
        return None
    return _Rows(source, heads, shape[-2], False, whole)


def _tokens(graph: Graph, uses: Uses, value: str, perm: tuple[int, ...]) -> _Rows | None:
    """The rows [B, S, H, D] of which ``value`` is the transpose."""
    moved = uses.producer(value, Transpose)
    if moved is None or not isinstance(moved.op, Transpose) or tuple(moved.op.perm) != perm:
        return None
    heads = graph.type(moved.inputs[0]).shape[2]
    return _made(graph, moved.inputs[0], heads, True)


def _made(graph: Graph, value: str, heads: Dim, tokens: bool) -> _Rows | None:
    type_ = graph.type(value)
    dim = type_.shape[-1]
    known = isinstance(heads, int) and heads and isinstance(dim, int) and _multiplies(type_)
    return _Rows(value, heads, dim, tokens) if known else None  # type: ignore[arg-type]


def _multiplies(type_: TensorType) -> bool:
    """Whether attention multiplies such numbers."""
    return type_.dtype in ("int8", "int16") and type_.magnitude <= TWO_BYTES


def _unshared(graph: Graph, uses: Uses, value: str) -> str:
    """x [B, G, S, D] where ``value`` [B, G*n, S, D] repeats each of its heads n times; else ``value``."""
    merged = uses.producer(value, Reshape)
    repeated = uses.producer(merged.inputs[0], Expand) if merged else None
    split = uses.producer(repeated.inputs[0], Reshape) if repeated else None
    if repeated is None or split is None or graph.type(value).rank != 4:
        return value
    x, wide, whole = (graph.type(n).shape for n in (split.inputs[0], repeated.output, value))
    one = graph.type(split.output).shape
    fits = len(x) == 4 and len(wide) == 5 and one == (*x[:2], 1, *x[2:])
    return split.inputs[0] if fits and (*wide[:2], *wide[3:]) == x and whole[2:] == x[2:] else value


def _merge(graph: Graph, uses: Uses, value: str) -> Node | None:
    """The node that makes [B, S, H*D] of ``value`` [B, H, S, D], where nothing else reads it."""
    moved = uses.sole_user(value, Transpose)
    if moved is None or not isinstance(moved.op, Transpose) or tuple(moved.op.perm) != HEADS_FIRST:
        return None
    merged = uses.sole_user(moved.output, Reshape)
    b, s, h, d = graph.type(moved.output).shape
    return merged if merged is not None and graph.type(merged.output).shape == (b, s, h * d) else None
