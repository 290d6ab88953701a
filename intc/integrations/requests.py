"""Requests of the Open Inference Protocol: checked against a model's inputs, run together, answered.

The names and types are the protocol's (KServe's v2, Triton's): ``FP32``, ``INT64``, ``{"name", "shape",
"datatype", "data"}``. Both servers use this, so that a client can change between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from intc.errors import FeedError
from intc.integrations.decoders import Array
from intc.runtime import Port, Session

Feeds: TypeAlias = dict[str, Array]
DATATYPES: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float)": "FP32",
}
NUMPY: Final = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP32": "float32",
}
RANGES: Final = {name: np.iinfo(kind) for name, kind in NUMPY.items() if "INT" in name}


def tensor_metadata(port: Port) -> dict[str, Any]:
    """``port`` as the protocol describes a tensor: free sizes are -1."""
    shape = [n if isinstance(n, int) else -1 for n in port.shape]
    return {"name": port.name, "datatype": DATATYPES[port.type], "shape": shape}


def feeds_of(request: Any, ports: Sequence[Port], most: int) -> Feeds:
    """The tensors of a JSON ``request`` of at most ``most`` rows; FeedError says what is wrong with it."""
    if not isinstance(request, dict) or not isinstance(request.get("inputs"), list):
        raise FeedError("the request is not a JSON object with a list 'inputs'")
    feeds: Feeds = {}
    known = {p.name: p for p in ports}
    for tensor in request["inputs"]:
        if not isinstance(tensor, dict) or tensor.get("name") not in known:
            name = tensor.get("name") if isinstance(tensor, dict) else tensor
            raise FeedError(f"input {str(name)[:80]!r} is not known; the model takes {', '.join(known)}")
        feeds[tensor["name"]] = _array(known[tensor["name"]], tensor)
    missing = [name for name in known if name not in feeds]
    if missing:
        raise FeedError(f"input '{missing[0]}' is missing; the model takes {', '.join(known)}")
    rows = rows_of(feeds)
    if not 1 <= rows <= most:
        raise FeedError(f"the request has {rows} rows; from 1 to {most} are taken at once")
    return feeds


def rows_of(feeds: Mapping[str, Array]) -> int:
    """The size of axis 0; FeedError where inputs differ in it."""
    sizes = {len(array) if array.ndim else 0 for array in feeds.values()}
    if len(sizes) != 1:
        raise FeedError(f"inputs have different numbers of rows: {sorted(sizes)}")
    return sizes.pop()


def _array(port: Port, tensor: Mapping[str, Any]) -> Array:
    name, wanted = port.name, DATATYPES[port.type]
    datatype, shape, data = (tensor.get(key) for key in ("datatype", "shape", "data"))
    if datatype != wanted:
        raise FeedError(f"input '{name}' has datatype {str(datatype)[:20]}, expected {wanted}")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise FeedError(f"input '{name}' has no shape of whole numbers")
    try:
        array = np.array(data)
        if array.dtype.kind not in ("iuf" if wanted == "FP32" else "b" if wanted == "BOOL" else "iu"):
            raise ValueError
        if wanted in RANGES and array.size:
            low, high = int(array.min()), int(array.max())
            if low < RANGES[wanted].min or high > RANGES[wanted].max:
                raise ValueError
        array = array.astype(NUMPY[wanted])
    except (ValueError, TypeError, OverflowError):
        raise FeedError(f"input '{name}' has data that is not {wanted}") from None
    try:
        return array.reshape(shape)
    except ValueError:
        raise FeedError(f"input '{name}' has {array.size} elements, not those of shape {shape}") from None


def run_together(session: Session, requests: Sequence[Feeds]) -> list[list[Array] | FeedError]:
    """The outputs of every request, as if each were run alone; those of equal shapes share a run.

    A request that is refused does not touch the others.
    """
    groups: dict[Any, list[int]] = {}
    for number, feeds in enumerate(requests):
        shapes = tuple((name, array.shape[1:]) for name, array in sorted(feeds.items()))
        groups.setdefault(shapes, []).append(number)
    answers: list[list[Array] | FeedError] = [FeedError("not run")] * len(requests)
    for numbers in groups.values():
        for number, answer in zip(numbers, _run(session, [requests[n] for n in numbers]), strict=True):
            answers[number] = answer
    return answers


def _run(session: Session, requests: list[Feeds]) -> list[list[Array] | FeedError]:
    try:
        sizes = [rows_of(feeds) for feeds in requests]
        joined = {n: np.concatenate([feeds[n] for feeds in requests]) for n in requests[0]}
        outputs = session.run(None, joined)
    except FeedError as error:
        if len(requests) == 1:
            return [error]
        return [answer for feeds in requests for answer in _run(session, [feeds])]
    ends = np.cumsum(sizes)[:-1]
    return [list(parts) for parts in zip(*(np.split(output, ends) for output in outputs), strict=True)]


def answer(model: str, ports: Sequence[Port], outputs: Sequence[Array]) -> dict[str, Any]:
    """The outputs as the protocol's JSON response."""
    return {
        "model_name": model,
        "outputs": [
            {
                "name": port.name,
                "datatype": DATATYPES[port.type],
                "shape": list(array.shape),
                "data": array.ravel().tolist(),
            }
            for port, array in zip(ports, outputs, strict=True)
        ],
    }
