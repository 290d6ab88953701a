"""The accuracy report: its numbers against direct computations, its page, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import intc
from intc.calibration import collect, open_feeds
from intc.errors import CalibrationError, UsageError
from intc.files import write_text
from intc.frontend import import_onnx
from intc.ir.dims import symbol
from intc.ir.graph import Builder, Graph, quantize_feed
from intc.ir.types import TensorType
from intc.module import Module
from intc.ops.matmul import MatMul
from intc.ops.requantize import Requantize
from intc.passes import pipeline
from intc.report import accuracy
from intc.report.accuracy import NodeReport, Report, bounded, measure
from intc.report.macs import count_macs
from intc.report.matching import matches
from intc.report.reference import fidelity, fidelity_of
from tests.kernel_cases import S
from tests.pages import HOSTILE, Page, needs_chromium, opened
from tests.product_cases import grouped_attention_case
from tests.test_c_kernels import side_by_side
from tests.tiny_encoder import tiny_encoder, tiny_feeds

NODE_KEYS = {
    *("name", "op", "source", "family", "dtype", "width", "interval", "scale", "channels", "cause", "shares"),
    *("stored_db", "isolated_db", "accumulated_db", "cosine", "max_error", "max_error_isolated"),
    *("clip_rate", "outside", "range_used", "float_range", "macs", "cost_share"),
}


@pytest.fixture(scope="module", params=("auto", "lut"))
def graphs(request: pytest.FixtureRequest) -> tuple[Graph, Graph]:
    """The canonical float graph of a small encoder and its integer graph."""
    state = pipeline.canonicalise(import_onnx(tiny_encoder()))
    source = state.graph
    stats = collect(source, open_feeds(source, tiny_feeds(16, 24, seed=5)))
    return source, pipeline.integerise(state, stats, request.param).graph


def observed(graph: Graph, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    raw = {name: quantize_feed(graph.values[name], feeds[name]) for name in graph.inputs}
    graph.run(raw, lambda value, array: out.setdefault(value.name, array))
    return out


def centre_of(graph: Graph, name: str) -> np.ndarray:
    """What integer 0 stands for: the middle of a centred GELU, in each of its forms."""
    node = graph.producers().get(name.removesuffix(".q8"))
    if node is None or node.op.name != "poly_gelu" or len(node.inputs) < 2:
        return np.zeros(1)
    return graph.constants[node.inputs[1]] * np.asarray(graph.values[node.output].scale)


def real_of(graph: Graph, name: str, q: np.ndarray) -> np.ndarray:
    """What integers of a value stand for; softmax weights are divided by the sum of their row."""
    if name in graph.producers() and graph.producers()[name].op.name == "shift_weights":
        return q / np.maximum(q.sum(axis=-1, keepdims=True, dtype=np.int64), 1)
    return q * np.asarray(graph.values[name].scale) + centre_of(graph, name)


def integers_of(graph: Graph, name: str, x: np.ndarray) -> np.ndarray:
    """The integers of a value that hold the float ``x`` best."""
    value = graph.values[name]
    if name in graph.producers() and graph.producers()[name].op.name == "shift_weights":
        top = x.astype(np.float64).max(axis=-1, keepdims=True)
        return np.rint(x * 255 / np.where(top > 0, top, 1)).astype(np.uint8)
    lo, hi = value.type.interval
    steps = np.rint((x.astype(np.float64) - centre_of(graph, name)) / np.asarray(value.scale))
    return np.clip(steps, lo, hi).astype(value.type.dtype)


def decibels(wanted: np.ndarray, got: np.ndarray) -> float:
    wanted, got = wanted.astype(np.float64), got.astype(np.float64)
    return float(10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum()))


def test_numbers_equal_a_direct_computation(
    graphs: tuple[Graph, Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches of 4 and pieces of a few rows, as if everything had been kept and compared at once."""
    source, integer = graphs
    monkeypatch.setattr("intc.report.tally.CHUNK", 500)
    feeds = tiny_feeds(7, 24)
    report = measure(source, integer, bounded(source, feeds, 7), source.outputs, {})
    floats, integers, matched = observed(source, feeds), observed(integer, feeds), matches(source, integer)
    assert report.samples == 7
    assert len(report.nodes) > 50
    for node in report.nodes:
        x, q, value = floats[matched[node.name]], integers[node.name], integer.values[node.name]
        real = real_of(integer, node.name, q)
        assert node.accumulated_db == pytest.approx(decibels(x, real), abs=1e-6), node.name
        assert node.max_error == pytest.approx(np.abs(real - x).max(), rel=1e-9)
        cosine = (real * x).sum() / np.sqrt((real**2).sum() * (x.astype(float) ** 2).sum())
        assert node.cosine == pytest.approx(cosine, abs=1e-6)
        lo, hi = value.type.interval
        ends = ((q == hi) | ((q == lo) & (lo != 0))) & (node.op != "shift_weights")
        assert node.clip_rate == pytest.approx(ends.mean())
        assert node.range_used == pytest.approx((int(q.max()) - int(q.min()) + 1) / (hi - lo + 1))
        stored = real_of(integer, node.name, integers_of(integer, node.name, x))
        assert node.stored_db == pytest.approx(decibels(x, stored), abs=1e-3), node.name
        assert node.float_range == (float(x.min()), float(x.max()))
        assert sum(node.histogram["counts"]) > 0
        assert sum(node.shares.values()) == pytest.approx(1.0)
    whole = fidelity(integer.evaluate(feeds)[0], floats["logits"])
    assert report.outputs["logits"] == pytest.approx(whole, abs=1e-6)


