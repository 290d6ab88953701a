"""Fused integer operators: what one kernel computes, meaning exactly the composition of the plain operators.

They are produced by the ``fuse`` passes and never change a bit: ``evaluate`` calls the same formulas in the
same order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from intc.errors import GraphError, QuantizationError
from intc.ir.dims import Dim
from intc.ir.op import Array, Op, Sizes
from intc.ir.ranges import counted
from intc.ir.types import DType, TensorType
from intc.ops import scalar
from intc.ops.matmul import exact_matmul
from intc.ops.row_softmax import NormaliseRows, ShiftWeights

TWO_BYTES: int = 127 * 256 + 127  # the largest number of two signed digits, as GPUs multiply them
WIDE: int = 2**30 - 1  # branches of a residual sum are clipped to +-WIDE, so that their sum fits 32 bits


def activation(gelu: str, frac: int) -> Callable[[Any, Any], Any]:
    """The scalar formula of a ``linear``'s GELU, over an algebra and values in Q``frac``."""
    if gelu == "shift":
        return lambda ns, x: scalar.gelu(ns, x, frac)
    return lambda ns, x: scalar.poly_gelu(ns, x, frac, gelu)


@dataclass(frozen=True)
class Linear(Op):
    """``x @ w + bias`` with its epilogue: requantise, GELU and residual sum in registers.

    Inputs: x int8/uint8/int16 [.., K]; w int8 [K, N]; bias int32 [N]; then unless ``raw``: m, e [N]; if there
    is a ``gelu`` ("shift", or a kind of PolyGelu, in Q``frac``): c [N] if ``centred``, then m2, e2 [N]; if
    ``residual``: r int8 or int16 [.., N], mr, er [1] or [N]. Output [.., N] in [lo, hi];
    ``raw`` gives the int32 sums.
    """

    lo: int
    hi: int
    dtype: DType
    gelu: str = ""
    frac: int = 0
    centred: bool = False
    residual: bool = False
    raw: bool = False
    name: ClassVar[str] = "linear"
    arity: ClassVar[tuple[int, ...]] = (3, 5, 7, 8)

    def expected_inputs(self) -> int:
        """How many inputs these attributes call for."""
        return 3 if self.raw else 5 + 2 * bool(self.gelu) + self.centred + 3 * self.residual

    def infer(self, *types: TensorType) -> TensorType:
        if len(types) != self.expected_inputs():
            raise GraphError(
                f"linear takes {self.expected_inputs()} inputs with these attributes, not {len(types)}"
            )
        x, w, bias = types[:3]
        if x.shape[-1] != w.shape[0] or w.rank != 2:
            raise GraphError(f"linear cannot multiply {x} by {w}")
        k = w.shape[0]
        assert isinstance(k, int)
        bound = k * x.magnitude * w.magnitude + bias.magnitude
        if bound >= 2**31:
            raise QuantizationError(f"the sum over {k} products can reach {bound}, beyond 32 bits")
        shape = (*x.shape[:-1], w.shape[1])
        return (
            TensorType(shape, "int32", -bound, bound)
            if self.raw
            else TensorType(shape, self.dtype, self.lo, self.hi)
        )

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        x, w, bias = arrays[:3]
        acc = exact_matmul(x, w) + bias.astype(np.int64)
        if self.raw:
            return acc.astype(np.int32)
        ns = scalar.EXACT
        m, e = arrays[3].astype(np.int64), arrays[4].astype(np.int64)
        if self.gelu:
            fixed = scalar.requantize(ns, acc, m, e, -32767, 32767)
            acc = activation(self.gelu, self.frac)(ns, fixed)
            if self.centred:
                acc = acc - arrays[5]
            m, e = (a.astype(np.int64) for a in arrays[5 + self.centred : 7 + self.centred])
        if not self.residual:
            return np.asarray(scalar.requantize(ns, acc, m, e, self.lo, self.hi), self.dtype)
        r, mr, er = (a.astype(np.int64) for a in arrays[-3:])
        total = scalar.requantize(ns, acc, m, e, -WIDE, WIDE) + scalar.requantize(ns, r, mr, er, -WIDE, WIDE)
        return np.asarray(np.clip(total, self.lo, self.hi), self.dtype)


