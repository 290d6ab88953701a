"""Export a decoder of `transformers` with its past keys and values as inputs. Needs torch and transformers.

    python examples/decoder/export_decoder.py gpt2-small -o gpt2.onnx      # real size, random weights
    python examples/decoder/export_decoder.py llama-100m -o llama.onnx

Inputs: int64 [batch, sequence] `input_ids`, then for every layer float32 [batch, heads, past, head_dim]
`past.N.key` and `past.N.value`. Outputs: `logits` and `present.N.key`, `present.N.value`, the same with the
new positions appended: intc finds the pairs and keeps them as a state.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

VOCABULARY = 32000


class WithPast(nn.Module):
    """`decoder`, a causal language model, with its cache as plain tensors."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, input_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache = transformers.DynamicCache()
        for layer, (keys, values) in enumerate(zip(past[::2], past[1::2], strict=True)):
            cache.update(keys, values, layer)
        out = self.decoder(input_ids=input_ids, past_key_values=cache, use_cache=True)
        layers = out.past_key_values.layers
        return (out.logits, *(tensor for layer in layers for tensor in (layer.keys, layer.values)))


def export_with_past(decoder: nn.Module, path: Path) -> None:
    """Batch, sequence and past symbolic."""
    config = decoder.config
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    dim = config.hidden_size // config.num_attention_heads
    past = [torch.zeros(2, heads, 5, dim) for _ in range(2 * config.num_hidden_layers)]
    names = [f"{layer}.{part}" for layer in range(config.num_hidden_layers) for part in ("key", "value")]
    auto = torch.export.Dim.AUTO
    sizes = ({0: auto, 1: auto}, tuple({0: auto, 2: auto} for _ in past))
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            WithPast(decoder.eval()).eval(), (torch.ones(2, 3, dtype=torch.int64), *past), str(path),
            dynamo=True, verbose=False, opset_version=18, dynamic_shapes=sizes, external_data=False,
            input_names=["input_ids", *(f"past.{name}" for name in names)],
            output_names=["logits", *(f"present.{name}" for name in names)],
        )  # fmt: skip


def decoder_of_real_size(name: str) -> nn.Module:
    """`gpt2-small` or `llama-100m`, seeded."""
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    if name == "gpt2-small":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**ends))
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
        num_attention_heads=12, num_key_value_heads=4, max_position_embeddings=2048, tie_word_embeddings=True,
        **ends,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=["gpt2-small", "llama-100m"])
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    export_with_past(decoder_of_real_size(options.name), options.output)
    print(f"wrote {options.output} ({options.output.stat().st_size / 1e6:.0f} MB)")


if __name__ == "__main__":
    main()