def test_isolated_means_exact_operands(graphs: tuple[Graph, Graph]) -> None:
    """Each kind of node by hand: operands are the float values rounded to the operands' own formats."""
    source, integer = graphs
    feeds = tiny_feeds(4, 24)
    floats, matched = observed(source, feeds), matches(source, integer)
    report = measure(source, integer, [feeds], source.outputs, {})
    producers, sizes = integer.producers(), integer.bind(feeds)
    by_name = {node.name: node for node in report.nodes}

    def ideal(name: str) -> np.ndarray:
        if name in integer.constants:
            return integer.constants[name]
        if name in integer.inputs:
            return feeds[name]
        node = producers[name]
        real = floats.get(matched.get(name, ""))
        if real is not None:
            return integers_of(integer, name, real)
        return node.op.evaluate(*(ideal(x) for x in node.inputs), sizes=sizes)

    seen = set()
    for name, node in by_name.items():
        made = producers[name]
        alone = made.op.evaluate(*(ideal(x) for x in made.inputs), sizes=sizes)
        real = real_of(integer, name, alone)
        assert node.isolated_db == pytest.approx(decibels(floats[matched[name]], real), abs=1e-6), name
        if node.op == "matmul+add":
            assert {producers[x].op.name for x in made.inputs if x in producers} == {"matmul"}
        seen.add(node.op)
    assert {"matmul", "matmul+add", "clip", "requantize", "shift_layer_norm", "gather"} <= seen
    worst = report.worst(5)
    assert [n.isolated_db for n in worst] == sorted(n.isolated_db for n in report.nodes)[:5]


def test_every_matched_value_is_the_right_one(graphs: tuple[Graph, Graph]) -> None:
    """A wrong partner would have nothing in common with its value; moved values are left out."""
    source, integer = graphs
    report = measure(source, integer, [tiny_feeds(4, 24)], source.outputs, {})
    assert min(node.cosine or 0.0 for node in report.nodes) > 0.9
    assert not {"reshape", "transpose", "slice", "concat", "expand"} & {n.op for n in report.nodes}
    assert sum(node.cost_share for node in report.nodes) == pytest.approx(1)
    families = {n.op: n.family for n in report.nodes}
    assert families["shift_layer_norm"] == "shift"
    assert families["requantize"] == ""
    assert families.get("shift_weights", "shift") == "shift"
    assert families.get("poly_gelu", "poly") == "poly"
    assert families.get("lut_softmax", "lut") == families.get("table", "lut") == "lut"
    total = count_macs(integer, integer.bind(tiny_feeds(4, 24)))
    assert sum(node.macs for node in report.nodes) == pytest.approx(total / 4, abs=len(report.nodes))


def test_attention_counts_its_two_products() -> None:
    """Per head of 8 channels: 29 queries by 34 keys; heads in front of the rows, or side by side."""
    for first in (True, False):
        graph = side_by_side([grouped_attention_case(3, first, (6, 1, S + 5), mask=False)])
        assert count_macs(graph, {"batch": 2, "seq": 29}) == 2 * 2 * 6 * 29 * 34 * 8


