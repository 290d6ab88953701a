"""The ceiling: a loop of dot instructions on registers alone, to measure what one core can do at most."""

from __future__ import annotations

import tvm.tirx as tir
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.isa import Isa
from intc.codegen.cpu.vector import buffer, const, pointer, ramp, register

CHAINS = 12


def peak_macs(isa: Isa) -> int:
    """Multiply-accumulates of one iteration of :func:`peak`."""
    return CHAINS * isa.lanes * isa.group


def peak(isa: Isa, name: str = "peak") -> tir.PrimFunc:
    """Private kernel ``(data: int32*, iterations: int32)``: ``CHAINS`` independent dots an iteration.

    Reads and then overwrites ``data[0 : CHAINS * isa.lanes]``. Needs an instruction set with a dot
    instruction.
    """
    lanes, packed = isa.lanes, isa.lanes * isa.group
    with IRBuilder() as builder:
        with T.prim_func(is_private=True):
            T.func_name(name)
            address = pointer("data", "int32")
            iterations = T.arg("iterations", T.int32())
            data = buffer(address, "int32")
            acc = [register(lanes) for _ in range(CHAINS)]
            for i, chain in enumerate(acc):
                T.buffer_store(chain, data[ramp(i * lanes, lanes)], [0])
            b = T.Bind(T.reinterpret(f"{isa.b_dtype}x{packed}", const(0x01020304, lanes)))
            with T.serial(0, iterations):
                # each dot reads its own accumulator, so that none is hoisted out of the loop
                for chain in acc:
                    value = T.Bind(chain[0])
                    a = T.reinterpret(f"{isa.a_dtype}x{packed}", value)
                    T.buffer_store(chain, isa.emit_dot_vector(value, a, b), [0])
            for i, chain in enumerate(acc):
                T.buffer_store(data, chain[0], [ramp(i * lanes, lanes)])
    return builder.get()
