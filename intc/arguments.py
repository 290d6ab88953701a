"""The arguments of the command line: what each command takes, and its help."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import intc
from intc.errors import UsageError

Command = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """Usage errors are one line and exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def build_parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """The parser of all commands; ``commands`` holds the function of each, by name."""
    parser = Parser(prog="intc", description="Integer-only inference compiler for transformers.")
    parser.add_argument("--version", action="version", version=f"intc {intc.__version__}")
    group = parser.add_subparsers(dest="name", required=True, metavar="COMMAND", parser_class=Parser)
    _compile_arguments(_add(group, "compile", commands["compile"], "ONNX model -> artifact", COMPILE_EXAMPLE))
    _retarget_arguments(
        _add(group, "retarget", commands["retarget"], "artifact -> another target", RETARGET_EXAMPLE)
    )
    _run_arguments(_add(group, "run", commands["run"], "run an artifact on an .npz file", RUN_EXAMPLE))
    _map_arguments(
        _add(group, "map", commands["map"], "run an artifact on all rows of Parquet files", MAP_EXAMPLE)
    )
    _verify_arguments(
        _add(
            group, "verify", commands["verify"], "check an artifact against its exact meaning", VERIFY_EXAMPLE
        )
    )
    _bench_arguments(
        _add(group, "bench", commands["bench"], "time an artifact, also against float", BENCH_EXAMPLE)
    )
    _inspect_arguments(
        _add(group, "inspect", commands["inspect"], "print the graph of a model or artifact", INSPECT_EXAMPLE)
    )
    _export_arguments(
        _add(group, "export", commands["export"], "write an artifact for another engine", EXPORT_EXAMPLE)
    )
    info = _add(group, "info", commands["info"], "describe an artifact", "example: intc info model.intc")
    info.add_argument("artifact", type=Path)
    sign = _add(group, "sign", commands["sign"], "sign an artifact with an Ed25519 key", SIGN_EXAMPLE)
    sign.add_argument("artifact", type=Path)
    sign.add_argument("--key", type=Path, required=True, metavar="PEM", help="the private key")
    sign.add_argument("-o", "--output", type=Path, help="where to write it (default: in place)")
    return parser


COMPILE_EXAMPLE = """example:
  intc compile model.onnx -o model.intc --calibration data.npz
data.npz holds one array per input, samples along axis 0; 100 to 500 typical samples are enough."""
RETARGET_EXAMPLE = """example:
  intc retarget model.intc --target c --size batch=1 -o net.c
the integers stay as they are; no calibration data is needed."""
RUN_EXAMPLE = "example:\n  intc run model.intc --inputs x.npz --outputs y.npz --threads 2"
MAP_EXAMPLE = """examples:
  intc map minilm.intc --input rows.parquet --output out.parquet --column text --tokenizer DIR --keep id
  intc map vit.intc --input folder/ --output out.parquet --column pixel_values=image --workers 8
the output is a folder of Parquet files, one a block, each row with the number of its input row in the column
'row'; bad rows are listed in out.parquet/_rejected. The same command again computes what is still missing."""
VERIFY_EXAMPLE = """example:
  intc verify model.intc --model model.onnx --data x.npz
exit status 0 only if the kernels equal the reference bit for bit, nothing is float and nothing overflows."""
BENCH_EXAMPLE = """example:
  intc bench model.intc --threads 2 --batch 8 --vs model.onnx --engines onnxruntime,openvino"""
EXPORT_EXAMPLE = """example:
  intc export model.intc --onnx integers.onnx
  intc export model.intc --triton repository/model
inputs and outputs of the ONNX file are the integers; it holds integer operators only. A folder for Triton
holds config.pbtxt, the artifact, and the code that Triton's Python backend runs it with."""
INSPECT_EXAMPLE = """examples:
  intc inspect model.onnx --after recover_gelu --diff                     as text
  intc inspect model.onnx --calibration data.npz --html model.html        everything, as one page
  intc inspect model.intc --data x.npz --model model.onnx --html model.html
--html writes one file to open in any browser: the graph after every pass, what each pass changed, and of each
value formula, interval, scale, error, distribution and kernel source. Without calibration data an ONNX file
is followed up to the passes that need ranges; --after PASS ends with that pass."""

SIGN_EXAMPLE = """example:
  openssl genpkey -algorithm ed25519 -out key.pem          the private key, to keep secret
  openssl pkey -in key.pem -pubout -out public.pem         the public key, to give to those who load
  intc sign model.intc --key key.pem
  intc run model.intc --trusted-key public.pem --inputs x.npz --outputs y.npz"""


