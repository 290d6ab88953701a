"""Train a small Llama on the standard library's sources, character by character, and export it. Needs torch.

    python examples/decoder/train.py     # writes llama_characters.onnx beside this file; minutes

RMSNorm, rotary positions, grouped queries (4 heads on 2) and SwiGLU, as in the large ones. One thread and a
fixed seed.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path += [str(HERE.parent), str(HERE.parent / "accuracy")]
from export_decoder import export_with_past  # noqa: E402
from texts import CHARACTERS, CONTEXT, windows  # noqa: E402
from training import one_cycle  # noqa: E402


def network() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=len(CHARACTERS), hidden_size=96, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0, attention_dropout=0.0, initializer_range=0.06,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def loss_of(model: nn.Module, rows: Tensor) -> Tensor:
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def perplexity(model: nn.Module, rows: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        losses = [loss_of(model, part).item() for part in rows.split(64)]
    return math.exp(sum(losses) / len(losses))


def train(rows: Tensor, steps: int, seed: int) -> nn.Module:
    """Of `steps` batches of 32 of the windows `rows` [N, CONTEXT + 1]."""
    torch.manual_seed(seed)
    model = network().train()

    def loss() -> Tensor:
        return loss_of(model, rows[torch.randint(len(rows), (32,))])

    one_cycle(model, loss, steps, 4e-3, 0.05, betas=(0.9, 0.98), warm=0.08)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=HERE / "llama_characters.onnx")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = train(torch.from_numpy(windows(test=False, stride=CONTEXT // 2)), options.steps, options.seed)
    print(f"held-out perplexity {perplexity(model, torch.from_numpy(windows(test=True))):.4f}")
    export_with_past(model, options.output)
    print(f"wrote {options.output} ({options.output.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
