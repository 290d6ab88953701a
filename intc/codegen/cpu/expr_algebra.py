"""The scalar formulas as kernels: an algebra over TIR expressions.

Every result of ``where``, ``minimum``, ``maximum`` and ``assume`` is bound to a variable, so that a formula
which uses a result twice computes it once.
"""

from __future__ import annotations

from typing import Any, Final

from tvm.tirx.script.builder import ir as T


class ExprAlgebra:
    """TIR expressions of one integer type; to be used while a function is being built."""

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        return T.bind(T.Select(condition, a, b))

    def minimum(self, a: Any, b: Any) -> Any:
        return T.bind(T.min(a, b))

    def maximum(self, a: Any, b: Any) -> Any:
        return T.bind(T.max(a, b))

    def mulhrs(self, a: Any, b: Any) -> Any:
        return T.bind(T.shift_right(a * b + 16384, T.IntImm("int32", 15)))

    def assume(self, value: Any, lo: int, hi: int) -> Any:
        return T.bind(value)


EXPR: Final = ExprAlgebra()


def wide(value: Any) -> Any:
    """``value`` as int64."""
    return T.cast(value, "int64")
