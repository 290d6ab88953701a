"""Matrices of 4-bit values: two per byte in the artifact, wherever their interval allows it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from intc.artifact.tensors import decode, encode, pack_nibbles, unpack_nibbles
from intc.codegen.program import Layout
from intc.errors import ArtifactCorrupt


@pytest.mark.parametrize("count", [0, 1, 2, 255, 256])
def test_nibbles_are_exact(count: int) -> None:
    values = np.resize(np.arange(-8, 8), count).astype(np.int8)
    packed = pack_nibbles(values)
    assert packed.nbytes == (count + 1) // 2
    assert np.array_equal(unpack_nibbles(packed, count), values)


def test_only_matrices_that_fit_are_stored_in_four_bits() -> None:
    rng = np.random.default_rng(0)
    narrow = rng.integers(-8, 8, (33, 31)).astype(np.int8)
    wide = narrow.copy()
    wide[0, 0] = 8
    data = encode({"narrow": narrow, "wide": wide, "vector": narrow[:, 0]})
    assert len(data) < len(encode({"narrow": wide, "wide": wide, "vector": narrow[:, 0]})) - narrow.size // 3
    back = decode(memoryview(data), "x")
    for name, array in (("narrow", narrow), ("wide", wide), ("vector", narrow[:, 0])):
        assert back[name].dtype == np.int8 and np.array_equal(back[name], array)


def test_safetensors_reads_the_file() -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    w = np.full((16, 16), -3, np.int8)
    stored = safetensors.load(encode({"w": w}))["w"]
    assert stored.dtype == np.uint8 and np.array_equal(unpack_nibbles(stored, 256).reshape(16, 16), w)


@pytest.mark.parametrize(
    "shapes",
    ['{"w": [16, 17]}', '{"v": [16, 16]}', '{"w": [16]}', '{"w": [-1, 16]}', "[]", "{", '{"w": 3}', "7"],
)
def test_damaged_shapes_are_refused(shapes: str) -> None:
    data = encode({"w": np.zeros((16, 16), np.int8)})
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["int4"] = shapes
    text = json.dumps(header).encode()
    with pytest.raises(ArtifactCorrupt):
        decode(memoryview(len(text).to_bytes(8, "little") + text + data[8 + length :]), "x")


def test_a_layout_packs_in_order() -> None:
    w = np.arange(-8, 8).reshape(4, 4).astype(np.int8)
    packed = Layout((0, 0), (2, 2, 4), (0, 2, 1), "int4").apply(w)
    pairs = w.reshape(2, 2, 4).transpose(0, 2, 1)
    assert np.array_equal(unpack_nibbles(packed, 16), pairs.reshape(-1))
