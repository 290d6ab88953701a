"""Automatic plans: the probe of one node, the programme, targets, and compilations that search."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest

import intc
from intc.calibration import collect, open_feeds
from intc.cli import main
from intc.codegen.targets import resolve
from intc.errors import AccuracyNotReached, UsageError
from intc.frontend import import_onnx
from intc.passes import pipeline
from intc.passes.plan import Choice, Plan, is_linear
from intc.planning import latency
from intc.planning.planner import Goal, Planner, Search, held_apart, wide_share
from intc.planning.search import Table, solve
from intc.planning.sensitivity import Options, Probe, measure_noises, units_of
from intc.planning.target import parse_target
from tests.tiny_encoder import tiny_encoder, tiny_feeds

EVERYTHING = Options(weights=(8, 4), activations=(8, 16), families=("auto", "ibert", "lut"))


@pytest.fixture(scope="module")
def planner() -> Planner:
    graph = pipeline.canonicalise(import_onnx(tiny_encoder())).graph
    stats = collect(graph, open_feeds(graph, tiny_feeds(32, 24, seed=5)))
    samples = [tiny_feeds(1, 24, seed=s) for s in range(8)]
    return Planner(graph, stats, samples, resolve("avx512-vnni"))


@pytest.fixture(autouse=True)
def no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs by the model instead of the clock: quick, and the same on every machine."""
    monkeypatch.setattr(latency, "host_features", frozenset)


def test_units_are_readers_of_one_value(planner: Planner) -> None:
    units = units_of(planner.graph, Plan(), "auto", EVERYTHING)
    linear = [is_linear(planner.graph, u.nodes[0]) for u in units]
    assert [len(u.nodes) for u, ok in zip(units, linear, strict=True) if ok] == [3, 1, 1, 1, 3, 1, 1, 1, 1, 1]
    grid = {Choice(8, 8), Choice(8, 16), Choice(4, 8), Choice(4, 16)}
    products = [u.choices for u, ok in zip(units, linear, strict=True) if ok]
    assert all(set(choices) == grid for choices in products)
    assert [choices[0] for choices in products] == [Choice(8, 8)] * 8 + [Choice(8, 16)] * 2
    assert sum(u.nodes[0].op.name in ("softmax", "gelu") for u in units) == 4
    scores = [u for u, ok in zip(units, linear, strict=True) if not ok and u.nodes[0].op.name == "matmul"]
    assert [u.choices for u in scores] == [(Choice(), Choice(activations=8), Choice(activations=16))] * 2


def test_noise_of_a_choice(planner: Planner) -> None:
    probe = Probe(planner.graph, planner.stats, "minmax", planner.samples[0])
    wide = narrow = 0.0
    for unit in units_of(planner.graph, Plan(), "auto", EVERYTHING):
        noise = {c: probe.noise(unit, c, "output") for c in unit.choices}
        assert all(0 < n < 0.5 for n in noise.values())
        if Choice(4, 8) in noise:
            assert noise[Choice(8, 8)] < noise[Choice(4, 8)]
            wide, narrow = wide + noise[Choice(8, 16)], narrow + noise[Choice(8, 8)]
        if Choice() in noise:
            assert noise[Choice(activations=16)] < 0.1 * noise[Choice(activations=8)]
    assert wide < 0.4 * narrow  # of one alone either may be the smaller by chance


def test_alternative_measures_weigh_the_noise_of_the_unit_itself(planner: Planner) -> None:
    probe = Probe(planner.graph, planner.stats, "minmax", planner.samples[0])
    units = units_of(planner.graph, Plan(), "auto", EVERYTHING)
    for measure in ("hessian", "relevance", "outliers"):
        for unit in units:
            local = [probe.noise(unit, c, "local") for c in unit.choices]
            weight = probe.weight(unit, measure)
            assert [probe.noise(unit, c, measure) for c in unit.choices] == [weight * n for n in local]
            assert weight > 0
    last = units[-1]  # computes the logits, less a bias: what happens to it happens to them
    assert probe.values[last.nodes[0].output].shape == probe.values[planner.graph.outputs[0]].shape
    own, logits = (
        float((probe.values[v] ** 2).mean()) for v in (last.nodes[0].output, planner.graph.outputs[0])
    )
    assert probe.weight(last, "hessian") == pytest.approx(own / logits, rel=1e-3)


def test_hessian_predicts_the_noise_at_the_output(planner: Planner) -> None:
    probe = Probe(planner.graph, planner.stats, "minmax", planner.samples[0])
    units = units_of(planner.graph, Plan(), "auto", Options())
    wanted, found = (
        np.log([probe.noise(u, u.choices[0], m) for u in units if is_linear(planner.graph, u.nodes[0])])
        for m in ("output", "hessian")
    )
    assert np.corrcoef(wanted, found)[0, 1] > 0.7


