"""The program: every command on the digits transformer, and one line for every kind of bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import intc

ROOT = Path(intc.__file__).parents[1]
MODEL = ROOT / "examples" / "digits" / "digits_vit.onnx"


def run(*args: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "intc", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data.npz (like digits: 24 images) and digits.intc, compiled by the program."""
    folder = tmp_path_factory.mktemp("digits")
    pixels = np.clip(np.random.default_rng(0).normal(-0.4, 0.7, (24, 1, 8, 8)), -1, 1)
    np.savez(folder / "data.npz", input=(np.round(pixels * 8) / 8).astype(np.float32))
    command = ["compile", MODEL, "-o", folder / "new" / "digits.intc", "--calibration", folder / "data.npz"]
    done = run(*command, "--report", folder / "report.html", "--dump-after", "fuse_linear", "--json")
    assert done.stderr == ""
    result = json.loads(done.stdout)
    assert result["bytes"] == (folder / "new" / "digits.intc").stat().st_size
    assert result["dumps"]["fuse_linear"].startswith("intc graph 1")
    names = {node["name"] for node in result["accuracy"]["nodes"]}
    assert result["accuracy"]["samples"] == 8
    assert "/blocks.0/Softmax_output_0" in names
    assert all(name in (folder / "report.html").read_text() for name in names)
    return (folder / "new" / "digits.intc").rename(folder / "digits.intc").parent


def test_target_c_writes_sources(digits: Path, tmp_path: Path) -> None:
    command = ["compile", MODEL, "--target", "c", "--size", "batch=1", "--calibration", digits / "data.npz"]
    text = run(*command, "-o", tmp_path / "new" / "net.c", "--rounding", "nearest").stdout
    assert f"{tmp_path / 'new' / 'net.h'}, " in text and "bytes of working memory" in text
    result = json.loads(run(*command, "-o", tmp_path / "net", "--json").stdout)
    assert {Path(f).name for f in result["files"]} == {p.name for p in (tmp_path / "net").iterdir()}
    assert result["bytes"] == sum(p.stat().st_size for p in (tmp_path / "net").iterdir())
    header = (tmp_path / "net" / "digits_vit.h").read_text()
    assert f"DIGITS_VIT_ARENA_BYTES {result['arena_bytes']} " in header


def test_retarget_keeps_the_integers(digits: Path, tmp_path: Path) -> None:
    run("retarget", digits / "digits.intc", "--target", "c", "--size", "batch=1", "-o", tmp_path)
    assert "made by intc" in (tmp_path / "digits_vit.c").read_text()
    run("retarget", digits / "digits.intc", "--target", "x86-64-v2", "-o", tmp_path / "v2.intc", "--json")
    first, second = (intc.open_module(p).graph for p in (digits / "digits.intc", tmp_path / "v2.intc"))
    assert str(first) == str(second)