def _add(group: Any, name: str, command: Command, text: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = group.add_parser(
        name,
        help=text,
        description=text,
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="print (or write) one JSON object"
    )
    parser.add_argument("--debug", action="store_true", help="show a traceback where an error occurs")
    return parser


def _compile_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="an ONNX file")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="the artifact (default: the model's name with .intc); for target c a folder, or a .c file",
    )
    parser.add_argument(
        "--calibration",
        metavar="NPZ",
        help="sample inputs (a quantised model may do without), or 'random' for trials of speed only",
    )
    parser.add_argument(
        "--target",
        default="native",
        help="native, x86-64-v2, x86-64-v3, x86-64-v4, avx512-vnni, cuda, cuda:sm_80, or c (C source)",
    )
    parser.add_argument(
        "--approximation", default="auto", help="auto, shift, ivit, ibert or lut (default: auto)"
    )
    parser.add_argument("--bits", default="8", help="8, 16 (activations), auto or a plan file (default: 8)")
    parser.add_argument(
        "--accuracy-target", metavar="METRIC>=X", help="widen until sqnr>=30 or cosine>=0.998"
    )
    parser.add_argument("--save-plan", type=Path, metavar="JSON", help="write the plan that was compiled")
    parser.add_argument(
        "--max-slowdown",
        type=float,
        default=1.1,
        help="latency that auto may spend, times 8 bits (default: 1.1)",
    )
    parser.add_argument("--max-bytes", type=_positive, help="bytes that the products' weights may take")
    parser.add_argument(
        "--families", default="", help="approximations that auto may choose from, with commas"
    )
    parser.add_argument(
        "--sensitivity",
        default="output",
        metavar="MEASURE",
        help="how a choice's noise is measured: output (default), local, hessian, relevance, outliers",
    )
    parser.add_argument(
        "--calibrator", default="mse", help="8-bit ranges: mse (default), minmax, percentile or entropy"
    )
    parser.add_argument("--rounding", default="gptq", help="weights' integers: gptq (default) or nearest")
    parser.add_argument(
        "--calibration-cache", metavar="NPZ", type=Path, help="keeps statistics; taken up again if they fit"
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=SHAPE",
        help="fix a shape, ids=1,128, or type, image=uint8",
    )
    parser.add_argument(
        "--longest",
        type=_positive,
        default=4096,
        metavar="N",
        help="positions that tables of rotary angles and relative biases cover (default: 4096)",
    )
    _size_argument(parser)
    parser.add_argument(
        "--dump-after", action="append", default=[], metavar="PASS", help="print the graph after PASS"
    )
    parser.add_argument("--report", type=Path, metavar="HTML", help="write the accuracy of every node")
    parser.add_argument(
        "--report-samples",
        type=_count,
        metavar="N",
        help="on N samples (default: 8, or 2 where only a terminal shows it; 0: not at all)",
    )
    parser.add_argument(
        "--worst", type=_count, metavar="N", help="list N nodes (default: 10 on a terminal, else 0)"
    )


def _retarget_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="as for compile")
    parser.add_argument("--target", help="as for compile (default: the artifact's own)")
    _size_argument(parser)


def _size_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size",
        action="append",
        default=[],
        metavar="SYMBOL=N",
        help="fix a free size of the kernels, as in batch=1 (target c needs all)",
    )


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path)
    _device_argument(parser)
    parser.add_argument("--inputs", type=Path, required=True, metavar="NPZ")
    parser.add_argument("--outputs", type=Path, required=True, metavar="NPZ")
    _trust_argument(parser)
    parser.add_argument(
        "--recompile", action="store_true", help="compile the graph again; run no code of the file"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=_positive, default=32, help="samples an inference (default: 32)")
    parser.add_argument(
        "--raw", action="store_true", help="write the outputs' integers instead of real values"
    )


