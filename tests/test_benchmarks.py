"""The benchmark suite's pure parts: names, ratios, tables, JSON. No engine is loaded or timed."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import intc
from intc.errors import UsageError
from intc.report.bench import interleave, native_call
from intc.report.data import random_feeds
from intc.runtime import load

ROOT = Path(intc.__file__).parents[1]
SUITE = ROOT / "examples" / "benchmarks"
sys.path.append(str(SUITE))

import report  # noqa: E402
from cases import CASES, batch_of  # noqa: E402
from measure import Failed, isolated  # noqa: E402
from peers import ENGINES, Engine, Unavailable, rebuilt  # noqa: E402


def timing(ms: float, gmac_per_s: float = 10.0) -> dict[str, Any]:
    return {"median_ms": ms, "quartile_low_ms": ms, "quartile_high_ms": ms, "gmac_per_s": gmac_per_s,
            "threads_used": 1}  # fmt: skip


def result() -> dict[str, Any]:
    times = {"intc": timing(2.0, 40.0), report.REFERENCE: timing(6.0), "openvino-int8": timing(3.0)}
    states = {name: {"status": "ran"} for name in times}
    states["intc"]["error"] = {"sqnr_db": 31.25, "cosine_mean": 0.9987}
    states["openvino-int8"]["error"] = {"sqnr_db": math.inf, "cosine_mean": 1.0}
    states["openvino-bf16"] = {"status": "unavailable", "reason": "this processor has no bf16 instructions"}
    row = {"scaling": "batch", "threads": 1, "gmac_per_s": 50.0, "share_of_peak": 0.5, "length": None}
    model = {
        "length": 96,
        "engines": states,
        "runs": [{"threads": 1, "batch": 1, "engines": report.with_ratios(times, 80.0, 1)}],
        "scaling": [{**row, "batch": 1, "median_ms": 2.0}, {**row, "batch": 8, "median_ms": 12.0},
                    {"scaling": "batch", "threads": 1, "batch": 64, "length": None, "reason": "too large"}],
    }  # fmt: skip
    ways = {"native call": timing(0.1), "session.run": timing(0.15)}
    return {
        "format": report.FORMAT,
        "date": "2026-01-01",
        "machine": {"cpu": "some CPU", "cores": 2, "flags": ["avx2"]},
        "versions": {"intc": "1"},
        "peak": 80.0,
        "models": {"tiny": model},
        "overhead": {"runs": [{"threads": 1, "ways": ways}]},
    }  # fmt: skip


def cells(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_ratios_are_times_as_fast() -> None:
    found = report.with_ratios(
        {"intc": timing(2.0, 40.0), report.REFERENCE: timing(6.0), "x": timing(3.0)}, 80.0, 2
    )
    assert found["intc"]["to_best_peer"] == 1.5
    assert found["intc"]["to_fp32"] == 3.0
    assert found["intc"]["share_of_peak"] == 0.25
    assert found["x"]["to_best_peer"] == 1.0
    assert found[report.REFERENCE]["to_best_peer"] == 0.5


def test_ratios_without_peers_or_peak_are_none() -> None:
    (own,) = report.with_ratios({"intc": timing(2.0)}, None, 1).values()
    assert (own["to_best_peer"], own["to_fp32"], own["share_of_peak"]) == (None, None, None)


def test_the_tables_say_what_was_measured_and_what_was_not() -> None:
    text = report.markdown(result())
    assert cells(text, "intc")[1:] == ["2.000", "2 .. 2", "1.50", "3.00", "40.0", "50%", "31.2", "0.99870"]
    assert cells(text, report.REFERENCE)[-2:] == ["reference", ""]
    assert cells(text, "openvino-int8")[-2] == "equal"
    assert "- openvino-bf16: unavailable (this processor has no bf16 instructions)" in text
    assert cells(text, "8")[-1] == "0.75"
    assert cells(text, "64")[-1] == "too large"
    assert cells(text, "session.run")[1:] == ["150.0", "50.0"]


def test_failures_and_wrong_thread_counts_are_told() -> None:
    changed = result()
    changed["models"]["tiny"]["runs"][0]["threads"] = 2
    changed["models"]["tiny"]["runs"].append({"threads": 4, "batch": 1, "reason": "its process died"})
    changed["models"]["other"] = {"engines": {}, "reason": "export: no disk"}
    changed["overhead"] = {"reason": "no compiler"}
    text = report.markdown(changed)
    assert "- intc: 1 of 2 threads worked" in text
    assert "not comparable" not in text
    changed["models"]["tiny"]["runs"][0]["engines"]["openvino-int8"]["on_cpu"] = 0.02
    assert "not comparable, the machine was busy; time on a processor: openvino-int8 2%" in report.markdown(
        changed
    )
    for reason in ("its process died", "export: no disk", "no compiler"):
        assert f"Not measured: {reason}" in text


def test_json_keeps_everything_but_infinities(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    report.write_json(path, result())
    expected = result()
    expected["models"]["tiny"]["engines"]["openvino-int8"]["error"]["sqnr_db"] = None
    assert report.read_json(path) == expected
    assert report.markdown(report.read_json(path)) == report.markdown(result())
    with pytest.raises(TypeError):
        report.write_json(path, {"bad": object()})
    assert report.read_json(path) == expected
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 0}'])
def test_other_files_are_no_results(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UsageError, match=r"x\.json: not a benchmark result"):
        report.read_json(tmp_path / "x.json")


def test_choices() -> None:
    assert report.choose("b, a,b", ["a", "b"], "model") == ["b", "a"]
    assert report.numbers("8,1", "--batch") == [1, 8]
    with pytest.raises(UsageError, match="model 'c' is not one of a, b"):
        report.choose("a,c", ["a", "b"], "model")
    for bad in ("0", "-1", "two", "1.5", "²", ""):
        with pytest.raises(UsageError, match="--batch"):
            report.numbers(bad, "--batch")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "resnet"], "model 'resnet' is not one of deit-tiny,"),
        (["--engines", "tensorrt"], "engine 'tensorrt' is not one of intc,"),
        (["--threads", "0"], "--threads 0: '0' is not a positive number"),
        (["--seconds", "nan"], "--seconds nan"),
    ],
)
def test_bad_usage_is_one_line(options: list[str], message: str, tmp_path: Path) -> None:
    command = [sys.executable, SUITE / "run.py", "--folder", tmp_path / "build", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "build").exists()


def test_missing_extras_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import run

    monkeypatch.setattr(run, "_installed", lambda module: module != "torch")
    assert run.main(["--models", "deit-tiny", "--folder", "no-such-folder"]) == 2
    expected = "benchmarks: error: missing torch; run: pip install -e '.[bench,examples]'\n"
    assert capsys.readouterr().err == expected


def test_an_engine_that_is_not_installed_says_so() -> None:
    engine = Engine(ENGINES["intc"].load, ("no-such-package",))
    with pytest.raises(Unavailable, match="not installed: pip install no-such-package"):
        engine.check()


def test_models_are_kept_until_data_change(tmp_path: Path) -> None:
    onnx, calls = tmp_path / "m.onnx", []
    onnx.write_bytes(b"model")

    def build(path: Path, calibration: dict[str, Any], folder: Path) -> None:
        calls.append(path)
        (folder / "model.onnx").write_text("built")

    engine = Engine(ENGINES["intc"].load, ("numpy",), build)
    folder = tmp_path / "engine"
    paths = [engine.model(onnx, {"x": np.full(2, value)}, folder) for value in (0, 0, 1)]
    assert len(calls) == 2
    assert paths[0] == paths[1] != paths[2]
    assert list(folder.iterdir()) == [paths[2].parent]


def test_a_failed_build_leaves_the_old_one(tmp_path: Path) -> None:
    rebuilt(tmp_path / "a", lambda folder: (folder / "x").write_text("old"))
    with pytest.raises(ZeroDivisionError):
        rebuilt(tmp_path / "a", lambda folder: 1 // 0)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "x").read_text() == "old"


def test_batches_repeat_the_samples() -> None:
    assert batch_of({"x": np.arange(3)}, 5)["x"].tolist() == [0, 1, 2, 0, 1]


def test_the_reference_is_an_engine() -> None:
    assert {report.OWN, report.REFERENCE} <= set(ENGINES)
    assert "deit-tiny" in CASES


def test_a_turn_begins_with_an_untimed_call() -> None:
    events: list[str] = []
    run = {"a": lambda: events.append("a") or []}
    interleave(run, 0.0, lambda: events.append("wait"))
    first = events.index("wait")
    assert events[first + 1 : first + 3] == ["a", "a"]


def test_the_native_call_gives_the_session_s_integers(artifact: Path) -> None:
    session = load(artifact)
    feeds = random_feeds(session.manifest.inputs, dict.fromkeys(session.manifest.symbols, 3))
    run = native_call(session, feeds)
    for _ in range(2):
        np.testing.assert_array_equal(run()[0], session.run(None, feeds, raw=True)[0])


def test_a_crash_stays_in_its_process(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with pytest.raises(Failed, match=r"its process died.*log\.txt"):
        isolated(log, os._exit, 3)
    with pytest.raises(Failed, match="ValueError: invalid literal"):
        isolated(log, int, "x")
    assert "Traceback" in log.read_text()
    assert isolated(log, max, 1, 2) == 2
