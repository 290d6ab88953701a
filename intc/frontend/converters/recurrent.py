"""Converters of recurrent layers: LSTM, GRU and RNN over a fixed number of steps, each written out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from intc.errors import GraphError
from intc.frontend.call import Call, Converter
from intc.frontend.converters.movement import reshape_to
from intc.frontend.symbolic import Imported, Splat
from intc.ir.op import Array
from intc.ops import elementwise as ew
from intc.ops import logic
from intc.ops.elementwise import FloatUnary
from intc.ops.matmul import MatMul
from intc.ops.movement import Concat, Slice, Transpose

MAX_STEPS: Final = 128  # of one layer and direction; each step becomes some ten operators
FUNCTIONS: Final[dict[str, type[FloatUnary]]] = {"Sigmoid": ew.Sigmoid, "Tanh": ew.Tanh, "Relu": ew.Relu}
DEFAULTS: Final = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
GATES: Final = {"LSTM": 4, "GRU": 3, "RNN": 1}
AT_ONCE: Final = 64  # values that one Concat joins

States: TypeAlias = tuple[str | None, ...]  # h, and c of an LSTM; None where all are 0
Cell: TypeAlias = Callable[["Layer", str, States], tuple[str, ...]]


@dataclass(frozen=True)
class Layer:
    """One direction: its products with the state h, as ``right`` [H, gates * H], and their ``bias``, apart
    where it cannot join that of the input's products; ``functions`` by place.
    """

    call: Call
    size: int
    right: Array
    bias: Array | None
    functions: Sequence[FloatUnary]

    def emit(self, op: Any, *inputs: str) -> str:
        return self.call.emit(op, *inputs, last=False)

    def recurrent(self, h: str | None, start: int, stop: int) -> str | None:
        """The products of the gates from ``start`` to ``stop`` with the state, None where it is 0."""
        if h is None:
            return None
        columns = np.ascontiguousarray(self.right[:, start * self.size : stop * self.size])
        return self.emit(MatMul(), h, self.call.constant(columns))

    def plus(self, a: str, b: str | None) -> str:
        return a if b is None else self.emit(ew.Add(), a, b)

    def gate(self, gates: str, i: int, function: int) -> str:
        """The activated ``i``-th part of ``gates`` [B, parts * H]."""
        part = self.emit(Slice(1, i * self.size, (i + 1) * self.size), gates)
        return self.emit(self.functions[function], part)


def _lstm_step(layer: Layer, x: str, states: States) -> tuple[str, ...]:
    """``c' = f * c + i * g; h' = o * tanh(c')``, gates in ONNX's order i, o, f, c."""
    h, c = states
    gates = layer.plus(x, layer.recurrent(h, 0, 4))
    kept = layer.emit(ew.Mul(), layer.gate(gates, 0, 0), layer.gate(gates, 3, 1))
    if c is not None:
        kept = layer.emit(ew.Add(), layer.emit(ew.Mul(), layer.gate(gates, 2, 0), c), kept)
    return layer.emit(ew.Mul(), layer.gate(gates, 1, 0), layer.emit(layer.functions[2], kept)), kept


def _gru_step(layer: Layer, x: str, states: States) -> tuple[str, ...]:
    """``h' = n + z * (h - n)``, gates in ONNX's order z, r, n; r acts on the state or on its products."""
    (h,) = states
    both = layer.plus(layer.emit(Slice(1, 0, 2 * layer.size), x), layer.recurrent(h, 0, 2))
    z, n = layer.gate(both, 0, 0), layer.emit(Slice(1, 2 * layer.size, 3 * layer.size), x)
    if layer.bias is not None:
        inner = layer.recurrent(h, 2, 3)
        bias = layer.call.constant(layer.bias)
        inner = bias if inner is None else layer.emit(ew.Add(), inner, bias)
        n = layer.emit(ew.Add(), n, layer.emit(ew.Mul(), layer.gate(both, 1, 0), inner))
    elif h is not None:
        n = layer.plus(n, layer.recurrent(layer.emit(ew.Mul(), layer.gate(both, 1, 0), h), 2, 3))
    n = layer.emit(layer.functions[1], n)
    if h is None:
        return (layer.emit(ew.Sub(), n, layer.emit(ew.Mul(), z, n)),)
    return (layer.emit(ew.Add(), n, layer.emit(ew.Mul(), z, layer.emit(ew.Sub(), h, n))),)


def _rnn_step(layer: Layer, x: str, states: States) -> tuple[str, ...]:
    (h,) = states
    return (layer.emit(layer.functions[0], layer.plus(x, layer.recurrent(h, 0, 1))),)


STEPS: Final[dict[str, Cell]] = {"LSTM": _lstm_step, "GRU": _gru_step, "RNN": _rnn_step}


def _recurrent(call: Call) -> list[Imported]:
    """Y [T, directions, B, H] and the last states [directions, B, H]; with ``layout`` 1, B comes first."""
    kind, given = call.node.op_type, call.attributes
    for name in ("clip", "input_forget"):
        call.refuse(given.get(name), f"{name} is not supported")
    call.refuse(call.has(7), "peepholes are not supported")
    x, swapped = call.x(), bool(given.get("layout"))
    x = call.emit(Transpose((1, 0, 2)), x, last=False) if swapped else x
    steps, size = call.shape(x)[0], int(given["hidden_size"])
    if not isinstance(steps, int):
        raise GraphError(
            f"a symbolic number of steps, {steps}, is not supported; give the input a fixed length"
        )
    call.refuse(steps > MAX_STEPS, f"{steps} steps are more than {MAX_STEPS}")
    directions = {"bidirectional": 2}.get(str(given.get("direction", "forward")), 1)
    names = [str(n.decode() if isinstance(n, bytes) else n) for n in given.get("activations", ())]
    names = names or list(DEFAULTS[kind]) * directions
    call.refuse(not set(names) <= set(FUNCTIONS), f"the activations {names} are not supported")
    results = []
    for d in range(directions):
        back = d == 1 or given.get("direction") == "reverse"
        own = names[d * len(DEFAULTS[kind]) : (d + 1) * len(DEFAULTS[kind])]
        results.append(_direction(call, x, d, back, size, [FUNCTIONS[n]() for n in own]))
    joined = [
        call.emit(Concat(axis), *parts, last=False) if directions > 1 else parts[0]
        for axis, parts in zip((1, 0, 0), zip(*results, strict=True), strict=False)
    ]
    if swapped:
        orders = ((2, 0, 1, 3), (1, 0, 2), (1, 0, 2))
        joined = [call.emit(Transpose(o), y, last=False) for o, y in zip(orders, joined, strict=False)]
    return list(joined)


def _direction(
    call: Call, x: str, d: int, back: bool, size: int, functions: Sequence[FloatUnary]
) -> tuple[str, ...]:
    """The states h of all steps [T, 1, B, H], and the last states [1, B, H], of direction ``d``."""
    kind = call.node.op_type
    gates = GATES[kind]
    weight, right = (np.asarray(call.known(i, "the weights"), np.float32)[d] for i in (1, 2))
    bias = np.asarray(call.known(3, "the bias"), np.float32)[d] if call.has(3) else np.zeros(2 * gates * size)
    first, second = np.split(bias, 2)
    own: Array | None = None
    apart = kind == "GRU" and bool(call.attributes.get("linear_before_reset"))
    if apart:  # the reset gate acts on the last third of the state's bias too
        first, own = first + np.pad(second[: 2 * size], (0, size)), second[2 * size :]
    else:
        first = first + second
    layer = Layer(call, size, np.ascontiguousarray(right.T), own, functions)
    inputs = layer.emit(MatMul(), x, call.constant(weight.T))
    inputs = layer.emit(ew.Add(), inputs, call.constant(first))
    states: States = tuple(_initial(call, i, d) for i in ((5, 6) if kind == "LSTM" else (5,)))
    steps, batch, width = call.shape(inputs)
    outputs: dict[int, str] = {}
    for t in reversed(range(int(steps))) if back else range(int(steps)):  # type: ignore[arg-type]
        step = reshape_to(call, layer.emit(Slice(0, t, t + 1), inputs), (batch, width), True)
        found = STEPS[kind](layer, step, states)
        inside = _inside(call, t)
        outputs[t] = found[0] if inside is None else _chosen(layer, inside, found[0], None)
        states = tuple(
            found if inside is None else map(lambda a, b: _chosen(layer, inside, a, b), found, states)
        )
    rows = [reshape_to(call, outputs[t], (1, 1, batch, size), True) for t in sorted(outputs)]
    while len(rows) > 1:
        rows = [_joined(layer, rows[i : i + AT_ONCE]) for i in range(0, len(rows), AT_ONCE)]
    return rows[0], *(reshape_to(call, s, (1, batch, size), True) for s in states if s is not None)


def _joined(layer: Layer, rows: Sequence[str]) -> str:
    return layer.emit(Concat(0), *rows) if len(rows) > 1 else rows[0]


def _initial(call: Call, i: int, d: int) -> str | None:
    """The state [B, H] that direction ``d`` starts from."""
    value = call.inputs[i] if call.has(i) else None
    zeros = isinstance(value, Splat) and value.value == 0
    if value is None or zeros or (isinstance(value, np.ndarray) and not value.any()):
        return None
    whole = call.x(i)
    batch_first = bool(call.attributes.get("layout"))
    shape = call.shape(whole)
    part = call.emit(Slice(1 if batch_first else 0, d, d + 1), whole, last=False)
    return reshape_to(call, part, (shape[0 if batch_first else 1], shape[2]), True)


def _inside(call: Call, t: int) -> str | None:
    """bool [B, 1]: whether the sequence of a sample has step ``t``; None where all have."""
    if not call.has(4):
        return None
    given = call.inputs[4]
    if isinstance(given, Splat | np.ndarray) and np.all(np.asarray(getattr(given, "value", given)) > t):
        return None
    lengths = call.x(4)
    at = call.ctx.builder.constant(f"{call.node.output[0]}.step", np.full(1, t, call.dtype(lengths)))
    inside = call.emit(logic.Less(), at, lengths, last=False)
    return reshape_to(call, inside, (*call.shape(lengths), 1), True)


def _chosen(layer: Layer, inside: str, new: str, old: str | None) -> str:
    """``new`` where ``inside``, else ``old``; 0 where that is None."""
    return layer.emit(ew.Where(), inside, new, old or layer.call.constant([0.0]))


CONVERTERS: dict[str, Converter] = {"LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent}
