"""What every rule may look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np

from intc.ir.graph import Node
from intc.ir.op import Array
from intc.ops.elementwise import Add
from intc.ops.im2col import Im2col
from intc.ops.matmul import MatMul
from intc.passes.integer.equalise import channel_scales, room
from intc.passes.integer.forms import Form, Forms
from intc.passes.integer.rounding import Rounding
from intc.passes.integer.widths import strength
from intc.passes.match import divided
from intc.passes.plan import BIAS_LIMIT, Resolved

FEW_ROWS: Final = 256  # of an operand, whose wide integers hold more than others,
MOST_ROOM: Final = 2.0  # times as much at most


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

    def windows(self, value: str) -> list[tuple[Node, Array]]:
        """Like :meth:`products`, of those that read ``value`` through windows; weights as [C, ..]."""
        out = []
        for user in self.users[value]:
            if isinstance(user.op, Im2col) and user.op.channels_last:
                channels = self.forms.source.type(value).shape[-1]
                for node, weight in self.products(user.output):
                    taps = weight.reshape(-1, channels, weight.shape[-1])  # type: ignore[arg-type]
                    out.append((node, taps.transpose(1, 0, 2).reshape(channels, -1)))  # type: ignore[arg-type]
        return out

    def centre(self, value: str, form: Form) -> Array:
        """What must be added to integer * scale of ``form`` of ``value``, for all channels or each."""
        base = self.forms.base.get(value)
        centres = (f.centre for f in (form, base) if f is not None and f.centre is not None)
        return next(centres, np.zeros(1))

    def bias_room(self, product: Node, scale: Array) -> Array:
        """Weight scales [N] of ``product``, positive, at which a constant added to it fits 32 bits."""
        for user in self.users[product.output]:
            bias = next((self.constant(v) for v in user.inputs if self.constant(v) is not None), None)
            if isinstance(user.op, Add) and bias is not None and bias.size == scale.size:
                scale = np.maximum(scale, np.abs(bias.astype(np.float64).ravel()) / BIAS_LIMIT)
        return np.where(scale > 0, scale, np.finfo(np.float32).tiny)

    def channel_scales(self, value: str, bits: int) -> Array:
        """Scales that equalise the channels of ``value`` for all products that read it."""
        scales = self._even_scales(value, bits)
        return scales * self.room(value, scales) if bits == 8 else scales

    def room(self, value: str, scales: Array | None = None) -> float:
        """How much more than what calibration showed 8 bits of ``value`` hold."""
        scales = self._even_scales(value, 8) if scales is None else scales
        weights = [w for _, w in (*self.products(value), *self.windows(value))]
        quotient = divided(self.forms.source, self.forms.nodes, value)
        return room(self.forms.stats[value], scales, weights, strength(False, 8), quotient)

    def _even_scales(self, value: str, bits: int) -> Array:
        readers = [*self.products(value), *self.windows(value)]
        narrowest = min(self.plan.weights(n) for n, _ in readers)
        share = strength(bits > 8, narrowest)
        seen = self.forms.seen(value, bits)
        wide = seen.channels * min(seen.unseen_of(FEW_ROWS), MOST_ROOM)
        ranges = seen.channel_ranges(self.forms.calibrator) if bits == 8 else wide
        return channel_scales(ranges, [w for _, w in readers], bits, share)


Rule: TypeAlias = Callable[[Context, Node], Form]
