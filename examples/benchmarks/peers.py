"""The engines: how each makes its own model file from the ONNX file, and how it loads and runs it.

Every engine gets the number of threads explicitly. Quantised peers get the same calibration samples as intc
and the settings that their documentation recommends for transformers on this processor.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from cases import Feeds

from intc.errors import IntcError

Runner = Callable[[Feeds], list[Any]]
OWN = "intc"
REFERENCE = "onnxruntime-fp32"
VNNI = ("avx512_vnni", "avx_vnni")


class Unavailable(IntcError):
    """The engine is not installed, or this processor cannot run it."""


@dataclass(frozen=True)
class Engine:
    """One way to run a model.

    `build(onnx, calibration, folder)` writes the engine's own model, called `file`, into an empty folder
    (None: it reads the ONNX file); `load(path, threads, feeds)` gives a function of feeds shaped like
    `feeds`. `packages` are the distributions it needs; together with `settings` they key the cache.
    `refusal()` says why this processor cannot run it.
    """

    load: Callable[[Path, int, Feeds], Runner]
    packages: tuple[str, ...]
    build: Callable[[Path, Feeds, Path], None] | None = None
    file: str = "model.onnx"
    settings: dict[str, Any] = field(default_factory=dict)
    refusal: Callable[[], str | None] = lambda: None
    cached: bool = True

    def check(self) -> None:
        """Raise Unavailable where the engine cannot run here."""
        for package in self.packages:
            if importlib.util.find_spec(MODULES.get(package, package)) is None:
                raise Unavailable(f"not installed: pip install {package}")
        if reason := self.refusal():
            raise Unavailable(reason)

    def model(self, onnx: Path, calibration: Feeds, folder: Path, fresh: bool = False) -> Path:
        """The file to load: built under `folder`, once for equal model, data, settings and versions."""
        if self.build is None:
            return onnx
        key = self._key(onnx, calibration) if self.cached else "current"
        place = folder / key
        if fresh or not self.cached or not place.exists():
            build = self.build
            rebuilt(place, lambda empty: build(onnx, calibration, empty))
        for other in folder.iterdir():  # of settings, data or versions that are no more
            if other != place:
                shutil.rmtree(other)
        return place / self.file

    def _key(self, onnx: Path, calibration: Feeds) -> str:
        with open(onnx, "rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        for name, array in sorted(calibration.items()):
            digest.update(f"{name} {array.shape} {array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(json.dumps([self.settings, [metadata.version(p) for p in self.packages]]).encode())
        return digest.hexdigest()[:16]


def rebuilt(place: Path, build: Callable[[Path], object]) -> Path:
    """The folder `place`, filled by `build`, which is given an empty one; replaced only once complete."""
    empty = place.with_name(f"{place.name}.{os.getpid()}.new")
    shutil.rmtree(empty, ignore_errors=True)
    empty.mkdir(parents=True)
    try:
        build(empty)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(empty, place)
    finally:
        shutil.rmtree(empty, ignore_errors=True)
    return place


def one_by_one(feeds: Feeds) -> Iterator[Feeds]:
    """`feeds` sample by sample, each a batch of one."""
    for index in range(len(next(iter(feeds.values())))):
        yield {name: array[index : index + 1] for name, array in feeds.items()}


# ---------------------------------------------------------------- intc


def _intc_build(onnx: Path, calibration: Feeds, folder: Path) -> None:
    import intc

    intc.compile(onnx, calibration).save(folder / "model.intc")


def _intc_load(path: Path, threads: int, feeds: Feeds) -> Runner:
    from intc.runtime import load

    session = load(path, threads=threads)
    return lambda given: session.run(None, given)


# ---------------------------------------------------------------- onnxruntime


def _onnxruntime_load(path: Path, threads: int, feeds: Feeds) -> Runner:
    from intc.report.reference import Reference

    return Reference(path, threads).run


def _reduce_range() -> bool:
    """Without VNNI onnxruntime's 8-bit products add pairs in 16 saturating bits: 7-bit weights avoid it."""
    from intc.runtime.native import cpu_features

    return not cpu_features().intersection(VNNI)


DYNAMIC = {"per_channel": True, "reduce_range": _reduce_range()}
STATIC = {**DYNAMIC, "op_types_to_quantize": ["MatMul", "Gemm", "Conv"]}


def _dynamic_build(onnx: Path, calibration: Feeds, folder: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(onnx, folder / "model.onnx", **DYNAMIC)


def _static_build(onnx: Path, calibration: Feeds, folder: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples = one_by_one(calibration)

        def get_next(self) -> Feeds | None:
            return next(self.samples, None)

    prepared = folder / "prepared.onnx"
    quant_pre_process(onnx, prepared, skip_symbolic_shape=True)  # which fails on some BERT exports
    quantize_static(
        prepared, folder / "model.onnx", Reader(), quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, **STATIC,
    )  # fmt: skip
    prepared.unlink()


# ---------------------------------------------------------------- openvino


def _openvino_load(precision: str | None) -> Callable[[Path, int, Feeds], Runner]:
    def load(path: Path, threads: int, feeds: Feeds) -> Runner:
        from intc.report.bench import openvino_model

        return openvino_model(path, threads, feeds, precision)

    return load


def _no_bf16() -> str | None:
    import openvino

    capable = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return None if "BF16" in capable else "this processor has no bf16 instructions"


def _nncf_build(onnx: Path, calibration: Feeds, folder: Path) -> None:
    import nncf
    import openvino

    model = openvino.Core().read_model(str(onnx))
    samples = list(one_by_one(calibration))
    quantised = nncf.quantize(
        model, nncf.Dataset(samples), subset_size=len(samples),
        model_type=nncf.ModelType.TRANSFORMER, preset=nncf.QuantizationPreset.MIXED,
    )  # fmt: skip
    openvino.save_model(quantised, str(folder / "model.xml"), compress_to_fp16=False)


MODULES = {"apache-tvm": "tvm"}  # of distributions whose module has another name
ENGINES: dict[str, Engine] = {
    OWN: Engine(_intc_load, ("apache-tvm",), _intc_build, "model.intc", cached=False),
    REFERENCE: Engine(_onnxruntime_load, ("onnxruntime",)),
    "onnxruntime-int8-dynamic": Engine(
        _onnxruntime_load, ("onnxruntime", "onnx"), _dynamic_build, settings=DYNAMIC
    ),
    "onnxruntime-int8-static": Engine(
        _onnxruntime_load, ("onnxruntime", "onnx"), _static_build, settings=STATIC
    ),
    "openvino-fp32": Engine(_openvino_load("f32"), ("openvino",)),
    "openvino-bf16": Engine(_openvino_load("bf16"), ("openvino",), refusal=_no_bf16),
    "openvino-int8": Engine(_openvino_load(None), ("openvino", "nncf"), _nncf_build, "model.xml"),
}
