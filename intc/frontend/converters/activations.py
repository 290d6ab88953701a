"""Converters of activation functions, most of them written as simpler operators."""

from __future__ import annotations

from intc.frontend.call import Call, Converter
from intc.frontend.converters.elementwise import absolute, composed, elementwise
from intc.frontend.symbolic import Imported
from intc.ops import elementwise as ew
from intc.ops import logic
from intc.ops.gelu import Gelu


def swish(default: float) -> Converter:
    """``x * sigmoid(alpha * x)``."""

    def run(call: Call) -> list[Imported]:
        x, alpha = call.x(), float(call.attributes.get("alpha", default))
        for known, form in ((1.702, "quick"), (1.0, "silu")):
            if abs(alpha - known) < 1e-6:
                return [call.emit(Gelu(form), x)]
        inner = call.emit(ew.Mul(), x, call.constant([alpha]), last=False)
        return [call.emit(ew.Mul(), x, call.emit(ew.Sigmoid(), inner, last=False))]

    return run


def _softplus(call: Call, x: str) -> str:
    """``log(1 + exp(-|x|)) + max(x, 0)``, which does not overflow."""
    tail = call.emit(
        ew.Exp(), call.emit(ew.Mul(), absolute(call, x), call.constant([-1.0]), last=False), last=False
    )
    tail = call.emit(ew.Log(), call.emit(ew.Add(), tail, call.constant([1.0]), last=False), last=False)
    return call.emit(ew.Add(), tail, call.emit(ew.Relu(), x, last=False))


def _mish(call: Call, x: str) -> str:
    return call.emit(ew.Mul(), x, call.emit(ew.Tanh(), _softplus(call, x), last=False))


def _hard_sigmoid(call: Call, x: str) -> str:
    alpha, beta = (float(call.attributes.get(k, d)) for k, d in (("alpha", 0.2), ("beta", 0.5)))
    line = call.emit(ew.Mul(), x, call.constant([alpha]), last=False)
    line = call.emit(ew.Add(), line, call.constant([beta]), last=False)
    return call.emit(ew.Min(), call.emit(ew.Relu(), line, last=False), call.constant([1.0]))


def _hard_swish(call: Call, x: str) -> str:
    return call.emit(Gelu("hard"), x)


def _elu(alpha: float, gamma: float = 1.0, divided: bool = False) -> Converter:
    """``gamma * (max(x, 0) + alpha * (exp(min(x, 0)) - 1))``; CELU divides x by alpha inside."""

    def run(call: Call) -> list[Imported]:
        a, g = float(call.attributes.get("alpha", alpha)), float(call.attributes.get("gamma", gamma))
        x = call.x()
        below = call.emit(ew.Min(), x, call.constant([0.0]), last=False)
        below = call.emit(ew.Mul(), below, call.constant([1 / a]), last=False) if divided else below
        below = call.emit(ew.Add(), call.emit(ew.Exp(), below, last=False), call.constant([-1.0]), last=False)
        below = call.emit(ew.Mul(), below, call.constant([a * g]), last=False)
        above = call.emit(ew.Mul(), call.emit(ew.Relu(), x, last=False), call.constant([g]), last=False)
        return [call.emit(ew.Add(), above, below)]

    return run


def _leaky_relu(call: Call) -> list[Imported]:
    """``max(x, 0) + slope * min(x, 0)``; the slope of PRelu is an input."""
    x = call.x()
    slope = call.x(1) if call.has(1) else call.constant([float(call.attributes.get("alpha", 0.01))])
    below = call.emit(ew.Min(), x, call.constant([0.0]), last=False)
    below = call.emit(ew.Mul(), below, slope, last=False)
    return [call.emit(ew.Add(), call.emit(ew.Relu(), x, last=False), below)]


def _softsign(call: Call, x: str) -> str:
    return call.emit(ew.Div(), x, call.emit(ew.Add(), absolute(call, x), call.constant([1.0]), last=False))


def _thresholded(call: Call, x: str) -> str:
    """x where it is above ``alpha``, else 0."""
    above = call.emit(logic.Less(), call.constant([float(call.attributes.get("alpha", 1.0))]), x, last=False)
    return call.emit(ew.Where(), above, x, call.constant([0.0]))


def _shrink(call: Call, x: str) -> str:
    """``x + bias`` below -``lambd``, ``x - bias`` above ``lambd``, else 0."""
    bias, edge = (float(call.attributes.get(k, d)) for k, d in (("bias", 0.0), ("lambd", 0.5)))
    below = call.emit(logic.Less(), x, call.constant([-edge]), last=False)
    above = call.emit(logic.Less(), call.constant([edge]), x, last=False)
    up, down = (call.emit(ew.Add(), x, call.constant([b]), last=False) for b in (bias, -bias))
    outer = call.emit(ew.Where(), above, down, call.constant([0.0]), last=False)
    return call.emit(ew.Where(), below, up, outer)


CONVERTERS: dict[str, Converter] = {
    "Softplus": composed(_softplus),
    "Softsign": composed(_softsign),
    "Mish": composed(_mish),
    "HardSigmoid": composed(_hard_sigmoid),
    "HardSwish": composed(_hard_swish),
    "Elu": _elu(1.0),
    "Celu": _elu(1.0, divided=True),
    "Selu": _elu(1.67326, 1.0507),
    "LeakyRelu": _leaky_relu,
    "PRelu": _leaky_relu,
    "ThresholdedRelu": composed(_thresholded),
    "Shrink": composed(_shrink),
    "Swish": swish(1.0),
    "Tanh": elementwise(ew.Tanh()),
    "Sigmoid": elementwise(ew.Sigmoid()),
    "Relu": elementwise(ew.Relu()),
}
