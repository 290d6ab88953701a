"""More than 8 bits where the outputs would lose too much, and the widths that this takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import intc
from intc import api
from intc.calibration import collect, open_feeds
from intc.frontend import import_onnx
from intc.passes import pipeline
from intc.passes.plan import Choice, Plan
from intc.planning import floor
from intc.planning.sensitivity import Options, Probe, units_of
from intc.report.reference import fidelity
from tests.onnx_models import expected, model

WIDTH, LENGTH = 32, 12


def sharp(gain: float, length: int | str = LENGTH) -> onnx.ModelProto:
    """Attention whose softmax is nearly a maximum: the error of a score is multiplied by ``gain``."""
    rng = np.random.default_rng(0)
    weights = {k: rng.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32) for k in ("a", "b", "c", "d")}
    weights["gain"] = np.float32([gain])
    return model(
        "q = MatMul(x, a) k = MatMul(x, b) v = MatMul(x, c) kt = Transpose<perm=[0, 2, 1]>(k)"
        " s = MatMul(q, kt) t = Mul(s, gain) p = Softmax<axis=-1>(t) w = MatMul(p, v) y = MatMul(w, d)",
        f"float[batch, {length}, {WIDTH}] x",
        "float[batch, other, width] y",
        weights,
    )


def feeds(count: int, seed: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(count, LENGTH, WIDTH)).astype(np.float32)}


def calibrated(proto: onnx.ModelProto, data: dict[str, np.ndarray]) -> tuple[Any, dict[str, Any]]:
    """The canonical graph's pipeline, and what calibration saw of it."""
    state = pipeline.canonicalise(import_onnx(proto))
    state, batches = api.equalised(state, open_feeds(state.graph, data))
    return state, collect(state.graph, batches, products=True)


def reached(module: intc.Module, proto: onnx.ModelProto) -> float:
    """The SQNR of the kernels on other data, where they give the graph's own integers."""
    held = feeds(32, 2)
    (found,) = module.session().run(None, held)
    np.testing.assert_array_equal(found, module.graph.evaluate(held)[0])
    return fidelity(found, expected(proto, held)[0])["sqnr_db"]


def test_a_model_that_8_bits_lose_gets_more(tmp_path: Path) -> None:
    """It keeps the floor on other data, the artifact tells how, and the plan gives the same graph again."""
    proto = sharp(60.0)
    onnx.save(proto, tmp_path / "model.onnx")
    module = intc.compile(tmp_path / "model.onnx", feeds(64, 1))
    assert reached(module, proto) > floor.FLOOR
    first, *_, last = module.provenance["planning"]["judged"]
    assert first["plan"] == "8 bits" and first["sqnr"] < floor.FLOOR < last["sqnr"]
    state, stats = calibrated(proto, feeds(64, 1))
    assert str(pipeline.integerise(state, stats, plan=module.plan).graph) == str(module.graph)


def test_where_one_number_decides_all_are_wide(tmp_path: Path) -> None:
    """The softmax is a maximum: what a few finer products gain is chance, and no other few are tried."""
    onnx.save(sharp(3000.0), tmp_path / "model.onnx")
    planning = intc.compile(tmp_path / "model.onnx", feeds(64, 1)).provenance["planning"]
    eight, few, widest = planning["judged"]
    assert few["sqnr"] < eight["sqnr"] + 1 and few["plan"] != widest["plan"] == "all nodes at their widest"
    assert widest["sqnr"] > 60 and f"gives {widest['sqnr']:.1f} dB" in planning["told"]


def quantiser(rows: int) -> onnx.ModelProto:
    """Of ``rows`` vectors the one that is nearest to each token (VQ), of which 8 bits choose some wrongly."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)), "c": rng.normal(size=(WIDTH, rows))}
    weights["t"] = 4 * weights["c"].T.copy()
    return model(
        "h = MatMul(x, w) s = MatMul(h, c) i = ArgMax<axis=2, keepdims=0>(s) q = Gather(t, i) y = Add(h, q)",
        f"float[batch, {LENGTH}, {WIDTH}] x",
        "float[batch, length, width] y",
        {name: array.astype(np.float32) for name, array in weights.items()},
    )


def test_where_few_samples_choose_otherwise_all_is_wide(tmp_path: Path) -> None:
    """All samples are looked at, and no plan between the two ends is."""
    proto = quantiser(32)
    onnx.save(proto, tmp_path / "model.onnx")
    module = intc.compile(tmp_path / "model.onnx", feeds(64, 1))
    eight, widest = module.provenance["planning"]["judged"]
    assert eight["sqnr"] < floor.NEAR < 40 < widest["sqnr"]
    assert reached(module, proto) > floor.NEAR


def test_what_little_work_gains_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the plans within ``WORTH`` more work than 8 bits the one of the least noise."""
    onnx.save(sharp(10.0), tmp_path / "model.onnx")
    monkeypatch.setattr(floor, "WORTH", 0.0)
    least = intc.compile(tmp_path / "model.onnx", feeds(64, 1)).provenance["planning"]["judged"]
    monkeypatch.setattr(floor, "WORTH", 1.0)
    *_, before, last = intc.compile(tmp_path / "model.onnx", feeds(64, 1)).provenance["planning"]["judged"]
    assert before == least[-1] and last["sqnr"] > before["sqnr"]


