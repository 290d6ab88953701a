"""Whatever happens to a command, it says so in one line, and files are complete or unchanged."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import intc
from intc.cli import main
from tests.small import FEATURES, small_feeds

ROOT = Path(intc.__file__).parents[1]
MODEL = ROOT / "examples" / "digits" / "digits_vit.onnx"


def start(*args: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "intc", *map(str, args)]
    pipes: dict[str, object] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command, text=True, cwd=ROOT, **pipes)  # type: ignore[call-overload,no-any-return]


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The one line of a command that ends with status 2."""
    assert main([str(a) for a in args]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("intc: error: ")
    assert said.err.count("\n") == 1
    assert "internal error" not in said.err
    return said.err


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "x.npz", **small_feeds(4))
    return tmp_path / "x.npz"


X = np.zeros((4, FEATURES), np.float32)
IDS = np.arange(4)
ARRAYS = {
    "nothing": ({}, "is missing"),
    "no samples": ({"x": X[:0], "ids": IDS[:0]}, "no samples"),
    "scalars": ({"x": X[0, 0], "ids": IDS[0]}, "no samples"),
    "NaN": ({"x": X * np.nan, "ids": IDS}, "NaN"),
    "infinite": ({"x": X + np.inf, "ids": IDS}, "infinite"),
    "text": ({"x": np.array(["a"]), "ids": np.array(["b"])}, "has shape"),
    "text of the right shape": ({"x": np.full(X.shape, "a"), "ids": IDS}, "is <U1"),
    "complex": ({"x": X.astype(complex), "ids": IDS}, "complex128"),
    "dates": ({"x": X, "ids": IDS.astype("datetime64[D]")}, "datetime64"),
    "records": ({"x": np.zeros(X.shape, [("a", "i4")]), "ids": IDS}, "expected float32"),
    "out of range": ({"x": X, "ids": IDS + 10**12}, "outside"),
    "unsigned": ({"x": X, "ids": np.full(4, 2**64 - 1, np.uint64)}, "outside"),
    "different numbers": ({"x": X, "ids": IDS[:3]}, "different numbers of samples"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_odd_arrays(case: str, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays, message = ARRAYS[case]
    np.savez(tmp_path / "odd.npz", **arrays)
    commands = (
        ["run", artifact, "--inputs", tmp_path / "odd.npz", "--outputs", tmp_path / "y.npz"],
        ["verify", artifact, "--data", tmp_path / "odd.npz"],
    )
    for command in commands:
        assert message in refused(capsys, *command)
    assert not (tmp_path / "y.npz").exists()


def lying_shape(path: Path) -> None:
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 24), }".ljust(117) + "\n"
    with zipfile.ZipFile(path, "w") as file:
        member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64)
        file.writestr("x.npy", member)


def no_array(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x", "hello")


def damaged(path: Path) -> None:
    np.savez_compressed(path, x=X)
    content = bytearray(path.read_bytes())
    content[70:90] = b"\xff" * 20
    path.write_bytes(content)


def one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, X)


