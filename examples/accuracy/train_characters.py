"""Train a GPT-like character model on the standard library's sources and export it. Needs torch.

    python examples/accuracy/train_characters.py     # writes characters.onnx beside this file; minutes

Pre-norm decoder layers with causal attention: int64 [batch, sequence] `input_ids` to `logits`
[batch, sequence, 96], the next character's. One thread and a fixed seed.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from pathlib import Path

import torch
from texts import CHARACTERS, CONTEXT, windows
from torch import Tensor, nn
from torch.nn import functional

sys.path.append(str(Path(__file__).resolve().parents[1]))
from training import one_cycle

WIDTH, HEADS, LAYERS = 96, 3, 4


class Layer(nn.Module):
    """[B, S, WIDTH] -> [B, S, WIDTH]; position i reads positions up to i."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.expand, self.contract = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = self.qkv(self.norm1(x)).reshape(batch, length, 3, HEADS, WIDTH // HEADS)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each B H S D
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        result: Tensor = x + self.contract(functional.gelu(self.expand(self.norm2(x))))
        return result


class Characters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.letters, self.positions = nn.Embedding(len(CHARACTERS), WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(CHARACTERS))
        nn.init.normal_(self.letters.weight, std=0.1)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.letters(input_ids) + self.positions.weight[: input_ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


def perplexity(model: nn.Module, rows: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        losses = [functional.cross_entropy(model(p[:, :-1]).flatten(0, 1), p[:, 1:].flatten()).item()
                  for p in rows.split(64)]  # fmt: skip
    return math.exp(sum(losses) / len(losses))


def train(rows: Tensor, steps: int, seed: int) -> Characters:
    """Of `steps` batches of 32 of the windows `rows` [N, CONTEXT + 1]."""
    torch.manual_seed(seed)
    model = Characters()

    def loss() -> Tensor:
        batch = rows[torch.randint(len(rows), (32,))]
        return functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    one_cycle(model, loss, steps, 3e-3, 0.05, betas=(0.9, 0.98), warm=0.08)
    return model


def export(model: nn.Module, path: Path) -> None:
    """Batch and sequence symbolic."""
    example = torch.ones(2, 16, dtype=torch.int64)
    symbols = {0: "batch", 1: "sequence"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(), (example,), str(path), dynamo=False, opset_version=17, input_names=["input_ids"],
            output_names=["logits"], dynamic_axes={"input_ids": symbols, "logits": symbols},
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_name("characters.onnx"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = train(torch.from_numpy(windows(test=False, stride=CONTEXT // 2)), options.steps, options.seed)
    print(f"held-out perplexity {perplexity(model, torch.from_numpy(windows(test=True))):.4f}")
    export(model, options.output)
    print(f"wrote {options.output} ({options.output.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
