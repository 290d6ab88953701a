"""An artifact on a device: its kernels, its constants, and the stream that it runs in."""

from __future__ import annotations

from ctypes import byref, c_int, c_void_p
from pathlib import Path
from typing import Final

from intc.artifact.schema import Choice, Manifest
from intc.errors import ArtifactCorrupt, IntcError, WrongTarget
from intc.runtime.cuda import driver as cuda
from intc.runtime.cuda.driver import Device, Memory
from intc.runtime.feeds import Array
from intc.runtime.workspace import address

DEFAULT_SHARED: Final = 48 << 10  # bytes a block may have without asking


class Loaded:
    """What all that runs an artifact on ``device`` shares; the device must be current where it is made."""

    def __init__(
        self, path: Path, manifest: Manifest, code: memoryview, constants: Array, device: Device
    ) -> None:
        self.path, self.manifest, self.device = path, manifest, device
        needed = int(manifest.features[0].removeprefix("sm_"))
        if device.architecture < needed:
            raise WrongTarget(
                f"{path}: compiled for sm_{needed} and later, but {device.name} is"
                f" sm_{device.architecture}; recompile with --target cuda:sm_{device.architecture}"
            )
        # a stream of its own for captures: others may wait for the first one at any time
        self.stream, self.capture_stream = (cuda.new("cuStreamCreate", cuda.NON_BLOCKING) for _ in "ab")
        try:
            self._module = cuda.new("cuModuleLoadData", bytes(code))
        except IntcError as error:
            raise ArtifactCorrupt(f"{path}: {device.name} cannot load the kernels ({error})") from None
        self._functions: dict[str, c_void_p] = {}
        self._resident: dict[Choice, int] = {}
        self.constants = Memory(device, constants.nbytes)
        self.to_device(self.constants.address, constants)
        cuda.call("cuStreamSynchronize", self.stream)

    def to_device(self, at: int, host: Array) -> None:
        """Enqueue the copy of an array that is contiguous; the host may overwrite it afterwards."""
        if host.nbytes:
            cuda.call("cuMemcpyHtoDAsync_v2", at, address(host), host.nbytes, self.stream)

    def function(self, name: str, shared: int) -> c_void_p:
        """A kernel, allowed its shared memory."""
        if name not in self._functions:
            if shared > self.device.shared_bytes:
                raise WrongTarget(
                    f"{self.path}: kernel {name} takes {shared} bytes of shared memory, but"
                    f" {self.device.name} gives a block at most {self.device.shared_bytes}"
                )
            function = cuda.new("cuModuleGetFunction", self._module, name.encode())
            if shared > DEFAULT_SHARED:
                cuda.call("cuFuncSetAttribute", function, cuda.DYNAMIC_SHARED, shared)
            self._functions[name] = function
        return self._functions[name]

    def resident(self, choice: Choice) -> int:
        """How many blocks of a kernel a multiprocessor holds."""
        if choice not in self._resident:
            count = c_int()
            kernel = (self.function(choice.kernel, choice.shared), choice.threads, choice.shared)
            cuda.call("cuOccupancyMaxActiveBlocksPerMultiprocessor", byref(count), *kernel)
            self._resident[choice] = max(1, count.value)
        return self._resident[choice]
