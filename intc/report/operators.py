"""``docs/operators.md``: what is imported, and what integers compute, from the registries.

python -m intc.report.operators > docs/operators.md
"""

from __future__ import annotations

import re

from intc.codegen.rules import RULES
from intc.frontend.converters import MICROSOFT, STANDARD, TENSORRT
from intc.frontend.importer import OLDEST_OPSET
from intc.frontend.known import FOLDED
from intc.ops import OPS

HEAD = f"""# Operators

Made by `python -m intc.report.operators` from the registries; a test keeps it so.

## Imported from ONNX

Opset {OLDEST_OPSET} or later. Nodes on known values, sizes and positions are computed while importing. What
lies outside an operator's conditions is refused with the node, the operator and the reason.
"""
INTEGER = """
## Computed in integers

`error` is the largest error against the real function that the tests allow, in the unit of the operator's
docstring (output steps, or absolute); operators without one compute their meaning exactly.
"""


def document() -> str:
    """The page as Markdown."""
    lines = [HEAD]
    domains = {"ai.onnx": {*STANDARD, *FOLDED}, "com.microsoft": {*MICROSOFT}, "trt": {*TENSORRT}}
    for domain, names in domains.items():
        lines.append(f"**{domain}** ({len(names)}): {', '.join(f'`{n}`' for n in sorted(names))}.\n")
    lines += [INTEGER, "| operator | meaning | error |", "| --- | --- | --- |"]
    for name in sorted(RULES):
        bound = getattr(OPS[name], "error_bound", None)
        lines.append(
            f"| `{name}` | {_summary(OPS[name].__doc__ or '')} | {'' if bound is None else f'{bound:.4g}'} |"
        )
    return "\n".join(lines) + "\n"


def _summary(docstring: str) -> str:
    """The first sentence of a docstring as one line of a table."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.;])\s", paragraph)[0].rstrip(".;")
    return sentence.replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    print(document(), end="")
