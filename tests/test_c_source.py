"""Networks as C: the bits of the reference on every compiler and processor that is at hand, and no float."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

import intc
from examples.accuracy import texts
from intc.codegen.c.source import Source, lower_source
from intc.codegen.machine_code import machine_code
from intc.ir.graph import quantize_feed
from intc.ir.op import Array
from intc.module import Module, open_module
from tests.c_programs import (
    BOARDS,
    STRICT,
    UNDEFINED,
    available,
    compile_network,
    link,
    run_program,
    undefined_symbols,
)
from tests.onnx_models import floats, model

EXAMPLES = Path(intc.__file__).parents[1] / "examples"
DIGITS = EXAMPLES / "digits" / "digits_vit.onnx"
FLOATLESS = ["-O2", "-march=armv7-a", "-mfloat-abi=soft"]
PROCESSORS = {
    "aarch64": ("aarch64-linux-gnu-gcc", ["-O3"], "qemu-aarch64"),
    "aarch64 with dot products": (
        "aarch64-linux-gnu-gcc",
        ["-Os", "-march=armv8.2-a+dotprod"],
        "qemu-aarch64",
    ),
    "arm without floating-point unit": ("arm-linux-gnueabi-gcc", FLOATLESS, "qemu-arm"),
    "riscv64": ("riscv64-linux-gnu-gcc", ["-O2"], "qemu-riscv64"),
    "s390x, high bytes first": ("s390x-linux-gnu-gcc", ["-O2"], "qemu-s390x"),
}
DIVISIONS = {
    "__aeabi_ldivmod",
    "__aeabi_uldivmod",
    "__aeabi_idiv",
    "__aeabi_idivmod",
    "_GLOBAL_OFFSET_TABLE_",
}


def pixels(count: int, seed: int = 0) -> Array:
    values = np.clip(np.random.default_rng(seed).normal(-0.4, 0.7, (count, 1, 8, 8)), -1, 1)
    return (np.round(values * 8) / 8).astype(np.float32)


def source_of(module: Module) -> Source:
    assert isinstance(module.lowered, Source)
    return module.lowered


def singles(module: Module, feeds: Mapping[str, Array], count: int) -> list[dict[str, Array]]:
    """The first samples one by one, as raw integers."""
    values = module.prepared.values
    return [{n: quantize_feed(values[n], a[i : i + 1]) for n, a in feeds.items()} for i in range(count)]


def assert_equal(module: Module, feeds: list[dict[str, Array]], found: list[dict[str, Array]]) -> None:
    for feed, got in zip(feeds, found, strict=True):
        for name, want in module.prepared.run(feed).items():
            assert np.array_equal(got[name], want), name


@pytest.fixture(scope="module")
def digits() -> Module:
    return intc.compile(DIGITS, {"input": pixels(24)}, "c", sizes={"batch": 1}, rounding="nearest")


def test_digits_have_the_bits_of_the_native_kernels(digits: Module, tmp_path: Path) -> None:
    source = source_of(digits)
    program = link(source, compile_network(source, tmp_path, flags=["-O2", *UNDEFINED]), flags=UNDEFINED)
    x = pixels(24, seed=1)
    feeds = singles(digits, {"input": x}, 24)
    found = run_program(source, program, feeds)
    assert_equal(digits, feeds, found)
    native = intc.compile(DIGITS, {"input": pixels(24)}, rounding="nearest")
    name = digits.prepared.outputs[0]
    together = np.concatenate([f[name] for f in found])
    assert np.array_equal(together, native.run(None, {"input": x}, raw=True)[0])
    assert len(np.unique(together.argmax(axis=1))) > 1


@pytest.mark.parametrize("how", ["cc", "cmake"])
def test_the_example_reads_digits(digits: Module, tmp_path: Path, how: str) -> None:
    """examples/c/main.c, by one command and by its CMakeLists.txt."""
    digits.save(tmp_path)
    sources = [str(tmp_path / name) for name in ("digits_vit.c", "digits_vit_weights.c")]
    program, main = tmp_path / "build" / "digits", str(EXAMPLES / "c" / "main.c")
    if how == "cmake":
        if not available("cmake"):
            pytest.skip("needs cmake")
        configured = ["-S", main.removesuffix("main.c"), "-B", str(program.parent), f"-DNETWORK={tmp_path}"]
        commands = [["cmake", *configured], ["cmake", "--build", str(program.parent)]]
    else:
        program.parent.mkdir()
        commands = [["cc", "-std=c99", "-O2", f"-I{tmp_path}", main, *sources, "-o", str(program)]]
    for command in commands:
        subprocess.run(command, check=True, capture_output=True)
    x = pixels(24, seed=1)
    text = " ".join(str(int(value)) for value in (x.reshape(-1) + 1) * 8)
    said = subprocess.run([str(program)], input=text, capture_output=True, text=True, check=True).stdout
    assert [int(line) for line in said.split()] == digits.graph.evaluate({"input": x})[0].argmax(1).tolist()


def test_no_float_and_nothing_from_a_library(digits: Module, tmp_path: Path) -> None:
    flags = ["-O2", "-mgeneral-regs-only", "-fno-tree-loop-distribute-patterns"]
    code, weights = compile_network(source_of(digits), tmp_path, flags=flags)
    assert undefined_symbols(code) == undefined_symbols(weights) == set()
    vectorised, _ = compile_network(source_of(digits), tmp_path, flags=["-O3", "-mavx2"])
    for compiled in (code, vectorised):
        found = machine_code(compiled.read_bytes())
        assert found is not None and sum(found.functions.values()) > 1000
        assert not [f for f in found.floats if not f.startswith("call of ")]
    for text in source_of(digits).files("net", "test").values():
        plain = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
        assert not re.search(r"\b(float|double)\b|\d\.\d|malloc|#include <(?!stdint|arm_)", plain)


@pytest.mark.parametrize("name", PROCESSORS)
def test_digits_on_other_processors(digits: Module, tmp_path: Path, name: str) -> None:
    compiler, flags, emulator = PROCESSORS[name]
    if not available(compiler, emulator):
        pytest.skip(f"needs the cross compiler {compiler} and the emulator {emulator}")
    source = source_of(digits)
    objects = compile_network(source, tmp_path, compiler, [*flags, "-fno-tree-loop-distribute-patterns"])
    assert undefined_symbols(objects[0], compiler.replace("gcc", "nm")) <= DIVISIONS
    (tmp_path / "check_main.c").write_text(
        '#include "net.h"\nint main(void) { return net_check() ? 1 : 0; }\n'
    )
    files = [str(tmp_path / f) for f in ("check_main.c", "net_check.c", *(o.name for o in objects))]
    subprocess.run([compiler, "-static", *files, "-o", str(tmp_path / "check")], check=True)
    assert subprocess.run([emulator, str(tmp_path / "check")], check=False).returncode == 0
    if "high bytes" in name:
        return
    feeds = singles(digits, {"input": pixels(3, seed=1)}, 3)
    found = run_program(source, link(source, objects, compiler, ["-static"]), feeds, [emulator])
    assert_equal(digits, feeds, found)


@pytest.mark.parametrize("name", BOARDS)
def test_digits_without_a_system(digits: Module, tmp_path: Path, name: str) -> None:
    """The check on emulated boards: nothing below the program but a vector table."""
    board = BOARDS[name]
    if not available(*board.tools):
        pytest.skip(f"needs {', '.join(board.tools)}")
    digits.save(tmp_path)
    assert board.check(tmp_path) == 0
    if "Helium" in name:
        listing = board.assembly(tmp_path)
        assert re.search(r"vml(ad)?avat?\.s8", listing) and not re.search(r"\.f(16|32|64)\b", listing)


@pytest.mark.parametrize("flags", [["-Os"], ["-O3", "-march=native"]])
def test_digits_by_clang(digits: Module, tmp_path: Path, flags: list[str]) -> None:
    if not available("clang"):
        pytest.skip("needs clang")
    source = source_of(digits)
    objects = compile_network(source, tmp_path, "clang", flags)
    assert undefined_symbols(objects[0]) == set()
    feeds = singles(digits, {"input": pixels(3, seed=1)}, 3)
    assert_equal(digits, feeds, run_program(source, link(source, objects, "clang"), feeds))


def test_a_text_classifier(tmp_path: Path) -> None:
    """Two inputs of indices and masks, at a length of 32, from an artifact of free sizes."""
    train = {name: array[:16] for name, array in texts.snippets(test=False).feeds.items()}
    native = intc.compile(EXAMPLES / "accuracy" / "classifier.onnx", train, rounding="nearest")
    native.save(tmp_path / "classifier.intc")
    module = open_module(tmp_path / "classifier.intc", "c", {"batch": 1, "sequence": 32})
    feeds = {name: array[16:20, :32] for name, array in texts.snippets(test=False).feeds.items()}
    feeds["attention_mask"] = (np.arange(32) < np.array([[32], [20], [1], [7]])).astype(np.int64)
    source, raw = source_of(module), singles(module, feeds, 4)
    program = link(source, compile_network(source, tmp_path, flags=["-O1", *UNDEFINED]), flags=UNDEFINED)
    found = run_program(source, program, raw)
    assert_equal(module, raw, found)
    name = module.prepared.outputs[0]
    assert np.array_equal(np.concatenate([f[name] for f in found]), native.run(None, feeds, raw=True)[0])
    raw[2]["input_ids"] = np.full((1, 32), module.prepared.type("input_ids").hi + 1, np.int64)  # type: ignore[operator]
    with pytest.raises(AssertionError, match="exit status 1"):
        run_program(source, program, raw)


def test_a_convolutional_network(tmp_path: Path) -> None:
    proto = model(
        "a = Conv<pads=[1,1,1,1]>(x, k, b) r = Relu(a) d = Conv<group=8, pads=[1,1,1,1], strides=[2,2]>(r, g)"
        " p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(d) m = GlobalAveragePool(p) f = Flatten(m)"
        " s = Softmax(f) y = Identity(s)",
        "float[batch, 3, 16, 16] x",
        "float[batch, 8] y",
        {"k": floats(8, 3, 3, 3), "b": floats(8), "g": floats(8, 1, 3, 3)},
    )
    onnx.save(proto, tmp_path / "conv.onnx")
    module = intc.compile(tmp_path / "conv.onnx", {"x": floats(16, 3, 16, 16)}, "c", sizes={"batch": 2})
    source = source_of(module)
    program = link(source, compile_network(source, tmp_path, flags=["-O1", *UNDEFINED]), flags=UNDEFINED)
    feeds = [
        {"x": quantize_feed(module.prepared.values["x"], floats(2, 3, 16, 16, seed=i))} for i in range(3)
    ]
    assert_equal(module, feeds, run_program(source, program, feeds))


@pytest.mark.slow
def test_the_segmenter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / "segmentation"))
    from scenes import scenes

    images = scenes(2, seed=3)[0]
    path = EXAMPLES / "segmentation" / "segmenter.onnx"
    module = intc.compile(path, {"image": images}, "c", sizes={"batch": 1}, rounding="nearest")
    source, feeds = source_of(module), singles(module, {"image": images}, 2)
    program = link(source, compile_network(source, tmp_path, flags=["-O2", *UNDEFINED]), flags=UNDEFINED)
    assert_equal(module, feeds, run_program(source, program, feeds))


def test_four_bit_weights_take_half_the_bytes(tmp_path: Path) -> None:
    """Also where the rows are odd."""
    weights = {"w": floats(33, 24), "v": floats(24, 10)}
    body = "h = MatMul(x, w) r = Relu(h) y = MatMul(r, v)"
    onnx.save(model(body, "float[batch, 33] x", "float[batch, 10] y", weights), tmp_path / "two.onnx")
    plan = {"intc_plan": 1, "default": {"weights": 4}}
    data = {"x": floats(40, 33)}
    modules = [
        intc.compile(tmp_path / "two.onnx", data, "c", bits=bits, sizes={"batch": 5}) for bits in (plan, 8)
    ]
    four, eight = map(source_of, modules)
    assert eight.weight_bytes - four.weight_bytes == 33 * 24 + 24 * 10 - (34 * 24 + 24 * 10) // 2
    program = link(four, compile_network(four, tmp_path, flags=["-O1", *UNDEFINED]), flags=UNDEFINED)
    feeds = [{"x": quantize_feed(modules[0].prepared.values["x"], data["x"][:5])}]
    assert_equal(modules[0], feeds, run_program(four, program, feeds))


def test_the_files(digits: Module, tmp_path: Path) -> None:
    names = {"digits_vit.h", "digits_vit.c", "digits_vit_weights.c", "digits_vit_check.c"}
    assert {p.name for p in digits.save(tmp_path / "folder")} == names
    assert {p.name for p in (tmp_path / "folder").iterdir()} == names
    digits.save(tmp_path / "my-net.c")
    assert (tmp_path / "my_net.h").is_file() and (tmp_path / "my_net_weights.c").is_file()
    with pytest.raises(intc.errors.UsageError, match="several files"):
        digits.save(tmp_path / "digits.intc")
    # a target that cannot be written leaves the others as they are
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "digits_vit.c").mkdir()
    (tmp_path / "held" / "digits_vit.h").write_text("old")
    with pytest.raises(intc.errors.UsageError, match="cannot be written"):
        digits.save(tmp_path / "held")
    left = {p.name for p in (tmp_path / "held").iterdir()}
    assert left <= names and not any(p.name.startswith(".") for p in (tmp_path / "held").iterdir())


def test_files_of_different_compilations_do_not_compile(digits: Module, tmp_path: Path) -> None:
    other = intc.compile(DIGITS, {"input": pixels(8, 3)}, "c", sizes={"batch": 1}, rounding="nearest")
    digits.save(tmp_path)
    mixed = dict(source_of(other).files("digits_vit", "test"))
    (tmp_path / "digits_vit_weights.c").write_text(mixed["digits_vit_weights.c"])
    command = ["gcc", "-c", str(tmp_path / "digits_vit_weights.c"), "-o", str(tmp_path / "w.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode and "different compilations" in done.stderr


def test_what_the_functions_return(digits: Module, tmp_path: Path) -> None:
    (code, weights), main = compile_network(source_of(digits), tmp_path), tmp_path / "test.c"
    main.write_text(
        """#include "net.h"
        static int64_t arena[NET_ARENA_BYTES / 8 + 2];
        int main(void)
        {
            int8_t input[NET_INPUT_SIZE] = {0};
            int16_t logits[NET_LOGITS_SIZE] = {7}, again[NET_LOGITS_SIZE];
            input[5] = -128;
            if (net_run(input, logits) != 1 || logits[0] != 7) return 1;
            input[5] = NET_INPUT_MIN;
            if (net_run(input, logits) != 0) return 2;
            arena[(NET_ARENA_BYTES + 7) / 8] = 1234567;
            if (net_run_in(arena, input, again) != 0) return 3;
            for (int i = 0; i < NET_LOGITS_SIZE; ++i) if (logits[i] != again[i]) return 4;
            if (arena[(NET_ARENA_BYTES + 7) / 8] != 1234567) return 5;
            return net_run_in((char *)arena + 4, input, again) == -1 ? net_check() : 6;
        }"""
    )
    program = tmp_path / "test"
    check = tmp_path / "net_check.c"
    subprocess.run(["gcc", *STRICT, "-c", str(check), "-o", str(tmp_path / "check.o")], check=True)
    subprocess.run(["gcc", str(main), str(check), str(code), str(weights), "-o", str(program)], check=True)
    assert subprocess.run([str(program)], check=False).returncode == 0
    (tmp_path / "net_check.c").write_text(re.sub(r"total == \d+U", "total == 1U", check.read_text()))
    subprocess.run(["gcc", str(main), str(check), str(code), str(weights), "-o", str(program)], check=True)
    assert subprocess.run([str(program)], check=False).returncode == 255, "another result is noticed"


def test_refusals(digits: Module, tmp_path: Path) -> None:
    data = {"input": pixels(8)}
    with pytest.raises(intc.errors.CodegenError, match=r"batch of input 'input'.*--size batch=1"):
        intc.compile(DIGITS, data, "c")
    with pytest.raises(intc.errors.UsageError, match="'length' is no free size; the model has batch"):
        intc.compile(DIGITS, data, "c", sizes={"length": 3})
    with pytest.raises(intc.errors.UsageError, match="at least 1"):
        intc.compile(DIGITS, data, "c", sizes={"batch": 0})
    with pytest.raises(intc.errors.UsageError, match="source code"):
        digits.run(None, data)
    with pytest.raises(intc.errors.CodegenError, match="only integer graphs"):
        assert digits.passes is not None
        lower_source(intc.ir.bound.bound(digits.passes.source, {"batch": 1}), ["logits"])


def test_fixed_sizes_serve_native_targets_too(tmp_path: Path) -> None:
    module = intc.compile(DIGITS, {"input": pixels(24)}, sizes={"batch": 2}, rounding="nearest")
    x = pixels(2, seed=4)
    assert np.array_equal(module.run(None, {"input": x})[0], module.graph.evaluate({"input": x})[0])
    with pytest.raises(intc.errors.FeedError, match=r"shape \[3, 1, 8, 8\]"):
        module.run(None, {"input": pixels(3)})
