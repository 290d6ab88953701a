"""The same bits everywhere: outputs on inputs that follow from the graph alone, as one digest.

The inputs are integers drawn from SHAKE-256 of their names, so that they are the same wherever they are
computed. The digest goes into the certificate when a model is compiled; any machine, thread count and target
must give it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from intc.ir.bound import admissible
from intc.ir.dims import evaluate_shape
from intc.ir.graph import Graph
from intc.ir.op import Array
from intc.ir.types import TensorType


def probe_sizes(graph: Graph) -> dict[str, int]:
    """2, 3, 4, .. for the symbols in order, where the graph's limits admit that, else the nearest."""
    return admissible(graph, {name: 2 + i for i, name in enumerate(graph.symbols())})


def probe_feeds(graph: Graph, sizes: Mapping[str, int] | None = None) -> dict[str, Array]:
    """One raw feed of every input, all of its interval used; at :func:`probe_sizes` unless given."""
    known = probe_sizes(graph) if sizes is None else sizes
    return {name: _drawn(name, graph.type(name), known) for name in graph.inputs}


def _drawn(name: str, type_: TensorType, sizes: Mapping[str, int]) -> Array:
    lo, hi = type_.interval
    shape = evaluate_shape(type_.shape, sizes)
    count = int(np.prod(shape, dtype=np.int64))
    drawn = np.frombuffer(hashlib.shake_256(name.encode()).digest(8 * count), "<u8")
    if hi - lo + 1 < 2**64:
        drawn = drawn % np.uint64(hi - lo + 1)
    # unsigned sums wrap to the two's complement of negative numbers
    return (drawn + np.uint64(lo % 2**64)).astype(np.int64).reshape(shape).astype(type_.dtype)


def digest(outputs: Iterable[Array]) -> str:
    """SHA-256 of element types, shapes and little-endian bytes, in order."""
    out = hashlib.sha256()
    for array in outputs:
        out.update(f"{array.dtype.name}{list(array.shape)}".encode())
        out.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return out.hexdigest()


def probe_digest(graph: Graph) -> str:
    """The digest of the exact outputs, in the graph's order, on its probe."""
    results = graph.run(probe_feeds(graph))
    return digest(results[name] for name in graph.outputs)
