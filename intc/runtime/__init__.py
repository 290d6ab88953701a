"""The runtime: loads an artifact, checks it, and runs it with one native call an inference.

It needs numpy, ``tvm_ffi`` and TVM's small runtime library; nothing of the compiler is imported.
"""

from intc.runtime.session import Port, Session, load
from intc.runtime.state import State

__all__ = ["Port", "Session", "State", "load"]
