"""Integers for the weights of a matrix product, chosen by the error of its output instead of one by one.

GPTQ (Frantar et al. 2022): weights are rounded input channel by input channel, and each channel's rounding
error is compensated by the channels still free, as the inverse of the input's covariance says. The error
measured is ``tr(D^T H D)`` for ``D = q*s - W``.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import numpy as np

from intc.ir.op import Array

Rounding: TypeAlias = Literal["nearest", "gptq"]
ROUNDINGS: Final[tuple[str, ...]] = ("nearest", "gptq")
DAMPING: Final = (
    0.05  # share of the mean variance added to every channel's: rows are few, held-out data differ
)
BLOCK: Final = 64


def nearest(weight: Array, scale: Array, limit: int) -> Array:
    """The integer next to every weight [K, N] at scales [N], as float64."""
    return np.asarray(np.clip(np.rint(weight / scale), -limit, limit))


def output_error(weight: Array, scale: Array, integers: Array, covariance: Array) -> Array:
    """Mean squared error of every output [N]."""
    error = np.asarray(integers * scale - weight, np.float32)
    return np.asarray(np.einsum("kn,kn->n", covariance.astype(np.float32) @ error, error, dtype=np.float64))


def damped(covariance: Array) -> Array:
    """``covariance`` made safely positive definite."""
    mean = float(np.trace(covariance)) / len(covariance)
    return np.asarray(covariance + np.eye(len(covariance)) * (DAMPING * mean + np.finfo(np.float32).tiny))


def compensated(weight: Array, scale: Array, limit: int, covariance: Array) -> Array:
    """Integers [K, N] of ``weight`` whose outputs, one by one, are no further off than with :func:`nearest`.

    ``covariance`` [K, K] is that of the input (damped here). Deterministic for one BLAS.
    """
    metric = damped(covariance)
    try:
        return _compensated(weight, scale, limit, metric)
    except np.linalg.LinAlgError:  # squares below 1e-38 vanish from the statistics, which are float32
        least, size = float(np.linalg.eigvalsh(metric)[0]), float(np.abs(np.diag(metric)).mean())
        return _compensated(weight, scale, limit, metric + np.eye(len(metric)) * (DAMPING * size - least))


def _compensated(weight: Array, scale: Array, limit: int, metric: Array) -> Array:
    plain = nearest(weight, scale, limit)
    order = np.argsort(-np.diag(metric), kind="stable")
    integers = np.empty_like(plain)
    integers[order] = _rounded(weight[order] / scale, metric[np.ix_(order, order)], limit)
    better = output_error(weight, scale, integers, metric) < output_error(weight, scale, plain, metric)
    return np.where(better, integers, plain)


def _rounded(target: Array, metric: Array, limit: int) -> Array:
    """GPTQ in the given channel order on ``target`` [K, N], in units of the integers."""
    upper = _inverse_factor(metric)
    free = target.astype(np.float32)
    out = np.empty_like(free)
    for start in range(0, len(free), BLOCK):
        stop = min(start + BLOCK, len(free))
        errors = np.empty((stop - start, free.shape[1]), np.float32)
        for k in range(start, stop):
            out[k] = np.clip(np.rint(free[k]), -limit, limit)
            errors[k - start] = (free[k] - out[k]) / upper[k, k]
            free[k + 1 : stop] -= upper[k, k + 1 : stop, None] * errors[k - start]
        free[stop:] -= upper[start:stop, stop:].T @ errors
    return out


def _inverse_factor(metric: Array) -> Array:
    """Upper triangular U with ``U^T U = metric^-1``."""
    lower = np.linalg.cholesky(metric[::-1, ::-1])
    return np.asarray(np.linalg.inv(lower)[::-1, ::-1], np.float32)
