"""What an attention kernel is specialised by, and how it lays out one thread's scratch memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from intc.codegen.cpu.epilogue import Normalise, Requantize, Stage, stage_arguments
from intc.codegen.cpu.isa import Isa
from intc.errors import CodegenError

CHUNK_ROWS: Final = 96
BLOCK_ROWS: Final = 24


@dataclass(frozen=True)
class Rows:
    """Where the rows of all heads lie: token-major [B, S, stride], head h in columns ``h * dim``; or, with
    ``stride`` 0, head-major [B, heads, S, dim]; ``dtype``: of their elements.
    """

    heads: int
    dim: int
    stride: int = 0
    dtype: str = "int8"

    @property
    def step(self) -> int:
        """Elements between rows of a head."""
        return self.stride or self.dim

    def at(self, batch: Any, head: Any, length: Any, row: Any = 0) -> Any:
        """The index of ``row`` of a head; every head has ``length`` rows."""
        if self.stride:
            return (batch * length + row) * self.stride + head * self.dim
        return ((batch * self.heads + head) * length + row) * self.dim


@dataclass(frozen=True)
class AttentionSpec:
    """Shape and layout; equal specs share a kernel.

    The pointers to the rows ``q``, ``k`` (int8 or int16) and ``v`` (int8) include the column offset of head
    0; k and v may have fewer heads than q, each then read by as many neighbouring heads of q. ``mask`` adds
    an 8-bit mask (nonzero keeps), ``bias`` an int32 summand of the scores, both of strides given at run
    time. ``output`` turns the normalised context (Q8) into int8, or int16 where it goes beyond. ``left``:
    score distances are shifted left. ``uniform``: a row whose mask keeps nothing weighs all keys alike.
    """

    q: Rows
    k: Rows
    v: Rows
    out: Rows
    output: Requantize
    mask: bool = False
    bias: bool = False
    left: bool = False
    uniform: bool = False

    def __post_init__(self) -> None:
        if self.heads < 1 or self.head_dim < 1:
            raise CodegenError(f"attention of {self.heads} heads by {self.head_dim}: both must be positive")
        if self.k.heads != self.v.heads or self.heads % self.k.heads:
            raise CodegenError(f"{self.heads} heads of queries cannot share {self.k.heads} heads of keys")

    @property
    def wide(self) -> bool:
        """Whether scores are products of more than 8 bits."""
        return self.q.dtype != "int8" or self.k.dtype != "int8"

    @property
    def heads(self) -> int:
        """The heads of q."""
        return self.q.heads

    @property
    def head_dim(self) -> int:
        """The columns of a head."""
        return self.q.dim

    @property
    def group(self) -> int:
        """The heads of q that read one head of k and v."""
        return self.heads // self.k.heads

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What happens to the int32 context."""
        return (Normalise(), self.output)

    @property
    def out_dtype(self) -> str:
        """The element type of the output."""
        return "int8" if self.output.lo >= -128 and self.output.hi <= 127 else "int16"


def _score_isa(spec: AttentionSpec, isa: Isa) -> Isa:
    """The tile over keys: narrow and tall where a wide tile would mostly multiply padding."""
    isa = isa.wide() if spec.wide else isa
    return replace(isa, rows=12, vectors=2) if isa.lanes == 16 else isa


def _value_isa(spec: AttentionSpec, isa: Isa) -> Isa:
    """The tile over the columns of a head."""
    vectors = min(isa.vectors, -(-spec.head_dim // isa.lanes))
    whole = replace(isa, vectors=vectors)
    return whole if whole.columns % isa.epilogue == 0 else replace(isa, vectors=-(-isa.epilogue // isa.lanes))


def up(value: Any, multiple: int) -> Any:
    """``value`` rounded up to a multiple."""
    return (value + (multiple - 1)) // multiple * multiple


class Layout:
    """Offsets in 32-bit words of one thread's scratch memory, for ``sk`` keys (an int or a TIR
    expression).
    """

    def __init__(self, spec: AttentionSpec, isa: Isa, sk: Any) -> None:
        self.score, self.value = _score_isa(spec, isa), _value_isa(spec, isa)
        self.words = self.score.words(spec.head_dim)
        self.q_stride = -(-self.words // 16) * 16 + 16
        self.keys = up(sk, 64)  # every tile and vector width divides 64
        self.value_words = up(sk, 2 * isa.group) // isa.group
        self.p_stride = self.keys // isa.group + 16
        panels = -(-spec.head_dim // self.value.columns)
        self.k = 0
        self.start = self.keys * self.words
        self.v = self.start + self.keys
        self.q = self.v + self.value_words * (panels * self.value.columns)
        self.p = self.q + BLOCK_ROWS * self.q_stride
        self.scores = self.p + self.p_stride * BLOCK_ROWS
        self.mask = self.scores + self.keys * BLOCK_ROWS
        self.acc = self.mask + self.keys // 4
        self.factors = self.acc + self.value.rows * self.value.columns  # three words a row
        self.total = self.factors + 3 * BLOCK_ROWS


def attention_scratch_bytes(spec: AttentionSpec, isa: Isa, sk: Any) -> Any:
    """Bytes of scratch memory that one thread needs for ``sk`` keys (an int or an int32 TIR expression)."""
    return Layout(spec, isa, sk).total * 4


def attention_tasks(spec: AttentionSpec, batch: Any, sq: Any) -> Any:
    """The number of tasks (ints or int32 TIR expressions)."""
    return batch * spec.heads * ((sq + (CHUNK_ROWS - 1)) // CHUNK_ROWS)


def attention_arguments(spec: AttentionSpec) -> tuple[str, ...]:
    """The kernel's parameters in order; ``score`` is
    :func:`intc.codegen.cpu.probabilities.score_parameters`.
    """
    extra = tuple(name for name, used in (("mask", spec.mask), ("bias", spec.bias)) if used)
    factors = tuple(name for name, _ in stage_arguments(spec.stages))
    strides = tuple(f"{name}_{axis}" for name in extra for axis in ("batch", "head", "row"))
    return ("q", "k", "v", *extra, "score", *factors, "out", "scratch", "sq", "sk", *strides, "begin", "end")
