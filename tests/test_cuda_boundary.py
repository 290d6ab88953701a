"""Arrays of other libraries on an emulated device: the bits, the order of streams, how long memory lives.

What the emulator's streams are given they do as late as somebody waits for it, so an order that nobody asked
for is seen as wrong values.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import intc
from intc.codegen.lower import lower
from intc.errors import FeedError, UsageError
from intc.module import Module
from intc.runtime import Session, dlpack, feeds
from intc.runtime.cuda import driver as cuda
from intc.runtime.cuda.arrays import KEPT
from intc.runtime.cuda.driver import Device, Event, Memory
from tests.emulated import emulation
from tests.small import FEATURES, ROWS, small_feeds, small_graph, small_module

Values = NDArray[Any]
SEED = 11


@pytest.fixture(scope="module", autouse=True)
def emulated() -> Iterator[None]:
    with emulation():
        yield


@pytest.fixture(scope="module")
def session(emulated: None) -> Session:
    graph = small_graph()
    return Module(graph, graph, lower(graph, "cuda"), tuple(graph.outputs)).session()


class Tensor:
    """Of another library: on a stream of its own, which still has to fill it."""

    def __init__(self, values: Values, number: int = 0, kind: int = dlpack.CUDA) -> None:
        self.device, self.values = Device("cuda"), np.ascontiguousarray(values)
        self.place = kind, number
        with self.device.current():
            self.stream = cuda.new("cuStreamCreate", cuda.NON_BLOCKING)
            self.memory = Memory(self.device, values.nbytes)
            source = self.values.ctypes.data
            cuda.call("cuMemcpyHtoDAsync_v2", self.memory.address, source, values.nbytes, self.stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.place

    def __dlpack__(self, *, stream: int) -> Any:
        with self.device.current():
            Event(self.device, self.stream).before(ctypes.c_void_p(stream))
        values = self.values
        return dlpack.capsule_of(self.memory.address, values.shape, values.dtype, 0, self.memory)


class Interface:
    """The same, by ``__cuda_array_interface__`` alone."""

    def __init__(self, values: Values, **changes: Any) -> None:
        self.tensor = tensor = Tensor(values)
        self.__cuda_array_interface__ = {
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (tensor.memory.address, False),
            "stream": tensor.stream.value,
            "version": 3,
            **changes,
        }


class Bfloat(Tensor):
    """float32 without its low half."""

    def __dlpack__(self, *, stream: int) -> Any:
        capsule = super().__dlpack__(stream=stream)
        tensor = dlpack.DLManagedTensor.from_address(dlpack._get_pointer(capsule, dlpack.NAME)).tensor
        tensor.dtype.code = 4
        return capsule


def on_device(values: dict[str, Values]) -> dict[str, Any]:
    return {name: Tensor(array) for name, array in values.items()}


def seen_by(stream: ctypes.c_void_p, address: int, like: Values) -> Values:
    """What a consumer sees whose work is on ``stream``, the only one that it waits for."""
    out = np.zeros_like(like)
    with Device("cuda").current():
        cuda.call("cuMemcpyDtoHAsync_v2", out.ctypes.data, address, out.nbytes, stream)
        cuda.call("cuStreamSynchronize", stream)
    return out


def new_stream() -> ctypes.c_void_p:
    with Device("cuda").current():
        return cuda.new("cuStreamCreate", cuda.NON_BLOCKING)


@pytest.mark.parametrize("kind", [Tensor, Interface])
@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
def test_feeds_on_the_device_give_the_bits_of_the_host_s(session: Session, kind: Any, dtype: str) -> None:
    for batch in (1, 1, 1, 33):  # launched, captured, replayed
        given = small_feeds(batch, SEED)
        x = given["x"].astype(dtype)
        expected = session.run(None, {**given, "x": x})
        got = session.run(None, {"x": kind(x), "ids": kind(given["ids"].astype(np.int32))})
        assert all(map(np.array_equal, got, expected))


def test_half_of_a_float32_is_taken_as_well(session: Session) -> None:
    given = small_feeds(5)
    bits = (given["x"].view(np.uint32) >> 16).astype(np.uint16)
    x = (bits.astype(np.uint32) << 16).view(np.float32)
    got = session.run(None, {"x": Bfloat(bits), "ids": given["ids"]})
    assert all(map(np.array_equal, got, session.run(None, {**given, "x": x})))


@pytest.mark.parametrize("raw", [False, True])
def test_results_stay_on_the_device(session: Session, raw: bool) -> None:
    given = small_feeds(4)
    results = session.run(None, on_device(given), raw=raw, on_device=True)
    for got, want in zip(results, session.run(None, given, raw=raw), strict=True):
        assert (got.shape, got.dtype, got.nbytes, got.device) == (
            want.shape,
            want.dtype,
            want.nbytes,
            "cuda:0",
        )
        np.testing.assert_array_equal(got.numpy(), want)
        np.testing.assert_array_equal(np.asarray(got), want)
    assert repr(results[0]).startswith("DeviceArray(shape=(4, 10), dtype=")


def test_the_least_integer_may_stand_for_another_number(emulated: None) -> None:
    graph, given = small_graph(-50, -1e30), small_feeds(4)
    session = Module(graph, graph, lower(graph, "cuda"), tuple(graph.outputs)).session()
    (want,), (raw,) = session.run(["logits"], given), session.run(["logits"], given, raw=True)
    assert 0 < (raw == -50).sum() < raw.size
    assert ((want == np.float32(-1e30)) == (raw == -50)).all()
    np.testing.assert_array_equal(session.run(["logits"], given, on_device=True)[0].numpy(), want)


def test_a_result_is_not_overwritten(session: Session) -> None:
    feeds = [small_feeds(3, seed) for seed in range(5)]
    results = [session.run(["logits"], on_device(f), on_device=True)[0] for f in feeds]
    for given, got in zip(feeds, results, strict=True):
        np.testing.assert_array_equal(got.numpy(), session.run(["logits"], given)[0])


def test_consumers_wait_for_the_run(session: Session) -> None:
    """By DLPack on their own stream, and by the stream that the array names."""
    given = small_feeds(6)
    (want,) = session.run(["logits"], given)
    for _ in range(3):
        (got,) = session.run(["logits"], given, on_device=True)
        other = new_stream()
        capsule = got.__dlpack__(stream=other.value, max_version=(1, 0))
        tensor = dlpack.DLManagedTensor.from_address(dlpack._get_pointer(capsule, dlpack.NAME)).tensor
        assert (tensor.device.type, tensor.device.id, tensor.ndim) == (dlpack.CUDA, 0, 2)
        np.testing.assert_array_equal(seen_by(other, tensor.data, want), want)
        (got,) = session.run(["logits"], given, on_device=True)
        body = got.__cuda_array_interface__
        assert (body["shape"], body["typestr"], body["version"]) == ((6, 10), "<f4", 3)
        np.testing.assert_array_equal(seen_by(ctypes.c_void_p(body["stream"]), body["data"][0], want), want)


def test_without_an_order_the_emulator_shows_other_values(session: Session) -> None:
    """The check of the checks: a consumer that does not wait, and a producer that does not make us wait."""
    given = small_feeds(6)
    (want,) = session.run(["logits"], given)
    (got,) = session.run(["logits"], given, on_device=True)
    got.__dlpack__(stream=-1)
    early = seen_by(new_stream(), got.__cuda_array_interface__["data"][0], want)
    assert not np.array_equal(early, want)
    hasty = Interface(given["ids"], stream=None)
    with pytest.raises(FeedError, match=r"'ids' holds integers outside \[0, 49\]"):
        session.run(["logits"], {**given, "ids": hasty})


def test_results_are_read_like_other_arrays(session: Session) -> None:
    given = small_feeds(2)
    (logits,) = session.run(["logits"], given, on_device=True, raw=True)
    fed = np.zeros((2, FEATURES), np.int8)
    with pytest.raises(
        FeedError, match=r"'x' is int16 on the device, expected float32, float16, bfloat16 \(or"
    ):
        session.run(None, {"x": logits, "ids": given["ids"]})
    with pytest.raises(FeedError, match=r"'ids' has shape \[2, 10\]"):
        session.run(None, {"x": fed, "ids": logits})


def test_memory_lives_as_long_as_its_users(session: Session) -> None:
    given = small_feeds(2)
    (want,) = session.run(["logits"], given)
    (got,) = session.run(["logits"], given, on_device=True)
    before, capsule = len(dlpack._exported), got.__dlpack__(stream=1)
    unused = got.__dlpack__(stream=1)
    assert len(dlpack._exported) == before + 2
    del unused
    assert len(dlpack._exported) == before + 1
    managed = dlpack.DLManagedTensor.from_address(dlpack._get_pointer(capsule, dlpack.NAME))
    at = managed.tensor.data
    rename = dlpack._python("PyCapsule_SetName", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
    name = b"used_dltensor"
    rename(capsule, name)  # as a consumer does, who then calls the deleter when he is done
    del got, capsule
    gc.collect()
    np.testing.assert_array_equal(seen_by(ctypes.c_void_p(1), at, want), want)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(managed.deleter)(ctypes.addressof(managed))
    assert len(dlpack._exported) == before


def test_memory_is_used_again_behind_its_users(session: Session) -> None:
    """What was used on a default stream serves the next result, which waits for that stream; what was used
    elsewhere does not.
    """
    given = [small_feeds(7, seed) for seed in range(3)]
    for stream, again in ((1, True), (2, True), (None, True), (new_stream().value, False), (-1, False)):
        (first,) = session.run(["logits"], given[0], on_device=True)
        want, at = first.numpy(), first._lease.memory.address
        capsule, seen = first.__dlpack__(stream=stream), np.zeros_like(want)
        with Device("cuda").current():  # a consumer's work, that nobody waits for
            handle = ctypes.c_void_p(1 if stream in (None, -1) else stream)
            cuda.call("cuMemcpyDtoHAsync_v2", seen.ctypes.data, at, seen.nbytes, handle)
        del first, capsule
        gc.collect()
        (second,) = session.run(["logits"], given[1], on_device=True)
        np.testing.assert_array_equal(second.numpy(), session.run(["logits"], given[1])[0])
        if again:
            assert second._lease.memory.address == at
            np.testing.assert_array_equal(seen, want)
    kept = [[session.run(["logits"], small_feeds(b), on_device=True) for b in range(1, 40)]]
    del kept
    assert len(session.gpu._boundary._pool._kept) == KEPT  # type: ignore[union-attr]
    taken = [session.run(["logits"], g, on_device=True)[0] for g in given]
    assert len({r._lease.memory.address for r in taken}) == 3


def test_other_libraries_understand_the_capsule(session: Session) -> None:
    """``tvm_ffi`` reads the structure with its own code."""
    tvm_ffi = pytest.importorskip("tvm_ffi", reason="a dependency of TVM")
    (got,) = session.run(["logits"], small_feeds(3), on_device=True)
    before = len(dlpack._exported)
    tensor = tvm_ffi.from_dlpack(got)
    assert (tuple(tensor.shape), str(tensor.dtype), str(tensor.device)) == ((3, 10), "float32", "cuda:0")
    del tensor
    gc.collect()
    assert len(dlpack._exported) == before


def test_what_no_run_takes(session: Session) -> None:
    given = small_feeds(3)
    x, ids = given["x"], given["ids"]

    def refused(match: str, **feeds: Any) -> None:
        for on in (False, True):
            with pytest.raises(FeedError, match=match):
                session.run(None, {**given, **feeds}, on_device=on)
            session.run(None, on_device(given), on_device=on)

    for odd in (np.nan, np.inf, np.float32(3e38)):
        refused("'x' holds NaN or infinite values", x=Tensor(np.where(x == x[1, 3], np.float32(odd), x)))
    refused(r"'ids' holds integers outside \[0, 49\]", ids=Tensor(np.where(ids == ids[2], ROWS, ids)))
    refused(r"'x' holds integers outside \[-127, 127\]", x=Tensor(np.full(x.shape, -128, np.int8)))
    refused("'x' is float64 on the device, expected float32", x=Tensor(x.astype(np.float64)))
    refused("'x' is int32 on the device, expected float32", x=Tensor(x.astype(np.int32)))
    refused("'ids' is float32 on the device, expected int64", ids=Tensor(ids.astype(np.float32)))
    refused("'ids' is uint32 on the device, expected int64", ids=Tensor(ids.astype(np.uint32)))
    refused("'x' lies on cuda:1, but the session runs on cuda:0", x=Tensor(x, number=1))
    refused("'x' lies on DLPack device type 8:0, but", x=Tensor(x, kind=8))
    refused("'x' is not contiguous", x=Interface(x, strides=(4, 12)))
    refused("'x' lies on cuda:-1", x=Interface(x, data=(12345, False)))
    refused(r"'x' has shape \[3, 4\]", x=Tensor(x[:, :4]))

    class Broken(Tensor):
        def __dlpack__(self, *, stream: int) -> Any:
            raise BufferError("requires grad\nmore")

    refused("'x' cannot be taken through DLPack: requires grad$", x=Broken(x))
    assert all(map(np.array_equal, session.run(None, given), small_graph().evaluate(given)))
    with pytest.raises(BufferError):
        session.run(None, given, on_device=True)[0].__dlpack__(copy=True)


def test_sessions_on_the_cpu(tmp_path: Path) -> None:
    small_module().save(tmp_path / "cpu.intc")
    session, given = intc.load(tmp_path / "cpu.intc"), small_feeds(3)

    class OnHost:
        """Speaks DLPack only."""

        def __init__(self, values: Values) -> None:
            self.values = values

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.values.__dlpack_device__()

        def __dlpack__(self, **options: Any) -> Any:
            return self.values.__dlpack__(**options)

    x = OnHost(given["x"])
    assert np.shares_memory(feeds.on_host(session.manifest.inputs[0], x), given["x"])
    got = session.run(None, {"x": x, "ids": given["ids"].tolist()})
    assert all(map(np.array_equal, got, session.run(None, given)))
    with pytest.raises(FeedError, match="'x' lies on cuda:0, but the session runs on the CPU; move it there"):
        session.run(None, {**given, "x": Tensor(given["x"])})
    with pytest.raises(UsageError, match="on_device=True is for sessions on a GPU"):
        session.run(None, given, on_device=True)
    torch = pytest.importorskip("torch", reason="of the extra [examples]")
    got = session.run(None, {n: torch.from_numpy(a) for n, a in given.items()})
    assert all(map(np.array_equal, got, session.run(None, given)))
    with pytest.raises(FeedError, match=r"'x' cannot become an array of numpy: .*use tensor\.detach\(\)"):
        session.run(None, {**given, "x": torch.zeros(3, FEATURES, requires_grad=True)})
    with pytest.raises(FeedError, match=r"'x' cannot be taken through DLPack: .* meta"):
        session.run(None, {**given, "x": torch.zeros(3, FEATURES, device="meta")})


def test_artifacts_of_before(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their code has no kernels for arrays on the device."""

    def unknown(name: str, shared: int) -> None:
        raise UsageError("not found")

    assert session.gpu
    monkeypatch.setattr(session.gpu.loaded, "function", unknown)
    with pytest.raises(
        UsageError, match="the code is of an intc that takes no arrays on the device; recompile"
    ):
        session.gpu._boundary._launch("take_feed", 1, 1, ())
