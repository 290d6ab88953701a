"""The Python front door: ``compile`` an ONNX model, hold it as a :class:`Module`, save it, open it again."""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

import intc
from intc.artifact.schema import SCALES, Manifest, Packed, Port, Program
from intc.artifact.signature import Key
from intc.artifact.writer import write_artifact
from intc.calibration import (
    Observer,
    collect,
    collect_cached,
    count_batches,
    derive,
    is_quantised,
    open_feeds,
    widened,
)
from intc.calibration.observers import Statistics
from intc.calibration.readers import Feeds
from intc.codegen.c.source import Source, lower_source, require_fixed
from intc.codegen.c.write import write_source
from intc.codegen.cuda import compiler as cuda_compiler
from intc.codegen.lower import Lowered, as_sizes, lower, port_type
from intc.codegen.program import Constant
from intc.codegen.targets import resolve
from intc.errors import CalibrationError, QuantizationError, UsageError
from intc.frontend import import_onnx
from intc.integrations.calibration import ParquetFeeds
from intc.ir.bound import bound
from intc.ir.graph import Graph
from intc.ir.op import Array
from intc.ir.text import print_graph, side_tensors
from intc.ir.types import narrowest
from intc.ir.verify import verify
from intc.passes import pipeline as phases
from intc.passes.integer.rounding import ROUNDINGS
from intc.passes.pipeline import Pipeline
from intc.passes.plan import Plan, PlanLike, parse_plan, read_plan
from intc.planning.planner import Planner, Search, held_apart, singly
from intc.planning.target import Predicate, parse_target
from intc.report.accuracy import SAMPLES, Report, bounded, cut, measure, samples_in
from intc.report.certificate import certificate
from intc.report.reading import read_graph
from intc.runtime.session import Session
from intc.runtime.state import State

if TYPE_CHECKING:
    from intc.report.inspection import Inspection

Progress: TypeAlias = Callable[[str], None]
DERIVED = "~kernel:"  # prefix of the weights that only the kernels read: constants derived from the graph's


def compile(
    model: str | os.PathLike[str],
    calibration: Feeds | None = None,
    target: str = "native",
    *,
    approximation: str = "auto",
    bits: PlanLike = 8,
    calibrator: str = "mse",
    rounding: str = "gptq",
    calibration_cache: str | os.PathLike[str] | None = None,
    accuracy_target: str | Predicate | None = None,
    search: Search | None = None,
    inputs: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
    progress: Progress | None = None,
    dump_after: str | Sequence[str] = (),
) -> Module:
    """The ONNX file ``model`` as an integer-only module with kernels for ``target``.

    - ``calibration``: a .npz path, a dict of stacked arrays, an iterable of ``{name: array}`` or rows of
      Parquet files (:class:`intc.integrations.calibration.ParquetFeeds`); the ranges of all values are taken
      from it (``"random"`` invents data, for trials of speed only). A model that arrives quantised may do
      without: CalibrationError names the values whose ranges its scales do not give.
    - ``target``: as on the command line (docs/cli.md).
    - ``approximation``: the family of formulas for softmax, GELU and their like (docs/architecture.md).
    - ``bits``: 8, 16 (activations), ``"auto"``, or a plan, as a path, a dict or a :class:`Plan`.
    - ``calibrator``: how 8-bit ranges are chosen: minmax, percentile, entropy or mse.
    - ``rounding``: how weights become integers: nearest or gptq.
    - ``calibration_cache``: an .npz file in which statistics are kept, to be taken up again.
    - ``accuracy_target``: ``"sqnr>=30"``, ``"cosine>=0.998"`` or ``predicate(run)``, where ``run(feeds)``
      gives the outputs of a candidate; widths grow until it holds, else AccuracyNotReached.
    - ``search``: limits and steers ``bits="auto"`` and the accuracy target (docs/plan.md).
    - ``inputs``: overrides shapes or types of inputs by name.
    - ``sizes``: free sizes of the kernels to fix, such as ``{"batch": 1}``, which target ``c`` asks for;
      calibration and ``Module.graph`` keep them free.
    - ``progress``: is told each step.
    - ``dump_after``: passes; the graph after each is kept in ``Module.dumps``.

    Raises UnsupportedModel (listing every node), CalibrationError, QuantizationError, CodegenError,
    UsageError.
    """
    plan = None if isinstance(bits, str) and bits == "auto" else read_plan(bits)
    goal = parse_target(accuracy_target) if isinstance(accuracy_target, str) else accuracy_target
    processor = resolve(target)
    if processor.gpu:
        cuda_compiler.require()
    wanted = [dump_after] if isinstance(dump_after, str) else list(dump_after)
    for name in wanted:
        if name not in phases.PASS_NAMES:
            raise UsageError(f"no pass '{name}'; the passes are {', '.join(phases.PASS_NAMES)}")
    tell = progress or (lambda step: None)
    path = Path(model)
    tell("import")
    source = import_onnx(path, inputs)
    fixed = bound(source, sizes or {})
    if not processor.native:
        require_fixed(fixed)
    state = phases.canonicalise(source, tell)
    tell("calibrate")
    samples: list[dict[str, Array]] = []
    if calibration is None and is_quantised(state.graph):
        if plan is None or goal is not None:
            raise CalibrationError(
                "bits='auto' and accuracy targets are judged on calibration data; give some"
            )
        state, stats = derived(state, tell)
    else:
        state, feeds = equalised(state, open_feeds(state.graph, calibration), tell)
        feeds = _kept(state.graph, feeds, samples)
        feeds = feeds if goal is None else held_apart(state.graph, feeds)
        total = count_batches(state.graph, calibration)
        stats = _calibrate(
            state.graph,
            path,
            _by_blocks(calibration, goal, calibration_cache) or feeds,
            total,
            calibrator,
            rounding,
            calibration_cache,
            goal is not None,
            tell,
        )
        stats = widened(stats, state.graph)
    planned: dict[str, Any] = {}
    if plan is None or goal is not None:
        settings: Any = (approximation, calibrator, rounding, tell)
        judged = singly(state.graph, samples)
        found = Planner(state.graph, stats, judged, processor, *settings).search(
            plan, search or Search(), goal
        )
        plan, planned = found.plan, {"planning": found.report}
    assert plan is not None
    state = phases.integerise(state, stats, approximation, calibrator, rounding, tell, plan)  # type: ignore[arg-type]
    integer = state.graph
    state = phases.prepare(state, tell)
    verify(state.graph)
    tell("generate code")
    provenance = {
        "model": path.name,
        "model_sha256": _file_digest(path),
        "approximation": approximation,
        "plan": plan.as_json(),
        **planned,
        "calibrator": calibrator,
        "rounding": rounding,
        "calibration": _origin(calibration),
    }
    prepared = bound(state.graph, sizes or {})
    lowered = _lowered(prepared, target, source.outputs)
    dumps = {name: state.after(name) for name in wanted}
    return Module(integer, prepared, lowered, tuple(source.outputs), provenance, state, dumps, samples)


