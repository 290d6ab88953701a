"""Decoding token by token at real size, random weights: intc and onnxruntime, which keep what is past."""

from __future__ import annotations

import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1]
sys.path.append(str(EXAMPLES / "decoder"))
DECODERS = ("gpt2-small", "llama-100m")
PAST, VOCABULARY = 256, 1000


def export(name: str, folder: Path, fresh: bool) -> Path:
    """The ONNX file of decoder `name` with its past as inputs, written on the first call."""
    from export_decoder import decoder_of_real_size, export_with_past
    from peers import rebuilt

    place = folder / name / "onnx"
    if fresh or not place.exists():
        net = decoder_of_real_size(name)
        rebuilt(place, lambda empty: export_with_past(net, empty / "model.onnx"))
    return place / "model.onnx"


def compiled(onnx: Path) -> Path:
    """The artifact, compiled anew."""
    from stepping import random_ids

    import intc

    path = onnx.parents[1] / "model.intc"
    intc.compile(onnx, {"input_ids": random_ids(4, 64, VOCABULARY, seed=0)}, rounding="nearest").save(path)
    return path


def seconds(onnx: Path, artifact: Path, threads: int) -> dict[str, float]:
    """Seconds a token behind PAST positions, by engine."""
    from stepping import FLOATS, NARROW, OWN, Floats, Integers, narrowed, seconds_a_token

    narrow = onnx.parents[1] / "int8.onnx"
    if not narrow.exists():
        narrowed(onnx, narrow)
    engines = {
        OWN: Integers(artifact, threads),
        FLOATS: Floats(onnx, threads),
        NARROW: Floats(narrow, threads),
    }
    return seconds_a_token(engines, PAST, VOCABULARY)
