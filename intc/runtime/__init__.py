"""The runtime: loads an artifact, checks it, and runs it with one native call an inference.

It needs numpy, ``tvm_ffi`` and TVM's small runtime library; nothing of the compiler is imported.
"""

from intc.runtime.session import Port, Session, load

__all__ = ["Port", "Session", "load"]
