"""The session: equal to ``evaluate``, strict about feeds, safe under threads, independent of the compiler."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import intc
from intc.artifact.schema import Port
from intc.errors import FeedError, UsageError
from intc.ir.graph import Value, quantize_feed
from intc.ir.types import TensorType
from intc.runtime import Session, feeds, native
from intc.runtime.native import ALIGN, aligned, aligned_like
from intc.runtime.workspace import Workspace
from tests.small import CLASSES, FEATURES, ROWS, small_feeds, small_graph, small_module


@pytest.fixture(scope="module", params=[1, 2])
def session(request: pytest.FixtureRequest, artifact: Path) -> Session:
    return intc.load(artifact, threads=request.param)


def check(session: Session, given: dict[str, Any], exact: dict[str, Any] | None = None) -> None:
    for ours, theirs in zip(session.run(None, given), small_graph().evaluate(exact or given), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


@pytest.mark.parametrize("batch", [1, 2, 7, 64, 300])
def test_equals_the_reference(session: Session, batch: int) -> None:
    check(session, small_feeds(batch, batch))


def test_ports(session: Session) -> None:
    x, ids = session.get_inputs()
    assert (x.name, x.shape, x.type) == ("x", ["batch", FEATURES], "tensor(float)")
    assert (x.dtype, x.scale, x.interval) == ("int8", 0.05, (-127, 127))
    assert (ids.name, ids.shape, ids.type) == ("ids", ["batch"], "tensor(int64)")
    logits, sums = session.get_outputs()
    assert (logits.name, logits.shape, logits.type) == ("logits", ["batch", CLASSES], "tensor(float)")
    assert sums.type == "tensor(int32)"


def test_output_names_select_and_order(session: Session) -> None:
    given = small_feeds(3)
    logits, sums = session.run(None, given)
    again = session.run(["sums", "logits", "sums"], given)
    for ours, theirs in zip(again, (sums, logits, sums), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert session.run([], given) == []
    with pytest.raises(FeedError, match="output 'nope' is not known; the model gives logits, sums"):
        session.run(["nope"], given)


def test_integers_in_and_out(session: Session) -> None:
    given = small_feeds(4)
    graph = small_graph()
    integers = {"x": quantize_feed(graph.values["x"], given["x"]), "ids": given["ids"]}
    raw = session.run(None, integers, raw=True)
    for ours, name in zip(raw, graph.outputs, strict=True):
        np.testing.assert_array_equal(ours, graph.run(integers)[name])
        assert ours.dtype == graph.type(name).dtype


def test_outputs_are_fresh(session: Session) -> None:
    first = session.run(None, small_feeds(2, 1))
    kept = [a.copy() for a in first]
    session.run(None, small_feeds(2, 2))
    for a, b in zip(first, kept, strict=True):
        np.testing.assert_array_equal(a, b)


def test_integer_outputs_are_fresh(session: Session) -> None:
    first = session.run(None, small_feeds(2, 1), raw=True)
    kept = [a.copy() for a in first]
    session.run(None, small_feeds(2, 2), raw=True)
    for a, b in zip(first, kept, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_refused_feed_leaves_the_session_usable(session: Session) -> None:
    given = small_feeds(2)
    for _ in range(6):
        with pytest.raises(FeedError):
            session.run(None, {**given, "x": np.full_like(given["x"], np.nan)})
        check(session, given)


def test_memory_is_used_again_for_other_sizes(session: Session) -> None:
    for batch in (9, 2, 9, 300, 1, 2, 300):
        check(session, small_feeds(batch, batch))
        workspace = session.prepare(small_feeds(batch))
        for array in (workspace.block, *workspace.inputs, *workspace.outputs):
            assert array.ctypes.data % ALIGN == 0


def test_any_memory_layout_will_do(session: Session) -> None:
    given = small_feeds(6)
    x = given["x"]
    backing = np.empty(x.nbytes + 3, np.uint8)
    unaligned = backing[3:].view(np.float32).reshape(x.shape)
    unaligned[:] = x
    wide = np.zeros((6, 2 * FEATURES), np.float32)
    wide[:, ::2] = x
    read_only = x.copy()
    read_only.flags.writeable = False
    layouts = (unaligned, wide[:, ::2], np.asfortranarray(x), read_only, x[::-1][::-1], x.tolist())
    for layout in layouts:
        check(session, {**given, "x": layout}, given)
    ids = aligned_like((6,), "int64")
    ids[:] = given["ids"]
    for index in (ids, ids[::-1][::-1], given["ids"].astype(np.int32), given["ids"].astype(np.uint8)):
        check(session, {**given, "ids": index}, given)
    for dtype in (np.float16, np.float64):
        check(session, {**given, "x": x.astype(dtype)})


def bad(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {**small_feeds(2), **changes}
    return {name: value for name, value in given.items() if value is not None}


X = np.zeros((2, FEATURES), np.float32)
REFUSED = {
    "missing": (bad(x=None), "input 'x' is missing; the model takes x, ids"),
    "unknown": (bad(y=X), "input 'y' is not known"),
    "rank": (bad(x=X[0]), r"input 'x' has shape \[24\], expected \[batch, 24\]"),
    "size": (bad(x=X[:, :-1]), r"input 'x' has shape \[2, 23\], expected \[batch, 24\]"),
    "batches differ": (
        bad(ids=np.zeros(3, np.int64)),
        r"input 'ids' has shape \[3\], expected \[batch\], batch = 2",
    ),
    "empty": (bad(x=X[:0], ids=np.zeros(0, np.int64)), r"input 'x' has shape \[0, 24\]"),
    "nan": (bad(x=np.where(X == 0, np.nan, X)), "input 'x' holds NaN or infinite values"),
    "infinite": (bad(x=X - np.float32("inf")), "input 'x' holds NaN or infinite values"),
    "float index": (bad(ids=np.zeros(2)), "input 'ids' is float64, expected int64"),
    "wrong integers": (bad(x=X.astype(np.int64)), r"input 'x' is int64, expected float32 \(or int8"),
    "uint8 pixels": (bad(x=X.astype(np.uint8)), r"input 'x' is uint8, expected float32 \(or int8"),
    "raw out of interval": (
        bad(x=np.full(X.shape, -128, np.int8)),
        r"input 'x' holds -128, outside \[-127, 127\]",
    ),
    "index too large": (bad(ids=np.array([0, ROWS])), f"input 'ids' holds {ROWS}, outside"),
    "index negative": (bad(ids=np.array([0, -1])), "input 'ids' holds -1, outside"),
    "complex": (bad(x=X.astype(complex)), "input 'x' is complex128"),
    "text": (bad(x=np.full(X.shape, "a")), "input 'x' is <U1"),
    "objects": (bad(x=X.astype(object)), "input 'x' is object"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_feeds_are_refused(session: Session, case: str) -> None:
    given, pattern = REFUSED[case]
    with pytest.raises(FeedError, match=pattern) as caught:
        session.run(None, given)
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    x=hnp.arrays(np.float32, (3, 5), elements=st.floats(-(2.0**99), 2.0**99, width=32)),
    scale=st.floats(1e-6, 1e6),
    dtype=st.sampled_from(["int8", "uint8", "int16"]),
)
def test_quantising_equals_the_reference(x: np.ndarray, scale: float, dtype: Any) -> None:
    type_ = TensorType((3, 5), dtype)
    lo, hi = type_.interval
    with np.errstate(over="ignore"):
        if not np.isfinite(x * np.float32(1.0 / scale)).all():
            return
    ours = np.empty((3, 5), dtype)
    feeds.write(Port("x", (3, 5), dtype, scale, lo, hi), x, ours)
    np.testing.assert_array_equal(ours, quantize_feed(Value("x", type_, scale), x))


def test_ties_round_to_even() -> None:
    port = Port("x", (5,), "int8", 1.0, -127, 127)
    ours = np.empty(5, np.int8)
    feeds.write(port, np.array([0.5, 1.5, -0.5, -2.5, 127.5], np.float32), ours)
    np.testing.assert_array_equal(ours, [0, 2, 0, -2, 127])


def test_aligned_memory() -> None:
    for size in (1, 63, 64, 1000):
        assert aligned(size).nbytes == size
        assert aligned(size).ctypes.data % ALIGN == 0


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", 10**6])
def test_thread_counts_are_checked(artifact: Path, threads: Any) -> None:
    with pytest.raises(UsageError, match="threads="):
        intc.load(artifact, threads=threads)


def test_concurrent_runs(session: Session) -> None:
    given = [small_feeds(n, n) for n in range(1, 9)]
    expected = [small_graph().evaluate(f) for f in given]
    wrong: list[int] = []

    def work(start: int) -> None:
        for i in range(start, start + 40):
            results = session.run(None, given[i % 8])
            equal = all(np.array_equal(a, b) for a, b in zip(results, expected[i % 8], strict=True))
            if not equal:
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def mapped() -> int:
    return Path("/proc/self/maps").read_text().count("kernels.so")


def test_kernels_are_mapped_for_as_long_as_they_are_used(artifact: Path) -> None:
    gc.collect()
    before = mapped()
    session = intc.load(artifact)
    entry = session.entry
    assert mapped() > before
    check(session, small_feeds(2))
    del session
    gc.collect()
    assert mapped() > before
    del entry
    gc.collect()
    assert mapped() == before


def test_an_interrupted_wait_lets_the_kernels_finish(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that another thread still writes to is neither freed nor given to the next run."""
    session = intc.load(artifact, threads=2)
    given = small_feeds(64)
    check(session, given)

    class Interrupted:
        def __init__(self, future: Any) -> None:
            self.future = future

        def result(self) -> None:
            raise KeyboardInterrupt

    crew = native._crew()
    running: list[Any] = []

    class Crew:
        def submit(self, *args: Any) -> Interrupted:
            running.append(crew.submit(*args))
            assert any(isinstance(a, Workspace) for a in args)
            return Interrupted(running[-1])

    kept = list(session._kept)
    monkeypatch.setattr(native, "_crew", Crew)
    caught: list[BaseException] = []

    def work() -> None:
        try:
            session.run(None, given)
        except KeyboardInterrupt as error:
            caught.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    running[0].result()
    assert len(caught) == 1
    assert not set(map(id, session._kept)) & set(map(id, kept))
    monkeypatch.undo()
    check(session, given)


