"""What every rule may look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from intc.ir.graph import Node
from intc.ir.op import Array
from intc.ops.matmul import MatMul
from intc.passes.integer.equalise import channel_scales
from intc.passes.integer.forms import Form, Forms
from intc.passes.integer.rounding import Rounding
from intc.passes.integer.widths import strength
from intc.passes.plan import Resolved


@dataclass(frozen=True)
class Context:
    """What a rule may look at: the forms, the plan, and the float graph's consumers.

    ``corrections`` holds what the bias behind a product must still gain, by the product's value.
    """

    forms: Forms
    plan: Resolved
    users: dict[str, list[Node]]
    rounding: Rounding = "gptq"
    corrections: dict[str, Array] = field(default_factory=dict)

    def constant(self, value: str) -> Array | None:
        return self.forms.source.constants.get(value)

    def products(self, value: str) -> list[tuple[Node, Array]]:
        """Every product with constant weights [C, N] that reads ``value`` as its left operand."""
        users = (n for n in self.users[value] if isinstance(n.op, MatMul) and n.inputs[0] == value)
        found = ((n, self.constant(n.inputs[1])) for n in users)
        return [(n, w) for n, w in found if w is not None and w.ndim == 2]

    def channel_scales(self, value: str, bits: int) -> Array:
        """Scales that equalise the channels of ``value`` for all products that read it."""
        readers = self.products(value)
        narrowest = min(self.plan.weights(n) for n, _ in readers)
        share = strength(self.forms.nodes[value].op, bits > 8, narrowest)
        ranges = self.forms.stats[value].channel_ranges(self.forms.calibrator if bits == 8 else "minmax")
        return channel_scales(ranges, [w for _, w in readers], bits, share)


Rule: TypeAlias = Callable[[Context, Node], Form]