def _origin(calibration: Feeds | None) -> str:
    """Where ranges come from: "data", "random" data, or the "model"."""
    if calibration is None:
        return "model"
    return "random" if isinstance(calibration, str) and calibration == "random" else "data"


def _by_blocks(calibration: Feeds | None, goal: object, cache: object) -> ParquetFeeds | None:
    """``calibration`` where its blocks are observed apart; UsageError for what needs its feeds in a row."""
    if not isinstance(calibration, ParquetFeeds):
        return None
    if goal is not None or cache is not None:
        raise UsageError(
            "accuracy targets and calibration caches do not take Parquet files; give an .npz file"
        )
    return calibration


def derived(state: Pipeline, tell: Progress | None = None) -> tuple[Pipeline, dict[str, Statistics]]:
    """``state`` with phase 2 passed without data, and the statistics that follow from the model."""
    state = phases.equalise(state, {}, tell)
    return state, derive(state.graph)


def equalised(
    state: Pipeline, feeds: Iterator[dict[str, Array]], tell: Progress | None = None
) -> tuple[Pipeline, Iterator[dict[str, Array]]]:
    """``state`` with phase 2 done on the first of ``feeds``, and all of ``feeds``."""
    first = next(feeds)
    stats = collect(state.graph, [first], "minmax")
    ranges = {name: seen.channels for name, seen in stats.items()}
    return phases.equalise(state, ranges, tell), itertools.chain([first], feeds)


def _calibrate(
    graph: Graph,
    model: Path,
    batches: Iterable[dict[str, Array]],
    total: int | None,
    calibrator: str,
    rounding: str,
    cache: str | os.PathLike[str] | None,
    apart: bool,
    tell: Progress,
) -> dict[str, Statistics]:
    """The statistics of ``graph`` over ``total`` batches, from ``cache`` as far as it holds them.

    ``apart``: some samples are kept out to judge plans, so the cache is another.
    """
    if rounding not in ROUNDINGS:
        raise UsageError(f"rounding '{rounding}' is not one of {', '.join(ROUNDINGS)}")
    start = time.monotonic()

    def progress(done: int) -> None:
        left = (
            ""
            if total is None
            else f" of {total}, {(time.monotonic() - start) / done * (total - done):.0f} s left"
        )
        tell(f"calibrate (batch {done}{left})")

    products = rounding != "nearest"
    if isinstance(batches, ParquetFeeds):
        return batches.statistics(graph, calibrator, products, progress)  # type: ignore[arg-type]
    if cache is None:
        return collect(graph, batches, calibrator, progress, products)  # type: ignore[arg-type]
    observer = Observer(graph, calibrator, products)  # type: ignore[arg-type]
    shapes = [str(graph.type(x)) for x in graph.inputs]
    key = f"{_file_digest(model)} {calibrator} {rounding} {intc.__version__} {shapes}{' apart' * apart}"
    return collect_cached(observer, batches, cache, key, progress)


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
        graph, graph, _lowered(graph, target or manifest.target, names), names, dict(manifest.provenance)
    )


def _lowered(graph: Graph, target: str, output_names: Sequence[str]) -> Lowered | Source:
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

    def session(self, threads: int = 1) -> Session:
        """A session of this module, by way of an artifact in a temporary folder.

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
            return Session(path, threads=threads)

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


def _kept(
    graph: Graph, feeds: Iterable[dict[str, Array]], kept: list[dict[str, Array]]
) -> Iterator[dict[str, Array]]:
    """``feeds``, of which the first SAMPLES samples are copied to ``kept`` on the way."""
    count = 0
    for feed in feeds:
        if count < SAMPLES:
            part = cut(graph, feed, 0, SAMPLES - count)
            kept.append({name: array.copy() for name, array in part.items()})
            count += samples_in(graph, part)
        yield feed


def _file_digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    return Port(name, shape, dtype, value.scale, lo, hi)


def _producer() -> dict[str, str]:
    return {"intc": intc.__version__, "tvm": metadata.version("apache-tvm")}