@pytest.mark.parametrize(
    "make", [lying_shape, no_array, damaged, one_array, Path.mkdir, Path.touch], ids=lambda f: f.__name__
)
def test_odd_data_files(
    make: Callable[[Path], object], artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "odd.npz"
    make(odd)
    for command in (
        ["run", artifact, "--inputs", odd, "--outputs", tmp_path / "y.npz"],
        ["verify", artifact, "--data", odd],
        ["bench", artifact, "--inputs", odd, "--no-peak", "--seconds", 0.1],
        ["compile", MODEL, "-o", tmp_path / "y.intc", "--calibration", odd],
    ):
        assert "odd.npz: " in refused(capsys, *command)
    assert [p.name for p in tmp_path.iterdir()] == ["odd.npz"]


def test_outputs_that_cannot_be(
    artifact: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("not a folder")
    copy = tmp_path / "copy.intc"
    copy.write_bytes(artifact.read_bytes())
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    run = ["run", copy, "--inputs", data, "--outputs"]
    compiling = ["compile", MODEL, "--calibration", "random", "-o"]
    cases = (
        ([*run, tmp_path / "folder"], "is a directory"),
        ([*run, tmp_path / "text" / "y.npz"], "cannot be written"),
        ([*run, data], "would overwrite"),
        ([*run, copy], "would overwrite"),
        ([*run, "/dev/full"], "No space left"),
        ([*run, tmp_path / "y.npz", "--json", tmp_path / "folder"], "is a directory"),
        ([*compiling, tmp_path / "folder"], "is a directory"),
        ([*compiling, tmp_path / "text" / "y.intc"], "cannot be written"),
        ([*compiling, tmp_path / "y.intc", "--report", tmp_path / "folder"], "is a directory"),
        ([*compiling, tmp_path / "y.intc", "--save-plan", tmp_path / "folder"], "is a directory"),
        (["inspect", copy, "--html", tmp_path / "folder"], "cannot be written"),
        (["info", copy, "--json", tmp_path / "text" / "x"], "cannot be written"),
    )
    for command, message in cases:
        assert message in refused(capsys, *command)
    assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    model = tmp_path / "model.intc"
    model.write_bytes(MODEL.read_bytes())
    assert "would overwrite" in refused(capsys, "compile", model, "--calibration", "random")
    assert model.read_bytes() == MODEL.read_bytes()


def test_devices_are_written_to_and_stay(artifact: Path, data: Path) -> None:
    assert main(["run", str(artifact), "--inputs", str(data), "--outputs", os.devnull]) == 0
    assert Path(os.devnull).is_char_device()


@pytest.mark.parametrize(
    ("limit", "message"), [(100, "no room for its kernels"), (200_000, "cannot be written")]
)
def test_a_full_disk_leaves_what_was_there(limit: int, message: str, artifact: Path, tmp_path: Path) -> None:
    """Either before anything runs, or when the results, 400 kB, are written."""
    np.savez(tmp_path / "x.npz", **small_feeds(5000))
    out = tmp_path / "out"
    out.mkdir()
    (out / "y.npz").write_bytes(b"before")

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = ["run", artifact, "--inputs", tmp_path / "x.npz", "--outputs", out / "y.npz"]
    process = start(*command, preexec_fn=full)
    _, said = process.communicate()
    assert process.returncode == 2
    assert message in said and said.endswith(" (File too large)\n") and said.count("\n") == 1
    assert [p.name for p in out.iterdir()] == ["y.npz"]
    assert (out / "y.npz").read_bytes() == b"before"


@pytest.mark.parametrize("command", ["info", "inspect"])
def test_output_that_nobody_takes(command: str, artifact: Path) -> None:
    with open("/dev/full", "wb") as full:
        process = start(command, artifact, stdout=full)
        _, said = process.communicate()
    assert process.returncode == 2
    assert said == "intc: error: output: No space left on device\n"
    read, write = os.pipe()
    os.close(read)
    process = start(command, artifact, stdout=write)
    os.close(write)
    _, said = process.communicate()
    assert (process.returncode, said) == (2, "")


def compiling(folder: Path) -> subprocess.Popen[str]:
    """A compilation that has begun, of a model that takes some seconds."""
    (folder / "model.intc").write_bytes(b"before")
    process = start("compile", MODEL, "-o", folder / "model.intc", "--calibration", "random")
    time.sleep(2)
    return process


def test_an_interrupted_compilation(tmp_path: Path) -> None:
    process = compiling(tmp_path)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate()
    assert (out, said) == ("", "intc: error: interrupted\n")
    # Python ends by the signal itself where that came while it ran a string, as dataclasses do
    assert process.returncode in (130, -signal.SIGINT)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"model.intc": b"before"}


def test_an_interrupt_that_native_code_turns_into_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **options: object) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        raise RuntimeError

    monkeypatch.setattr("intc.api.import_onnx", interrupted)
    assert main(["compile", str(MODEL), "--calibration", "random", "-o", str(tmp_path / "m.intc")]) == 130
    assert capsys.readouterr().err == "intc: error: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_killed_compilation_leaves_no_broken_artifact(tmp_path: Path) -> None:
    """Killed in the middle, and just before the finished file takes its place."""
    process = compiling(tmp_path)
    process.kill()
    process.wait()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"model.intc": b"before"}
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.small import small_module\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "small_module().save(Path(sys.argv[1]))\n"
    )
    out = tmp_path / "model.intc"
    killed = subprocess.run([sys.executable, "-c", script, str(out)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert out.read_bytes() == b"before"


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "0", "x"])
def test_odd_numbers_of_seconds(seconds: str, artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", str(artifact), "--seconds", seconds])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_diff_of_no_pass_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(MODEL), "--diff"]) == 2
    assert "name it with --after PASS" in capsys.readouterr().err