def saturating(scale: float) -> tuple[Graph, Graph]:
    """``y = x @ [[1, 0], [0, 4]]`` with exact integers, then ``y`` in 8 bits at ``scale``."""
    batch = symbol("batch")
    w = np.array([[1, 0], [0, 4]], np.float32)
    f = Builder("float")
    f.output(f.emit(MatMul(), f.input("x", TensorType((batch, 2), "float32")), f.constant("w", w), name="y"))
    b = Builder("integer")
    x = b.input("x", TensorType((batch, 2), "int8", -127, 127), 1.0)
    acc = b.emit(MatMul(), x, b.constant("w", w.astype(np.int8)), name="y", scale=(1.0, 1.0))
    shift = (
        b.constant("m", np.array([1 << 30], np.int32)),
        b.constant("e", np.array([30 + int(np.log2(scale))])),
    )
    b.output(b.emit(Requantize(-127, 127, "int8"), acc, *shift, name="y.q8", scale=scale))
    return f.finish(), b.finish()


def test_saturation_and_rounding_are_told_apart() -> None:
    x = np.array([[100, 100], [3, 1], [-2, -101], [7, 7]], np.float32)
    nodes = {}
    for scale in (2.0, 4.0):
        report = measure(*saturating(scale), [{"x": x}], ["y"], {"model": "m"})
        nodes[scale] = {node.name: node for node in report.nodes}
        exact = nodes[scale]["y"]
        assert exact.accumulated_db is None and exact.cause == "no error of its own"
        assert exact.macs == 4 and exact.cost_share == 1.0
        json.dumps(report.summary(), allow_nan=False)
    saturated, rounded = nodes[2.0]["y.q8"], nodes[4.0]["y.q8"]
    assert saturated.cause == "saturation"
    assert saturated.outside == saturated.clip_rate == 2 / 8
    assert saturated.max_error == 150.0
    assert rounded.cause == "rounding to 8 bits"
    assert rounded.outside == 0
    assert rounded.max_error == 2.0


def test_a_float_value_that_is_always_zero_keeps_json_finite() -> None:
    source, integer = saturating(2.0)
    report = measure(source, integer, [{"x": np.zeros((2, 2), np.float32)}], ["y"], {})
    json.dumps(report.summary(), allow_nan=False)
    assert report.nodes[1].cosine is None
    assert report.worst() == []
    assert "No node makes an error" in report.html()


def test_samples_are_bounded_and_streamed(graphs: tuple[Graph, Graph]) -> None:
    source, _ = graphs
    given = 0

    def stream() -> Iterator[dict[str, np.ndarray]]:
        nonlocal given
        for length in (24, 12, 9, 30):
            given += 1
            yield tiny_feeds(5, length)

    parts = list(bounded(source, stream(), 8))
    assert [p["input_ids"].shape for p in parts] == [(4, 24), (1, 24), (3, 12)]
    assert given == 2
    np.testing.assert_array_equal(parts[1]["input_ids"], tiny_feeds(5, 24)["input_ids"][4:])
    assert len(list(bounded(source, tiny_feeds(3, 24), 8))) == 1
    with pytest.raises(CalibrationError, match="'input_ids' is missing"):
        list(bounded(source, {"attention_mask": np.ones((2, 4), np.int64)}))


def test_fidelity_of_batches_with_other_shapes() -> None:
    rng = np.random.default_rng(0)
    whole = rng.normal(size=(6, 5)), rng.normal(size=(6, 5))
    parts = [(whole[0][:2], whole[1][:2]), (whole[0][2:], whole[1][2:])]
    for key, number in fidelity(*whole).items():
        assert fidelity_of(parts)[key] == pytest.approx(number)
    assert fidelity_of([(np.ones((2, 3)), np.ones((2, 3))), (np.ones(7), np.ones(7))])["agreement"] == 1


# ---------------------------------------------------------------- the module


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Module:
    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    onnx.save(tiny_encoder(), path)
    return intc.compile(path, calibration=(tiny_feeds(3, 24, seed) for seed in range(5)))


