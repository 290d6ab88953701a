"""Draws the figures of docs/arithmetic.md from the operators' own `evaluate`: python docs/tools/figures.py

Every curve is what the integers give, less the exact function in double precision.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.special import erf, expit

from intc.ops.dyadic import dyadic
from intc.ops.ibert import IbertGelu, IbertSoftmax
from intc.ops.ivit import IvitShiftGelu, IvitShiftmax
from intc.ops.layer_norm import LayerNorm
from intc.ops.lut import LutSoftmax
from intc.ops.poly import PolyGelu
from intc.ops.row_softmax import ShiftWeights, octave_factor
from intc.ops.scalar import EXACT, exp2_neg
from intc.ops.shift import ShiftGelu, ShiftLayerNorm, Shiftmax, ShiftSigmoid, ShiftTanh

FOLDER: Final = Path(__file__).parents[1] / "figures"
LOG2_E: Final = Fraction(1.4426950408889634)
STYLE: Final = {
    "figure.figsize": (7.2, 3.0),
    "font.size": 9,
    "svg.hashsalt": "intc",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "lines.linewidth": 1.1,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def run(op: Any, *arrays: Any) -> Any:
    return op.evaluate(*arrays, sizes={}).astype(np.float64)


def ends(y: Any, pieces: int = 400) -> Any:
    """Where to draw ``y``: the least and the largest point of each of some ``pieces``."""
    bounds = np.linspace(0, len(y), min(pieces, len(y)) + 1).astype(int)
    parts = [(a, y[a:b]) for a, b in pairwise(bounds)]
    return np.unique([a + i for a, part in parts for i in (part.argmin(), part.argmax())])


def draw(name: str, x: Any, curves: dict[str, Any], xlabel: str, ylabel: str, **axes: Any) -> None:
    """One picture of curves over ``x``; the legend has each one's largest magnitude."""
    figure, ax = plt.subplots()
    for label, y in curves.items():
        at = ends(y)
        ax.plot(x[at], y[at], label=f"{label}: at most {np.abs(y).max():.2g}")
    ax.set(xlabel=xlabel, ylabel=ylabel, **axes)
    ax.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def power_of_two() -> None:
    t = np.arange(6 * 2**15)
    error = exp2_neg(EXACT, t) / 2.0**15 - 2.0 ** (-t / 2**15)
    draw("exp2", t / 2**15, {"exp2_neg": error}, "t, octaves", "error of 2^-t")


def softmax_weights() -> None:
    """A row of two scores, d apart: the smaller one's weight relative to the larger's."""
    scale = 8.0 / 2**15
    d = np.arange(0, 2**15, 8)
    rows = np.stack([np.zeros_like(d), -d], -1).astype(np.int32)
    exact = np.exp(-d * scale)
    op = ShiftWeights(*octave_factor(Fraction(scale) * LOG2_E))
    curves = {"shift_weights (8 bits)": run(op, rows)[:, 1] / 255 - exact}
    draw("softmax_weights", d * scale, curves, "distance from the row's maximum", "error of the weight")


def probabilities() -> None:
    """Rows of 32 scores of width 0 to 12: the largest error of a probability in the row."""
    rng = np.random.default_rng(0)
    widths = np.linspace(0.1, 12, 240)
    real = rng.uniform(-1, 0, (len(widths), 32)) * widths[:, None]

    def worst(op: Any, codes: Any, scale: float, out: float, *more: Any) -> Any:
        held = np.exp(codes * scale)
        return np.abs(run(op, codes, *more) * out - held / held.sum(-1, keepdims=True)).max(-1)

    fine, coarse = 12 / 2**15, 12 / 127
    wide = np.rint(real / fine).astype(np.int32)
    narrow = np.rint(real / coarse).astype(np.int8)
    m, e = dyadic(Fraction(fine) * LOG2_E * 2**15)
    ivit, ibert = IvitShiftmax.from_scale(coarse), IbertSoftmax.from_scale(fine)
    curves = {
        "shiftmax": worst(Shiftmax(m, e, 8), wide, fine, 2.0**-8),
        "lut": worst(LutSoftmax(8), narrow, coarse, 2.0**-8, LutSoftmax.table(coarse)),
        "I-BERT": worst(ibert, wide.astype(np.int16), fine, ibert.output_scale),
        "I-ViT": worst(ivit, narrow, coarse, ivit.output_scale),
    }
    draw("softmax", widths, curves, "width of the row of 32 scores", "largest error of a probability")


def gelus() -> None:
    frac = 12
    q = np.arange(-(2**14) - 2**13, 2**14 + 2**13)
    x, fine = q / 2.0**frac, q.astype(np.int16)
    exact = 0.5 * x * (1 + erf(x / np.sqrt(2)))
    ibert = IbertGelu.from_scale(2.0**-frac)
    curves = {
        "poly_gelu (default)": run(PolyGelu(frac, "none"), fine) / 2**frac - exact,
        "shift_gelu": run(ShiftGelu(frac), fine) / 2 ** (frac + 15) - exact,
        "I-BERT": run(ibert, fine) * ibert.output_scale - exact,
    }
    draw("gelu", x, curves, "x", "error of GELU")
    scale = 6 / 127
    codes = np.arange(-127, 128, dtype=np.int8)
    held = codes * scale
    op = IvitShiftGelu.from_scale(scale)
    wanted = 0.5 * held * (1 + erf(held / np.sqrt(2)))
    alone = run(op, codes[:, None])[:, 0] * op.output_scale
    row = run(op, codes[None])[0] * op.output_scale
    curves = {"I-ViT, each element a row": alone - wanted, "I-ViT, all in one row": row - wanted}
    draw("gelu_ivit", held, curves, "x", "error of GELU")


def sigmoids() -> None:
    q = np.arange(-(2**15) + 1, 2**15)
    x, fine = q / 2.0**12, q.astype(np.int16)
    curves = {
        "shift_sigmoid": run(ShiftSigmoid(12), fine) / 2**15 - expit(x),
        "shift_tanh": run(ShiftTanh(12), fine) / 2**15 - np.tanh(x),
    }
    draw("sigmoid", x, curves, "x", "error")


def layer_norms() -> None:
    """Rows of 64 channels of growing spread: the largest error in steps of the 8-bit output."""
    rng = np.random.default_rng(0)
    spreads = np.geomspace(2, 2**13, 200)
    x = np.clip(np.rint(rng.normal(0, 1, (len(spreads), 64)) * spreads[:, None]), -32767, 32767)
    scale = 4 / 127
    e = dyadic(Fraction(1) / Fraction(scale) / 2**20)[1]
    g = np.full(64, round(Fraction(2**e) / Fraction(scale) / 2**20), np.int32)
    b = np.full(64, 2 ** (e - 1), np.int64)
    got = run(ShiftLayerNorm(1, e, -32767, 32767, "int16"), x.astype(np.int16), g, b)
    ones, zeros = np.ones(64), np.zeros(64)
    exact = LayerNorm(-1, 0.0).evaluate(x, ones, zeros, sizes={}) / scale
    error = np.abs(got - exact).max(-1)
    draw("layer_norm", spreads, {"shift_layer_norm": error}, "standard deviation of the row, in input steps",
         "largest error, output steps", xscale="log")  # fmt: skip


FIGURES: Final = (power_of_two, softmax_weights, probabilities, gelus, sigmoids, layer_norms)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with mpl.rc_context(STYLE):
        for figure in FIGURES:
            figure()


if __name__ == "__main__":
    main()
