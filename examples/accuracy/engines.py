"""The engines that are compared: each turns an ONNX file and calibration samples into a function.

All use one thread and int8 weights per output channel; their calibration is the same samples.
"""

from __future__ import annotations

import dataclasses
import inspect
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

import intc

Array = NDArray[Any]
Feeds = Mapping[str, Array]
Run = Callable[[Feeds], Array]
Engine = Callable[[Path, Feeds], Run]  # model, calibration samples along axis 0
PRODUCTS = ["MatMul", "Gemm", "Conv"]


def batches(feeds: Feeds, size: int) -> Iterator[dict[str, Array]]:
    """Consecutive pieces of at most ``size`` samples."""
    for start in range(0, len(next(iter(feeds.values()))), size):
        yield {name: array[start : start + size] for name, array in feeds.items()}


def fp32(model: Path, calibration: Feeds) -> Run:
    return _onnxruntime(model)


def ort_dynamic(model: Path, calibration: Feeds) -> Run:
    """Ranges of activations found at run time; weights per channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        prepared, path = _prepared(model, Path(folder)), Path(folder) / "dynamic.onnx"
        quantize_dynamic(
            prepared, path, op_types_to_quantize=PRODUCTS, per_channel=True, reduce_range=not _has_vnni(),
            weight_type=QuantType.QInt8,
        )  # fmt: skip
        return _onnxruntime(path)


def ort_static(model: Path, calibration: Feeds) -> Run:
    """QDQ around matrix products and convolutions only (around all operators it is far worse), min-max."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        pieces = batches(calibration, 1)

        def get_next(self) -> dict[str, Array] | None:
            return next(self.pieces, None)

    with tempfile.TemporaryDirectory() as folder:
        prepared, path = _prepared(model, Path(folder)), Path(folder) / "static.onnx"
        quantize_static(
            prepared, path, Reader(), quant_format=QuantFormat.QDQ, op_types_to_quantize=PRODUCTS,
            per_channel=True, reduce_range=not _has_vnni(), activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )  # fmt: skip
        return _onnxruntime(path)


def openvino_nncf(model: Path, calibration: Feeds) -> Run:
    """`nncf.quantize` for transformers, preset MIXED (SmoothQuant and bias correction included)."""
    import nncf
    import openvino

    network = openvino.convert_model(model)
    names = [port.any_name for port in network.inputs]
    samples = [{name: piece[name] for name in names} for piece in batches(calibration, 1)]
    quantised = nncf.quantize(
        network, nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED, subset_size=len(samples),
    )  # fmt: skip
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(quantised, "CPU", settings)
    return lambda feeds: np.array(compiled({name: feeds[name] for name in names})[0])


def integer(**options: Any) -> Engine:
    """intc with these options of `intc.compile`."""

    def engine(model: Path, calibration: Feeds) -> Run:
        session = intc.compile(model, dict(calibration), **options).session()
        return lambda feeds: session.run(None, feeds)[0]

    return engine


ENGINES: dict[str, Engine] = {
    "fp32": fp32,
    "ort dynamic": ort_dynamic,
    "ort static": ort_static,
    "openvino nncf": openvino_nncf,
    "intc": integer(),
}


def variant(text: str) -> Engine:
    """``"calibrator=percentile,bits=8"`` or ``"bits=auto,sensitivity=hessian"`` as an engine: options of
    `intc.compile` and fields of `intc.Search`. ValueError names what neither takes.
    """
    parameters = inspect.signature(intc.compile).parameters.values()
    limits = {f.name for f in dataclasses.fields(intc.Search)}
    taken = {p.name for p in parameters if p.kind == p.KEYWORD_ONLY} | limits
    options: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or name not in taken:
            raise ValueError(f"'{part}' is no option of intc.compile; known: {', '.join(sorted(taken))}")
        options[name] = int(value) if value.lstrip("-").isdigit() else value
    search = {name: options.pop(name) for name in limits & options.keys()}
    return integer(**options, **({"search": intc.Search(**search)} if search else {}))


def _onnxruntime(model: Path) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return lambda feeds: np.asarray(session.run(None, dict(feeds))[0])


def _prepared(model: Path, folder: Path) -> Path:
    """The model after onnxruntime's own preparation for quantisation."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = folder / "prepared.onnx"
    quant_pre_process(str(model), str(path), skip_symbolic_shape=True)
    return path


def _has_vnni() -> bool:
    """Without VNNI onnxruntime's 8-bit products saturate at 16 bits unless weights keep to 7 bits."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return any(flag in flags for flag in ("avx512_vnni", "avx_vnni"))
