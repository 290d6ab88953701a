"""Which values of an integer graph stand for which values of the float graph it was made from, and how."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import numpy as np

from intc.ir.graph import Graph, Node, Value
from intc.ir.op import Array
from intc.ops.elementwise import Add
from intc.ops.im2col import Im2col
from intc.ops.matmul import MatMul
from intc.ops.movement import MOVEMENT, Gather
from intc.ops.poly import PolyGelu
from intc.ops.row_softmax import ShiftWeights

_FORM: Final = re.compile(r"(?P<base>.+?)(?:\.q(?:8|16|32))?(?:\.\d+)?")


def matches(source: Graph, integer: Graph) -> dict[str, str]:
    """For each value of ``integer`` that stands for a real quantity, in order of computation, the float value
    that it stands for.

    Moved values are left out, because they have the error of what they move, and products before their bias,
    because the bias also corrects the mean of the product.

    A value keeps its float name, or adds the width of a further form (``.q8``) and a number where the name
    was taken. Shapes, and the ONNX node where both name one, must agree as well.
    """
    theirs, ours, users = source.producers(), integer.producers(), integer.users()
    out = {}
    for name in (*integer.inputs, *ours):
        value = integer.values[name]
        form = _FORM.fullmatch(name)
        if value.scale is None or form is None:
            continue
        if _moves(integer, ours.get(name)) or _awaits_bias(integer, ours.get(name), users):
            continue
        for candidate in dict.fromkeys((name, re.sub(r"\.\d+$", "", name), form["base"])):
            if candidate in source.values and _agrees(source, candidate, value, theirs, ours):
                out[name] = candidate
                break
    return out


def _moves(graph: Graph, node: Node | None) -> bool:
    """Whether ``node`` only moves data; looking up rows of a constant table is more than that."""
    lookup = node is not None and isinstance(node.op, Gather) and node.inputs[0] in graph.constants
    return node is not None and isinstance(node.op, (*MOVEMENT, Im2col)) and not lookup


def has_row_sums(node: Node | None) -> bool:
    """Whether the integers are softmax weights, to be divided by the sum of their row."""
    return node is not None and isinstance(node.op, ShiftWeights)


def centres(integer: Graph, matched: Mapping[str, str]) -> dict[str, Array]:
    """By float value: what its integers lack, where they are counted from the middle of each channel."""
    out = {}
    for node in integer.nodes:
        if isinstance(node.op, PolyGelu) and len(node.inputs) == 2 and node.output in matched:
            scale = np.asarray(integer.values[node.output].scale, np.float64)
            out[matched[node.output]] = integer.constants[node.inputs[1]] * scale
    return out


def _awaits_bias(graph: Graph, node: Node | None, users: Mapping[str, list[Node]]) -> bool:
    """Whether ``node`` is a product that only a constant is added to, which may correct its mean."""
    if node is None or not isinstance(node.op, MatMul) or node.output in graph.outputs:
        return False
    return [type(u.op) for u in users[node.output]] == [Add] and any(
        x in graph.constants for x in users[node.output][0].inputs
    )


def _agrees(
    source: Graph, name: str, value: Value, theirs: Mapping[str, Node], ours: Mapping[str, Node]
) -> bool:
    type_ = source.type(name)
    if not type_.is_float or type_.shape != value.type.shape or name in source.constants:
        return False
    here, there = ours.get(value.name), theirs.get(name)
    return not (here and there and here.source and there.source) or here.source == there.source


def operator(integer: Graph, name: str, matched: Mapping[str, str], producers: Mapping[str, Node]) -> str:
    """What computes a matched value, for reading; a product and its bias are one."""
    node = producers.get(name)
    if node is None:
        return "input"
    before = [producers[x] for x in node.inputs if x in producers and x not in matched]
    product = isinstance(node.op, Add) and any(isinstance(n.op, MatMul) for n in before)
    return "matmul+add" if product else node.op.name