@dataclass(frozen=True)
class Attention(Op):
    """Scaled dot-product attention of all heads: Q K^T, ShiftWeights, times V, NormaliseRows, requantise.

    Inputs: q and k int8 or int16 (up to TWO_BYTES), v int8, each token-major [B, S, *], of which the columns
    ``offset`` to ``offset + heads*head_dim`` are used (they may be one tensor), or head-major
    [B, heads, S, head_dim]; k and v have ``kv_heads`` heads, each for ``heads / kv_heads`` neighbours of q.
    mo, eo [1] or [heads*head_dim]. Where ``masked``, a bool mask, [B, Sk] over keys or broadcastable to
    [B, heads, Sq, Sk], True = keep; where ``biased``, an int32 summand of the scores, broadcastable to them.
    ``m, shift`` and ``uniform`` are those of ShiftWeights.
    Output [B, Sq, heads*head_dim], or [B, heads, Sq, head_dim] where ``heads_first``, in [lo, hi]: int8, or
    int16 where 8 bits do not hold that.
    """

    heads: int
    kv_heads: int
    head_dim: int
    q_offset: int
    k_offset: int
    v_offset: int
    m: int
    shift: int
    lo: int
    hi: int
    masked: bool = False
    biased: bool = False
    heads_first: bool = False
    uniform: bool = False
    name: ClassVar[str] = "attention"
    arity: ClassVar[tuple[int, ...]] = (5, 6, 7)

    def limits(self, *types: TensorType) -> list[tuple[Dim, int]]:
        return counted((types[1].shape[-2],))

    @property
    def dtype(self) -> DType:
        """The element type of the output."""
        return "int8" if self.lo >= -128 and self.hi <= 127 else "int16"

    def infer(self, *types: TensorType) -> TensorType:
        q, k, v = types[:3]
        if len(types) != 5 + self.masked + self.biased or self.heads % self.kv_heads:
            raise GraphError("attention's attributes do not fit its inputs")
        for what, type_, offset, heads in (
            ("q", q, self.q_offset, self.heads),
            ("k", k, self.k_offset, self.kv_heads),
            ("v", v, self.v_offset, self.kv_heads),
        ):
            last, width = type_.shape[-1], heads * self.head_dim
            tokens = type_.rank == 3 and isinstance(last, int) and last >= offset + width
            first = type_.rank == 4 and type_.shape[1] == heads and last == self.head_dim and not offset
            held = ("int8",) if what == "v" else ("int8", "int16")
            if type_.dtype not in held or type_.magnitude > TWO_BYTES or not (tokens or first):
                raise GraphError(
                    f"attention needs {what} as {' or '.join(held)} [B, S, >= {offset + width}] or"
                    f" [B, {heads}, S, {self.head_dim}], not {type_}"
                )
        if self.head_dim * q.magnitude * k.magnitude >= 2**30:
            raise QuantizationError(f"scores over {self.head_dim} products of {q} and {k} exceed 31 bits")
        if self.biased and types[-1].magnitude + self.head_dim * q.magnitude * k.magnitude >= 2**31:
            raise QuantizationError(f"scores with a bias up to {types[-1].magnitude} exceed 32 bits")
        rows = q.shape[-2]
        if self.heads_first:
            return TensorType((q.shape[0], self.heads, rows, self.head_dim), self.dtype, self.lo, self.hi)
        return TensorType((q.shape[0], rows, self.heads * self.head_dim), self.dtype, self.lo, self.hi)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        q, k, v = (
            self._heads(a, o, h)
            for a, o, h in zip(
                arrays[:3],
                (self.q_offset, self.k_offset, self.v_offset),
                (self.heads, self.kv_heads, self.kv_heads),
                strict=True,
            )
        )
        scores = exact_matmul(q, np.swapaxes(k, -1, -2)).astype(np.int32)  # B H Sq Sk
        if self.biased:
            scores = scores + arrays[-1]
        masks = [a[:, None, None, :] if a.ndim == 2 else a for a in arrays[5 : 5 + self.masked]]
        weights = ShiftWeights(self.m, self.shift, self.uniform).evaluate(scores, *masks, sizes=sizes)
        context = NormaliseRows().evaluate(exact_matmul(weights, v), weights, sizes=sizes).astype(np.int64)
        context = np.swapaxes(context, 1, 2)  # B Sq H D
        split = context.shape
        context = context.reshape(*split[:2], -1)
        mo, eo = arrays[3].astype(np.int64), arrays[4].astype(np.int64)
        out = np.asarray(scalar.requantize(scalar.EXACT, context, mo, eo, self.lo, self.hi), self.dtype)
        return np.swapaxes(out.reshape(split), 1, 2) if self.heads_first else out

    def _heads(self, array: Array, offset: int, heads: int) -> Array:
        """B H S D view of the used columns; heads of keys and values repeated for those that share them."""
        if array.ndim == 3:
            used = array[:, :, offset : offset + heads * self.head_dim]
            array = np.swapaxes(used.reshape(*used.shape[:2], heads, self.head_dim), 1, 2)
        return np.repeat(array, self.heads // heads, axis=1)


OPS = (Linear, Attention)
