"""Decoders step by step: the ONNX model in onnxruntime, and the artifact with a state."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

import intc

Step = Callable[[NDArray[np.int64]], NDArray[Any]]
OWN, FLOATS, NARROW = "intc integer", "onnxruntime fp32", "onnxruntime int8 (dynamic)"
ROUNDS, TOKENS = 7, 24


class Decoder(Protocol):
    def start(self, batch: int = 1) -> Step:
        """Takes the next ids [batch, n], gives their logits [batch, n, vocabulary]."""


class Floats:
    """The ONNX model in onnxruntime, its past kept as float arrays."""

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.past_inputs = [i for i in self.session.get_inputs() if i.name != "input_ids"]

    def start(self, batch: int = 1) -> Step:
        past = {i.name: np.zeros((batch, i.shape[1], 0, i.shape[3]), np.float32) for i in self.past_inputs}

        def step(ids: NDArray[np.int64]) -> NDArray[Any]:
            logits, *present = self.session.run(None, {"input_ids": ids, **past})
            past.update(zip(past, present, strict=True))
            return np.asarray(logits)

        return step


class Integers:
    """The artifact, its past kept as a state."""

    def __init__(self, path: Path, threads: int) -> None:
        self.session = intc.load(path, threads=threads)

    def start(self, batch: int = 1) -> Step:
        state = self.session.create_state(batch)
        return lambda ids: self.session.run(["logits"], {"input_ids": ids}, state=state)[0]


def narrowed(model: Path, to: Path) -> Path:
    """The weights of `model` in int8 per channel, by onnxruntime's dynamic quantisation."""
    from onnxruntime.quantization import quantize_dynamic

    logging.disable(logging.WARNING)
    quantize_dynamic(model, to, per_channel=True)
    return to


def random_ids(count: int, length: int, vocabulary: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, vocabulary, (count, length))


def seconds_a_token(engines: Mapping[str, Decoder], past: int, vocabulary: int) -> dict[str, float]:
    """Medians of rounds in which the engines take turns, each decoding behind `past` positions."""
    prompt = random_ids(1, past, vocabulary, seed=1)
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            step = engine.start()
            step(prompt)
            start = time.perf_counter()
            for _ in range(TOKENS):
                step(prompt[:, :1])
            times[name].append((time.perf_counter() - start) / TOKENS)
    return {name: statistics.median(values) for name, values in times.items()}
