"""Weights in an artifact: what safetensors reads, and headers that lie."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from intc.artifact import tensors
from intc.errors import ArtifactCorrupt


def test_tensors_round_trip_and_are_aligned() -> None:
    rng = np.random.default_rng(0)
    arrays = {
        f"{d}.{i}": rng.integers(0, 2, (i, 3)).astype(d) for d in tensors.DTYPES.values() for i in range(3)
    }
    data = tensors.encode(arrays)
    read = tensors.decode(memoryview(data), "here")
    theirs = safetensors.numpy.load(data)
    assert set(read) == set(theirs) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == theirs[name].dtype == array.dtype
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    assert start % 64 == 0
    assert all(h["data_offsets"][0] % arrays[n].dtype.itemsize == 0 for n, h in header.items())


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "I8", "shape": [2], "data_offsets": [0, 3]}},
        {"a": {"dtype": "I8", "shape": [3], "data_offsets": [0, 2]}},
        {"a": {"dtype": "I8", "shape": [2], "data_offsets": [0, 2]}},
        {"a": {"dtype": "I8", "shape": [9], "data_offsets": [0, 9]}},
        {"a": {"dtype": "F8", "shape": [4], "data_offsets": [0, 4]}},
        {"a": {"dtype": "I8", "shape": [-4], "data_offsets": [0, -4]}},
        {"a": {"dtype": "I8", "shape": [1] * 40 + [4], "data_offsets": [0, 4]}},
        {"a": {"dtype": "I8", "shape": [4], "data_offsets": [1, 5]}},
        {"a": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4, 8]}},
        {"a": 7},
        [],
    ],
)
def test_lying_tensor_headers(header: object) -> None:
    text = json.dumps(header).encode()
    with pytest.raises(ArtifactCorrupt, match="here"):
        tensors.decode(memoryview(len(text).to_bytes(8, "little") + text + bytes(4)), "here")


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_no_tensors(data: bytes) -> None:
    try:
        tensors.decode(memoryview(data), "here")
    except ArtifactCorrupt as error:
        assert "\n" not in str(error)
