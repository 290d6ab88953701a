"""Files that cannot be imported: each is refused in one line that names the cause."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from intc.errors import ImportFailure, UnsupportedModel
from intc.frontend import import_onnx
from tests.onnx_models import model


def small() -> onnx.ModelProto:
    return model(
        "t = MatMul(x, w) y = Relu(t)", "float[n, 4] x", "float[n, 4] y", {"w": np.eye(4, dtype=np.float32)}
    )


def external(location: str, **entries: str) -> onnx.ModelProto:
    proto = small()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return proto


def with_change(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    proto = small()
    change(proto)
    return proto


def cyclic(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = "y"


def huge_weight(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].dims[0] = 2**40


def short_weight(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].raw_data = b"\0" * 12


def negative_weight(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].dims[0] = -4


def nan_weight(proto: onnx.ModelProto) -> None:
    array = np.full((4, 5), np.nan, np.float32)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w"))


def string_weight(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.STRING, [1], [b"a"]))


def twice(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(proto.graph.initializer[0])


def old(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 9


def no_opset(proto: onnx.ModelProto) -> None:
    del proto.opset_import[:]


def no_output(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "elsewhere"


def string_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING


def shapeless_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.ClearField("shape")


def sparse(proto: onnx.ModelProto) -> None:
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))


def external_attribute(proto: onnx.ModelProto) -> None:
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/hostname")
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=tensor))
    proto.graph.node[1].input[1] = "c"


def complex_weight(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((4, 5), np.complex64), "w"))


def high_rank(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((1,) * 40, np.float32), "w"))


def huge_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 2**40


def control_characters(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[1] = "\x1b[31mw\n\u2028"


BAD_PROTOS = {
    complex_weight: "unsupported element type",
    high_rank: "impossible shape",
    huge_input: "input 'x': a value of shape .* is too large",
    control_characters: "not a valid ONNX model|nothing computes",
    cyclic: "not a valid ONNX model|nothing computes",
    huge_weight: "unreadable|impossible shape",
    short_weight: "weight 'w' is unreadable",
    negative_weight: "impossible shape|not a valid",
    nan_weight: "weight 'w' holds NaN",
    string_weight: "unsupported element type|not a valid",
    twice: "weight 'w' is defined twice|not a valid",
    old: "opset 9 is older than 13",
    no_opset: "opset 0 is older",
    no_output: "elsewhere",
    string_input: r"input 'x' has an unsupported type \(STRING\)|not a valid",
    shapeless_input: "input 'x' .* no shape|not a valid",
    sparse: "sparse weights are not supported",
    external_attribute: "outside the model|not a valid",
}


@pytest.mark.parametrize("change", BAD_PROTOS, ids=lambda f: f.__name__)
def test_bad_models(change: Callable[[onnx.ModelProto], object]) -> None:
    with pytest.raises(ImportFailure, match=BAD_PROTOS[change]) as caught:
        import_onnx(with_change(change))
    assert str(caught.value).isprintable()


def test_constants_that_would_fill_memory() -> None:
    """Each line is small; together, or one at a time, their constants are not."""
    shape = {"n": np.array([2**25])}
    chain = "a0 = ConstantOfShape(n) " + " ".join(f"a{i + 1} = Neg(a{i})" for i in range(12))
    bodies = {
        f"{chain} s = ReduceSum(a12) y = Add(x, s)": (shape, "take too much memory"),
        "a = ConstantOfShape(n) s = ReduceSum(a) y = Add(x, s)": ({"n": np.array([2**40])}, "is too large"),
        "a = Expand(z, n) s = ReduceSum(a) y = Add(x, s)": (
            {"n": np.array([2**31, 2**20]), "z": np.zeros(1, np.float32)},
            "is too large",
        ),
        "r = Range(zero, n0, one) f = Cast<to=1>(r) s = ReduceSum(f) y = Add(x, s)": (
            {"zero": np.int64(0), "one": np.int64(1), "n0": np.int64(2**40)},
            "too long",
        ),
    }
    for body, (weights, reason) in bodies.items():
        with pytest.raises(ImportFailure, match=reason):
            import_onnx(model(body, "float[n, 4] x", "float[n, 4] y", weights))


def test_bad_files(tmp_path: Path) -> None:
    data = small().SerializeToString()
    files = {
        "missing.onnx": None,
        "empty.onnx": b"",
        "text.onnx": b"this is not a protobuf at all",
        "truncated.onnx": data[: len(data) // 2],
        "noise.onnx": np.random.default_rng(0).bytes(4096),
    }
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ImportFailure, match=name) as caught:
            import_onnx(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ImportFailure, match="not a regular file"):
        import_onnx(tmp_path)


def test_every_truncation_is_refused_or_imports(tmp_path: Path) -> None:
    """No prefix of a valid file escapes as an unexpected exception."""
    data = small().SerializeToString()
    for length in range(0, len(data), 3):
        (tmp_path / "cut.onnx").write_bytes(data[:length])
        with pytest.raises(ImportFailure):
            import_onnx(tmp_path / "cut.onnx")


def test_flipped_bytes_are_refused_or_import(tmp_path: Path) -> None:
    data = bytearray(small().SerializeToString())
    rng = np.random.default_rng(1)
    for _ in range(300):
        changed = bytearray(data)
        changed[int(rng.integers(len(data)))] = int(rng.integers(256))
        (tmp_path / "flip.onnx").write_bytes(bytes(changed))
        try:
            import_onnx(tmp_path / "flip.onnx")
        except ImportFailure as error:
            assert "\n" not in str(error)


def test_external_data(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    weights = np.arange(16, dtype=np.float32)
    (folder / "w.bin").write_bytes(weights.tobytes())
    (tmp_path / "secret.bin").write_bytes(weights.tobytes())
    os.symlink(tmp_path / "secret.bin", folder / "link.bin")
    bad = {
        "../secret.bin": "outside the model's folder",
        str(tmp_path / "secret.bin"): "outside the model's folder",
        "link.bin": "outside the model's folder",
        "absent.bin": "missing beside the model",
        "": "outside the model's folder",
    }
    path = folder / "m.onnx"
    for location, reason in bad.items():
        path.write_bytes(external(location).SerializeToString())
        with pytest.raises(ImportFailure, match=reason):
            import_onnx(path)
    for entries in ({"offset": "60", "length": "64"}, {"offset": "-4"}, {"length": "x"}, {"length": "12"}):
        path.write_bytes(external("w.bin", **entries).SerializeToString())
        with pytest.raises(ImportFailure, match="weight 'w'"):
            import_onnx(path)
    path.write_bytes(external("w.bin", offset="0", length="64").SerializeToString())
    graph = import_onnx(path)
    np.testing.assert_array_equal(next(iter(graph.constants.values())), weights.reshape(4, 4))
    proto = external("w.bin", offset="2", length="32")
    proto.graph.initializer[0].data_type = TensorProto.BFLOAT16
    path.write_bytes(proto.SerializeToString())
    halves = weights.astype("<f4").view("<u2")[1:17].astype(np.uint32) << 16
    np.testing.assert_array_equal(
        next(iter(import_onnx(path).constants.values())), halves.view(np.float32).reshape(4, 4)
    )
    with pytest.raises(ImportFailure, match="import it by file name"):
        import_onnx(external("w.bin"))


def test_all_unsupported_nodes_are_listed_at_once() -> None:
    body = "a = Det(x) b = Relu(x) c = RandomNormalLike(b) d = Add(a, c) y = Bernoulli(b)"
    proto = model(body, "float[4, 4] x", "float[n] d, float[4, 4] y")
    random = "random numbers have no exact meaning; export the model with them as an input"
    with pytest.raises(UnsupportedModel) as caught:
        import_onnx(proto)
    assert [(op, reason) for _, op, reason in caught.value.problems] == [
        ("Det", "the operator is not supported"),
        ("RandomNormalLike", random),
        ("Bernoulli", random),
    ]
    assert "3 unsupported node(s)" in str(caught.value)


UNSUPPORTED = {
    "control flow": (
        "s = ReduceSum<keepdims=0>(x) c = Cast<to=9>(s)"
        " y = If(c) <then_branch = g () => (float[1] y) { y = Identity(x) }, else_branch = h () =>"
        " (float[1] y) { y = Identity(x) }>",
        {},
        "control flow is not supported",
    ),
    "as many steps as a value says": (
        "n = ReduceMax<keepdims=0>(x) k = Cast<to=7>(n) y = Loop(k, c) <body = g (int64 i, bool c) =>"
        " (bool d, float[1] z) { z = Gather(x, i) d = Identity(c) }>",
        {"c": np.bool_(True)},
        "how many steps it has depends on input values",
    ),
    "4-D convolution": ("y = Conv(x, w)", {"w": np.ones((1, 1, 2, 2, 2, 2), np.float32)}, "three dimensions"),
    "unbounded result": (
        "s = ConstantOfShape(n) y = Add(x, s)",
        {"n": np.array([2**20, 2**20])},
        "too large",
    ),
    "outer product": (
        "s = MatMul(a, b) y = Add(x, s)",
        {"a": np.ones((2**15, 1), np.float32), "b": np.ones((1, 2**15), np.float32)},
        "too large",
    ),
    "long range": (
        "s = Range(a, b, c) y = Add(x, s)",
        {"a": np.int64(0), "b": np.int64(2**40), "c": np.int64(1)},
        "too long",
    ),
    "data-dependent shape": ("i = Cast<to=7>(x) y = Reshape(x, i)", {}, "depends on input values"),
    "index outside": ("y = Gather(x, i)", {"i": np.array([9])}, "outside the"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_nodes_outside_the_conditions(name: str) -> None:
    body, weights, reason = UNSUPPORTED[name]
    shape = "1, 1, 4, 4, 4, 4" if "4-D" in name else "n" if "bags" in name else "5"
    proto = model(body, f"float[{shape}] x", "float[m] y", weights)
    with pytest.raises(ImportFailure, match=reason) as caught:
        import_onnx(proto)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"z": (1, 4)}, "no input named z"),
        ({"x": (1, 2, 3)}, "rank 2, not 3"),
        ({"x": (0, 4)}, "cannot have the shape"),
        ({"x": "complex64"}, "cannot be complex64"),
        ({"x": (2, 5)}, "inner sizes differ"),
    ],
)
def test_bad_input_overrides(inputs: dict[str, object], reason: str) -> None:
    with pytest.raises(ImportFailure, match=reason):
        import_onnx(small(), inputs)


def test_nodes_out_of_order_are_sorted() -> None:
    """onnxruntime's converter to float16 writes casts behind their readers, in front of a branch as well."""
    body = "c = ReduceSum<keepdims=0>(w) k = Cast<to=9>(c) r = Relu(x) y = If(k) <then_branch ="
    body += " a () => (t) { t = Tanh(r) }, else_branch = b () => (e) { e = Abs(r) }>"
    proto = model(body, "float[2, 3] x", "float[2, 3] y", {"w": np.ones(2, np.float32)})
    nodes = list(proto.graph.node)
    proto.graph.ClearField("node")
    proto.graph.node.extend(onnx.GraphProto(node=nodes[::-1]).node)
    assert [n.op.name for n in import_onnx(proto).nodes] == ["relu", "tanh"]


def test_a_cycle_is_refused() -> None:
    with pytest.raises(ImportFailure, match="topologically sorted"):
        import_onnx(model("a = Add(x, b) b = Neg(a) y = Relu(b)", "float[2] x", "float[2] y"))