def test_near_the_floor_little_more_work_is_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One plan is judged beside 8 bits, and taken where it is better."""
    onnx.save(sharp(2.0), tmp_path / "model.onnx")
    for name, value in (("NEAR", 60.0), ("CLEAR", 60.0), ("WORTH", 1.0)):
        monkeypatch.setattr(floor, name, value)
    module = intc.compile(tmp_path / "model.onnx", feeds(64, 1))
    first, last = module.provenance["planning"]["judged"]
    assert floor.FLOOR + floor.SPARE < first["sqnr"] < last["sqnr"] and module.plan.nodes


def test_other_models_keep_8_bits(tmp_path: Path) -> None:
    onnx.save(sharp(0.2), tmp_path / "model.onnx")
    module = intc.compile(tmp_path / "model.onnx", feeds(64, 1))
    assert not module.plan.nodes and "planning" not in module.provenance


def test_nothing_is_looked_at_behind_samples_that_are_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch ends it where it is far above the floor, two where they are above it."""
    onnx.save(sharp(60.0), tmp_path / "model.onnx")
    for name, looked in (("AT_ONCE", 1), ("CLEAR", 2)):
        counted = list[int]()
        monkeypatch.setattr(floor, name, 0.0)
        outputs = floor.Planner.outputs
        monkeypatch.setattr(
            floor.Planner, "outputs", lambda p, g, i, f=outputs, c=counted: c.append(i) or f(p, g, i)
        )
        module = intc.compile(tmp_path / "model.onnx", feeds(64, 1))
        assert len(counted) == looked and "planning" not in module.provenance
        monkeypatch.undo()


def test_a_model_without_products_has_no_more_bits_to_get(tmp_path: Path) -> None:
    """Of an input with this tail 16 bits leave most numbers no digit."""
    proto = model("y = Log(x)", f"float[batch, {WIDTH}] x", "float[a, b] y")
    onnx.save(proto, tmp_path / "m.onnx")
    data = {"x": np.exp(4 * np.random.default_rng(1).normal(size=(64, WIDTH))).astype(np.float32)}
    module = intc.compile(tmp_path / "m.onnx", data)
    assert "planning" not in module.provenance
    assert fidelity(module.session().run(None, data)[0], expected(proto, data)[0])["sqnr_db"] < floor.FLOOR


@pytest.mark.parametrize("choice", [Choice(16, 16), Choice(16, 16, values=16)], ids=["weights", "values"])
def test_kernels_of_wide_weights_and_values(choice: Choice, tmp_path: Path) -> None:
    """They equal the graph, and are nearer to float by what the bits are worth."""
    proto = sharp(2.0)
    onnx.save(proto, tmp_path / "model.onnx")
    state, stats = calibrated(proto, feeds(64, 1))
    held = feeds(32, 2)
    (eight,) = pipeline.integerise(state, stats).graph.evaluate(held)
    at_8 = fidelity(eight, expected(proto, held)[0])["sqnr_db"]
    module = intc.compile(tmp_path / "model.onnx", feeds(64, 1), bits=Plan(default=choice))
    assert reached(module, proto) > at_8 + (15 if choice.values else 8)


def test_values_of_a_free_number_of_keys_are_of_two_parts(tmp_path: Path) -> None:
    """Their weights keep 8 bits, which leave sums of any length 32."""
    proto = sharp(2.0, "length")
    onnx.save(proto, tmp_path / "model.onnx")
    finer, coarser = (
        intc.compile(tmp_path / "model.onnx", feeds(64, 1), bits=Plan(default=Choice(16, 16, values=bits)))
        for bits in (16, 8)
    )
    assert reached(finer, proto) > reached(coarser, proto) + 6


def test_the_noise_of_windows_and_of_values_is_measured() -> None:
    """Each choice alone: a product that reads windows, and one of softmax weights and values."""
    rng = np.random.default_rng(0)
    conv = "Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>"
    weights = {"w": rng.normal(size=(8, 3, 3, 3)), "u": rng.normal(size=(4, 8, 3, 3))}
    proto = model(
        f"h = {conv}(x, w) r = Relu(h) y = {conv}(r, u)",
        "float[batch, 3, 8, 8] x",
        "float[batch, c, h, w] y",
        {name: array.astype(np.float32) for name, array in weights.items()},
    )
    image = {"x": rng.normal(size=(8, 3, 8, 8)).astype(np.float32)}
    for network, data, count in ((proto, image, 2), (sharp(2.0), feeds(8, 1), 6)):
        state, stats = calibrated(network, data)
        probe = Probe(state.graph, stats, "mse", data)
        units = units_of(state.graph, Plan(), "auto", Options((), (8, 16), values=(8, 16)))
        products = [u for u in units if u.nodes[0].op.name == "matmul"]
        assert sum(len(u.nodes) for u in products) == count
        for unit in products:
            noises = {c: probe.noise(unit, c, "output") for c in unit.choices}
            narrow, wide = (next(c for c in noises if bits in (c.activations, c.values)) for bits in (8, 16))
            assert 0 < noises[wide] < 0.8 * noises[narrow] < 0.1