def test_outliers_are_counted(planner: Planner) -> None:
    probe = Probe(planner.graph, planner.stats, "minmax", planner.samples[0])
    unit = units_of(planner.graph, Plan(), "auto", EVERYTHING)[0]
    value = probe.values[unit.nodes[0].inputs[0]]
    before = probe.weight(unit, "outliers")
    probe.weights.clear()
    value.flat[:3] = 1000 * np.abs(value).max()
    assert probe.weight(unit, "outliers") == pytest.approx(4 / value.size) and before < 4 / value.size


def test_positions_that_nobody_attends_to_do_not_count(planner: Planner) -> None:
    norms = [n.output for n in planner.graph.nodes if n.op.name == "layer_norm"]
    graph = replace(planner.graph, outputs=(*planner.graph.outputs, norms[-1]))
    probe = Probe(graph, planner.stats, "minmax", tiny_feeds(2, 9, seed=3))
    assert list(probe.counted) == [norms[-1]]
    assert np.array_equal(probe.counted[norms[-1]], probe.feeds["attention_mask"].astype(bool))
    unit = units_of(graph, Plan(), "auto", EVERYTHING)[0]
    before = probe.noise(unit, unit.choices[0], "output")
    probe.values[norms[-1]][0, 6:] *= 1000  # only padding
    assert probe.noise(unit, unit.choices[0], "output") == before


def test_noises_add_up_to_that_of_the_integer_graph(planner: Planner) -> None:
    units = units_of(planner.graph, Plan(), "auto", EVERYTHING)
    noises = measure_noises(planner.graph, planner.stats, "minmax", planner.samples, units)
    total = sum(row[0] for row in noises.table)
    tried: list = []
    eight = Plan(default=Choice(activations=8))
    planner.judge(eight, "start", parse_target("sqnr>=0"), tried)
    assert 0.3 < total / 10 ** (-tried[0]["sqnr"] / 10) < 3


def test_an_interrupt_keeps_what_was_measured(planner: Planner) -> None:
    units = units_of(planner.graph, Plan(), "auto", EVERYTHING)
    steps: list[str] = []

    def tell(step: str) -> None:
        steps.append(step)
        if len(steps) == 20:
            raise KeyboardInterrupt

    noises = measure_noises(planner.graph, planner.stats, "minmax", planner.samples[:2], units, "local", tell)
    measured = np.concatenate(noises.table)
    assert not noises.complete and np.isfinite(measured).sum() == 20
    assert "interrupted" in steps[-1]


def test_the_programme_finds_the_optimum() -> None:
    rng = np.random.default_rng(3)
    noise, seconds, size = rng.uniform(0, 1, (3, 5, 3)).tolist()
    noise[2][1] = np.inf
    table = Table(noise, seconds, size, np.zeros((5, 3)).tolist())
    every = [p for p in product(range(3), repeat=5) if p[2] != 1]
    within = [p for p in every if table.total(noise, p) <= 2.2 and table.total(size, p) <= 3]
    best = min(within, key=lambda p: table.total(seconds, p))
    assert solve(table, max_noise=2.2, max_bytes=3) == list(best)
    within = [p for p in every if table.total(seconds, p) <= 2.0]
    assert solve(table, max_seconds=2.0) == list(min(within, key=lambda p: table.total(noise, p)))
    assert solve(table, max_bytes=0.01) is None


def test_the_search_writes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """A problem for which HiGHS 1.12 has a line of debugging on standard output."""
    rng = np.random.default_rng(132)
    bits = [[16.0, 36.0, 64.0, 128.0][:k] for k in rng.integers(2, 5, 30)]
    noise = [[10 ** rng.uniform(-3, 1) * 2 ** (-b / 16) for b in row] for row in bits]
    seconds = [[rng.uniform(0.5, 1.5) * b**0.5 for b in row] for row in bits]
    limits = {"max_bytes": sum(map(max, bits)) / 2, "max_seconds": 0.7 * sum(map(max, seconds))}
    assert solve(Table(noise, seconds, bits, bits), **limits)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("text", ["sqnr", "sqnr>30", "snr>=30", "cosine>=2", "sqnr>=1e", "sqnr>=nan", ""])
def test_targets_are_parsed(text: str) -> None:
    assert str(parse_target("cosine >= 0.998")) == "cosine>=0.998"
    with pytest.raises(UsageError, match="expected 'sqnr>=DB'"):
        parse_target(text)