def test_module_runs_without_a_file() -> None:
    given = small_feeds(3)
    for ours, theirs in zip(small_module().run(None, given), small_graph().evaluate(given), strict=True):
        np.testing.assert_array_equal(ours, theirs)


LIGHT = """
import sys
import intc
session = intc.load(sys.argv[1])
import numpy as np
session.run(None, {"x": np.zeros((1, 24), np.float32), "ids": np.zeros(1, np.int64)})
heavy = {"tvm", "onnx", "onnxruntime", "scipy", "networkx", "torch", "rich", "safetensors"}
heavy |= {"capstone", "elftools"}
ours = {m for m in sys.modules if m.startswith("intc.") and m.count(".") == 1}
print(sorted(heavy & set(sys.modules)), sorted(ours))
"""


def test_the_runtime_imports_nothing_of_the_compiler(artifact: Path) -> None:
    command = [sys.executable, "-c", LIGHT, str(artifact)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(intc.__file__).parents[1]
    )
    assert done.stdout.strip() == "[] ['intc.artifact', 'intc.errors', 'intc.loading', 'intc.runtime']"


def test_sessions_share_weights_in_a_private_folder(artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    sessions = [intc.load(artifact, share=folder) for _ in range(2)]
    (file,) = folder.iterdir()
    assert str(file) in Path("/proc/self/maps").read_text()
    expected = intc.load(artifact).run(None, small_feeds(5))
    for session in sessions:
        assert not session._constants.flags.writeable
        assert all(map(np.array_equal, session.run(None, small_feeds(5)), expected))
    file.write_bytes(file.read_bytes()[:-1])  # cut off: written again
    assert all(map(np.array_equal, intc.load(artifact, share=folder).run(None, small_feeds(5)), expected))
    folder.chmod(0o777)
    with pytest.raises(UsageError, match="not a folder in which only this user can write"):
        intc.load(artifact, share=folder)


def test_feeds_that_are_no_dict_of_arrays(session: Session) -> None:
    feed = small_feeds(2)
    for wrong, reason in (
        (None, "the feeds are a NoneType, not a dict"),
        ([feed["x"]], "the feeds are a list, not a dict"),
        ({**feed, "x": [[1.0, 2.0], [3.0]]}, "input 'x' cannot become an array of numpy"),
    ):
        with pytest.raises(FeedError, match=reason):
            session.run(None, wrong)  # type: ignore[arg-type]
    with pytest.raises(FeedError, match="are a list"):
        session.run("logits", feed)  # type: ignore[arg-type]


def test_finite_reals_beyond_the_range_saturate(session: Session) -> None:
    """Also where their quotient by the scale is no float32."""
    feed = small_feeds(3)
    far, end = ({**feed, "x": np.full_like(feed["x"], value)} for value in (3e38, 1e3))
    for ours, theirs in zip(session.run(None, far), session.run(None, end), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_session_is_neither_pickled_nor_copied(session: Session) -> None:
    for send in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(UsageError, match="cannot be pickled or copied"):
            send(session)


def test_a_forked_process_goes_on(session: Session) -> None:
    """It has none of the threads of the pool that has run before."""
    given, exact = small_feeds(5), small_graph().evaluate(small_feeds(5))
    check(session, given)
    child = os.fork()
    if not child:
        signal.alarm(20)  # instead of waiting for threads that are not there
        found = session.run(None, given)
        os._exit(not all(map(np.array_equal, found, exact)))
    assert os.waitpid(child, 0)[1] == 0
    check(session, given)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A pipe would be waited for."""
    os.mkfifo(tmp_path / "pipe.intc")
    with pytest.raises(UsageError, match="not a regular file"):
        intc.load(tmp_path / "pipe.intc")