def test_run_equals_the_session(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "y.npz"
    session = intc.load(digits / "digits.intc")
    data = dict(np.load(digits / "data.npz"))
    for flags, raw in (([], False), (["--raw", "--batch", 5, "--threads", 2], True)):
        run("run", digits / "digits.intc", "--inputs", digits / "data.npz", "--outputs", out, *flags)
        np.testing.assert_array_equal(np.load(out)["logits"], session.run(None, data, raw=raw)[0])


def test_verify_passes_and_measures(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.json"
    command = [
        "verify",
        digits / "digits.intc",
        "--data",
        digits / "data.npz",
        "--model",
        MODEL,
        "--json",
        out,
    ]
    assert "PASSED on 24 sample(s)" in run(*command).stdout
    result = json.loads(out.read_text())
    assert result["passed"]
    assert result["bit_exact"]
    assert result["float_free"]
    assert result["overflow_free"]
    assert {(r["threads"], r["batch"]) for r in result["runs"]} == {(1, 16), (1, 1), (2, 16), (2, 1)}
    assert result["fidelity"]["logits"]["cosine_mean"] > 0.99


def test_verify_fails_on_wrong_kernels(digits: Path, tmp_path: Path) -> None:
    """A constant that only the kernels read is altered and the file sealed again: verify must see it."""
    from intc.artifact import schema, tensors
    from intc.artifact.container import Container
    from intc.artifact.writer import write_artifact
    from intc.module import DERIVED
    from intc.report.reading import read_graph

    container = Container(digits / "digits.intc")
    manifest, _ = read_graph(digits / "digits.intc")
    weights = {n: a.copy() for n, a in tensors.decode(container.member(schema.WEIGHTS), "").items()}
    for name in weights:
        if name.startswith(DERIVED) and weights[name].dtype == np.int32:
            weights[name] //= 2
    parts = (container.member(n) for n in (schema.GRAPH, manifest.kernels, schema.CERTIFICATE))
    graph, kernels, certificate = (bytes(p) for p in parts)
    bad = tmp_path / "bad.intc"
    write_artifact(bad, manifest, graph.decode(), weights, kernels, json.loads(certificate))
    done = run("verify", bad, "--data", digits / "data.npz", status=1)
    assert "FAILED" in done.stdout
    assert "DIFFERENT elements" in done.stdout
    assert "nodes: equal, compiled again" in done.stdout  # the fault lies in the file, not in the compiler


def test_verify_looks_at_every_node(digits: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "v.json", tmp_path / "v.html"
    command = ["verify", digits / "digits.intc", "--data", digits / "data.npz", "--model", MODEL]
    assert "PASSED" in run(*command, "--json", out, "--html", page).stdout
    result = json.loads(out.read_text())
    nodes = {node["name"]: node for node in result["nodes"]}
    assert result["first_divergence"] is None
    assert len(nodes) > 20
    assert {(n["differences"], n["largest"]) for n in nodes.values()} == {(0, 0)}
    near = [n for n in nodes.values() if n["cosine"] is not None]
    assert len(near) >= 5
    assert all(n["cosine"] > 0.99 and n["sqnr_db"] > 15 for n in near)
    assert all(n["interval"][0] <= n["seen"][0] <= n["seen"][1] <= n["interval"][1] for n in nodes.values())
    assert any(0 < n["saturated"] < 0.05 for n in nodes.values())
    assert all(name in page.read_text() for name in nodes)


def test_bench_compares(digits: Path) -> None:
    command = ["bench", digits / "digits.intc", "--vs", MODEL, "--batch", 2, "--seconds", 0.2, "--json"]
    result = json.loads(run(*command).stdout)
    assert set(result["engines"]) == {"intc", "onnxruntime"}
    assert result["sizes"] == {"batch": 2}
    assert result["speedup"]["onnxruntime"] > 0
    text = run(
        "bench", digits / "digits.intc", "--seconds", 0.1, "--no-peak", "--inputs", digits / "data.npz"
    ).stdout
    assert "median ms" in text


def test_inspect_and_info(digits: Path, tmp_path: Path) -> None:
    text = run("inspect", digits / "digits.intc").stdout
    assert text.startswith("intc graph 1\n")
    assert "linear(" in text
    assert "float32" in run("inspect", MODEL).stdout
    assert "+%" in run("inspect", MODEL, "--after", "recover_gelu", "--diff").stdout
    run(
        "inspect",
        MODEL,
        "--after",
        "fuse_linear",
        "--calibration",
        digits / "data.npz",
        "--html",
        tmp_path / "g.html",
    )
    assert (tmp_path / "g.html").read_text().startswith("<!doctype html>")
    info = json.loads(run("info", digits / "digits.intc", "--json").stdout)
    assert info["digest"] == intc.load(digits / "digits.intc").digest
    assert info["outputs"][0]["name"] == "logits"
    assert info["provenance"]["model"] == "digits_vit.onnx"


def tiny_model(folder: Path, op: str, name: str) -> Path:
    """``y = op(x @ w)`` with a symbolic batch."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    w = helper.make_tensor("w", TensorProto.FLOAT, [4, 4], np.eye(4).ravel())
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node(op, ["h"], ["y"], name="wave")]
    graph = helper.make_graph(nodes, "g", [x], [y], [w])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), folder / name
    )
    return folder / name


def test_random_calibration_is_asked_for_and_warned_of(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, "Relu", "relu.onnx")
    done = run("compile", model, "--calibration", "random", "--dump-after", "integerise")
    assert done.stderr.startswith("intc: warning: ranges come from random data")
    assert done.stdout.startswith("intc graph 1\n")
    first = (tmp_path / "relu.intc").read_bytes()
    run("compile", model, "--calibration", "random", "-o", tmp_path / "again.intc")
    assert (tmp_path / "again.intc").read_bytes() == first


def test_accuracy_is_silent_in_a_pipe_unless_asked(digits: Path, tmp_path: Path) -> None:
    command = ["compile", MODEL, "-o", tmp_path / "d.intc", "--calibration", digits / "data.npz"]
    assert run(*command).stdout.count("\n") == 1
    done = run(*command, "--worst", 3, "--report-samples", 2, "--json", tmp_path / "d.json")
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + 1 + 2 + 3  # the artifact, the output, a title and a header, three nodes
    assert lines[1].startswith("logits against float, 2 sample(s): SQNR ")
    worst = sorted(json.loads((tmp_path / "d.json").read_text())["accuracy"]["nodes"], key=isolated)
    assert [line.split()[0] for line in lines[4:]] == [node["name"] for node in worst[:3]]
    result = json.loads(run(*command, "--report-samples", 0, "--json").stdout)
    assert result["accuracy"] is None
    (tmp_path / "folder").mkdir()
    done = run(*command, "--report", tmp_path / "folder", status=2)
    assert "folder: cannot be written" in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.intc", "d.json", "folder"]


def test_a_terminal_shows_the_worst_nodes(digits: Path, tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    options = ["-o", tmp_path / "d.intc", "--calibration", digits / "data.npz"]
    command = [sys.executable, "-m", "intc", "compile", MODEL, *options]
    with os.fdopen(ours, "rb") as screen:
        subprocess.run([*map(str, command)], stdout=theirs, stderr=subprocess.PIPE, cwd=ROOT, check=True)
        os.close(theirs)
        shown = os.read(screen.fileno(), 1 << 16).decode()
    assert "logits against float, 2 sample(s)" in shown
    assert "largest errors of single nodes" in shown


def isolated(node: dict) -> float:
    return float("inf") if node["isolated_db"] is None else node["isolated_db"]


def test_help_has_examples() -> None:
    for command in ("compile", "run", "verify", "bench", "inspect", "export", "info"):
        assert "example" in run(command, "--help").stdout


@pytest.fixture
def bad(digits: Path, tmp_path: Path) -> dict[str, Path]:
    """Files of every bad kind."""
    data = np.load(digits / "data.npz")["input"]
    np.savez(tmp_path / "nan.npz", input=np.where(data > 0, np.nan, data))
    np.savez(tmp_path / "shape.npz", input=data[:, :, :4])
    np.savez(tmp_path / "name.npz", pixels=data)
    np.savez(tmp_path / "more.npz", input=data, more=data)
    np.savez(tmp_path / "empty.npz", input=data[:0])
    np.savez(tmp_path / "object.npz", input=np.array([None, 1], dtype=object))
    (tmp_path / "text.npz").write_text("not a zip")
    (tmp_path / "broken.onnx").write_bytes(MODEL.read_bytes()[:1000])
    (tmp_path / "cut.intc").write_bytes((digits / "digits.intc").read_bytes()[:-100])
    tiny_model(tmp_path, "Bernoulli", "drawn.onnx")
    files = {p.name: p for p in tmp_path.iterdir()}
    return {**files, "model": MODEL, "artifact": digits / "digits.intc", "data": digits / "data.npz"}


BAD = {
    "no calibration": ("compile {model} -o {out}", "no calibration data"),
    "no model": ("compile none.onnx -o {out} --calibration {data}", "none.onnx: no such file"),
    "no calibration file": ("compile {model} -o {out} --calibration none.npz", "none.npz: no such file"),
    "broken model": ("compile {broken.onnx} -o {out} --calibration {data}", "broken.onnx"),
    "unsupported": ("compile {drawn.onnx} -o {out} --calibration random", "node 'wave' (Bernoulli)"),
    "target": ("compile {model} -o {out} --calibration {data} --target z80", "target 'z80'"),
    "free size": (
        "compile {model} -o {out} --calibration {data} --target c",
        "target 'c' needs fixed sizes, but batch of input 'input' [batch, 1, 8, 8] is free",
    ),
    "size": ("compile {model} -o {out} --calibration {data} --size batch=x", "expected SYMBOL=N"),
    "unknown size": ("compile {model} -o {out} --calibration {data} --size n=2", "'n' is no free size"),
    "one file": ("compile {model} -o {out}.intc --calibration {data} --target c --size batch=1", "a folder"),
    "approximation": ("compile {model} -o {out} --calibration {data} --approximation x", "approximation 'x'"),
    "bits": ("compile {model} -o {out} --calibration {data} --bits 4", "bits=4: 8, 16"),
    "calibrator": ("compile {model} -o {out} --calibration {data} --calibrator x", "calibrator 'x'"),
    "dump": ("compile {model} -o {out} --calibration {data} --dump-after x", "no pass 'x'"),
    "report of nothing": (
        "compile {model} -o {out} --calibration {data} --report x.html --report-samples 0",
        "--report-samples 0 leaves nothing to report",
    ),
    "report samples": ("compile {model} -o {out} --calibration {data} --report-samples x", "'x' is not a"),
    "nan calibration": ("compile {model} -o {out} --calibration {nan.npz}", "NaN"),
    "shape": ("compile {model} -o {out} --calibration {shape.npz}", "input 'input' has shape"),
    "name": ("compile {model} -o {out} --calibration {name.npz}", "input 'input' is missing"),
    "empty": ("compile {model} -o {out} --calibration {empty.npz}", "empty"),
    "pickles": ("compile {model} -o {out} --calibration {object.npz}", "object.npz"),
    "no zip": ("compile {model} -o {out} --calibration {text.npz}", "text.npz"),
    "retarget free": ("retarget {artifact} --target c -o {out}", "target 'c' needs fixed sizes"),
    "retarget onnx": ("retarget {model} --target c -o {out}", "not an intc artifact"),
    "retarget size": ("retarget {artifact} --size n=2 -o {out}", "'n' is no free size"),
    "run cut": ("run {cut.intc} --inputs {data} --outputs {out}", "truncated"),
    "run onnx": ("run {model} --inputs {data} --outputs {out}", "not an intc artifact"),
    "run nan": ("run {artifact} --inputs {nan.npz} --outputs {out}", "NaN"),
    "run shape": ("run {artifact} --inputs {shape.npz} --outputs {out}", "has shape"),
    "run name": ("run {artifact} --inputs {name.npz} --outputs {out}", "'pixels' is not an input"),
    "run more": ("run {artifact} --inputs {more.npz} --outputs {out}", "'more' is not an input"),
    "run empty": ("run {artifact} --inputs {empty.npz} --outputs {out}", "no samples"),
    "run pickles": ("run {artifact} --inputs {object.npz} --outputs {out}", "object.npz: not a readable"),
    "run nothing": ("run {artifact} --inputs none.npz --outputs {out}", "none.npz: no such file"),
    "run threads": ("run {artifact} --inputs {data} --outputs {out} --threads 0", "threads=0"),
    "verify name": ("verify {artifact} --data {name.npz}", "input 'input' is missing"),
    "verify model": (
        "verify {artifact} --data {data} --model {broken.onnx}",
        "broken.onnx: onnxruntime cannot",
    ),
    "export onnx": ("export {model} --onnx {out}", "not an intc artifact"),
    "export where": ("export {artifact} --onnx {out}/none/x.onnx", "cannot be written"),
    "bench engine": ("bench {artifact} --engines mxnet", "engine 'mxnet'"),
    "bench size": ("bench {artifact} --size seq=3", "size 'seq' is not a symbol"),
    "inspect pass": ("inspect {model} --after x", "no pass 'x'"),
    "inspect artifact pass": ("inspect {artifact} --after fuse_linear", "--after needs the ONNX file"),
    "info": ("info none.intc", "none.intc: no such file"),
    "usage": ("run {artifact}", "--inputs"),
    "command": ("fly", "invalid choice"),
    "nothing": ("", "COMMAND"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(bad: dict[str, Path], tmp_path: Path, case: str) -> None:
    command, message = BAD[case]
    for name, path in {**bad, "out": tmp_path / "out"}.items():
        command = command.replace(f"{{{name}}}", str(path))
    done = run(*command.split(), status=2)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback() -> None:
    done = run("info", "none.intc", "--debug", status=2)
    assert "Traceback" in done.stderr
