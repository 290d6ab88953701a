"""Train a BERT-like classifier that tells which package three lines of source come from. Needs torch.

    python examples/accuracy/train_classifier.py     # writes classifier.onnx beside this file; minutes

Post-norm encoder layers, a padding mask, the class token read by a linear head: int64 [batch, sequence]
`input_ids` and `attention_mask` to `logits` [batch, 8]. One thread and a fixed seed.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch
from texts import BUCKETS, PACKAGES, TOKENS, Snippets, snippets
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, LAYERS = 96, 3, 2


class Layer(nn.Module):
    """[B, S, WIDTH] -> [B, S, WIDTH]; `keep` is bool [B, 1, 1, S]."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.expand, self.contract = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = self.qkv(x).reshape(batch, length, 3, HEADS, WIDTH // HEADS)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each B H S D
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        mixed = self.project(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        x = self.norm1(x + self.drop(mixed))
        inner = self.contract(functional.gelu(self.expand(x)))
        result: Tensor = self.norm2(x + self.drop(inner))
        return result


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(BUCKETS, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.norm, self.drop = nn.LayerNorm(WIDTH), nn.Dropout(0.2)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, len(PACKAGES))
        nn.init.normal_(self.words.weight, std=0.05)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(input_ids) + self.positions.weight[: input_ids.shape[1]]
        x = self.drop(self.norm(x))
        keep = attention_mask[:, None, None, :].bool()
        for layer in self.layers:
            x = layer(x, keep)
        return self.head(x[:, 0])  # type: ignore[no-any-return]


def tensors(data: Snippets) -> tuple[Tensor, Tensor, Tensor]:
    return torch.from_numpy(data.ids), torch.from_numpy(data.mask), torch.from_numpy(data.labels)


def accuracy(model: nn.Module, data: Snippets) -> float:
    ids, mask, labels = tensors(data)
    model.eval()
    with torch.no_grad():
        return float((model(ids, mask).argmax(1) == labels).float().mean())


def train(data: Snippets, epochs: int = 3, seed: int = 0) -> Classifier:
    """One-cycle AdamW, batches of 64, every tenth token replaced by a random one. On one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    ids, mask, labels = tensors(data)
    model = Classifier()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = epochs * (len(ids) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1e-3, total_steps=steps, pct_start=0.1)
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(ids))
        for start in range(0, len(ids) - 63, 64):
            rows = order[start : start + 64]
            noisy = torch.where(
                torch.rand(64, TOKENS) < 0.1, torch.randint(2, BUCKETS, (64, TOKENS)), ids[rows]
            )
            noisy = torch.where(ids[rows] > 1, noisy, ids[rows])
            loss = functional.cross_entropy(model(noisy, mask[rows]), labels[rows], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        print(f"epoch {epoch + 1:3d}  loss {loss.item():.3f}", flush=True)
    return model


def export(model: nn.Module, path: Path) -> None:
    """Batch and sequence symbolic."""
    names = ["input_ids", "attention_mask"]
    example = torch.ones(2, 16, dtype=torch.int64)
    axes = {name: {0: "batch", 1: "sequence"} for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(), (example, example.clone()), str(path), dynamo=False, opset_version=17,
            input_names=names, output_names=["logits"], dynamic_axes={**axes, "logits": {0: "batch"}},
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_name("classifier.onnx"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = train(snippets(test=False), options.epochs, options.seed)
    print(f"held-out accuracy {accuracy(model, snippets(test=True)):.4f}")
    export(model, options.output)
    print(f"wrote {options.output} ({options.output.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