def test_a_module_reports_on_its_first_calibration_samples(module: Module, tmp_path: Path) -> None:
    assert [len(feed["input_ids"]) for feed in module.samples] == [3, 3, 3, 3, 3]
    report = module.report()
    assert report.samples == accuracy.SAMPLES == 8
    assert report.settings["target"] == module.lowered.target.name
    assert report.settings["approximation"] == "auto"
    assert list(report.outputs) == ["logits"]
    steps: list[str] = []
    other = module.report(tiny_feeds(9, 16), samples=6, progress=steps.append)
    assert other.samples == 6
    assert steps == ["accuracy (batch 1)", "accuracy (batch 2)"]
    with pytest.raises(UsageError, match="samples=0"):
        module.report(samples=0)
    module.save(tmp_path / "m.intc")
    with pytest.raises(UsageError, match="no float graph"):
        intc.open_module(tmp_path / "m.intc").report()


def test_the_json_form_is_stable(module: Module) -> None:
    summary = module.report(samples=2).summary()
    assert set(summary) == {"schema", "settings", "samples", "outputs", "nodes"}
    assert summary["schema"] == 1
    assert set(summary["outputs"]["logits"]) == {
        *("sqnr_db", "cosine_mean", "cosine_min", "agreement", "max_abs_error")
    }
    for node in summary["nodes"]:
        assert set(node) == NODE_KEYS
        assert set(node["shares"]) == {"rounding", "saturation", "computing", "inherited"}
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


# ---------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def hostile(module: Module) -> Report:
    """A report in which every name tries to leave its place."""
    report = module.report(samples=1)
    nodes = tuple(replace(n, name=f"{HOSTILE}{i}", source=HOSTILE) for i, n in enumerate(report.nodes))
    outputs = {HOSTILE: report.outputs["logits"]}
    return Report({"model": HOSTILE, HOSTILE: HOSTILE}, 1, outputs, nodes)


def test_the_page_is_well_formed_and_escaped(hostile: Report) -> None:
    plans = [
        {"label": HOSTILE, "size": 1e6, "latency": 2.0, "error": 0.1},
        {"label": "larger", "size": 2e6, "latency": 3.0, "error": 0.05},
        {"label": "worse", "size": 2e6, "latency": 3.5, "error": 0.2},
    ]
    text = hostile.html(plans)
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert page.asks_for_nothing(text)
    nodes = json.loads(page.scripts[0])
    assert [n["name"] for n in nodes] == [n.name for n in hostile.nodes]
    assert [n["accumulated_db"] for n in nodes] == [n.accumulated_db for n in hostile.nodes]
    assert page.policy_names_its_script()
    assert sum(1 for t, a in page.tags if t == "tr" and "data-i" in a) == len(hostile.nodes)
    assert f"{HOSTILE}0" in "".join(page.text)
    assert [t for t, a in page.tags if a.get("class") == "dot best"] == ["span"] * 2
    assert "Plans" not in "".join(Page(hostile.html()).text)


def test_random_calibration_is_said_on_the_page(hostile: Report) -> None:
    assert "random numbers" not in hostile.html()
    settings = {"model": "m", "calibration": "random"}
    assert "random numbers" in replace(hostile, settings=settings).html()


def test_the_page_shows_settings_but_no_whole_plan(module: Module) -> None:
    page = module.report(samples=1).html()
    assert "<b>approximation</b>auto" in page
    assert "intc_plan" in module.provenance["plan"]
    assert "intc_plan" not in page


def test_a_page_of_hundreds_of_nodes_stays_small(hostile: Report) -> None:
    node = hostile.nodes[0]
    nodes: list[NodeReport] = [replace(node, name=f"/vit/layers.{i}/attention/MatMul.q8") for i in range(600)]
    assert len(replace(hostile, nodes=tuple(nodes)).html().encode()) < 2_000_000


@needs_chromium
def test_the_script_runs_in_a_browser(hostile: Report, tmp_path: Path) -> None:
    shown = opened(hostile.html(), "2", tmp_path)
    text = "".join(shown.text)
    assert f"{len(hostile.nodes)} of {len(hostile.nodes)} nodes" in text
    assert "img" not in [tag for tag, _ in shown.tags]
    assert ("dialog", {"open": ""}) in shown.tags
    assert f"{HOSTILE}1".replace("<!--", "") in text.replace("<!--", "")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "page.html"
    write_text(target, "é")
    assert target.read_bytes() == "é".encode()
    blocked = tmp_path / "folder.html"
    blocked.mkdir()
    with pytest.raises(UsageError, match=r"folder\.html: cannot be written"):
        write_text(blocked, "x")
    with pytest.raises(UsageError, match="cannot be written"):
        write_text(target / "below.html", "x")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["folder.html", "new", "page.html"]