def test_targets_widen_only_what_they_need(planner: Planner) -> None:
    tried: list = []
    eight = Plan(default=Choice(activations=8))
    planner.judge(eight, "start", parse_target("sqnr>=0"), tried)
    at_start = tried[0]["sqnr"]  # depends on the machine in its digits: rounding weights is float work
    near = planner.search(eight, Search(), parse_target(f"sqnr>={at_start + 2:.3f}"))
    assert wide_share(planner.graph, near.plan) > 0
    *narrower, last = [row["sqnr"] for row in near.report["judged"]]
    assert last >= at_start + 1.999 > max(narrower), "the first plan that is wide enough is taken"
    assert planner.search(eight, Search(), parse_target(f"sqnr>={at_start - 1:.3f}")).plan == eight


def test_an_impossible_target_fails_with_the_table(planner: Planner) -> None:
    with pytest.raises(AccuracyNotReached, match=r"no plan reaches sqnr>=90 \(judged: plan start") as caught:
        planner.search(Plan(), Search(), parse_target("sqnr>=90"))
    values = [float(row["sqnr"]) for row in caught.value.tried]
    assert len(values) > 1 and max(values) < 90


def test_a_predicate_sees_candidates(planner: Planner) -> None:
    feeds = tiny_feeds(2, 16)
    wanted = planner.graph.evaluate(feeds)[0]
    errors: list[float] = []

    def close(run: intc.planning.target.Run) -> bool:
        errors.append(float(np.abs(run(feeds)[0] - wanted).max()))
        return len(errors) > 1

    found = planner.search(Plan(), Search(), close)
    assert len(errors) == 2 == len(found.report["judged"])
    assert any(choice.activations == 16 for choice in found.plan.nodes.values())


def test_auto_keeps_a_size(planner: Planner) -> None:
    limit = 30_000
    found = planner.search(None, Search(max_bytes=limit), None)
    widths = found.plan.resolve(planner.graph).choices
    units = units_of(planner.graph, Plan(), "auto", EVERYTHING)
    linears = [n for u in units for n in u.nodes if is_linear(planner.graph, n)]
    sizes = {n.output: planner.graph.constants[n.inputs[1]].size for n in linears}
    assert sum(size * (widths[n].weights or 8) / 8 for n, size in sizes.items()) <= limit
    with pytest.raises(UsageError, match="no plan keeps the limits"):
        planner.run(Plan(), EVERYTHING, Goal(max_bytes=10))


def test_kernels_are_timed_where_the_target_runs(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    units = units_of(planner.graph, Plan(), "auto", EVERYTHING)
    some = [next(u for u in units if u.nodes[0].op.name == name) for name in ("matmul", "gelu")]
    probe = Probe(planner.graph, planner.stats, "minmax", planner.samples[0])
    seconds = latency.costs(probe, some, resolve("native"), lambda step: None)
    assert [len(row) for row in seconds] == [4, 3]
    assert all(0 < s < 1 for row in seconds for s in row)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(tiny_encoder(), tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", **tiny_feeds(16, 24, seed=5))
    base = ["compile", str(tmp_path / "m.onnx"), "--calibration", str(tmp_path / "c.npz")]
    plan, start = tmp_path / "plan.json", tmp_path / "start.json"
    Plan(default=Choice(activations=8)).save(start)
    goal = ["--bits", str(start), "--accuracy-target", "sqnr>=36.5"]
    assert main([*base, *goal, "--save-plan", str(plan)]) == 0
    chosen = intc.open_module(tmp_path / "m.intc").plan
    assert chosen.nodes and json.loads(plan.read_text()) == chosen.as_json()
    artifact = (tmp_path / "m.intc").read_bytes()
    assert main([*base, "--accuracy-target", "sqnr>=90"]) == 1
    assert "no plan reaches sqnr>=90" in capsys.readouterr().err
    assert (tmp_path / "m.intc").read_bytes() == artifact
    for bad in (
        ["--bits", "none.json"],
        ["--families", "magic"],
        ["--sensitivity", "x"],
        ["--max-slowdown", "0.5"],
    ):
        assert main([*base, *bad]) == 2


@pytest.mark.parametrize(
    ("batch", "count", "kept"), [(3, 50, 42), (20, 60, 52), (1, 40, 32), (4, 36, 36), (64, 64, 56)]
)
def test_judged_samples_are_not_calibrated_on(planner: Planner, batch: int, count: int, kept: int) -> None:
    feeds = tiny_feeds(count, 8)
    parts = [{n: a[i : i + batch] for n, a in feeds.items()} for i in range(0, count, batch)]
    left = list(held_apart(planner.graph, parts))
    for name, array in feeds.items():
        found = np.concatenate([part[name] for part in left])
        assert np.array_equal(found, array[count - kept :])
