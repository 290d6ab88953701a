"""A compiled model: :class:`Module`, what ``compile`` gives and ``open_module`` reads from a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

import intc
from intc.artifact.fields import SCALES
from intc.artifact.schema import Manifest, Packed, Port, Program
from intc.artifact.signature import Key
from intc.artifact.writer import write_artifact
from intc.calibration.readers import Feeds
from intc.codegen.c.source import Source, lower_source
from intc.codegen.c.write import write_source
from intc.codegen.lower import Lowered, as_sizes, lower, port_type
from intc.codegen.program import Constant
from intc.codegen.targets import resolve
from intc.errors import QuantizationError, UsageError
from intc.ir.bound import bound
from intc.ir.graph import Graph
from intc.ir.op import Array
from intc.ir.text import print_graph, side_tensors
from intc.ir.types import narrowest
from intc.passes.pipeline import Pipeline
from intc.passes.plan import Plan, parse_plan
from intc.report.accuracy import SAMPLES, Report, bounded, measure
from intc.report.certificate import certificate
from intc.report.reading import read_graph
from intc.runtime.session import Session
from intc.runtime.state import State

if TYPE_CHECKING:
    from intc.report.inspection import Inspection

Progress: TypeAlias = Callable[[str], None]
DERIVED = "~kernel:"  # prefix of the weights that only the kernels read: constants derived from the graph's


def open_module(
    path: str | os.PathLike[str],
    target: str | None = None,
    sizes: Mapping[str, int] | None = None,
    *,
    sha256: str | None = None,
    trusted_keys: Sequence[Key] | None = None,
) -> Module:
    """The module in artifact ``path``, compiled again for ``target`` (default: the artifact's own).

    ``graph`` and ``prepared`` are both the fused integer graph that the artifact holds, with the free sizes
    in ``sizes``, such as ``{"batch": 1}``, fixed. Results are equal on every target. No code of the file is
    used. ``sha256`` and ``trusted_keys`` as for :func:`intc.load`.
    """
    manifest, graph = read_graph(path, sha256, trusted_keys)
    graph = bound(graph, sizes or {})
    names = tuple(p.name for p in manifest.outputs)
    return Module(
        graph, graph, lower_for(graph, target or manifest.target, names), names, dict(manifest.provenance)
    )


def lower_for(graph: Graph, target: str, output_names: Sequence[str]) -> Lowered | Source:
    """``graph`` as native code, or as C source."""
    return lower(graph, target) if resolve(target).native else lower_source(graph, output_names)


@dataclass
class Module:
    """A compiled model. ``graph`` is the integer graph, whose ``evaluate`` is the exact reference of the
    kernels.

    ``prepared`` is the fused graph that was lowered, its sizes fixed where asked for; ``output_names`` are
    the ONNX names of its outputs; ``passes`` holds the graph after every pass (None for a module that was
    opened from a file); ``samples`` the first few samples of the calibration data.
    """

    graph: Graph
    prepared: Graph
    lowered: Lowered | Source
    output_names: tuple[str, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    passes: Pipeline | None = None
    dumps: dict[str, Graph] = field(default_factory=dict)
    samples: list[dict[str, Array]] = field(default_factory=list, repr=False)

    @property
    def plan(self) -> Plan:
        """The plan that the module was compiled with; of a module made from a graph, the empty one."""
        return parse_plan(self.provenance.get("plan", {}), "provenance")

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Write the artifact; ``path`` is replaced in one step once all is written. Returns the files.

        A module for target ``c`` is several files of source in the folder ``path``, or beside it where it
        ends in ``.c`` (docs/c.md).
        """
        if isinstance(self.lowered, Source):
            model = str(self.provenance.get("model", self.graph.name))
            origin = f"made by intc {intc.__version__} from {model}"
            if digest := self.provenance.get("model_sha256"):
                origin += f", SHA-256 {digest}"
            return write_source(self.lowered, path, model, origin)
        graph = _without_inner_scales(self.prepared)
        weights = side_tensors(graph)
        packed = _packed(self.lowered.constants, weights)
        manifest = Manifest(
            inputs=tuple(_port(self.prepared, name) for name in self.prepared.inputs),
            outputs=tuple(
                replace(_port(self.prepared, name), name=public)
                for name, public in zip(self.prepared.outputs, self.output_names, strict=True)
            ),
            symbols=self.lowered.symbols,
            limits=tuple((str(size), largest) for size, largest in self.prepared.limits().items()),
            target=self.lowered.target.name,
            features=tuple(self.lowered.features),
            states=tuple((name, self.output_names[i]) for name, i in self.prepared.states.items()),
            program=Program(
                self.lowered.entry,
                as_sizes(self.lowered.slots),
                as_sizes(self.lowered.scratch),
                packed,
                self.lowered.launches,
            ),
            provenance={**self.provenance, **_producer()},
        )
        narrow = {name: narrowed(array) for name, array in weights.items()}
        write_artifact(path, manifest, print_graph(graph), narrow, self.lowered.library, self.certificate)
        return [Path(path)]

    def run(
        self,
        output_names: Sequence[str] | None,
        feeds: Mapping[str, ArrayLike],
        *,
        raw: bool = False,
        state: State | None = None,
    ) -> list[Array]:
        """One inference with one thread; see :meth:`intc.runtime.Session.run`."""
        return self._session.run(output_names, feeds, raw=raw, state=state)

    def create_state(self, batch: int = 1) -> State:
        """See :meth:`intc.runtime.Session.create_state`."""
        return self._session.create_state(batch)

    def session(
        self, threads: int = 1, *, device: str | None = None, share: str | Path | bool = False
    ) -> Session:
        """A session of this module, by way of an artifact in a temporary folder; the keywords are those of
        :func:`intc.load`.

        UsageError for target ``c``: source code runs elsewhere; ``graph.evaluate`` gives its results.
        """
        if isinstance(self.lowered, Source):
            raise UsageError(
                "a module for target 'c' is source code and does not run here; graph.evaluate gives the same "
                "integers"
            )
        with tempfile.TemporaryDirectory(prefix="intc-") as folder:
            path = Path(folder) / "module.intc"
            self.save(path)
            return Session(path, threads=threads, device=device, share=share)

    def report(
        self, feeds: Feeds | None = None, samples: int = SAMPLES, progress: Progress | None = None
    ) -> Report:
        """How far every value is from the float model's on ``feeds``, at most ``samples`` of them, and why.

        ``feeds`` is given as for :func:`compile`; the default is the first few calibration samples.
        UsageError for a module without its float graph: one that was opened from a file.
        """
        if self.passes is None:
            raise UsageError("the module has no float graph to compare with; compile it from its ONNX file")
        if samples < 1:
            raise UsageError(f"samples={samples}: at least one sample is needed")
        if feeds is None and not self.samples:
            raise UsageError("the module was compiled without data; give feeds to measure on")
        integerised = self.passes["integerise"]
        batches = bounded(integerised.before, self.samples if feeds is None else feeds, samples)
        settings = {**self.provenance, "target": self.lowered.target.name}
        return measure(integerised.before, self.graph, batches, self.output_names, settings, progress)

    def inspect(
        self, feeds: Feeds | None = None, samples: int = SAMPLES, progress: Progress | None = None
    ) -> Inspection:
        """All there is to see: the graph after every pass, and of each value formula, interval, scale, error,
        distribution and kernel (docs/inspecting.md). A notebook shows the page; ``.html()`` is its text.

        Errors are measured as by :meth:`report`, where there are samples; ``samples=0`` leaves them out.
        """
        from intc.report.inspection import graphs_of, inspection_of, with_report

        library = self.lowered.library if isinstance(self.lowered, Lowered) else None
        found = inspection_of(self.prepared, self.lowered.target.name, library, self.provenance)
        if self.passes is None:
            return replace(found, graphs={"artifact": self.prepared})
        graphs = graphs_of(self.passes)
        graphs[list(graphs)[-1]] = self.prepared
        found = replace(found, graphs=graphs)
        if samples and (feeds is not None or self.samples):
            source = self.passes["integerise"].before
            found = with_report(found, self.report(feeds, samples, progress), source, self.graph)
        return found

    @cached_property
    def certificate(self) -> dict[str, Any]:
        """What is proven of the module; see :func:`intc.report.certificate.certificate`."""
        code = self.lowered.code if isinstance(self.lowered, Lowered) else None
        return certificate(self.prepared, code)

    @cached_property
    def _session(self) -> Session:
        return self.session()

    def _repr_html_(self) -> str:
        from intc.ir.display import graph_html

        return graph_html(self.graph)


def narrowed(array: Array) -> Array:
    """``array`` in the smallest signed element type that holds its integers; unchanged if that is its own."""
    if array.dtype.kind != "i" or not array.size:
        return array
    smallest = np.dtype(narrowest(int(array.min()), int(array.max())))
    return array.astype(smallest) if smallest.itemsize < array.dtype.itemsize else array


def _without_inner_scales(graph: Graph) -> Graph:
    """``graph`` without per-channel scales inside: its meaning needs those of inputs and outputs alone."""
    ports = {*graph.inputs, *graph.outputs}
    values = {
        name: replace(v, scale=None) if isinstance(v.scale, tuple) and name not in ports else v
        for name, v in graph.values.items()
    }
    return replace(graph, values=values)


def _packed(constants: Sequence[Constant], weights: dict[str, Array]) -> tuple[Packed, ...]:
    """The blob's entries; constants that are no tensor of ``weights`` are added to it, equal bytes once."""
    known = {(a.dtype.str, a.tobytes()): n for n, a in weights.items() if a.dtype != np.int8}
    entries = []
    for number, constant in enumerate(constants):
        layout, array = constant.layout, constant.array
        if constant.name in weights and layout is not None:
            entries.append(Packed(constant.name, layout.pad, layout.reshape, layout.perm, layout.dtype))
            continue
        name = constant.name if constant.name in weights else f"{DERIVED}{number}"
        if name not in weights:
            name = known.setdefault((array.dtype.str, array.tobytes()), name)
            weights.setdefault(name, array)
        entries.append(Packed(name, dtype=array.dtype.name))
    return tuple(entries)


def _port(graph: Graph, name: str) -> Port:
    value = graph.values[name]
    shape, dtype, lo, hi = port_type(value.type)
    for scale in value.scale if isinstance(value.scale, tuple) else (value.scale,):
        if scale is not None and not SCALES[0] <= scale <= SCALES[1]:
            raise QuantizationError(f"'{name}' has the scale {scale:g}, which float32 cannot invert")
    return Port(name, shape, dtype, value.scale, lo, hi, value.lowest)


def _producer() -> dict[str, str]:
    return {"intc": intc.__version__, "tvm": metadata.version("apache-tvm")}
