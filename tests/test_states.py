"""States of decoders: step by step, in pieces, copied, cut and selected: always the bits of the whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import intc
from intc.artifact import schema
from intc.errors import ArtifactCorrupt, FeedError, UsageError
from intc.frontend import import_onnx
from intc.ir.text import parse_graph, print_graph, side_tensors
from intc.module import open_module
from intc.ops import OPS
from intc.report.nodes import check_nodes
from intc.report.reading import read_graph
from intc.report.verify import verify_artifact
from intc.runtime import Session
from intc.runtime.state import Past, State, held_by
from tests.emulated import emulation
from tests.native import random_feed
from tests.onnx_models import model
from tests.small import small_module

DECODER = Path(__file__).resolve().parents[1] / "examples" / "decoder" / "llama_characters.onnx"
Ids = NDArray[np.int64]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoder") / "decoder.intc"
    calibration = {"input_ids": ids(16, 40, seed=1)}
    intc.compile(DECODER, calibration, rounding="nearest").save(path)
    return path


@pytest.fixture(scope="module")
def session(artifact: Path) -> Session:
    return intc.load(artifact)


def ids(batch: int, length: int, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).integers(0, 96, (batch, length))


def whole(session: Session, text: Ids) -> NDArray[np.int16]:
    """The integers of all logits, in one run without a past."""
    state = session.create_state(len(text))
    return session.run(["logits"], {"input_ids": text}, state=state, raw=True)[0]


@pytest.mark.parametrize("cuts", [(1,) * 24, (10, 1, 1, 12), (23, 1), (1, 23)])
@pytest.mark.parametrize("batch", [1, 3])
def test_pieces_give_the_bits_of_the_whole(session: Session, batch: int, cuts: tuple[int, ...]) -> None:
    text = ids(batch, 24)
    state, parts = session.create_state(batch), []
    for piece in np.split(text, np.cumsum(cuts)[:-1], axis=1):
        parts += session.run(["logits"], {"input_ids": piece}, state=state, raw=True)
    assert state.length == 24
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole(session, text))


def test_long_texts_grow_the_state(session: Session) -> None:
    text = ids(1, 300)
    state = session.create_state()
    sizes = set()
    for i in range(300):
        (last,) = session.run(["logits"], {"input_ids": text[:, i : i + 1]}, state=state, raw=True)
        sizes.add(state.nbytes)
    assert len(sizes) < 24, "memory is taken in ever larger steps"
    np.testing.assert_array_equal(last[:, 0], whole(session, text)[:, -1])


def test_two_threads_and_interleaved_states(artifact: Path) -> None:
    session = intc.load(artifact, threads=2)
    texts, states = [ids(2, 9, seed) for seed in (1, 2)], [session.create_state(2) for _ in range(2)]
    parts: list[list[NDArray[np.int16]]] = [[], []]
    for i in range(9):
        for text, state, found in zip(texts, states, parts, strict=True):
            found += session.run(["logits"], {"input_ids": text[:, i : i + 1]}, state=state, raw=True)
    for text, found in zip(texts, parts, strict=True):
        np.testing.assert_array_equal(np.concatenate(found, axis=1), whole(session, text))


def test_copy_truncate_select(session: Session) -> None:
    text = ids(3, 12)
    state = session.create_state(3)
    session.run(None, {"input_ids": text[:, :8]}, state=state)
    fork = state.copy()
    expected = whole(session, text)

    def further(one: intc.runtime.State, rows: Ids, start: int) -> NDArray[np.int16]:
        return session.run(["logits"], {"input_ids": rows[:, start:]}, state=one, raw=True)[0]

    np.testing.assert_array_equal(further(state, text, 8), expected[:, 8:])
    state.truncate(5)
    np.testing.assert_array_equal(further(state, text, 5), expected[:, 5:])
    fork.select([2, 0, 2, 1])
    assert (fork.batch, fork.length) == (4, 8)
    np.testing.assert_array_equal(further(fork, text[[2, 0, 2, 1]], 8), expected[[2, 0, 2, 1], 8:])
    state.truncate(0)
    np.testing.assert_array_equal(further(state, text, 0), expected)


def test_a_gpu_holds_states_of_its_own(artifact: Path, session: Session) -> None:
    """Steps, cuts, selections and copies on an emulated device: always the integers of the CPU."""

    def equal(one: State, other: State) -> None:
        assert (one.length, one.batch, one.nbytes) == (other.length, other.batch, other.nbytes)
        np.testing.assert_equal(one.arrays(), other.arrays())

    with emulation():
        gpu, text = open_module(artifact, "cuda").session(), ids(2, 16)
        here, there = session.create_state(2), gpu.create_state(2)

        def step(rows: Ids, on_device: bool = False) -> None:
            (want,) = session.run(["logits"], {"input_ids": rows}, state=here, raw=True)
            feeds = {"input_ids": rows}
            got = (
                gpu.run(["logits"], feeds, state=there, raw=True, on_device=True)[0].numpy()
                if on_device
                else gpu.run(["logits"], feeds, state=there, raw=True)[0]
            )
            np.testing.assert_array_equal(got, want)
            equal(there, here)

        for i, piece in enumerate(np.split(text, [5, 6, 7, 9], axis=1)):
            step(piece, on_device=i % 2 == 1)
        assert not gpu.gpu._graphs, "no length is captured"
        old = here.copy(), there.copy()
        for state in (here, there):
            state.truncate(7)
            state.select([1, 0, 0])
        step(text[[1, 0, 0], 7:9])
        equal(old[1], old[0])
        for state in (here, there):
            state.select([2])
            state.truncate(0)
        step(text[:1, :3])
        with pytest.raises(FeedError, match="the state was made by a session on another device"):
            gpu.run(None, {"input_ids": text}, state=here)


def test_states_are_also_plain_inputs_and_outputs(session: Session) -> None:
    """As in onnxruntime: the past as float arrays, or as the integers that came out."""
    text = ids(2, 10)
    empty = {p.name: np.zeros((2, 2, 0, 24), np.float32) for p in session.get_inputs() if "past" in p.name}
    first = session.run(None, {"input_ids": text[:, :6], **empty}, raw=True)
    past = dict(zip(empty, first[1:], strict=True))
    assert {a.dtype for a in past.values()} == {np.dtype(np.int8)}
    rest = session.run(["logits"], {"input_ids": text[:, 6:], **past}, raw=True)[0]
    np.testing.assert_array_equal(rest, whole(session, text)[:, 6:])
    scales = {p.name: p.scale for p in session.get_inputs()}
    floats = {name: array.astype(np.float32) * np.float32(scales[name]) for name, array in past.items()}
    again = session.run(["logits"], {"input_ids": text[:, 6:], **floats}, raw=True)[0]
    np.testing.assert_array_equal(again, rest)
    pairs = {i.name: o for i, o in zip(session.get_inputs()[1:], session.get_outputs()[1:], strict=True)}
    assert all(pairs[name].scale == scale for name, scale in scales.items() if "past" in name)


def test_verify_covers_states(artifact: Path) -> None:
    result = verify_artifact(artifact, {"input_ids": ids(3, 7)})
    assert result.passed and [run["batches"] for run in result.runs] == [2, 3, 2, 3]


def test_nodes_with_negative_scales_are_checked(artifact: Path) -> None:
    """The half of a rotated vector that changes its sign is the same integers at a negative scale."""
    graph = read_graph(artifact)[1]
    assert any(np.min(value.scale) < 0 for value in graph.values.values() if value.scale is not None)
    sizes = dict.fromkeys(graph.symbols(), 2)
    feeds = {n: random_feed(graph.type(n), sizes, np.random.default_rng(1)) for n in graph.inputs}
    assert all(check.differences == 0 for check in check_nodes(graph, "native", feeds))


def test_wrong_use(session: Session, tmp_path: Path) -> None:
    state = session.create_state(2)
    with pytest.raises(FeedError, match=r"shape \[2, 2, 0, 24\].*the state holds 2 sequences"):
        session.run(None, {"input_ids": ids(3, 4)}, state=state)
    with pytest.raises(FeedError, match="an output that the state holds"):
        session.run(["present.0.key"], {"input_ids": ids(2, 4)}, state=state)
    with pytest.raises(FeedError, match=r"input 'past\.0\.key' is missing"):
        session.run(None, {"input_ids": ids(2, 4)})
    with pytest.raises(FeedError, match=r"input 'past\.0\.key' is not known; the model takes input_ids$"):
        session.run(
            None, {"input_ids": ids(2, 4), "past.0.key": np.zeros((2, 2, 0, 24), np.int8)}, state=state
        )
    assert state.length == 0, "a refused run leaves the state as it was"
    with pytest.raises(UsageError, match="holds 0 positions and cannot be cut to 1"):
        state.truncate(1)
    for rows in ([], [2], [-1], [[0]], [0.5]):
        with pytest.raises(UsageError, match="sequence"):
            state.select(rows)
    with pytest.raises(UsageError, match="batch=0 is not a positive number"):
        session.create_state(0)
    small_module().save(tmp_path / "small.intc")
    other = intc.load(tmp_path / "small.intc")
    with pytest.raises(UsageError, match="keeps no state; export it with past keys"):
        other.create_state()
    with pytest.raises(FeedError, match="the state was made for another model"):
        other.run(None, {}, state=state)


def test_import_finds_states() -> None:
    graph = import_onnx(DECODER)
    assert list(graph.states) == [f"past.{i}.{part}" for i in range(4) for part in ("key", "value")]
    assert [graph.outputs[i] for i in graph.states.values()][:2] == ["present.0.key", "present.0.value"]
    assert {str(graph.type(name).shape[2]) for name in graph.states} == {"past"}
    text = print_graph(graph)
    assert "state %past.0.key 1\n" in text
    assert parse_graph(text, side_tensors(graph), OPS.values()).states == graph.states


def test_a_fixed_window_is_no_state() -> None:
    def states(body: str, past: str, new: str) -> dict[str, int]:
        inputs = f"float[B,{past}] p, float[B,{new}] x"
        return import_onnx(model(body, inputs, "float[B,T] y, float[B,1] z")).states

    total = "z = ReduceSum<keepdims=1>(y, axes)"
    given = "axes = Constant<value_ints=[1]>()"
    assert states(f"{given} y = Concat<axis=1>(p, x) {total}", "P", "S") == {"p": 0}
    assert not states(f"{given} y = Concat<axis=1>(p, x) {total}", "4", "S")
    assert not states(f"{given} y = Concat<axis=1>(x, p) {total}", "P", "4"), "new positions come last"
    unread = f"{given} y = Concat<axis=1>(p, x) z = ReduceSum<keepdims=1>(x, axes)"
    assert not states(unread, "P", "S"), "nothing reads what is kept"


def test_memory_that_shrinks_is_planned_exactly(artifact: Path) -> None:
    """Working memory is planned for a rounded length, unless a longer past needs less of it."""
    manifest = schema.read_manifest(schema.Container(artifact))
    for slot, exact in (("2*past + 64", False), ("-1*past + 1024", True), ("-1*s70 + 64", False)):
        program = replace(manifest.program, slots=(slot,), scratch=())
        past = Past(replace(manifest, program=program), held_by(manifest))
        assert past.exact is exact, slot


def test_damaged_states_are_refused(artifact: Path) -> None:
    manifest = schema.read_manifest(schema.Container(artifact))
    wrong = ("past.0.key", "logits"), ("past.0.key", "nothing"), ("input_ids", "present.0.key")
    for pair in wrong:
        damaged = schema.encode(replace(manifest, states=(pair,)))
        with pytest.raises(ArtifactCorrupt, match="damaged"):
            schema.decode(damaged, artifact)