def _map_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path)
    parser.add_argument(
        "--input", type=Path, required=True, metavar="PARQUET", help="a file, or a folder of files *.parquet"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where results are kept")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="[INPUT=]COLUMN",
        help="what to read: the text (default: text), or for each input a column (default: of its name)",
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="the folder with tokenizer.json, for text"
    )
    parser.add_argument(
        "--length", type=_positive, metavar="N", help="cut texts at N tokens (default: the model's)"
    )
    parser.add_argument(
        "--keep", action="append", default=[], metavar="COLUMN", help="copy a column to the results"
    )
    parser.add_argument("--raw", action="store_true", help="the outputs' integers instead of real values")
    parser.add_argument("--batch", type=_positive, default=32, help="rows an inference (default: 32)")
    parser.add_argument(
        "--block-rows",
        type=_positive,
        default=8192,
        metavar="N",
        help="rows that are written together (8192)",
    )
    parser.add_argument(
        "--engine",
        choices=("auto", "ray", "local"),
        default="auto",
        help="default: ray where it is installed",
    )
    parser.add_argument(
        "--address", metavar="RAY", help="a running Ray cluster (default: this machine alone)"
    )
    parser.add_argument(
        "--workers", type=_positive, metavar="N", help="at most so many (default: one a core)"
    )
    parser.add_argument("--threads", type=_positive, default=1, help="of each worker (default: 1)")
    _trust_argument(parser)


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path)
    _device_argument(parser)
    parser.add_argument("--data", type=Path, required=True, metavar="NPZ")
    parser.add_argument(
        "--model", type=Path, metavar="ONNX", help="the float model, to measure accuracy against"
    )
    _trust_argument(parser)
    parser.add_argument("--nodes", action="store_true", help="also look at every node's value (see --json)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write that as a page")


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path)
    _device_argument(parser)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=_positive, default=1)
    parser.add_argument(
        "--size", action="append", default=[], metavar="SYMBOL=N", help="a size other than the batch"
    )
    parser.add_argument("--vs", type=Path, metavar="ONNX", help="the float model to run beside")
    parser.add_argument(
        "--engines", default="onnxruntime", help="onnxruntime, openvino, or both with a comma"
    )
    parser.add_argument("--inputs", type=Path, metavar="NPZ", help="real inputs (default: random ones)")
    parser.add_argument("--seconds", type=_seconds, default=6.0, help="how long to measure (default: 6)")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="also the time of every stage (of every kernel on a GPU): GMAC/s, share of peak, bytes moved",
    )
    parser.add_argument("--no-peak", action="store_true", help="do not measure this core's peak")


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--onnx", type=Path, metavar="FILE", help="the integer graph as ONNX")
    kind.add_argument("--triton", type=Path, metavar="DIR", help="a model of a Triton repository")
    parser.add_argument("--batch", type=_positive, default=32, help="Triton: rows run together (default: 32)")
    parser.add_argument(
        "--delay", type=_count, default=2000, metavar="US", help="Triton: wait for more, us (default: 2000)"
    )
    parser.add_argument("--instances", type=_positive, default=1, help="Triton: copies that run (default: 1)")


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="an ONNX file or an artifact")
    parser.add_argument("--after", metavar="PASS", help="the graph after this pass (ONNX files)")
    parser.add_argument("--calibration", metavar="NPZ", help="needed for integerise and the passes after it")
    parser.add_argument("--diff", action="store_true", help="show what the pass changed")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write one page of everything: graphs, diffs, kernels"
    )
    page = parser.add_argument_group("for --html")
    page.add_argument("--target", default="native", help="of the kernels of an ONNX file (default: native)")
    page.add_argument(
        "--samples",
        type=_count,
        default=2,
        metavar="N",
        help="measure errors on N calibration samples (default: 2; 0: not at all)",
    )
    page.add_argument("--data", type=Path, metavar="NPZ", help="check every kernel of an artifact on this")
    page.add_argument("--model", type=Path, metavar="ONNX", help="with --data: the float model beside")


def _trust_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trusted-key",
        type=Path,
        action="append",
        default=[],
        metavar="PEM",
        help="refuse artifacts not signed by this public key; may be repeated",
    )


def _device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="CUDA", help="the GPU to run on (default: cuda:0)")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 86400:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds up to a day")
    return seconds


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 on")
    return int(text)


def given_sizes(texts: Sequence[str]) -> dict[str, int]:
    """What ``--size SYMBOL=N`` says, each time that it is given."""
    sizes = {}
    for text in texts:
        name, _, number = text.partition("=")
        if not number.isdigit() or int(number) < 1:
            raise UsageError(f"--size {text}: expected SYMBOL=N with N >= 1")
        sizes[name] = int(number)
    return sizes


def input_override(text: str) -> tuple[str, Any]:
    """``NAME=SIZE,SIZE,..`` or ``NAME=uint8``, an element type."""
    from intc.ir.types import DTYPES

    name, separator, given = text.partition("=")
    sizes = tuple(int(d) if d.isdigit() else d for d in given.split(",") if d)
    if (
        not name
        or not separator
        or not sizes
        or not all(isinstance(d, int) or d.isidentifier() for d in sizes)
    ):
        raise UsageError(f"--input {text}: expected NAME=SIZE,SIZE,.. or NAME=TYPE")
    return name, given if given in DTYPES else sizes
