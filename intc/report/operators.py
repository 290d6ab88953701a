"""``docs/operators.md``: what is imported, and what integers compute, from the registries.

python -m intc.report.operators > docs/operators.md
"""

from __future__ import annotations

import re
from pathlib import Path

import onnx

from intc.codegen.rules import RULES
from intc.frontend.call import Converter
from intc.frontend.converters.registry import MICROSOFT, STANDARD, TENSORRT
from intc.frontend.importer import OLDEST_OPSET
from intc.frontend.known import FOLDED
from intc.ops import OPS
from intc.report.refusals import refusals

HEAD = f"""# Operators

Made by `python -m intc.report.operators` from the registries and the converters' own source; a test keeps
it so.

## Imported from ONNX

Opset {OLDEST_OPSET} or later. Nodes on known values, sizes and positions are computed while importing,
whatever the operator. What lies outside an operator's conditions is refused with the node, the operator and
the reason: *refused where* lists these reasons, with `..` for what depends on the node. *Tests* are those
files `tests/test_*.py` that have it in a model; beside them `onnx_backend` runs ONNX's own cases of every
operator.
"""
DOMAINS = {"ai.onnx": STANDARD, "com.microsoft": MICROSOFT, "trt": TENSORRT}
TESTS = Path(__file__).resolve().parents[2] / "tests"
INTEGER = """
## Computed in integers

`error` is the largest error against the real function that the tests allow, in the unit of the operator's
docstring (output steps, or absolute); operators without one compute their meaning exactly.
"""


def document() -> str:
    """The page as Markdown."""
    lines = [HEAD]
    texts = {path.stem.removeprefix("test_"): path.read_text() for path in sorted(TESTS.glob("test_*.py"))}
    for domain, converters in DOMAINS.items():
        folded = FOLDED if converters is STANDARD else ()
        lines += [
            f"### {domain}\n",
            "| operator | opset | refused where | tests |",
            "| --- | --- | --- | --- |",
        ]
        for name in sorted({*converters, *folded}):
            reasons = _known(name) if name in folded else _reasons(converters[name])
            used = re.compile(rf'= {name}\b(?!\.)|"{name}"')  # as in ONNX's text, or as a node is made
            named = ", ".join(f"`{stem}`" for stem, text in texts.items() if used.search(text))
            lines.append(f"| `{name}` | {_opset(name, domain)} | {reasons} | {named} |")
        lines.append("")
    lines += [INTEGER, "| operator | meaning | error |", "| --- | --- | --- |"]
    for name in sorted(RULES):
        bound = getattr(OPS[name], "error_bound", None)
        lines.append(
            f"| `{name}` | {_summary(OPS[name].__doc__ or '')} | {'' if bound is None else f'{bound:.4g}'} |"
        )
    return "\n".join(lines) + "\n"


def _reasons(converter: Converter) -> str:
    return "; ".join(refusals(converter)).replace("|", "\\|")


def _known(name: str) -> str:
    """Why an operator that is never converted is refused."""
    return "its steps depend on one another" if name == "Loop" else "its inputs depend on input values"


def _opset(name: str, domain: str) -> str:
    """The opsets that define the operator, as far as they are imported."""
    if domain != "ai.onnx":
        return "1"
    known = [s for s in onnx.defs.get_all_schemas_with_history() if (s.name, s.domain) == (name, "")]
    if not known:
        return "(onnxruntime)"
    first = min(s.since_version for s in known if not s.deprecated)
    last = max(known, key=lambda schema: schema.since_version)
    return f"until {last.since_version - 1}" if last.deprecated else f"{max(first, OLDEST_OPSET)}+"


def _summary(docstring: str) -> str:
    """The first sentence of a docstring as one line of a table."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.;])\s", paragraph)[0].rstrip(".;")
    return sentence.replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    print(document(), end="")
