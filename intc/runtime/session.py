"""``Session``: an artifact, loaded, checked and ready to run; it mirrors ``onnxruntime.InferenceSession``."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike

from intc.artifact import schema, tensors
from intc.artifact.fields import Size, size_value
from intc.artifact.reader import open_artifact
from intc.artifact.signature import Key
from intc.errors import ArtifactCorrupt, FeedError, UsageError
from intc.runtime import dlpack, native
from intc.runtime import feeds as feeding
from intc.runtime.constants import Blob, private_folder
from intc.runtime.feeds import Array
from intc.runtime.state import HOST, Past, State, held_by
from intc.runtime.workspace import Layout, Workspace, address, round_up

if TYPE_CHECKING:
    from intc.runtime.cuda.arrays import DeviceArray
    from intc.runtime.cuda.entry import GpuEntry

Feeds: TypeAlias = Mapping[str, ArrayLike | Any]  # numpy's arrays, and whatever has __dlpack__
ONNX_TYPES: Final = {
    "float32": "tensor(float)",
    "bool": "tensor(bool)",
    "uint8": "tensor(uint8)",
    "int8": "tensor(int8)",
    "int16": "tensor(int16)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
}
KEPT_WORKSPACES: Final = 4
KEPT_LAYOUTS: Final = 256
MAX_THREADS: Final = 1024


@dataclass(frozen=True)
class Port:
    """An input or output as callers see it; ``type`` is ONNX's, float where integers stand for real values.

    ``dtype``, ``scale`` and ``interval`` describe the integers themselves, for callers who pass and take
    those; ``lowest`` is what the least integer stands for where a mask sets entries to minus infinity.
    """

    name: str
    shape: list[Size]
    type: str
    dtype: str
    scale: float | tuple[float, ...] | None
    interval: tuple[int, int]
    lowest: float | None = None


def load(
    path: str | Path,
    threads: int = 1,
    sha256: str | None = None,
    *,
    trusted_keys: Sequence[Key] | None = None,
    device: str | None = None,
    share: str | Path | bool = False,
) -> Session:
    """The artifact at ``path`` as a session that uses ``threads`` threads in every run.

    An artifact for a GPU runs on ``device``, ``"cuda:0"`` unless another is named. Kernels are native code:
    with ``sha256`` the file's manifest, and through it every member, must have this digest
    (``Session.digest``, ``intc info``); with ``trusted_keys`` it must be signed by one of them. With
    ``share`` all processes of this user on this machine hold the weights once, mapped from a file in this
    folder, which only the user may write in (``True``: one among the temporary files).
    Raises ArtifactCorrupt, ArtifactVersion, ArtifactUntrusted, WrongTarget or UsageError.
    """
    return Session(
        path, threads=threads, sha256=sha256, trusted_keys=trusted_keys, device=device, share=share
    )


class Session:
    """Runs one compiled model. Concurrent calls of :meth:`run` are safe and equal calls one after another."""

    def __init__(
        self,
        path: str | Path,
        threads: int = 1,
        sha256: str | None = None,
        *,
        trusted_keys: Sequence[Key] | None = None,
        device: str | None = None,
        share: str | Path | bool = False,
    ) -> None:
        if not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
            raise UsageError(f"threads={threads!r} is not a number from 1 to {MAX_THREADS}")
        self.path = Path(path)
        opened = open_artifact(self.path, sha256, trusted_keys)
        container, self.manifest, self.digest = opened.container, opened.manifest, opened.digest
        self.device = self._device(device)
        self.threads = threads if self.device is None else 1
        if self.device is None:
            native.check_cpu(self.path, self.manifest.target, self.manifest.features)
        weights = tensors.decode(container.member(schema.WEIGHTS), f"{path}: '{schema.WEIGHTS}'")
        program = self.manifest.program
        blob = Blob(self.path, program.constants, weights)
        if program.entry != self.manifest.interface(blob.sizes).entry:
            raise ArtifactCorrupt(f"{path}: the manifest or the weights are not those that the kernels need")
        held = held_by(self.manifest)
        self._past = Past(self.manifest, held) if held else None
        self._constants = blob.shared(self._shared_file(share)) if share else blob.pack()
        self.gpu: GpuEntry | None = None
        code = container.member(self.manifest.kernels)
        if self.device is None:
            self.entry: Callable[..., Any] = native.load_kernels(self.path, code, program.entry)
        else:
            from intc.runtime.cuda.entry import GpuEntry

            self.gpu = GpuEntry(self.path, self.manifest, code, self._constants, self.device)
        self._home = self.gpu.home if self.gpu else HOST
        self._layouts: dict[tuple[tuple[tuple[int, ...], ...], tuple[int, int] | None], Layout] = {}
        self._kept: list[Workspace] = []
        self._lock = threading.Lock()

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            f"{self.path}: a session cannot be pickled or copied; load the file where it is needed"
        )

    def _shared_file(self, share: str | Path | bool) -> Path:
        folder = private_folder(None if isinstance(share, bool) else Path(share))
        return folder / f"{self.digest}-{schema.VERSION}.constants"

    def _device(self, name: str | None) -> str | None:
        """The GPU that the kernels run on, None for the CPU; UsageError where they are the other's."""
        if self.manifest.gpu:
            if name == "cpu":
                raise UsageError(f"{self.path}: compiled for target '{self.manifest.target}', not for a CPU")
            return name or "cuda:0"
        if name in (None, "cpu"):
            return None
        raise UsageError(
            f"{self.path}: compiled for target '{self.manifest.target}' and cannot run on device '{name}';"
            " recompile it with --target cuda"
        )

    def get_inputs(self) -> list[Port]:
        """The inputs, in order."""
        return [_public(p) for p in self.manifest.inputs]

    def get_outputs(self) -> list[Port]:
        """The outputs, in order."""
        return [_public(p) for p in self.manifest.outputs]

    def create_state(self, batch: int = 1) -> State:
        """An empty state for ``batch`` sequences: what a decoder keeps of past positions between runs.

        UsageError where no output of the model continues an input.
        """
        if self._past is None:
            raise UsageError(
                f"{self.path}: the model keeps no state; export it with past keys and values as inputs and"
                " their continuation as outputs"
            )
        if not isinstance(batch, int) or batch < 1:
            raise UsageError(f"batch={batch!r} is not a positive number of sequences")
        return State(self._past.held, batch, self._home)

    @overload
    def run(
        self,
        output_names: Sequence[str] | None,
        feeds: Feeds,
        *,
        raw: bool = ...,
        state: State | None = ...,
        on_device: Literal[False] = ...,
    ) -> list[Array]: ...

    @overload
    def run(
        self,
        output_names: Sequence[str] | None,
        feeds: Feeds,
        *,
        raw: bool = ...,
        state: State | None = ...,
        on_device: Literal[True],
    ) -> list[DeviceArray]: ...

    def run(
        self,
        output_names: Sequence[str] | None,
        feeds: Feeds,
        *,
        raw: bool = False,
        state: State | None = None,
        on_device: bool = False,
    ) -> list[Array] | list[DeviceArray]:
        """The outputs named (all for ``None``) for ``feeds``; float in, float out, as in onnxruntime.

        An input that is given in its own integer type is not quantised; ``raw=True`` returns the outputs'
        integers. With both there is no floating-point operation. With a ``state``, the feeds hold what
        follows its positions, and the inputs and outputs that are the state itself are left out.

        Feeds are numpy's, or of any library that speaks DLPack, and are read where they lie: on the CPU, or
        on the GPU that the session runs on (there ``__cuda_array_interface__`` will do as well). With
        ``on_device=True`` the results stay on the GPU, each a
        :class:`~intc.runtime.cuda.arrays.DeviceArray`. FeedError names the input that does not fit.
        """
        if on_device and self.gpu is None:
            raise UsageError(
                f"{self.path}: on_device=True is for sessions on a GPU; this one runs on the CPU"
            )
        past = self._past_of(state)
        held = past.outputs if past else set()
        if isinstance(output_names, str):
            raise FeedError(f"the names of outputs are a list, as in ['{output_names}']")
        every = [p.name for i, p in enumerate(self.manifest.outputs) if i not in held]
        wanted = [self._output(name) for name in (every if output_names is None else output_names)]
        if held.intersection(wanted):
            raise FeedError("an output that the state holds cannot be asked for; see State.arrays")
        given = self._given(feeds, past)
        workspace = self._filled(given, past, state)
        if self.gpu:
            kept = self._run_gpu(self.gpu, workspace, given, wanted, raw, state, on_device)
        elif state is None or past is None:
            native.call(self.entry, workspace.call, self.threads, workspace)
        else:
            length = self._length_after(past, workspace, state)
            arguments = past.arguments(workspace.call, state, length)
            native.call(self.entry, arguments, self.threads, (workspace, *state.blocks()))
            state.advance(length)
        results = kept if on_device else [self._result(i, workspace, raw) for i in wanted]
        with self._lock:  # never after an exception: another thread may still be writing there
            if len(self._kept) < KEPT_WORKSPACES:
                self._kept.append(workspace)
        return results

    def _run_gpu(
        self,
        gpu: GpuEntry,
        workspace: Workspace,
        given: Mapping[int, Any],
        wanted: Sequence[int],
        raw: bool,
        state: State | None,
        on_device: bool,
    ) -> list[DeviceArray]:
        """One run; the results lie in the workspace, or are returned where they stay ``on_device``."""
        symbols, elsewhere, found = list(workspace.layout.symbols), None, []
        past, length = self._past_of(state), 0
        if state is not None and past is not None:
            length = self._length_after(past, workspace, state)
            symbols[self.manifest.symbols.index(past.symbol)] = state.length
            elsewhere = past.elsewhere(state, length)
        feeds = {i: workspace.inputs[i] if isinstance(g, np.ndarray) else g for i, g in given.items()}
        if on_device:
            found = gpu.run_on_device(symbols, feeds, wanted, raw, elsewhere)
        else:
            gpu.run(symbols, feeds, {i: workspace.outputs[i] for i in wanted}, elsewhere)
        if state is not None:
            state.advance(length)
        return found

    def _result(self, index: int, workspace: Workspace, raw: bool) -> Array:
        port, integers = self.manifest.outputs[index], workspace.outputs[index]
        return integers.copy() if raw or port.scale is None else feeding.reals(port, integers)

    def _output(self, name: str) -> int:
        names = [p.name for p in self.manifest.outputs]
        if name not in names:
            raise FeedError(f"output '{name}' is not known; the model gives {', '.join(names)}")
        return names.index(name)

    def _past_of(self, state: State | None) -> Past | None:
        """What ``state`` stands for; FeedError where it is another model's."""
        if state is None:
            return None
        if self._past is None or state.held != self._past.held:
            raise FeedError(f"{self.path}: the state was made for another model")
        if state.home is not self._home:
            raise FeedError(f"{self.path}: the state was made by a session on another device")
        return self._past

    def prepare(self, feeds: Feeds, state: State | None = None) -> Workspace:
        """Memory for one run on ``feeds``, with the integers in it. FeedError as in :meth:`run`."""
        past = self._past_of(state)
        return self._filled(self._given(feeds, past), past, state)

    def _given(self, feeds: Feeds, past: Past | None) -> dict[int, Any]:
        """The feeds by number of the input, each numpy's array or, on a GPU, ``dlpack.Given``."""
        held = past.inputs if past else set()
        ports = {i: p for i, p in enumerate(self.manifest.inputs) if i not in held}
        feeding.check_names(list(ports.values()), feeds)
        return {i: self._array(p, feeds[p.name]) for i, p in ports.items()}

    def _array(self, port: schema.Port, feed: Any) -> Any:
        if isinstance(feed, np.ndarray):
            return feed
        place = dlpack.place_of(port.name, feed)
        if place[0] in (dlpack.CPU, dlpack.PINNED):
            return feeding.on_host(port, feed)
        if self.gpu is None:
            raise FeedError(
                f"input '{port.name}' lies on {dlpack.place_name(place)}, but the session runs on the CPU;"
                " move it there, or compile for --target cuda"
            )
        return self.gpu.given(port, feed)

    def _filled(self, given: Mapping[int, Any], past: Past | None, state: State | None) -> Workspace:
        """Memory for one run, with the integers of feeds that lie on the host in it."""
        shapes = tuple([a.shape for a in given.values()])
        workspace = self._workspace(shapes, past.size(state) if state and past else None)
        for i, array in given.items():
            if isinstance(array, np.ndarray):
                feeding.write(self.manifest.inputs[i], array, workspace.inputs[i])
        return workspace

    def _length_after(self, past: Past, workspace: Workspace, state: State) -> int:
        """The positions that ``state`` holds after a run; FeedError beyond what the model takes."""
        env = dict(zip(self.manifest.symbols, workspace.layout.symbols, strict=True))
        env[past.symbol] = state.length
        feeding.check_limits(self.manifest.limits, env)
        return size_value(past.after, env)

    def _workspace(self, shapes: tuple[tuple[int, ...], ...], past: tuple[int, int] | None) -> Workspace:
        """For feeds of these ``shapes``, and a state of ``past`` = (sequences, positions)."""
        layout = self._layouts.get((shapes, past))
        if layout is None:
            layout = self._layout(shapes, past)
            if len(self._layouts) < KEPT_LAYOUTS:
                self._layouts[shapes, past] = layout
        with self._lock:
            kept = self._kept.pop() if self._kept else None
        if kept is not None and kept.layout is layout:
            return kept
        enough = kept is not None and kept.block.nbytes >= layout.nbytes
        return Workspace(layout, self.call_arguments, kept.block if kept and enough else None)

    def _layout(self, given: Sequence[tuple[int, ...]], past: tuple[int, int] | None) -> Layout:
        """The ports that a state holds take no memory."""
        manifest, rest = self.manifest, iter(given)
        held = {h.input: h for h in self._past.held} if past is not None and self._past else {}
        written = {h.output for h in held.values()}
        shapes = [
            held[i].shape(*past) if past is not None and i in held else next(rest)
            for i in range(len(manifest.inputs))
        ]
        try:
            env = feeding.bind(manifest.inputs, shapes, (self._past.symbol,) if self._past else ())
        except FeedError as error:
            if past is None:
                raise
            raise FeedError(f"{error} (the state holds {past[0]} sequences)") from None
        if past is None:
            feeding.check_limits(manifest.limits, env)
        inputs = tuple(
            ((0,) if i in held else shape, p.dtype)
            for i, (p, shape) in enumerate(zip(manifest.inputs, shapes, strict=True))
        )
        outputs = tuple(
            ((0,) if i in written else feeding.shape_of(p, env), p.dtype)
            for i, p in enumerate(manifest.outputs)
        )
        arena = self.arena_bytes(env)  # of the device, where there is one
        on_host = arena if self.device is None else 0
        return Layout(tuple(env[s] for s in manifest.symbols), on_host, inputs, outputs)

    def call_arguments(self, addresses: Sequence[ctypes.c_void_p], symbols: Sequence[int]) -> tuple[Any, ...]:
        """What :attr:`entry` is called with; ``addresses`` are the arena's, the inputs' and the outputs'."""
        return (ctypes.c_void_p(address(self._constants)), *addresses, *symbols, self.threads)

    def arena_bytes(self, env: Mapping[str, int]) -> int:
        """The bytes of working memory that one run takes at these sizes."""
        program = self.manifest.program
        slots = [size_value(s, env) for s in program.slots]
        scratch = max((round_up(size_value(s, env)) for s in program.scratch), default=0)
        if max((*slots, scratch), default=0) > feeding.MAX_SIZE:
            sizes = ", ".join(f"{k} = {v}" for k, v in env.items())
            raise FeedError(
                f"an intermediate value would exceed {feeding.MAX_SIZE} bytes at {sizes}; use smaller batches"
            )
        return sum(map(round_up, slots)) + self.threads * scratch


def _public(port: schema.Port) -> Port:
    kind = ONNX_TYPES["float32" if port.scale is not None else port.dtype]
    return Port(port.name, list(port.shape), kind, port.dtype, port.scale, (port.lo, port.hi), port.lowest)
