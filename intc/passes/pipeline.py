"""The pass pipeline: one literal list for each phase, and the loop that runs it.

Phase 1 canonicalises the float graph, phase 2 balances its weights, calibration observes it, phase 3 makes it
integer, phase 5 fuses for the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from intc.calibration.histogram import Calibrator
from intc.calibration.observers import Statistics
from intc.errors import UsageError
from intc.ir.graph import Graph
from intc.ir.op import Array
from intc.passes.base import Pass, Snapshot
from intc.passes.equalise_heads import EqualiseHeads
from intc.passes.fold_channel_scale import FoldChannelScale
from intc.passes.fold_constants import FoldConstants
from intc.passes.fold_expanded import FoldExpanded
from intc.passes.fold_input_normalisation import FoldInputNormalisation
from intc.passes.fold_repeated import FoldRepeated
from intc.passes.fuse_attention import FuseAttention
from intc.passes.fuse_linear import FuseLinear
from intc.passes.fuse_pointwise import FusePointwise
from intc.passes.integer.families import FAMILIES
from intc.passes.integer.rounding import ROUNDINGS, Rounding
from intc.passes.integerise import Integerise
from intc.passes.keep_whole import KeepWhole
from intc.passes.lower_conv import LowerConv
from intc.passes.merge_clips import MergeClips
from intc.passes.merge_linears import MergeLinears
from intc.passes.plan import Plan
from intc.passes.recover_gelu import RecoverGelu
from intc.passes.recover_layer_norm import RecoverLayerNorm
from intc.passes.recover_softmax import RecoverSoftmax
from intc.passes.recover_softmax_mask import RecoverSoftmaxMask
from intc.passes.reorder_products import ReorderProducts
from intc.passes.scan_log_sums import ScanLogSums
from intc.passes.simplify_movement import SimplifyMovement
from intc.passes.sink_masks import SinkMasks
from intc.passes.sink_transposes import SinkTransposes
from intc.passes.split_outliers import SplitOutliers
from intc.passes.split_projections import SplitProjections

CANONICALISE: tuple[Pass, ...] = (
    FoldConstants(),
    FoldExpanded(),
    RecoverLayerNorm(),
    RecoverGelu(),
    RecoverSoftmax(),
    RecoverSoftmaxMask(),
    ScanLogSums(),
    KeepWhole(),
    FusePointwise(),
    SinkMasks(),
    FoldInputNormalisation(),
    FoldChannelScale(),
    SplitProjections(),
    LowerConv(),
    ReorderProducts(),
    SinkTransposes(),
    SimplifyMovement(),
)
PREPARE: tuple[Pass, ...] = (
    SimplifyMovement("simplify_integer_movement"),
    MergeClips(),
    FuseAttention(),
    FuseLinear(),
    MergeLinears(),
    FoldRepeated(),
)
PASS_NAMES: tuple[str, ...] = (
    *(p.name for p in CANONICALISE),
    "equalise_heads",
    "split_outliers",
    "integerise",
    *(p.name for p in PREPARE),
)
SYNONYMS = {"requantise": "integerise"}  # the pass that inserts every requantisation
EVERYWHERE_8 = Plan()
OnPass = Callable[[str], None]


@dataclass(frozen=True)
class Pipeline:
    """The snapshots taken so far, in order; :attr:`graph` is the latest graph."""

    source: Graph
    snapshots: tuple[Snapshot, ...] = ()

    @property
    def graph(self) -> Graph:
        return self.snapshots[-1].graph if self.snapshots else self.source

    def then(self, passes: Sequence[Pass], on_pass: OnPass | None = None) -> Pipeline:
        """Run ``passes`` in order; ``on_pass`` is told each name before it starts."""
        snapshots = list(self.snapshots)
        graph = self.graph
        for step in passes:
            if on_pass:
                on_pass(step.name)
            before, graph = graph, step.run(graph)
            snapshots.append(Snapshot(step.name, before, graph))
        return Pipeline(self.source, tuple(snapshots))

    def __getitem__(self, name: str) -> Snapshot:
        """What the pass ``name`` was given and made; UsageError lists the names there are.

        ``"requantise"`` is another name of ``integerise``.
        """
        for snapshot in self.snapshots:
            if snapshot.name == SYNONYMS.get(name, name):
                return snapshot
        raise UsageError(f"no pass '{name}' has run; the passes are {', '.join(PASS_NAMES)}")

    def __iter__(self) -> Iterator[Snapshot]:
        return iter(self.snapshots)

    def after(self, name: str) -> Graph:
        """The graph after the pass ``name``; UsageError lists the names there are."""
        return self[name].graph

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{s.name}</td><td>{len(s.before.nodes)}</td><td>{len(s.graph.nodes)}</td></tr>"
            for s in self
        )
        return f"<table><tr><th>pass</th><th>nodes before</th><th>after</th></tr>{rows}</table>"


def canonicalise(graph: Graph, on_pass: OnPass | None = None) -> Pipeline:
    """Phase 1 on an imported float graph."""
    return Pipeline(graph).then(CANONICALISE, on_pass)


def equalise(pipeline: Pipeline, ranges: Mapping[str, Array], on_pass: OnPass | None = None) -> Pipeline:
    """Phase 2: factors between weights, from the largest magnitudes per channel that a first batch showed."""
    return pipeline.then((EqualiseHeads(ranges), SplitOutliers(ranges)), on_pass)


def integerise(
    pipeline: Pipeline,
    stats: dict[str, Statistics],
    family: str = "auto",
    calibrator: Calibrator = "mse",
    rounding: Rounding = "gptq",
    on_pass: OnPass | None = None,
    plan: Plan = EVERYWHERE_8,
) -> Pipeline:
    """Phase 3: the integer graph, whose ``evaluate`` is the exact meaning of the compiled model."""
    if family not in FAMILIES:
        raise UsageError(f"approximation '{family}' is not one of {', '.join(FAMILIES)}")
    if rounding not in ROUNDINGS:
        raise UsageError(f"rounding '{rounding}' is not one of {', '.join(ROUNDINGS)}")
    return pipeline.then((Integerise(stats, family, calibrator, rounding, plan),), on_pass)


def prepare(pipeline: Pipeline, on_pass: OnPass | None = None) -> Pipeline:
    """Phase 5: the fused graph that code generation lowers; equal to the integer graph bit for bit."""
    return pipeline.then(PREPARE, on_pass)
